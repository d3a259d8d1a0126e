"""Kept squares are those that decoding would give, and no more of them are kept than was allowed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pocketlens_training.loop import CannotSave
from pocketlens_training.sets.feed import Feed
from pocketlens_training.sets.kept import keep_pixels
from pocketlens_training.sets.pixels import Ask, VariedPictures
from pocketlens_training.sets.sources import Files
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec

SPEC = PictureSpec(side=24, fit="crop")
NUMBERS = np.array([0, 2, 3, 5])


@pytest.fixture
def photos(tmp_path: Path, draw) -> Files:
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(draw(n) if n != 1 else b"broken")
    return Files(tmp_path, [f"{n}.png" for n in range(6)])


def plan(micro: int) -> list[Ask]:
    kinds = ("photo", "edges", "sketch")
    return [Ask(int(NUMBERS[(micro + i) % 4]), 100 * micro + i, kinds[i]) for i in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("variation", ["none", "shift"])
def test_kept_and_decoded_are_the_same_batches(photos: Files, tmp_path: Path, quiet, variation, workers) -> None:
    kept = keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    assert kept is not None

    def feed(**squares) -> Feed:
        pictures = VariedPictures(photos, SPEC, variation, sketches=photos, pale=True, **squares)
        return Feed(pictures, plan, device=torch.device("cpu"), workers=workers)

    decoded, read = feed(), feed(kept=kept, kept_sketches=kept)
    for micro in range(5):
        assert torch.equal(decoded.at(micro), read.at(micro))


def test_a_step_does_not_change_what_is_kept(photos: Files, tmp_path: Path, quiet) -> None:
    kept = keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    assert kept is not None
    with pytest.raises(ValueError, match="read-only"):
        kept.take(2)[0, 0] = 0


def test_squares_are_made_once_for_a_content_and_a_spec(photos: Files, tmp_path: Path, quiet, monkeypatch) -> None:
    keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    read: list[int] = []
    monkeypatch.setattr(photos, "read", lambda number: read.append(number) or b"")
    keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    assert not read
    with pytest.raises(BadPicture, match="could be read a moment ago"):  # nothing is kept in place of a picture
        keep_pixels(photos, NUMBERS, "c", PictureSpec(side=16, fit="crop"), tmp_path, progress=quiet)
    assert read
    assert not list((tmp_path / "pixels").glob("*.part"))


def test_another_choice_of_the_same_pictures_is_kept_apart(photos: Files, tmp_path: Path, quiet) -> None:
    first = keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    second = keep_pixels(photos, NUMBERS[1:], "c", SPEC, tmp_path, progress=quiet)
    assert first is not None and second is not None
    assert all(np.array_equal(first.take(n), second.take(n)) for n in NUMBERS[1:].tolist())


def test_more_than_was_allowed_is_not_kept(photos: Files, tmp_path: Path, quiet) -> None:
    size = 4 * 24 * 24 * 3
    assert keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet, most_bytes=size - 1) is None
    assert not (tmp_path / "pixels").exists()
    assert keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet, most_bytes=size) is not None
    assert keep_pixels(photos, NUMBERS[:0], "c", SPEC, tmp_path, progress=quiet) is None


def test_worker_processes_are_sent_a_path_not_pixels(photos: Files, tmp_path: Path, quiet) -> None:
    kept = keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    assert kept is not None
    square = kept.take(3)
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).take(3), square)  # noqa: S301  our own bytes


def test_a_full_disk_is_said_and_leaves_nothing(photos: Files, tmp_path: Path, quiet, monkeypatch) -> None:
    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.open_memmap", full)
    with pytest.raises(CannotSave, match=r"No space left.*--keep-gb 0"):
        keep_pixels(photos, NUMBERS, "c", SPEC, tmp_path, progress=quiet)
    assert not list((tmp_path / "pixels").iterdir())
