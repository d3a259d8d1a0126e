"""The tiny training learns something that can be measured, and each lesson sees only what it may."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pocketlens_training.checkpoint import Trained, load_run, load_sibling
from pocketlens_training.cli import app
from pocketlens_training.loop import machine, progress_bar, read_log
from pocketlens_training.reading import Reader, reader_of
from pocketlens_training.sample import TINY, SampleRecipe, learn_sample, set_sources
from pocketlens_training.sets.lines import read_pairs, read_sketches
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import Files
from typer.testing import CliRunner

NUMBERS = range(0, 128, 2)


@pytest.fixture(scope="module")
def trained(tiny_run: Path) -> Trained:
    return load_run(tiny_run)


@pytest.fixture
def reader(trained: Trained, cpu) -> Reader:
    return reader_of(trained.teacher, cpu)


@pytest.fixture(scope="module")
def photos(tiny_run: Path) -> Files:
    plain, _ = read_pairs(tiny_run / "set" / "pairs.jsonl")
    return Files(tiny_run / "set", [plain[n].image for n in NUMBERS])


def pixels_of(photos: Files, spec) -> torch.Tensor:
    return torch.from_numpy(np.stack([square(photos.read(n), spec) for n in range(len(photos))]))


@torch.no_grad()
def own_picture_is_nearer(trained: Trained, photos: Files, text: torch.Tensor) -> float:
    """How much nearer (cosine) texts are to their own photo's vector than to the others' on average."""
    image = F.normalize(trained.teacher.image(pixels_of(photos, trained.teacher.picture))[0], dim=1)
    cosines = text @ image.T
    own = cosines.diagonal().mean()
    return float(own - (cosines.sum() - cosines.trace()) / (len(text) * (len(text) - 1)))


@torch.no_grad()
def test_the_teacher_brings_captions_to_their_pictures(trained, reader, photos, tiny_run: Path) -> None:
    plain, _ = read_pairs(tiny_run / "set" / "pairs.jsonl")
    captions = [plain[n].captions[0] for n in NUMBERS]
    learned = own_picture_is_nearer(trained, photos, reader.unit(captions))
    shuffled = own_picture_is_nearer(trained, photos, reader.unit(captions[1:] + captions[:1]))
    assert learned > 0.1
    assert learned > shuffled + 0.1


@torch.no_grad()
def test_the_student_brings_sentences_to_their_pictures(trained, reader, photos) -> None:
    pixels = pixels_of(photos, trained.picture)
    alone = [reader.alone] * len(pixels)
    learned = reader.unit(alone, trained.student(pixels))
    torch.manual_seed(0)
    noise = reader.unit(alone, torch.randn(len(pixels), TINY.student.tokens, TINY.teacher.word_width))
    gain = own_picture_is_nearer(trained, photos, learned) - own_picture_is_nearer(trained, photos, noise)
    assert gain > 0.02


def test_every_lesson_logs_and_leaves_weights(tiny_run: Path) -> None:
    steps = {
        "teacher/pairs": TINY.teacher.steps, "teacher/edits": TINY.teacher.edit_steps, "student": TINY.student.steps,
        "heads": TINY.heads.steps, "heads-control": TINY.heads.steps, "symmetric": TINY.student.steps,
    }  # fmt: skip
    for lesson, count in steps.items():
        assert (tiny_run / f"{lesson}.safetensors").exists()
        assert read_log(tiny_run / f"{lesson}.csv")[-1]["step"] == count
    assert not list(tiny_run.rglob("*.resume.safetensors")) and not list(tiny_run.rglob("*.part"))
    losses = [row["loss"] for row in read_log(tiny_run / "teacher" / "pairs.csv")]
    assert losses[-1] < losses[0]
    last = read_log(tiny_run / "student.csv")[-1]
    assert {"composition", "finds_itself", "same colour", "recall@10"} <= last.keys()


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """As the tower is kept once its pairs are learned."""
    return tensor.half().float() if tensor.is_floating_point() else tensor


def test_edit_lesson_leaves_the_image_tower_alone(tiny_run: Path) -> None:
    from safetensors.torch import load_file

    before, after = (load_file(tiny_run / "teacher" / f"{name}.safetensors") for name in ("pairs", "edits"))
    assert all(torch.equal(rounded(before[name]), after[name]) for name in before if name.startswith("image."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("text."))


def test_running_statistics_do_not_move_once_vectors_are_cached(tiny_run: Path) -> None:
    """The image tower is not run in lesson 2, so even its batch norm statistics must stand still."""
    from safetensors.torch import load_file

    before, after = (load_file(tiny_run / "teacher" / f"{name}.safetensors") for name in ("pairs", "edits"))
    statistics = [name for name in before if "running" in name]
    assert statistics and all(torch.equal(rounded(before[name]), after[name]) for name in statistics)


def test_the_student_is_given_no_held_out_combination_and_no_triplet(tiny_run: Path) -> None:
    """What it sees is named in run.json; tests/samples proves of those files that nothing held out is in them."""
    run = json.loads((tiny_run / "run.json").read_text())
    wanted = set_sources(Path("set"))
    assert run["sources"] == {key: str(value) for key, value in vars(wanted).items()}
    photos = {one.image for one in read_pairs(tiny_run / "set" / "pairs.jsonl")[0]}
    sketches = read_sketches(tiny_run / "set" / "sketches.jsonl")
    assert {photo for _, photo in sketches} <= photos
    triplets = [json.loads(line) for line in (tiny_run / "set" / "triplets.jsonl").read_text().splitlines()]
    assert not photos & {one["reference"] for one in triplets} | photos & {one["target"] for one in triplets}


def test_a_folder_begun_with_another_recipe_is_refused(tiny_run: Path) -> None:
    for recipe, said in (
        (TINY.seeded(5), "holds a set of other sizes or seed"),
        (replace(TINY, teacher=replace(TINY.teacher, rate=0.1)), "rate 0.0015 there, 0.1 asked"),
        (replace(TINY, student=replace(TINY.student, tokens=3)), "tokens 4 there, 3 asked"),
        (replace(TINY, heads=replace(TINY.heads, steps=3)), "steps 20 there, 3 asked"),
    ):
        with pytest.raises(ValueError, match=said):
            learn_sample(tiny_run, recipe, where=machine("cpu"), progress=progress_bar())


def test_what_is_finished_is_read_not_made_again(tiny_run: Path) -> None:
    kept = ("student.safetensors", "heads.safetensors", "teacher/teacher.safetensors", "set/photos-0000.tar")
    before = {name: (tiny_run / name).stat().st_mtime_ns for name in kept}
    learn_sample(tiny_run, TINY, where=machine("cpu"), progress=progress_bar())
    assert {name: (tiny_run / name).stat().st_mtime_ns for name in kept} == before


def test_another_seed_is_the_seed_of_everything() -> None:
    recipe = SampleRecipe().seeded(7)
    assert {part.seed for part in (recipe.sizes, recipe.teacher, recipe.student, recipe.heads)} == {7}
    assert replace(recipe.student, seed=SampleRecipe().student.seed) == SampleRecipe().student


def test_a_sibling_differs_in_its_number_of_tokens_alone(tiny_siblings: Path, trained, reader, photos) -> None:
    sibling = load_sibling(load_run(tiny_siblings), 2)
    pixels = pixels_of(photos, trained.picture)
    with torch.no_grad():
        sentences = sibling(pixels)
        text = reader.unit([reader.alone] * len(pixels), sentences)
    assert sentences.shape[1:] == (2, TINY.teacher.word_width)
    folder = tiny_siblings / "siblings" / "k2"
    assert read_log(folder / "student.csv")[-1]["step"] == TINY.student.steps
    assert own_picture_is_nearer(trained, photos, text) > 0.02
    ours, theirs = (json.loads((each / "run.json").read_text()) for each in (tiny_siblings, folder))
    assert ours["teacher_id"] == theirs["teacher_id"]
    assert {**ours["recipe"], "tokens": 2} == theirs["recipe"]


def test_siblings_need_a_run(tmp_path: Path) -> None:
    nothing = CliRunner().invoke(app, ["sibling", str(tmp_path), "--tokens", "2", "--device", "cpu"])
    assert (nothing.exit_code, len(nothing.stderr.splitlines())) == (1, 1)
    assert "begin one with `pocketlens-train distill` or `pocketlens-train sample`" in nothing.stderr


def test_both_spellings_distil() -> None:
    for spelling in ("distill", "distil"):
        assert CliRunner().invoke(app, [spelling, "--help"]).exit_code == 0
    assert "distil " not in CliRunner().invoke(app, ["--help"]).stdout
