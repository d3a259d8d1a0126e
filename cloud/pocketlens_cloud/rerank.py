"""Rearrange the best hits by what they have in common, from their gallery vectors alone.

After SuperGlobal (Shao et al., "Global Features are All You Need for Image Retrieval and Reranking", ICCV 2023,
arXiv 2308.06954), which refines each hit by its neighbours among the hits and the query by the best of them. That was
made for vectors without negative numbers and queries that are pictures themselves; here numbers have signs and a query
lies on the side of texts, so the query's refinement is a mean (theirs: the largest of each number), and the two scores
are standardised before they are averaged. Pure numpy; knows no gallery and no request."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """How hits are rearranged.

    depth: of how many; the others keep their places behind them; neighbours: hits that refine each hit; strength: of
    a neighbour at cosine 1, against 1 for the hit itself; leaders: refined hits that stand for the query, 0 for none;
    pooling: how they become one vector; standardised: both scores brought to mean 0 and deviation 1 before they are
    averaged."""

    depth: int = 30
    neighbours: int = 3
    strength: float = 0.15
    leaders: int = 3
    pooling: Literal["mean", "largest"] = "mean"
    standardised: bool = True


RERANK = Rerank()


def rerank(
    query: Vectors, hits: Vectors, scores: NDArray[np.float32], how: Rerank = RERANK
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A new order of hits, (count,) places in the old one, and the new score of each in that order, never rising.

    query: (dim,) unit; hits: (count, dim) unit, best first; scores: (count,) their cosines. The hits beyond
    `how.depth` keep order and distance to each other, and their scores are moved below those of the rearranged.
    New scores are for ordering: they are no cosines. Raises ValueError if shapes do not fit."""
    if hits.ndim != 2 or scores.shape != (len(hits),) or query.shape != hits.shape[1:]:
        raise ValueError(f"query {query.shape}, hits {hits.shape} and scores {scores.shape} do not fit together")
    few = min(how.depth, len(hits))
    if few < 2:
        return np.arange(len(hits)), np.asarray(scores, np.float32)
    refined = _refined(hits[:few], how)
    by_query = refined @ query
    new = by_query
    if how.leaders:
        leader = _pooled(refined[np.argsort(-by_query, kind="stable")[: how.leaders]], how)
        by_leader = refined @ leader
        new = (_spread(by_query) + _spread(by_leader)) / 2 if how.standardised else (by_query + by_leader) / 2
    order = np.argsort(-new, kind="stable")
    rest, lowest = scores[few:], new.min()
    if len(rest) and rest[0] > lowest:
        rest = np.minimum(rest - (rest[0] - lowest), lowest)
    places = np.concatenate([order, np.arange(few, len(hits))])
    return places, np.concatenate([new[order], rest]).astype(np.float32)


def _refined(hits: Vectors, how: Rerank) -> Vectors:
    """(few, dim): each hit drawn towards its neighbours, by how near they are; one that points away draws nothing."""
    near = hits @ hits.T
    np.fill_diagonal(near, -np.inf)
    count = min(how.neighbours, len(hits) - 1)
    if count < 1:
        return hits
    best = np.argpartition(-near, count - 1, axis=1)[:, :count]  # (few, count)
    weights = how.strength * np.maximum(np.take_along_axis(near, best, axis=1), 0)
    return (hits + np.einsum("ij,ijd->id", weights, hits[best])) / (1 + weights.sum(axis=1, keepdims=True))


def _pooled(leaders: Vectors, how: Rerank) -> Vectors:
    return leaders.mean(axis=0) if how.pooling == "mean" else leaders.max(axis=0)


def _spread(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0, deviation 1; all 0 where they are all equal."""
    deviation = scores.std()
    return (scores - scores.mean()) / deviation if deviation > 0 else np.zeros_like(scores)
