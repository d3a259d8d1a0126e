"""Captions and phrases, read back by a reader that shares no table with the writer."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from pocketlens_samples import wording
from pocketlens_samples.catalogue import (
    ATTRIBUTES,
    Edit,
    Spec,
    Value,
    other_value,
    random_edits,
    random_spec,
)
from pocketlens_samples.language import WORD, caption, edit_phrase, vocabulary
from pocketlens_samples.queries import composed_set, training_triplets

PARTS = (
    "handles?|fringes?|fringed shade|arms|armrests|caps?(?: on)?|straps?|laces|shoelaces|feathers?"
    "|bells(?: on top)?|flowers(?: in it| in them)?|bookmarks?"
)

# Read in this order; what was read is taken out, so that "a white wall" is no white mug.
READER: tuple[tuple[str, Value, str], ...] = (
    *(
        ("background", name, rf"(?:on|against) (?:a )?{name} (?:background|wall|ground)")
        for name in ("white", "grey", "sky blue", "mint", "peach", "navy")
    ),
    ("background", "wooden table", r"on (?:a wooden table|a table|wood)\b"),
    ("background", "grass", r"on grass|on the lawn|in a garden"),
    ("part", False, rf"(?:without|with no) (?:a |the )?(?:{PARTS})\b"),
    ("part", False, r"with short sleeves|(?:that (?:is|are) )?closed|folded up"),
    ("part", True, rf"with (?:a )?(?:{PARTS})\b"),
    ("part", True, r"with long sleeves|(?:that (?:is|are) )?open\b|opened up"),
    ("pattern", "plain", r"plain|unpatterned|with no pattern|without a pattern"),
    ("pattern", "striped", r"striped|stripy|stripes"),
    ("pattern", "dotted", r"dotted|dots|spotted"),
    ("pattern", "checked", r"checked|checks|chequered"),
    ("colour", "purple", r"purple|violet"),
    *(("colour", name, rf"\b{name}\b") for name in ATTRIBUTES["colour"] if name != "purple"),
    ("size", "small", r"small|little|tiny"),
    ("size", "medium", r"medium"),
    ("size", "large", r"large|big"),
    ("count", 3, r"three|trio"),
    ("count", 2, r"two|pair"),
    ("count", 1, r"(?:just|only) one\b|single|(?:^|, )one\b"),
    *(("category", str(name), rf"\b{name}s?\b") for name in ATTRIBUTES["category"]),
)


def read(text: str) -> dict[str, set[Value]]:
    """The values a text names, by attribute."""
    found: dict[str, set[Value]] = {}
    for attribute, value, expression in READER:
        text, times = re.subn(expression, "#", text)
        if times:
            found.setdefault(attribute, set()).add(value)
    return found


def only(values: dict[str, Value]) -> dict[str, set[Value]]:
    return {name: {value} for name, value in values.items()}


def test_a_full_caption_names_all_seven_attributes_and_no_other_value():
    rng = np.random.default_rng(1)
    for _ in range(3000):
        spec = random_spec(rng, held_out=None)
        text = caption(spec, rng)
        assert read(text) == only(spec.payload()), text


def test_a_partial_caption_keeps_the_category_drops_something_and_says_nothing_wrong():
    rng = np.random.default_rng(2)
    sizes = set()
    for _ in range(3000):
        spec = random_spec(rng, held_out=None)
        text = caption(spec, rng, partial=True)
        said = read(text)
        assert said["category"] == {spec.category}, text
        assert said.items() <= only(spec.payload()).items(), text
        assert not re.search(r"  |,,| ,|^,|,$|\b(?:in|and)(?:,|$)|(?:^|, )and\b", text), text
        sizes.add(len(said))
    assert sizes == {1, 2, 3, 4, 5, 6}


def test_number_and_article_agree():
    rng = np.random.default_rng(3)
    umbrella = Spec("umbrella", "orange", "plain", "large", 1, "grass", True)
    to_umbrella = (Edit("category", "umbrella"),)
    for _ in range(200):
        assert "umbrellas" not in caption(umbrella, rng)
        assert "umbrellas" in caption(replace(umbrella, count=3), rng)
        one = replace(umbrella, category="mug")
        assert "an umbrella" in edit_phrase(one, to_umbrella, rng)
        assert "umbrellas" in edit_phrase(replace(one, count=2), to_umbrella, rng)


@pytest.mark.parametrize("held_out_templates", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_a_phrase_names_the_new_values_and_nothing_else(count, held_out_templates):
    rng = np.random.default_rng(4)
    for _ in range(3000):
        spec = random_spec(rng, held_out=None)
        edits = random_edits(spec, count, rng)
        text = edit_phrase(spec, edits, rng, held_out_templates=held_out_templates)
        assert read(text) == only({e.attribute: e.value for e in edits}), (edits, text)


def test_no_phrase_speaks_of_one_thing_where_several_are_meant():
    rng = np.random.default_rng(5)
    for _ in range(2000):
        spec = replace(random_spec(rng, held_out=None), count=3)
        (edit,) = random_edits(spec, 1, rng)
        for held_out_templates in (True, False):
            text = edit_phrase(spec, (edit,), rng, held_out_templates=held_out_templates)
            assert edit.attribute == "count" or not re.search(r"\bone\b", text), text


def test_the_part_is_named_as_the_new_category_has_it():
    rng = np.random.default_rng(6)
    mug = Spec("mug", "red", "plain", "small", 1, "grass", False)
    edits = (Edit("category", "shoe"), Edit("part", True))
    texts = [edit_phrase(mug, edits, rng) for _ in range(50)]
    assert all("with laces" in text for text in texts)


@pytest.mark.parametrize("edits", [(), 3])
def test_a_phrase_says_one_or_two_edits(edits):
    rng = np.random.default_rng(7)
    spec = random_spec(rng, held_out=None)
    with pytest.raises(ValueError, match="one or two"):
        edit_phrase(spec, edits if edits == () else random_edits(spec, edits, rng), rng)


def test_the_two_lists_of_templates_share_nothing():
    for attribute, held_out in wording.HELD_OUT_TEMPLATES.items():
        trained = {*wording.EDIT_TEMPLATES[attribute], *wording.SECOND_TEMPLATES[attribute]}
        assert held_out and trained.isdisjoint(held_out)
        assert 0.1 < len(held_out) / (len(held_out) + len(wording.EDIT_TEMPLATES[attribute])) < 0.3


def exact_phrases(templates: tuple[str, ...], edit: Edit, spec: Spec) -> set[str]:
    """Everything that these templates can say of one edit, by asking for it often enough."""
    rng = np.random.default_rng(8)
    said = set()
    for template in templates:
        single = {edit.attribute: (template,)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wording, "EDIT_TEMPLATES", single)
            said |= {edit_phrase(spec, (edit,), rng) for _ in range(25)}
    return said


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_held_out_templates_are_used_only_and_always_on_request(attribute):
    rng = np.random.default_rng(9)
    spec = random_spec(rng, held_out=None)
    edit = Edit(attribute, other_value(spec, attribute, rng))
    trained = exact_phrases(wording.EDIT_TEMPLATES[attribute], edit, spec)
    held_out = exact_phrases(wording.HELD_OUT_TEMPLATES[attribute], edit, spec)
    assert trained.isdisjoint(held_out)
    for _ in range(100):
        assert edit_phrase(spec, (edit,), rng) in trained
        assert edit_phrase(spec, (edit,), rng, held_out_templates=True) in held_out


def test_evaluation_uses_no_word_that_training_never_says():
    # What is tested is the phrasing; a word never seen would test nothing but luck.
    rng = np.random.default_rng(10)
    trained = {word for t in training_triplets(6000) for word in WORD.findall(t.text)}
    for _ in range(2000):
        trained.update(WORD.findall(caption(random_spec(rng, held_out=None), rng)))
    asked = {word for q in composed_set().queries for word in WORD.findall(q.text)}
    assert asked <= trained


def test_every_text_keeps_to_the_vocabulary_and_the_alphabet():
    rng = np.random.default_rng(11)
    known = set(vocabulary())
    assert list(vocabulary()) == sorted(known)
    for index in range(3000):
        spec = random_spec(rng, held_out=None)
        edits = random_edits(spec, 1 + index % 2, rng)
        for text in (
            caption(spec, rng, partial=index % 3 == 0),
            edit_phrase(spec, edits, rng, held_out_templates=index % 5 == 0),
        ):
            assert re.fullmatch(r"[a-z0-9 ,'-]+", text), text
            assert known.issuperset(WORD.findall(text)), text
    assert {"a", "photo", "of", "sketch", "that", "please", "show", "me"} <= known
