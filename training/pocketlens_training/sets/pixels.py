"""From a picture's bytes to what a student or a teacher sees: fitted as the device will, varied for training.

Owns variation (a shift, a crop, a mirror image, pencil contrast) and edge maps that stand for sketches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from pocketlens_wire.pictures import PictureSpec, fit, open_picture
from torch.utils.data import Dataset

from pocketlens_training.sets.sources import Source

Pixels = NDArray[np.uint8]  # (side, side, 3) RGB
Variation = Literal["none", "shift", "crop", "crop-mirror"]
VARIATIONS: tuple[Variation, ...] = ("none", "shift", "crop", "crop-mirror")
REACH = 0.05  # a shift's reach, in sides
LEAST_AREA = 0.5  # of a crop
PALEST = 0.15  # contrast of the palest pencil


class Ask(NamedTuple):
    """One picture of a batch. kind: "photo", "edges" (its edge map) or "sketch" (pencil contrast varies)."""

    number: int
    seed: int
    kind: str = "photo"


def square(data: bytes, spec: PictureSpec, *, name: str | None = None) -> Pixels:
    """The picture as device and cloud see it. Raises BadPicture."""
    return fit(open_picture(data, name=name, near=spec.side), spec)


def varied(
    data: bytes, ask: Ask, spec: PictureSpec, variation: Variation, *, pale: bool = False, name: str | None = None
) -> Pixels:
    """The picture with the variation that `ask.seed` gives; the same seed gives the same pixels."""
    if not variation.startswith("crop"):
        return changed(square(data, spec, name=name), ask, variation, pale=pale)
    rng = np.random.default_rng([ask.seed, 1])
    picture = _cropped(open_picture(data, name=name, near=2 * spec.side), rng)
    if variation == "crop-mirror" and rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    return changed(fit(picture, spec), ask, variation, pale=pale)


def changed(pixels: Pixels, ask: Ask, variation: Variation, *, pale: bool = False) -> Pixels:
    """What a fitted picture becomes: its edge map, a paler sketch, moved a little."""
    rng = np.random.default_rng(ask.seed)
    if ask.kind == "edges":
        pixels = edge_map(pixels)
    if pale and ask.kind != "photo":
        pixels = _paler(pixels, rng)
    return _shifted(pixels, rng) if variation == "shift" else pixels


def edge_map(pixels: Pixels) -> Pixels:
    """Dark lines on white where the picture's brightness or colour changes: a sketch that costs no drawing hand.

    The largest gradient (Sobel) of the three channels, scaled so that its 98th percentile is black. Ours."""
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    padded = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    gx = across[:-2] + 2 * across[1:-1] + across[2:]
    gy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    strength = np.hypot(gx, gy).max(2)
    top = max(float(np.percentile(strength, 98)), 32.0)  # a bare wall must not become noise
    lines = 255.0 * (1.0 - np.clip(strength / top, 0, 1) ** 0.7)
    return np.repeat(lines.astype(np.uint8)[..., None], 3, 2)


def _shifted(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Moved by up to REACH of a side, edges repeated: the one variation that changes nothing a caption says."""
    side = pixels.shape[0]
    reach = max(1, round(REACH * side))
    y, x = rng.integers(-reach, reach + 1, 2).tolist()
    return _moved(_moved(pixels, y).transpose(1, 0, 2), x).transpose(1, 0, 2)


def _moved(pixels: Pixels, rows: int) -> Pixels:
    """Up by `rows`, down if that is negative; the edge repeated."""
    if rows == 0:
        return pixels
    moved = np.empty_like(pixels)
    if rows > 0:
        moved[:-rows], moved[-rows:] = pixels[rows:], pixels[-1]
    else:
        moved[-rows:], moved[:-rows] = pixels[:rows], pixels[0]
    return moved


def _cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of at least LEAST_AREA of the picture, its proportions bent by at most a third (Szegedy et al. 2015)."""
    width, height = picture.size
    area = rng.uniform(LEAST_AREA, 1.0) * width * height
    bend = np.exp(rng.uniform(-np.log(4 / 3), np.log(4 / 3)) / 2)
    proportion = width / height
    w = min(width, round(float(np.sqrt(area * proportion) * bend)))
    h = min(height, round(float(np.sqrt(area / proportion) / bend)))
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return picture.crop((int(left), int(top), int(left) + max(w, 1), int(top) + max(h, 1)))


def _paler(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Half of all sketches with less contrast, down to PALEST: people press a pencil differently."""
    if rng.random() < 0.5:
        return pixels
    contrast = rng.uniform(PALEST, 1.0)
    return (255 - contrast * (255.0 - pixels)).astype(np.uint8)


class Squares(Protocol):
    """Fitted pictures by number of their source; sets/kept.py has them on disk."""

    def take(self, number: int) -> Pixels: ...


class VariedPictures(Dataset):
    """What a DataLoader draws from: an Ask gives pixels uint8 (side, side, 3). "sketch" reads `sketches`.

    kept, kept_sketches: their squares, if they need not be decoded."""

    def __init__(
        self, photos: Source, spec: PictureSpec, variation: Variation, *, sketches: Source | None = None,
        pale: bool = False, kept: Squares | None = None, kept_sketches: Squares | None = None,
    ) -> None:  # fmt: skip
        self.photos, self.sketches = photos, sketches
        self.kept, self.kept_sketches = kept, kept_sketches
        self.variation: Variation = variation
        self.spec, self.pale = spec, pale

    def __getitem__(self, ask: Ask) -> Pixels:
        drawn = ask.kind == "sketch" and self.sketches is not None
        source, kept = (self.sketches, self.kept_sketches) if drawn else (self.photos, self.kept)
        if kept is not None:
            return changed(kept.take(ask.number), ask, self.variation, pale=self.pale)
        assert source is not None
        name = source.names[ask.number]
        return varied(source.read(ask.number), ask, self.spec, self.variation, pale=self.pale, name=name)


def stacked(pixels: Sequence[Pixels]) -> torch.Tensor:
    """Pixels of one batch: uint8 (batch, side, side, 3)."""
    return torch.from_numpy(np.stack(pixels))
