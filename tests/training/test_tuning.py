"""The heads of the tuned mode: every target and composition, beside a control, on triplets that may be incomplete."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pocketlens_training.checkpoint import load_run
from pocketlens_training.distil import distil
from pocketlens_training.further import learn_run_heads
from pocketlens_training.loop import machine, progress_bar, read_log
from pocketlens_training.material import Sources
from pocketlens_training.reading import reader_of
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.sets.lines import BadLines
from pocketlens_training.tuning import HeadRecipe, TripletFeatures, make_heads, query_features, tune
from safetensors.torch import load_file

SMALL = HeadRecipe(batch=32, steps=20, incomplete=0.2)


@pytest.fixture(scope="module", params=[32, 48], ids=["the teacher's side", "another side"])
def run(request, little: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = DistilRecipe(student="tiny-s", side=request.param, tokens=2, batch=8, bank=8, steps=2, sketches="none")
    distil(
        f"run:{little / 'teacher'}", Sources(images=little / "photos"), folder, recipe, where=machine("cpu", "fp32"),
        progress=progress_bar(), cache=little / "cache",
    )  # fmt: skip
    return folder


@pytest.fixture
def trained(run: Path):
    return load_run(run)


@pytest.fixture
def make(trained, little: Path, tmp_path: Path, cpu, quiet) -> Callable[..., dict]:
    """Tune into tmp_path."""

    def made(recipe: HeadRecipe = SMALL, *, triplets: Path | None = little / "triplets.jsonl", **changed) -> dict:
        return tune(
            trained.student, trained.teacher, triplets, tmp_path, replace(recipe, **changed),
            reader=reader_of(trained.teacher, cpu), where=cpu, progress=quiet,
        )  # fmt: skip

    return made


@pytest.fixture
def features(trained, little: Path, tmp_path: Path, cpu, quiet) -> TripletFeatures:
    return TripletFeatures.of(
        trained.student, trained.teacher, little / "triplets.jsonl", "content", tmp_path, SMALL,
        reader_of(trained.teacher, cpu), cpu, quiet, 0,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["original", "sum", "sum:0.5", "union", "union-light", "union-gated"])
def test_every_target_is_learned_beside_its_control(make, tmp_path: Path, target: str) -> None:
    card = make(target=target)
    assert json.loads((tmp_path / "heads.json").read_text()) == card
    for lesson in ("heads", "heads-control"):
        (row,) = read_log(tmp_path / f"{lesson}.csv")
        assert row["step"] == 20 and math.isfinite(row["loss"])
    heads, control = (load_file(tmp_path / f"{name}.safetensors") for name in ("heads", "heads-control"))
    assert all(bool(torch.isfinite(value).all()) for value in heads.values())
    query = [name for name in heads if name.startswith("query.")]
    assert query and [name for name in control if name.startswith("query.")] == query
    if target == "original":  # then the control is the same training
        assert all(torch.equal(heads[name], control[name]) for name in heads)


@pytest.mark.parametrize("composition", ["gated", "transagg", "pdv:1.2", "plain"])
@pytest.mark.parametrize("target", ["original", "union-gated"])
def test_every_composition(make, run: Path, tmp_path: Path, composition: str, target: str) -> None:
    make(composition=composition, target=target)
    tensors = load_file(tmp_path / "heads.safetensors")
    heads = make_heads(replace(SMALL, composition=composition, target=target), tensors["target.empty_raw"][0])
    heads.load_state_dict(tensors)
    free = composition in ("pdv:1.2", "plain")
    assert (tmp_path / "heads-control.csv").exists() == (not free)
    assert (tmp_path / "heads.csv").exists() == (not free or target != "original")


def test_what_needs_no_training_needs_no_triplets(make, tmp_path: Path) -> None:
    make(composition="pdv:1.2", target="sum", triplets=None)
    assert (tmp_path / "heads.safetensors").exists() and (tmp_path / "heads-control.safetensors").exists()


@pytest.mark.parametrize("wrong", [{"composition": "gatd"}, {"target": "unin"}, {"composition": "pdv:x"}])
def test_a_wrong_name_is_refused_and_can_be_put_right(make, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match="`"):
        make(**wrong)
    assert not (tmp_path / "heads.json").exists()
    make()  # nothing of the mistake is left


def test_learning_without_triplets_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is learned from triplets: name a file, --triplets"):
        make(triplets=None)
    make()


def test_heads_of_another_recipe_are_not_overwritten(make, tmp_path: Path) -> None:
    make()
    before = (tmp_path / "heads.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"heads of another recipe, triplets or pictures .*steps 20 there, 30 asked"):
        make(steps=30)
    assert (tmp_path / "heads.safetensors").read_bytes() == before
    make()  # the same again is fine


def test_heads_that_were_not_finished_are_not_there(run: Path, little: Path, cpu, quiet) -> None:
    assert load_run(run).heads is None
    learn_run_heads(run, little / "triplets.jsonl", SMALL, where=cpu, progress=quiet)
    loaded = load_run(run)
    assert loaded.heads is not None and loaded.control is not None
    assert loaded.head_recipe == SMALL
    assert not any(p.requires_grad for p in loaded.heads.parameters())


def test_triplets_with_unreadable_pictures_are_listed(make, little: Path, tmp_path: Path, write_lines, draw) -> None:
    for n in range(24):
        (tmp_path / f"{n}.png").write_bytes(b"broken" if n == 5 else draw(n))
    lines = [{"reference": f"{n}.png", "text": "but red", "target": f"{n + 1}.png"} for n in range(23)]
    lines += [{"reference": "0.png", "text": "gone", "targets": ["1.png", "none.png"]}]
    make(triplets=write_lines(tmp_path / "t.jsonl", lines))
    listed = (tmp_path / "triplets-unreadable.csv").read_text()
    assert "5.png" in listed and "none.png" in listed and len(listed.splitlines()) == 3
    (kept,) = tmp_path.glob("triplets-*.safetensors")
    assert len(load_file(kept)["composed"]) == 23 - 2 + 1  # without those from and to 5, and one of two targets


def test_too_few_triplets_are_refused(make, little: Path, tmp_path: Path, write_lines) -> None:
    lines = [{"reference": "none.png", "text": "x", "target": f"{n}.png"} for n in range(20)]
    with pytest.raises(BadLines, match=r"t\.jsonl: 0 triplets whose pictures can be read; at least 16 are needed"):
        make(triplets=write_lines(tmp_path / "t.jsonl", lines))
    with pytest.raises(BadLines, match=r"gone\.jsonl: cannot be read"):
        make(triplets=tmp_path / "gone.jsonl")


def test_features_are_what_the_service_would_compute(features: TripletFeatures, trained, little: Path, cpu) -> None:
    from pocketlens_training.sets.pixels import square
    from pocketlens_training.students.student import student_picture

    first = json.loads((little / "triplets.jsonl").read_text().splitlines()[0])
    reference, target = ((little / first[key]).read_bytes() for key in ("reference", "target"))
    spec = student_picture(trained.student, trained.teacher)
    with torch.no_grad():
        sentence = trained.student(torch.from_numpy(square(reference, spec))[None])
        wanted = query_features(reader_of(trained.teacher, cpu), sentence, [first["text"]])
        target_raw = trained.teacher.image(torch.from_numpy(square(target, trained.teacher.picture))[None])[0]
        anchor_raw = trained.teacher.image(torch.from_numpy(square(reference, trained.teacher.picture))[None])[0]
    for name, value in wanted.items():
        assert torch.allclose(features.tensors[name][:1], value, atol=1e-5), name
    assert torch.allclose(features.tensors["target_raw"][:1], target_raw, atol=1e-5)
    assert torch.allclose(features.tensors["anchor_raw"][:1], anchor_raw, atol=1e-5)


def test_incomplete_queries_follow_the_documented_convention(features: TripletFeatures) -> None:
    batch, wanted = features.draw(replace(SMALL, batch=1000, incomplete=0.25), np.random.default_rng(1))
    numbers = torch.from_numpy(np.random.default_rng(1).choice(len(features), len(features), replace=False))
    held = {name: value[numbers] for name, value in features.tensors.items()}
    empty = F.normalize(features.empty_raw, dim=0)
    no_picture = (batch["picture"] == empty).all(1)
    no_words = (batch["words"] == empty).all(1)
    assert 0 < no_picture.sum() < len(wanted) / 2
    assert 0 < no_words.sum() < len(wanted) / 2
    assert not (no_picture & no_words).any()
    told = held["caption"].abs().sum(1) > 0
    assert told[no_picture].all() and not told.all()  # without a caption a query of words alone cannot be learned
    assert torch.equal(batch["composed"][no_picture], held["caption"][no_picture])
    assert torch.equal(batch["words"][no_picture], held["caption"][no_picture])
    assert torch.equal(batch["composed"][no_words], held["picture"][no_words])
    assert torch.equal(wanted[no_words], held["anchor_raw"][no_words])
    whole = ~no_picture & ~no_words
    for name in ("composed", "picture", "words"):
        assert torch.equal(batch[name][whole], held[name][whole])
    assert torch.equal(wanted[whole | no_picture], held["target_raw"][whole | no_picture])
    assert torch.equal(features.tensors["words"][numbers], held["words"])  # what was drawn from is as it was


def test_targets_of_one_query_are_no_negatives_of_each_other(make, tmp_path, write_lines, draw, monkeypatch) -> None:
    from pocketlens_training import tuning

    excused: list[int] = []

    def noting(left, right, scale, same):
        excused.append(int(same.sum()))
        return F.mse_loss(left, right)

    monkeypatch.setattr(tuning, "contrast", noting)
    monkeypatch.setattr(tuning, "twins", lambda rows: torch.zeros(len(rows), len(rows), dtype=torch.bool))
    for n in range(17):
        (tmp_path / f"{n}.png").write_bytes(draw(n))
    lines = [
        {"reference": f"{n}.png", "text": "but red", "targets": [f"{n + 1}.png", f"{n + 2}.png"]}
        for n in range(0, 15, 2)
    ]
    make(triplets=write_lines(tmp_path / "t.jsonl", lines), batch=99, incomplete=0.0)
    assert set(excused) == {2 * 8}  # both ways for each of eight queries
