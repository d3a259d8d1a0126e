"""Owns the outlines of the twelve things, as polygons in a unit box.

x runs from -0.5 (left) to 0.5 (right), y from -0.5 (top) to 0.5 (foot). Each thing fills its box
whether or not it has its part, so that size stays readable: a vase makes room for its flowers.
Layers are listed back to front. draw.py decides what each paint looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pocketlens_samples.shapes import Points, arc, band, box, flower, mirrored, point_along, polygon


@dataclass(frozen=True)
class Layer:
    """One closed polygon. Paints: body (carries the pattern), trim (plain body colour),
    accent (contrasts with the body), dark, light, hand (of a clock), lace, leaf, bloom."""

    points: Points
    paint: str


@dataclass(frozen=True)
class Proportions:
    """Shape nuisance, each between -1 and 1."""

    width: float
    taper: float
    detail: float


def outline(category: str, *, part: bool, proportions: Proportions) -> list[Layer]:
    """The layers of one thing, back to front."""
    return _OUTLINES[category](part, proportions)


def _mug(part: bool, p: Proportions) -> list[Layer]:
    half = 0.36 + 0.03 * p.width
    foot = half * (0.86 + 0.1 * p.taper)
    shift = -0.13 if part else 0.0
    body = mirrored([(half, -0.42), (foot, 0.36), (foot - 0.06, 0.44)]) + (shift, 0)
    layers = [
        Layer(body, "body"),
        Layer(arc((shift, -0.41), (half, 0.075)), "dark"),
    ]
    if part:
        ring = arc((shift + half - 0.04, 0.0), (0.27, 0.27 + 0.03 * p.detail), degrees=(-80, 80))
        layers.insert(0, Layer(band(ring, 0.11), "trim"))
    return layers


def _lamp(part: bool, p: Proportions) -> list[Layer]:
    top = 0.2 + 0.05 * p.taper
    bottom = 0.45 + 0.03 * p.width
    rim = 0.12
    layers = [
        Layer(box(-0.05, rim, 0.05, 0.44), "dark"),
        Layer(mirrored([(0.12, 0.38), (0.28, 0.46), (0.28, 0.5)]), "dark"),
    ]
    if part:
        teeth = np.linspace(-bottom + 0.01, bottom - 0.01, 6)
        for left, right in pairwise(teeth):
            tip = ((left + right) / 2, rim + 0.2)
            layers.append(Layer(polygon((left, rim - 0.02), (right, rim - 0.02), tip), "accent"))
    layers.append(Layer(mirrored([(top, -0.5), (bottom, rim)]), "body"))
    return layers


def _chair(part: bool, p: Proportions) -> list[Layer]:
    back = 0.31 + 0.02 * p.width
    seat = 0.06 + 0.02 * p.detail
    layers = [
        Layer(band(polygon((x, seat + 0.1), (x * (1.06 + 0.05 * p.taper), 0.5)), 0.09), "dark") for x in (-0.33, 0.33)
    ]
    layers += [
        Layer(mirrored([(back - 0.04, -0.5), (back, -0.44), (back, seat)]), "body"),
        Layer(mirrored([(0.34, seat - 0.02), (0.42, seat + 0.2)]), "body"),
    ]
    if part:
        for side in (-1, 1):
            post = polygon((0.43, -0.18), (0.43, seat + 0.16)) * (side, 1)
            layers.append(Layer(band(post, 0.1), "accent"))
            layers.append(Layer(arc((0.42 * side, -0.19), (0.11, 0.075), steps=12), "accent"))
    return layers


def _bottle(part: bool, p: Proportions) -> list[Layer]:
    half = 0.27 + 0.03 * p.width
    shoulder = -0.12 + 0.04 * p.taper
    neck = 0.09
    profile = [(neck, -0.5), (neck, shoulder - 0.14), (half - 0.04, shoulder - 0.04),
               (half, shoulder + 0.06), (half, 0.45), (half - 0.05, 0.5)]  # fmt: skip
    layers = [Layer(mirrored(profile), "body")]
    if part:
        layers.append(Layer(box(-0.17, -0.5, 0.17, -0.29), "accent"))
    else:
        layers.append(Layer(arc((0, -0.48), (neck + 0.03, 0.035), steps=12), "dark"))
    return layers


def _shoe(part: bool, p: Proportions) -> list[Layer]:
    ankle = 0.0 + 0.04 * p.width
    toe = 0.06 + 0.03 * p.taper
    upper = polygon(
        (-0.47, -0.42), (ankle, -0.42), (ankle + 0.05, -0.16), (0.2, toe - 0.08), (0.38, toe),
        (0.47, toe + 0.1), (0.49, 0.3), (-0.48, 0.3), (-0.45, 0.0),
    )  # fmt: skip
    layers = [
        Layer(upper, "body"),
        Layer(polygon((-0.49, 0.28), (0.5, 0.28), (0.49, 0.42), (-0.48, 0.42)), "light"),
    ]
    if part:
        front = polygon((ankle - 0.1, -0.4), (ankle - 0.07, -0.15), (0.13, toe - 0.02))
        layers.append(Layer(band(front, 0.24), "dark"))
        for t in (0.08, 0.36, 0.64, 0.92):
            x, y = point_along(front, t)
            lace = polygon((x - 0.12, y + 0.05), (x + 0.12, y - 0.05))
            layers.append(Layer(band(lace, 0.06), "lace"))
    return layers


def _bag(part: bool, p: Proportions) -> list[Layer]:
    top = -0.1 if part else -0.36
    wide = 0.44 + 0.04 * p.width
    narrow = wide * (0.84 + 0.08 * p.taper)
    body = mirrored([(narrow - 0.03, top), (narrow, top + 0.04), (wide, 0.36), (wide - 0.07, 0.44)])
    layers = [Layer(body, "body")]
    if part:
        ring = arc((0, top + 0.08), (0.29 + 0.03 * p.detail, 0.44), degrees=(180, 360))
        layers.insert(0, Layer(band(ring, 0.11), "accent"))
    layers.append(Layer(mirrored([(narrow - 0.02, top), (narrow, top + 0.1)]), "trim"))
    layers.append(Layer(box(-0.06, top + 0.04, 0.06, top + 0.17), "light"))
    return layers


def _hat(part: bool, p: Proportions) -> list[Layer]:
    crown = 0.31 + 0.03 * p.width
    top = -0.4 + 0.03 * p.detail
    layers = [
        Layer(arc((0, 0.3), (0.5, 0.13 + 0.02 * p.taper)), "trim"),
        Layer(
            mirrored([(crown - 0.12, top), (crown - 0.03, top + 0.07), (crown, 0.3), (0.12, 0.36)]),
            "body",
        ),
    ]
    if part:
        feather = polygon((0.1, 0.26), (0.12, 0.0), (0.24, -0.32), (0.44, -0.5),
                          (0.48, -0.24), (0.38, 0.04), (0.2, 0.26))  # fmt: skip
        layers.append(Layer(feather, "accent"))
        layers.append(Layer(band(polygon((0.15, 0.26), (0.26, -0.04), (0.4, -0.36)), 0.03), "dark"))
    return layers


def _clock(part: bool, p: Proportions) -> list[Layer]:
    top = -0.28 if part else -0.44
    half = 0.43 + 0.03 * p.width
    middle = (0.0, (top + 0.44) / 2)
    corner = 0.08 + 0.04 * p.taper
    body = mirrored([(half - corner, top), (half, top + corner), (half, 0.44 - corner), (half - corner, 0.44)])
    layers = []
    if part:
        layers += [Layer(arc((0.25 * side, top), (0.19, 0.21), degrees=(180, 360)), "accent") for side in (-1, 1)]
    layers.append(Layer(body, "body"))
    layers.append(Layer(arc(middle, (0.23, 0.23)), "light"))
    angle = np.pi * (0.25 + 0.25 * p.detail)
    for turn, length in ((angle, 0.14), (angle + 2.0, 0.19)):
        tip = (middle[0] + length * np.sin(turn), middle[1] - length * np.cos(turn))
        layers.append(Layer(band(polygon(middle, tip), 0.05), "hand"))
    return layers


def _vase(part: bool, p: Proportions) -> list[Layer]:
    top = -0.12 if part else -0.48
    height = 0.49 - top
    belly = 0.33 + 0.04 * p.width
    neck = 0.17 + 0.03 * p.taper
    profile = [(neck + 0.07, 0.0), (neck, 0.16), (belly * 0.86, 0.36), (belly, 0.52),
               (belly * 0.92, 0.7), (neck + 0.04, 0.94), (neck + 0.05, 1.0)]  # fmt: skip
    layers = []
    if part:
        heads = [(-0.28, -0.26), (0.28, -0.26), (0.0, -0.36 + 0.02 * p.detail)]
        layers += [Layer(band(polygon((0, top + 0.1), head), 0.05), "leaf") for head in heads]
        for head in heads:
            layers.append(Layer(flower(head, 0.15), "bloom"))
            layers.append(Layer(arc(head, (0.05, 0.05), steps=8), "dark"))
    layers.append(Layer(mirrored([(x, top + y * height) for x, y in profile]), "body"))
    return layers


def _book(part: bool, p: Proportions) -> list[Layer]:
    half = 0.33 + 0.03 * p.width
    top = -0.4 if part else -0.48
    layers = [
        Layer(box(-half + 0.04, top + 0.05, half + 0.08, 0.48), "light"),
        Layer(box(-half, top, half, 0.4), "body"),
        Layer(box(-half, top, -half + 0.11 + 0.02 * p.taper, 0.4), "trim"),
    ]
    if part:
        left = 0.04 + 0.04 * p.detail
        tail = polygon((left, -0.5), (left + 0.2, -0.5), (left + 0.2, 0.1), (left + 0.1, 0.0),
                       (left, 0.1))  # fmt: skip
        layers.append(Layer(tail, "accent"))
    return layers


def _shirt(part: bool, p: Proportions) -> list[Layer]:
    half = 0.26 + 0.02 * p.width
    hem = half + 0.02 * p.taper
    torso = mirrored([(0.13, -0.46), (half, -0.4), (half, -0.1), (hem, 0.47)])
    layers = []
    for side in (-1, 1):
        if part:
            sleeve = [(0.2, -0.43), (0.33, -0.36), (0.5, 0.26), (0.36, 0.31), (half - 0.03, -0.06)]
            cuff = [(0.48, 0.2), (0.51, 0.31), (0.37, 0.36), (0.34, 0.25)]
            layers.append(Layer(polygon(*sleeve) * (side, 1), "body"))
            layers.append(Layer(polygon(*cuff) * (side, 1), "accent"))
        else:
            sleeve = [
                (0.2, -0.43),
                (0.34, -0.36),
                (0.5, -0.16),
                (0.38, -0.04),
                (half - 0.03, -0.14),
            ]
            layers.append(Layer(polygon(*sleeve) * (side, 1), "body"))
    layers.append(Layer(torso, "body"))
    neck = arc((0, -0.455), (0.13, 0.1 + 0.03 * p.detail), degrees=(0, 180), steps=9)
    layers.append(Layer(neck, "dark"))
    return layers


def _umbrella(part: bool, p: Proportions) -> list[Layer]:
    return _open_umbrella(p) if part else _closed_umbrella(p)


def _open_umbrella(p: Proportions) -> list[Layer]:
    edge = 0.04 + 0.03 * p.taper
    dome = arc((0, edge), (0.5, 0.48 + 0.02 * p.width), degrees=(180, 360))
    scallops = [arc((x, edge), (0.125, 0.06), degrees=(0, -180), steps=7)[1:-1] for x in (0.375, 0.125, -0.125, -0.375)]
    hook = np.concatenate(
        [
            polygon((0, edge - 0.1), (0, 0.4)),
            arc((-0.1, 0.4), (0.1, 0.09), degrees=(0, 170), steps=7),
        ]
    )
    return [
        Layer(band(hook, 0.055), "dark"),
        Layer(np.concatenate([dome, *scallops]), "body"),
        Layer(arc((0, -0.46), (0.04, 0.04), steps=8), "dark"),
    ]


def _closed_umbrella(p: Proportions) -> list[Layer]:
    wide = 0.22 + 0.02 * p.width
    shoulder = -0.2 + 0.03 * p.taper
    hook = np.concatenate(
        [
            arc((-0.1, -0.38), (0.1, 0.09), degrees=(-170, 0), steps=7),
            polygon((0, -0.34), (0, -0.1)),
        ]
    )
    cone = mirrored([(0.06, shoulder - 0.06), (wide * 0.8, shoulder), (wide, shoulder + 0.1),
                     (0.14, 0.26), (0.035, 0.4)])  # fmt: skip
    return [
        Layer(band(hook, 0.065), "dark"),
        Layer(band(polygon((0, 0.36), (0, 0.5)), 0.05), "dark"),
        Layer(cone, "body"),
    ]


_OUTLINES: dict[str, Callable[[bool, Proportions], list[Layer]]] = {
    "mug": _mug, "lamp": _lamp, "chair": _chair, "bottle": _bottle, "shoe": _shoe, "bag": _bag,
    "hat": _hat, "clock": _clock, "vase": _vase, "book": _book, "shirt": _shirt,
    "umbrella": _umbrella,
}  # fmt: skip
