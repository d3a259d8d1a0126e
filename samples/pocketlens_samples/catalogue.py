"""Owns what can be in a sample picture: the seven attributes, their edits, the held-out split.

A specification says everything a caption may say about a picture. Everything else in the picture
(position, tilt, light ...) is nuisance and follows from a seed, in draw.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from numpy.random import Generator

SIDE = 96  # pixels; at 64 small objects in threes could not be read

Value = str | int | bool

ATTRIBUTES: dict[str, tuple[Value, ...]] = {
    "category": (
        "mug", "lamp", "chair", "bottle", "shoe", "bag",
        "hat", "clock", "vase", "book", "shirt", "umbrella",
    ),
    "colour": (
        "red", "orange", "yellow", "green", "blue",
        "purple", "pink", "brown", "black", "white",
    ),
    "pattern": ("plain", "striped", "dotted", "checked"),
    "size": ("small", "medium", "large"),
    "count": (1, 2, 3),
    "background": (
        "white", "grey", "sky blue", "mint", "peach", "navy", "wooden table", "grass",
    ),
    "part": (False, True),
}  # fmt: skip

HELD_OUT_ONE_IN = 5  # of the (category, colour, pattern) combinations


@dataclass(frozen=True, order=True)
class Spec:
    """What one picture shows. `part` is the one detail its category may have (a mug's handle)."""

    category: str
    colour: str
    pattern: str
    size: str
    count: int
    background: str
    part: bool

    def payload(self) -> dict[str, Value]:
        """The seven attributes by name, ready for JSON."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


@dataclass(frozen=True)
class Edit:
    """Set one attribute to a new value."""

    attribute: str
    value: Value

    def __post_init__(self) -> None:
        if self.value not in ATTRIBUTES.get(self.attribute, ()):
            raise ValueError(
                f"no edit sets {self.attribute!r} to {self.value!r}; legal values are in catalogue.ATTRIBUTES"
            )


def apply(spec: Spec, edits: Iterable[Edit]) -> Spec:
    """The specification after the edits."""
    return replace(spec, **{edit.attribute: edit.value for edit in edits})


@cache
def _combination_is_held_out(category: str, colour: str, pattern: str) -> bool:
    # Not Python's hash: it differs from process to process.
    digest = hashlib.sha256(f"{category}/{colour}/{pattern}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def is_held_out(spec: Spec) -> bool:
    """Whether no training picture may show this (category, colour, pattern) combination."""
    return _combination_is_held_out(spec.category, spec.colour, spec.pattern)


def random_spec(rng: Generator, *, held_out: bool | None) -> Spec:
    """A uniform draw from the held-out part, from the rest, or (None) from everything."""
    while True:
        spec = Spec(**{name: _pick(values, rng) for name, values in ATTRIBUTES.items()})  # type: ignore[arg-type]
        if held_out is None or is_held_out(spec) == held_out:
            return spec


def random_edits(spec: Spec, count: int, rng: Generator) -> tuple[Edit, ...]:
    """Edits of `count` distinct attributes, each of which really changes the specification."""
    names = list(ATTRIBUTES)
    chosen = rng.choice(len(names), size=count, replace=False)
    return tuple(Edit(names[i], other_value(spec, names[i], rng)) for i in chosen)


def other_value(spec: Spec, attribute: str, rng: Generator) -> Value:
    """A value of the attribute that the specification does not have."""
    return _pick([v for v in ATTRIBUTES[attribute] if v != getattr(spec, attribute)], rng)


def _pick(values: Sequence[Value], rng: Generator) -> Value:
    return values[int(rng.integers(len(values)))]
