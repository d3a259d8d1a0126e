"""What the demo asks: one gallery, and questions of every kind whose answers are known exactly.

Owns the questions and their ground truth. Called by demo.py; draws nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from pocketlens_wire.errors import BadQuery

from pocketlens_samples import wording
from pocketlens_samples.catalogue import Edit, Spec, Value, apply, other_value, random_edits, random_spec
from pocketlens_samples.language import caption, edit_phrase
from pocketlens_samples.queries import SHOWN_BY_SKETCH, ComposedQuery, Picture, composed_set

SEED = 71_004  # not one of queries.py: the demo's gallery is no benchmark
COMPOSED = 40  # composed queries planted in the gallery, of which the first that fit are asked
ONE_EDIT, TWO_EDITS = 4, 2  # how many of them are asked
LEAST_PICTURES = 300  # room for what the questions need


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. Every gallery picture whose payload has the values of `wanted` answers it.

    anchor: the picture asked with, None for words alone. where: the filter sent along."""

    kind: str
    anchor: Picture | None
    words: str
    wanted: Mapping[str, Value]
    where: Mapping[str, Value] = field(default_factory=dict[str, Value])

    def is_answer(self, payload: Mapping[str, object]) -> bool:
        return all(payload.get(name) == value for name, value in self.wanted.items())


@dataclass(frozen=True)
class Plan:
    """A gallery and the questions to it."""

    gallery: tuple[Picture, ...]
    questions: tuple[Question, ...]

    def answers(self, question: Question) -> int:
        """How many gallery pictures answer it."""
        return sum(question.is_answer(picture.spec.payload()) for picture in self.gallery)


def plan(*, pictures: int, seed: int = SEED) -> Plan:
    """Questions of every kind and a gallery of `pictures`, with planted answers and decoys for each.

    All wanted combinations are held out of training. Raises BadQuery for a gallery too small."""
    if pictures < LEAST_PICTURES:
        raise BadQuery(f"--pictures is {pictures}; the demo's questions need at least {LEAST_PICTURES}")
    rng = np.random.default_rng([seed, 1])
    others = [asked(rng) for asked in OTHER_KINDS]
    planted = [spec for _, specs in others for spec in specs]
    composed = composed_set(queries=COMPOSED, gallery=pictures - len(planted), seed=seed)
    first = len(composed.gallery)
    extra = [Picture(f"photo-{first + i:06d}", spec, _seed(rng)) for i, spec in enumerate(planted)]
    questions = [
        *_composed(composed.queries, edits=1, count=ONE_EDIT),
        *_composed(composed.queries, edits=2, count=TWO_EDITS),
        *(question for question, _ in others),
    ]
    return Plan((*composed.gallery, *extra), tuple(questions))


Asked = tuple[Question, list[Spec]]  # a question, and what to plant for it: answers and decoys


def _composed(queries: Sequence[ComposedQuery], *, edits: int, count: int) -> list[Question]:
    """The first `count` with so many edits, each about another thing and changing another attribute first."""
    kind = "picture + words" if edits == 1 else "picture + two edits"
    seen: set[str] = set()
    chosen: list[Question] = []
    for query in queries:
        about = {query.source.category, query.edits[0].attribute}
        if len(query.edits) == edits and len(chosen) < count and not about & seen:
            seen |= about
            wanted = query.target.payload()
            chosen.append(Question(kind=kind, anchor=query.anchor, words=query.text, wanted=wanted))
    return chosen


def _sketch(rng: Generator) -> Asked:
    shown = random_spec(rng, held_out=True)
    repainted = replace(shown, **{name: other_value(shown, name, rng) for name in ("colour", "background")})
    question = Question(kind="sketch", anchor=_anchor(shown, rng, "sketch"), words="", wanted=_drawn(shown))
    return question, [shown, repainted, _decoy(shown, rng, SHOWN_BY_SKETCH)]


def _sketch_coloured(rng: Generator) -> Asked:
    """The words say what a sketch cannot show."""
    return _sketch_and_words(rng, ("colour", "background"))


def _sketch_changed(rng: Generator) -> Asked:
    """The words change what it shows."""
    return _sketch_and_words(rng, ("pattern",))


def _sketch_and_words(rng: Generator, attributes: Sequence[str]) -> Asked:
    target = random_spec(rng, held_out=True)
    edits = tuple(Edit(name, getattr(target, name)) for name in attributes)
    shown = replace(target, **{name: other_value(target, name, rng) for name in attributes})
    question = Question(
        kind="sketch + words",
        anchor=_anchor(shown, rng, "sketch"),
        words=edit_phrase(shown, edits, rng),
        wanted=_drawn(target) | {edit.attribute: edit.value for edit in edits},
    )
    return question, [target, target, shown]


def _full_caption(rng: Generator) -> Asked:
    target = random_spec(rng, held_out=True)
    question = Question(kind="words", anchor=None, words=caption(target, rng), wanted=target.payload())
    return question, [target, _decoy(target, rng)]


def _few_words(rng: Generator) -> Asked:
    target = replace(random_spec(rng, held_out=True), count=2)
    wanted = {name: getattr(target, name) for name in ("count", "colour", "pattern", "category")}
    words = f"two {target.colour} {target.pattern} {wording.PLURAL[target.category]}"
    resized = replace(target, size=other_value(target, "size", rng))
    question = Question(kind="words", anchor=None, words=words, wanted=wanted)
    return question, [target, resized, _decoy(target, rng, wanted)]


def _picture(rng: Generator) -> Asked:
    shown = random_spec(rng, held_out=True)
    question = Question(kind="picture", anchor=_anchor(shown, rng), words="", wanted=shown.payload())
    return question, [shown, shown, _decoy(shown, rng)]


def _filtered(rng: Generator) -> Asked:
    """The words ask for one change and leave another, of the background, to the filter."""
    target = replace(random_spec(rng, held_out=True), background="grass")
    before = replace(target, colour=other_value(target, "colour", rng))
    shown = replace(before, background=other_value(target, "background", rng))
    question = Question(
        kind="picture + words, filter",
        anchor=_anchor(shown, rng),
        words=edit_phrase(shown, (Edit("colour", target.colour),), rng),
        wanted=target.payload(),
        where={"background": target.background},
    )
    return question, [target, target, before, shown, replace(shown, colour=target.colour)]


OTHER_KINDS = (_sketch, _sketch_coloured, _sketch_changed, _full_caption, _few_words, _picture, _filtered)


def _anchor(spec: Spec, rng: Generator, kind: str = "photo") -> Picture:
    return Picture(f"{kind}-{spec.category}", spec, _seed(rng), kind=kind)


def _drawn(spec: Spec) -> dict[str, Value]:
    """What a sketch of it shows."""
    return {name: getattr(spec, name) for name in SHOWN_BY_SKETCH}


def _decoy(spec: Spec, rng: Generator, within: Sequence[str] | Mapping[str, Value] = ()) -> Spec:
    """Almost the same: one attribute differs, one of `within` if that is given."""
    while True:
        (edit,) = random_edits(spec, 1, rng)
        if not within or edit.attribute in within:
            return apply(spec, [edit])


def _seed(rng: Generator) -> int:
    return int(rng.integers(2**31))
