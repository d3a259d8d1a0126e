"""What a protocol is: how a benchmark is loaded, how deep a ranking it needs, how a query is judged, how the queries
become figures.

One class per protocol, in the file of its benchmark; a protocol that two codes count differently is two protocols
with two names. Called by runs and by `score`, which know no benchmark by name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols.figures import Figure
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

Values = Mapping[str, NDArray[np.float64]]  # (queries,) by measure, 0 to 1; NaN: the query does not count


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a number under this protocol means, for people; printed with every result."""

    gallery: str
    queries: str  # which, and how their words are put
    ids: str  # how a ranking names a query and a picture
    exclusions: str  # what is taken out of a ranking
    denominators: str  # of each measure, and what becomes of queries without relevant pictures
    ties: str  # what the official code does, and what we do
    source: str  # whose code and paper


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a benchmark is read.

    split: the benchmark's own name for it; "" means the one its papers report on. pictures: also find the picture
    files. allow_missing: so many files may be absent and are left out by name; one more is an error. any_size: go on
    when gallery or queries are not as many as officially, and say so."""

    split: str = ""
    pictures: bool = True
    allow_missing: int = 0
    any_size: bool = False


class Protocol(ABC):
    """One way of counting one benchmark."""

    name: ClassVar[str]  # as typed: "cirr", "imagenet-r-freedom"
    title: ClassVar[str]
    states: ClassVar[Statement]
    depth: ClassVar[int | None] = None  # how deep a ranking must go; None: to the gallery's end
    headline: ClassVar[tuple[str, ...]]  # names of the figures that papers quote, most quoted first
    has_splits: ClassVar[bool] = False  # whether Reading.split chooses among files
    submission: ClassVar[int | None] = None  # how deep the test server's file goes; None: there is no such server

    @abstractmethod
    def load(self, root: Path, reading: Reading) -> list[Task]:
        """The tasks of the benchmark under `root`. Raises BadSet naming file, entry and what is wrong."""

    @abstractmethod
    def values(self, block: Ranked) -> Values:
        """Each query of the block under each measure, 0 to 1."""

    @abstractmethod
    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        """The figures, headline first, from the values of all queries of each task."""

    def judge(self, tasks: Sequence[Task], blocks: Sequence[Iterable[Ranked]]) -> list[Figure]:
        """The figures from the rankings of each task, block by block. Raises ValueError where nothing is known to be
        right: a test split's truth is on its server."""
        if not any(query.relevant for task in tasks for query in task.queries):
            raise ValueError(f"{self.name}: no query has a known answer, so nothing can be judged")
        return self.figures(tasks, [_joined(self.values(block) for block in some) for some in blocks])


def _joined(parts: Iterable[Values]) -> Values:
    kept = list(parts)
    if not kept:
        raise ValueError("a task without queries cannot be judged")
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}


def percent(values: Sequence[Values], name: str) -> NDArray[np.float64]:
    """A measure's values of all tasks' queries, in percent."""
    return 100 * np.concatenate([some[name] for some in values])


def groups(tasks: Sequence[Task]) -> list[str]:
    """The group of each query of all tasks."""
    return [query.group for task in tasks for query in task.queries]


def names(tasks: Sequence[Task]) -> list[str]:
    """The name of its task, for each query of all tasks."""
    return [task.name for task in tasks for _ in task.queries]
