"""Customs lets through what equals its original, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pocketlens_export
import pytest
from onnx import numpy_helper
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.doctor import examine
from pocketlens_edge.encoder import Encoder
from pocketlens_export import parity
from pocketlens_export.bundle import export_bundle
from pocketlens_export.cli import app
from pocketlens_training.checkpoint import load_run
from pocketlens_training.teachers.tokenizing import read_tokenizer
from pocketlens_wire.manifest import describe_file, read_cloud, read_edge, write
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]


def test_both_halves_read_and_agree(tiny_bundle: Path) -> None:
    edge, cloud = read_edge(tiny_bundle), read_cloud(tiny_bundle)
    assert edge.token_space == cloud.token_space
    assert edge.graph().encoder in cloud.encoders
    assert edge.token_width == cloud.token_width
    assert read_tokenizer(tiny_bundle / "cloud" / "tokenizer.json").token_to_id("<pad>") == 0


def test_report_holds_every_graph_with_teeth(tiny_bundle: Path) -> None:
    report = json.loads((tiny_bundle / "report.json").read_text())
    graphs = {check["graph"] for check in report["parity"]}
    on_disk = {path.name for path in tiny_bundle.rglob("*.onnx")}
    assert graphs == on_disk
    for check in report["parity"]:
        assert check["difference"] <= check["tolerance"]
        assert check["mistakes"]
        assert min(check["mistakes"].values()) >= 10 * check["tolerance"]
    assert report["cost"]["student"]["multiply_adds"] > 0


def test_ids_follow_the_weights(tiny_bundle: Path, tiny_run: Path, tmp_path: Path) -> None:
    again = export_bundle(tiny_run, tmp_path / "again", name="another name", exact_only=True)
    first = json.loads((tiny_bundle / "report.json").read_text())
    assert {key: again[key] for key in ("token_space", "gallery_space", "encoder")} == {
        key: first[key] for key in ("token_space", "gallery_space", "encoder")
    }
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "student.safetensors")
    tensors["student.learner.gain"] = tensors["student.learner.gain"] * 1.01
    save_file(tensors, other / "student.safetensors")
    changed = export_bundle(other, tmp_path / "changed", name="tiny", exact_only=True)
    assert changed["encoder"] != first["encoder"]
    assert changed["token_space"] == first["token_space"]
    assert changed["gallery_space"] == first["gallery_space"]


def scale_an_initializer(path: Path) -> None:
    """Change the graph's largest weight tensor by half a percent: plausible, and wrong."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    altered = numpy_helper.to_array(largest) * np.float32(1.005)
    largest.CopyFrom(numpy_helper.from_array(altered.astype(np.float32), largest.name))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("half", "graph", "field"),
    [
        ("edge", "encoder.fp32.onnx", "graphs"),
        ("cloud", "text_tower.onnx", "text_tower"),
        ("cloud", "image_tower.onnx", "image_tower"),
        ("cloud", "query_head.onnx", "query_head"),
        ("cloud", "target_head.onnx", "target_head"),
    ],
)
def test_a_graph_slightly_off_is_refused(
    tiny_bundle: Path, tiny_run: Path, tmp_path: Path, half: str, graph: str, field: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    path = folder / half / graph
    scale_an_initializer(path)
    manifest = read_edge(tiny_bundle) if half == "edge" else read_cloud(tiny_bundle)
    file, was = describe_file(path), getattr(manifest, field)
    forms = isinstance(was, dict)
    value = {"fp32": replace(was["fp32"], **asdict(file))} if forms else file
    write(replace(manifest, **{field: value}), folder / half)  # its hashes are right; only its numbers are not
    trained = load_run(tiny_run)
    given = parity.material(16, 1, trained.picture, trained.teacher.picture)
    with pytest.raises(parity.NotEqual, match=graph):
        parity.check_bundle(folder, given, parity.originals(trained, given))


def test_a_check_without_teeth_is_refused() -> None:
    good = parity.Check("g.onnx", 4, 1e-6, 2e-5, {"BGR for RGB": 0.5})
    assert good.verdict() is None
    blind = replace(good, mistakes={"BGR for RGB": 1e-4})
    assert "no teeth" in str(blind.verdict())
    assert "differs from torch" in str(replace(good, difference=float("nan")).verdict())


def test_golden_vectors_come_from_torch_and_replay(tiny_bundle: Path) -> None:
    golden = np.load(tiny_bundle / "edge" / "golden.npz")
    encoder = Encoder.load(tiny_bundle)
    difference = np.abs(encoder.encode_pixels(golden["pixels"]) - golden["sentence"]).max()
    assert difference <= encoder.tolerance
    cloud = np.load(tiny_bundle / "cloud" / "golden.npz")
    composer = Composer.load(tiny_bundle)
    asks = list(zip(cloud["sentence"], [str(words) for words in cloud["words"]], strict=True))
    features = composer.features(asks)
    assert np.abs(features.composed - cloud["composed"]).max() <= composer.manifest.text_tower["fp32"].tolerance
    assert (
        np.abs(composer.query(features, "tuned") - cloud["query"]).max()
        <= composer.manifest.text_tower["fp32"].tolerance
    )


def test_a_graph_says_nothing_of_the_machine_that_made_it(tiny_bundle: Path) -> None:
    """The exporter writes a stack trace into every node."""
    here = str(Path(pocketlens_export.__file__).parents[1]).encode()
    for graphs in (tiny_bundle, ROOT / "samples", ROOT / "benchmarks"):
        found = sorted(graphs.rglob("*.onnx"))
        assert found
        for graph in found:
            held = graph.read_bytes()
            assert here not in held and b'File "' not in held, graph


def test_text_graph_takes_any_batch_length_and_k(tiny_bundle: Path) -> None:
    composer = Composer.load(tiny_bundle)
    width = composer.manifest.token_width
    rng = np.random.default_rng(0)
    asks = [
        (rng.standard_normal((k, width)).astype(np.float32) * 0.1, "red " * words)
        for k, words in ((1, 0), (8, 1), (4, 30), (2, 7))
    ]
    together = composer.compose_batch(asks, "zero-shot")
    for row, ask in zip(together, asks, strict=True):
        assert np.abs(composer.compose_batch([ask], "zero-shot")[0] - row).max() < 1e-5


def test_cli_refuses_in_one_line(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    taken = runner.invoke(app, ["bundle", str(tiny_run), "-o", str(tiny_bundle)])
    assert taken.exit_code == 1
    assert "exists; choose another name" in taken.stderr
    assert len(taken.stderr.splitlines()) == 1
    unfinished = runner.invoke(app, ["bundle", str(tmp_path), "-o", str(tmp_path / "out")])
    assert unfinished.exit_code == 1
    assert "begin one with `pocketlens-train distill` or `pocketlens-train sample`" in unfinished.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


# --- further forms, by the command itself


def test_a_bundle_brings_its_further_forms_or_says_why_not(tiny_run: Path, tmp_path: Path) -> None:
    """The tiny run knows too little for its int8 to pass for certain; half precision is there either way."""
    ran = CliRunner().invoke(app, ["bundle", str(tiny_run), "-o", str(tmp_path / "out"), "--json"])
    assert ran.exit_code == 0, ran.stderr
    forms = json.loads(ran.stdout)["forms"]
    edge, cloud = read_edge(tmp_path / "out"), read_cloud(tmp_path / "out")
    assert {"fp32", "fp32.ort", "fp16"} <= set(edge.graphs)
    assert ("int8" in edge.graphs) == (forms["no_int8"] is None)
    assert {graph.encoder for graph in edge.graphs.values()} <= set(cloud.encoders)
    assert edge.page is not None and edge.report is not None
    held = {each["tower"]: each for each in forms["towers"]}
    assert ("int8" in cloud.text_tower) == (held["text_tower"]["said"] is not None)
    assert ("int8" in cloud.image_tower) == (held["image_tower"]["said"] is not None)
    assert all(finding.ok for finding in examine(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["forms"]["format"] == 1


def test_a_run_whose_pictures_are_gone_gives_a_bundle_of_fp32(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("set"))
    ran = CliRunner().invoke(app, ["bundle", str(run), "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.stderr
    assert "No further forms" in ran.stdout and "pairs.jsonl" in ran.stdout and "quantize" in ran.stdout
    assert set(read_edge(tmp_path / "out").graphs) == {"fp32"}
