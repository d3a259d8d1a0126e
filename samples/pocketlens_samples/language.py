"""Owns what people say: captions of pictures, and phrases that ask for a change.

A phrase names the new value in words that mean no other value, so its ground truth is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from numpy.random import Generator

from pocketlens_samples import wording
from pocketlens_samples.catalogue import ATTRIBUTES, Edit, Spec, apply

WORD = re.compile(r"[a-z0-9'-]+")

# {n} count, {m} count as an afterthought, {s} size, {c} colour, {p} pattern as adjective,
# {d} pattern as clause, {t} thing, {h} part, {b} background.
_CAPTIONS: tuple[str, ...] = (
    "{n} {s} {c} {p} {t} {h} {b}",
    "{n} {s} {p} {c} {t} {h} {b}",
    "{n} {s} {c} {t} {d} {h} {b}",
    "{n} {s} {p} {t} in {c}, {h}, {b}",
    "{n} {c} {p} {t} {h}, {s}, {b}",
    "{b}, {n} {s} {c} {p} {t} {h}",
    "{b}, {n} {s} {c} {t} {h}, {p}",
    "{n} {t} {h}, {s}, {c} and {p}, {b}",
    "{s} {c} {p} {t} {h}, {m}, {b}",
    "{n} {p} {t} {b}, {s} and {c}, {h}",
    "{n} {s} {t} {h} {b}, {c} {d}",
)

_SLOTS_OF: dict[str, str] = {
    "count": "nm", "size": "s", "colour": "c", "pattern": "pd", "category": "t", "part": "h",
    "background": "b",
}  # fmt: skip


def caption(spec: Spec, rng: Generator, *, partial: bool = False) -> str:
    """What the picture shows, without "a photo of". Full captions name all seven attributes;
    partial ones leave out a random, non-empty choice of them but keep the category."""
    dropped = _dropped(rng) if partial else frozenset()
    template = _pick(_CAPTIONS, rng)
    words = _caption_words(spec, rng)
    for name in dropped:
        words |= dict.fromkeys(_SLOTS_OF[name], "")
    return _tidied(template.format(**words))


def _dropped(rng: Generator) -> frozenset[str]:
    optional = [name for name in ATTRIBUTES if name != "category"]
    count = int(rng.integers(1, len(optional) + 1))
    return frozenset(optional[i] for i in rng.choice(len(optional), size=count, replace=False))


def _caption_words(spec: Spec, rng: Generator) -> dict[str, str]:
    many = spec.count > 1
    return {
        "n": _pick(wording.COUNT_WORD[spec.count], rng),
        "m": f"{_number(spec)} of them" if many else "just one",
        "s": _pick(wording.SIZE[spec.size], rng),
        "c": _pick(wording.COLOUR[spec.colour], rng),
        "p": _pick(wording.PATTERN_ADJECTIVE[spec.pattern], rng),
        "d": _pick(wording.PATTERN_CLAUSE[spec.pattern], rng),
        "t": wording.PLURAL[spec.category] if many else spec.category,
        "h": _pick(wording.PART[spec.category][spec.part][int(many)], rng),
        "b": _pick(wording.PLACE[spec.background], rng),
    }


def _tidied(text: str) -> str:
    """Close the gaps that empty slots left: double spaces, stray commas, a dangling "in"/"and"."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\b(?:in|and)\s*(?=,|$)", "", text)
    text = re.sub(r"(^|,)\s*and\b", r"\1", text)
    text = re.sub(r"\s*,[\s,]*", ", ", text)
    return text.strip(" ,")


def edit_phrase(spec: Spec, edits: tuple[Edit, ...], rng: Generator, *, held_out_templates: bool = False) -> str:
    """One or two edits as a person would ask for them while looking at the source `spec`."""
    if not 1 <= len(edits) <= 2:
        raise ValueError(f"a phrase says one or two edits, got {len(edits)}: {edits}")
    target = apply(spec, edits)
    first, *rest = edits
    templates = wording.HELD_OUT_TEMPLATES if held_out_templates else wording.EDIT_TEMPLATES
    text = _said(first, target, _pick(templates[first.attribute], rng), rng)
    for edit in rest:
        second = _said(edit, target, _pick(wording.SECOND_TEMPLATES[edit.attribute], rng), rng)
        text += _pick(wording.JOINERS, rng) + second
    return text


def _said(edit: Edit, target: Spec, template: str, rng: Generator) -> str:
    """The template with the new value in it; a part is named as the target category has it."""
    word = _pick(_edit_words(edit, target), rng)
    many = target.count > 1
    return template.format(
        x=word,
        clause=_pick(wording.PATTERN_CLAUSE[target.pattern], rng),
        one=f"{word} ones" if many else f"{_with_article(word)} one",
        ones="ones" if many else "one",
    )


def _edit_words(edit: Edit, target: Spec) -> tuple[str, ...]:
    match edit.attribute:
        case "category":
            return (_thing(target),)
        case "colour":
            return wording.COLOUR[target.colour]
        case "pattern":
            return wording.PATTERN_ADJECTIVE[target.pattern]
        case "size":
            return wording.SIZE[target.size]
        case "count":
            return ("just one", "only one") if target.count == 1 else (_number(target),)
        case "background":
            return wording.PLACE[target.background]
        case _:
            return wording.PART_CHANGE[target.category][target.part]


def _number(target: Spec) -> str:
    return wording.COUNT_WORD[target.count][0]


def _thing(target: Spec) -> str:
    many = target.count > 1
    return wording.PLURAL[target.category] if many else _with_article(target.category)


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that captions and phrases can contain, and the common function words; sorted."""
    tables = [getattr(wording, name) for name in dir(wording) if name.isupper()]
    texts = [*_texts([tables, _CAPTIONS]), *wording.PLURAL, "just one", "ones"]
    found = {word for text in texts for word in WORD.findall(re.sub(r"\{\w+\}", " ", text))}
    return tuple(sorted(found))


def _texts(table: object) -> Iterator[str]:
    """The strings in nested tables, without the keys."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        yield from _texts(list(table.values()))
    elif isinstance(table, list | tuple):
        for item in table:
            yield from _texts(item)


def _pick(values: Sequence[str], rng: Generator) -> str:
    return values[int(rng.integers(len(values)))]
