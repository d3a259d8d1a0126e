"""Bundles of runs that have less, or other things, than the sample's: what each can do, and what none can hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.compose import Composer
from pocketlens_edge.encoder import Encoder
from pocketlens_export.bundle import export_bundle
from pocketlens_training.checkpoint import load_run
from pocketlens_training.distil import distil
from pocketlens_training.further import learn_run_heads
from pocketlens_training.loop import machine, progress_bar
from pocketlens_training.sample import TINY, set_sources
from pocketlens_training.tuning import HeadRecipe
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.manifest import read_cloud, read_edge


@pytest.fixture
def run_with(tiny_run: Path, tmp_path: Path) -> Callable[[HeadRecipe | None], Path]:
    """The tiny run's student with other heads, or none."""

    def made(recipe: HeadRecipe | None) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        for name in ("run.json", "student.safetensors", "student.csv"):
            shutil.copy(tiny_run / name, folder)
        for name in ("set", "teacher"):
            (folder / name).symlink_to(tiny_run / name)
        if recipe is not None:
            triplets = tiny_run / "set" / "triplets.jsonl"
            learn_run_heads(folder, triplets, recipe, where=machine("cpu"), progress=progress_bar())
        return folder

    return made


def golden_asks(bundle: Path) -> list[tuple[np.ndarray, str]]:
    cloud = np.load(bundle / "cloud" / "golden.npz")
    return list(zip(cloud["sentence"], [str(words) for words in cloud["words"]], strict=True))


def test_a_run_without_heads_gives_the_untuned_mode_alone(run_with, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    report = export_bundle(run_with(None), out, name="bare", exact_only=True)
    manifest = read_cloud(out)
    assert manifest.query_head is None and manifest.target_head is None
    assert manifest.targets == ["original"]
    assert {path.name for path in out.rglob("*.onnx")} == {"encoder.fp32.onnx", "text_tower.onnx", "image_tower.onnx"}
    assert {check["graph"] for check in report["parity"]} == {path.name for path in out.rglob("*.onnx")}
    assert report["heads"] is None
    composer = Composer.load(out)
    assert composer.modes == ["zero-shot"]
    sentence, words = golden_asks(out)[0]
    with pytest.raises(BadQuery, match="mode tuned is not in bundle"):
        composer.compose(sentence, words, "tuned")
    whole = Composer.load(tiny_bundle)
    asks = golden_asks(out)
    assert np.allclose(composer.compose_batch(asks, "zero-shot"), whole.compose_batch(asks, "zero-shot"), atol=1e-5)
    assert read_edge(out).token_space == read_edge(tiny_bundle).token_space
    assert manifest.gallery_space != read_cloud(tiny_bundle).gallery_space  # that one holds unions too


def test_heads_for_galleries_as_they_are_search_them_as_they_are(run_with, tmp_path: Path) -> None:
    recipe = HeadRecipe(composition="pdv:1.2", target="original")
    export_bundle(run_with(recipe), tmp_path / "bundle", name="pdv", exact_only=True)
    manifest = read_cloud(tmp_path / "bundle")
    assert manifest.query_head is not None and manifest.target_head is None and manifest.targets == ["original"]
    composer = Composer.load(tmp_path / "bundle")
    assert composer.modes == ["zero-shot", "tuned"]
    sentence, words = golden_asks(tmp_path / "bundle")[0]
    tuned, plain = (composer.compose(sentence, words, mode) for mode in ("tuned", "zero-shot"))
    assert tuned.vector_name == plain.vector_name == "original"
    assert not np.allclose(tuned.vector, plain.vector, atol=1e-3)
    features = composer.features([(sentence, words)])
    wanted = features.picture + 1.2 * (features.composed - features.picture)
    assert np.allclose(tuned.vector, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_the_tuned_mode_of_the_sample_searches_unions(tiny_bundle: Path) -> None:
    composer = Composer.load(tiny_bundle)
    assert composer.vector_of("tuned") == "union" and composer.vector_of("zero-shot") == "original"


@pytest.mark.parametrize("target", ["sum", "union"])
def test_every_learned_target_is_exported(run_with, tmp_path: Path, target: str) -> None:
    recipe = HeadRecipe(target=target, steps=4, batch=32)
    report = export_bundle(run_with(recipe), tmp_path / "bundle", name=target, exact_only=True)
    assert read_cloud(tmp_path / "bundle").targets == ["original", "union"]
    assert report["heads"]["target"] == target
    (check,) = [check for check in report["parity"] if check["graph"] == "target_head.onnx"]
    assert check["difference"] <= check["tolerance"]


def test_a_composition_that_reads_states_is_refused(run_with, tmp_path: Path) -> None:
    run = run_with(HeadRecipe(composition="transagg", steps=2, batch=16))
    with pytest.raises(ValueError, match="the service does not compose by transagg, which reads states of every token"):
        export_bundle(run, tmp_path / "bundle", name="transagg", exact_only=True)
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.glob(".bundle*"))


def test_a_teacher_beyond_one_file_is_refused(tiny_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pocketlens_export.bundle.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"its image tower has .* Choose a smaller teacher"):
        export_bundle(tiny_run, tmp_path / "bundle", name="big", exact_only=True)
    assert not (tmp_path / "bundle").exists()


def test_a_student_may_see_more_or_fewer_pixels_than_its_teacher(tiny_run: Path, tmp_path: Path) -> None:
    recipe = replace(TINY.student, side=64, tokens=3, steps=2, sketches="none", anchors=20)
    run = tmp_path / "run"
    distil(
        f"run:{tiny_run / 'teacher'}", replace(set_sources(tiny_run / "set"), told=None, questions=None), run, recipe,
        where=machine("cpu"), progress=progress_bar(), cache=tiny_run / "teacher",
    )  # fmt: skip
    report = export_bundle(run, tmp_path / "bundle", name="small", exact_only=True)
    edge, cloud = read_edge(tmp_path / "bundle"), read_cloud(tmp_path / "bundle")
    assert (edge.picture.side, cloud.picture.side, edge.token_count) == (64, TINY.teacher.side, 3)
    assert edge.picture.fit == cloud.picture.fit
    golden = np.load(tmp_path / "bundle" / "edge" / "golden.npz")
    assert golden["pixels"].shape[1:] == (64, 64, 3)
    sentences = Encoder.load(tmp_path / "bundle").encode_pixels(golden["pixels"])
    assert np.abs(sentences - golden["sentence"]).max() <= edge.graph().tolerance
    assert report["cost"]["student"]["multiply_adds"] < report["cost"]["teacher_image_tower"]["multiply_adds"]
    assert load_run(run).picture == edge.picture


def test_a_report_says_what_was_trained_and_not_where(tiny_bundle: Path, tiny_run: Path) -> None:
    text = (tiny_bundle / "report.json").read_text()
    report = json.loads(text)
    assert str(tiny_run) not in text
    assert report["run"]["recipe"]["student"] == "tiny-s"
    assert report["run"]["teacher_id"] == load_run(tiny_run).teacher.id
    assert set(report["lessons"]) == {"pairs", "edits", "student", "heads", "heads-control", "symmetric"}
    assert report["lessons"]["student"]["step"] == TINY.student.steps
