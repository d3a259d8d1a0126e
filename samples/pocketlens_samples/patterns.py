"""Owns the four patterns: as surfaces of a photo and as a pencil shows them.

All masks are L images somewhat larger than the thing, 255 where the second colour or the pencil is.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pocketlens_samples.staging import ZOOM, Nuisance


def _period(height: float, least: float) -> float:
    """How wide one repeat of a pattern is, on the canvas. Never too fine to survive reduction."""
    return ZOOM * max(height * 0.17, least)


def pattern_mask(pattern: str, height: float, nuisance: Nuisance) -> Image.Image:
    """Where the second colour lies: an L image, somewhat larger than the thing."""
    side = int(height * ZOOM * 1.3)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if pattern == "striped":
        _stripes(pen, side, _period(height, 6), nuisance)
    elif pattern == "dotted":
        _dots(pen, side, _period(height, 7), nuisance, share=0.29, fill=255)
    elif pattern == "checked":
        _checks(pen, side, _period(height, 7.4), nuisance)
    return mask


def _stripes(pen: ImageDraw.ImageDraw, side: int, period: float, nuisance: Nuisance) -> None:
    width = round(period * 0.42)
    start = float(nuisance.phase[0]) * period
    if nuisance.direction == 2:  # diagonal: the repeat along x is longer by the square root of 2
        period *= 1.414
        for x in np.arange(start - side, side, period):
            pen.line((x, side, x + side, 0), fill=255, width=width)
        return
    for at in np.arange(start - period, side, period):
        ends = (at, 0, at, side) if nuisance.direction else (0, at, side, at)
        pen.line(ends, fill=255, width=width)


def _dots(
    pen: ImageDraw.ImageDraw, side: int, period: float, nuisance: Nuisance, *, share: float,
    fill: int | None,
) -> None:  # fmt: skip
    radius = period * share
    for row, y in enumerate(np.arange(float(nuisance.phase[1]) * period - period, side, period)):
        shift = float(nuisance.phase[0]) * period + (row % 2) * period / 2
        for x in np.arange(shift - period, side, period):
            spot = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(spot, fill=fill, outline=255, width=3)


def _checks(pen: ImageDraw.ImageDraw, side: int, period: float, nuisance: Nuisance) -> None:
    cell = period / 2
    left, top = (nuisance.phase * period - period).tolist()
    for row in range(int((side - top) / cell) + 1):
        y = top + row * cell
        for x in np.arange(left + (row % 2) * cell, side, period):
            pen.rectangle((round(x), round(y), round(x + cell) - 1, round(y + cell) - 1), fill=255)


def hatching_mask(pattern: str, height: float, nuisance: Nuisance) -> Image.Image | None:
    """How a pencil shows a pattern: lines, rings or a grid; None for plain."""
    if pattern == "plain":
        return None
    side = int(height * ZOOM * 1.3)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if pattern == "dotted":
        _dots(pen, side, _period(height, 7), nuisance, share=0.26, fill=255)
        return mask
    period = _period(height, 5.2)
    first = nuisance.phase * period - period
    if pattern == "checked" or nuisance.direction == 1:
        for x in np.arange(first[0], side, period):
            pen.line((x, 0, x, side), fill=255, width=3)
    if pattern == "checked" or nuisance.direction == 0:
        for y in np.arange(first[1], side, period):
            pen.line((0, y, side, y), fill=255, width=3)
    if pattern == "striped" and nuisance.direction == 2:
        for x in np.arange(first[0] - side, side, period * 1.414):
            pen.line((x, side, x + side, 0), fill=255, width=3)
    return mask
