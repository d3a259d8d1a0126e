"""The gallery's directory: what lies in it, who holds it, what it says about itself.

Owns gallery.json and gallery.lock; the engine's files in shard/ are gallery.py's."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from pocketlens_wire.errors import GalleryError

from pocketlens_cloud.gallery.payload import Kind

if sys.platform != "win32":
    import fcntl

FORMAT = 2  # 1: no times, places and lists in the payload; a gallery without them is still written so
DESCRIPTION, LOCK, SHARD = "gallery.json", "gallery.lock", "shard"
UNFINISHED = f"{DESCRIPTION}.new"


@dataclass(frozen=True, kw_only=True)
class Description:
    """gallery.json, the gallery's own account of itself."""

    format: int = 1
    gallery_space: str  # where the vectors lie
    dim: int
    vectors: list[str]
    payload: dict[str, Kind]  # payload key -> type of its values
    generation: str  # changes with every opening that writes
    settled: bool  # False from the first write until the writing is settled


@final
class Lock:
    """gallery.lock, held by the operating system for one process, with that process's id inside.

    The engine refuses a second opener too, but only with "Can't init WAL: Kind(WouldBlock)". On Windows
    that refusal is all there is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.held = True

    @classmethod
    def take(cls, path: Path) -> "Lock":
        try:
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from error
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
                os.close(descriptor)
                raise GalleryError(
                    f"{path} is open in another process{f' (pid {holder})' if holder else ''}: "
                    "one process at a time may hold a gallery. Stop that one, or work on another directory"
                ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return cls(descriptor)

    def release(self) -> None:
        if self.held:
            self.held = False
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)  # the lock goes with it


def format_of(kinds: Mapping[str, Kind]) -> int:
    """The oldest format that can say these payload types, so that an older program reads what it can."""
    return 1 if set(kinds.values()) <= {"text", "integer", "number", "flag"} else 2


def make(path: Path) -> None:
    """Make the directory if it is not there. Raises GalleryError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def holds_gallery(path: Path) -> bool:
    """Whether a gallery was finished here. Raises GalleryError if the directory may not be looked at."""
    try:
        return (path / DESCRIPTION).is_file()
    except PermissionError as error:
        raise _unwritable(path, error) from error


def foreign_files(path: Path) -> list[str]:
    """Names that neither a gallery nor a creation that was killed leaves behind."""
    return sorted(set(os.listdir(path)) - {LOCK, SHARD, UNFINISHED})


def write(path: Path, description: Description) -> None:
    """Whole or not at all: written beside, brought to disk, moved over."""
    beside = path / UNFINISHED
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(asdict(description), file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path / DESCRIPTION)
    except OSError as error:
        raise _unwritable(path, error) from error


def read(path: Path) -> Description:
    """The description in `path`. Raises GalleryError if it is damaged or newer than this program."""
    file = path / DESCRIPTION
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise GalleryError(
                f"{file}: format {raw['format']} is newer than this program's {FORMAT}: update Pocketlens"
            )
        return Description(**raw)
    except (OSError, ValueError, TypeError) as error:
        raise GalleryError(f"{file} is damaged ({error}): index again into a new directory") from error


def _unwritable(path: Path, error: OSError) -> GalleryError:
    return GalleryError(f"cannot write to {path}: {error.strerror}. Choose a directory you may write to")
