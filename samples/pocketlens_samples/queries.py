"""Owns the sets: training triplets, evaluation questions with exact ground truth, gallery files.

Ground truth is equality of specifications, never a judgement, and it counts every gallery picture
that happens to match. Evaluation seeds are the constants below; training takes other seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image

from pocketlens_samples.catalogue import (
    ATTRIBUTES,
    Edit,
    Spec,
    apply,
    is_held_out,
    other_value,
    random_edits,
    random_spec,
)
from pocketlens_samples.draw import draw_picture, draw_sketch
from pocketlens_samples.language import caption, edit_phrase

COMPOSED_SEED = 71_001
RETRIEVAL_SEED = 71_002
SKETCH_SEED = 71_003
TRAINING_SEED = 1

TWO_EDITS_SHARE = 0.25
HELD_OUT_TEMPLATE_SHARE = 0.5
MAX_TARGETS = 3  # planted per query; others may match by chance and then count too
MANY_PICTURES = 500  # from here on, writing a gallery is worth a pool of processes

SHOWN_BY_SKETCH = ("category", "pattern", "size", "count", "part")


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn at any time. `kind` is photo or sketch."""

    id: str
    spec: Spec
    seed: int
    kind: str = "photo"

    def pixels(self) -> np.ndarray:
        """uint8 (96, 96, 3), RGB."""
        draw = {"photo": draw_picture, "sketch": draw_sketch}[self.kind]
        return draw(self.spec, self.seed)


@dataclass(frozen=True)
class ComposedQuery:
    """A picture and words; what is wanted is the picture's specification with the edits done."""

    id: str
    anchor: Picture
    text: str
    edits: tuple[Edit, ...]
    target: Spec

    @property
    def source(self) -> Spec:
        return self.anchor.spec


@dataclass(frozen=True)
class ComposedSet:
    """`relevant[i]` holds the gallery indexes that answer query i."""

    gallery: tuple[Picture, ...]
    queries: tuple[ComposedQuery, ...]
    relevant: tuple[tuple[int, ...], ...]


class SketchSet(NamedTuple):
    """`relevant[i]` holds the gallery indexes that agree with all that sketch i shows."""

    sketches: tuple[Picture, ...]
    gallery: tuple[Picture, ...]
    relevant: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Triplet:
    """Training's composed query: here the answer is one picture."""

    id: str
    anchor: Picture
    text: str
    edits: tuple[Edit, ...]
    target: Picture


def composed_set(*, queries: int = 1200, gallery: int = 6000, seed: int = COMPOSED_SEED) -> ComposedSet:
    """Questions whose target combination no training picture showed.

    For each query the gallery holds 1 to 3 targets, the source drawn anew, and the source edited
    in another way; random distractors fill it up.
    """
    return _composed(queries, gallery, np.random.default_rng(seed), held_out=True)


def _composed(queries: int, gallery: int, rng: Generator, *, held_out: bool) -> ComposedSet:
    asked: list[ComposedQuery] = []
    shown: list[Spec] = []
    for index in range(queries):
        query = _composed_query(index, rng, held_out=held_out)
        asked.append(query)
        shown += [query.target] * int(rng.integers(1, MAX_TARGETS + 1))
        shown += [query.source, _decoy(query, rng)]
    pictures = _gallery(shown, gallery, rng, held_out=None if held_out else False)
    relevant = _matches(pictures, (query.target for query in asked), key=lambda spec: spec)
    return ComposedSet(pictures, tuple(asked), relevant)


def training_questions(*, queries: int, gallery: int, seed: int = TRAINING_SEED) -> ComposedSet:
    """Questions to choose by while training: as `composed_set`, but what is wanted is of no held-out combination
    and said in no held-out wording."""
    return _composed(queries, gallery, np.random.default_rng([seed, 6]), held_out=False)


def _composed_query(index: int, rng: Generator, *, held_out: bool) -> ComposedQuery:
    target = random_spec(rng, held_out=held_out)
    source, edits = _source_of(target, _edit_count(rng), rng)
    held_out_templates = held_out and bool(rng.random() < HELD_OUT_TEMPLATE_SHARE)
    return ComposedQuery(
        id=f"query-{index:05d}",
        anchor=Picture(f"anchor-{index:05d}", source, _new_seed(rng)),
        text=edit_phrase(source, edits, rng, held_out_templates=held_out_templates),
        edits=edits,
        target=target,
    )


def _edit_count(rng: Generator) -> int:
    return 2 if rng.random() < TWO_EDITS_SHARE else 1


def _source_of(target: Spec, count: int, rng: Generator) -> tuple[Spec, tuple[Edit, ...]]:
    """Walk back from the target: a source, and the edits that lead from it to the target."""
    names = list(ATTRIBUTES)
    chosen = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
    source = replace(target, **{name: other_value(target, name, rng) for name in chosen})
    return source, tuple(Edit(name, getattr(target, name)) for name in chosen)


def _decoy(query: ComposedQuery, rng: Generator) -> Spec:
    while True:
        decoy = apply(query.source, random_edits(query.source, 1, rng))
        if decoy != query.target:
            return decoy


def _gallery(shown: list[Spec], size: int, rng: Generator, *, held_out: bool | None = None) -> tuple[Picture, ...]:
    """The wanted specifications and random ones up to the size, shuffled, every one drawn anew."""
    if len(shown) > size:
        raise ValueError(
            f"the questions need {len(shown)} gallery pictures, the gallery has room for {size}; "
            f"ask fewer questions or make the gallery larger"
        )
    specs = shown + [random_spec(rng, held_out=held_out) for _ in range(size - len(shown))]
    order = rng.permutation(size)
    return tuple(Picture(f"photo-{place:06d}", specs[i], _new_seed(rng)) for place, i in enumerate(order))


def _matches(
    pictures: Sequence[Picture], wanted: Iterable[Spec], *, key: Callable[[Spec], Hashable]
) -> tuple[tuple[int, ...], ...]:
    """For each wanted specification the indexes of the pictures with the same key."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        places[key(picture.spec)].append(place)
    return tuple(tuple(places[key(spec)]) for spec in wanted)


def retrieval_set(*, count: int = 5000, seed: int = RETRIEVAL_SEED) -> tuple[list[Picture], list[str]]:
    """Pictures of held-out combinations, no specification twice, with one full caption each."""
    rng = np.random.default_rng(seed)
    room = sum(1 for _ in _all_held_out())
    if count > room:
        raise ValueError(f"there are {room} held-out specifications, {count} were asked for")
    specs: dict[Spec, None] = {}
    while len(specs) < count:
        specs[random_spec(rng, held_out=True)] = None
    pictures = [Picture(f"photo-{place:06d}", spec, _new_seed(rng)) for place, spec in enumerate(specs)]
    return pictures, [caption(spec, rng) for spec in specs]


def _all_held_out() -> Iterable[Spec]:
    for values in product(*ATTRIBUTES.values()):
        spec = Spec(*values)  # type: ignore[arg-type]
        if is_held_out(spec):
            yield spec


def sketch_key(spec: Spec) -> tuple[object, ...]:
    """What a sketch shows of a specification."""
    return tuple(getattr(spec, name) for name in SHOWN_BY_SKETCH)


def sketch_set(*, sketches: int = 1000, gallery: int = 6000, seed: int = SKETCH_SEED) -> SketchSet:
    """Sketches of held-out combinations; each has at least one answer in the gallery."""
    rng = np.random.default_rng(seed)
    specs = [random_spec(rng, held_out=True) for _ in range(sketches)]
    drawn = tuple(
        Picture(f"sketch-{index:05d}", spec, _new_seed(rng), kind="sketch") for index, spec in enumerate(specs)
    )
    pictures = _gallery(list(specs), gallery, rng)
    return SketchSet(drawn, pictures, _matches(pictures, specs, key=sketch_key))


def training_triplets(count: int, seed: int = TRAINING_SEED) -> list[Triplet]:
    """Triplets without any held-out combination or template."""
    rng = np.random.default_rng(seed)
    triplets: list[Triplet] = []
    while len(triplets) < count:
        target = random_spec(rng, held_out=False)
        source, edits = _source_of(target, _edit_count(rng), rng)
        if is_held_out(source):
            continue
        name = f"{seed}-{len(triplets):06d}"
        triplets.append(
            Triplet(
                id=f"triplet-{name}",
                anchor=Picture(f"anchor-{name}", source, _new_seed(rng)),
                text=edit_phrase(source, edits, rng),
                edits=edits,
                target=Picture(f"target-{name}", target, _new_seed(rng)),
            )
        )
    return triplets


def _new_seed(rng: Generator) -> int:
    return int(rng.integers(2**31))


def write_gallery(
    folder: Path,
    pictures: Sequence[Picture],
    *,
    on_done: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> None:
    """Write `<id>.jpg` for each picture, and payload.jsonl naming file and attributes.

    `on_done` hears how many pictures are written so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for done, _ in enumerate(_written(folder, pictures, processes), start=1):
        if on_done is not None:
            on_done(done)
    with (folder / "payload.jsonl").open("w", encoding="utf-8") as lines:
        for picture in pictures:
            line = {"file": f"{picture.id}.jpg", "payload": picture.spec.payload()}
            lines.write(json.dumps(line) + "\n")


def _written(folder: Path, pictures: Sequence[Picture], processes: int | None) -> Iterable[None]:
    folders = [folder] * len(pictures)
    if len(pictures) < MANY_PICTURES or processes == 1:
        yield from map(_write_picture, folders, pictures)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_write_picture, folders, pictures, chunksize=64)


def _write_picture(folder: Path, picture: Picture) -> None:
    Image.fromarray(picture.pixels()).save(folder / f"{picture.id}.jpg", quality=92)
