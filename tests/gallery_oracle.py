"""What a search of a gallery must give, in plain Python over all pictures, and random pictures and searches for it.

Knows no engine: tests/cloud/test_galleries.py holds each one against it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pocketlens_cloud.gallery.filters import (
    AnyOf,
    Between,
    Condition,
    Equals,
    Filter,
    HasId,
    Missing,
    Near,
    NoneOf,
    Says,
)
from pocketlens_cloud.gallery.interface import Point, Search

EARTH_M = 6_371_008.8
NAME = "original"


@dataclass(frozen=True)
class Found:
    id: str
    score: float
    payload: Mapping[str, Any]


# --- the oracle


def found(points: list[Point], asked: Search) -> list[Found]:
    """Every hit of `asked`, in order."""
    hits = [
        Found(point.id, float(point.vectors[asked.name] @ asked.vector), point.payload)
        for point in points
        if passes(point, asked.where)
    ]
    hits = [hit for hit in hits if asked.least_score is None or hit.score >= asked.least_score]
    hits.sort(key=lambda hit: (-hit.score, hit.id))
    if asked.group_by is None:
        return hits[asked.skip : asked.skip + asked.top]
    groups: dict[Any, list[Found]] = {}
    for hit in hits:
        if asked.group_by in hit.payload:
            groups.setdefault(hit.payload[asked.group_by], []).append(hit)
    chosen = list(groups.values())[asked.skip : asked.skip + asked.top]
    some = [hit for group in chosen for hit in group[: asked.group_size]]
    return sorted(some, key=lambda hit: (-hit.score, hit.id))


def passes(point: Point, where: Condition | Filter) -> bool:
    match where:
        case Filter(all_of=all_of, any_of=any_of, none_of=none_of, at_least=at_least):
            return (
                all(passes(point, part) for part in all_of)
                and (not any_of or sum(passes(point, part) for part in any_of) >= at_least)
                and not any(passes(point, part) for part in none_of)
            )
        case HasId(ids):
            return point.id in ids
        case Missing(key):
            return key not in point.payload
        case NoneOf(key, values):
            return key in point.payload and not any(value in values for value in values_of(point, key))
        case _:
            return any(fits(value, where) for value in values_of(point, where.key))


def values_of(point: Point, key: str) -> list[Any]:
    value = point.payload.get(key, [])
    return value if isinstance(value, list) else [value]


def fits(value: Any, condition: Condition) -> bool:
    match condition:
        case Equals(_, wanted):
            return seconds(value) == seconds(wanted) if condition.key == "when" else value == wanted
        case AnyOf(_, values):
            return value in values
        case Between():
            number = seconds(value) if condition.key == "when" else value
            return (
                (condition.above is None or number > condition.above)
                and (condition.least is None or number >= condition.least)
                and (condition.below is None or number < condition.below)
                and (condition.most is None or number <= condition.most)
            )
        case Says(_, said):
            return words(said) <= words(value)
        case Near(_, latitude, longitude, radius_m):
            return metres(value["lat"], value["lon"], latitude, longitude) <= radius_m
    raise AssertionError(condition)


def seconds(text: str) -> Fraction:
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return Fraction(since.days * 86_400 + since.seconds) + Fraction(since.microseconds, 1_000_000)


def words(text: str) -> set[str]:
    return {"".join(run) for is_word, run in groupby(text.lower(), str.isalnum) if is_word}


def metres(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    a, b = math.radians(lat_a), math.radians(lat_b)
    across = math.sin(math.radians(lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_M * math.asin(math.sqrt(math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * across))


# --- random galleries: few values, so that conditions are met, and few vectors, so that scores are equal

ROWS = np.eye(4, 6, dtype=np.float32)
QUERY = np.array([0.8, 0.5, 0.3, 0.1, 0.1, 0.0], np.float32)
QUERY /= np.linalg.norm(QUERY)

TITLES = ["red mug", "Red  Mug, large", "muguet", "Ärger über_12", "2026-01-31T12:00:00Z", "'", "ten 10"]
TAGS = ["red", "Red", "blue green", "2", "true", "ünï"]
NUMBERS = [0, 1, -1, 2, 7, 2**53, -(2**63)]
PRICES = [0.0, -0.0, 0.1, 0.5, 1.0, 2.0, -3.25, 1e300, 5e-324]
TIMES = [
    "2026-01-31T12:00:00Z", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.000001Z", "1969-12-31T23:59:59.5-00:30",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z",
]  # fmt: skip
PLACES = [
    (52.52, 13.405),
    (52.53, 13.41),
    (0.0, 0.0),
    (-33.86, 151.2),
    (89.9, 10.0),
    (89.9, -170.0),
    (0, 179.9),
    (0, -179.9),
]
RADII = [1.0, 2_500.0, 60_000.0, 1_000_000.0, 20_100_000.0]

EXAMPLE = {  # tells a gallery the type of every key
    "title": "", "tags": [TAGS[0]], "n": 0, "sizes": [1], "price": 0.5, "new": True,
    "when": TIMES[0], "at": {"lat": 0.0, "lon": 0.0},
}  # fmt: skip


def _some(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(values), st.lists(st.sampled_from(values), min_size=1, max_size=3))


payloads = st.fixed_dictionaries(
    {},
    optional={
        "title": st.sampled_from(TITLES),
        "tags": _some(TAGS),
        "n": st.sampled_from(NUMBERS),
        "sizes": _some(NUMBERS),
        "price": st.sampled_from(PRICES) | st.sampled_from([0, 1, 2]),
        "new": st.booleans(),
        "when": st.sampled_from(TIMES),
        "at": st.sampled_from(PLACES).map(lambda place: {"lat": place[0], "lon": place[1]}),
    },
)


@st.composite
def pictures(draw: st.DrawFn, most: int = 14) -> list[Point]:
    count = draw(st.integers(0, most))
    rows = draw(st.lists(st.integers(0, len(ROWS) - 1), min_size=count, max_size=count))
    return [Point(f"{i + 1:032x}", {NAME: ROWS[row]}, draw(payloads)) for i, row in enumerate(rows)]


def _choice(key: str, values: list[Any]) -> st.SearchStrategy[Condition]:
    some = st.lists(st.sampled_from(values), min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.sampled_from(values).map(lambda value: Equals(key, value)),
        some.map(lambda chosen: AnyOf(key, chosen)),
        some.map(lambda chosen: NoneOf(key, chosen)),
    )


@st.composite
def _between(draw: st.DrawFn, key: str, values: list[float]) -> Condition:
    bounds = draw(
        st.dictionaries(
            st.sampled_from(["above", "least", "below", "most"]), st.sampled_from(values), min_size=1, max_size=2
        )
    )
    return Between(key=key, **bounds)


_AROUND = [float(seconds(text)) for text in TIMES] + [0.5, -1800.5, 1e30, -1e30, 1769860800.0000004]
conditions: st.SearchStrategy[Condition] = st.one_of(
    _choice("title", [*TITLES, "mug"]),
    _choice("tags", [*TAGS, "green"]),
    _choice("n", [*NUMBERS, 3]),
    _choice("sizes", [*NUMBERS, 3]),
    _between("n", [-1, 0, 0.5, 1, 2, 1e30, -1e30]),
    _between("sizes", [-1, 0, 0.5, 1, 2, 7]),
    _between("price", [*PRICES, 1e308, 1e-300]),
    _between("when", _AROUND),
    st.sampled_from([*PRICES, 1, 2]).map(lambda value: Equals("price", value)),
    st.booleans().map(lambda value: Equals("new", value)),
    st.sampled_from(TIMES).map(lambda value: Equals("when", value)),
    st.sampled_from(["mug", "RED", "mug red", "mu", "ärger", "12", "über 12", "10 ten", "2026"]).map(
        lambda said: Says("title", said)
    ),
    st.sampled_from(["red", "green blue", "red blue", "ÜNÏ"]).map(lambda said: Says("tags", said)),
    st.tuples(st.sampled_from(PLACES), st.sampled_from(RADII)).map(lambda drawn: Near("at", *drawn[0], drawn[1])),
    st.sampled_from(list(EXAMPLE)).map(Missing),
    st.lists(st.integers(0, 16), min_size=1, max_size=5).map(lambda some: HasId(tuple(f"{i:032x}" for i in some))),
)


@st.composite
def _filter(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> Filter:
    some = st.lists(parts, max_size=3).map(tuple)
    any_of = draw(some)
    at_least = draw(st.integers(1, len(any_of))) if any_of else 1
    return Filter(
        all_of=draw(some), any_of=any_of, none_of=draw(st.lists(parts, max_size=2).map(tuple)), at_least=at_least
    )


filters = _filter(st.recursive(conditions, _filter, max_leaves=6))


@st.composite
def searches(draw: st.DrawFn) -> Search:
    return Search(
        vector=QUERY,
        name=NAME,
        where=draw(filters),
        top=draw(st.integers(1, 20)),
        skip=draw(st.sampled_from([0, 0, 1, 3, 30])),
        least_score=draw(st.sampled_from([None, None, -1.0, 0.2, 0.4, 0.9])),
        payload=draw(st.sampled_from([None, (), ("title",), ("tags", "at", "when")])),
        group_by=draw(st.sampled_from([None, None, "title", "n", "new"])),
        group_size=draw(st.integers(1, 3)),
        with_vectors=draw(st.booleans()),
        exact=draw(st.booleans()),
    )
