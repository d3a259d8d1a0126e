"""The order of a gallery for each query: by score, with a named policy for ties, exclusions taken out.

Scores are float32 or float64 and are never rounded before they are compared. Official evaluators sort with unstable
sorts, so their numbers on tied scores are accidents; here every tie is decided, the same way everywhere. Works in
blocks of queries, so that a gallery of any size is ranked in bounded memory. Knows no model and no metric."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols.task import Query, Task, mask

CELLS = 16_000_000  # query x gallery cells sorted at once: 128 MB of sort keys


class Ties(StrEnum):
    """Which of two pictures with equal scores comes first."""

    PESSIMISTIC = "pessimistic"  # the one that is not relevant; among those the smaller id. The default: nothing leaks
    OPTIMISTIC = "optimistic"  # the relevant one; among those the smaller id
    BY_ID = "by-id"  # the smaller id, as text. Never "by gallery position": some loaders put the target first


@dataclass(frozen=True)
class Ranked:
    """A block of queries and their rankings.

    order: (queries, depth) gallery indexes, best first, without what the query excludes; -1 where a ranking has
    ended. hits: (queries, depth) whether that picture is relevant. relevant: (queries,) how many of the gallery
    could be found. candidates: (queries,) how many pictures competed."""

    task: Task
    queries: Sequence[Query]
    order: NDArray[np.int32]
    hits: NDArray[np.bool_]
    relevant: NDArray[np.int64]
    candidates: NDArray[np.int64]

    @property
    def depth(self) -> int:
        return self.order.shape[1]


def ranked(
    task: Task,
    scores_of: Callable[[slice], NDArray[np.floating]],
    *,
    depth: int | None = None,
    ties: Ties = Ties.PESSIMISTIC,
) -> Iterator[Ranked]:
    """Rank the gallery of `task` for all its queries, block by block.

    scores_of: gives the scores (queries of the slice, gallery) of a block, higher is nearer. depth: how many of each
    ranking are wanted; None: all. Raises ValueError naming the query for scores that are NaN or of a wrong shape."""
    width = len(task.gallery)
    block = max(1, CELLS // max(width, 1))
    for start in range(0, len(task.queries), block):
        queries = task.queries[start : start + block]
        scores = scores_of(slice(start, start + len(queries)))
        if scores.shape != (len(queries), width):
            raise ValueError(
                f"{task.name}: scores of {len(queries)} queries to {width} pictures came as {scores.shape}"
            )
        if bad := np.flatnonzero(np.isnan(scores).any(axis=1)).tolist():
            raise ValueError(f"{task.name}: query {queries[bad[0]].id} has a score that is NaN")
        yield rank_block(task, queries, scores, depth=depth, ties=ties)


def rank_block(
    task: Task,
    queries: Sequence[Query],
    scores: NDArray[np.floating],
    *,
    depth: int | None = None,
    ties: Ties = Ties.PESSIMISTIC,
) -> Ranked:
    """Rank the gallery for these queries of `task` by `scores` (queries, gallery), free of NaN."""
    relevant, absent = mask(task, [query.relevant for query in queries]), _absent(task, queries)
    width = scores.shape[1]
    deep = width if depth is None else min(depth, width)
    keys = _keys(scores, relevant, task.id_rank, ties)
    keys[absent] = np.iinfo(np.uint64).max
    if deep < width:
        keys = np.partition(keys, deep - 1, axis=1)[:, :deep]
    keys.sort(axis=1)
    by_rank = np.argsort(task.id_rank).astype(np.int32)  # gallery index of each id rank
    order = by_rank[np.minimum(keys & 0x7FFF_FFFF, width - 1).astype(np.intp)]
    order[keys == np.iinfo(np.uint64).max] = -1
    return _block(task, queries, order, relevant & ~absent, width - absent.sum(axis=1))


def from_lists(task: Task, queries: Sequence[Query], rankings: Sequence[Sequence[int]]) -> Ranked:
    """A block from rankings that are ready: gallery indexes, best first, of any length; what a query excludes is
    taken out."""
    relevant, absent = mask(task, [query.relevant for query in queries]), _absent(task, queries)
    kept = [[place for place in row if not gone[place]] for row, gone in zip(rankings, absent, strict=True)]
    order = np.full((len(kept), max(map(len, kept), default=0)), -1, np.int32)
    for row, places in zip(order, kept, strict=True):
        row[: len(places)] = places
    return _block(task, queries, order, relevant & ~absent, len(task.gallery) - absent.sum(axis=1))


def _block(
    task: Task,
    queries: Sequence[Query],
    order: NDArray[np.int32],
    relevant: NDArray[np.bool_],
    candidates: NDArray[np.int64],
) -> Ranked:
    hits = np.take_along_axis(relevant, np.maximum(order, 0), axis=1) & (order >= 0)
    return Ranked(task, queries, order, hits, relevant.sum(axis=1), candidates)


def _absent(task: Task, queries: Sequence[Query]) -> NDArray[np.bool_]:
    """(queries, gallery): what does not compete."""
    absent = mask(task, [query.exclude for query in queries])
    for row, query in enumerate(queries):
        if query.candidates is not None:
            absent[row] |= ~mask(task, [query.candidates])[0]
    return absent


def _keys(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], id_rank: NDArray[np.uint32], ties: Ties
) -> NDArray[np.uint64]:
    """One whole number per cell, no two alike in a row, whose ascending order is the ranking: 32 bits of the score,
    one of relevance, 31 of the id."""
    keys = _descending(scores).astype(np.uint64) << np.uint64(32)
    if ties is Ties.PESSIMISTIC:
        keys |= relevant.astype(np.uint64) << np.uint64(31)
    elif ties is Ties.OPTIMISTIC:
        keys |= (~relevant).astype(np.uint64) << np.uint64(31)
    keys |= id_rank.astype(np.uint64)
    return keys


def _descending(scores: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Whole numbers in the reverse order of the scores, equal where the scores are equal."""
    if scores.dtype == np.float32:
        bits = (np.ascontiguousarray(scores) + np.float32(0.0)).view(np.uint32)  # + 0.0: -0.0 equals 0.0
        return np.where(bits >> 31 == 1, bits, ~bits & 0x7FFF_FFFF)
    return np.stack([np.unique(-row, return_inverse=True)[1] for row in scores]).astype(np.uint32)
