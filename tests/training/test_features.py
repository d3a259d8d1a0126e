"""Teacher vectors are computed once for each picture's content, and again only where they were lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pocketlens_training import features
from pocketlens_training.features import list_unreadable, teacher_vectors
from pocketlens_training.loop import CannotSave
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import NoPictures, open_source
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import ImageModule, Teacher

CPU = torch.device("cpu")
COUNT = 10


class Counted(ImageModule):
    """A tower that remembers how many pictures it was shown."""

    def __init__(self, tower: ImageModule) -> None:
        super().__init__()
        self.tower, self.seen = tower, 0

    def forward(self, pixels):
        self.seen += len(pixels)
        return self.tower(pixels)


@pytest.fixture
def teacher(little: Path) -> Teacher:
    whole = load_teacher(f"run:{little / 'teacher'}")
    return replace(whole, image=Counted(whole.image))


@pytest.fixture
def folder(tmp_path: Path, draw: Callable) -> Path:
    home = tmp_path / "photos"
    home.mkdir()
    for n in range(COUNT):
        (home / f"{n}.png").write_bytes(draw(n))
    return home


@pytest.fixture
def see(teacher: Teacher, folder: Path, tmp_path: Path):
    """What the teacher makes of the folder, and how many pictures it was shown for that."""

    def seen(by: Teacher = teacher, **more):
        before = by.image.seen
        found = teacher_vectors(by, open_source(folder), tmp_path / "cache", device=CPU, batch=4, **more)
        return found, by.image.seen - before

    return seen


def test_vectors_are_the_towers_own_and_computed_once(see, teacher: Teacher, draw) -> None:
    ticks: list[int] = []
    first, shown = see(on_done=ticks.append)
    assert shown == COUNT == sum(ticks)
    assert first.raw.dtype == torch.float32 and first.numbers.tolist() == list(range(COUNT))
    pixels = torch.from_numpy(square(draw(3), teacher.picture))[None]
    assert torch.allclose(first.raw[3], teacher.image.tower(pixels)[0][0], atol=1e-5)
    second, shown = see()
    assert shown == 0
    assert torch.equal(first.raw, second.raw)


def test_content_counts_not_the_name(see, folder: Path, draw) -> None:
    first, _ = see()
    (folder / "3.png").rename(folder / "z.png")
    (folder / "0.png").write_bytes(draw(77))
    second, shown = see()
    assert shown == 1  # the new picture alone
    assert torch.equal(second.raw[-1], first.raw[3])
    assert not torch.equal(second.raw[0], first.raw[0])
    assert torch.equal(second.raw[1], first.raw[1])


def test_two_files_of_one_content_have_one_vector(see, folder: Path, draw) -> None:
    (folder / "x.png").write_bytes(draw(1))
    found, _ = see()
    assert torch.equal(found.raw[1], found.raw[COUNT])
    assert see()[1] == 0


def test_another_teacher_has_another_cache(see, teacher: Teacher) -> None:
    first, _ = see()
    whole = load_teacher(teacher.name)
    with torch.no_grad():
        whole.image.project.bias.add_(1.0)
    other = replace(whole, image=Counted(whole.image))
    assert other.id != teacher.id
    found, shown = see(other)
    assert shown == COUNT
    assert not torch.allclose(found.raw, first.raw)
    assert see()[1] == 0  # the first one's are still there


def test_a_broken_shard_is_computed_again_and_costs_no_other(see, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(features, "SHARD", 4)
    first, _ = see()
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(shards) == 3  # 4, 4 and 2 pictures
    shards[0].write_bytes(shards[0].read_bytes()[:40])
    second, shown = see()
    assert 0 < shown <= 4
    assert torch.equal(first.raw, second.raw)
    third, shown = see()
    assert shown == 0
    assert torch.equal(first.raw, third.raw)


def test_unreadable_pictures_are_listed_and_left_out(see, folder: Path, tmp_path: Path) -> None:
    (folder / "2.png").write_bytes(b"no picture")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:50])
    found, shown = see()
    assert shown == COUNT - 2
    assert found.numbers.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert [name for name, _ in found.unreadable] == ["2.png", "5.png"]
    listed = tmp_path / "unreadable.csv"
    list_unreadable(listed, found.unreadable)
    lines = listed.read_text().splitlines()
    assert lines[0] == "picture,problem" and lines[1].startswith("2.png,") and len(lines) == 3
    list_unreadable(listed, [])
    assert not listed.exists()


def test_a_source_of_which_nothing_can_be_read_is_refused(see, folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(NoPictures, match=r"none of the 10 pictures can be read; the first: .*0\.png"):
        see()


def test_a_full_disk_is_said_and_leaves_nothing_half_written(see, tmp_path: Path, monkeypatch) -> None:
    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pocketlens_training.loop.save_file", full)
    with pytest.raises(CannotSave, match="No space left"):
        see()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
