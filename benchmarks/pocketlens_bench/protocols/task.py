"""What a benchmark asks: pictures, a gallery, queries. Typed records that every loader gives and every ranking is
judged by.

Ids are text everywhere, also where a file has numbers (CIRCO, COCO): the number written in decimal. Knows no model,
no metric, no file format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Where:
    """Where a picture lies. box: (left, top, right, bottom) in pixels if only that part counts; it may reach out of
    the picture, what is missing is black."""

    file: Path
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question. Protocols that need more to judge it derive their own record.

    id: unique in its task. reference: a picture's id, not always of the gallery; None: words alone. texts: none: the
    picture alone; several: the query's vector is the mean of theirs. relevant: gallery ids; none on test splits whose
    truth is not public. exclude: gallery ids that are taken out of this query's ranking. candidates: the only gallery
    ids that compete; None: all. group: what its protocol averages by."""

    id: str
    reference: str | None
    texts: tuple[str, ...] = ()
    relevant: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    candidates: frozenset[str] | None = None
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Queries to one gallery. A benchmark is one or several.

    gallery: picture ids, none twice, in the benchmark's own order. pictures: where each gallery and reference picture
    lies; empty when only annotations were read. missing: ids whose file was not found and was left out by leave.
    notes: what every result of this task must say."""

    name: str
    gallery: tuple[str, ...]
    queries: tuple[Query, ...]
    pictures: Mapping[str, Where] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def place(self) -> dict[str, int]:
        """Gallery index of each gallery id."""
        return {name: index for index, name in enumerate(self.gallery)}

    @cached_property
    def id_rank(self) -> NDArray[np.uint32]:
        """(gallery,): each picture's rank among the ids in text order, for ties broken by id."""
        ranks = np.empty(len(self.gallery), np.uint32)
        ranks[np.argsort(np.array(self.gallery), kind="stable")] = np.arange(len(self.gallery), dtype=np.uint32)
        return ranks

    def places(self, ids: frozenset[str]) -> NDArray[np.intp]:
        """Gallery indexes of those of `ids` that are in the gallery. Remembered: queries share sets of ids."""
        known = self._places.get(ids)
        if known is None:
            known = np.array(sorted(self.place[name] for name in ids if name in self.place), np.intp)
            self._places[ids] = known
        return known

    @cached_property
    def _places(self) -> dict[frozenset[str], NDArray[np.intp]]:
        return {}


def mask(task: Task, wanted: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
    """(len(wanted), gallery): whether a gallery picture is in each set."""
    marked = np.zeros((len(wanted), len(task.gallery)), np.bool_)
    for row, ids in zip(marked, wanted, strict=True):
        row[task.places(ids)] = True
    return marked
