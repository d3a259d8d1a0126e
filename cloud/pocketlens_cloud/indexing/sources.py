"""Where pictures come from: names, bytes, and a fingerprint that changes when the bytes may have changed.

Owns the choice of a source by how it is written, folders and list files; shards are shards.py's, object stores
stores.py's. A source that cannot be listed to its end raises, so that nothing of it is taken for gone."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketlens_wire.errors import BadPicture, GalleryError
from pocketlens_wire.pictures import ENDINGS, MAX_FILE_BYTES

from pocketlens_cloud.indexing.names import PAYLOAD_FILE, lines_of


class Source(Protocol):
    """A place that holds pictures. Can be sent to another process; `read` may be called from several threads."""

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    @property
    def payload_file(self) -> Path | None:
        """Where its payload lies if nobody says where; None if there is none."""
        ...

    def names(self) -> list[str]:
        """All its pictures, sorted, each once. Raises GalleryError unless it could be listed to its end."""
        ...

    def fingerprint(self, name: str) -> str:
        """What changes when the bytes may have changed; empty where that cannot be told. Raises BadPicture.

        Taken before the bytes are read: a change in between is then seen by the next run."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one picture's file, at most MAX_FILE_BYTES. Raises BadPicture."""
        ...


def open_source(where: Path | str) -> Source:
    """The source that `where` names: a folder, a list file, .tar shards ('shards/*.tar'), a store's URL.

    Raises GalleryError for anything else, and where an extra is missing."""
    from pocketlens_cloud.indexing.shards import ShardSource, local_shelf

    text = str(where)
    if isinstance(where, str) and "://" in text:
        from pocketlens_cloud.indexing.stores import open_store

        return open_store(text)
    path = Path(where)
    if path.is_dir():
        return FolderSource(path)
    if text.endswith(".tar"):
        return ShardSource(local_shelf(text))
    if path.is_file():
        return ListSource(path)
    raise GalleryError(
        f"{where} is not a folder: name a folder of pictures, a list of them, shards such as 'shards/*.tar', or a "
        "store's URL such as s3://bucket/pictures"
    )


def nothing_there(title: object) -> GalleryError:
    return GalleryError(f"{title} holds no pictures (files ending in {', '.join(sorted(ENDINGS))})")


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures' names do."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def too_large(name: str, size: int) -> BadPicture:
    return BadPicture(f"{name}: {size} bytes; the limit is {MAX_FILE_BYTES}")


# --- folders


@dataclass(frozen=True)
class FolderSource:
    """The picture files below a folder, named by their relative posix paths."""

    folder: Path

    @property
    def title(self) -> str:
        return str(self.folder)

    @property
    def payload_file(self) -> Path | None:
        path = self.folder / PAYLOAD_FILE
        return path if path.is_file() else None

    def names(self) -> list[str]:
        return list_pictures(self.folder)

    def fingerprint(self, name: str) -> str:
        return _file_fingerprint(self.folder / name, name)

    def read(self, name: str) -> bytes:
        return _file_bytes(self.folder / name, name)


def list_pictures(folder: Path) -> list[str]:
    """Picture files below `folder` as sorted relative posix paths; links leading out of it are left alone."""
    if not folder.is_dir():
        raise GalleryError(f"{folder} is not a folder: name the folder that holds the pictures")
    home = folder.resolve()
    found = []
    for at, _, names in os.walk(home, onerror=_raise, followlinks=False):
        for name in names:
            path = Path(at, name)
            if not is_picture(name) or not path.is_file():  # first: a link that leads to itself cannot be resolved
                continue
            real = path.resolve() if path.is_symlink() else path
            if real.is_relative_to(home):
                found.append(path.relative_to(home).as_posix())
    return sorted(found)


def _raise(error: OSError) -> None:
    """A folder that cannot be listed must not look like a folder whose pictures are gone."""
    raise GalleryError(f"{error.filename} cannot be listed: {error.strerror}")


# --- list files


@dataclass(frozen=True)
class ListSource:
    """The picture files that a text file names, one path a line, relative ones from the list's own folder."""

    file: Path

    @property
    def title(self) -> str:
        return str(self.file)

    @property
    def payload_file(self) -> Path | None:
        return None

    def names(self) -> list[str]:
        try:
            lines = lines_of(self.file.read_bytes())
        except OSError as error:
            raise GalleryError(f"{self.file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise GalleryError(
                f"{self.file} is neither a folder, nor .tar shards, nor a list of picture files in UTF-8"
            ) from error
        return _listed(self.file, lines)

    def fingerprint(self, name: str) -> str:
        return _file_fingerprint(self.file.parent / name, name)

    def read(self, name: str) -> bytes:
        return _file_bytes(self.file.parent / name, name)


def _listed(file: Path, lines: Sequence[str]) -> list[str]:
    """The names in a list. A line that no picture's file can have speaks of another kind of file: refuse all of it."""
    for number, line in enumerate(lines, 1):
        if "://" in line:
            raise GalleryError(f"{file}, line {number}: a list names files; a store's URL is given on the command line")
        if line.strip() and not is_picture(line.strip()):
            raise GalleryError(f"{file}, line {number}: not the name of a picture ({', '.join(sorted(ENDINGS))})")
    return sorted({line.strip() for line in lines if line.strip()})


# --- one file


def _file_fingerprint(path: Path, name: str) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise BadPicture(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return f"{status.st_size}-{status.st_mtime_ns}"


def _file_bytes(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would be waited for
            raise BadPicture(f"{name}: is not a regular file")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise too_large(name, size)
        return path.read_bytes()
    except OSError as error:
        raise BadPicture(f"{name}: cannot be read: {error.strerror}") from error
