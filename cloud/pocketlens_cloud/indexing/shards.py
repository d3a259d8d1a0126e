"""Pictures in .tar shards, as WebDataset and its kin keep them.

Owns what a shard's members are called and where in it their bytes lie; nothing is unpacked. Where shards lie is a
shelf's: of files here, of a store in stores.py. Only uncompressed shards, in which a picture can be read by itself."""

import glob
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from pocketlens_wire.errors import BadPicture, GalleryError
from pocketlens_wire.pictures import MAX_FILE_BYTES

from pocketlens_cloud.indexing.sources import is_picture, too_large

BLOCK: Final = tarfile.BLOCKSIZE
# What reading a damaged or hostile header raises; the latter four for sizes and chains beyond bounds.
DAMAGE: Final = (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


class Shelf(Protocol):
    """Where shards lie. Can be sent to another process."""

    @property
    def title(self) -> str: ...

    def shards(self) -> list[str]:
        """Names of all shards. Raises GalleryError if there is none, or they could not be listed to the end."""
        ...

    def open(self, shard: str) -> tuple[BinaryIO, str]:
        """Its bytes, seekable, and its fingerprint as it is now. Raises OSError."""
        ...


class Place(NamedTuple):
    """Where a member's bytes lie."""

    shard: str
    offset: int
    size: int


@dataclass
class ShardSource:
    """The pictures in shards, named SHARD/MEMBER."""

    shelf: Shelf
    _shards: dict[str, str] = field(default_factory=dict)  # fingerprints as they were when listed
    _places: dict[str, Place] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.shelf.title

    @property
    def payload_file(self) -> Path | None:
        return None

    def names(self) -> list[str]:
        self._shards, self._places = {}, {}
        for shard in self.shelf.shards():
            self._list(shard)
        return sorted(self._places)

    def fingerprint(self, name: str) -> str:
        shard, offset, _ = self._places[name]
        return f"{self._shards[shard]}-{offset}" if self._shards[shard] else ""

    def read(self, name: str) -> bytes:
        shard, offset, size = self._places[name]
        if size > MAX_FILE_BYTES:
            raise too_large(name, size)
        try:
            file, now = self.shelf.open(shard)
            with file:
                file.seek(offset)
                data = file.read(size)
            if len(data) == size and now == self._shards[shard]:
                return data
        except OSError as error:
            raise BadPicture(f"{name}: cannot be read: {error.strerror or error}") from error
        raise BadPicture(f"{name}: shard {shard} changed while it was being indexed: run again")

    def _list(self, shard: str) -> None:
        try:
            file, self._shards[shard] = self.shelf.open(shard)
            with file:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        if member.size < 0:  # tarfile before 3.11.14 then goes in circles
                            raise tarfile.ReadError(f"{member.name!r} has a negative size")
                        self._note(shard, member)
                    end = tar.offset
                # tarfile takes a damaged header for the end; what lay behind it would then seem to be gone.
                file.seek(end)
                if file.read(BLOCK) != bytes(BLOCK):
                    raise GalleryError(f"shard {shard} does not end as a .tar does: it is cut off or damaged")
        except DAMAGE as error:
            said = str(error) or type(error).__name__
            raise GalleryError(f"shard {shard} cannot be listed: {said} (it must be an uncompressed .tar)") from error

    def _note(self, shard: str, member: tarfile.TarInfo) -> None:
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not is_picture(member.name):
            return
        name = f"{shard}/{member.name.removeprefix('./')}"
        if name in self._places:
            raise GalleryError(f"shard {shard} has two members called {member.name}")
        self._places[name] = Place(shard, member.offset_data, member.size)


@dataclass(frozen=True)
class FileShelf:
    """Shards that are files, named by their paths from the folder that holds them."""

    pattern: str
    folder: Path

    @property
    def title(self) -> str:
        return self.pattern

    def shards(self) -> list[str]:
        literal = Path(self.pattern).is_file()  # first: glob reads the brackets of `set[1]/a.tar` as a choice
        paths = [self.pattern] if literal else glob.glob(self.pattern, recursive=True)
        found = sorted(Path(path).relative_to(self.folder).as_posix() for path in paths)
        if not found:
            raise GalleryError(f"{self.pattern}: there is no such shard")
        return found

    def open(self, shard: str) -> tuple[BinaryIO, str]:
        file = (self.folder / shard).open("rb")
        status = os.fstat(file.fileno())
        return file, f"{status.st_size}-{status.st_mtime_ns}"


def local_shelf(pattern: str) -> FileShelf:
    """The shards that a path, or a pattern such as 'shards/*.tar' or 'shards/**/*.tar', names."""
    folder = Path(pattern).parent
    if Path(pattern).is_file():
        return FileShelf(pattern, folder)
    while glob.has_magic(str(folder)):
        folder = folder.parent
    return FileShelf(pattern, folder)
