"""Single pictures into and out of a gallery that is being searched.

Owns the checks on what comes in, the order (decode, tower, gallery, disk), that one write at a time reaches the
gallery, and when the writing is declared finished. Knows no wire: that is serving/writing.py's. Pictures are decoded in
a process apart, so that a hostile one cannot harm the service."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer, current_thread
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture, BadQuery, GalleryError, SpaceMismatch
from pocketlens_wire.limits import MAX_PICTURE_BYTES, MAX_REMOVED
from pocketlens_wire.manifest import CloudManifest

from pocketlens_cloud.gallery.interface import Gallery, Point
from pocketlens_cloud.gallery.payload import Payload, learn
from pocketlens_cloud.indexing.decoding import Decoder, DecoderDied, InProcesses
from pocketlens_cloud.indexing.names import content_id
from pocketlens_cloud.towers import ImageTower

SETTLE_AFTER_S: Final = 5.0  # without a write, after which the search index is brought up to date
LEAST_PAUSE_S, MOST_PAUSE_S = 0.1, 300.0  # between a settling that failed and the next try, twice as long each time
_ID: Final = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)

Vectors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class State:
    """The gallery after a write."""

    generation: str
    size: int


@final
class Writer:
    """Writes to one open gallery; safe to call from several threads, and searches may go on meanwhile.

    What a call wrote is on disk when it returns. The gallery is settled once nothing was written for a while, and at
    `close`; until then it says that it is not, and pictures added since are found by comparing with each of them."""

    def __init__(
        self, gallery: Gallery, half: Path, manifest: CloudManifest, *, threads: int | None = None,
        settle_after_s: float = SETTLE_AFTER_S,
    ) -> None:  # fmt: skip
        """Loads the image tower. Raises SpaceMismatch if gallery and bundle do not belong together, BadBundle."""
        if gallery.gallery_space != manifest.gallery_space:
            raise SpaceMismatch(
                f"{gallery.title} lies in gallery space `{gallery.gallery_space}`; bundle {manifest.name} makes "
                f"`{manifest.gallery_space}`"
            )
        self.gallery = gallery
        self._tower = ImageTower(half, manifest, threads=threads)
        self._decoder: Decoder = InProcesses(manifest.picture)
        self._settle_after_s = settle_after_s
        self._guard = Lock()
        self._timer: Timer | None = None
        self._closed = False

    def add_picture(self, data: bytes, payload: Payload) -> tuple[str, bool, State]:
        """Id, whether it was there, the gallery afterwards. One that is there keeps its vectors and gets the payload.

        data: a picture's file. Raises BadPicture, BadQuery for a payload that cannot be stored."""
        if not 1 <= len(data) <= MAX_PICTURE_BYTES:
            raise BadQuery(f"a picture's file has 1 to {MAX_PICTURE_BYTES} bytes; {len(data)} came")
        self._check_payload(payload)
        point = content_id(data)
        held = self.gallery.payload(point)
        vectors = self._seen(data) if held is None else None
        with self._guard:
            held = self.gallery.payload(point)  # another may have come first
            if held is None:
                self.gallery.upsert([Point(point, vectors or self._seen(data), payload)])
            elif held != dict(payload):
                self.gallery.set_payload(point, payload)
            return point, held is not None, self._written()

    def add_vectors(self, point: str, gallery_space: str, vectors: Vectors, payload: Payload) -> tuple[bool, State]:
        """Whether the picture was there, which is then replaced, and the gallery afterwards.

        vectors: (dim,) float32 for each of the gallery's names. Raises SpaceMismatch, BadQuery."""
        self.check_space(gallery_space)
        self._check_ids([point])
        self._check_vectors(vectors)
        self._check_payload(payload)
        with self._guard:
            was_there = self.gallery.payload(point) is not None
            self.gallery.upsert([Point(point, vectors, payload)])
            return was_there, self._written()

    def remove(self, ids: Sequence[str]) -> tuple[int, State]:
        """How many of the pictures were there, and the gallery afterwards. Raises BadQuery."""
        if not 1 <= len(ids) <= MAX_REMOVED:
            raise BadQuery(f"1 to {MAX_REMOVED} ids can be removed at once; {len(ids)} came")
        self._check_ids(ids)
        with self._guard:
            held = [point for point in dict.fromkeys(ids) if self.gallery.payload(point) is not None]
            if held:
                self.gallery.delete(held)
            return len(held), self._written()

    def check_space(self, named: str) -> None:
        """Raise SpaceMismatch unless the gallery lies in the space that was named."""
        if named != self.gallery.gallery_space:
            raise SpaceMismatch(
                f"`{named}` was named as gallery space; the gallery lies in `{self.gallery.gallery_space}`: "
                "use the server's bundle"
            )

    def probe(self) -> None:
        """A write of nothing, for health: raises GalleryError if the gallery does not answer, or does not reach its
        disk. Waits for a write under way."""
        with self._guard:
            self.gallery.ping()
            self.gallery.flush()

    def settle(self) -> None:
        """Bring the search index up to date and declare the writing finished, if there was any."""
        with self._guard:
            if not self.gallery.settled:
                self.gallery.settle()

    def close(self) -> None:
        """Settle and let go of everything but the gallery, which is whose who opened it."""
        with self._guard:
            self._closed = True
            if self._timer:
                self._timer.cancel()
        try:
            self.settle()
        finally:
            self._decoder.close()

    def _written(self) -> State:
        """After a write, within the guard: on disk, and the clock to settling wound up anew."""
        try:
            self.gallery.flush()
        finally:
            self._wind_up(self._settle_after_s)
        return State(self.gallery.generation, self.gallery.size)

    def _wind_up(self, pause_s: float) -> None:
        """Within the guard."""
        if self._timer:
            self._timer.cancel()
        if self._closed:
            return
        self._timer = Timer(pause_s, self._settle_by_the_clock, [pause_s])
        self._timer.daemon = True
        self._timer.start()

    def _settle_by_the_clock(self, waited_s: float) -> None:
        """Settle; where that fails (a full disk, a server away), say so and try again later."""
        with self._guard:
            if self._closed or current_thread() is not self._timer or self.gallery.settled:
                return  # wound up anew while this one waited for the guard, or done by another
            try:
                self.gallery.settle()
            except (GalleryError, OSError) as error:
                pause_s = min(max(2 * waited_s, LEAST_PAUSE_S), MOST_PAUSE_S)
                log.error(
                    "%s was not settled, next try in %g s; until then new pictures are searched without an index: %s",
                    self.gallery.title, pause_s, error,
                )  # fmt: skip
                self._wind_up(pause_s)

    def _seen(self, data: bytes) -> Vectors:
        try:
            pixels = self._decoder.decode(data, "the picture")
        except DecoderDied as error:
            raise BadPicture(f"the picture cannot be decoded: {error}") from error
        return {name: rows[0] for name, rows in self._tower.vectors(pixels[None]).items()}

    def _check_payload(self, payload: Payload) -> None:
        try:
            learn(self.gallery.payload_kinds, payload)
        except GalleryError as error:
            raise BadQuery(str(error)) from error

    def _check_ids(self, ids: Sequence[str]) -> None:
        if any(not _ID.fullmatch(point) for point in ids):
            raise BadQuery("a picture is named by the 32 hex digits of its id")

    def _check_vectors(self, vectors: Vectors) -> None:
        if set(vectors) != set(self.gallery.vectors):
            raise BadQuery(f"the gallery's vectors are {', '.join(self.gallery.vectors)}; {len(vectors)} others came")
        for name, vector in vectors.items():
            if vector.shape != (self.gallery.dim,) or not np.isfinite(vector).all() or not vector.any():
                raise BadQuery(f"vector {name} must have {self.gallery.dim} finite numbers, not all of them zero")
