"""Where pictures lie: a folder, a list, WebDataset shards, a Hugging Face datasets folder. Gives names and bytes.

Knows nothing of pixels (pixels.py) nor of texts (lines.py). A name may lead through a shard: "photos-0.tar/17.png"."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import ENDINGS

SHARD = ".tar"


class NoPictures(ValueError):
    """A place that gives no pictures to learn from: says which, why, and what to do."""


class Source(ABC):
    """Pictures by number."""

    names: list[str]
    """What each is called, to people and in JSONL files."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The picture's file. Raises BadPicture, naming it, when it cannot be read."""


class Files(Source):
    """Files under `root`, by name; a name may lead into an uncompressed tar."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, list(names)
        self._shards: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, number: int) -> bytes:
        name = self.names[number]
        shard, member = _into_shard(name)
        try:
            if shard is None or (self.root / shard).is_dir():
                return _regular(self.root / name).read_bytes()
            start, length = self._members(shard)[member]
            with (self.root / shard).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except KeyError as missing:
            raise BadPicture(f"{self.root / shard}: no picture {member!r} in it.") from missing  # pyright: ignore
        except NoPictures as broken:
            raise BadPicture(f"{broken}.") from broken
        except OSError as error:
            raise BadPicture(f"{self.root / name}: cannot be read ({error.strerror or error}).") from error
        except ValueError as error:  # a NUL or half a character in the name
            raise BadPicture(f"{str(self.root / name)!r}: is no name of a file ({error}).") from error

    def _members(self, shard: str) -> dict[str, tuple[int, int]]:
        if shard not in self._shards:
            self._shards[shard] = members(self.root / shard)
        return self._shards[shard]


class HuggingFaceSet(Source):
    """A folder made by `Dataset.save_to_disk` of Hugging Face datasets; its first column of pictures."""

    def __init__(self, folder: Path) -> None:
        try:
            from datasets import DatasetDict, Image, load_from_disk
        except ImportError as missing:
            raise NoPictures(f"{folder}: to read it, pip install datasets") from missing
        try:
            found: Any = load_from_disk(str(folder))
        except (OSError, ValueError) as error:
            raise NoPictures(f"{folder}: not a datasets folder ({str(error).splitlines()[0]})") from error
        if isinstance(found, DatasetDict):
            parts = [str(part) for part in found]
            raise NoPictures(f"{folder}: holds {', '.join(parts)}; name one of them: {folder / parts[0]}")
        columns = [name for name, feature in found.features.items() if isinstance(feature, Image)]
        if not columns:
            raise NoPictures(f"{folder}: has no column of pictures; its columns are {', '.join(found.features)}")
        self._folder, self._column = folder, columns[0]
        self._rows = found.cast_column(columns[0], Image(decode=False))
        self.names = [f"{columns[0]}-{number}" for number in range(len(found))]

    def read(self, number: int) -> bytes:
        held = self._rows[number][self._column]
        if held is None:
            raise BadPicture(f"{self._folder}: {self.names[number]} is empty.")
        if held["bytes"] is not None:
            return held["bytes"]
        try:
            return _regular(Path(held["path"])).read_bytes()
        except (OSError, TypeError, ValueError) as error:
            raise BadPicture(f"{self._folder}: {self.names[number]} cannot be read ({error}).") from error


def open_source(place: Path) -> Source:
    """The pictures of `place`: a folder of pictures (searched through), a folder of shards, one shard, a list of names
    (one a line, relative to the list's folder), or a Hugging Face datasets folder. Raises NoPictures."""
    if place.is_dir():
        return _of_folder(place)
    if not place.exists():
        raise NoPictures(f"{place}: no such file or folder")
    if place.suffix == SHARD:
        found = _within(place.parent, [place])
        if not found:
            raise NoPictures(f"{place}: no pictures in it ({', '.join(sorted(ENDINGS))})")
        return Files(place.parent, found)
    return _of_list(place)


def _of_folder(place: Path) -> Source:
    if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
        return HuggingFaceSet(place)
    found, shards = [], []
    visited = {os.path.realpath(place)}
    for folder, below, files in os.walk(place, followlinks=True):
        below[:] = [n for n in sorted(below) if not n.startswith(".") and _is_new(folder, n, visited)]
        for file in sorted(files):
            path = Path(folder) / file
            if _hidden(path):
                continue
            if path.suffix.lower() in ENDINGS:
                found.append(path.relative_to(place).as_posix())
            elif path.suffix == SHARD:
                shards.append(path)
    found += _within(place, shards)
    if not found:
        raise NoPictures(f"{place}: no pictures in it ({', '.join(sorted(ENDINGS))}), nor shards ({SHARD}) of pictures")
    return Files(place, found)


def _is_new(folder: str, name: str, visited: set[str]) -> bool:
    """Whether a folder was not visited yet: links may lead in circles, or twice to the same place."""
    real = os.path.realpath(os.path.join(folder, name))
    if real in visited:
        return False
    visited.add(real)
    return True


def _regular(path: Path) -> Path:
    """The same path. Raises OSError for what is no regular file: to read a pipe is to wait for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device")
    return path


def _of_list(place: Path) -> Source:
    try:
        names = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise NoPictures(f"{place}: neither a folder, a {SHARD}, nor a list of names ({error})") from error
    if not names:
        raise NoPictures(f"{place}: the list is empty")
    return Files(place.parent, names)


def _within(root: Path, shards: Sequence[Path]) -> list[str]:
    names = []
    for shard in shards:
        inner = shard.relative_to(root).as_posix()
        held = [name for name in members(shard) if not _hidden(Path(name))]
        names += [f"{inner}/{name}" for name in held if Path(name).suffix.lower() in ENDINGS]
    return names


def _hidden(path: Path) -> bool:
    """Left out: what systems put beside files, such as ._photo.jpg."""
    return path.name.startswith(".")


def members(shard: Path) -> dict[str, tuple[int, int]]:
    """Where each file of an uncompressed tar lies: name -> (first byte, length). Raises NoPictures."""
    try:
        with tarfile.open(shard, "r:") as tar:
            found = {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}
            end = tar.offset
        _check_end(shard, end, len(found))
        return found
    except FileNotFoundError as missing:
        raise NoPictures(f"{shard}: no such file") from missing
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NoPictures(f"{shard}: not an uncompressed tar, or broken ({error}); make it again") from error


def _check_end(shard: Path, end: int, count: int) -> None:
    """Raises NoPictures unless nothing but the mark of a tar's end follows the last member: the library stops without a
    word where a shard was cut, damaged, or another was appended."""
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        whole = len(rest) == tarfile.BLOCKSIZE and not any(rest)
        while whole and (more := file.read(2**20)):
            whole = not any(more)
    if not whole:
        raise NoPictures(
            f"{shard}: not whole: after {count} files, at byte {end:,}, neither another file nor the tar's end. It was "
            "cut short, damaged, or joined with another; make it again"
        )


def _into_shard(name: str) -> tuple[str | None, str]:
    """The shard that a name leads through, and the name within it."""
    before, mark, after = name.partition(f"{SHARD}/")
    return (before + SHARD, after) if mark else (None, name)
