"""What a run is given: nothing that cannot be used goes unsaid, and another set is not taken for the one begun with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from pocketlens_training.distil import distil
from pocketlens_training.loop import partial_of
from pocketlens_training.material import Sources, gather, split_by_content
from pocketlens_training.probe import Probe
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import read_run
from pocketlens_training.sets.lines import BadLines
from pocketlens_training.students.student import make_student
from pocketlens_training.teachers.naming import load_teacher
from rich.console import Console
from rich.progress import Progress

SMALL = DistilRecipe(student="tiny-s", side=32, tokens=2, batch=8, bank=16, steps=2, held_out=4)


@pytest.fixture
def photos(little: Path, tmp_path: Path) -> Path:
    shutil.copytree(little / "photos", tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def learn(little: Path, tmp_path: Path, cpu, quiet) -> Callable[..., None]:
    def learned(sources: Sources, recipe: DistilRecipe = SMALL) -> None:
        distil(
            f"run:{little / 'teacher'}", sources, tmp_path / "run", recipe, where=cpu, progress=quiet,
            cache=little / "cache",
        )  # fmt: skip

    return learned


@pytest.fixture
def gathered(little: Path, tmp_path: Path, cpu) -> Callable[..., tuple[Probe, str]]:
    """The probe upon the material, and what was said."""

    def made(sources: Sources) -> tuple[Probe, str]:
        said = Console(file=StringIO(), width=500)
        progress = Progress(console=said, disable=True)
        material = gather(
            load_teacher(f"run:{little / 'teacher'}"), sources, SMALL, where=cpu, progress=progress, workers=0,
            cache=tmp_path / "cache",
        )  # fmt: skip
        probe = Probe(material, sources.questions, where=cpu, workers=0, progress=progress)
        return probe, said.file.getvalue()  # type: ignore[attr-defined]

    return made


# --- a run's own account


def begun_not_finished(tmp_path: Path) -> None:
    (tmp_path / "run" / "student.safetensors").unlink()


@pytest.mark.parametrize("change", ["one more", "one less", "another"])
def test_a_folder_that_changed_is_not_the_set_a_run_was_begun_with(learn, photos: Path, tmp_path, draw, change) -> None:
    learn(Sources(images=photos))
    begun_not_finished(tmp_path)
    learn(Sources(images=photos))  # as it was: the run goes on
    begun_not_finished(tmp_path)
    if change == "one less":
        (photos / "05.png").unlink()
    else:
        (photos / ("99.png" if change == "one more" else "05.png")).write_bytes(draw(99))
    with pytest.raises(ValueError, match=r"a different content of its files \(images \w+ there, \w+ asked\)"):
        learn(Sources(images=photos))


def test_captions_that_changed_are_not_those_a_run_was_begun_with(learn, photos, little, tmp_path, write_lines) -> None:
    told = write_lines(tmp_path / "told.jsonl", [{"caption": "a red mug", "edits": ["make it blue"]}])
    learn(Sources(images=photos, told=told))
    begun_not_finished(tmp_path)
    write_lines(told, [{"caption": "a red mug", "edits": ["make it green"]}])
    with pytest.raises(ValueError, match=r"content of its files \(told \w+ there"):
        learn(Sources(images=photos, told=told))


def test_a_run_under_way_is_not_resumed_by_more_processes_or_in_other_precision(learn, photos, tmp_path) -> None:
    learn(Sources(images=photos))
    account = tmp_path / "run" / "run.json"
    raw = json.loads(account.read_text())
    assert raw["loop"] == {"precision": "fp32", "processes": 1}
    assert {"python", "torch", "numpy", "accelerate", "threads", "device", "machine"} <= raw["made_with"].keys()
    account.write_text(json.dumps({**raw, "loop": {**raw["loop"], "processes": 8}}))
    learn(Sources(images=photos))  # it is finished: how no longer matters
    account.write_text(json.dumps({**raw, "loop": {**raw["loop"], "processes": 8}}))
    begun_not_finished(tmp_path)
    with pytest.raises(ValueError, match=r"different number of processes or precision \(processes 8 there, 1 asked\)"):
        learn(Sources(images=photos))


def test_where_a_run_was_begun_is_kept_when_it_goes_on(learn, photos, tmp_path) -> None:
    learn(Sources(images=photos))
    account = tmp_path / "run" / "run.json"
    raw = json.loads(account.read_text())
    account.write_text(json.dumps({**raw, "made_with": {"machine": "another"}}))
    begun_not_finished(tmp_path)
    learn(Sources(images=photos))
    assert read_run(tmp_path / "run")["made_with"] == {"machine": "another"}


# --- held out


def test_no_copy_of_a_held_out_picture_is_learned(gathered, photos: Path) -> None:
    for file in sorted(photos.iterdir()):
        shutil.copy(file, photos / f"copy-{file.name}")
    material = gathered(Sources(images=photos))[0].material

    def contents(rows):
        return {material.photos.read(int(n)) for n in material.numbers[rows]}

    assert len(material.held) and not contents(material.held) & contents(material.kept)


def test_pictures_that_are_all_alike_are_learned_not_held_out() -> None:
    held, kept = split_by_content(np.zeros((48, 16), np.uint8), 4)
    assert not len(held) and kept.tolist() == list(range(48))


def test_a_copy_that_is_found_is_the_picture(gathered, photos: Path, cpu) -> None:
    for file in sorted(photos.iterdir()):
        shutil.copy(file, photos / f"copy-{file.name}")
    probe, _ = gathered(Sources(images=photos))
    material, rows = probe.material, probe.asked
    own = material.unit[rows.tolist()]
    probe.reader.unit = lambda texts, sentences: own  # a sentence that says its picture exactly
    assert probe.figures(make_student("tiny-s", material.teacher, tokens=2, side=32).eval())["finds_itself"] == 1.0


# --- questions


def asked_of(photos: Path, write_lines, *lines: dict) -> Sources:
    return Sources(images=photos, questions=write_lines(photos.parent / "questions.jsonl", list(lines)))


def question(n: int, *targets: int, **more) -> dict:
    named = [f"photos/{target:02d}.png" for target in targets]
    return {"reference": f"photos/{n:02d}.png", "text": "in red", "targets": named, **more}


def test_questions_that_cannot_be_asked_are_said_and_are_no_misses(gathered, photos: Path, write_lines) -> None:
    (photos / "05.png").write_bytes(b"torn")
    gallery = photos.parent / "gallery.txt"
    gallery.write_text("".join(f"photos/{n:02d}.png\n" for n in range(10)))
    probe, said = gathered(
        asked_of(photos, write_lines, question(1, 2), question(3, 99), question(5, 1), question(4, 99, 6))
    )
    assert "questions.jsonl: 3 pictures cannot be read; 2 of 4 questions are left out of the log" in said
    assert len(probe.questions.asked) == 2
    assert [name for name, _ in probe.material.unreadable].count("photos/99.png") == 1
    student = make_student("tiny-s", probe.material.teacher, tokens=2, side=32).eval()
    assert probe.figures(student)["recall@10"] == 1.0  # among eleven


def test_questions_none_of_which_can_be_asked_are_refused(gathered, photos: Path, write_lines) -> None:
    (photos / "05.png").write_bytes(b"torn")
    with pytest.raises(BadLines, match=r"questions\.jsonl: no question whose reference and a target can be read"):
        gathered(asked_of(photos, write_lines, question(5, 1)))


def test_what_a_question_excludes_is_not_searched(gathered, photos: Path, write_lines) -> None:
    gallery = photos.parent / "gallery.txt"
    gallery.write_text("".join(f"photos/{n:02d}.png\n" for n in range(12)))
    others = [f"photos/{n:02d}.png" for n in range(12) if n != 7]
    probe, _ = gathered(asked_of(photos, write_lines, question(1, 7), question(1, 7, exclude=others)))
    questions = probe.questions
    wanted = questions.vectors[next(iter(questions.relevant[0]))]
    questions.reader.unit = lambda texts, sentences: -wanted.expand(len(texts), -1)  # everything else comes first
    student = make_student("tiny-s", probe.material.teacher, tokens=2, side=32).eval()
    assert questions.figures(student)["recall@10"] == 0.5


# --- sketches


def test_sketches_that_cannot_be_learned_from_are_counted(gathered, photos: Path, write_lines, draw) -> None:
    for n in range(4):
        (photos.parent / f"s{n}.png").write_bytes(draw(n) if n else b"torn")
    lines = [{"sketch": f"s{n}.png", "photo": f"photos/{n:02d}.png" if n < 3 else "elsewhere.png"} for n in range(4)]
    probe, said = gathered(Sources(images=photos, sketches=write_lines(photos.parent / "sketches.jsonl", lines)))
    assert "of its 4 sketches 1 cannot be read, the photo of 1 is no readable picture of --images" in said
    assert len(probe.material.drawn) <= 2


# --- what a killed process leaves


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    mine = partial_of(path)
    dead = mine.with_name(mine.name.replace(mine.name.rpartition("-")[2], "4194305.part"))  # above any process's number
    other = tmp_path / "a.another-machine-77.part"
    for file in (mine, dead, other):
        file.write_bytes(b"half")
    assert partial_of(path) == mine
    assert mine.exists() and other.exists() and not dead.exists()
