"""A gallery that follows its live version: what is promoted is served without a restart.

Owns the switch: the new version is opened beside the old, off every query's path; each answer is wholly of one version;
the old one is closed when its last search has ended. Which version is live is versions.py's."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, final

from pocketlens_wire.errors import GalleryError, PocketlensError, SpaceMismatch

from pocketlens_cloud.gallery.filters import Filter
from pocketlens_cloud.gallery.interface import Gallery, Point, Scored, Search
from pocketlens_cloud.gallery.payload import Kind, Payload, Value
from pocketlens_cloud.gallery.versions import Versions, live_or_raise

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0  # between two looks at which version is live
GRACE_S: Final = 10.0  # for searches in flight when it is closed


@dataclass(eq=False)
class _Held:
    """An opened version and how many are at it."""

    name: str
    gallery: Gallery
    users: int = 0


def pinned(gallery: Gallery) -> AbstractContextManager[Gallery]:
    """`gallery` for one answer: all that is asked of it comes of one generation, whatever is promoted meanwhile."""
    return gallery.pinned() if isinstance(gallery, FollowingGallery) else nullcontext(gallery)


@final
class FollowingGallery:
    """The live version of a gallery. It must stay in the gallery space it began in; others are refused and logged."""

    def __init__(self, versions: Versions, *, every_s: float = EVERY_S) -> None:
        """Opens the live version; `start` begins to follow. Raises GalleryError if there is none."""
        self._versions, self._every_s = versions, every_s
        self._free = threading.Condition()  # guards all below
        self._held = self._opened(live_or_raise(versions))
        self._retired: list[_Held] = []
        self._looking = threading.Lock()  # one look at a time
        self._wake, self._closed = threading.Event(), False
        self._told = ""
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def start(self) -> "FollowingGallery":
        self._thread.start()
        return self

    def look(self) -> bool:
        """Switch if another version, or generation of it, is live by now; whether it did. Called by the thread.

        What goes wrong is logged, once, and the version that was held is kept."""
        with self._looking:
            try:
                switched = self._switch()
                self._told = ""
            except PocketlensError as error:
                if str(error) != self._told:
                    log.error("%s: going on with %s: %s", self._versions.title, self._held.name, error)
                self._told, switched = str(error), False
            self._close_retired()
            return switched

    @contextmanager
    def pinned(self) -> Iterator[Gallery]:
        """The version that is held now, not closed before this is left."""
        with self._free:
            if self._closed:
                raise GalleryError(f"{self._versions.title} was closed")
            held = self._held
            held.users += 1
        try:
            yield held.gallery
        finally:
            with self._free:
                held.users -= 1
                if held is not self._held and not held.users:
                    self._wake.set()  # closing can take a while: the thread's work, not this answer's
                    self._free.notify_all()

    @property
    def version(self) -> str:
        return self._held.name

    @property
    def title(self) -> str:
        return self._held.gallery.title

    @property
    def in_process(self) -> bool:
        return self._held.gallery.in_process

    @property
    def gallery_space(self) -> str:
        return self._held.gallery.gallery_space

    @property
    def dim(self) -> int:
        return self._held.gallery.dim

    @property
    def vectors(self) -> list[str]:
        return self._held.gallery.vectors

    @property
    def generation(self) -> str:
        return self._held.gallery.generation

    @property
    def settled(self) -> bool:
        return self._held.gallery.settled

    @property
    def payload_kinds(self) -> dict[str, Kind]:
        return self._held.gallery.payload_kinds

    @property
    def payload_keys(self) -> list[str]:
        return self._held.gallery.payload_keys

    @property
    def indexed_keys(self) -> list[str]:
        with self.pinned() as gallery:
            return gallery.indexed_keys

    @property
    def size(self) -> int:
        with self.pinned() as gallery:
            return gallery.size

    def search(self, asked: Search) -> list[Scored]:
        with self.pinned() as gallery:
            return gallery.search(asked)

    def search_many(self, asked: Sequence[Search]) -> list[list[Scored]]:
        with self.pinned() as gallery:
            return gallery.search_many(asked)

    def check_filter(self, where: Filter) -> None:
        self._held.gallery.check_filter(where)

    def payloads(self) -> Iterator[tuple[str, dict[str, Value]]]:
        with self.pinned() as gallery:
            yield from gallery.payloads()

    def payload(self, point_id: str) -> dict[str, Value] | None:
        with self.pinned() as gallery:
            return gallery.payload(point_id)

    def ping(self) -> None:
        with self.pinned() as gallery:
            gallery.ping()

    def upsert(self, points: Sequence[Point]) -> None:
        raise self._read_only()

    def set_payload(self, point_id: str, payload: Payload) -> None:
        raise self._read_only()

    def delete(self, ids: Sequence[str]) -> None:
        raise self._read_only()

    def flush(self) -> None:
        """Nothing was written."""

    def settle(self) -> None:
        raise self._read_only()

    def close(self) -> None:
        """Stop following; the versions are closed once searches in flight have ended, or their grace has."""
        with self._free:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._free:
            left = [self._held, *self._retired]
            self._free.wait_for(lambda: not any(held.users for held in left), GRACE_S)
            self._retired.clear()
        for held in left:
            held.gallery.close()

    def __enter__(self) -> "FollowingGallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self) -> None:
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._closed:
                return
            try:
                self.look()
            except Exception:  # a thread that dies silently would serve the old version for ever
                log.exception("%s: following failed; it is tried again", self._versions.title)

    def _switch(self) -> bool:
        live = live_or_raise(self._versions)
        description = self._versions.describe(live)
        if (live, description.generation) == (self._held.name, self._held.gallery.generation):
            return False
        held = self._held.gallery
        if description.gallery_space != held.gallery_space:
            raise SpaceMismatch(
                f"{live} lies in gallery space `{description.gallery_space}`, this server speaks "
                f"`{held.gallery_space}`: start one with its bundle, or roll back"
            )
        if not description.settled or not set(description.vectors) >= set(held.vectors):
            raise GalleryError(f"{live} is unfinished or lacks vectors that {self._held.name} has")
        fresh = self._opened(live)
        with self._free:
            old, self._held = self._held, fresh
            self._retired.append(old)
        log.info("%s: %s is live, %s until now", self._versions.title, live, old.name)
        return True

    def _opened(self, name: str) -> _Held:
        """Opened, answering, not empty: the first question after a switch waits for nothing."""
        gallery = self._versions.open(name)
        try:
            if not gallery.size:
                raise GalleryError(f"{gallery.title} holds no pictures")
            gallery.ping()
        except BaseException:
            gallery.close()
            raise
        return _Held(name, gallery)

    def _close_retired(self) -> None:
        with self._free:
            done = [held for held in self._retired if not held.users]
            self._retired = [held for held in self._retired if held.users]
        for held in done:
            try:
                held.gallery.close()
            except PocketlensError as error:
                log.warning("%s: closing %s: %s", self._versions.title, held.name, error)

    def _read_only(self) -> GalleryError:
        return GalleryError(f"{self.title} is being served: write to another version, then promote it")
