"""CIRR (Liu et al., ICCV 2021): a photo among six alike, and a sentence on how the wanted one differs."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, percent
from pocketlens_bench.protocols.queries import CirrQuery
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task, mask

KS = (1, 5, 10, 50)
SUBSET_KS = (1, 2, 3)


class Cirr(Protocol):
    """Judged by the hard target, as everyone since CLIP4Cir does."""

    name = "cirr"
    title = "CIRR, hard target"
    headline = ("R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3", "mean of R@5 and R_subset@1")
    submission = 50
    has_splits = True
    states = Statement(
        gallery="every picture of the split's file: 2,297 on val, 2,315 on test1",
        queries="every pair once, with its caption",
        ids="a query: its `pairid`; a picture: its name without folder and suffix, dev-244-0-img0",
        exclusions="the reference is taken out of the ranking by name",
        denominators="R@k: share of queries whose hard target is among the first k. R_subset@k: the same among the "
        "five other pictures of the query's group, in the order of the same ranking; chance is 20 % at k = 1",
        ties="official: undefined (torch.argsort). Ours: the named policy",
        source="miccunifi/SEARLE a9c314ba validate.py; ABaldrati/CLIP4Cir dfed9f74",
    )
    says_recall: ClassVar[str] = "share of queries with the hard target among the first k"

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_cirr import load_cirr

        return load_cirr(root, reading)

    def values(self, block: Ranked) -> Values:
        subset = within_group(block, block.hits)
        return {
            **{f"R@{k}": measures.hit_rate(block.hits, k) for k in KS},
            **{f"R_subset@{k}": if_whole(block, measures.hit_rate(subset, k)) for k in SUBSET_KS},
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        figures = [over_queries(name, self.says_recall, whole(name, percent(values, name))) for name in values[0]]
        mean = (percent(values, "R@5") + whole("R_subset@1", percent(values, "R_subset@1"))) / 2
        return [*figures, over_queries("mean of R@5 and R_subset@1", "their mean, query by query", mean)]


class CirrSoft(Cirr):
    """Judged by the soft targets, as the dataset's authors' own code does."""

    name = "cirr-soft"
    title = "CIRR, soft targets"
    submission = None
    headline = ("R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3")
    states = Statement(
        gallery="as `cirr`",
        queries="as `cirr`, val alone: test1's soft targets are not public",
        ids="as `cirr`",
        exclusions="as `cirr`: the authors' code lowers the reference to its row's minimum, which no usual k reaches",
        denominators="of each query the largest soft value, -1 to 1, among the first k, at least 0; its mean",
        ties="official: undefined (torch.sort). Ours: the named policy, by the hard target; among other pictures of "
        "equal score the smaller id comes first, whatever their soft values",
        source="Cuberick-Orion/CIRPLANT cd5798db OSCAR_CIRPLANT.py; which of the two the test server takes is not "
        "published",
    )
    says_recall = "largest soft value among the first k, at least 0, mean over queries"

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_cirr import load_cirr

        return load_cirr(root, reading, soft=True)

    def values(self, block: Ranked) -> Values:
        worth = np.zeros(block.order.shape)
        for row, order, query in zip(worth, block.order, block.queries, strict=True):
            for name, value in soft(query).items():
                row[order == block.task.place.get(name, -2)] = value
        inside = _members(block)
        return {
            **{f"R@{k}": best(worth, k) for k in (1, 2, 5, 10, 50, 100)},
            **{f"R_subset@{k}": if_whole(block, best(_gathered(worth, inside), k)) for k in SUBSET_KS},
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        return [over_queries(name, self.says_recall, whole(name, percent(values, name))) for name in values[0]]


def whole(name: str, values: measures.Values) -> measures.Values:
    """All NaN for a subset's recall if it is not known of every query: that of a few would pass for that of all."""
    unknown = name.startswith("R_subset") and np.isnan(values).any()
    return np.full(len(values), np.nan) if unknown else values


def soft(query: object) -> dict[str, float]:
    assert isinstance(query, CirrQuery)  # the loader makes no others
    return dict(query.soft)


def best(worth: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The largest worth among the first k, at least 0."""
    return np.maximum(worth[:, :k].max(axis=1, initial=0.0), 0.0)


def if_whole(block: Ranked, values: measures.Values) -> measures.Values:
    """`values`, NaN where a ranking ends early: where the group's other members stand is then not known."""
    return np.where((block.order >= 0).sum(axis=1) == block.candidates, values, np.nan)


def within_group(block: Ranked, of: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`of` (queries, depth) at the ranks of the query's own group, in their order, (queries, up to 5)."""
    return _gathered(of, _members(block))


def _members(block: Ranked) -> NDArray[np.bool_]:
    """(queries, depth): whether the picture at each rank is of the query's group, the reference aside."""
    members = [
        query.members - {query.reference} if isinstance(query, CirrQuery) else frozenset() for query in block.queries
    ]
    inside = mask(block.task, [frozenset(some) for some in members])
    return np.take_along_axis(inside, np.maximum(block.order, 0), axis=1) & (block.order >= 0)


def _gathered(of: NDArray, inside: NDArray[np.bool_]) -> NDArray:
    """The entries of `of` where `inside`, moved to the front in order; the rest is zero."""
    gathered = np.zeros((len(of), max(int(inside.sum(axis=1).max(initial=0)), 1)), of.dtype)
    rows, ranks = np.nonzero(inside)
    gathered[rows, (inside.cumsum(axis=1) - 1)[rows, ranks]] = of[rows, ranks]
    return gathered
