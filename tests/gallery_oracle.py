"""What a search of a gallery must give, in plain Python over all pictures, and random pictures and searches for it.

Knows no engine: tests/cloud/test_galleries.py holds each one against it."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import combinations, groupby, product
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


def pictures(count: int, seed: int) -> list[Point]:
    """Each key is there half of the time."""
    pick = random.Random(seed)
    values: dict[str, Callable[[], Any]] = {
        "title": lambda: pick.choice(TITLES),
        "tags": lambda: pick.choices(TAGS, k=pick.randint(1, 3)) if pick.random() < 0.6 else pick.choice(TAGS),
        "n": lambda: pick.choice(NUMBERS),
        "sizes": lambda: pick.choices(NUMBERS, k=pick.randint(1, 3)) if pick.random() < 0.6 else pick.choice(NUMBERS),
        "price": lambda: pick.choice([*PRICES, 1, 2]),
        "new": lambda: pick.random() < 0.5,
        "when": lambda: pick.choice(TIMES),
        "at": lambda: dict(zip(("lat", "lon"), pick.choice(PLACES), strict=True)),
    }

    def one() -> dict[str, Any]:
        return {key: value() for key, value in values.items() if pick.random() < 0.5}

    return [Point(f"{i + 1:032x}", {NAME: ROWS[pick.randrange(len(ROWS))]}, one()) for i in range(count)]


BOUNDS = {
    "n": [-1, 0, 0.5, 1, 2, 1e30, -1e30],
    "sizes": [-1, 0, 0.5, 1, 2, 7],
    "price": [*PRICES, 1e308, 1e-300],
    "when": [*(float(seconds(text)) for text in TIMES), 0.5, -1800.5, 1e30, -1e30, 1769860800.0000004],
}
SAID = {
    "title": ["mug", "RED", "mug red", "mu", "ärger", "12", "über 12", "10 ten", "2026", "Large, MUG"],
    "tags": ["red", "green blue", "red blue", "ÜNÏ", "2"],
}


def _every_condition() -> Iterator[Condition]:
    choices = {"title": [*TITLES, "mug"], "tags": [*TAGS, "green"], "n": [*NUMBERS, 3], "sizes": [*NUMBERS, 3]}
    alone = {"price": [*PRICES, 1, 2], "new": [True, False], "when": TIMES}
    for key, values in (choices | alone).items():
        yield from (Equals(key, value) for value in values)
    for key, values in choices.items():
        for some in [(value,) for value in values] + list(combinations(values, 2)):
            yield from (AnyOf(key, some), NoneOf(key, some))
    for key, values in BOUNDS.items():
        for low, high in product((None, *values), repeat=2):
            if low is not None or high is not None:
                yield from (Between(key=key, above=low, most=high), Between(key=key, least=low, below=high))
    yield from (Says(key, said) for key, some in SAID.items() for said in some)
    yield from (Near("at", *place, radius) for place in PLACES for radius in RADII)
    yield from (Missing(key) for key in EXAMPLE)
    yield from (HasId(ids) for ids in ((f"{1:032x}",), (f"{2:032x}", f"{3:032x}", f"{99:032x}"), (f"{99:032x}",)))


CONDITIONS = list(_every_condition())


@st.composite
def _filter(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> Filter:
    some = st.lists(parts, max_size=3).map(tuple)
    any_of = draw(some)
    at_least = draw(st.integers(1, len(any_of))) if any_of else 1
    return Filter(all_of=draw(some), any_of=any_of, none_of=draw(some), at_least=at_least)


filters = _filter(st.recursive(st.sampled_from(CONDITIONS), _filter, max_leaves=5))


@st.composite
def searches(draw: st.DrawFn) -> Search:
    return Search(
        vector=QUERY,
        name=NAME,
        where=draw(filters),
        top=draw(st.sampled_from([60, 3, 17])),
        skip=draw(st.sampled_from([0, 0, 1, 15])),
        least_score=draw(st.sampled_from([None, None, 0.2, 0.4])),
        payload=draw(st.sampled_from([None, (), ("title",), ("tags", "at", "when")])),
        group_by=draw(st.sampled_from([None, None, "title", "n", "new"])),
        group_size=draw(st.integers(1, 3)),
        with_vectors=draw(st.booleans()),
        exact=draw(st.booleans()),
    )
