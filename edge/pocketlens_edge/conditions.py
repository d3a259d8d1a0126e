"""What payload a hit must have: typed records, their wire form, and the filter language of the command line.

Owns the values of payload too, in Python and on the wire. What a gallery makes of a condition, and how many it takes,
is the server's. Called by questions.py, answers.py and the command line; knows no network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from pocketlens_wire.errors import BadQuery
from pocketlens_wire.v1 import retrieval_pb2 as pb

Scalar: TypeAlias = str | int | float | bool  # one payload value
Value: TypeAlias = Scalar | list[str] | list[int] | dict[str, float]  # what a hit may hold; a place has `lat`, `lon`

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?(Z|[+-]\d\d:\d\d)?")
_INT64 = range(-(2**63), 2**63)
_ASKED = re.compile(r"\s*([^\s<>=!~@][^<>=!~@]*?)\s*(!=|<=|>=|=|<|>|~|@)\s*(.*\S)\s*", re.DOTALL)
_MISSING = re.compile(r"\s*!\s*([^\s<>=!~@][^<>=!~@]*?)\s*")
_CHOICES = re.compile(r"""(?:"[^"]*"|'[^']*'|[^|])+""")
_GRAMMAR = (
    "nor another condition: key!=a|b, key=a|b, key<10, key>=10, key=10..50, key~words, "
    "key@LATITUDE,LONGITUDE,METRES, !key"
)


@dataclass(frozen=True)
class Equals:
    """The value under `key` is `value`."""

    key: str
    value: Scalar


@dataclass(frozen=True)
class AnyOf:
    """The value under `key` is one of `values`, all texts or all integers."""

    key: str
    values: Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class NoneOf:
    """There is a value under `key`, and it is none of `values`, all texts or all integers."""

    key: str
    values: Sequence[str] | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Between:
    """The number under `key` keeps the bounds that are given; of a time: seconds since 1970-01-01 UTC."""

    key: str
    above: float | None = None  # exclusive
    least: float | None = None  # inclusive
    below: float | None = None  # exclusive
    most: float | None = None  # inclusive


@dataclass(frozen=True)
class Says:
    """The text under `key` has all of the words of `words`, in any order and case."""

    key: str
    words: str


@dataclass(frozen=True)
class Near:
    """The place under `key` lies within `radius_m` metres of a point in degrees."""

    key: str
    latitude: float
    longitude: float
    radius_m: float


@dataclass(frozen=True)
class Missing:
    """There is no value under `key`."""

    key: str


@dataclass(frozen=True)
class HasId:
    """The picture is one of these, ids as hits have them."""

    ids: Sequence[str]


Condition: TypeAlias = Equals | AnyOf | NoneOf | Between | Says | Near | Missing | HasId


@dataclass(frozen=True, kw_only=True)
class Filter:
    """All of `all_of` hold, at least `at_least` of `any_of` (if there are any), none of `none_of`."""

    all_of: Sequence[Condition | Filter] = ()
    any_of: Sequence[Condition | Filter] = ()
    none_of: Sequence[Condition | Filter] = ()
    at_least: int = 1


Where: TypeAlias = Mapping[str, Scalar] | Condition | Filter  # a mapping: the value under each key


# --- to the wire


def on_the_wire(where: Where) -> tuple[list[pb.Condition], pb.Filter]:
    """`where` as a request's two fields: plain equalities apart, since older servers know only those.

    Raises BadQuery for what the wire cannot hold."""
    if isinstance(where, Mapping):
        where = Filter(all_of=[Equals(key, value) for key, value in where.items()])
    elif not isinstance(where, Filter):
        where = Filter(all_of=[where])
    flat: dict[str, pb.Condition] = {}
    rest: list[Condition | Filter] = []
    for part in where.all_of:
        if isinstance(part, Equals) and part.key not in flat:
            flat[part.key] = _condition(part)
        else:
            rest.append(part)
    further = Filter(all_of=rest, any_of=where.any_of, none_of=where.none_of, at_least=where.at_least)
    return list(flat.values()), _filter(further)


def _filter(given: Filter) -> pb.Filter:
    filled = pb.Filter(
        all_of=map(_clause, given.all_of), any_of=map(_clause, given.any_of), none_of=map(_clause, given.none_of)
    )
    if given.any_of and given.at_least != 1:
        if not 1 <= given.at_least <= len(given.any_of):
            raise BadQuery(f"at_least is {given.at_least}; it must be 1 to the {len(given.any_of)} of any_of.")
        filled.at_least = given.at_least
    return filled


def _clause(given: Condition | Filter) -> pb.Clause:
    if isinstance(given, Filter):
        return pb.Clause(filter=_filter(given))
    return pb.Clause(condition=_condition(given))


def _condition(given: Condition) -> pb.Condition:
    if isinstance(given, HasId):
        return pb.Condition(has_id=pb.Ids(ids=[unicode(each, "an id") for each in given.ids]))
    key = unicode(given.key, "a filter key")
    match given:
        case Equals():
            return pb.Condition(key=key, equals=to_value(key, given.value))
        case AnyOf():
            return pb.Condition(key=key, any_of=_values(key, given.values))
        case NoneOf():
            return pb.Condition(key=key, none_of=_values(key, given.values))
        case Between():
            return pb.Condition(key=key, between=_between(given))
        case Says():
            return pb.Condition(key=key, says=unicode(given.words, f"filter `{key}`"))
        case Near():
            place = pb.Near(latitude=given.latitude, longitude=given.longitude, radius_m=given.radius_m)
            return pb.Condition(key=key, near=place)
        case Missing():
            return pb.Condition(key=key, missing=pb.Missing())


def _values(key: str, values: Sequence[str] | Sequence[int]) -> pb.Values:
    if isinstance(values, str):
        raise BadQuery(f"filter `{key}`: values are a list of texts, not one text.")
    return pb.Values(values=[to_value(key, value) for value in values])


def _between(given: Between) -> pb.Between:
    bounds = {name: getattr(given, name) for name in ("above", "least", "below", "most")}
    held = {name: float(bound) for name, bound in bounds.items() if bound is not None}
    if not held or not all(map(math.isfinite, held.values())):
        raise BadQuery(f"filter `{given.key}`: a range needs at least one bound, and finite ones.")
    return pb.Between(**held)


# --- values


def to_value(key: str, value: Scalar) -> pb.Value:
    """The wire form of one filter value. Raises BadQuery, naming `key`, for a number the wire cannot hold."""
    match value:
        case bool():  # before int: True is an int too
            return pb.Value(flag=value)
        case int() if value in _INT64:
            return pb.Value(integer=value)
        case float() if math.isfinite(value):
            return pb.Value(number=value)
        case str():
            return pb.Value(text=unicode(value, f"filter `{key}`"))
        case _:
            raise BadQuery(f"filter `{key}` is {value!r}; a value is text, true/false or a finite number of 64 bits.")


def from_value(value: pb.Value) -> Value:
    """The Python form of one payload value; one of a kind this version does not know is empty text."""
    match value.WhichOneof("kind"):
        case "several":
            each = value.several.values
            texts = [one.text for one in each if one.WhichOneof("kind") == "text"]
            return texts if len(texts) == len(each) else [one.integer for one in each]
        case "place":
            return {"lat": value.place.latitude, "lon": value.place.longitude}
        case "flag":
            return value.flag
        case "integer":
            return value.integer
        case "number":
            return value.number
        case _:
            return value.text


def unicode(text: str, what: str) -> str:
    """`text`, if it is Unicode: a terminal with another encoding hands over lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadQuery(f"{what} cannot be read as Unicode text; check the terminal's encoding.") from None
    return text


# --- the language of the command line


def parse_filter(texts: Sequence[str]) -> Filter:
    """What each text says must hold:

        colour=red        the value is this one         colour!=red      there is one, and it is another
        kind=shoe|boot    it is one of these            kind!=shoe|boot  there is one, and it is none of these
        price<50          the number is below; also <=, >, >=            price=10..50  within, both ends included
        title~red mug     the text has these words      !discount        there is no value
        place@48.2,16.4,5000   the place lies within so many metres of latitude, longitude

    Values are typed by their look: whole number, number, true/false, else text; quotes force text, and make | and ..
    ordinary. A bound may be a date, as in 2026-01-31 or 2026-01-31T18:00Z, UTC unless it says otherwise.
    Raises BadQuery for what says nothing of this, and for two values of one key."""
    parts = [_parsed(text) for text in texts]
    keys = [part.key for part in parts if isinstance(part, Equals)]
    for key in keys:
        if keys.count(key) > 1:
            raise BadQuery(f"filter key `{key}` is given twice; a picture has one value of each.")
    return Filter(all_of=parts)


def as_mapping(where: Filter) -> dict[str, Scalar] | None:
    """The filter as values by key; None if it says more than that."""
    equal = [part for part in where.all_of if isinstance(part, Equals)]
    if len(equal) < len(where.all_of) or where.any_of or where.none_of:
        return None
    return {part.key: part.value for part in equal}


def _parsed(text: str) -> Condition | Filter:
    if alone := _MISSING.fullmatch(text):
        return Missing(alone[1])
    if not (asked := _ASKED.fullmatch(text)):
        raise BadQuery(f"filter `{text}` is not key=value, as in colour=red, {_GRAMMAR}.")
    key, sign, value = asked.groups()
    match sign:
        case "=":
            return _range(key, value) or _one_of(key, _choices(value))
        case "!=":
            return _none_of(key, _choices(value))
        case "~":
            return Says(key, _unquoted(value))
        case "@":
            return _place(text, key, value)
        case _:
            bound = _bound(value)
            if bound is None:
                raise BadQuery(f"filter `{text}` compares with `{value}`, which is neither a number nor a date.")
            return Between(key=key, **{{"<": "below", "<=": "most", ">": "above", ">=": "least"}[sign]: bound})


def _choices(value: str) -> list[Scalar]:
    return [_typed(choice.strip()) for choice in _CHOICES.findall(value) if choice.strip()]


def _one_of(key: str, choices: Sequence[Scalar]) -> Condition | Filter:
    if len(choices) == 1:
        return Equals(key, choices[0])
    listed = _listed(choices)
    return AnyOf(key, listed) if listed else Filter(any_of=[Equals(key, choice) for choice in choices])


def _none_of(key: str, choices: Sequence[Scalar]) -> Condition | Filter:
    listed = _listed(choices)
    return NoneOf(key, listed) if listed else Filter(none_of=[Missing(key), *(Equals(key, each) for each in choices)])


def _listed(choices: Sequence[Scalar]) -> list[str] | list[int] | None:
    """The choices as a list the wire has a condition for; None for numbers and flags."""
    texts = [choice for choice in choices if isinstance(choice, str)]
    integers = [choice for choice in choices if isinstance(choice, int) and not isinstance(choice, bool)]
    return next((kind for kind in (texts, integers) if len(kind) == len(choices)), None)


def _range(key: str, value: str) -> Between | None:
    """`10..50`, `10..` or `..50`; None if it is no range."""
    least, dots, most = value.partition("..")
    low, high = _bound(least.strip()), _bound(most.strip())
    bad = (least.strip() and low is None) or (most.strip() and high is None)
    if not dots or bad or (low is None and high is None):
        return None
    return Between(key=key, least=low, most=high)


def _bound(text: str) -> float | None:
    if _INTEGER.fullmatch(text) or _NUMBER.fullmatch(text):
        return float(text)
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _place(text: str, key: str, value: str) -> Near:
    numbers = list(_numbers(value))
    if len(numbers) != 3:
        raise BadQuery(f"filter `{text}` is not key@LATITUDE,LONGITUDE,METRES, as in place@48.2,16.4,5000.")
    return Near(key, *numbers)


def _numbers(value: str) -> Iterator[float]:
    for part in map(str.strip, value.split(",")):
        if not (_INTEGER.fullmatch(part) or _NUMBER.fullmatch(part)):
            return
        yield float(part)


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _typed(value: str) -> Scalar:
    if (text := _unquoted(value)) != value:
        return text
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if _INTEGER.fullmatch(value):
        return int(value)
    if _NUMBER.fullmatch(value):
        return float(value)
    return value
