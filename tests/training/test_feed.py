"""Batches prepared ahead are those that would have come anyway, and one look at a source says what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pocketlens_training.sets.feed import Feed, digest, look, pixels_of
from pocketlens_training.sets.pixels import Ask, VariedPictures, square
from pocketlens_training.sets.sources import Files
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec

SPEC = PictureSpec(side=24, fit="crop")
COUNT = 7


@pytest.fixture
def photos(tmp_path: Path, draw) -> Files:
    for n in range(COUNT):
        (tmp_path / f"{n}.png").write_bytes(draw(n))
    return Files(tmp_path, [f"{n}.png" for n in range(COUNT)])


def plan(micro: int) -> list[Ask]:
    return [Ask((micro + i) % COUNT, 100 * micro + i, "edges" if i == 2 else "photo") for i in range(3)]


def feed_of(photos: Files, workers: int) -> Feed:
    return Feed(VariedPictures(photos, SPEC, "shift"), plan, device=torch.device("cpu"), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_in_the_middle_gives_the_same_batches(photos: Files, workers: int) -> None:
    alone = feed_of(photos, 0)
    wanted = [alone.at(micro) for micro in range(8)]
    assert all(batch.shape == (3, 24, 24, 3) and batch.dtype == torch.uint8 for batch in wanted)
    assert not torch.equal(wanted[0], wanted[7])  # the same pictures, other seeds
    feed = feed_of(photos, workers)
    for micro in (0, 1, 2):
        assert torch.equal(feed.at(micro), wanted[micro])
    again = feed_of(photos, workers)  # another process, resumed
    for micro in (3, 4, 5, 6, 7):
        assert torch.equal(again.at(micro), wanted[micro])
    assert torch.equal(again.at(2), wanted[2])  # out of order too
    assert torch.equal(again.at(3), wanted[3])


def test_drawing_batches_leaves_the_lessons_randomness_alone(photos: Files) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    feed_of(photos, 0).at(0)
    assert torch.equal(torch.rand(2), wanted)


def test_sketches_come_from_their_own_source(photos: Files, tmp_path: Path, draw) -> None:
    (tmp_path / "s.png").write_bytes(draw(3, pencil=True))
    pictures = VariedPictures(photos, SPEC, "none", sketches=Files(tmp_path, ["s.png"]))
    seen = pictures[Ask(0, 1, "sketch")]
    assert (seen == square(draw(3, pencil=True), SPEC)).all()
    assert (pictures[Ask(0, 1)] == square(draw(0), SPEC)).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_look_gives_every_picture_once_and_says_which_cannot_be_read(photos: Files, draw, workers: int) -> None:
    (photos.root / "2.png").write_bytes(draw(2)[:60])
    (photos.root / "4.png").unlink()
    known = digest(draw(5))
    looked = [one for some in look(photos, SPEC, known={known}, batch=3, workers=workers) for one in some]
    assert [one.number for one in looked] == list(range(COUNT))
    problems = {one.number: one.problem for one in looked if one.problem is not None}
    assert set(problems) == {2, 4}
    assert "2.png" in problems[2] and "4.png" in problems[4]
    good = [one for one in looked if one.problem is None]
    assert [one.digest for one in good] == [digest(draw(one.number)) for one in good]
    assert [one.number for one in good if one.pixels is None] == [5]  # known: nothing is decoded
    seen = pixels_of(looked)
    assert len(seen) == COUNT - 3
    assert torch.equal(seen[0], torch.from_numpy(square(draw(0), SPEC)))


def test_a_picture_that_breaks_while_training_is_named(photos: Files) -> None:
    feed = feed_of(photos, 0)
    feed.at(0)
    (photos.root / "1.png").unlink()
    with pytest.raises(BadPicture, match=r"1\.png"):
        feed.at(1)
