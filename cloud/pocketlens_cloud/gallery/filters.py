"""What a search may ask of payload, free of any engine and of the wire.

A filter is a tree of conditions; each gallery translates it for its engine. Bounds are checked where requests come in
(service.py), keys and types against what the gallery holds (checks.py)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pocketlens_cloud.gallery.payload import Scalar


@dataclass(frozen=True)
class Equals:
    """The value under `key` is `value`."""

    key: str
    value: Scalar


@dataclass(frozen=True)
class AnyOf:
    """The value under `key` is one of `values`, all texts or all integers."""

    key: str
    values: tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class NoneOf:
    """There is a value under `key`, and it is none of `values`."""

    key: str
    values: tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Between:
    """The number under `key` keeps the bounds that are given; for a time: seconds since 1970-01-01 UTC."""

    key: str
    above: float | None = None  # exclusive
    least: float | None = None  # inclusive
    below: float | None = None  # exclusive
    most: float | None = None  # inclusive

    def of_integers(self) -> "Between | None":
        """The same among 64-bit integers: every bound a whole number in their range; None if there is no such integer.

        Engines cut a bound's fraction off, or cut the bound to the range and then leave the last integer out."""
        above = None if self.above is None else math.floor(self.above)
        least = None if self.least is None else math.ceil(self.least)
        below = None if self.below is None else math.ceil(self.below)
        most = None if self.most is None else math.floor(self.most)
        first = max(-(2**63) if above is None else above + 1, -(2**63) if least is None else least)
        last = min(2**63 - 1 if below is None else below - 1, 2**63 - 1 if most is None else most)
        if first > min(last, 2**63 - 1) or last < -(2**63):
            return None  # between the bounds, or in the range of integers, there is none
        return Between(
            key=self.key,
            above=None if above is None or above < -(2**63) else float(above),
            least=None if least is None or least <= -(2**63) else float(least),
            below=None if below is None or below >= 2**63 else float(below),
            most=None if most is None or most >= 2**63 - 1 else float(most),
        )


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
    """The picture is one of these, 32 hex digits each."""

    ids: tuple[str, ...]


Condition: TypeAlias = Equals | AnyOf | NoneOf | Between | Says | Near | Missing | HasId


@dataclass(frozen=True, kw_only=True)
class Filter:
    """All of `all_of` hold, at least `at_least` of `any_of` (if there are any), none of `none_of`."""

    all_of: "tuple[Condition | Filter, ...]" = ()
    any_of: "tuple[Condition | Filter, ...]" = ()
    none_of: "tuple[Condition | Filter, ...]" = ()
    at_least: int = 1

    def __bool__(self) -> bool:
        """False for the filter that lets every picture pass."""
        return bool(self.all_of or self.any_of or self.none_of)


EVERYTHING = Filter()


def carrying(values: Mapping[str, Scalar]) -> Filter:
    """Every key has its value."""
    return Filter(all_of=tuple(Equals(key, value) for key, value in values.items()))
