"""A teacher of one's own, from anyone's pictures and captions."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pocketlens_training.loop import read_log
from pocketlens_training.sets.lines import BadLines, Captioned
from pocketlens_training.sets.sources import NoPictures
from pocketlens_training.teachers import teach as teach_room
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.own import TeacherRecipe
from pocketlens_training.teachers.teach import asks, draw_groups, grouped, split, steps_for, teach
from pocketlens_training.teachers.teacher import CannotTeach
from pocketlens_training.teachers.vocabulary import build_vocabulary, count_words
from safetensors.torch import load_file

SMALL = TeacherRecipe(
    side=32, batch=16, steps=20, edit_steps=4, widths=(4, 8, 8, 16), word_width=32, dim=16, text_layers=1, held_out=0.2,
    context=24,
)  # fmt: skip
COUNT = 60


@pytest.fixture
def world(tmp_path: Path, draw: Callable, caption_of: Callable, write_lines) -> Path:
    """60 pictures with captions in pairs, and edits of some."""
    for n in range(COUNT):
        (tmp_path / f"{n:02d}.png").write_bytes(draw(n))
    return write_lines(tmp_path / "pairs.jsonl", lines_of(caption_of))


def lines_of(caption_of: Callable) -> list[dict]:
    lines = [
        {"image": f"{n:02d}.png", "captions": [caption_of(n), "one of a kind"], "group": f"g{n // 2}"}
        for n in range(COUNT)
    ]
    lines[7]["captions"].append("an unheardof hapax")
    lines += [{"image": f"{n:02d}.png", "caption": caption_of(n + 1), "edit": "make it so"} for n in range(COUNT)]
    return lines


@pytest.fixture
def learn(world: Path, tmp_path: Path, cpu, quiet):
    def learned(recipe: TeacherRecipe = SMALL, *, pairs: Path = world, out: str = "teacher", workers: int = 0) -> dict:
        return teach(pairs, tmp_path / out, recipe, where=cpu, progress=quiet, workers=workers)

    return learned


def test_a_teacher_is_made_and_loads(learn, tmp_path: Path) -> None:
    card = learn()
    assert card["pictures"] + card["held_out"]["pictures"] == COUNT
    assert 0 < card["held_out"]["pictures"] <= COUNT // 5
    assert {"recall@1", "recall@5", "recall@10"} < card["held_out"].keys()
    assert 0 <= card["held_out"]["recall@1"] <= card["held_out"]["recall@10"] <= 100
    assert json.loads((tmp_path / "teacher" / "teacher.json").read_text()) == card
    for lesson, steps in (("pairs", 20), ("edits", 4)):
        row = read_log(tmp_path / "teacher" / f"{lesson}.csv")[-1]
        assert row["step"] == steps and all(math.isfinite(value) for value in row.values())
    teacher = load_teacher(f"run:{tmp_path / 'teacher'}")
    assert (teacher.dim, teacher.word_width, teacher.context, teacher.picture.side) == (16, 32, 24, 32)
    raw, places = teacher.image(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert raw.shape == (1, 16) and places.shape == (1, 4, 16)
    assert learn() == card  # finished: read


def test_words_come_from_the_captions_and_rare_ones_are_unknown(learn, tmp_path: Path) -> None:
    learn()
    words = load_teacher(f"run:{tmp_path / 'teacher'}").tokenizer.get_vocab()
    assert {"red", "thing", "kind", "make", "so", "photo", ","} <= words.keys()
    assert "unheardof" not in words and "hapax" not in words


def test_the_vocabulary_is_cut_at_the_most_frequent() -> None:
    counts = count_words(["Red red RED mug, mug", "a rare word"])
    assert counts["red"] == 3 and counts["mug"] == 2 and counts[","] == 1
    assert build_vocabulary(counts, at_least=2, at_most=10)[:2] == ["red", "mug"]  # the most frequent first
    assert "rare" not in build_vocabulary(counts, at_least=2, at_most=10)
    assert {"red", "rare"} & set(build_vocabulary(counts, at_least=1, at_most=1)) == {"red"}


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """As the tower is kept once its pairs are learned."""
    return tensor.half().float() if tensor.is_floating_point() else tensor


def test_the_edit_lesson_leaves_the_image_tower_alone(learn, tmp_path: Path) -> None:
    learn()
    before, after = (load_file(tmp_path / "teacher" / f"{name}.safetensors") for name in ("pairs", "edits"))
    # Its batch statistics stand still too: it is not run.
    image = [name for name in before if name.startswith("image.")]
    assert any("running" in name for name in image)
    assert all(torch.equal(rounded(before[name]), after[name]) for name in image)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("text."))


def test_without_edits_there_is_one_lesson(learn, tmp_path: Path, caption_of, write_lines) -> None:
    plain = [line for line in lines_of(caption_of) if "edit" not in line]
    card = learn(pairs=write_lines(tmp_path / "plain.jsonl", plain))
    assert card["edits"] == 0 and not (tmp_path / "teacher" / "edits.csv").exists()


def test_edits_of_held_out_pictures_are_left_out(learn) -> None:
    card = learn()
    assert card["edits"] == card["pictures"]


def test_an_edit_of_a_picture_without_captions_is_refused(learn, tmp_path: Path, caption_of, write_lines) -> None:
    lines = [*lines_of(caption_of), {"image": "other.png", "caption": "x", "edit": "y"}]
    with pytest.raises(BadLines, match=r"'other\.png' has an edit but no line with its captions"):
        learn(pairs=write_lines(tmp_path / "wrong.jsonl", lines))


def test_a_picture_that_cannot_be_read_is_listed_and_left_out(learn, tmp_path: Path) -> None:
    (tmp_path / "07.png").write_bytes(b"broken")
    (tmp_path / "09.png").unlink()
    card = learn()
    listed = (tmp_path / "teacher" / "unreadable.csv").read_text()
    assert "07.png" in listed and "09.png" in listed and len(listed.splitlines()) == 3
    assert card["pictures"] + card["held_out"]["pictures"] == COUNT - 2


def test_too_few_pictures_are_refused(learn, tmp_path: Path, caption_of, write_lines) -> None:
    few = [line for line in lines_of(caption_of) if "edit" not in line][:49]
    with pytest.raises(NoPictures, match=r"few\.jsonl: 49 readable pictures with captions; at least 50 are needed"):
        learn(pairs=write_lines(tmp_path / "few.jsonl", few))


def test_a_folder_begun_with_another_recipe_is_refused(learn, tmp_path: Path) -> None:
    learn()
    with pytest.raises(ValueError, match=r"begun with another recipe .*seed 20261121 there, 5 asked"):
        learn(replace(SMALL, seed=5))
    with pytest.raises(ValueError, match="variation must be one of"):
        replace(SMALL, variation="zoom")


def test_a_training_under_way_does_not_go_on_with_another_set(learn, tmp_path: Path, draw) -> None:
    learn()
    for name in ("teacher.safetensors", "teacher.json"):
        (tmp_path / "teacher" / name).unlink()
    learn()  # as it was: it goes on
    (tmp_path / "teacher" / "teacher.safetensors").unlink()
    (tmp_path / "07.png").write_bytes(draw(99))
    with pytest.raises(ValueError, match="was begun with other pictures; put them back, or name another folder"):
        learn()


def test_a_recipe_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    SMALL.write(path)
    assert TeacherRecipe.read(path) == SMALL
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "bach": 3}))
    with pytest.raises(ValueError, match=r"unknown \['bach'\]"):
        TeacherRecipe.read(path)


def test_the_same_seed_gives_the_same_teacher_with_workers_too(learn, tmp_path: Path) -> None:
    learn(out="a")
    learn(out="b", workers=2)
    learn(replace(SMALL, seed=1), out="c")
    a, b, c = (load_file(tmp_path / name / "teacher.safetensors") for name in "abc")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert not all(torch.equal(value, c[name]) for name, value in a.items())


def test_an_unfinished_or_broken_teacher_is_refused(learn, tmp_path: Path) -> None:
    with pytest.raises(CannotTeach, match="no teacher lies there; `pocketlens-train teacher"):
        load_teacher(f"run:{tmp_path / 'none'}")
    learn()
    home = tmp_path / "teacher"
    whole = (home / "teacher.safetensors").read_bytes()
    (home / "teacher.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CannotTeach, match="is not a whole teacher"):
        load_teacher(f"run:{home}")
    (home / "teacher.safetensors").unlink()
    with pytest.raises(CannotTeach, match="its training is not finished"):
        load_teacher(f"run:{home}")


def captioned(count: int, *, groups: bool = True) -> list[Captioned]:
    return [Captioned(f"{n}.png", ("x",), f"g{n // 3}" if groups else None, {}) for n in range(count)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("groups", [True, False])
def test_whole_groups_are_held_out_whatever_the_order(share: float, groups: bool) -> None:
    lines = captioned(300, groups=groups)
    kept, tried = split(lines, share)
    assert len(kept) + len(tried) == 300
    assert 0 < len(tried) <= 60  # a fifth at most
    if groups:
        assert not {one.group for one in kept} & {one.group for one in tried}
    shuffled = lines.copy()
    random.Random(3).shuffle(shuffled)
    assert {one.image for one in split(shuffled, share)[1]} == {one.image for one in tried}


def test_a_longer_file_holds_out_the_same_and_more() -> None:
    shorter = {one.image for one in split(captioned(300), 0.1)[1]}
    longer = {one.image for one in split(captioned(900), 0.1)[1]}
    assert shorter < longer


def test_none_held_out() -> None:
    assert split(captioned(100), 0.0) == (captioned(100), [])


def test_batches_hold_neighbours_and_no_row_twice() -> None:
    groups = grouped(captioned(30))
    assert [group.tolist() for group in groups.rows[:2]] == [[0, 1, 2], [3, 4, 5]]
    assert groups.of_row[:6].tolist() == [0, 0, 0, 1, 1, 1]
    for seed in range(30):
        rows = draw_groups(groups, 8, np.random.default_rng(seed)).tolist()
        assert len(rows) == 8 == len(set(rows))
        assert all(rows[i] // 3 == rows[i + 1] // 3 for i in range(0, 8, 2))  # two of a group, side by side
    alone = grouped(captioned(5, groups=False))
    assert sorted(draw_groups(alone, 99, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3, 4]


def test_of_very_many_rows_each_comes_once_too(monkeypatch) -> None:
    monkeypatch.setattr(teach_room, "SHUFFLED", 10)
    rng = np.random.default_rng(3)
    assert sorted(teach_room._in_random_order(500, rng)) == list(range(500))
    rows = draw_groups(grouped(captioned(600)), 8, rng).tolist()
    assert len(set(rows)) == 8 and all(rows[i] // 3 == rows[i + 1] // 3 for i in range(0, 8, 2))


def test_each_picture_of_a_batch_has_a_seed_of_its_own() -> None:
    asked = asks([4, 4, 7], np.random.default_rng(0))
    assert [ask.number for ask in asked] == [4, 4, 7]
    assert len({ask.seed for ask in asked}) == 3


def test_steps_grow_with_the_set() -> None:
    assert steps_for(100_000) == 1800
    assert steps_for(50) == 600 < steps_for(400_000)


def test_a_teacher_that_computes_otherwise_has_other_ids(little: Path) -> None:
    from dataclasses import replace

    from pocketlens_training.teachers.own import from_own

    teacher = from_own("t", little / "teacher")
    other = replace(from_own("t", little / "teacher"), signature="another activation")
    assert teacher.id == from_own("u", little / "teacher").id
    assert other.id != teacher.id
    assert other.text_id != teacher.text_id
