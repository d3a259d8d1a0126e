"""Further forms of an encoder: only what still finds the same goes in, and the service accepts what went in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.compose import Composer
from pocketlens_edge.doctor import examine, replay
from pocketlens_edge.encoder import Encoder
from pocketlens_export import forms, gate, quantize
from pocketlens_export.cli import app
from pocketlens_export.gate import Judge, composed, interval, needed, themselves
from pocketlens_export.quantize import Nearness, Recipe, Tried, smallest_first
from pocketlens_training.sets.lines import BadLines
from pocketlens_training.sets.sources import Files
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import FORMS, read_cloud, read_edge
from typer.testing import CliRunner

IDS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def images(tiny_run: Path) -> Path:
    return tiny_run / "set" / "pairs.jsonl"


@pytest.fixture(scope="module")
def grown(images: Path, tmp_path_factory) -> tuple[Path, dict]:
    """The sample bundle with all forms, by the command, and the report: the tiny one finds too little to be judged."""
    out = tmp_path_factory.mktemp("forms") / "bundle"
    ran = CliRunner().invoke(
        app, ["quantize", str(default_bundle()), "--images", str(images), "-o", str(out), "--count", "64", "--json"]
    )
    assert ran.exit_code == 0, ran.stderr
    return out, json.loads(ran.stdout)


def test_every_form_is_in_the_bundle_and_both_halves_name_it(grown) -> None:
    bundle, _ = grown
    edge, cloud = read_edge(bundle), read_cloud(bundle)
    assert set(edge.graphs) == set(FORMS)
    assert {edge.graphs[form].encoder for form in FORMS} <= set(cloud.encoders)
    assert len({edge.graphs[form].encoder for form in IDS}) == 3
    for form in ("fp32", "int8"):  # the same numbers in another file
        assert edge.graphs[f"{form}.ort"].encoder == edge.graphs[form].encoder
    assert edge.graphs["int8"].bytes < 0.5 * edge.graphs["fp32"].bytes
    assert edge.report is not None and json.loads((bundle / "edge" / edge.report.file).read_text())["format"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_on_the_device_and_replays_its_golden_vectors(grown, form: str) -> None:
    bundle, _ = grown
    encoder = Encoder.load(bundle, precision=form)
    assert encoder.form == form and replay(encoder, bundle / "edge").ok
    assert all(check.ok for check in examine(bundle, precision=form))


def test_int8_is_near_but_another(grown) -> None:
    bundle, _ = grown
    pixels = np.load(bundle / "edge" / "golden.npz")["pixels"]
    exact, int8, half = (
        Encoder.load(bundle, precision=form).encode_pixels(pixels) for form in ("fp32", "int8", "fp16")
    )
    assert 0.97 < quantize.cosines(int8, exact).min() < 0.99999
    assert quantize.cosines(half, exact).min() > 0.9999


def test_the_report_says_what_was_tried_and_found(grown) -> None:
    _, report = grown
    assert [form["form"] for form in report["forms"]] == list(FORMS)
    for form in report["forms"]:
        assert set(form["changes"]) == {"zero-shot", "tuned"} and set(form["p50_ms"]) == {"1", "4"}
    assert all(change["change"] == 0 for change in report["forms"][0]["changes"].values())
    assert len(report["tried"]) == 12 and sum(each["changes"] is not None for each in report["tried"]) >= 1
    assert report["gate"]["by"] == "pictures that shall find themselves"
    assert report["gate"]["questions"] >= needed()


def test_forms_made_anew_from_the_same_are_the_same_encoders(grown, images: Path, tmp_path: Path, monkeypatch) -> None:
    """An id follows from the original and the file, not from what lay there before."""
    monkeypatch.setattr(quantize, "RANGES", {"minmax": quantize.RANGES["minmax"]})
    code, said = quantized(grown[0], "--images", images, "-o", tmp_path / "one")
    assert code == 0, said
    code, said = quantized(tmp_path / "one", "--images", images, "-o", tmp_path / "two")
    assert code == 0, said
    one, two = (read_edge(tmp_path / name).graphs for name in ("one", "two"))
    assert {form: graph.encoder for form, graph in one.items()} == {form: graph.encoder for form, graph in two.items()}


def test_a_bundle_that_was_there_is_not_touched(grown) -> None:
    assert read_edge(default_bundle()).graphs["fp32"] == read_edge(grown[0]).graphs["fp32"]


# --- the gate


def test_no_certainty_from_few_questions() -> None:
    assert interval(lost=0, gained=0, asked=needed())[0] >= -gate.ALLOWED
    assert interval(lost=0, gained=0, asked=needed() - 1)[0] < -gate.ALLOWED
    low, high = interval(lost=30, gained=10, asked=1000)
    # Agresti and Min 2005 by hand: n* = 1002, b* = 30.5, c* = 10.5
    change = (10.5 - 30.5) / 1002
    half = 1.959964 * ((41 - 20**2 / 1002) ** 0.5) / 1002
    assert (low, high) == pytest.approx((100 * (change - half), 100 * (change + half)))


def test_the_interval_holds_what_it_promises() -> None:
    """Of many draws with a true loss of 1 point, about 95 % of the intervals hold it."""
    random = np.random.default_rng(1)
    asked, held = 800, 0
    for _ in range(2000):
        lost, gained, _ = random.multinomial(asked, [0.03, 0.02, 0.95])
        low, high = interval(lost=int(lost), gained=int(gained), asked=asked)
        held += low <= -1.0 <= high
    assert 0.93 < held / 2000 < 0.97


@pytest.fixture(scope="module")
def judge(tiny_bundle: Path, tiny_run: Path) -> Judge:
    asked = composed(tiny_run / "set" / "questions.jsonl")
    return Judge(tiny_bundle, read_edge(tiny_bundle).picture, asked, kind="composed questions")


def test_the_judge_finds_what_the_service_finds(judge: Judge, tiny_bundle: Path) -> None:
    tokens = judge.tokens(Encoder.load(tiny_bundle))
    composer = Composer.load(tiny_bundle)
    for mode in judge.modes:
        first = judge.firsts(tokens, mode)[0]
        vectors = judge._gallery[composer.vector_of(mode)]
        best = np.argsort(-(composer.compose(tokens[0], judge.words[0], mode).vector @ vectors.T))[:10]
        assert len(set(first.tolist()) & set(best.tolist())) >= 9  # a near tie may fall otherwise


def test_another_pictures_tokens_are_noticed(judge: Judge, tiny_bundle: Path) -> None:
    tokens = judge.tokens(Encoder.load(tiny_bundle))
    same = judge.compare(tokens, tokens)
    assert all(change.change == 0 and change.overlap == 1 for change in same.values())
    other = judge.compare(tokens, np.roll(tokens, 1, axis=0))
    assert all(change.overlap < 0.9 and change.low < -gate.ALLOWED for change in other.values())


def test_questions_of_which_none_can_be_asked_are_refused(tiny_bundle: Path, tmp_path: Path, tiny_run: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"reference": "no.png", "text": "in red", "targets": ["nor.png"]}\n')
    with pytest.raises(BadLines, match="no question whose picture and a target can be read"):
        Judge(tiny_bundle, read_edge(tiny_bundle).picture, composed(file), kind="composed questions")


# --- what is refused


def quantized(*options: object) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["quantize", *map(str, options), "--count", "32"])
    return ran.exit_code, ran.stderr


def test_if_no_form_passes_nothing_is_left_and_layers_are_blamed(
    tiny_bundle: Path, images: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(gate.Change, "passes", property(lambda _: False))
    monkeypatch.setattr(quantize, "RANGES", {"minmax": quantize.RANGES["minmax"]})
    code, said = quantized(tiny_bundle, "--images", images, "-o", tmp_path / "out")
    assert code == 1 and "no int8 form passes" in said
    blamed = [line for line in said.splitlines() if "node_" in line and line.startswith("  ")]
    losses = [float(line.split()[0]) for line in blamed]
    assert len(blamed) > 5 and losses == sorted(losses, reverse=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_pictures_to_quantise_with(tiny_bundle: Path, tmp_path: Path, tiny_run: Path, count: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = Files(tiny_run / "set", [f"photos-0000.tar/{n:03d}.png" for n in range(count)])
    for number in range(count):
        (folder / f"{number}.png").write_bytes(pictures.read(number))
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    code, said = quantized(tiny_bundle, "--images", folder, "-o", tmp_path / "out")
    assert code == 1 and f"{count} pictures to quantise with can be read" in said and "torn.jpg" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    code, said = quantized(tiny_bundle, "--images", images, "-o", tmp_path)
    assert code == 1 and "exists" in said


def test_a_graph_that_is_none_is_refused(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "edge" / "encoder.fp32.onnx").write_bytes(b"no graph")
    code, said = quantized(bundle, "--images", images, "-o", tmp_path / "out")
    assert code == 1 and "encoder.fp32.onnx" in said and len(said.splitlines()) == 1


# --- recipes


def tried(size: int, near: float) -> Tried:
    recipe = Recipe(channels=False, ranges="minmax", pictures=64)
    return Tried(recipe=recipe, path=Path(), bytes=size, near=Nearness(least=near, percentile_1=near, mean=near))


def test_the_smallest_goes_first_and_among_equals_the_nearest() -> None:
    small, near, large = tried(1000, 0.9), tried(1040, 0.99), tried(1200, 0.999)
    assert smallest_first([large, small, near]) == [near, small, large]


def test_sensitive_layers_are_spared_one_after_the_other() -> None:
    recipe = Recipe(channels=True, ranges="minmax", pictures=64)
    spared = [len(each.spared) for each in quantize.sparing(recipe, [f"layer {n}" for n in range(9)])]
    assert spared == [1, 2, 4, 8]
    assert replace(recipe, spared=("a",)) != recipe and "1 sensitive" in str(replace(recipe, spared=("a",)))


def test_each_picture_shall_find_itself() -> None:
    asked = themselves(Files(Path(), ["a.png", "b.png"]))
    assert list(asked.targets) == [["a.png"], ["b.png"]] and list(asked.words) == ["", ""]
    assert forms.REPORT == "parity.json"
