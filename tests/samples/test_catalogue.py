"""The catalogue: edits really edit, the split is about a fifth and touches nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from pocketlens_samples.catalogue import (
    ATTRIBUTES,
    Edit,
    Spec,
    apply,
    is_held_out,
    random_edits,
    random_spec,
)

MUG = Spec("mug", "red", "striped", "small", 2, "wooden table", False)


def test_there_are_69120_specifications():
    assert np.prod([len(values) for values in ATTRIBUTES.values()]) == 69_120


def test_the_payload_names_the_seven_attributes_in_order():
    assert list(MUG.payload().items()) == [
        ("category", "mug"), ("colour", "red"), ("pattern", "striped"), ("size", "small"),
        ("count", 2), ("background", "wooden table"), ("part", False),
    ]  # fmt: skip


def test_apply_changes_what_the_edits_say_and_nothing_else():
    edited = apply(MUG, (Edit("colour", "blue"), Edit("count", 3)))
    assert edited == replace(MUG, colour="blue", count=3)


@pytest.mark.parametrize("edit", [("colour", "beige"), ("weight", "heavy"), ("size", 2)])
def test_an_edit_to_an_unknown_value_is_refused(edit):
    with pytest.raises(ValueError, match=str(edit[1])):
        Edit(*edit)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_random_edits_are_distinct_and_each_changes_the_specification(count):
    rng = np.random.default_rng(3)
    for _ in range(200):
        spec = random_spec(rng, held_out=None)
        edits = random_edits(spec, count, rng)
        assert len({edit.attribute for edit in edits}) == count
        assert all(apply(spec, [edit]) != spec for edit in edits)


@pytest.mark.parametrize("held_out", [True, False])
def test_random_spec_keeps_to_its_side_of_the_split(held_out):
    rng = np.random.default_rng(4)
    assert all(is_held_out(random_spec(rng, held_out=held_out)) == held_out for _ in range(300))


def combinations_held_out() -> set[tuple[str, ...]]:
    names = ("category", "colour", "pattern")
    return {
        values
        for values in product(*(ATTRIBUTES[name] for name in names))
        if is_held_out(replace(MUG, **dict(zip(names, values, strict=True))))
    }


def test_about_a_fifth_of_the_combinations_is_held_out():
    assert 0.15 < len(combinations_held_out()) / (12 * 10 * 4) < 0.25


def test_every_value_is_seen_in_training():
    # Held out are combinations; a value that is never seen alone could not be recognised at all.
    held_out = combinations_held_out()
    for place, name, others in ((0, "category", 40), (1, "colour", 48), (2, "pattern", 120)):
        for value in ATTRIBUTES[name]:
            assert sum(1 for values in held_out if values[place] == value) < others * 0.5, value


def test_size_count_background_and_part_do_not_decide_the_split():
    rng = np.random.default_rng(5)
    for _ in range(100):
        spec = random_spec(rng, held_out=True)
        other = replace(spec, size="large", count=3, background="navy", part=not spec.part)
        assert is_held_out(other)
