"""Owns the sample world as a set that one trains on: shards of pictures and JSON lines, as anyone's set would be.

Nothing in it shows a held-out combination or a held-out wording. What exists is not drawn again, so a killed run goes
on. The files are those that docs/train-your-own.md describes."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from pocketlens_samples.catalogue import Edit, Spec, apply, is_held_out, random_edits, random_spec
from pocketlens_samples.language import caption, edit_phrase
from pocketlens_samples.queries import Picture, training_questions, training_triplets

SHARD = 1000  # pictures in one tar
BEGINNINGS = ("a photo of ", "a photo of ", "a picture of ", "")
PARTIAL_SHARE = 0.15  # captions that leave attributes out, as people's do
TWO_EDITS_SHARE = 0.35
DESCRIPTION = "set.json"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    seed: int = 20261121
    pictures: int = 100_000
    captions: int = 5  # of each picture
    sketches: int = 30_000
    told: int = 120_000  # captions without pictures
    edits: int = 3  # of each of them
    triplets: int = 8_000
    questions: int = 2_000  # the log of a training asks a part; forms of an encoder are judged by all
    gallery: int = 10_000  # that the questions search


def write_training_set(
    folder: Path, sizes: Sizes, *, on_done: Callable[[str, int, int], None] | None = None, workers: int | None = None
) -> None:
    """Write what is missing of the set of `sizes` into `folder`.

    `on_done` hears (of what, done, of how many). Raises ValueError when the folder holds a set of other sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / DESCRIPTION, sizes)
    specs = specifications(sizes.pictures, sizes.seed)
    photos = [Picture(f"{n:07d}", spec, sizes.seed + n) for n, spec in enumerate(specs)]
    sketches = [Picture(f"{n:07d}", spec, sizes.seed + n, "sketch") for n, spec in enumerate(specs[: sizes.sketches])]
    triplets = training_triplets(sizes.triplets, sizes.seed)
    asked = training_questions(queries=sizes.questions, gallery=sizes.gallery, seed=sizes.seed)
    shown = {
        "photos": photos,
        "sketches": sketches,
        "triplets": [picture for triplet in triplets for picture in (triplet.anchor, triplet.target)],
        "anchors": [query.anchor for query in asked.queries],
        "gallery": list(asked.gallery),
    }
    for kind, pictures in shown.items():
        _draw(folder, kind, pictures, on_done, workers)

    def place(kind: str) -> dict[str, str]:
        return {picture.id: name for picture, name in zip(shown[kind], names(kind, shown[kind]), strict=True)}

    photo, drawn, anchor, gallery = place("photos"), place("sketches"), place("anchors"), place("gallery")
    triplet = place("triplets")
    _write(folder / "pairs.jsonl", _pairs(photos, photo, sizes))
    _write(folder / "sketches.jsonl", ({"sketch": drawn[s.id], "photo": photo[s.id]} for s in sketches))
    _write(folder / "told.jsonl", _told(sizes))
    rng = np.random.default_rng([sizes.seed, 4])
    _write(
        folder / "triplets.jsonl",
        (
            {
                "reference": triplet[each.anchor.id], "text": each.text, "target": triplet[each.target.id],
                "caption": plain_text(each.target.spec, rng),
            }
            for each in triplets
        ),
    )  # fmt: skip
    _write(
        folder / "questions.jsonl",
        (
            {
                "id": query.id, "reference": anchor[query.anchor.id], "text": query.text,
                "targets": [gallery[asked.gallery[n].id] for n in relevant],
            }
            for query, relevant in zip(asked.queries, asked.relevant, strict=True)
        ),
    )  # fmt: skip
    _write_text(folder / "gallery.txt", "".join(f"{gallery[picture.id]}\n" for picture in asked.gallery))


def specifications(count: int, seed: int) -> list[Spec]:
    """`count` (even) specifications in neighbouring pairs, none of a held-out combination.

    Picture 2i+1 is picture 2i with one or two attributes changed, so that a batch of pairs holds hard negatives."""
    rng = np.random.default_rng([seed, 1])
    specs: list[Spec] = []
    while len(specs) < count:
        first = random_spec(rng, held_out=False)
        specs += [first, _neighbour(first, rng)]
    return specs


def _neighbour(spec: Spec, rng: Generator) -> Spec:
    while True:
        other = apply(spec, random_edits(spec, 1 + int(rng.random() < 0.3), rng))
        if not is_held_out(other):
            return other


def plain_text(spec: Spec, rng: Generator) -> str:
    """A caption with one of the usual beginnings."""
    return BEGINNINGS[rng.integers(len(BEGINNINGS))] + caption(spec, rng, partial=bool(rng.random() < PARTIAL_SHARE))


def edited_text(wanted: Spec, rng: Generator) -> tuple[str, str]:
    """A caption of another item, and the words that turn it into `wanted`; text only, no second picture."""
    while True:
        away = random_edits(wanted, 1 + int(rng.random() < TWO_EDITS_SHARE), rng)
        source = apply(wanted, away)
        if not is_held_out(source):
            break
    back = tuple(Edit(edit.attribute, getattr(wanted, edit.attribute)) for edit in away)
    return caption(source, rng), edit_phrase(source, back, rng)


def names(kind: str, pictures: Sequence[Picture]) -> list[str]:
    """Each picture's name in the set: shard and place in it."""
    return [f"{_shard(kind, n // SHARD)}/{n % SHARD:03d}.png" for n in range(len(pictures))]


def _shard(kind: str, number: int) -> str:
    return f"{kind}-{number:04d}.tar"


def _pairs(photos: Sequence[Picture], place: dict[str, str], sizes: Sizes) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng([sizes.seed, 2])
    for n, photo in enumerate(photos):
        image = place[photo.id]
        captions = [plain_text(photo.spec, rng) for _ in range(sizes.captions)]
        yield {"image": image, "captions": captions, "group": n // 2, "attributes": photo.spec.payload()}
        source, edit = edited_text(photo.spec, rng)
        yield {"image": image, "caption": source, "edit": edit}


def _told(sizes: Sizes) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng([sizes.seed, 5])
    for _ in range(sizes.told):
        spec = random_spec(rng, held_out=False)
        edits = [edit_phrase(spec, _legal_edit(spec, rng), rng) for _ in range(sizes.edits)]
        yield {"caption": caption(spec, rng), "edits": edits}


def _legal_edit(spec: Spec, rng: Generator) -> tuple[Edit, ...]:
    """One edit that leads to no held-out combination."""
    while True:
        edits = random_edits(spec, 1, rng)
        if not is_held_out(apply(spec, edits)):
            return edits


def _claim(description: Path, sizes: Sizes) -> None:
    wanted = json.dumps(asdict(sizes), indent=2) + "\n"
    if description.exists() and description.read_text() != wanted:
        raise ValueError(
            f"{description.parent} holds a set of other sizes or seed ({DESCRIPTION} says which); name another folder"
        )
    if not description.exists():
        _write_text(description, wanted)


def _draw(
    folder: Path,
    kind: str,
    pictures: Sequence[Picture],
    on_done: Callable[[str, int, int], None] | None,
    workers: int | None,
) -> None:
    done = 0
    # Not forked: whoever calls may have threads, torch's for one.
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = []
        for number, start in enumerate(range(0, len(pictures), SHARD)):
            some = pictures[start : start + SHARD]
            path = folder / _shard(kind, number)
            jobs.append((len(some), None if path.exists() else pool.submit(_draw_shard, path, some)))
        for count, job in jobs:
            if job is not None:
                job.result()
            done += count
            if on_done is not None:
                on_done(kind, done, len(pictures))


def _draw_shard(path: Path, pictures: Sequence[Picture]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.part")
    with tarfile.open(partial, "w") as tar:
        for place, picture in enumerate(pictures):
            held = io.BytesIO()
            Image.fromarray(picture.pixels()).save(held, "PNG", compress_level=1)
            member = tarfile.TarInfo(f"{place:03d}.png")
            member.size = held.tell()
            held.seek(0)
            tar.addfile(member, held)
    partial.rename(path)  # a shard exists whole or not at all


def _write(path: Path, lines: Iterable[dict[str, object]]) -> None:
    if not path.exists():
        _write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
