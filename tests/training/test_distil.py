"""A distillation of a few steps in every manner it knows, and what of its material it may see."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pocketlens_training.checkpoint import load_run, load_sibling
from pocketlens_training.distil import Plan, distil
from pocketlens_training.further import learn_siblings
from pocketlens_training.loop import read_log
from pocketlens_training.material import Sources, gather
from pocketlens_training.probe import Probe
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import read_recipe, read_run
from pocketlens_training.sets.lines import BadLines
from pocketlens_training.sets.sources import NoPictures, open_source
from pocketlens_training.students.student import Student, make_student
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import CannotTeach
from pocketlens_wire.pictures import PictureSpec
from safetensors.torch import load_file

SMALL = DistilRecipe(student="tiny-s", side=32, tokens=2, batch=8, bank=16, steps=4, held_out=4)
STEPS = 20  # the log's first row


def all_sources(little: Path) -> Sources:
    return Sources(
        images=little / "pairs.jsonl", told=little / "told.jsonl", sketches=little / "sketches.jsonl",
        questions=little / "questions.jsonl",
    )  # fmt: skip


@pytest.fixture
def learn(little: Path, tmp_path: Path, cpu, quiet) -> Callable[..., Student]:
    """Distil into tmp_path/run with SMALL, some of it changed."""

    def learned(
        *, recipe: DistilRecipe = SMALL, sources: Sources | None = None, teacher: str | None = None,
        folder: Path | None = None, workers: int = 0, **changed: Any,
    ) -> Student:  # fmt: skip
        return distil(
            teacher or f"run:{little / 'teacher'}", sources or all_sources(little), folder or tmp_path / "run",
            replace(recipe, **changed), where=cpu, progress=quiet, workers=workers, cache=little / "cache",
        )  # fmt: skip

    return learned


@pytest.fixture
def material(little: Path, cpu, quiet):
    def gathered(recipe: DistilRecipe = SMALL, sources: Sources | None = None):
        teacher = load_teacher(f"run:{little / 'teacher'}")
        return gather(
            teacher,
            sources or all_sources(little),
            recipe,
            where=cpu,
            progress=quiet,
            workers=0,
            cache=little / "cache",
        )

    return gathered


MANNERS: dict[str, dict[str, Any]] = {
    "contrast": {"gcd": "contrast"},
    "contrast without a bank": {"gcd": "contrast", "bank": 0},
    "relational": {"gcd": "relational"},
    "both": {"gcd": "both"},
    "cosine": {"gcd": "cosine"},
    "map": {"lar": "map"},
    "no sketches": {"sketches": "none"},
    "edges": {"sketches": "edges"},
    "drawn": {"sketches": "drawn"},
    "drawn-own": {"sketches": "drawn-own"},
    "none pale": {"pale": False},
    "anchors": {"anchors": 12},
    "no mean": {"average": 0.0},
    "accumulate": {"accumulate": 2},
    "crop": {"variation": "crop-mirror"},
    "more pixels than the teacher": {"side": 64},
}


@pytest.mark.parametrize("changed", MANNERS.values(), ids=MANNERS.keys())
def test_every_manner_learns_a_few_steps(learn, tmp_path: Path, changed: dict[str, Any]) -> None:
    student = learn(steps=STEPS, **changed)
    (row,) = read_log(tmp_path / "run" / "student.csv")
    assert row["step"] == STEPS
    expected = {"loss", "gcd", "cosine", "composition", "finds_itself", "same colour", "recall@10"}
    assert row.keys() >= expected | ({"lar"} if "lar" in changed else set())
    assert all(math.isfinite(value) for value in row.values())
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())
    assert not student.training and not any(p.requires_grad for p in student.parameters())
    pixels = torch.zeros(3, changed.get("side", 32), changed.get("side", 32), 3, dtype=torch.uint8)
    loaded = load_run(tmp_path / "run").student
    assert torch.equal(loaded(pixels), student(pixels))


def test_without_held_out_pictures_the_questions_are_still_asked(learn, tmp_path: Path) -> None:
    learn(steps=STEPS, held_out=0)
    (row,) = read_log(tmp_path / "run" / "student.csv")
    assert "recall@10" in row and "finds_itself" not in row


def test_distilling_brings_sentences_to_their_pictures(learn, material, tmp_path: Path, cpu, quiet) -> None:
    recipe = replace(SMALL, steps=200, batch=16, average=0.9, composition_weight=0.0, sketches="none")
    student = learn(recipe=recipe)
    rows = read_log(tmp_path / "run" / "student.csv")
    assert rows[-1]["gcd"] < rows[0]["gcd"]
    ready = material()
    probe = Probe(ready, None, where=cpu, workers=0, progress=quiet)
    torch.manual_seed(1)
    fresh = make_student("tiny-s", ready.teacher, tokens=2, side=32)
    nearness = []
    for one in (fresh.eval(), student):
        with torch.no_grad():
            sentence = probe.sentences(one, ready.kept[:24])
            text = ready.reader.unit([ready.reader.alone] * 24, sentence)
            scores = text @ ready.unit[torch.from_numpy(ready.kept[:24])].T
        nearness.append(float(scores.diagonal().mean() - scores.mean()))
    assert nearness[1] > nearness[0] + 0.03, nearness


def test_batches_prepared_by_workers_are_the_same_lesson(learn, tmp_path: Path) -> None:
    learn(folder=tmp_path / "alone")
    learn(folder=tmp_path / "helped", workers=2)
    alone, helped = (load_file(tmp_path / name / "student.safetensors") for name in ("alone", "helped"))
    assert all(torch.equal(value, helped[name]) for name, value in alone.items())


def test_composition_distillation_comes_every_second_batch(material, cpu, quiet, monkeypatch) -> None:
    from pocketlens_training import distil as room

    ready = material()
    told: list[bool] = []

    def noting(lesson, module, loss_of, schedule, **_more) -> None:
        for micro in range(6):
            _, figures = loss_of(module, micro, np.random.default_rng(micro))
            told.append("composition" in figures)

    monkeypatch.setattr(room, "train", noting)
    student = make_student("tiny-s", ready.teacher, tokens=2, side=32)
    room.learn(student, ready, SMALL, Path(), where=cpu, progress=quiet)
    assert told == [True, False] * 3


def test_without_captions_or_weight_there_is_no_composition(learn, little: Path, tmp_path: Path) -> None:
    learn(steps=STEPS, sources=Sources(images=little / "photos"))
    assert "composition" not in read_log(tmp_path / "run" / "student.csv")[0]
    learn(steps=STEPS, composition_weight=0.0, folder=tmp_path / "other")
    assert "composition" not in read_log(tmp_path / "other" / "student.csv")[0]


@pytest.mark.parametrize("sketches", ["none", "edges", "drawn"])
def test_held_out_pictures_never_come_into_a_batch(material, sketches: str) -> None:
    recipe = replace(SMALL, sketches=sketches)
    ready = material(recipe)
    assert len(ready.held) == 4 and not set(ready.held) & set(ready.kept)
    plan = Plan(ready, recipe, 0)
    held = set(ready.numbers[ready.held].tolist())
    seen: set[int] = set()
    for micro in range(60):
        asks = plan.asks(micro)
        assert len(asks) == recipe.batch == len(plan.wanted(micro))
        kinds = [ask.kind for ask in asks]
        assert kinds == sorted(kinds, key=lambda kind: kind != "photo")  # photos first
        assert kinds.count("photo") == plan.photos
        for ask in asks:
            row = int(ready.drawn[ready.drawn[:, 0] == ask.number][0, 1]) if ask.kind == "sketch" else None
            seen.add(int(ready.numbers[row]) if row is not None else ask.number)
    assert not seen & held
    assert seen == set(range(48)) - held  # and all others do come


def test_a_batch_follows_from_its_number_and_the_process_alone(material) -> None:
    ready = material()
    plan = Plan(ready, SMALL, 0)
    assert plan.asks(7) == Plan(ready, SMALL, 0).asks(7)
    assert plan.asks(7) != plan.asks(8)
    assert plan.asks(7) != Plan(ready, SMALL, 1).asks(7)
    assert plan.asks(7) != Plan(ready, replace(SMALL, seed=1), 0).asks(7)


def test_what_is_wanted_is_the_vector_of_what_is_shown(material) -> None:
    for sketches in ("none", "edges", "drawn", "drawn-own"):
        recipe = replace(SMALL, sketches=sketches)
        ready = material(recipe)
        plan = Plan(ready, recipe, 0)
        row_of = {int(number): row for row, number in enumerate(ready.numbers)}
        photo_of = {int(sketch): int(row) for sketch, row in ready.drawn}
        for ask, wanted in zip(plan.asks(3), plan.wanted(3), strict=True):
            if ask.kind == "sketch" and sketches == "drawn-own":
                assert torch.equal(wanted, ready.sketch_raw[ask.number])
            else:
                row = photo_of[ask.number] if ask.kind == "sketch" else row_of[ask.number]
                assert torch.equal(wanted, ready.raw[row])


def test_the_held_out_are_the_same_whatever_the_order(material, little: Path, tmp_path: Path) -> None:
    first = material(sources=Sources(images=little / "photos"))
    names = {first.photos.names[n] for n in first.numbers[first.held]}
    listed = tmp_path / "list.txt"
    for n in range(48):
        shutil.copy(little / "photos" / f"{n:02d}.png", tmp_path)
    listed.write_text("\n".join(reversed(open_source(little / "photos").names)))
    second = material(sources=Sources(images=listed))
    assert {second.photos.names[n] for n in second.numbers[second.held]} == names


def test_pixels_of_the_probe_follow_the_student_and_the_rows(material, cpu, quiet) -> None:
    ready = material()
    small = make_student("tiny-s", ready.teacher, tokens=2, side=32).eval()
    large = make_student("tiny-s", ready.teacher, tokens=2, side=48).eval()
    probe = Probe(ready, None, where=cpu, workers=0, progress=quiet)
    probe.figures(small)
    probe.figures(large)
    for student, rows in ((large, ready.held), (large, ready.kept[:4]), (small, ready.held)):
        spec = PictureSpec(side=student.encoder.side, fit="crop")
        from pocketlens_training.sets.pixels import square

        made = [square(ready.photos.read(int(n)), spec) for n in ready.numbers[rows]]
        with torch.no_grad():
            wanted = student(torch.from_numpy(np.stack(made)))
            assert torch.allclose(probe.sentences(student, rows), wanted, atol=1e-5)


def test_unreadable_pictures_are_listed_and_not_learned(learn, tmp_path: Path, draw) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.png").write_bytes(draw(n) if n != 3 else b"broken")
    learn(sources=Sources(images=folder))
    assert "3.png" in (tmp_path / "run" / "unreadable.csv").read_text()


def test_too_few_pictures_are_refused(learn, tmp_path: Path, draw) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(7):
        (folder / f"{n}.png").write_bytes(draw(n))
    with pytest.raises(NoPictures, match=r"photos: 7 different pictures can be read; at least 8 are needed"):
        learn(sources=Sources(images=folder))


def test_sketches_of_other_photos_are_refused(learn, little: Path, tmp_path: Path, write_lines) -> None:
    file = write_lines(tmp_path / "sketches.jsonl", [{"sketch": "s.png", "photo": "elsewhere.png"}])
    with pytest.raises(
        BadLines, match=r"none of its 1 sketches can be learned from: 1 cannot be read, the photo of 1 is no"
    ):
        learn(sources=Sources(images=little / "photos", sketches=file))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gcd": "cos"}, "gcd must be one of contrast, relational, both, cosine, came 'cos'"),
        ({"lar": "maps"}, "lar must be one of none, map, match"),
        ({"sketches": "yes"}, "sketches must be one of"),
        ({"variation": "zoom"}, "variation must be one of none, shift, crop, crop-mirror, came 'zoom'"),
        ({"lar": "map", "variation": "crop"}, "lar map needs what the teacher saw"),
        ({"lar": "map", "variation": "crop-mirror"}, "lar map needs what the teacher saw"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"steps": 0}, "steps and accumulate at least 1"),
        ({"accumulate": 0}, "steps and accumulate at least 1"),
        ({"sketch_share": 1.0}, "sketch_share must be 0 to 1"),
    ],
)
def test_wrong_values_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **changed)


def test_a_recipe_of_another_version_names_its_keys() -> None:
    raw = SMALL.as_json()
    assert DistilRecipe.of_json(raw, "run.json") == SMALL
    del raw["pale"]
    with pytest.raises(ValueError, match=r"run\.json: recipe keys missing \['pale'\], unknown \['bach'\]"):
        DistilRecipe.of_json({**raw, "bach": 3}, "run.json")


def test_matching_needs_a_teacher_with_such_a_head(learn) -> None:
    with pytest.raises(ValueError, match="has no matching head, which lar match needs; use lar map"):
        learn(lar="match")


def test_a_folder_begun_otherwise_is_refused_and_says_what_differs(learn, tmp_path: Path, little: Path) -> None:
    learn()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"a different recipe \(seed 20261121 there, 5 asked, tokens 2 there"):
        learn(seed=5, tokens=3)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    other = tmp_path / "teacher"
    shutil.copytree(little / "teacher", other)
    weights = load_file(other / "teacher.safetensors")
    weights["image.project.bias"] += 1
    from safetensors.torch import save_file

    save_file(weights, other / "teacher.safetensors")
    with pytest.raises(ValueError, match="begun with a different teacher"):
        learn(teacher=f"run:{other}")


def test_a_run_moved_elsewhere_with_its_teacher_still_loads(learn, little: Path, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(little / "teacher", here / "teacher")
    monkeypatch.chdir(here)
    student = learn(teacher="run:teacher", folder=Path("run"))
    assert read_run(here / "run")["teacher"] == "run:../teacher"
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "there")
    trained = load_run(tmp_path / "there" / "run")
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    assert torch.equal(trained.student(pixels), student(pixels))
    assert trained.heads is None and trained.symmetric is None
    weights = tmp_path / "there" / "teacher" / "teacher.safetensors"
    changed = {**load_file(weights)}
    changed["image.project.bias"] += 1
    from safetensors.torch import save_file

    save_file(changed, weights)
    with pytest.raises(ValueError, match="put the right teacher back, or distil again"):
        load_run(tmp_path / "there" / "run")
    weights.unlink()
    with pytest.raises(CannotTeach, match="its training is not finished"):
        load_run(tmp_path / "there" / "run")


def test_runs_that_are_not_there_say_how_to_begin_one(learn, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="begin one with `pocketlens-train distill` or `pocketlens-train sample`"
    ):
        load_run(tmp_path)
    learn()
    (tmp_path / "run" / "student.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="its student is not trained yet"):
        load_run(tmp_path / "run")


def test_siblings_share_all_but_the_number_of_tokens(learn, tmp_path: Path, cpu, quiet) -> None:
    learn()
    run = tmp_path / "run"
    for count, said in ((2, "own student has as many"), (17, "a bundle takes 1 to 16"), (0, "a bundle takes 1 to 16")):
        with pytest.raises(ValueError, match=said):
            learn_siblings(run, [count], where=cpu, progress=quiet)
    assert not (run / "siblings").exists()
    learn_siblings(run, [1, 3], where=cpu, progress=quiet)
    trained = load_run(run)
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    for count in (1, 3):
        assert load_sibling(trained, count)(pixels).shape == (1, count, 32)
        assert read_recipe(run / "siblings" / f"k{count}") == replace(SMALL, tokens=count)
    with pytest.raises(FileNotFoundError, match="--tokens 7"):
        load_sibling(trained, 7)


def test_a_run_whose_student_began_with_a_file_does_not_need_it_any_more(learn, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    file = tmp_path / "w.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), file)
    student = learn(student=f"mobilenetv3_small_050@{file}", side=64, steps=2)
    file.unlink()
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert torch.equal(load_run(tmp_path / "run").student(pixels), student(pixels))


def test_matching_with_blip(learn, little: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    home = tmp_path / "blip"
    home.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "photo",
        "of",
        "red",
        "blue",
        "thing",
        "it",
        "make",
        ",",
    ]
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16,
        },
        image_text_hidden_size=16, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BlipForImageTextRetrieval(config).save_pretrained(home)
    (home / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(home / "vocab.txt")).save_pretrained(home)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(home)
    for lar in ("match", "map"):
        folder = tmp_path / lar
        student = learn(teacher=f"hf:{home}", lar=lar, steps=STEPS, folder=folder)
        (row,) = read_log(folder / "student.csv")
        assert row["lar"] > 0 and all(math.isfinite(value) for value in row.values())
        assert student.learner.out.weight.isfinite().all()
    assert json.loads((tmp_path / "match" / "run.json").read_text())["recipe"]["lar"] == "match"
