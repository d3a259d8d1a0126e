"""A folder of pictures into a gallery, resumable at any point.

Owns the order: list -> read and hash -> skip what is done -> decode -> image tower -> upsert -> flush ->
journal. The gallery is the truth about which pictures are in; the journal only remembers which bytes a
file held, so that a file that did not change is not read again."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture, GalleryError, SpaceMismatch
from pocketlens_wire.manifest import CloudManifest
from pocketlens_wire.pictures import ENDINGS, MAX_FILE_BYTES, PictureSpec, fit, open_picture

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Gallery, Point
from pocketlens_cloud.gallery.payload import Kind, Payload, Value, clip, learn
from pocketlens_cloud.towers import ImageTower

PAYLOAD_FILE = "payload.jsonl"
JOURNAL_FILE = "journal.jsonl"
FILE_KEY = "file"  # payload key every indexed picture has: its path relative to the indexed folder

Progress = Callable[[int, int], None]  # files dealt with, files in all
Labels = dict[str, Value]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(kw_only=True)
class IngestReport:
    """What one indexing run did. Files are named relative to the indexed folder."""

    indexed: int = 0  # pictures that went through the image tower
    skipped: int = 0  # pictures that were in the gallery already
    relabelled: int = 0  # of those, pictures whose payload changed
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (file, first file with the same bytes)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)
    replaced: int = 0  # old pictures removed because their file has new content
    gone: list[str] = field(default_factory=list)  # files in the gallery that are no longer in the folder
    pruned: int = 0  # pictures removed because their file is gone
    unused_payload: list[str] = field(default_factory=list)  # files the payload names that are not in the folder
    lost_payload: list[tuple[str, str]] = field(default_factory=list)  # (file, first file): first's payload was kept
    size: int = 0  # pictures in the gallery at the end
    generation: str = ""

    @property
    def merged(self) -> int:
        """Files whose bytes equal those of an earlier file."""
        return len(self.duplicates)


def index(
    folder: Path,
    gallery: Path | Gallery,
    bundle: Path,
    *,
    journal: Path | None = None,
    payload: Path | None = None,
    batch: int = 64,
    threads: int | None = None,
    precision: str = "fp32",
    prune: bool = False,
    rehash: bool = False,
    on_progress: Progress | None = None,
) -> IngestReport:
    """Bring `gallery` in line with the pictures of `folder`; makes the gallery if there is none.

    `gallery`: a directory, or a gallery that is open, of whichever engine, and stays open; `journal`: file of the
    journal (default: in the gallery's directory; needed for an open one); `payload`: a payload.jsonl (default: the
    one in `folder`, if any); `batch`: pictures per run of the image tower and per flush; `threads`: decoding threads;
    `precision`: of the image tower; `prune`: also remove pictures whose file is gone; `rehash`: read files again even
    if size and time are as recorded.
    Unreadable pictures do not stop it, they are in the report.
    Raises GalleryError, BadBundle, SpaceMismatch."""
    files = list_pictures(folder)
    if not files and isinstance(gallery, Path) and not EmbeddedGallery.exists(gallery):
        raise no_pictures(folder)
    half, manifest = open_cloud_half(bundle)
    with _opened(gallery, manifest) as held, Journal(journal or _own_journal(gallery)) as lines:
        notes = read_payload(payload or default_payload(folder), held.payload_kinds)
        run = _Run(folder, held, lines, notes, manifest.picture, rehash=rehash)
        run.report.unused_payload = sorted(notes.keys() - set(files))
        tower: ImageTower | None = None
        with ThreadPoolExecutor(threads or os.cpu_count() or 1, "decode") as pool:
            done = 0
            for group in _groups(_ahead(pool, run.look, files, 2 * batch), batch):
                if fresh := [seen for seen in group if run.is_new(seen)]:
                    tower = tower or ImageTower(half, manifest, threads=threads or os.cpu_count(), precision=precision)
                    run.add(fresh, tower)
                run.remember(group)
                done += len(group)
                if on_progress:
                    on_progress(done, len(files))
        run.remove_stale(set(files), prune=prune)
        held.settle()
        run.report.size, run.report.generation = held.size, held.generation
        return run.report


def no_pictures(folder: Path) -> GalleryError:
    return GalleryError(f"{folder} holds no pictures (files ending in {', '.join(sorted(ENDINGS))})")


def list_pictures(folder: Path) -> list[str]:
    """Picture files below `folder` as sorted relative posix paths; links leading out of it are left alone."""
    if not folder.is_dir():
        raise GalleryError(f"{folder} is not a folder: name the folder that holds the pictures")
    home = folder.resolve()
    found = []
    for at, _, names in os.walk(home, onerror=_raise, followlinks=False):
        for name in names:
            path = Path(at, name)
            if path.suffix.lower() not in ENDINGS:
                continue
            real = path.resolve() if path.is_symlink() else path
            if real.is_file() and real.is_relative_to(home):
                found.append(path.relative_to(home).as_posix())
    return sorted(found)


def default_payload(folder: Path) -> Path | None:
    """DIR/payload.jsonl if it is there."""
    path = folder / PAYLOAD_FILE
    return path if path.is_file() else None


def read_payload(path: Path | None, kinds: Mapping[str, Kind]) -> dict[str, Labels]:
    """Payload by file name from lines {"file": ..., "payload": {key: text, number, true or false}}.

    `kinds`: types the gallery has already given to keys. Raises GalleryError naming the line."""
    payloads: dict[str, Labels] = {}
    if path is None:
        return payloads
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, payload = _payload_line(line)
            kinds = learn(kinds, {FILE_KEY: name, **payload})
        except (GalleryError, ValueError) as error:
            raise GalleryError(f"{path}, line {number}: {error}") from error
        if name in payloads:
            raise GalleryError(f"{path}, line {number}: {clip(name)} has a line already")
        payloads[name] = payload
    return payloads


def content_id(data: bytes) -> str:
    """Id of a picture: the first 32 hex digits of the SHA-256 of its file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """One line of the journal: a file, how it looked, and the picture it held."""

    file: str
    size: int  # bytes
    mtime_ns: int
    id: str


@final
class Journal:
    """Append-only JSON lines, each batch brought to disk before `append` returns.

    A kill may tear the last line; reading ignores what it cannot read and writing goes on behind it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}

    def __enter__(self) -> "Journal":
        try:
            self._file = self._path.open("ab+")
        except OSError as error:
            raise GalleryError(f"cannot write to {self._path}: {error.strerror}") from error
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(data.rfind(b"\n") + 1)  # a torn last line
        for line in data.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # costs one file to be read again
            self.entries[entry.file] = entry
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entries: Sequence[Entry]) -> None:
        """Record files whose pictures are on disk in the gallery."""
        fresh = [entry for entry in entries if self.entries.get(entry.file) != entry]
        if not fresh:
            return
        self._file.write(b"".join(json.dumps(asdict(e), ensure_ascii=False).encode() + b"\n" for e in fresh))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.update((entry.file, entry) for entry in fresh)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a look at one file gave."""

    file: str
    entry: Entry | None = None  # None if the file could not be read at all
    pixels: NDArray[np.uint8] | None = None  # (side, side, 3), for pictures not in the gallery
    trouble: str = ""  # why it is not a usable picture


@final
class _Run:
    """The state of one indexing run: what is in, what this folder wants in."""

    def __init__(
        self,
        folder: Path,
        gallery: Gallery,
        journal: Journal,
        notes: Mapping[str, Payload],
        spec: PictureSpec,
        *,
        rehash: bool,
    ) -> None:
        self.report = IngestReport()
        self._folder, self._notes, self._spec = folder, notes, spec
        self._gallery, self._journal = gallery, journal
        self._stored = dict(gallery.payloads())  # id -> payload, as found at the start
        self._remembered = {} if rehash else dict(journal.entries)
        self._owner: dict[str, str] = {}  # id -> first file that holds it
        self._untouched: set[str] = set()  # files that could not be read, so nothing is known about them

    def look(self, file: str) -> _Seen:
        """Read, hash and, if the picture is new, decode one file. Runs in several threads."""
        path = self._folder / file
        if _printable(file) != file:
            return _Seen(file=file, trouble="its name is not UTF-8: rename it")
        try:
            status = path.stat()
            known = self._remembered.get(file)
            if (
                known
                and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns)
                and known.id in self._stored
            ):
                return _Seen(file=file, entry=known)
            if status.st_size > MAX_FILE_BYTES:
                return _Seen(file=file, trouble=f"{file}: {status.st_size} bytes; the limit is {MAX_FILE_BYTES}")
            data = path.read_bytes()
        except OSError as error:
            return _Seen(file=file, trouble=f"{file}: cannot be read: {error.strerror}")
        entry = Entry(file, status.st_size, status.st_mtime_ns, content_id(data))
        if entry.id in self._stored:
            return _Seen(file=file, entry=entry)
        try:
            picture = open_picture(data, name=file, near=self._spec.side)
            return _Seen(file=file, entry=entry, pixels=fit(picture, self._spec))
        except BadPicture as error:
            return _Seen(file=file, entry=entry, trouble=str(error))

    def is_new(self, seen: _Seen) -> bool:
        """True if `seen` is a picture the gallery lacks; all else is dealt with here."""
        if seen.trouble or seen.entry is None:
            self.report.unreadable.append((_printable(seen.file), seen.trouble.removeprefix(f"{seen.file}: ")))
            if seen.entry is None:
                self._untouched.add(seen.file)
            return False
        first = self._owner.setdefault(seen.entry.id, seen.file)
        if first != seen.file:
            self.report.duplicates.append((seen.file, first))
            if self._notes.get(seen.file, {}) != self._notes.get(first, {}):
                self.report.lost_payload.append((seen.file, first))
            return False
        if seen.entry.id not in self._stored:
            return True
        self.report.skipped += 1
        if self._stored[seen.entry.id] != self._payload(seen.file):
            self._gallery.set_payload(seen.entry.id, self._payload(seen.file))
            self.report.relabelled += 1
        return False

    def add(self, fresh: Sequence[_Seen], tower: ImageTower) -> None:
        """Bring new pictures into the gallery and onto the disk."""
        entries = [seen.entry for seen in fresh if seen.entry]
        vectors = tower.vectors(np.stack([seen.pixels for seen in fresh if seen.pixels is not None]))
        self._gallery.upsert(
            [
                Point(entry.id, {name: rows[i] for name, rows in vectors.items()}, self._payload(entry.file))
                for i, entry in enumerate(entries)
            ]
        )
        self._gallery.flush()
        self.report.indexed += len(fresh)

    def remember(self, group: Sequence[_Seen]) -> None:
        """Record the files of a group in the journal; after `add`, so that the journal never runs ahead."""
        self._journal.append([seen.entry for seen in group if seen.entry and not seen.trouble])

    def remove_stale(self, files: set[str], *, prune: bool) -> None:
        """Remove pictures whose file now holds something else; report or prune those whose file is gone."""
        stale = {
            point: str(payload.get(FILE_KEY)) for point, payload in self._stored.items() if point not in self._owner
        }
        replaced = [point for point, file in stale.items() if file in files - self._untouched]
        gone = {point: file for point, file in stale.items() if file not in files}
        self.report.replaced = len(replaced)
        self.report.gone = sorted(gone.values())
        self.report.pruned = len(gone) if prune else 0
        if doomed := replaced + (list(gone) if prune else []):
            self._gallery.delete(doomed)

    def _payload(self, file: str) -> Payload:
        return {FILE_KEY: file, **self._notes.get(file, {})}


@contextmanager
def _opened(gallery: Path | Gallery, manifest: CloudManifest) -> Iterator[Gallery]:
    """The gallery to write to, of the manifest's space; closed afterwards if it was opened here."""
    if not isinstance(gallery, Path):
        yield _of_space(gallery, manifest)
    elif not EmbeddedGallery.exists(gallery):
        with EmbeddedGallery.create(
            gallery, dim=manifest.dim, vectors=manifest.targets, gallery_space=manifest.gallery_space
        ) as held:
            yield held
    else:
        with EmbeddedGallery.open(gallery) as held:
            yield _of_space(held, manifest)


def _of_space(gallery: Gallery, manifest: CloudManifest) -> Gallery:
    if gallery.gallery_space != manifest.gallery_space:
        raise SpaceMismatch(
            f"{gallery.title} was indexed in gallery space `{gallery.gallery_space}`; bundle {manifest.name} makes "
            f"`{manifest.gallery_space}`. Index into a new directory, or use the gallery's own bundle"
        )
    return gallery


def _own_journal(gallery: Path | Gallery) -> Path:
    if isinstance(gallery, Path):
        return gallery / JOURNAL_FILE
    raise ValueError("an open gallery does not say where its journal lies: name a file")


def _raise(error: OSError) -> None:
    """A folder that cannot be listed must not look like a folder whose pictures are gone."""
    raise GalleryError(f"{error.filename} cannot be listed: {error.strerror}")


def _printable(file: str) -> str:
    """A file name as UTF-8 can hold it; equal to `file` unless the name on disk is not UTF-8."""
    return file.encode("utf-8", "replace").decode()


def _payload_line(line: str) -> tuple[str, Labels]:
    raw = json.loads(line)
    if not isinstance(raw, dict) or raw.keys() != {"file", "payload"}:
        raise ValueError('expected {"file": "name", "payload": {...}} and no other keys')
    name, payload = raw["file"], raw["payload"]
    if not isinstance(name, str) or not isinstance(payload, dict):
        raise ValueError("`file` must be text and `payload` an object")
    if FILE_KEY in payload:
        raise ValueError(f"payload key `{FILE_KEY}` is taken by the picture's own name")
    return name, payload


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Sequence[_Item], ahead: int
) -> Iterator[_Result]:
    """Results of `work` in the order of `items`, at most `ahead` of them in the making."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _groups(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    group: list[_Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
