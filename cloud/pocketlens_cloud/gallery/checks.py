"""Whether what is asked fits what the gallery holds: keys, types, bounds. Free of any engine.

Called by every gallery before its engine sees a search, and by service.py before a request waits in a queue."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
from pocketlens_wire.errors import BadQuery, GalleryError

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
from pocketlens_cloud.gallery.payload import Kind, clip, is_degrees, kind_of

MAX_DEPTH = 32  # filters within filters; far beyond what a request may have, so that no caller can exhaust the stack
MAX_PARTS = 10_000  # conditions and filters in all; a filter that holds itself many times over is refused, not walked
ID = re.compile(r"[0-9a-f]{32}")
GROUPABLE: tuple[Kind, ...] = ("text", "integer", "flag")
_ASKED_AS: dict[Kind, tuple[Kind, ...]] = {  # types of the values that a key may be compared with
    "text": ("text", "time"),
    "texts": ("text", "time"),
    "integer": ("integer",),
    "integers": ("integer",),
    "number": ("number", "integer"),
    "flag": ("flag",),
    "time": ("time",),
    "place": (),
}


def check_search(asked: Search, kinds: Mapping[str, Kind], vectors: Sequence[str]) -> None:
    """Raise BadQuery for an unknown vector or key, a number out of range, or a filter that `check_filter` refuses."""
    if asked.name not in vectors:
        raise BadQuery(f"this gallery holds no vector {clip(asked.name)}; it holds {', '.join(vectors)}")
    if asked.top < 1 or asked.skip < 0 or asked.group_size < 1:
        raise BadQuery(
            f"top and group_size must be 1 or more and skip 0 or more; {asked.top}, {asked.group_size} "
            f"and {asked.skip} came"
        )
    if asked.least_score is not None and not math.isfinite(asked.least_score):
        raise BadQuery(f"least_score must be a finite number; {asked.least_score} came")
    for key in asked.payload or ():
        _kind(key, kinds, "payload")
    if asked.group_by is not None and (kind := _kind(asked.group_by, kinds, "group")) not in GROUPABLE:
        raise BadQuery(f"group key `{asked.group_by}` holds {kind}; groups are made by {_listed(GROUPABLE)}")
    check_filter(asked.where, kinds)


def check_filter(where: Filter, kinds: Mapping[str, Kind]) -> None:
    """Raise BadQuery if `where` names a key not in `kinds`, asks of it what its type does not allow, or is too deep.

    An integer may be asked of a number key."""
    waiting: list[tuple[Condition | Filter, int]] = [(where, 1)]
    parts = 0
    while waiting:
        part, depth = waiting.pop()
        parts += 1
        if parts > MAX_PARTS:
            raise BadQuery(f"a filter may have {MAX_PARTS} parts; this one has more")
        if not isinstance(part, Filter):
            _check_condition(part, kinds)
            continue
        if depth > MAX_DEPTH:
            raise BadQuery(f"filters may lie {MAX_DEPTH} deep in one another; this one lies deeper")
        if part.any_of and not 1 <= part.at_least <= len(part.any_of):
            raise BadQuery(f"at_least must be 1 to the {len(part.any_of)} of any_of; {part.at_least} came")
        waiting += [(inner, depth + 1) for inner in reversed((*part.all_of, *part.any_of, *part.none_of))]


def check_vectors(point: Point, names: Sequence[str], dim: int) -> None:
    """Raise GalleryError for a vector of `names` that is missing, of another shape than (dim,), zero or not finite."""
    for name in names:
        vector = point.vectors.get(name)
        if vector is None or vector.shape != (dim,):
            came = "nothing" if vector is None else f"shape {vector.shape}"
            raise GalleryError(f"picture {point.id}: vector `{name}` must have shape ({dim},); {came} came")
        # The engine itself stores NaN without a word.
        if not np.isfinite(vector).all() or not vector.any():
            raise GalleryError(f"picture {point.id}: vector `{name}` is zero or not finite; the model is broken")


def _check_condition(one: Condition, kinds: Mapping[str, Kind]) -> None:
    match one:
        case HasId(ids):
            if not ids:
                raise BadQuery("a condition on ids names none")
            for point_id in ids:
                if not ID.fullmatch(point_id):
                    raise BadQuery(f"a picture's id is 32 hex digits; {clip(point_id)} came")
        case Missing(key):
            _kind(key, kinds)
        case Equals(key, value):
            _check_value(key, value, _kind(key, kinds))
        case AnyOf(key, values) | NoneOf(key, values):
            _check_values(key, values, _kind(key, kinds))
        case Between(key=key):
            _holds(key, _kind(key, kinds), ("integer", "integers", "number", "time"), "a range")
            _check_bounds(key, {"above": one.above, "least": one.least, "below": one.below, "most": one.most})
        case Says(key, words):
            _holds(key, _kind(key, kinds), ("text", "texts"), "words")
            if not any(char.isalnum() for char in words):
                raise BadQuery(f"filter key `{key}`: {clip(repr(words))} holds no word to look for")
        case Near(key, latitude, longitude, radius_m):
            _holds(key, _kind(key, kinds), ("place",), "a circle")
            if not is_degrees(latitude, longitude):
                raise BadQuery(
                    f"filter key `{key}`: a latitude is -90 to 90 and a longitude -180 to 180; "
                    f"{latitude} and {longitude} came"
                )
            if not 0 < radius_m < math.inf:
                raise BadQuery(f"filter key `{key}`: a radius is a finite number of metres above 0; {radius_m} came")
        case _:
            assert_never(one)


def _kind(key: str, kinds: Mapping[str, Kind], what: str = "filter") -> Kind:
    if key not in kinds:
        known = ", ".join(f"`{known}`" for known in sorted(kinds)) or "none"
        raise BadQuery(f"{what} key {clip(key)} is unknown; this gallery knows {known}")
    return kinds[key]


def _check_value(key: str, value: object, kind: Kind) -> None:
    came = kind_of(value)
    if came not in _ASKED_AS[kind]:
        raise BadQuery(f"filter key `{key}` holds {kind}; {came or 'something else'} {clip(repr(value))} came")


def _check_values(key: str, values: Sequence[Any], kind: Kind) -> None:
    _holds(key, kind, ("text", "texts", "integer", "integers"), "a choice of values")
    if not values:
        raise BadQuery(f"filter key `{key}`: a choice of values has none")
    for value in values:
        _check_value(key, value, kind)


def _check_bounds(key: str, bounds: Mapping[str, float | None]) -> None:
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given:
        raise BadQuery(f"filter key `{key}`: a range needs a bound: {_listed(tuple(bounds))}")
    for name, bound in given.items():
        if kind_of(bound) not in ("integer", "number"):
            raise BadQuery(f"filter key `{key}`: {name} must be a finite number; {clip(repr(bound))} came")


def _holds(key: str, kind: Kind, wanted: Sequence[Kind], came: str) -> None:
    if kind not in wanted:
        raise BadQuery(f"filter key `{key}` holds {kind}; {came} came, which can be asked of {_listed(wanted)}")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
