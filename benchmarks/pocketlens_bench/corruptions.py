"""What can happen to a picture before the device sees it: ten corruptions at five strengths.

After the idea of Hendrycks and Dietterich (ICLR 2019, ImageNet-C), but ours: another choice, other strengths, meant for
pictures of 96 pixels. A corruption acts on what the camera saw, before the JPEG file is written at the usual quality;
JPEG's own corruption is that quality. The draws of one picture (noise, direction, place) follow from its number, the
corruption's name and the seed, and are the same at every strength where the corruption allows it. NumPy and Pillow
only: the processes that corrupt start quickly. Called by robustness.py."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, cos, pi, sin
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketlens_bench.world import JPEG_QUALITY

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One thing that can happen. levels: its strength at each severity; says: what is done and the levels' unit."""

    name: str
    says: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[[Pixels, float, Generator], Pixels]
    is_jpeg: bool = False  # then the level is the file's quality and nothing is done to the pixels

    def file(self, pixels: Pixels, severity: int, *, seed: int, number: int) -> bytes:
        """The JPEG file of the corrupted picture; `number` tells pictures apart."""
        level = self.levels[severity - 1]
        rng = np.random.default_rng([seed, number, crc32(self.name.encode())])
        return jpeg_file(self.apply(pixels, level, rng), int(level) if self.is_jpeg else JPEG_QUALITY)


def jpeg_file(pixels: Pixels, quality: int = JPEG_QUALITY) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


# --- blur


def gaussian_blur(pixels: Pixels, sigma: float, _: Generator) -> Pixels:
    reach = ceil(3 * sigma)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    bell /= bell.sum()
    return rounded(convolved(convolved(pixels.astype(np.float32), bell[:, None]), bell[None, :]))


def motion_blur(pixels: Pixels, length: float, rng: Generator) -> Pixels:
    angle = rng.uniform(0, pi)
    return rounded(convolved(pixels.astype(np.float32), line_kernel(length, angle)))


def line_kernel(length: float, angle: float) -> NDArray[np.float64]:
    """(n, n), sum 1: a straight stroke through the middle, `length` pixels long, spread over neighbouring pixels."""
    reach = ceil(length / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for along in np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * ceil(length)):
        y, x = reach + along * sin(angle), reach + along * cos(angle)
        top, left = int(y), int(x)
        down, right = y - top, x - left
        kernel[top, left] += (1 - down) * (1 - right)
        kernel[top, min(left + 1, 2 * reach)] += (1 - down) * right
        kernel[min(top + 1, 2 * reach), left] += down * (1 - right)
        kernel[min(top + 1, 2 * reach), min(left + 1, 2 * reach)] += down * right
    return kernel / kernel.sum()


def convolved(picture: Floats, kernel: NDArray[np.float64]) -> Floats:
    """The picture under a kernel of odd sides; beyond the border its outermost pixels go on."""
    height, width = picture.shape[:2]
    above, before = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(picture, ((above, above), (before, before), (0, 0)), mode="edge")
    total = np.zeros_like(picture)
    for row, column in np.argwhere(kernel > 0):
        total += np.float32(kernel[row, column]) * padded[row : row + height, column : column + width]
    return total


# --- noise


def gaussian_noise(pixels: Pixels, deviation: float, rng: Generator) -> Pixels:
    return rounded(pixels + np.float32(deviation) * rng.standard_normal(pixels.shape, np.float32))


def shot_noise(pixels: Pixels, photons: float, rng: Generator) -> Pixels:
    return rounded(rng.poisson(pixels * (photons / 255)) * (255 / photons))


# --- light


def darker(pixels: Pixels, stops: float, _: Generator) -> Pixels:
    return exposed(pixels, np.full(3, 2**-stops))


def brighter(pixels: Pixels, stops: float, _: Generator) -> Pixels:
    return exposed(pixels, np.full(3, 2**stops))


def colour_cast(pixels: Pixels, stops: float, rng: Generator) -> Pixels:
    half = 2 ** (stops / 2)
    warm, cold = np.array([half, 1, 1 / half]), np.array([1 / half, 1, half])
    return exposed(pixels, warm if rng.random() < 0.5 else cold)


def exposed(pixels: Pixels, gains: NDArray[np.float64]) -> Pixels:
    """Each channel's light multiplied, as a longer exposure or a coloured lamp does; what is too much is clipped."""
    return rounded(255 * _to_srgb(np.clip(_to_light(pixels / 255) * gains, 0, 1)))


def _to_light(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def low_contrast(pixels: Pixels, left: float, _: Generator) -> Pixels:
    middle = pixels.mean(axis=(0, 1))
    return rounded(middle + (pixels - middle) * left)


# --- what stands in the way, and the file itself


def occlusion(pixels: Pixels, share: float, rng: Generator) -> Pixels:
    grey = 128 if rng.random() < 0.5 else 0
    place = rng.random(2)
    sides = np.rint(np.sqrt(share) * np.array(pixels.shape[:2])).astype(int)
    top, left = np.rint(place * (np.array(pixels.shape[:2]) - sides)).astype(int)
    covered = pixels.copy()
    covered[top : top + sides[0], left : left + sides[1]] = grey
    return covered


def as_it_is(pixels: Pixels, _level: float, _: Generator) -> Pixels:
    return pixels


def rounded(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CORRUPTIONS = (
    Corruption(
        name="gaussian blur", says="out of focus: Gaussian of this many pixels' standard deviation",
        levels=(0.5, 0.9, 1.4, 2.0, 3.0), apply=gaussian_blur,
    ),
    Corruption(
        name="motion blur", says="a stroke this many pixels long, direction drawn",
        levels=(3, 5, 7, 10, 14), apply=motion_blur,
    ),
    Corruption(
        name="gaussian noise", says="added to every channel, standard deviation in grey levels of 255",
        levels=(10, 20, 30, 45, 65), apply=gaussian_noise,
    ),
    Corruption(
        name="shot noise", says="Poisson, this many photons for a white channel; fewer are worse",
        levels=(200, 80, 40, 20, 10), apply=shot_noise,
    ),
    Corruption(
        name="darker", says="light divided by 2 to this power (stops), in linear light",
        levels=(0.5, 1.0, 1.5, 2.0, 3.0), apply=darker,
    ),
    Corruption(
        name="brighter", says="light multiplied by 2 to this power (stops), in linear light, clipped at white",
        levels=(0.25, 0.5, 0.75, 1.0, 1.5), apply=brighter,
    ),
    Corruption(
        name="low contrast", says="differences from the picture's mean colour shrunk to this share",
        levels=(0.7, 0.5, 0.35, 0.25, 0.15), apply=low_contrast,
    ),
    Corruption(
        name="colour cast", says="a warm or cold lamp, drawn: stops between red and blue, in linear light",
        levels=(0.25, 0.5, 1.0, 1.5, 2.0), apply=colour_cast,
    ),
    Corruption(
        name="jpeg", says=f"quality of the JPEG file, instead of {JPEG_QUALITY}",
        levels=(50, 30, 18, 10, 5), apply=as_it_is, is_jpeg=True,
    ),
    Corruption(
        name="occlusion", says="a grey or black square over this share of the area, place drawn",
        levels=(0.04, 0.09, 0.16, 0.25, 0.36), apply=occlusion,
    ),
)  # fmt: skip


# --- the contact sheet

GAP, LABEL, HEAD = 4, 108, 18  # pixels


def contact_sheet(pixels: Pixels, *, seed: int) -> Image.Image:
    """One picture under everything: a row per corruption; clean, then severities 1 to 5, with their levels."""
    height, width = pixels.shape[:2]
    down, right = height + HEAD + GAP, width + GAP
    sheet = Image.new("RGB", (LABEL + right * (1 + len(SEVERITIES)), HEAD + down * len(CORRUPTIONS)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(["clean", *(f"severity {severity}" for severity in SEVERITIES)]):
        draw.text((LABEL + right * column, 3), title, "black", font)
    for row, corruption in enumerate(CORRUPTIONS):
        top = HEAD + down * row
        draw.text((GAP, top + height // 2), corruption.name, "black", font)
        files = [corruption.file(pixels, severity, seed=seed, number=0) for severity in SEVERITIES]
        for column, file in enumerate([jpeg_file(pixels), *files]):
            sheet.paste(Image.open(io.BytesIO(file)), (LABEL + right * column, top))
            if column:
                said = f"{corruption.levels[column - 1]:g}"
                draw.text((LABEL + right * column, top + height), said, "black", font)
    return sheet
