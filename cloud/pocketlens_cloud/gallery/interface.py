"""What the rest of the service knows of a gallery, whichever engine keeps it.

Two engines: embedded.py (Qdrant's, in this process) and remote.py (a Qdrant server or cluster). The same tests run
against both. A gallery knows no pictures and no models: vectors come in ready."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pocketlens_cloud.gallery.filters import EVERYTHING, Filter
from pocketlens_cloud.gallery.payload import Kind, Payload, Value


@dataclass(frozen=True)
class Point:
    """One picture to store. `id`: 32 hex digits (or a UUID); `vectors`: (dim,) float32 by vector name."""

    id: str
    vectors: Mapping[str, NDArray[np.float32]]
    payload: Payload = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """One hit. `id`: 32 hex digits; `score`: cosine, -1 to 1."""

    id: str
    score: float
    payload: dict[str, Value]
    vector: NDArray[np.float32] | None = None  # (dim,), unit length; where it was asked for


@dataclass(frozen=True)
class Walk:
    """How the search index is walked.

    ef: pictures kept in view, at least the number wanted; int8: walk the one-byte copies where there are any;
    rescore: compare those found by their float32 vectors, so that scores are true cosines; oversampling: so many
    times the wanted number are rescored."""

    ef: int = 640
    int8: bool = True
    rescore: bool = True
    oversampling: float = 2.0


WALK = Walk()


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """What is looked for.

    vector: (dim,) float32, unit; name: of the gallery vector it is compared with; top: hits (or groups) wanted, after
    leaving out the best `skip`; least_score: cosine below which nothing is a hit; payload: keys to give back (None:
    all); group_by: payload key of which each value gives at most `group_size` hits; exact: compare with every picture
    instead of walking the search index as `walk` says."""

    vector: NDArray[np.float32]
    name: str
    top: int
    where: Filter = EVERYTHING
    skip: int = 0
    least_score: float | None = None
    payload: Sequence[str] | None = None
    group_by: str | None = None
    group_size: int = 1
    with_vectors: bool = False
    exact: bool = False
    walk: Walk = WALK


class Gallery(Protocol):
    """An open gallery. Searches may come from several threads, writes from one at a time.

    Every method raises GalleryError when the engine fails, Unavailable when its server does not answer."""

    @property
    def title(self) -> str:
        """What messages call it: a directory, or a server's address and collection."""
        ...

    @property
    def in_process(self) -> bool:
        """Whether a search is this process's own work, rather than waiting for a server."""
        ...

    @property
    def gallery_space(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors each picture has."""
        ...

    @property
    def generation(self) -> str:
        """Which state of the gallery this is; changes whenever it is written."""
        ...

    @property
    def settled(self) -> bool:
        """False after a writing that did not reach its end."""
        ...

    @property
    def payload_kinds(self) -> dict[str, Kind]:
        """Payload keys and the type of their values."""
        ...

    @property
    def payload_keys(self) -> list[str]:
        """Keys a filter may name, sorted."""
        ...

    @property
    def indexed_keys(self) -> list[str]:
        """Payload keys the engine has an index on, sorted: all of payload_keys in a sound gallery."""
        ...

    @property
    def size(self) -> int:
        """Number of pictures."""
        ...

    def search(self, asked: Search) -> list[Scored]:
        """Best first; equal scores in the order of ids. Raises BadQuery for a bad filter or payload key."""
        ...

    def search_many(self, asked: Sequence[Search]) -> list[list[Scored]]:
        """Row for row what `search` gives, in one go where the engine can."""
        ...

    def check_filter(self, where: Filter) -> None:
        """Raise BadQuery if `where` names an unknown key or gives a value of the wrong type."""
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert points, or replace those with the same id.

        Raises GalleryError for a wrong dimension, a missing vector, a vector that is not finite or is
        zero, or a payload whose types contradict the gallery's."""
        ...

    def set_payload(self, point_id: str, payload: Payload) -> None:
        """Replace the whole payload of one picture."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove pictures; unknown ids are no error."""
        ...

    def flush(self) -> None:
        """Bring everything written so far onto the disk."""
        ...

    def settle(self) -> None:
        """Declare the writing finished: build the search index where it pays, flush, put it on record."""
        ...

    def payloads(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """(id, payload) of every picture, in the order of ids."""
        ...

    def payload(self, point_id: str) -> dict[str, Value] | None:
        """What is stored with one picture; None if the gallery does not hold it."""
        ...

    def ping(self) -> None:
        """A search of the cheapest kind, for health: raises GalleryError if the gallery does not answer."""
        ...

    def close(self) -> None:
        """Let go of it, written things on disk. Closing twice is no error."""
        ...
