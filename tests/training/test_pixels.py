"""What a student is shown: fitted as the device will, varied as its seed says, edge maps that look like sketches."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pocketlens_training.sets.pixels import PALEST, VARIATIONS, Ask, edge_map, square, varied
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec

SPEC = PictureSpec(side=32, fit="crop")


def noise(width: int = 90, height: int = 60) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return as_png(np.kron(pixels, np.ones((6, 6, 1), np.uint8)))


def as_png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("kind", ["photo", "edges", "sketch"])
def test_the_seed_alone_decides_and_the_shape_stays(variation, kind) -> None:
    data = noise()
    first, again, *others = (varied(data, Ask(0, seed, kind), SPEC, variation, pale=True) for seed in (7, 7, *range(6)))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    differ = any(not np.array_equal(first, other) for other in others)
    assert differ == (variation != "none" or kind != "photo")  # the others: paler sketches


def test_no_variation_is_what_the_device_sees() -> None:
    assert np.array_equal(varied(noise(), Ask(0, 3), SPEC, "none"), square(noise(), SPEC))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (33, 33), (12, 200)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_pictures_of_any_shape_stay_square(size, fit) -> None:
    spec = PictureSpec(side=24, fit=fit)
    for variation in VARIATIONS:
        assert varied(noise(*size), Ask(0, 1), spec, variation).shape == (24, 24, 3)


def test_a_shift_moves_and_changes_nothing_else() -> None:
    whole = square(noise(), SPEC)
    reach = 2  # 5 % of 32
    for seed in range(20):
        moved = varied(noise(), Ask(0, seed), SPEC, "shift")
        inner = moved[2 * reach : -2 * reach, 2 * reach : -2 * reach]
        shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
        assert any(
            np.array_equal(inner, whole[2 * reach + y : 32 - 2 * reach + y, 2 * reach + x : 32 - 2 * reach + x])
            for y, x in shifts
        )


def test_a_mirror_image_comes_half_the_time_and_only_where_asked() -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, :32] = 255  # light on the left
    data = as_png(half)

    def lighter_on_the_right(variation) -> int:
        made = [varied(data, Ask(0, seed), SPEC, variation).astype(int) for seed in range(40)]
        return sum(pixels[:, -4:].sum() > pixels[:, :4].sum() for pixels in made)

    assert 10 <= lighter_on_the_right("crop-mirror") <= 30
    assert lighter_on_the_right("crop") == 0


def test_edges_are_dark_lines_on_white_where_the_picture_changes() -> None:
    pixels = np.full((32, 32, 3), (200, 60, 60), np.uint8)
    pixels[8:24, 8:24] = (60, 60, 200)  # of another colour, about as bright
    drawn = edge_map(pixels)
    assert drawn.shape == pixels.shape and drawn.dtype == np.uint8
    assert np.array_equal(drawn[..., 0], drawn[..., 1]) and np.array_equal(drawn[..., 0], drawn[..., 2])
    assert drawn[16, 7:9].max() < 64 and drawn[23:25, 16].max() < 64  # upon the edges
    assert drawn[2:5, 2:5].min() > 250 and drawn[14:18, 14:18].min() > 250  # on the plains
    assert (drawn > 200).mean() > 0.5


def test_a_bare_wall_is_a_blank_sheet() -> None:
    assert edge_map(np.full((16, 16, 3), 90, np.uint8)).min() == 255
    grained = np.random.default_rng(0).integers(89, 91, (64, 64, 3), dtype=np.uint8)
    assert np.median(edge_map(grained)) > 200


def test_a_paler_sketch_keeps_its_white_and_loses_half_its_black_at_most_to_the_palest() -> None:
    stroke = np.full((32, 32, 3), 255, np.uint8)
    stroke[16] = 0
    data = as_png(stroke)
    darkest = []
    for seed in range(60):
        seen = varied(data, Ask(0, seed, "sketch"), SPEC, "none", pale=True)
        assert seen.max() == 255
        darkest.append(int(seen.min()))
    assert sum(value == 0 for value in darkest) in range(15, 46)
    assert 150 < max(darkest) <= 255 * (1 - PALEST) + 1
    assert varied(data, Ask(0, 3, "photo"), SPEC, "none", pale=True).min() == 0
    assert all(varied(data, Ask(0, seed, "sketch"), SPEC, "none").min() == 0 for seed in range(5))


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(BadPicture, match=r"odd\.png"):
        varied(b"no picture", Ask(0, 0), SPEC, "shift", name="odd.png")
