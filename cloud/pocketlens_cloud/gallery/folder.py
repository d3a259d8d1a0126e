"""Versions of a gallery on one machine: DIR/v0001, DIR/v0002 ... and DIR/current, which names the live one.

Owns those names, their switching and their snapshots; a version is an ordinary gallery directory."""

import hashlib
import io
import json
import lzma
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final, final

from pocketlens_wire.errors import GalleryError, SpaceMismatch

from pocketlens_cloud.gallery import directory
from pocketlens_cloud.gallery.directory import LOCK, Description, Lock
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.following import FollowingGallery
from pocketlens_cloud.gallery.versions import NAME, Record, Saved

CURRENT: Final = "current"
RECORD: Final = "built.json"
JOURNAL: Final = "journal.jsonl"
MANIFEST: Final = "snapshot.json"  # first in a snapshot: what it is, and the hash of every file that follows
FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 4 << 20
CHUNK: Final = 1 << 20  # bytes read at once
# What tarfile and the compressors raise for a damaged file, beside OSError.
DAMAGE: Final = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError, MemoryError)


def is_versioned(path: Path) -> bool:
    """Whether `path` holds versions rather than one gallery, or nothing."""
    return not directory.holds_gallery(path) and bool(FolderVersions(path).names())


def open_gallery(path: Path) -> EmbeddedGallery | FollowingGallery:
    """The gallery in `path`, or the live version of the versions there, followed. Raises GalleryError."""
    return FollowingGallery(FolderVersions(path)).start() if is_versioned(path) else EmbeddedGallery.open(path)


@final
class FolderVersions:
    """The versions in one directory. Builders and servers may use it side by side: each holds its own version."""

    def __init__(self, path: Path) -> None:
        """Raises GalleryError for a directory that is a single gallery."""
        if directory.holds_gallery(path):
            raise GalleryError(
                f"{path} is one gallery, not a directory of versions: name a new directory, "
                f"or move it to {path}.old, make {path} and move it back as {path / 'v0001'}"
            )
        self._path = path

    @property
    def title(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        if not self._path.is_dir():
            return []
        found = [each.name for each in self._path.iterdir() if NAME.fullmatch(each.name) and each.is_dir()]
        return sorted((name for name in found if directory.holds_gallery(self._path / name)), key=lambda n: int(n[1:]))

    def live(self) -> str:
        try:
            name = (self._path / CURRENT).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise GalleryError(f"{self._path / CURRENT} cannot be read: {error}") from error
        if not NAME.fullmatch(name):
            raise GalleryError(f"{self._path / CURRENT} names no version: write one into it, like v0001")
        return name

    def point_to(self, name: str) -> None:
        _replace(self._path / CURRENT, f"{name}\n")

    def describe(self, name: str) -> Description:
        return directory.read(self._path / name)

    def record(self, name: str) -> Record | None:
        file = self._path / name / RECORD
        try:
            return Record(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise GalleryError(f"{file} is damaged ({error}): build a new version") from error

    def note(self, name: str, record: Record) -> None:
        _replace(self._path / name / RECORD, json.dumps(asdict(record), indent=2) + "\n")

    def create(self, name: str, *, dim: int, vectors: Sequence[str], gallery_space: str) -> EmbeddedGallery:
        return EmbeddedGallery.create(self._path / name, dim=dim, vectors=vectors, gallery_space=gallery_space)

    def open(self, name: str) -> EmbeddedGallery:
        return EmbeddedGallery.open(self._path / name)

    def remove(self, name: str) -> None:
        """Renamed first, so that a kill in the middle leaves no half a gallery under its name."""
        lock = Lock.take(self._path / name)  # raises if it is open somewhere
        try:
            doomed = (self._path / name).rename(self._path / f".dropped-{name}-{secrets.token_hex(4)}")
        except OSError as error:
            raise GalleryError(f"{self._path / name} cannot be removed: {error.strerror}") from error
        finally:
            lock.release()
        shutil.rmtree(doomed, ignore_errors=True)

    def journal(self, name: str) -> Path:
        return self._path / name / JOURNAL

    def save(self, name: str, to: Path | None) -> Saved:
        """A tar of everything but the lock, which is held meanwhile, so that nothing is written to."""
        home = self._path / name
        to = to or self._path / f"{self._path.resolve().name}.{name}.snapshot.tar.gz"
        lock = Lock.take(home)
        beside = to.with_name(f"{to.name}.new")
        try:
            record = self.record(name)
            if record is None or not self.describe(name).settled:
                raise GalleryError(f"{self.title}: the building of {name} did not reach its end: run `build` again")
            files = sorted(file for file in home.rglob("*") if file.is_file() and file.name != LOCK)
            _pack(beside, home, files, self.describe(name))
            beside.replace(to)
        except OSError as error:
            raise GalleryError(f"cannot write to {to}: {error.strerror or error}") from error
        finally:
            beside.unlink(missing_ok=True)
            lock.release()
        return Saved(version=name, place=str(to), size=to.stat().st_size, sha256=_sha256(to))

    def load(self, name: str, source: str, gallery_space: str) -> None:
        unpacked = self._path / f".restoring-{secrets.token_hex(4)}"
        try:
            directory.make(self._path)
            unpacked.mkdir()
            with _opened(Path(source)) as archive:
                _unpack(archive, unpacked, source, gallery_space)
            unpacked.rename(self._path / name)
        except OSError as error:
            raise GalleryError(f"{source} cannot be restored: {error.strerror or error}") from error
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)


def _pack(to: Path, home: Path, files: Sequence[Path], description: Description) -> None:
    names = [file.relative_to(home).as_posix() for file in files]
    manifest = {
        "format": FORMAT,
        "gallery_space": description.gallery_space,
        "generation": description.generation,
        "files": {name: _sha256(file) for name, file in zip(names, files, strict=True)},
    }
    told = json.dumps(manifest, indent=2).encode()
    # Compressed for the sake of the engine's files, which are mostly holes: 139 MB of zeros around ten pictures.
    with to.open("wb") as raw, tarfile.open(fileobj=raw, mode="w:gz", compresslevel=1) as archive:
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(told)
        archive.addfile(head, io.BytesIO(told))
        for name, file in zip(names, files, strict=True):
            archive.add(file, name, recursive=False)
        archive.close()  # writes the end before it is brought to disk
        raw.flush()
        os.fsync(raw.fileno())


@contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(source) as archive:
            yield archive
    except DAMAGE as error:
        said = str(error) or type(error).__name__
        raise GalleryError(f"{source} is no snapshot, or is damaged: {said}") from error


def _unpack(archive: tarfile.TarFile, to: Path, source: str, gallery_space: str) -> None:
    """Only the files the manifest names, each with its hash; the space is looked at before anything is unpacked."""
    expected = _manifest(archive, source, gallery_space)
    for member in archive:
        if member.name == MANIFEST:
            continue
        data = archive.extractfile(member) if member.isfile() and member.name in expected else None
        target = to / member.name
        if data is None or not target.resolve().is_relative_to(to.resolve()):
            raise GalleryError(f"{source} holds {member.name!r}, which its list of files does not name: not restored")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            digest = _copied(data, file)
        if digest != expected.pop(member.name):
            raise GalleryError(f"{source} is damaged: {member.name} has another hash than was written. Not restored")
    if expected:
        raise GalleryError(f"{source} is cut short: {min(expected)} is missing. Not restored")


def _manifest(archive: tarfile.TarFile, source: str, gallery_space: str) -> dict[str, str]:
    head = archive.next()
    data = archive.extractfile(head) if head and head.name == MANIFEST and head.size <= MAX_MANIFEST_BYTES else None
    try:
        told = json.loads(data.read() if data else b"")
        format_, space, files = told["format"], told["gallery_space"], dict(told["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{source} is no snapshot of a gallery: it does not begin with {MANIFEST}") from error
    if format_ != FORMAT:
        raise GalleryError(f"{source}: format {format_}; this program reads {FORMAT}: update Pocketlens")
    if space != gallery_space:
        raise SpaceMismatch(
            f"{source} lies in gallery space `{space}`; the bundle speaks `{gallery_space}`. "
            "Name the bundle it was indexed with"
        )
    return files


def _copied(data: IO[bytes], file: IO[bytes]) -> str:
    """Write `file`, leaving holes where there are zeros; the hash of all of it."""
    digest, zeros = hashlib.sha256(), bytes(CHUNK)
    while chunk := data.read(CHUNK):
        digest.update(chunk)
        if chunk == zeros[: len(chunk)]:
            file.seek(len(chunk), os.SEEK_CUR)
        else:
            file.write(chunk)
    file.truncate(file.tell())
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut may undo the switch
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise GalleryError(f"cannot write {path}: {error.strerror}. Choose a directory you may write to") from error
