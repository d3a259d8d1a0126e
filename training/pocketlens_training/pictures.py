"""The pictures a school learns from: drawn once, kept in chunks on disk, read by number.

Picture 2i+1 is picture 2i with one or two attributes changed, so that a batch of pairs holds hard negatives."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_samples.catalogue import Spec, apply, is_held_out, random_edits, random_spec
from pocketlens_samples.draw import draw_picture, draw_sketch

CHUNK = 1000


def specifications(count: int, seed: int) -> list[Spec]:
    """`count` (even) specifications in neighbouring pairs, none of a held-out combination."""
    rng = np.random.default_rng([seed, 1])
    specs: list[Spec] = []
    while len(specs) < count:
        first = random_spec(rng, held_out=False)
        second = neighbour(first, rng)
        specs += [first, second]
    return specs


def neighbour(spec: Spec, rng: np.random.Generator) -> Spec:
    """A specification one or two edits away, not of a held-out combination."""
    while True:
        other = apply(spec, random_edits(spec, 1 + int(rng.random() < 0.3), rng))
        if not is_held_out(other):
            return other


def _draw_chunk(path: Path, kind: str, specs: list[Spec], seeds: list[int]) -> None:
    draw = draw_sketch if kind == "sketches" else draw_picture
    pixels = np.stack([draw(spec, seed) for spec, seed in zip(specs, seeds, strict=True)])
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as handle:
        np.save(handle, pixels)
    partial.rename(path)  # a chunk exists whole or not at all, so a killed run resumes


class PictureStore:
    """Pixels uint8 (count, side, side, 3) on disk, in chunks of CHUNK, memory-mapped."""

    def __init__(self, folder: Path, kind: str, specs: list[Spec], seed: int) -> None:
        self.folder, self.kind, self.specs, self.seed = folder / kind, kind, specs, seed
        self._chunks: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return len(self.specs)

    def draw(self, on_done: Callable[[int], None], workers: int | None = None) -> None:
        """Draw what is missing; `on_done` is told how many pictures were finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{start:07d}.npy" for start in range(0, len(self), CHUNK)]
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            jobs = {}
            for i, path in enumerate(paths):
                span = range(i * CHUNK, min((i + 1) * CHUNK, len(self)))
                if path.exists():
                    on_done(len(span))
                    continue
                specs, seeds = [self.specs[n] for n in span], [self.seed + n for n in span]
                jobs[pool.submit(_draw_chunk, path, self.kind, specs, seeds)] = len(span)
            for job, count in jobs.items():
                job.result()
                on_done(count)
        self._chunks = [np.load(path, mmap_mode="r") for path in paths]

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels uint8 (len(numbers), side, side, 3)."""
        return np.stack([self._chunks[n // CHUNK][n % CHUNK] for n in numbers])


def shifted(pixels: NDArray[np.uint8], rng: np.random.Generator, reach: int = 5) -> NDArray[np.uint8]:
    """Each picture moved by up to `reach` pixels, edges repeated: the only augmentation that changes no attribute."""
    side = pixels.shape[1]
    padded = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * reach + 1, (len(pixels), 2))
    return np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(padded, corners, strict=True)])
