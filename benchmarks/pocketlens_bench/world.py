"""The sample world's held-out sets, as a camera would hand them over: JPEG files in memory.

Owns the sizes of a run, the seed of the validation set, and what the wording of a query was. Imports only the sample
world, so that the processes which draw start quickly. Called by accuracy.py and latency.py."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from PIL import Image
from pocketlens_samples.catalogue import Edit, Spec
from pocketlens_samples.language import edit_phrase
from pocketlens_samples.queries import ComposedQuery, Picture, SketchSet
from pocketlens_samples.wording import HELD_OUT_TEMPLATES

VALIDATION_SEED = 72_001  # of the composed set on which the baseline's weight is tuned; other than the measured one
JPEG_QUALITY = 92  # as `queries.write_gallery` writes them
WORTH_A_POOL = 500  # pictures; below that the processes take longer to start than to draw

OnProgress = Callable[[str, int, int], None]  # stage, done, total

LEFT_TO_WORDS = ("colour", "background")  # a sketch shows neither


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many pictures and questions a run takes."""

    queries: int = 1200
    gallery: int = 6000
    retrieval: int = 5000
    sketches: int = 1000
    sketch_gallery: int = 6000
    validation: int = 600
    validation_gallery: int = 3000


FULL = Sizes()
QUICK = Sizes(
    queries=200, gallery=1000, retrieval=500, sketches=200, sketch_gallery=1000, validation=150, validation_gallery=750
)


def silently(*_: object) -> None:
    """An OnProgress that tells nobody."""


def photographed(
    pictures: Sequence[Picture], *, processes: int = 1, on_done: Callable[[int], None] | None = None
) -> list[bytes]:
    """Each picture as a JPEG file. `on_done` hears how many are ready."""
    files: list[bytes] = []

    def keep(file: bytes) -> None:
        files.append(file)
        if on_done is not None:
            on_done(len(files))

    if processes == 1 or len(pictures) < WORTH_A_POOL:
        for picture in pictures:
            keep(jpeg(picture))
        return files
    # Spawned, not forked: this process may hold threads of the runtimes already.
    with ProcessPoolExecutor(min(processes, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        for file in pool.map(jpeg, pictures, chunksize=64):
            keep(file)
    return files


def jpeg(picture: Picture) -> bytes:
    """One picture as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture.pixels()).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def has_held_out_wording(query: ComposedQuery) -> bool:
    """Whether its first edit is said in a way that no training text used.

    The set does not record it; the fixed words before the first blank of a template tell it for sure."""
    return any(
        query.text.startswith(template.partition("{")[0]) for template in HELD_OUT_TEMPLATES[query.edits[0].attribute]
    )


def words_for_sketches(found: SketchSet, seed: int) -> tuple[list[str], list[tuple[int, ...]]]:
    """What one would say beside each sketch (colour and background), and the gallery indexes that answer both."""
    rng = np.random.default_rng(seed)
    places: dict[Spec, list[int]] = {}
    for place, picture in enumerate(found.gallery):
        places.setdefault(picture.spec, []).append(place)
    words = [
        edit_phrase(sketch.spec, tuple(Edit(name, getattr(sketch.spec, name)) for name in LEFT_TO_WORDS), rng)
        for sketch in found.sketches
    ]
    return words, [tuple(places[sketch.spec]) for sketch in found.sketches]
