"""Pictures that answer no question, up to a million: real ones drawn and put through the image tower, then synthetic
vectors made from them.

A synthetic vector is that of a picture nobody drew: raw features = the mean that its specification predicts + what a
real picture of the same category and pattern has beyond its own prediction. The prediction is linear in the attributes
and in all pairs of them, fitted on the real distractors; so the synthetic ones have every specification, and the real
ones' scatter. Whether that makes them as hard to beat is measured (scale.py, `check`), not assumed. Ours.

Real features are kept in files of CHUNK, so that a killed run goes on. Called by scale.py."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_samples.catalogue import ATTRIBUTES, Spec, random_spec
from pocketlens_samples.queries import Picture

from pocketlens_bench.lab import BATCH, Lab, Vectors
from pocketlens_bench.world import OnProgress, photographed

CHUNK = 2_000
RIDGE = 1.0
SAYS = (
    "Distractors: pictures of the sample world whose specification answers no question, drawn, written as JPEG files "
    "and put through the large image tower, as long as they last; above that synthetic raw features: a prediction from "
    "a random specification's attributes and all pairs of them, fitted on those pictures, plus the residual of a real "
    "picture of the same category and pattern; then made gallery vectors by the bundle's own target head"
)


@dataclass(frozen=True)
class Real:
    """Distractor pictures: raw image features (count, dim) and what each shows."""

    features: NDArray[np.float32]
    specs: tuple[Spec, ...]


def pictures(count: int, seed: int, wanted: Collection[Spec]) -> list[Picture]:
    """Pictures of random specifications, held-out ones too, none of them `wanted` by a question."""
    rng = np.random.default_rng([seed, 81_001])
    drawn: list[Picture] = []
    while len(drawn) < count:
        spec = random_spec(rng, held_out=None)
        picture = Picture(f"distractor-{len(drawn):07d}", spec, int(rng.integers(2**31)))
        if spec not in wanted:
            drawn.append(picture)
    return drawn


def real(lab: Lab, count: int, *, seed: int, wanted: Collection[Spec], folder: Path, on_progress: OnProgress) -> Real:
    """`count` distractor pictures; features already in `folder` are read, not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    every = pictures(count, seed, wanted)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, count, CHUNK):
        some = every[start : start + CHUNK]
        file = folder / f"raw-{start:07d}-{_digest(some)}.npy"
        if not file.exists():
            partial = file.with_suffix(".partial.npy")
            np.save(partial, _features(lab, some))
            os.replace(partial, file)
        parts.append(np.load(file))
        on_progress("distractor pictures", start + len(some), count)
    return Real(np.concatenate(parts), tuple(picture.spec for picture in every))


def _digest(some: Sequence[Picture]) -> str:
    """Which pictures these are: what they show and how they were drawn."""
    return hashlib.sha256(repr([(picture.spec, picture.seed) for picture in some]).encode()).hexdigest()[:16]


def _features(lab: Lab, some: Sequence[Picture]) -> NDArray[np.float32]:
    files = photographed(some, processes=lab.threads)
    batches = (lab.pixels(files[start : start + BATCH]) for start in range(0, len(files), BATCH))
    return np.concatenate([lab.tower.features(pixels)[0] for pixels in batches])


def synthetic(of: Real, count: int, *, seed: int, wanted: Collection[Spec]) -> Iterator[NDArray[np.float32]]:
    """Raw features (up to CHUNK, dim) block by block, of random specifications, none of them `wanted`."""
    if not count:
        return
    weights = _fitted(of)
    residuals = _residuals(of)
    donors: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, spec in enumerate(of.specs):
        donors[spec.category, spec.pattern].append(place)
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([seed, 81_002, start])
        rows = min(CHUNK, count - start)
        specs = [spec for spec in (random_spec(rng, held_out=None) for _ in range(2 * rows)) if spec not in wanted][
            :rows
        ]
        some = [donors[spec.category, spec.pattern] or range(len(of.specs)) for spec in specs]
        given = [places[int(rng.integers(len(places)))] for places in some]
        yield (encoded(specs) @ weights + residuals[given]).astype(np.float32)


def encoded(specs: Sequence[Spec]) -> NDArray[np.float32]:
    """(specs, attributes and pairs of them) 0 or 1: which values, and which two values together, each shows."""
    single = np.concatenate(
        [
            np.array([[getattr(spec, name) == value for value in values] for spec in specs])
            for name, values in ATTRIBUTES.items()
        ],
        axis=1,
    )
    first, second = np.triu_indices(single.shape[1], 1)
    return np.concatenate([single, single[:, first] & single[:, second]], axis=1).astype(np.float32)


def _residuals(of: Real) -> NDArray[np.float32]:
    """What each picture has beyond a prediction that was fitted on the other half of them: beyond one that had seen
    it, it would be too little."""
    halves = [Real(of.features[part::2], of.specs[part::2]) for part in (0, 1)]
    residuals = np.empty_like(of.features)
    for part, half in enumerate(halves):
        residuals[part::2] = half.features - encoded(half.specs) @ _fitted(halves[1 - part])
    return residuals


def _fitted(of: Real) -> NDArray[np.float32]:
    """Ridge regression of raw features on what is shown, (encoded, dim)."""
    width = encoded(of.specs[:1]).shape[1]
    inner, outer = RIDGE * np.eye(width), np.zeros((width, of.features.shape[1]))
    for start in range(0, len(of.specs), CHUNK):
        shown = encoded(of.specs[start : start + CHUNK]).astype(np.float64)
        inner += shown.T @ shown
        outer += shown.T @ of.features[start : start + CHUNK]
    return np.linalg.solve(inner, outer).astype(np.float32)


def vectors(lab: Lab, raw: NDArray[np.float32]) -> dict[str, Vectors]:
    """The gallery's named vectors of raw features (count, dim)."""
    made = {"original": raw / np.linalg.norm(raw, axis=1, keepdims=True)}
    union = lab.tower.union(raw)
    return made if union is None else {**made, "union": union}
