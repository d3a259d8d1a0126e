"""A source of pictures into a gallery, resumable at any point.

Owns the order: list -> read and hash -> skip what is done -> decode -> image tower -> upsert -> flush -> journal ->
remove what is stale -> settle -> near duplicates. The gallery is the truth about which pictures are in; the journal
only remembers which bytes a name held, so that what did not change is not read again. The steps are other files'."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pocketlens_wire.errors import GalleryError, SpaceMismatch
from pocketlens_wire.manifest import CloudManifest

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Gallery
from pocketlens_cloud.indexing.journal import Journal
from pocketlens_cloud.indexing.labels import default_payload, read_payload
from pocketlens_cloud.indexing.looking import Clock, Looker, Seen, unremembered
from pocketlens_cloud.indexing.names import FILE_KEY, JOURNAL_FILE, PAYLOAD_FILE, content_id
from pocketlens_cloud.indexing.near_duplicates import near_duplicates, write_report
from pocketlens_cloud.indexing.pipeline import local_looks, process
from pocketlens_cloud.indexing.report import IngestReport
from pocketlens_cloud.indexing.run import Run
from pocketlens_cloud.indexing.sources import list_pictures, nothing_there, open_source
from pocketlens_cloud.runtime import cores
from pocketlens_cloud.towers import ImageTower

__all__ = [
    "FILE_KEY", "JOURNAL_FILE", "PAYLOAD_FILE", "IngestReport", "NearDuplicates", "content_id", "default_payload",
    "index", "list_pictures", "no_pictures", "read_payload",
]  # fmt: skip

WORTH_PROCESSES: Final = 2000  # pictures to read; below that, processes cost more to start than they bring

Progress = Callable[[int, int], None]  # pictures dealt with, pictures in all
Engine = Literal["local", "ray"]
no_pictures = nothing_there


@dataclass(frozen=True)
class NearDuplicates:
    """Where pairs of cosine `least` or more are reported: a .json or .csv file."""

    least: float
    report: Path


def index(
    source: Path | str,
    gallery: Path | Gallery,
    bundle: Path,
    *,
    journal: Path | None = None,
    payload: Path | None = None,
    batch: int = 64,
    threads: int | None = None,
    decode: str | None = None,
    precision: str = "fp32",
    prune: bool = False,
    rehash: bool = False,
    near: NearDuplicates | None = None,
    engine: Engine = "local",
    on_progress: Progress | None = None,
) -> IngestReport:
    """Bring `gallery` in line with the pictures of `source`; makes the gallery if there is none.

    `source`: a folder, a list file, .tar shards or a store's URL (sources.py); `gallery`: a directory, or a gallery
    that is open, of whichever engine, and stays open; `journal`: file of the journal (default: in the gallery's
    directory; needed for an open one); `payload`: a payload.jsonl (default: the one in a folder, if any); `batch`:
    pictures per run of the image tower and per flush; `threads`: of the tower, and pictures decoded at once; `decode`:
    in "threads" or "processes" (default: processes where there is much to read); `precision`: of the image tower;
    `prune`: also remove pictures whose file is gone; `rehash`: read files again even if they seem unchanged; `engine`:
    "local", or "ray" for a Ray cluster.
    Unreadable pictures do not stop it, they are in the report.
    Raises GalleryError, BadBundle, SpaceMismatch."""
    origin = open_source(source)
    files = origin.names()
    if not files and isinstance(gallery, Path) and not EmbeddedGallery.exists(gallery):
        raise nothing_there(origin.title)
    half, manifest = open_cloud_half(bundle)
    with _opened(gallery, manifest) as held, Journal(journal or _own_journal(gallery)) as lines:
        if prune and not files and held.size:
            raise GalleryError(
                f"{origin.title} holds no pictures at all, so --prune would empty {held.title}: is it mounted? "
                "Remove the gallery itself if that is meant"
            )
        run = Run(held, lines, notes := read_payload(payload or origin.payload_file, held.payload_kinds))
        run.report.unused_payload = sorted(notes.keys() - set(files))
        looker = Looker(origin, {} if rehash else dict(lines.entries), run.stored.keys(), Clock())
        setting = _Setting(half, manifest, batch, threads or cores(), precision)
        with _looks(engine, looker, files, setting, decode) as looks:
            process(
                run, looks, setting.tower(), batch=batch, clock=looker.clock,
                on_done=lambda done: on_progress(done, len(files)) if on_progress else None,
            )  # fmt: skip
        began = time.perf_counter()
        run.remove_stale(files, prune=prune)
        held.settle()
        began = looker.clock.add("settling", began)
        if near:
            pairs = near_duplicates(held, near.least)
            write_report(near.report, pairs, least=near.least, size=held.size)
            run.report.near_duplicates = len(pairs)
            looker.clock.add("near duplicates", began)
        run.report.size, run.report.generation = held.size, held.generation
        run.report.seconds = {stage: round(spent, 3) for stage, spent in looker.clock.seconds.items()}
        return run.report


@dataclass(frozen=True)
class _Setting:
    """With what pictures are embedded."""

    half: Path
    manifest: CloudManifest
    batch: int
    threads: int
    precision: str

    def tower(self) -> Callable[[], ImageTower]:
        return cache(lambda: ImageTower(self.half, self.manifest, threads=self.threads, precision=self.precision))


def _looks(
    engine: Engine, looker: Looker, files: Sequence[str], setting: _Setting, decode: str | None
) -> AbstractContextManager[Iterator[Seen]]:
    if engine == "ray":
        from pocketlens_cloud.indexing.ray_engine import ray_looks

        return ray_looks(
            looker, files, setting.half, batch=setting.batch, threads=setting.threads, precision=setting.precision
        )
    spec = setting.manifest.picture
    how = decode or _how(unremembered(files, looker.remembered))
    return local_looks(looker, files, spec, batch=setting.batch, hands=setting.threads, how=how)


def _how(many: int) -> str:
    """Where to decode. A program packed without Python cannot start another one of its kind."""
    return "processes" if many >= WORTH_PROCESSES and not getattr(sys, "frozen", False) else "threads"


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
