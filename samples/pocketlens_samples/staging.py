"""Owns where things stand and how they differ: sizes, places, and the nuisance of one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketlens_samples.catalogue import SIDE
from pocketlens_samples.outlines import Proportions
from pocketlens_samples.shapes import Points

ZOOM = 3  # drawn this much larger, then reduced
CANVAS = SIDE * ZOOM

# Heights in pixels of the finished picture, by count and size. The smallest keeps pattern and part
# readable; within one count the steps are wide enough that three sizes cannot be mistaken.
HEIGHTS: dict[int, dict[str, float]] = {
    1: {"small": 42, "medium": 60, "large": 80},
    2: {"small": 30, "medium": 39, "large": 49},
    3: {"small": 27, "medium": 34.5, "large": 43.5},
}


@dataclass(frozen=True)
class Nuisance:
    """Everything about a picture that no caption says. One seed, one value."""

    places: np.ndarray  # (3, 2) jitter in -1 .. 1
    tilts: np.ndarray  # (3,) degrees
    proportions: Proportions
    scale: float
    flip: bool
    layout: float  # 0 .. 1: who stands higher, or where the single one of three stands
    body_tint: np.ndarray  # (3,) factors
    ground_tint: np.ndarray  # (3,) factors
    light_from_left: bool
    shade: float
    floor: float  # where it meets the wall, as a share of the height
    phase: np.ndarray  # (2,) in 0 .. 1
    direction: int  # of stripes: across, upright, diagonal
    texture: np.ndarray  # (2,) in 0 .. 1


def nuisance_of(rng: np.random.Generator) -> Nuisance:
    """The order of the draws is part of every picture: change it and all pictures change."""
    return Nuisance(
        places=rng.uniform(-1, 1, (3, 2)),
        tilts=rng.uniform(-8, 8, 3),
        proportions=Proportions(*rng.uniform(-1, 1, 3)),
        scale=float(rng.uniform(0.965, 1.035)),
        flip=bool(rng.random() < 0.5),
        layout=float(rng.random()),
        body_tint=rng.uniform(0.93, 1.07) * rng.uniform(0.97, 1.03, 3),
        ground_tint=rng.uniform(0.96, 1.03) * rng.uniform(0.985, 1.015, 3),
        light_from_left=bool(rng.random() < 0.5),
        shade=float(rng.uniform(0.5, 1)),
        floor=float(rng.uniform(0.55, 0.85)),
        phase=rng.random(2),
        direction=int(rng.integers(3)),
        texture=rng.random(2),
    )


def centres(count: int, height: float, nuisance: Nuisance) -> list[tuple[float, float]]:
    """Centres in pixels of the finished picture, far enough apart to be counted."""
    half = height / 2
    low, high = half + 1, SIDE - half - 1
    middle = SIDE / 2
    if count == 1:
        spots, slack = [(middle, middle)], (high - low) / 2
    elif count == 2:
        # Side by side, the second higher or lower; what room is left becomes jitter.
        across = max((SIDE - 2 * height) / 4, 0)
        lift = (SIDE - height) / 2 * (nuisance.layout - 0.5)
        spots = [(SIDE / 4, middle - lift), (SIDE * 3 / 4, middle + lift)]
        slack = across
    else:
        slack = max((SIDE - 2 * height) / 4, 0)
        single, pair = (SIDE / 4, SIDE * 3 / 4)
        if nuisance.layout < 0.5:
            single, pair = pair, single
        spots = [(SIDE / 4, pair), (SIDE * 3 / 4, pair), (middle, single)]
    jitter = nuisance.places[:count] * max(slack - 0.5, 0)
    return [
        (float(np.clip(x + dx, low, high)), float(np.clip(y + dy, low, high)))
        for (x, y), (dx, dy) in zip(spots, jitter, strict=True)
    ]


def placed(points: Points, centre: tuple[float, float], height: float, nuisance: Nuisance, index: int) -> Points:
    """Unit coordinates to canvas coordinates; (n, 2)."""
    turn = np.radians(nuisance.tilts[index])
    c, s = np.cos(turn) * height * ZOOM, np.sin(turn) * height * ZOOM
    mirror = -1.0 if nuisance.flip else 1.0
    matrix = np.array([[c * mirror, s * mirror], [-s, c]])
    return points @ matrix + (centre[0] * ZOOM, centre[1] * ZOOM)
