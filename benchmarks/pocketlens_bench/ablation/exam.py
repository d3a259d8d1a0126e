"""The questions that every cell answers, in memory: pixels of what is asked with, words, and the gallery's vectors.

Pictures go to a model as they were drawn, without JPEG: the cells are compared with each other, and `accuracy` measures
the bundle. Made once, kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pocketlens_samples.queries import composed_set, sketch_set

from pocketlens_bench.accuracy import VALIDATION_SEED, words_for_sketches
from pocketlens_bench.questions import Questions

if TYPE_CHECKING:
    import torch
    from pocketlens_samples.queries import Picture
    from pocketlens_training.teachers.teacher import Teacher

PALE = 0.25  # of a pencil's contrast, in "pale sketch"
CHUNK = 128
SIZES = {"validation": (600, 3000), "composed": (1200, 6000), "sketch": (1000, 6000)}


@dataclass(frozen=True)
class Paper:
    """One set of questions and the pixels uint8 (n, side, side, 3) they are asked with."""

    questions: Questions
    pixels: NDArray[np.uint8]


def papers(teacher: Teacher, device: torch.device, folder: Path) -> dict[str, Paper]:
    """By key: validation (choices are made on it), composed, sketch, sketch_and_words, pale_sketch."""
    validation = composed_set(queries=SIZES["validation"][0], gallery=SIZES["validation"][1], seed=VALIDATION_SEED)
    composed = composed_set(queries=SIZES["composed"][0], gallery=SIZES["composed"][1])
    sketched = sketch_set(sketches=SIZES["sketch"][0], gallery=SIZES["sketch"][1])
    words, both = words_for_sketches(sketched, 0)
    made: dict[str, Paper] = {}
    for key, found in (("validation", validation), ("composed", composed)):
        kept = _kept(folder / f"{key}.npz", found.gallery, [q.anchor for q in found.queries], teacher, device)
        made[key] = Paper(
            Questions(
                key=key, title=key, pictures=(), words=tuple(query.text for query in found.queries),
                relevant=found.relevant, gallery={"original": kept[0]},
            ),
            kept[1],
        )  # fmt: skip
    gallery, pixels = _kept(folder / "sketch.npz", sketched.gallery, list(sketched.sketches), teacher, device)
    silent = ("",) * len(words)
    pale = (255 - PALE * (255.0 - pixels)).astype(np.uint8)
    for key, said, relevant, shown in (
        ("sketch", silent, sketched.relevant, pixels),
        ("sketch_and_words", tuple(words), both, pixels),
        ("pale_sketch", silent, sketched.relevant, pale),
    ):
        questions = Questions(
            key=key, title=key, pictures=(), words=said, relevant=tuple(map(tuple, relevant)),
            gallery={"original": gallery},
        )  # fmt: skip
        made[key] = Paper(questions, shown)
    return made


def _kept(
    path: Path, gallery: tuple[Picture, ...], asked: list[Picture], teacher: Teacher, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Raw teacher vectors of `gallery`, and the pixels of `asked`."""
    made_of = f"{teacher.id} {SIZES} {VALIDATION_SEED}"
    if path.exists():
        held = np.load(path)
        if str(held["teacher"]) == made_of:
            return held["vectors"], held["pixels"]
    vectors = vectors_of(lambda n: gallery[n].pixels(), len(gallery), teacher, device)
    pixels = np.stack([picture.pixels() for picture in asked])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part.npz")  # several processes may draw the same paper
    np.savez(partial, vectors=vectors, pixels=pixels, teacher=made_of)
    partial.replace(path)
    return vectors, pixels


def vectors_of(
    pixels: Callable[[int], NDArray[np.uint8]], count: int, teacher: Teacher, device: torch.device
) -> NDArray[np.float32]:
    """Raw image features float32 (count, dim), not yet of unit length: targets are made of them."""
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, count, CHUNK):
            some = np.stack([pixels(n) for n in range(start, min(start + CHUNK, count))])
            parts.append(teacher.image(torch.from_numpy(some).to(device))[0].float().cpu().numpy())
    return np.concatenate(parts)
