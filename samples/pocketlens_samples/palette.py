"""Owns the colours: of things, of their patterns, and of what they stand on."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pocketlens_samples.staging import CANVAS, Nuisance

Colour = tuple[int, int, int]

BODY: dict[str, Colour] = {
    "red": (212, 30, 38), "orange": (246, 128, 14), "yellow": (250, 214, 30),
    "green": (14, 132, 68), "blue": (30, 80, 205), "purple": (122, 42, 168),
    "pink": (246, 112, 180), "brown": (112, 62, 28), "black": (28, 28, 32),
    "white": (247, 247, 247),
}  # fmt: skip

# The pattern's second colour; the first covers more, so that the colour's name stays clear.
INK: dict[str, Colour] = {
    "red": (255, 240, 236), "orange": (255, 246, 228), "yellow": (146, 102, 8),
    "green": (228, 250, 232), "blue": (232, 240, 255), "purple": (244, 230, 255),
    "pink": (255, 244, 250), "brown": (246, 226, 196), "black": (232, 232, 236),
    "white": (128, 132, 142),
}  # fmt: skip

LIGHT_BODIES = {"orange", "yellow", "pink", "white"}

GROUND: dict[str, Colour] = {
    "white": (249, 249, 247), "grey": (166, 166, 169), "sky blue": (142, 204, 248),
    "mint": (166, 234, 200), "peach": (255, 203, 166), "navy": (36, 46, 96),
    "wooden table": (203, 154, 98), "grass": (112, 166, 58),
}  # fmt: skip


def tinted(colour: Colour, factors: np.ndarray) -> Colour:
    r, g, b = np.clip(np.array(colour) * factors, 0, 255).astype(int).tolist()
    return r, g, b


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    r, g, b = (round(x + (y - x) * share) for x, y in zip(first, second, strict=True))
    return r, g, b


def ground(background: str, nuisance: Nuisance) -> Image.Image:
    if background in ("wooden table", "grass"):
        texture = _wood() if background == "wooden table" else _grass()
        left, top = (nuisance.texture * (texture.width - CANVAS)).astype(int).tolist()
        return texture.crop((left, top, left + CANVAS, top + CANVAS))
    colour = tinted(GROUND[background], nuisance.ground_tint)
    canvas = Image.new("RGB", (CANVAS, CANVAS), colour)
    floor = round(nuisance.floor * CANVAS)
    canvas.paste(mixed(colour, (0, 0, 0), 0.07), (0, floor, CANVAS, CANVAS))
    return canvas


@cache
def _wood() -> Image.Image:
    rng = np.random.default_rng(1)
    side = CANVAS + 120
    canvas = Image.new("RGB", (side, side), GROUND["wooden table"])
    pen = ImageDraw.Draw(canvas)
    for top in range(0, side, 54):
        plank = tinted(GROUND["wooden table"], rng.uniform(0.9, 1.06) * np.ones(3))
        pen.rectangle((0, top, side, top + 53), fill=plank)
        for _ in range(5):
            y = top + int(rng.integers(6, 48))
            left = int(rng.integers(-60, side))
            grain = mixed(plank, (110, 66, 28), 0.3)
            pen.line((left, y, left + int(rng.integers(60, 220)), y + 2), fill=grain, width=3)
        pen.line((0, top, side, top), fill=(122, 80, 42), width=5)
    return canvas


@cache
def _grass() -> Image.Image:
    rng = np.random.default_rng(2)
    side = CANVAS + 120
    canvas = Image.new("RGB", (side, side), GROUND["grass"])
    pen = ImageDraw.Draw(canvas)
    for x, y, lean, shade in rng.random((1500, 4)):
        colour = tinted(GROUND["grass"], np.full(3, 0.72 + 0.5 * shade))
        left, top = x * side, y * side
        pen.line((left, top, left + 16 * (lean - 0.5), top - 24), fill=colour, width=4)
    return canvas
