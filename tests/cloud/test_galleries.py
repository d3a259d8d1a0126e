"""Every engine against the oracle: filters, pages, groups, ties, batches; random pictures and random searches."""

from collections.abc import Iterator
from dataclasses import replace

import gallery_oracle as oracle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pocketlens_cloud.gallery.filters import (
    EVERYTHING,
    AnyOf,
    Between,
    Equals,
    Filter,
    HasId,
    Missing,
    Near,
    NoneOf,
    Says,
)
from pocketlens_cloud.gallery.interface import Gallery, Point, Scored, Search
from pocketlens_wire.errors import BadQuery

COSINE = 1e-5
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def emptied(engine) -> Iterator[Gallery]:
    """A gallery that knows all keys; each test takes out what was put in before."""
    gallery = engine(dim=6, vectors=[oracle.NAME])
    gallery.upsert([Point("f" * 32, {oracle.NAME: oracle.ROWS[0]}, oracle.EXAMPLE)])
    return gallery


def fill(gallery: Gallery, points: list[Point]) -> None:
    gallery.delete([point_id for point_id, _ in gallery.payloads()])
    if points:
        gallery.upsert(points)


def projected(payload: dict, keys) -> dict:
    return {key: value for key, value in payload.items() if keys is None or key in keys}


def assert_found(hits: list[Scored], points: list[Point], asked: Search) -> None:
    wanted = oracle.found(points, asked)
    assert [hit.id for hit in hits] == [hit.id for hit in wanted]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=COSINE)
    assert [hit.payload for hit in hits] == [projected(hit.payload, asked.payload) for hit in wanted]
    rows = {point.id: point.vectors[oracle.NAME] for point in points}
    for hit in hits:
        assert (hit.vector is not None) is asked.with_vectors
        assert hit.vector is None or np.abs(hit.vector - rows[hit.id]).max() < COSINE


def test_every_condition_lets_pass_what_it_says(emptied):
    points = oracle.pictures(80, seed=1)
    fill(emptied, points)
    asked = [
        Search(vector=oracle.QUERY, name=oracle.NAME, top=80, payload=(), where=Filter(all_of=(one,)))
        for one in oracle.CONDITIONS
    ]
    passed = 0
    for search, hits in zip(asked, emptied.search_many(asked), strict=True):
        assert [hit.id for hit in hits] == [hit.id for hit in oracle.found(points, search)], search.where
        passed += bool(hits)
    assert passed > len(asked) / 2  # or the pictures would show too little


@settings(max_examples=30, **QUIET)
@given(seed=st.integers(0, 999), searches=st.lists(oracle.searches(), min_size=3, max_size=3))
def test_any_search_gives_what_looking_at_every_picture_gives(emptied, seed, searches):
    points = oracle.pictures(40, seed)
    fill(emptied, points)
    for asked, hits in zip(searches, emptied.search_many(searches), strict=True):
        assert_found(hits, points, asked)
    assert_found(emptied.search(searches[0]), points, searches[0])


@pytest.mark.parametrize(
    ("where", "passing"),
    [
        (NoneOf("tags", ("red",)), "blue"),  # of the engine's own "except" a list with any other value is let through
        (Equals("new", False), "blue"),  # flags, which an engine may keep as numbers
        (Equals("price", 2), "blue"),  # an integer asked of a number key
        (Between(key="when", least=1769860800.0, most=1769860800.0), "red"),  # another offset, the same instant
        (Equals("when", "2026-01-31T12:00:00Z"), "red"),
        (Near("at", 52.5, 13.4, 3_000.0), "red"),
        (Near("at", 0.0, 180.0, 20_000.0), "blue"),  # over the line where longitudes begin again
        (Says("title", "MUG red"), "red"),
        (Missing("n"), "none"),
        (HasId((f"{3:032x}", f"{99:032x}")), "none"),
        (Filter(any_of=(Equals("new", True), Equals("n", 1), Missing("n")), at_least=2), "red"),
        (Filter(none_of=(Filter(any_of=(Equals("n", 1), Equals("n", 2))),)), "none"),
        (EVERYTHING, "all"),
    ],
)
def test_conditions_one_by_one(emptied, where, passing):
    red = {
        "title": "Red mug", "tags": ["red", "old"], "n": 1, "new": True, "price": 1.0,
        "when": "2026-01-31T13:00:00+01:00", "at": {"lat": 52.52, "lon": 13.405},
    }  # fmt: skip
    blue = {
        "title": "muguet", "tags": "blue", "n": 2, "new": False, "price": 2.0,
        "when": "2026-01-31T12:00:01Z", "at": {"lat": 0.05, "lon": -179.9},
    }  # fmt: skip
    rows = {"red": red, "blue": blue, "none": {}}
    points = [Point(f"{i + 1:032x}", {oracle.NAME: oracle.ROWS[0]}, row) for i, row in enumerate(rows.values())]
    fill(emptied, points)
    whole = where if isinstance(where, Filter) else Filter(all_of=(where,))
    asked = Search(vector=oracle.QUERY, name=oracle.NAME, top=9, where=whole)
    hits = emptied.search(asked)
    assert_found(hits, points, asked)
    wanted = [point.id for point, key in zip(points, rows, strict=True) if passing in (key, "all")]
    assert [hit.id for hit in hits] == wanted


@pytest.fixture(scope="module")
def crowded(engine) -> tuple[Gallery, list[Point]]:
    """500 pictures of two vectors, 6 groups of which one has most of the first places, and some without."""
    gallery = engine(dim=6, vectors=[oracle.NAME])
    points = [
        Point(
            f"{i * 7919 % 500:032x}",
            {oracle.NAME: oracle.ROWS[0 if i < 300 else 1]},
            {"kind": "crowd" if i < 290 else f"k{i % 5}"} if i % 50 else {},
        )
        for i in range(500)
    ]
    gallery.upsert(points)
    return gallery, points


@pytest.mark.parametrize("exact", [True, False])
def test_pages_of_equal_scores_fit_together(crowded, exact):
    gallery, points = crowded
    asked = Search(vector=oracle.QUERY, name=oracle.NAME, top=7, exact=exact, payload=())
    pages = gallery.search_many([replace(asked, skip=skip) for skip in range(0, 510, 7)])
    came = [hit.id for page in pages for hit in page]
    assert came == [hit.id for hit in oracle.found(points, replace(asked, top=500))]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_groups_are_found_behind_one_that_fills_the_first_places(crowded, size):
    gallery, points = crowded
    asked = Search(vector=oracle.QUERY, name=oracle.NAME, top=4, group_by="kind", group_size=size)
    hits = gallery.search(asked)
    assert_found(hits, points, asked)
    assert len({hit.payload["kind"] for hit in hits}) == 4
    second = replace(asked, skip=4)
    assert_found(gallery.search(second), points, second)
    assert not {hit.payload["kind"] for hit in gallery.search(second)} & {hit.payload["kind"] for hit in hits}


def test_a_gallery_that_answers_says_so(crowded):
    crowded[0].ping()


def test_many_searches_are_one_by_one_the_same(crowded):
    gallery, _ = crowded
    queries = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    asked = [
        Search(vector=query / np.linalg.norm(query), name=oracle.NAME, top=5 + i, exact=i % 2 == 0, payload=())
        for i, query in enumerate(queries)
    ]
    assert gallery.search_many(asked) == [gallery.search(one) for one in asked]
    assert gallery.search_many([]) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Equals("size", 1), "filter key `size` is unknown; this gallery knows `at`, `n`"),
        (Equals("at", {"lat": 1.0, "lon": 1.0}), "filter key `at` holds place; place"),
        (Equals("when", "yesterday"), "filter key `when` holds time; text `'yesterday'` came"),
        (Equals("tags", ["red"]), "filter key `tags` holds texts; texts `['red']` came"),
        (
            AnyOf("price", (1, 2)),
            "filter key `price` holds number; a choice of values came, which can be asked of text, texts",
        ),
        (AnyOf("n", (1, "1")), "filter key `n` holds integer; text `'1'` came"),
        (NoneOf("n", ()), "a choice of values has none"),
        (Between(key="title", least=1.0), "filter key `title` holds text; a range came"),
        (Between(key="n"), "filter key `n`: a range needs a bound: above, least, below or most"),
        (Between(key="n", most=float("nan")), "most must be a finite number; `nan` came"),
        (Says("n", "red"), "filter key `n` holds integer; words came, which can be asked of text or texts"),
        (Says("title", " - "), "holds no word to look for"),
        (Near("n", 0, 0, 1), "filter key `n` holds integer; a circle came"),
        (Near("at", 91, 0, 1), "a latitude is -90 to 90 and a longitude -180 to 180; 91 and 0 came"),
        (Near("at", 0, 0, float("inf")), "a radius is a finite number of metres above 0; inf came"),
        (Missing("a.b"), "filter key `a.b` is unknown"),
        (HasId(()), "a condition on ids names none"),
        (HasId(("1",)), "a picture's id is 32 hex digits; `1` came"),
        (Filter(any_of=(Missing("n"),), at_least=2), "at_least must be 1 to the 1 of any_of; 2 came"),
    ],
)
def test_a_condition_the_gallery_cannot_answer_names_key_type_and_what_came(emptied, where, message):
    deep = Filter(none_of=(Filter(any_of=(Missing("n"), where)),))
    for check in (emptied.check_filter, lambda tree: emptied.search(replace(GOOD, where=tree))):
        with pytest.raises(BadQuery) as caught:
            check(deep)
        assert message in str(caught.value)


GOOD = Search(vector=oracle.QUERY, name=oracle.NAME, top=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (replace(GOOD, name="union"), "this gallery holds no vector `union`; it holds original"),
        (replace(GOOD, payload=("title", "size")), "payload key `size` is unknown"),
        (replace(GOOD, group_by="size"), "group key `size` is unknown"),
        (replace(GOOD, group_by="tags"), "group key `tags` holds texts; groups are made by text, integer or flag"),
        (replace(GOOD, top=0), "top and group_size must be 1 or more"),
        (replace(GOOD, least_score=float("nan")), "least_score must be a finite number"),
    ],
)
def test_a_search_the_gallery_cannot_answer_is_a_bad_query(emptied, asked, message):
    with pytest.raises(BadQuery, match=message):
        emptied.search(asked)


def test_filters_that_nest_without_end_are_refused_and_not_walked(emptied):
    deep, doubled = EVERYTHING, Filter(all_of=(Missing("n"),))
    for _ in range(100_000):
        deep = Filter(all_of=(deep,))
    for _ in range(30):
        doubled = Filter(any_of=(doubled, doubled))
    with pytest.raises(BadQuery, match="32 deep"):
        emptied.check_filter(deep)
    with pytest.raises(BadQuery, match="10000 parts"):
        emptied.check_filter(doubled)
