"""What the student is compared with learns from the same material, and its pieces are the papers'."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pocketlens_training import baselines
from pocketlens_training.baselines import (
    PHIS,
    learn_phi,
    learn_symmetric,
    make_phi,
    pooled_contrast,
    without_content,
)
from pocketlens_training.checkpoint import load_run
from pocketlens_training.distil import distil
from pocketlens_training.further import learn_run_symmetric
from pocketlens_training.loop import read_log
from pocketlens_training.material import Sources, gather
from pocketlens_training.places import grid_of, teacher_places
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import read_recipe
from pocketlens_training.teachers.naming import load_teacher

SMALL = DistilRecipe(student="tiny-s", side=32, tokens=2, batch=8, bank=8, steps=20, held_out=4)


@pytest.fixture
def material(little: Path, cpu, quiet):
    sources = Sources(images=little / "photos", told=little / "told.jsonl")
    teacher = load_teacher(f"run:{little / 'teacher'}")
    return gather(teacher, sources, SMALL, where=cpu, progress=quiet, workers=0, cache=little / "cache")


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch) -> None:
    monkeypatch.setattr(baselines, "INVERSION_STEPS", 8)


@pytest.mark.parametrize("name", PHIS)
def test_one_word_for_a_feature(material, tmp_path: Path, cpu, quiet, name: str) -> None:
    phi = learn_phi(name, material, SMALL, tmp_path, where=cpu, progress=quiet)
    words = phi(material.raw[:5])
    assert words.shape == (5, 1, material.teacher.word_width) and bool(words.isfinite().all())
    assert not phi.training and not any(p.requires_grad for p in phi.parameters())
    (row,) = read_log(tmp_path / f"{name}.csv")
    assert row["step"] == 20 and all(math.isfinite(value) for value in row.values())
    again = learn_phi(name, material, SMALL, tmp_path, where=cpu, progress=quiet)  # read, not trained
    assert torch.equal(again(material.raw[:5]), words)


def test_searles_tokens_come_near_their_pictures(material, tmp_path: Path, cpu, quiet, monkeypatch) -> None:
    rows = material.kept[:6]
    nearness = []
    for steps in (1, 60):
        monkeypatch.setattr(baselines, "INVERSION_STEPS", steps)
        folder = tmp_path / str(steps)
        folder.mkdir()
        tokens = baselines._inverted(material, rows, 7, folder, cpu, quiet)
        assert tokens.shape == (6, material.teacher.word_width)
        with torch.no_grad():
            text = material.reader.unit([material.reader.alone] * 6, tokens[:, None])
        nearness.append(float((text * material.unit[torch.from_numpy(rows)]).sum(1).mean()))
    assert nearness[1] > nearness[0] + 0.1


def test_other_names_and_lincir_without_captions_are_refused(material, tmp_path: Path, cpu, quiet) -> None:
    with pytest.raises(ValueError, match="no baseline 'phi'; there are pic2word, searle, lincir"):
        learn_phi("phi", material, SMALL, tmp_path, where=cpu, progress=quiet)
    material.told = None
    with pytest.raises(ValueError, match="lincir learns from captions"):
        learn_phi("lincir", material, SMALL, tmp_path, where=cpu, progress=quiet)


def test_the_networks_are_those_of_the_authors() -> None:
    def widths(name: str) -> list[int]:
        return [layer.out_features for layer in make_phi(name, 16, 32).layers if isinstance(layer, torch.nn.Linear)]

    assert widths("pic2word") == [512, 512, 32]
    assert widths("searle") == widths("lincir") == [64, 64, 32]


def test_the_symmetric_baseline_reads_the_large_map(material, tmp_path: Path, cpu, quiet) -> None:
    module = learn_symmetric(material, SMALL, tmp_path, where=cpu, progress=quiet)
    places = teacher_places(
        material.teacher, material.photos, material.numbers, material.content, material.cache, where=cpu,
        progress=quiet,
    )  # fmt: skip
    seen = torch.from_numpy(places[:3].astype("float32"))
    assert module(seen).shape == (3, SMALL.tokens, material.teacher.word_width)
    (row,) = read_log(tmp_path / "symmetric.csv")
    assert math.isfinite(row["loss"])


def test_the_symmetric_baseline_of_a_run_is_read_back(little: Path, tmp_path: Path, cpu, quiet) -> None:
    distil(
        f"run:{little / 'teacher'}", Sources(images=little / "photos", sketches=little / "sketches.jsonl"), tmp_path,
        SMALL, where=cpu, progress=quiet, cache=little / "cache",
    )  # fmt: skip
    learn_run_symmetric(tmp_path, where=cpu, progress=quiet)
    module = load_run(tmp_path).symmetric
    assert module is not None
    assert module(torch.zeros(1, 4, 16)).shape == (1, SMALL.tokens, 32)
    assert read_recipe(tmp_path) == SMALL  # its own recipe is left as it was


def test_places_are_the_towers_own_and_kept(material, tmp_path: Path, cpu, quiet) -> None:
    def made(rows: list[int]) -> torch.Tensor:
        found = teacher_places(
            material.teacher, material.photos, material.numbers[rows], f"set {rows}", tmp_path, where=cpu,
            progress=quiet,
        )  # fmt: skip
        return torch.from_numpy(found.astype("float32"))

    from pocketlens_training.sets.pixels import square

    first = made([4, 2])
    pixels = square(material.photos.read(int(material.numbers[2])), material.teacher.picture)
    with torch.no_grad():
        wanted = material.teacher.image(torch.from_numpy(pixels)[None])[1][0]
    assert torch.allclose(first[1], wanted, atol=2e-2, rtol=1e-2)
    assert torch.equal(made([4, 2]), first)
    assert len(list((tmp_path / "places").iterdir())) == 1
    assert not torch.equal(made([2, 4]), first)
    assert len(list((tmp_path / "places").iterdir())) == 2


def test_a_full_disk_for_places_is_said(material, tmp_path: Path, cpu, quiet, monkeypatch) -> None:
    from pocketlens_training.loop import CannotSave

    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.open_memmap", full)
    with pytest.raises(CannotSave, match="No space left"):
        teacher_places(
            material.teacher, material.photos, material.numbers, material.content, tmp_path, where=cpu,
            progress=quiet,
        )  # fmt: skip
    assert not list((tmp_path / "places").iterdir())


def test_a_map_must_be_square() -> None:
    assert grid_of(49) == (7, 7)
    with pytest.raises(ValueError, match="a map of 50 places is no square"):
        grid_of(50)


def test_pooled_contrast_has_all_other_rows_as_negatives() -> None:
    left, right = (F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(n)), dim=1) for n in (0, 1))
    total = 0.0
    for mine, other in ((left, right), (right, left)):
        for i in range(4):
            pull = float((mine[i] @ other[i] / 0.25).exp())
            against = sum(float((mine[i] @ other[j] / 0.25).exp()) for j in range(4))
            against += sum(float((mine[i] @ mine[j] / 0.25).exp()) for j in range(4) if j != i)
            total -= math.log(pull / against) / 8
    assert float(pooled_contrast(left, right, 0.25)) == pytest.approx(total, rel=1e-4)
    assert pooled_contrast(torch.eye(4), torch.eye(4), 0.1) < pooled_contrast(left, right, 0.1)


@pytest.mark.parametrize(
    ("caption", "masked"),
    [
        ("a red mug on grass", "{sentence} on grass"),
        ("on grass", "on {sentence}"),
        ("just with a large striped umbrella, in blue", "just with {sentence} , in blue"),
        ("of and with", "{sentence}"),
        ("cat", "{sentence}"),
        ("", "{sentence}"),
    ],
)
def test_the_longest_run_of_content_words_gives_way(caption: str, masked: str) -> None:
    assert without_content(caption) == masked


def test_the_recipe_of_a_baseline_is_the_students_without_what_it_cannot_see() -> None:
    bare = baselines._without_sketches(replace(SMALL, lar="map", sketches="edges"))
    assert bare == replace(SMALL, lar="none", sketches="none", variation="none")
