"""Indexing again whenever a source changes.

Looks at the source every few seconds (polling works on every file system, network mounts and stores included, where
notices of the kernel do not arrive) and indexes once what changed has come to rest, so that files still being copied
are left alone for the moment. The gallery is held only while it is written."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Final

from pocketlens_wire.errors import BadPicture, GalleryError

from pocketlens_cloud.indexing.report import IngestReport
from pocketlens_cloud.indexing.sources import Source, open_source

RESTLESS: Final = 10  # looks after which a source that never rests is indexed all the same

Seen = dict[str, str]  # fingerprints by name


def watch(
    source: Path | str,
    once: Callable[[], IngestReport],
    *,
    every_s: float,
    stop: Event,
    on_report: Callable[[IngestReport], None],
    on_trouble: Callable[[GalleryError], None],
) -> None:
    """Call `once` now and after each change, until `stop` is set.

    A run or a look that fails with GalleryError (a folder that cannot be listed, a gallery that is held) is told and
    tried again at the next look; nothing is taken for gone meanwhile. Raises BadBundle, SpaceMismatch."""
    done: Seen | None = None
    last: Seen | None = None
    restless = 0
    while True:
        try:
            now = _look(source)
            restless = restless + 1 if last is not None and now != last else 0
            if now != done and (last is None or now == last or restless >= RESTLESS):
                on_report(once())
                done, restless = now, 0  # what changed meanwhile differs from `now` and is seen by the next look
            last = now
        except GalleryError as error:
            on_trouble(error)
        if stop.wait(every_s):
            return


def _look(source: Path | str) -> Seen:
    origin = open_source(source)
    return {name: _fingerprint(origin, name) for name in origin.names()}


def _fingerprint(origin: Source, name: str) -> str:
    try:
        return origin.fingerprint(name)
    except BadPicture as error:
        return str(error)
