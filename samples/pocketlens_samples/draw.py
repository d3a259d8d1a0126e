"""Owns the pixels: a specification and a seed become one picture or one pencil sketch.

Both are drawn at three times their size and reduced. The seed alone decides the nuisance (place,
tilt, proportions, tint, light, floor, phase of the pattern), so two specifications drawn with one
seed differ only in what their attributes say.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pocketlens_samples.catalogue import Spec
from pocketlens_samples.outlines import Layer, outline
from pocketlens_samples.palette import (
    BODY,
    GROUND,
    INK,
    LIGHT_BODIES,
    Colour,
    ground,
    mixed,
    tinted,
)
from pocketlens_samples.patterns import hatching_mask, pattern_mask
from pocketlens_samples.shapes import Points
from pocketlens_samples.staging import (
    CANVAS,
    HEIGHTS,
    ZOOM,
    Nuisance,
    centres,
    nuisance_of,
    placed,
)

# On these a dark contour would vanish or a dark thing would sink.
LIGHT_CONTOUR = {"navy", "wooden table", "grass"}

PAPER: Colour = (250, 250, 250)


def draw_picture(spec: Spec, seed: int) -> np.ndarray:
    """The photo of a specification: uint8 (96, 96, 3), RGB."""
    nuisance = nuisance_of(np.random.default_rng(seed))
    canvas = ground(spec.background, nuisance)
    pen = ImageDraw.Draw(canvas)
    height = HEIGHTS[spec.count][spec.size] * nuisance.scale
    paints = _paints(spec, nuisance)
    contour = (250, 246, 232) if spec.background in LIGHT_CONTOUR else (38, 36, 42)
    tile = _tile(spec, height, nuisance, paints)
    layers = outline(spec.category, part=spec.part, proportions=nuisance.proportions)
    for index, centre in enumerate(centres(spec.count, height, nuisance)):
        _shadow(pen, centre, height, paints["shadow"])
        for layer in layers:
            points = placed(layer.points, centre, height, nuisance, index)
            _fill(canvas, pen, layer, points, paints, tile, centre, contour)
    return np.array(canvas.reduce(ZOOM))


def draw_sketch(spec: Spec, seed: int) -> np.ndarray:
    """A pencil sketch: uint8 (96, 96, 3), dark on near-white, no colour and no background."""
    rng = np.random.default_rng(seed)
    nuisance = nuisance_of(rng)
    canvas = Image.new("L", (CANVAS, CANVAS), PAPER[0])
    pen = ImageDraw.Draw(canvas)
    height = HEIGHTS[spec.count][spec.size] * nuisance.scale
    pencil = int(rng.integers(25, 75))
    hatching = hatching_mask(spec.pattern, height, nuisance)
    layers = outline(spec.category, part=spec.part, proportions=nuisance.proportions)
    for index, centre in enumerate(centres(spec.count, height, nuisance)):
        for layer in layers:
            points = placed(layer.points, centre, height, nuisance, index)
            pen.polygon(points.ravel().tolist(), fill=PAPER[0])
            if layer.paint == "body" and hatching is not None:
                _paste_through(canvas, pencil + 40, hatching, points, centre)
            _pencil_line(pen, points, pencil, rng)
    return np.repeat(np.asarray(canvas.reduce(ZOOM))[:, :, None], 3, axis=2)


def _paints(spec: Spec, nuisance: Nuisance) -> dict[str, Colour]:
    body = tinted(BODY[spec.colour], nuisance.body_tint)
    floor = tinted(GROUND[spec.background], nuisance.ground_tint)
    return {
        "body": body,
        "trim": mixed(body, (0, 0, 0), 0.12),
        "ink": tinted(INK[spec.colour], nuisance.body_tint),
        "accent": (52, 52, 70) if spec.colour in LIGHT_BODIES else (246, 206, 110),
        "dark": (70, 66, 68),
        "hand": (30, 30, 34),
        "light": (250, 248, 240),
        "lace": (252, 252, 250),
        "leaf": (44, 140, 60),
        "bloom": (255, 232, 90) if spec.background != "peach" else (255, 244, 120),
        "shadow": mixed(floor, (0, 0, 0), 0.28),
    }


@cache
def _ramp() -> Image.Image:
    """Bright to dark from left to right, (256, 256) L."""
    return Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90)


def _tile(spec: Spec, height: float, nuisance: Nuisance, paints: dict[str, Colour]) -> Image.Image:
    """The body's surface: pattern, then light from one side."""
    mask = pattern_mask(spec.pattern, height, nuisance)
    tile = Image.new("RGB", mask.size, paints["body"])
    if spec.pattern != "plain":
        tile.paste(paints["ink"], mask=mask)
    strength = 0.26 * nuisance.shade
    ramp = _ramp().resize(mask.size, Image.Resampling.NEAREST).point(_scaled(strength))
    if nuisance.light_from_left:
        ramp = ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile.paste((0, 0, 0), mask=ramp)
    return tile


def _scaled(strength: float) -> list[int]:
    return [int(level * strength) for level in range(256)]


def _shadow(pen: ImageDraw.ImageDraw, centre: tuple[float, float], height: float, colour: Colour) -> None:
    x, foot = centre[0] * ZOOM, (centre[1] + height * 0.46) * ZOOM
    wide, tall = height * ZOOM * 0.44, height * ZOOM * 0.06
    pen.ellipse((x - wide, foot - tall, x + wide, foot + tall), fill=colour)


def _fill(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, layer: Layer, points: Points,
    paints: dict[str, Colour], tile: Image.Image, centre: tuple[float, float], contour: Colour,
) -> None:  # fmt: skip
    flat = points.ravel().tolist()
    if layer.paint not in ("lace", "hand"):  # too thin to carry a contour
        pen.line(flat + flat[:4], fill=contour, width=6)
    if layer.paint != "body":
        pen.polygon(flat, fill=paints[layer.paint])
        return
    corner = _corner(centre, tile.width)
    canvas.paste(tile, corner, _cut(points, corner, tile.width))


def _corner(centre: tuple[float, float], side: int) -> tuple[int, int]:
    return round(centre[0] * ZOOM - side / 2), round(centre[1] * ZOOM - side / 2)


def _cut(points: Points, corner: tuple[int, int], side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon((points - corner).ravel().tolist(), fill=255)
    return mask


def _paste_through(
    canvas: Image.Image, level: int, hatching: Image.Image, points: Points,
    centre: tuple[float, float],
) -> None:  # fmt: skip
    corner = _corner(centre, hatching.width)
    cut = _cut(points, corner, hatching.width)
    canvas.paste(level, corner, Image.composite(hatching, Image.new("L", cut.size), cut))


def _pencil_line(pen: ImageDraw.ImageDraw, points: Points, level: int, rng: np.random.Generator) -> None:
    """A closed line with a trembling hand and a few gaps."""
    dense = _densified(points, step=14)
    dense = dense + rng.normal(0, 1.1, dense.shape)
    lifted = rng.random(len(dense)) < 0.05
    run: list[float] = []
    for (x, y), lift in zip(dense.tolist(), lifted.tolist(), strict=True):
        run += [x, y]
        if lift:
            if len(run) >= 4:
                pen.line(run, fill=level, width=4)
            run = []
    if not lifted[0]:
        run += dense[0].tolist()
    if len(run) >= 4:
        pen.line(run, fill=level, width=4)


def _densified(points: Points, step: float) -> Points:
    """Extra points on long edges of a closed polygon, at most `step` apart; (m, 2)."""
    ends = np.concatenate([points, points[:1]])
    lengths = np.hypot(*np.diff(ends, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    even = np.arange(0, along[-1], step)
    where = np.union1d(even, along[:-1])
    return np.stack([np.interp(where, along, ends[:, axis]) for axis in (0, 1)], axis=1)
