"""The tiny training learns something that can be measured, and each lesson sees only what it may."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pocketlens_samples.catalogue import is_held_out
from pocketlens_training.checkpoint import load_run, load_sibling
from pocketlens_training.cli import app
from pocketlens_training.lesson_heads import some_incomplete, triplet_features
from pocketlens_training.lesson_student import ALONE, CaptionBank
from pocketlens_training.lesson_teacher import edited_text
from pocketlens_training.loop import progress_bar
from pocketlens_training.pictures import specifications
from pocketlens_training.recipe import TINY, Recipe
from pocketlens_training.sample import learn_siblings
from pocketlens_training.school import School
from typer.testing import CliRunner


def log_of(school: School, lesson: str) -> list[dict]:
    return [json.loads(line) for line in (school.folder / f"{lesson}.log.jsonl").read_text().splitlines()]


@torch.no_grad()
def own_picture_is_nearer(school: School, text: torch.Tensor, numbers: np.ndarray) -> float:
    """How much nearer (cosine) texts are to their own photo's vector than to the others' on average."""
    image = F.normalize(school.teacher_vectors()[torch.from_numpy(numbers)], dim=1)
    cosines = F.normalize(text, dim=1) @ image.T
    own = cosines.diagonal().mean()
    return float(own - (cosines.sum() - cosines.trace()) / (len(numbers) * (len(numbers) - 1)))


@torch.no_grad()
def test_the_teacher_brings_captions_to_their_pictures(tiny_school: School) -> None:
    from pocketlens_samples.language import caption

    numbers = np.arange(0, 128, 2)
    rng = np.random.default_rng(0)
    captions = ["a photo of " + caption(tiny_school.photos.specs[n], rng) for n in numbers]
    learned = own_picture_is_nearer(tiny_school, tiny_school.text(captions), numbers)
    shuffled = own_picture_is_nearer(tiny_school, tiny_school.text(captions[1:] + captions[:1]), numbers)
    assert learned > 0.1
    assert learned > shuffled + 0.1


@torch.no_grad()
def test_the_student_brings_sentences_to_their_pictures(tiny_school: School) -> None:
    numbers = np.arange(0, 128, 2)
    pixels = tiny_school.photos.take(numbers)
    trained = tiny_school.text([ALONE] * len(numbers), tiny_school.sentences(pixels, tiny_school.student))
    torch.manual_seed(0)
    noise = torch.randn(len(numbers), TINY.tokens, TINY.word_width)
    untrained = tiny_school.text([ALONE] * len(numbers), noise)
    gain = own_picture_is_nearer(tiny_school, trained, numbers) - own_picture_is_nearer(tiny_school, untrained, numbers)
    assert gain > 0.02


def test_every_lesson_logs_and_leaves_weights(tiny_run, tiny_school: School) -> None:
    for lesson in ("teacher", "edits", "student", "heads-union", "heads-control", "symmetric"):
        assert (tiny_run / f"{lesson}.safetensors").exists()
        assert not (tiny_run / f"{lesson}.resume.safetensors").exists()
        records = log_of(tiny_school, lesson)
        assert records[-1]["step"] == getattr(TINY, {"heads-union": "head", "heads-control": "head"}.get(
            lesson, lesson.removesuffix("s")) + "_steps")  # fmt: skip
    losses = [record["loss"] for record in log_of(tiny_school, "teacher")]
    assert losses[-1] < losses[0]


def test_edit_lesson_leaves_the_image_tower_alone(tiny_run) -> None:
    from safetensors.torch import load_file

    before, after = load_file(tiny_run / "teacher.safetensors"), load_file(tiny_run / "edits.safetensors")
    # Batch norm statistics are buffers; only weights must be equal.
    image = [name for name in before if name.startswith("image.") and "running" not in name and "num_b" not in name]
    assert all(torch.equal(before[name], after[name]) for name in image)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("text."))


def test_running_statistics_do_not_move_once_vectors_are_cached(tiny_run) -> None:
    """The image tower is not run in lesson 2, so even its batch norm statistics must stand still."""
    from safetensors.torch import load_file

    before, after = load_file(tiny_run / "teacher.safetensors"), load_file(tiny_run / "edits.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_nothing_held_out_is_seen(tiny_school: School) -> None:
    assert not any(is_held_out(spec) for spec in specifications(2000, 3))
    assert not any(is_held_out(spec) for spec in CaptionBank(tiny_school).specs)
    rng = np.random.default_rng(0)
    assert all(edited_text(spec, rng) for spec in tiny_school.photos.specs[:50])


def test_the_same_seed_gives_the_same_pictures(tmp_path) -> None:
    small = replace(TINY, pictures=8, sketches=4)
    first = School(small, tmp_path / "a", torch.device("cpu"), progress_bar())
    second = School(small, tmp_path / "b", torch.device("cpu"), progress_bar())
    other = School(replace(small, seed=5), tmp_path / "c", torch.device("cpu"), progress_bar())
    for school in (first, second, other):
        school.draw_pictures()
    numbers = np.arange(8)
    assert np.array_equal(first.photos.take(numbers), second.photos.take(numbers))
    assert not np.array_equal(first.photos.take(numbers), other.photos.take(numbers))


def test_a_folder_begun_with_another_recipe_is_refused(tiny_run) -> None:
    with pytest.raises(ValueError, match="begun with another recipe"):
        School(replace(TINY, seed=TINY.seed + 1), tiny_run, torch.device("cpu"), progress_bar())


def test_recipe_round_trip_and_strictness(tmp_path) -> None:
    path = tmp_path / "recipe.json"
    TINY.write(path)
    assert Recipe.read(path) == TINY
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "bach": 3}))
    with pytest.raises(ValueError, match="unknown \\['bach'\\]"):
        Recipe.read(path)


def test_an_unfinished_run_names_the_missing_lesson(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="lesson `edits` is not trained yet"):
        load_run(tmp_path)


def test_incomplete_queries_follow_the_documented_convention(tiny_school: School) -> None:
    features = triplet_features(tiny_school)
    empty = torch.full((1, TINY.dim), 7.0)
    composed, picture, words, wanted = some_incomplete(features, empty, np.random.default_rng(1))
    no_picture = (picture == 7).all(1)
    no_words = (words == 7).all(1)
    assert 0 < no_picture.sum() < len(picture) / 4
    assert 0 < no_words.sum() < len(picture) / 4
    assert not (no_picture & no_words).any()
    assert torch.equal(composed[no_picture], words[no_picture])
    assert torch.equal(composed[no_words], picture[no_words])
    assert torch.equal(wanted[no_words], features["anchor_raw"][no_words])
    whole = ~no_picture & ~no_words
    assert torch.equal(wanted[whole], features["target_raw"][whole])


def test_a_sibling_differs_in_its_number_of_tokens_alone(tiny_school: School) -> None:
    teacher = {name: tensor.clone() for name, tensor in tiny_school.teacher.state_dict().items()}
    learn_siblings(tiny_school, [2])
    sibling = load_sibling(load_run(tiny_school.folder), 2)
    numbers = np.arange(0, 128, 2)
    with torch.no_grad():
        sentences = tiny_school.sentences(tiny_school.photos.take(numbers), sibling)
        text = tiny_school.text([ALONE] * len(numbers), sentences)
    assert sentences.shape[1:] == (2, TINY.word_width)
    assert log_of(tiny_school, "student-k2")[-1]["step"] == TINY.student_steps
    assert own_picture_is_nearer(tiny_school, text, numbers) > 0.02
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in tiny_school.teacher.state_dict().items())


@pytest.mark.parametrize(
    ("tokens", "words"), [(TINY.tokens, "own student has as many"), (2 * TINY.tokens + 1, "takes 1 to 8")]
)
def test_a_sibling_nobody_could_use_is_refused_before_it_is_trained(tiny_school: School, tokens, words) -> None:
    with pytest.raises(ValueError, match=words):
        learn_siblings(tiny_school, [tokens])


def test_siblings_need_a_run_with_a_teacher(tiny_run, tmp_path) -> None:
    runner = CliRunner()
    nothing = runner.invoke(app, ["sibling", str(tmp_path), "--tokens", "2"])
    assert (nothing.exit_code, len(nothing.stderr.splitlines())) == (1, 1)
    assert f"begin one with `pocketlens-train sample -o {tmp_path}`" in nothing.stderr
    TINY.write(tmp_path / "recipe.json")
    begun = runner.invoke(app, ["sibling", str(tmp_path), "--tokens", "2"])
    assert begun.exit_code == 1
    assert "no teacher yet" in begun.stderr
    with pytest.raises(FileNotFoundError, match="--tokens 7"):
        load_sibling(load_run(tiny_run), 7)
