"""What happens to a picture is what its name says, more of it at each severity, and the same every time."""

import io

import numpy as np
import pytest
from PIL import Image
from pocketlens_bench.corruptions import CORRUPTIONS, SEVERITIES, contact_sheet, convolved, exposed, line_kernel
from pocketlens_samples.queries import composed_set

BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photo():
    return composed_set(queries=1, gallery=5).queries[0].anchor.pixels()


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_severity_is_farther_from_the_picture_than_the_one_before(name, photo):
    files = [BY_NAME[name].file(photo, severity, seed=0, number=0) for severity in SEVERITIES]
    apart = [np.abs(pixels_of(file).astype(float) - photo).mean() for file in files]
    assert apart == sorted(apart)
    assert apart[0] < apart[-1] / 2


@pytest.mark.parametrize("name", BY_NAME)
def test_draws_follow_from_seed_and_number(name, photo):
    drawn = [
        BY_NAME[name].file(photo, 3, seed=seed, number=number) for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert drawn[0] == drawn[1]
    if name in ("gaussian noise", "shot noise", "motion blur", "occlusion"):
        assert len(set(drawn)) == 3


def test_blurs_keep_a_flat_picture_and_its_light():
    flat = np.full((20, 20, 3), 77, np.uint8)
    for name in ("gaussian blur", "motion blur"):
        assert np.array_equal(BY_NAME[name].apply(flat, 3.0, RNG), flat)
    point = np.zeros((21, 21, 1), np.float32)
    point[10, 10] = 1
    for angle in np.linspace(0, np.pi, 7):
        stroke = convolved(point, line_kernel(7, angle))
        assert stroke.sum() == pytest.approx(1, abs=1e-5)
    level = convolved(point, line_kernel(7, 0.0))[:, :, 0]
    assert np.flatnonzero(level.sum(axis=1)).tolist() == [10]
    assert np.flatnonzero(level[10]).tolist() == list(range(7, 14))


def test_light_is_multiplied_where_light_adds_up():
    # sRGB 188 holds half the light of 255 (IEC 61966-2-1).
    white = np.full((2, 2, 3), 255, np.uint8)
    assert np.abs(BY_NAME["darker"].apply(white, 1.0, RNG).astype(int) - 188).max() <= 1
    assert np.array_equal(BY_NAME["brighter"].apply(white, 1.0, RNG), white)
    assert np.array_equal(exposed(white - 100, np.ones(3)), white - 100)


def test_noise_is_as_strong_as_it_says():
    grey = np.full((96, 96, 3), 128, np.uint8)
    assert BY_NAME["gaussian noise"].apply(grey, 20, RNG).std() == pytest.approx(20, rel=0.05)
    shot = BY_NAME["shot noise"].apply(grey, 200, RNG)
    assert shot.std() == pytest.approx(255 * np.sqrt(128 / 255 / 200), rel=0.05)
    assert shot.mean() == pytest.approx(128, abs=1)


def test_occlusion_covers_its_share_with_one_grey(photo):
    covered = BY_NAME["occlusion"].apply(photo, 0.25, RNG)
    changed = (covered != photo).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    square = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert square.shape[:2] == (48, 48)
    assert len(np.unique(square)) == 1
    assert (photo != covered).any(axis=2).sum() <= 48 * 48


def test_jpeg_is_the_files_quality_and_nothing_else(photo):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=5)
    assert BY_NAME["jpeg"].file(photo, 5, seed=0, number=0) == file.getvalue()


def test_the_contact_sheet_shows_everything_as_the_device_gets_it(photo):
    sheet = np.asarray(contact_sheet(photo, seed=0))
    worst = pixels_of(CORRUPTIONS[-1].file(photo, 5, seed=0, number=0))
    height, width = worst.shape[:2]
    bottom, right = sheet.shape[0], sheet.shape[1]
    found = [
        np.array_equal(sheet[top : top + height, left : left + width], worst)
        for top in range(bottom - height - 30, bottom - height + 1)
        for left in range(right - width - 8, right - width + 1)
    ]
    assert any(found)
