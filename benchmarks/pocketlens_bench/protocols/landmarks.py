"""ROxford5k and RParis6k (Radenovic et al., CVPR 2018): a part of a photo of a landmark finds other photos of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, percent
from pocketlens_bench.protocols.queries import LandmarkQuery
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task, mask

KS = (1, 5, 10)
SETUPS = {  # positives, and what is ignored
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}


class Landmarks(Protocol):
    """One ranking, judged in three setups."""

    headline = ("mAP, E", "mAP, M", "mAP, H")
    states = Statement(
        gallery="all photos of the database",
        queries="70 photos, each cut to its landmark's box",
        ids="a query: its name in `qimlist`; a picture: its name in `imlist`",
        exclusions="Easy: junk and hard are deleted from the ranking before it is judged; Medium: junk; Hard: junk and "
        "easy",
        denominators="trapezoid AP over the number of positives; a positive missing from a short ranking adds nothing; "
        "a query without positives in a setup leaves its means. mP@k: k is at most the rank of the last positive",
        ties="official: rankings come ready. Ours: the named policy, with easy and hard as the relevant ones",
        source="filipradenovic/revisitop python/evaluate.py, example_evaluate.py",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_landmarks import load_landmarks

        return load_landmarks(root, reading, self.name)

    def values(self, block: Ranked) -> Values:
        sets = {
            name: _at_ranks(
                block, [getattr(query, name) for query in block.queries if isinstance(query, LandmarkQuery)]
            )
            for name in ("easy", "hard", "junk")
        }
        values: dict[str, NDArray[np.float64]] = {}
        for setup, (wanted, ignored) in SETUPS.items():
            positives = _any(sets, wanted)
            count = np.array([sum(len(pictures(query, name)) for name in wanted) for query in block.queries])
            hits = without(positives, _any(sets, ignored) | (block.order < 0))
            values[f"mAP, {setup}"] = np.where(count > 0, measures.trapezoid_ap(hits, count), np.nan)
            for k in KS:
                values[f"mP@{k}, {setup}"] = np.where(count > 0, precision_at(hits, k), np.nan)
        return values

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        return [
            over_queries(
                name,
                f"positives: {' and '.join(SETUPS[name[-1]][0])}; mean over queries that have any",
                percent(values, name),
            )
            for name in values[0]
        ]


class ROxford(Landmarks):
    name = "roxford"
    title = "ROxford5k"


class RParis(Landmarks):
    name = "rparis"
    title = "RParis6k"


def pictures(query: object, name: str) -> frozenset[str]:
    """The query's easy, hard or junk pictures."""
    assert isinstance(query, LandmarkQuery)  # the loader makes no others
    return getattr(query, name)


def precision_at(hits: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Precision at k, or at the rank of the last positive if that comes before."""
    until = np.minimum(measures.last_hit(hits), k)
    inside = np.arange(hits.shape[1]) < until[:, None]
    return measures.share((hits & inside).sum(axis=1).astype(np.float64), until)


def without(hits: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`hits` with the ranks that are `ignored` taken out, the rest moved up; misses fill the end."""
    kept = np.zeros_like(hits)
    rows, ranks = np.nonzero(~ignored)
    kept[rows, ((~ignored).cumsum(axis=1) - 1)[rows, ranks]] = hits[rows, ranks]
    return kept


def _at_ranks(block: Ranked, sets: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
    return np.take_along_axis(mask(block.task, sets), np.maximum(block.order, 0), axis=1) & (block.order >= 0)


def _any(sets: dict[str, NDArray[np.bool_]], names: Sequence[str]) -> NDArray[np.bool_]:
    return np.logical_or.reduce([sets[name] for name in names])
