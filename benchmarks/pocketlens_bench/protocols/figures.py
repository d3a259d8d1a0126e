"""From a number per query to the number a table prints, and how sure it is.

Benchmarks average differently: over queries, over categories and then queries, with rounding in between. All of them
are a weighted mean of the means of groups of queries. Owns that mean, its bootstrap interval, and the paired
difference of two rankings. Knows no ranking and no benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000  # of a bootstrap: the ends of a 95 % interval are then known to about a tenth of its width
CONFIDENCE = 0.95
CELLS = 4_000_000  # resamples x queries held at once: 32 MB


@dataclass(frozen=True)
class Measured:
    """A figure and its bootstrap interval, in the figure's unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a table, with all it was made of.

    name: as tables print it. says: its definition in a sentence. values: (queries,) percent; NaN: the query does not
    count. group: (queries,) index into `groups`; -1: in no group, the query does not count. groups: names.
    weights: (groups,) of each group's mean in the figure; they sum to 1 unless a protocol says otherwise.
    group_decimals: decimals to which a group's mean is rounded before it is averaged; None: not at all."""

    name: str
    says: str
    values: NDArray[np.float64]
    group: NDArray[np.intp]
    groups: tuple[str, ...]
    weights: NDArray[np.float64]
    group_decimals: int | None = None

    @property
    def value(self) -> float:
        """Percent; NaN if no query counts."""
        means = self.group_means()
        rounded = means if self.group_decimals is None else np.round(means, self.group_decimals)
        used = self.weights > 0
        return float(rounded[used] @ self.weights[used])

    def group_means(self) -> NDArray[np.float64]:
        """(groups,) percent; NaN where no query counts."""
        sums, counts = self._sums(np.ones((1, len(self.values))))
        return np.divide(sums[0], counts[0], out=np.full(len(self.groups), np.nan), where=counts[0] > 0)

    def measured(self, *, seed: int) -> Measured:
        """The value with its percentile bootstrap interval: the queries that count are drawn anew within each group.
        All NaN if the value is."""
        drawn = np.concatenate([self._resampled(counts) for counts in resamples(self._counted_group(), seed)])
        return _with_interval(self.value, drawn)

    def minus(self, other: "Figure", *, seed: int) -> Measured:
        """This figure less `other`, of the same queries in the same order, with a paired interval: both are drawn
        alike. Raises ValueError when the groups, or the queries that count, are not the same."""
        if self.groups != other.groups or not np.array_equal(self._counted_group(), other._counted_group()):
            raise ValueError(f"{self.name} and {other.name} are not about the same queries")
        drawn = np.concatenate(
            [self._resampled(counts) - other._resampled(counts) for counts in resamples(self._counted_group(), seed)]
        )
        return _with_interval(self.value - other.value, drawn)

    def _resampled(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The figure in each resample, without the rounding in between."""
        sums, seen = self._sums(counts)
        means = np.divide(sums, seen, out=np.full_like(sums, np.nan), where=seen > 0)
        used = self.weights > 0
        return means[:, used] @ self.weights[used]

    def _counted_group(self) -> NDArray[np.intp]:
        """`group`, with -1 also for the queries whose value does not count."""
        return np.where(np.isnan(self.values), -1, self.group)

    def _sums(self, counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per resample and group: the sum of values and how many counted, (resamples, groups)."""
        counted = self._counted_group() >= 0
        member = np.zeros((len(self.values), len(self.groups)))
        member[np.flatnonzero(counted), self.group[counted]] = 1.0
        weighted = np.where(counted, self.values, 0.0)[:, None] * member
        return counts @ weighted, counts @ member


def over_queries(name: str, says: str, values: NDArray[np.float64]) -> Figure:
    """The plain mean over queries of `values` (queries,), percent."""
    return Figure(
        name=name, says=says, values=values, group=np.zeros(len(values), np.intp), groups=("all",), weights=np.ones(1)
    )  # fmt: skip


def over_groups(name: str, says: str, values: NDArray[np.float64], group: Sequence[str]) -> Figure:
    """The mean over groups of the means over their queries; groups in the order they first appear."""
    groups = tuple(dict.fromkeys(group))
    index = {label: place for place, label in enumerate(groups)}
    return Figure(
        name=name, says=says, values=values, group=np.array([index[label] for label in group], np.intp),
        groups=groups, weights=np.full(len(groups), 1 / len(groups)),
    )  # fmt: skip


def resamples(group: NDArray[np.intp], seed: int) -> Iterator[NDArray[np.float64]]:
    """RESAMPLES rows in blocks: how often each query is drawn, within its group, as many as the group has."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(group == label) for label in np.unique(group[group >= 0])]
    block = max(1, CELLS // max(len(group), 1))
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        counts = np.zeros((rows, len(group)))
        for places in members:
            drawn = rng.integers(0, len(places), (rows, len(places)))
            flat = drawn + np.arange(rows)[:, None] * len(places)
            counts[:, places] = np.bincount(flat.ravel(), minlength=rows * len(places)).reshape(rows, -1)
        yield counts


def _with_interval(value: float, drawn: NDArray[np.float64]) -> Measured:
    if np.isnan(value):
        return Measured(np.nan, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measured(value, float(low), float(high))
