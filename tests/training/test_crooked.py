"""What a hostile reading of the school found: wrong results without a word, tracebacks, waits for ever."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pocketlens_training import loop
from pocketlens_training.cli import app
from pocketlens_training.distil import distil
from pocketlens_training.features import teacher_vectors
from pocketlens_training.further import learn_run_heads
from pocketlens_training.loop import CannotSave, machine, train
from pocketlens_training.material import Sources, gather
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import teacher_of
from pocketlens_training.sets import kept
from pocketlens_training.sets.feed import Feed
from pocketlens_training.sets.lines import BadLines, read_told
from pocketlens_training.sets.pixels import Ask, VariedPictures
from pocketlens_training.sets.sources import Files, NoPictures, open_source
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.own import TeacherRecipe
from pocketlens_training.teachers.teach import teach
from pocketlens_training.tuning import HeadRecipe
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

SMALL = DistilRecipe(student="tiny-s", side=32, tokens=2, batch=8, bank=8, steps=2, held_out=4)


@pytest.fixture
def home(little: Path, tmp_path: Path) -> Path:
    """A copy of the little set: its files are changed here."""
    shutil.copytree(little, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def learn(home: Path, cpu, quiet) -> Callable[..., Path]:
    def learned(recipe: DistilRecipe = SMALL, *, out: str = "run", cache: str = "cache", **changed: Any) -> Path:
        sources = Sources(images=home / "photos", told=home / "told.jsonl")
        distil(
            f"run:{home / 'teacher'}", sources, home / out, replace(recipe, **changed), where=cpu, progress=quiet,
            cache=home / cache,
        )  # fmt: skip
        return home / out

    return learned


def disturb(teacher: Path, part: str) -> None:
    """Noise upon one tower."""
    file = teacher / "teacher.safetensors"
    tensors = load_file(file)
    noise = torch.Generator().manual_seed(5)
    changed = {
        name: value + torch.randn(value.shape, generator=noise).to(value.dtype)
        if name.startswith(part) and value.is_floating_point() else value
        for name, value in tensors.items()
    }  # fmt: skip
    assert any(not torch.equal(changed[name], tensors[name]) for name in tensors)
    save_file(changed, file)


# --- what a run was begun with


def test_another_text_tower_is_another_teacher(learn, home: Path) -> None:
    run = learn()
    disturb(home / "teacher", "text.")
    with pytest.raises(ValueError, match="text tower"):
        teacher_of(run)
    with pytest.raises(ValueError, match="another folder"):
        learn()


def test_nearest_captions_are_kept_for_both_towers(home: Path, cpu, quiet) -> None:
    def nearest() -> torch.Tensor:
        sources = Sources(images=home / "photos", told=home / "told.jsonl")
        material = gather(
            load_teacher(f"run:{home / 'teacher'}"), sources, SMALL, where=cpu, progress=quiet, workers=0,
            cache=home / "cache",
        )  # fmt: skip
        assert material.told is not None
        return material.told.nearest

    nearest()
    disturb(home / "teacher", "image.")
    kept_from_before = nearest()
    shutil.rmtree(home / "cache")
    assert torch.equal(kept_from_before, nearest())


def test_heads_are_those_of_the_pictures_that_are_there(learn, home: Path, cpu, quiet, draw) -> None:
    run, recipe = learn(), HeadRecipe(batch=16, steps=4)
    learn_run_heads(run, home / "triplets.jsonl", recipe, where=cpu, progress=quiet)
    before = load_file(run / "heads.safetensors")
    for number, file in enumerate(sorted((home / "photos").iterdir())):
        file.write_bytes(draw(number + 500))
    with pytest.raises(ValueError, match="pictures"):
        learn_run_heads(run, home / "triplets.jsonl", recipe, where=cpu, progress=quiet)
    for file in run.glob("heads*"):
        file.unlink()
    learn_run_heads(run, home / "triplets.jsonl", recipe, where=cpu, progress=quiet)
    after = load_file(run / "heads.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_lesson_under_way_keeps_its_precision(tmp_path: Path, quiet) -> None:
    def lesson(precision: str, die_at: int | None = None) -> None:
        def loss_of(module: Any, micro: int, _rng: np.random.Generator) -> tuple[torch.Tensor, dict]:
            if micro == die_at:
                raise KeyboardInterrupt
            return module(torch.ones(2, 3)).square().mean(), {}

        torch.manual_seed(0)
        schedule = loop.Schedule(steps=6, rate=1e-3, seed=1, every=2)
        where = machine("cpu", precision)
        train("lesson", torch.nn.Linear(3, 2), loss_of, schedule, folder=tmp_path, where=where, progress=quiet)

    with pytest.raises(KeyboardInterrupt):
        lesson("bf16", die_at=3)
    with pytest.raises(ValueError, match=r"begun with precision bf16.*not precision fp32"):
        lesson("fp32")
    lesson("bf16")


# --- what is learned from


def tar_of(path: Path, draw: Callable[..., bytes]) -> bytes:
    import io
    import tarfile

    with tarfile.open(path, "w") as tar:
        for n in range(12):
            member = tarfile.TarInfo(f"{n:02d}.png")
            data = draw(n)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


@pytest.mark.parametrize("harm", ["in a header", "between two files", "noise over a header", "joined with another"])
def test_a_shard_that_is_not_whole_is_refused(tmp_path: Path, draw, harm: str) -> None:
    import tarfile

    whole = tar_of(tmp_path / "whole.tar", draw)
    with tarfile.open(tmp_path / "whole.tar") as tar:
        at = tar.getmembers()[7].offset
    shard = tmp_path / "shard.tar"
    shard.write_bytes(whole)
    assert len(open_source(shard)) == 12
    shard.write_bytes({
        "in a header": whole[: at + 100],
        "between two files": whole[:at],
        "noise over a header": whole[:at] + bytes(range(1, 36)) + whole[at + 35 :],
        "joined with another": whole + whole,
    }[harm])  # fmt: skip
    with pytest.raises(NoPictures, match=r"shard\.tar: not whole: after (7|12) files"):
        open_source(shard)


def test_no_copy_of_a_held_out_picture_teaches_a_teacher(
    tmp_path: Path, draw, caption_of, write_lines, cpu, quiet
) -> None:
    for n in range(60):
        for name in (f"{n:02d}.png", f"copy-{n:02d}.png"):
            (tmp_path / name).write_bytes(draw(n))
    names = [f"{before}{n:02d}.png" for n in range(60) for before in ("", "copy-")]
    pairs = write_lines(tmp_path / "pairs.jsonl", [
        {"image": name, "captions": [caption_of(int(name[-6:-4]))]} for name in names
    ])  # fmt: skip
    card = teach(pairs, tmp_path / "teacher", own_recipe(), where=cpu, progress=quiet)
    assert card["pictures"] > 60  # its copy was held out, and each that has one is left out of what is measured
    assert card["held_out"]["pictures"] < 120 - card["pictures"]


def own_recipe() -> TeacherRecipe:
    return TeacherRecipe(
        side=32, batch=16, steps=2, widths=(4, 8, 8, 16), word_width=32, dim=16, text_layers=1, held_out=0.3, context=24
    )


def test_captions_of_which_no_word_is_known_are_refused(tmp_path: Path, draw, write_lines, cpu, quiet) -> None:
    for n in range(60):
        (tmp_path / f"{n:02d}.png").write_bytes(draw(n))
    lines = [{"image": f"{n:02d}.png", "captions": [f"这是第{n}张图片红色的杯子"]} for n in range(60)]
    pairs = write_lines(tmp_path / "pairs.jsonl", lines)
    with pytest.raises(BadLines, match="no word of its captions"):
        teach(pairs, tmp_path / "teacher", own_recipe(), where=cpu, progress=quiet)


def test_captions_that_are_cut_are_counted(tmp_path: Path, draw, caption_of, write_lines, cpu, quiet) -> None:
    for n in range(60):
        (tmp_path / f"{n:02d}.png").write_bytes(draw(n))
    pairs = write_lines(tmp_path / "pairs.jsonl", [
        {"image": f"{n:02d}.png", "captions": [" ".join([caption_of(n)] * (20 if n % 2 else 1))]} for n in range(60)
    ])  # fmt: skip
    quiet.console.quiet = False
    with quiet.console.capture() as said:
        teach(pairs, tmp_path / "teacher", own_recipe(), where=cpu, progress=quiet)
    assert "% of the captions are longer than a row of 24 and are cut" in " ".join(said.get().split())


def test_copies_of_one_picture_are_one_picture(home: Path, learn, draw) -> None:
    for file in (home / "photos").iterdir():
        file.write_bytes(draw(1))
    with pytest.raises(NoPictures, match="1 different pictures"):
        learn()


def test_linked_folders_are_searched_once(tmp_path: Path, draw) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    (place / "a.png").write_bytes(draw(1))
    (other / "b.png").write_bytes(draw(2))
    (place / "linked").symlink_to(other)
    (place / "twice").symlink_to(other)
    (other / "circle").symlink_to(place)
    assert open_source(place).names == ["a.png", "linked/b.png"]


def test_a_pipe_is_no_picture(tmp_path: Path, draw) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadPicture, match="pipe, socket or device"):
        Files(tmp_path, ["pipe.jpg"]).read(0)


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadPicture, match=r"is no name of a file|cannot be read"):
        Files(tmp_path, [name]).read(0)


# --- machines


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_while_training_is_one_sentence(tmp_path: Path, draw, workers: int) -> None:
    (tmp_path / "a.png").write_bytes(draw(1))
    pictures = VariedPictures(Files(tmp_path, ["a.png", "gone.png"]), PictureSpec(side=16, fit="crop"), "none")
    feed = Feed(pictures, lambda _: [Ask(0, 1), Ask(1, 2)], device=torch.device("cpu"), workers=workers)
    with pytest.raises(BadPicture) as caught:
        feed.at(0)
    assert "gone.png: cannot be read" in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room in a file")
def test_squares_for_which_there_is_no_room_are_refused_before_they_are_written(home: Path, quiet, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    source = open_source(home / "photos")
    with pytest.raises(CannotSave, match="make room"):
        kept.keep_pixels(
            source, np.arange(len(source)), "content", PictureSpec(side=16, fit="crop"), home, progress=quiet
        )
    assert not list((home / "pixels").iterdir())


def test_what_was_seen_before_an_interruption_is_kept(home: Path, cpu) -> None:
    teacher, source = load_teacher(f"run:{home / 'teacher'}"), open_source(home / "photos")

    def interrupt(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_vectors(teacher, source, home / "seen", device=cpu.device, batch=8, on_done=interrupt)
    (shard,) = (home / "seen" / teacher.id).glob("*.safetensors")
    assert len(load_file(shard)["raw"]) == 8


def test_a_disk_that_does_not_answer_costs_no_vectors(home: Path, cpu, monkeypatch) -> None:
    teacher, source = load_teacher(f"run:{home / 'teacher'}"), open_source(home / "photos")
    teacher_vectors(teacher, source, home / "seen", device=cpu.device)
    shards = list((home / "seen").rglob("*.safetensors"))

    def busy(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pocketlens_training.features.load_file", busy)
    with pytest.raises(OSError, match="Input/output"):
        teacher_vectors(teacher, source, home / "seen", device=cpu.device)
    assert all(shard.exists() for shard in shards)


# --- options


def test_a_bank_that_lies_in_the_batch_is_a_bank(learn) -> None:
    learn(gcd="relational", batch=64, bank=64)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 2, "sketches": "edges", "sketch_share": 0.9}, "leaves 0 photos in a batch of 2"),
        ({"side": 7}, "side must be at least 16"),
    ],
)
def test_numbers_that_leave_nothing_to_learn_are_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **changed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sketches", "s.jsonl", "--sketch", "edges"), "is not read with --sketch edges"),
        (("--sketches", "s.jsonl", "--sketch", "none"), "is not read with --sketch none"),
        (("--told", "t.jsonl", "--composition-weight", "0"), "is not read with --composition-weight 0"),
    ],
)
def test_a_file_that_would_not_be_read_is_refused(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    asked = ["distill", "--teacher", "sample", "--images", str(tmp_path), "-o", str(tmp_path / "run"), *options]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1 and said in result.stderr


def test_brackets_in_a_name_are_no_markup(home: Path, cpu, quiet, write_lines) -> None:
    odd = home / "ma[" / "x]"  # rich reads [/x] as the end of a style
    odd.mkdir(parents=True)
    told = [json.loads(line) for line in (home / "told.jsonl").read_text().splitlines()]
    file = write_lines(odd / "told.jsonl", [*told, {"caption": "a " * 500, "edits": ["b"]}])
    quiet.console.quiet = False
    with quiet.console.capture() as said:
        gather(
            load_teacher(f"run:{home / 'teacher'}"), Sources(images=home / "photos", told=file), SMALL, where=cpu,
            progress=quiet, workers=0, cache=home / "cache",
        )  # fmt: skip
    assert "ma[/x]/told.jsonl: 1 captions are left out" in "".join(said.get().splitlines())


@pytest.mark.parametrize("line", ['{"caption": ' + "[" * 100_000, '{"caption": "a \\ud800 mug"}'])
def test_lines_that_json_allows_or_nearly(tmp_path: Path, line: str) -> None:
    file = tmp_path / "told.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(BadLines, match=r"told\.jsonl:1"):
        read_told(file)
