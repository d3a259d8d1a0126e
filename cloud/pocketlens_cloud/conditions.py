"""From the conditions of a request to a filter, within bounds.

Owns every bound on a filter that came over the wire; whether its keys and types are the gallery's, the gallery says.
Called by service.py."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import final

from pocketlens_wire import limits
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.v1 import retrieval_pb2 as pb

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
from pocketlens_cloud.gallery.payload import Scalar, clip

_ID = re.compile(r"[0-9a-f]{32}")


def filter_of(flat: Sequence[pb.Condition], tree: pb.Filter) -> Filter:
    """What a request's `filter` and `where` say together. Raises BadQuery, naming the bound that does not hold."""
    reader = _Reader()
    _check_distinct(flat)
    simple = tuple(reader.condition(condition) for condition in flat)
    rest = reader.filter(tree, depth=1)
    return Filter(all_of=(*simple, *rest.all_of), any_of=rest.any_of, none_of=rest.none_of, at_least=rest.at_least)


def _check_distinct(flat: Sequence[pb.Condition]) -> None:
    named: set[str] = set()
    for condition in flat:
        if condition.key in named:
            raise BadQuery(f"filter key {clip(condition.key)} is named twice; all conditions must hold at once")
        if condition.key:
            named.add(condition.key)


@final
class _Reader:
    """Reads the conditions of one request and counts what they amount to."""

    def __init__(self) -> None:
        self._conditions = 0
        self._text_bytes = 0

    def filter(self, given: pb.Filter, *, depth: int) -> Filter:
        if depth > limits.MAX_FILTER_DEPTH:
            raise BadQuery(f"filters may lie {limits.MAX_FILTER_DEPTH} deep inside each other; these lie deeper")
        if given.at_least > max(1, len(given.any_of)):
            raise BadQuery(
                f"a filter asks for at least {given.at_least} of the {len(given.any_of)} clauses in its any_of"
            )
        return Filter(
            all_of=self._clauses(given.all_of, depth),
            any_of=self._clauses(given.any_of, depth),
            none_of=self._clauses(given.none_of, depth),
            at_least=given.at_least or 1,
        )

    def condition(self, given: pb.Condition) -> Condition:
        self._conditions += 1
        if self._conditions > limits.MAX_CONDITIONS:
            raise BadQuery(f"a filter may have {limits.MAX_CONDITIONS} conditions; this one has more")
        self._count(given.key)
        test = given.WhichOneof("test")
        if test == "has_id":
            return self._has_id(given)
        match test:
            case "equals":
                return Equals(given.key, self._value(given.key, given.equals))
            case "any_of":
                return AnyOf(given.key, self._values(given.key, given.any_of.values))
            case "none_of":
                return NoneOf(given.key, self._values(given.key, given.none_of.values))
            case "between":
                return _between(given.key, given.between)
            case "says":
                self._count(given.says)
                if not given.says.strip():
                    raise BadQuery(f"filter key {clip(given.key)}: `says` has no words")
                return Says(given.key, given.says)
            case "near":
                return _near(given.key, given.near)
            case "missing":
                return Missing(given.key)
            case _:
                raise BadQuery(f"filter key {clip(given.key)} has no value, and no test that this server knows")

    def _clauses(self, given: Iterable[pb.Clause], depth: int) -> "tuple[Condition | Filter, ...]":
        return tuple(self._clause(clause, depth) for clause in given)

    def _clause(self, clause: pb.Clause, depth: int) -> Condition | Filter:
        match clause.WhichOneof("kind"):
            case "condition":
                return self.condition(clause.condition)
            case "filter":
                inner = self.filter(clause.filter, depth=depth + 1)
                if not inner:
                    raise BadQuery("a filter inside another one is empty: leave it out, or give it a clause")
                return inner
            case _:
                raise BadQuery("a clause of the filter is neither a condition nor a filter that this server knows")

    def _has_id(self, given: pb.Condition) -> HasId:
        if given.key:
            raise BadQuery(f"a condition on ids stands under no key; {clip(given.key)} came")
        ids = tuple(given.has_id.ids)
        _check_count("ids", len(ids))
        for each in ids:
            self._count(each)
            if not _ID.fullmatch(each):
                raise BadQuery(f"picture id {clip(each)} is not 32 hex digits, as in a hit's id")
        return HasId(ids)

    def _value(self, key: str, given: pb.Value) -> Scalar:
        kind = given.WhichOneof("kind")
        if kind is None:
            raise BadQuery(f"filter key {clip(key)} has no value")
        if kind in ("several", "place"):
            raise BadQuery(f"filter key {clip(key)}: a value to be equal to is one text, number or flag")
        value: Scalar = getattr(given, kind)
        if isinstance(value, str):
            self._count(value)
        return value

    def _values(self, key: str, given: Sequence[pb.Value]) -> tuple[str, ...] | tuple[int, ...]:
        _check_count(f"values under filter key {clip(key)}", len(given))
        kinds = {value.WhichOneof("kind") for value in given}
        if kinds == {"text"}:
            for value in given:
                self._count(value.text)
            return tuple(value.text for value in given)
        if kinds == {"integer"}:
            return tuple(value.integer for value in given)
        raise BadQuery(f"filter key {clip(key)}: a list holds texts alone or integers alone")

    def _count(self, text: str) -> None:
        self._text_bytes += len(text.encode())
        if self._text_bytes > limits.MAX_FILTER_BYTES:
            raise BadQuery(
                f"the texts of a filter may have {limits.MAX_FILTER_BYTES:,} bytes of UTF-8; these have more"
            )


def _check_count(what: str, count: int) -> None:
    if not 1 <= count <= limits.MAX_VALUES:
        raise BadQuery(f"{what}: a list has 1 to {limits.MAX_VALUES}; {count} came")


def _between(key: str, given: pb.Between) -> Between:
    bounds = {name: getattr(given, name) for name in ("above", "least", "below", "most") if given.HasField(name)}
    if not bounds:
        raise BadQuery(f"filter key {clip(key)}: `between` needs a bound")
    for name, bound in bounds.items():
        if not math.isfinite(bound):
            raise BadQuery(f"filter key {clip(key)}: the bound `{name}` must be finite; {bound} came")
    return Between(key=key, **bounds)


def _near(key: str, given: pb.Near) -> Near:
    for name, value, most in (("latitude", given.latitude, 90.0), ("longitude", given.longitude, 180.0)):
        if not -most <= value <= most:
            raise BadQuery(f"filter key {clip(key)}: {name} is -{most:g} to {most:g} degrees; {value} came")
    if not 0 < given.radius_m <= limits.MAX_RADIUS_M:
        raise BadQuery(
            f"filter key {clip(key)}: a radius is above 0 and at most {limits.MAX_RADIUS_M:,.0f} m; "
            f"{given.radius_m} came"
        )
    return Near(key, given.latitude, given.longitude, given.radius_m)
