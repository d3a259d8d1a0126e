"""Judge rankings against the truth, and say how sure the judgement is.

Takes ranked ids and relevant ids, nothing else: knows no model, gallery or picture. Every query has at least one
relevant id, and the whole gallery competes, the anchor's like included. Called by accuracy.py.

    R@k     1 if any relevant id is among the first k, else 0
    mAP@k   mean over queries of AP@k = (sum, over the relevant ids at rank r <= k, of the precision at r)
            / min(number of relevant ids, k); the precision at r is (relevant ids among the first r) / r
"""

from collections.abc import Collection, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols.figures import CONFIDENCE, RESAMPLES, Measured

Id = TypeVar("Id", bound=Hashable)


def recall_at(k: int, ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    """R@k of one query: 1.0 or 0.0. Raises ValueError without relevant ids or with an id ranked twice."""
    return float(any(_hits(k, ranked, relevant)))


def average_precision_at(k: int, ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    """AP@k of one query, 0 to 1. Raises ValueError as `recall_at` does."""
    found, total = 0, 0.0
    for rank, hit in enumerate(_hits(k, ranked, relevant), start=1):
        if hit:
            found += 1
            total += found / rank
    return total / min(len(set(relevant)), k)


def _hits(k: int, ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> list[bool]:
    """Whether the id at each of the first k ranks is relevant."""
    if not relevant:
        raise ValueError("a query without relevant ids cannot be judged")
    if len(set(ranked)) != len(ranked):
        raise ValueError("an id is ranked twice")
    wanted = set(relevant)
    return [name in wanted for name in ranked[:k]]


def judge(
    names: Sequence[str], rankings: Sequence[Sequence[Hashable]], relevant: Sequence[Collection[Hashable]]
) -> NDArray[np.float64]:
    """Each query under each metric, (queries, metrics), 0 to 1. Names are like "R@10" and "mAP@10"."""
    return np.array(
        [[_one(name, *query) for name in names] for query in zip(rankings, relevant, strict=True)], np.float64
    ).reshape(-1, len(names))


def _one(name: str, ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    kind, _, k = name.partition("@")
    metric = {"R": recall_at, "mAP": average_precision_at}[kind]
    return metric(int(k), ranked, relevant)


def pessimistic(scored: Sequence[tuple[Id, float]], relevant: Collection[Id]) -> list[Id]:
    """Ids by score, best first; among equal scores the relevant ones come last: ties count against us."""
    wanted = set(relevant)
    return [name for name, _ in sorted(scored, key=lambda pair: (-pair[1], pair[0] in wanted))]


def mean(values: NDArray[np.float64], *, seed: int) -> Measured:
    """Mean of `values` (queries,) and its percentile bootstrap interval over queries.

    The same seed draws the same queries for every row, so that differences of rows can be given as
    `mean(a - b)`, which is paired."""
    means = _resampled(len(values), seed) @ values / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measured(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=16)
def _resampled(count: int, seed: int) -> NDArray[np.float64]:
    """How often each query is drawn in each resample, (RESAMPLES, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
