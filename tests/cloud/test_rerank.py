"""Re-ranking against a slow loop that follows the paper's words."""

import numpy as np
import pytest
from pocketlens_cloud.rerank import Rerank, rerank


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def drawn(count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, hits best first, cosines)"""
    rng = np.random.default_rng(seed)
    hits, query = unit(rng.standard_normal((count, dim))), unit(rng.standard_normal(dim))
    hits = hits[np.argsort(-(hits @ query))]
    return query, hits, hits @ query


def slowly(query, hits, scores, how: Rerank) -> list[int]:
    few = min(how.depth, len(hits))
    refined = []
    for i in range(few):
        others = sorted((j for j in range(few) if j != i), key=lambda j: -float(hits[i] @ hits[j]))[: how.neighbours]
        total, weight = hits[i].astype(np.float64), 1.0
        for j in others:
            near = how.strength * max(0.0, float(hits[i] @ hits[j]))
            total, weight = total + near * hits[j], weight + near
        refined.append(total / weight)
    first = [float(row @ query) for row in refined]
    second = [0.0] * few
    if how.leaders:
        best = [refined[i] for i in sorted(range(few), key=lambda i: -first[i])[: how.leaders]]
        leader = [sum(v) / len(v) if how.pooling == "mean" else max(v) for v in zip(*best, strict=True)]
        second = [float(row @ leader) for row in refined]
    if how.leaders and how.standardised:
        first, second = [[(s - np.mean(some)) / np.std(some) for s in some] for some in (first, second)]
    order = sorted(range(few), key=lambda i: -(first[i] + second[i]))
    return order + list(range(few, len(hits)))


@pytest.mark.parametrize(
    "how",
    [
        Rerank(),
        Rerank(depth=20, neighbours=3, strength=1.0),
        Rerank(pooling="largest", standardised=False),
        Rerank(leaders=0, depth=1000),
        Rerank(neighbours=0, leaders=4),
        Rerank(depth=2),
    ],
)
def test_the_order_is_the_slow_loops(how):
    for seed in range(5):
        given = drawn(60, 24, seed)
        order, scores = rerank(*given, how)
        assert order.tolist() == slowly(*given, how)
        assert (np.diff(scores) <= 0).all()


def test_a_hit_among_its_likes_rises_over_a_lone_one():
    axes = np.eye(8, dtype=np.float32)
    query = axes[0]
    lone = unit(axes[0] + 1.0 * axes[1])
    crowd = unit(axes[0] + 1.02 * axes[2] + 0.1 * axes[3:7])
    hits = np.stack([lone, *crowd])
    assert (np.diff(hits @ query) <= 0).all()  # the lone one is first
    order, _ = rerank(query, hits, hits @ query, Rerank(standardised=False))
    assert order[-1] == 0


@pytest.mark.parametrize("count", [0, 1])
def test_few_hits_stay(count):
    query, hits, scores = drawn(count, 8, 0)
    order, same = rerank(query, hits, scores)
    assert order.tolist() == list(range(count))
    assert same.tolist() == scores.tolist()


def test_equal_hits_keep_their_order_and_do_not_divide_by_nothing():
    hits = np.tile(np.eye(4, dtype=np.float32)[0], (5, 1))
    order, scores = rerank(hits[0], hits, hits @ hits[0])
    assert order.tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(scores).all()


def test_shapes_that_do_not_fit_are_named():
    query, hits, scores = drawn(5, 8, 0)
    with pytest.raises(ValueError, match=r"query \(7,\), hits \(5, 8\) and scores \(5,\) do not fit"):
        rerank(query[:7], hits, scores)
