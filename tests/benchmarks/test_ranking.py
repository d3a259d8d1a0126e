"""The order of a gallery: against numpy's lexsort, under every tie policy, in both precisions, in blocks."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlens_bench.protocols import ranking
from pocketlens_bench.protocols.ranking import Ties, from_lists, rank_block, ranked
from pocketlens_bench.protocols.task import Query, Task

NAMES = ("pear", "10", "9", "apple", "fig", "Zebra", "lime", "kiwi")


def task(*queries, gallery=NAMES):
    return Task(name="small", gallery=gallery, queries=queries)


def query(name="q", **more):
    return Query(id=name, reference=None, **more)


def expected(scores, relevant, ties):
    """The order by plain sorting of tuples."""
    second = {Ties.PESSIMISTIC: 1, Ties.OPTIMISTIC: -1, Ties.BY_ID: 0}[ties]
    key = {i: (-s, second * (NAMES[i] in relevant), NAMES[i]) for i, s in enumerate(scores)}
    return sorted(key, key=lambda i: key[i])


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1e-30, 3.0]), min_size=8, max_size=8),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from(list(Ties)),
    st.sampled_from([np.float32, np.float64]),
)
def test_order_is_that_of_sorted_tuples(scores, relevant, ties, kind):
    asked = query(relevant=frozenset(relevant))
    block = rank_block(task(asked), [asked], np.array([scores], kind), ties=ties)
    assert block.order[0].tolist() == expected(scores, relevant, ties)
    assert block.hits[0].tolist() == [NAMES[i] in relevant for i in block.order[0]]


def test_scores_closer_than_float32_can_tell_are_told_apart_in_float64():
    scores = np.array([[0.5, 0.5 + 1e-12, 0, 0, 0, 0, 0, 0]])
    asked = query(relevant=frozenset(["pear"]))
    assert rank_block(task(asked), [asked], scores).order[0, 0] == 1


def test_neighbouring_float32_scores_are_not_tied():
    scores = np.zeros((1, 8), np.float32)
    scores[0, 0], scores[0, 1] = 1.0, np.nextafter(np.float32(1.0), np.float32(2.0))
    asked = query(relevant=frozenset(["10"]))
    assert rank_block(task(asked), [asked], scores).order[0, 0] == 1


def test_what_a_query_excludes_leaves_its_ranking_and_its_relevant_count():
    asked = query(relevant=frozenset(["fig", "lime"]), exclude=frozenset(["fig", "not in the gallery"]))
    block = rank_block(task(asked), [asked], np.arange(8, dtype=np.float32)[None])
    assert block.order[0].tolist() == [7, 6, 5, 3, 2, 1, 0, -1]
    assert not block.hits[0, -1]
    assert (block.relevant[0], block.candidates[0]) == (1, 7)


def test_only_candidates_compete():
    asked = query(relevant=frozenset(["9"]), candidates=frozenset(["9", "pear", "fig"]))
    block = rank_block(task(asked), [asked], np.arange(8, dtype=np.float32)[None])
    assert block.order[0].tolist() == [4, 2, 0, -1, -1, -1, -1, -1]
    assert block.candidates[0] == 3


def test_a_depth_gives_the_beginning_of_the_whole_order():
    asked = query(relevant=frozenset(["fig"]), exclude=frozenset(["kiwi"]))
    scores = np.array([[1, 5, 5, 2, 5, 0, 5, 9]], np.float32)
    whole = rank_block(task(asked), [asked], scores)
    assert rank_block(task(asked), [asked], scores, depth=3).order.tolist() == whole.order[:, :3].tolist()
    assert rank_block(task(asked), [asked], scores, depth=99).order.tolist() == whole.order.tolist()


def test_blocks_give_what_one_block_gives(monkeypatch):
    rng = np.random.default_rng(0)
    queries = [query(str(i), relevant=frozenset([NAMES[i % 8]])) for i in range(11)]
    scores = rng.integers(0, 4, (11, 8)).astype(np.float32)
    whole = next(ranked(task(*queries), lambda rows: scores[rows]))
    monkeypatch.setattr(ranking, "CELLS", 20)  # two queries at a time
    parts = list(ranked(task(*queries), lambda rows: scores[rows]))
    assert [len(part.queries) for part in parts] == [2, 2, 2, 2, 2, 1]
    assert np.concatenate([part.order for part in parts]).tolist() == whole.order.tolist()


def test_ready_lists_lose_what_is_excluded_and_end_in_minus_one():
    queries = [query("a", exclude=frozenset(["9"]), relevant=frozenset(["10"])), query("b", relevant=frozenset(["9"]))]
    block = from_lists(task(*queries), queries, [[2, 1], [2]])
    assert block.order.tolist() == [[1], [2]]
    longer = from_lists(task(*queries), queries, [[2, 1, 0], []])
    assert longer.order.tolist() == [[1, 0], [-1, -1]]
    assert longer.hits.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    ("scores", "words"),
    [(np.full((1, 8), np.nan, np.float32), "query q has a score that is NaN"), (np.zeros((1, 7)), "came as (1, 7)")],
)
def test_scores_that_cannot_be_ranked_are_refused_by_name(scores, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        list(ranked(task(query()), lambda _: scores))


def test_infinite_scores_are_ranked_last_and_first():
    scores = np.array([[0, -np.inf, np.inf, 1, 2, 3, 4, 5]], np.float32)
    asked = query()
    order = rank_block(task(asked), [asked], scores).order[0]
    assert (order[0], order[-1]) == (2, 1)
