"""Measures of one ranking, for many queries at once.

All take `hits` (queries, depth) bool, whether the picture at each rank is relevant, and denominators (queries,). A
ranking shorter than k is a ranking whose further places are misses. Three families of average precision are in use
and none is called "AP" alone. Results are float64, 0 to 1. Knows no benchmark; which denominator a benchmark takes
stands in its protocol."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Counts = NDArray[np.integer] | NDArray[np.floating]
Values = NDArray[np.float64]


def hit_rate(hits: Hits, k: int) -> Values:
    """1 if any relevant picture is among the first k, else 0."""
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def by_name(hits: Hits, relevant: Counts, names: Iterable[str]) -> dict[str, Values]:
    """Measures by the names that composed retrieval gives them. R@k: `hit_rate`. mAP@k: `plain_ap` over
    min(relevant, k), relevant being (queries,) numbers of relevant pictures."""
    found: dict[str, Values] = {}
    for name in names:
        kind, _, depth = name.partition("@")
        k = int(depth)
        if kind not in ("R", "mAP"):
            raise ValueError(f"{name}: no such measure; R@k and mAP@k are")
        found[name] = hit_rate(hits, k) if kind == "R" else plain_ap(hits, np.minimum(relevant, k), k)
    return found


def hits_over(hits: Hits, k: int | None, over: Counts | float) -> Values:
    """Relevant pictures among the first k (None: all), divided by `over`; 0 where `over` is 0.

    Over the number of relevant pictures: recall@k; over k: precision@k."""
    return share(hits[:, :k].sum(axis=1).astype(np.float64), over)


def plain_ap(hits: Hits, over: Counts | float, k: int | None = None) -> Values:
    """Sum of the precision at each relevant rank up to k (None: all), divided by `over`; 0 where `over` is 0."""
    return share(np.nansum(_precisions(hits[:, :k])[1], axis=1), over)


def trapezoid_ap(hits: Hits, over: Counts | float, k: int | None = None) -> Values:
    """As plain, but each precision is the mean of that just before and just after the relevant picture (Radenovic et
    al.): for the j-th at rank r, both from 0, (j / r + (j + 1) / (r + 1)) / 2, where j / r is 1 at r = 0."""
    ranks, after = _precisions(hits[:, :k])
    before = np.where(ranks == 0, 1.0, np.arange(ranks.shape[1]) / np.maximum(ranks, 1))
    return share(np.nansum(0.5 * (before + after), axis=1), over)


def interpolated_ap(hits: Hits, over: Counts | float, k: int | None = None) -> Values:
    """As plain, but the precision at a rank is the largest at that rank or later (PASCAL VOC's envelope), which is
    always that of a relevant rank."""
    _, after = _precisions(hits[:, :k])
    envelope = np.maximum.accumulate(np.nan_to_num(after)[:, ::-1], axis=1)[:, ::-1]
    return share(np.where(np.isnan(after), 0.0, envelope).sum(axis=1), over)


def _precisions(hits: Hits) -> tuple[Values, Values]:
    """Rank, from 0, of each query's j-th relevant picture, and the precision there, both (queries, most hits); NaN
    where a query has fewer. Much smaller than `hits`: a few pictures of a large gallery are relevant."""
    counts = hits.sum(axis=1)
    ranks = np.full((len(hits), int(counts.max(initial=0))), np.nan)
    ranks[np.arange(ranks.shape[1]) < counts[:, None]] = np.nonzero(hits)[1]
    return ranks, np.arange(1, ranks.shape[1] + 1) / (ranks + 1)


def last_hit(hits: Hits) -> NDArray[np.int64]:
    """(queries,): rank, from 1, of the last relevant picture; 0 if there is none."""
    depth = hits.shape[1]
    return np.where(hits.any(axis=1), depth - hits[:, ::-1].argmax(axis=1), 0) if depth else np.zeros(len(hits), int)


def share(of: Values, over: Counts | float) -> Values:
    """`of` / `over`, 0 where `over` is 0."""
    below = np.broadcast_to(np.asarray(over, np.float64), of.shape)
    shares: Values = np.divide(of, below, out=np.zeros_like(of), where=below > 0)
    return shares
