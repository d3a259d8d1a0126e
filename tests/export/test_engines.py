"""Engines are built of graphs that TensorRT reads, and written only if they are the same encoder. TensorRT and CUDA are
stand-ins (tests/nvidia), which read graphs by the parser's published list of operators."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from pocketlens_edge import doctor
from pocketlens_edge.doctor import examine
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.engines import read_record
from pocketlens_export import engines
from pocketlens_export.cli import app
from pocketlens_export.engines import readable
from pocketlens_wire import manifest as manifests
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import read_edge
from typer.testing import CliRunner

VERSIONS = ["10.3.0", "11.4.0.106"]
READ = ["fp32", "fp16", "int8.symmetric"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample bundle's device half with the forms that TensorRT reads, and the int8 that it does not."""
    from pocketlens_export.forms import describe_form, half_precision
    from pocketlens_export.quantize import Bench, Recipe

    half = tmp_path_factory.mktemp("several") / "edge"
    shutil.copytree(default_bundle() / "edge", half)
    manifest = read_edge(half)
    original = manifest.graphs["fp32"]
    pixels = np.load(half / manifest.golden.file)["pixels"]
    bench = Bench(half / original.file, pixels, pixels, tmp_path_factory.mktemp("bench"))
    half_precision(half / original.file, half / "encoder.fp16.onnx")
    for form, symmetric in (("int8", False), ("int8.symmetric", True)):
        recipe = Recipe(channels=True, ranges="minmax", pictures=len(pixels), symmetric=symmetric)
        shutil.copyfile(bench.try_out(recipe, form).path, half / f"encoder.{form}.onnx")
    made = {
        form: describe_form(half / f"encoder.{form}.onnx", original, form, half, manifest)
        for form in ("fp16", "int8", "int8.symmetric")
    }
    manifests.write(replace(manifest, graphs={"fp32": original, **made}), half)
    return half


@pytest.fixture
def bare(several: Path, tmp_path: Path) -> Path:
    """The same half with its fp32 form alone."""
    half = shutil.copytree(several, tmp_path / "bare")
    manifest = read_edge(half)
    manifests.write(replace(manifest, graphs={"fp32": manifest.graphs["fp32"]}), half)
    return half


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not looked at here."""
    monkeypatch.setattr(engines, "ROUNDS", 1)
    monkeypatch.setattr(doctor, "_ROUNDS", 1)


@pytest.fixture(params=VERSIONS)
def world(request: pytest.FixtureRequest, nvidia: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    return nvidia.install(monkeypatch, nvidia.World(version=request.param))


@pytest.fixture
def tensorrt(tmp_path: Path) -> Callable[..., Any]:
    def ran(*options: object) -> Any:
        return CliRunner().invoke(app, ["tensorrt", *map(str, options), "-o", str(tmp_path / "engines")])

    return ran


# --- graphs


@pytest.mark.parametrize("form", READ)
def test_every_operator_of_every_form_is_in_the_published_list(nvidia, several: Path, form: str) -> None:
    model = readable(onnx.load(several / f"encoder.{form}.onnx"))
    assert nvidia.refusals(model) == []
    assert [each.domain for each in model.opset_import] == [""]


def test_the_list_would_refuse_what_is_not_made_readable(nvidia, several: Path) -> None:
    """The check has teeth: uint8 moved before it is a number, zero points, int32 biases."""
    (move,) = nvidia.refusals(onnx.load(several / "encoder.fp32.onnx"))
    assert move[0] == "Transpose" and "does not take UINT8" in move[2]
    why = {why for _, _, why in nvidia.refusals(readable(onnx.load(several / "encoder.int8.onnx")))}
    assert any("zero point must be 0" in each for each in why) and any("INT32" in each for each in why)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilevitv2_100"])  # those with the oddest operators
def test_operators_of_students_on_timms_backbones_too(nvidia, tmp_path: Path, name: str) -> None:
    pytest.importorskip("timm")
    import torch
    from pocketlens_export.forms import half_precision
    from pocketlens_export.graphs import write_pixels_graph
    from pocketlens_export.quantize import Bench, Recipe
    from pocketlens_training.students.backbones import make_backbone
    from pocketlens_training.students.student import Student
    from pocketlens_training.students.token_learner import TokenLearner

    torch.manual_seed(0)
    encoder = make_backbone(name, side=64, pretrained=False)
    learner = TokenLearner(encoder.channels, 4, 64, width=256, heads=8)
    write_pixels_graph(Student(encoder, learner), tmp_path / "fp32.onnx", side=64, outputs=["sentence"])
    half_precision(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    recipe = Recipe(channels=True, ranges="minmax", pictures=8, symmetric=True)
    int8 = Bench(tmp_path / "fp32.onnx", pixels, pixels, tmp_path).try_out(recipe, "int8").path
    for graph in (tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", int8):
        assert nvidia.refusals(readable(onnx.load(graph))) == [], graph.name


@pytest.mark.parametrize("form", [*READ, "int8"])
def test_made_readable_a_graph_gives_the_same_numbers(several: Path, form: str) -> None:
    path = several / f"encoder.{form}.onnx"
    pixels = np.load(several / "golden.npz")["pixels"]
    model = readable(onnx.load(path))
    onnx.checker.check_model(model, full_check=True)
    doors = [node.op_type for node in model.graph.node if "pixels" in node.input]
    assert doors == (["Transpose"] if form == "int8" else ["Cast"])  # levels that int8 reads as they are stay bytes
    plainly = onnxruntime.SessionOptions()
    plainly.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    before, after = (
        onnxruntime.InferenceSession(each, plainly, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[0]
        for each in (str(path), model.SerializeToString())
    )
    np.testing.assert_array_equal(after, before)


def graph_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3])
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(helper.make_graph(list(nodes), "g", [pixels], [made]), opset_imports=opset, ir_version=10)


def test_bytes_that_are_moved_and_measured_become_numbers_first(nvidia) -> None:
    model = graph_of(
        helper.make_node("Transpose", ["pixels"], ["moved"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["moved"], ["shape"]),
        helper.make_node("Cast", ["moved"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["pixels"], ["other"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["other", "shape"], ["again"]),
        helper.make_node("Add", ["one", "again"], ["made"]),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"pixels": pixels})[0]
    assert len(nvidia.refusals(model)) == 2
    assert nvidia.refusals(readable(model)) == [] and [n.op_type for n in model.graph.node].count("Cast") == 1
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"pixels": pixels})[0]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "nodes",
    [
        [("Cast", ["pixels"], ["a"], {"to": 1}), ("Transpose", ["a"], ["made"], {})],  # is so already
        [("Add", ["pixels", "pixels"], ["a"], {}), ("Cast", ["a"], ["made"], {"to": 1})],  # bytes are computed with
        [("Transpose", ["pixels"], ["a"], {}), ("Cast", ["a"], ["made"], {"to": 1})],  # the cast is what is asked for
        [
            ("Transpose", ["pixels"], ["a"], {}), ("Cast", ["a"], ["b"], {"to": 1}), ("Cast", ["a"], ["c"], {"to": 6}),
            ("Cast", ["c"], ["d"], {"to": 1}), ("Add", ["b", "d"], ["made"], {}),
        ],  # numbers of two kinds
    ],
)  # fmt: skip
def test_what_cannot_be_made_readable_safely_stays(nodes) -> None:
    model = graph_of(*(helper.make_node(kind, into, out, **more) for kind, into, out, more in nodes))
    before = model.SerializeToString()
    assert readable(model).SerializeToString() == before


# --- building


def test_all_engines_of_a_bundle_are_built_and_the_device_takes_them(world, several: Path, tensorrt, tmp_path) -> None:
    ran = tensorrt(several, "--json", "--most", 3)
    assert ran.exit_code == 0, ran.stderr
    report, graphs = json.loads(ran.stdout), read_edge(several).graphs
    assert report["tensorrt"] == world.version and report["gpu"] == "Orin (8.7)"
    assert [record["form"] for record in report["engines"]] == READ
    for record in report["engines"]:
        assert record == json.loads((tmp_path / "engines" / f"{record['file']}.json").read_text())
        assert record["graph"] == graphs[record["form"]].sha256
        assert record["encoder"] == graphs[record["form"]].encoder
        assert record["tolerance"] >= graphs[record["form"]].tolerance and record["cosine"] > 0.9999
        engine = Encoder.load(several, precision=record["form"], providers=["engine"], engines=tmp_path / "engines")
        assert engine.encoder_id == record["encoder"] and engine.tolerance == record["tolerance"]
        checks = examine(several, precision=record["form"], providers=["engine"], engines=tmp_path / "engines")
        assert all(check.ok for check in checks)
    everything = {check.name: check for check in examine(several, providers=["engine"], engines=tmp_path / "engines")}
    assert "golden int8" in everything and all(check.ok for check in everything.values())  # of that there is no engine
    pixels = np.load(several / "golden.npz")["pixels"]
    assert len(pixels) > 3  # more than an engine takes at once
    np.testing.assert_allclose(
        engine.encode_pixels(pixels), Encoder.load(several, precision="int8.symmetric").encode_pixels(pixels), atol=1e-3
    )


def test_networks_are_strongly_typed_and_float32_is_not_rounded(world, several: Path, tensorrt) -> None:
    assert tensorrt(several, "--precision", "fp16", "--most", 5, "--workspace-mb", 64).exit_code == 0
    (built,) = world.built
    assert built.strongly_typed and built.cleared == ["TF32"] and built.pools == {"WORKSPACE": 64 << 20}
    assert built.profile == {"pixels": [[1, 96, 96, 3], [1, 96, 96, 3], [5, 96, 96, 3]]}


@pytest.mark.parametrize("world", VERSIONS[:1], indirect=True)
def test_what_the_builder_learned_is_kept_for_this_gpu_and_version(world, several: Path, tensorrt, tmp_path) -> None:
    assert tensorrt(several, "--precision", "fp32").exit_code == 0
    (timing,) = (tmp_path / "engines").glob("timing.*")
    assert tensorrt(several, "--precision", "fp32").exit_code == 0
    timing.write_bytes(b"torn")
    assert tensorrt(several, "--precision", "fp32").exit_code == 0
    stamp = {**world.stamp, "gpu": "another"}
    timing.write_bytes(json.dumps(stamp).encode())
    assert tensorrt(several, "--precision", "fp32").exit_code == 0
    first, second, torn, other = (built.began_with for built in world.built)
    assert (first, torn, other) == (b"", b"", b"") and json.loads(second) == world.stamp


def test_verify_runs_every_form_on_every_runtime_there_is(world, several: Path, tensorrt) -> None:
    ran = tensorrt(several, "--verify", "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    runs = [(row["form"], row["by"]) for row in report["rows"]]
    engine = f"TensorRT {world.version} on Orin (8.7)"
    assert runs == [(form, by) for form in READ for by in ("CPUExecutionProvider", engine)]
    assert all(row["ok"] and row["ms"] > 0 and row["ms_most"] > 0 for row in report["rows"])
    assert report["skipped"] == [
        f"{form} on {provider}ExecutionProvider: not in this ONNX Runtime"
        for form in READ for provider in ("Tensorrt", "CUDA")
    ]  # fmt: skip
    ran = tensorrt(several, "--verify")
    assert ran.exit_code == 0 and "same" in ran.stdout and "not compared: fp32 on CUDA" in ran.stdout


@pytest.mark.parametrize("world", VERSIONS[:1], indirect=True)
def test_verify_of_a_bundle_with_fewer_forms_says_what_is_missing(world, bare: Path, tensorrt) -> None:
    ran = tensorrt(bare, "--verify")
    assert ran.exit_code == 0
    assert "int8.symmetric: not in this bundle. Make it with `pocketlens-export quantize`" in " ".join(
        ran.stdout.split()
    )


# --- refusals


@pytest.mark.parametrize("factor", [1.01, 0.0, float("nan")])
@pytest.mark.parametrize("option", ["--json", "--verify"])
def test_an_engine_with_other_tokens_is_not_written(world, several: Path, tensorrt, tmp_path, factor, option) -> None:
    world.factor = factor
    ran = tensorrt(several, option)
    assert ran.exit_code == 1
    assert "fp32" in ran.stderr and ("other tokens than on the CPU" in ran.stderr or "not finite" in ran.stderr)
    assert not list((tmp_path / "engines").glob("*.engine*"))


@pytest.mark.parametrize("world", VERSIONS[:1], indirect=True)
def test_how_near_is_near_enough_can_be_said(world, several: Path, tensorrt) -> None:
    world.factor = 1.01
    assert tensorrt(several, "--precision", "fp16", "--least", 0.98).exit_code == 0
    ran = tensorrt(several, "--precision", "fp16", "--least", 0.995)
    assert ran.exit_code == 1 and "least cosine 0.99" in ran.stderr and "OTHER" in ran.stdout


def test_nodes_that_tensorrt_does_not_read_are_listed(world, several: Path, tensorrt, tmp_path) -> None:
    half = tmp_path / "edge"
    shutil.copytree(several, half)
    manifest, path = read_edge(half), half / "encoder.fp32.onnx"
    model = onnx.load(path)
    relus = [node for node in model.graph.node if node.op_type == "Relu"][:2]
    for node in relus:
        node.op_type, node.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    described = manifests.describe_encoder(path, encoder="enc-x", tolerance=1.0)
    manifests.write(replace(manifest, graphs={"fp32": described}), half)
    ran = tensorrt(half, "--precision", "fp32")
    assert ran.exit_code == 1 and len(ran.stderr.splitlines()) == 1
    for node in relus:
        assert f"QuickGelu `{node.name}` (no importer registered" in ran.stderr
    assert f"TensorRT {world.version} does not read it" in ran.stderr


def test_an_engine_that_cannot_be_built_has_tensorrts_reason(world, several: Path, tensorrt) -> None:
    world.builds = False
    ran = tensorrt(several)
    assert ran.exit_code == 1 and "built no engine: Could not find any implementation for node Conv_0" in ran.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"driver": False}, "No GPU can be used here: CUDA says"),
        ({"gpus": 0}, "CUDA counts none"),
        ({"starts": False}, "TensorRT cannot start here: CUDA initialization failure"),
        ({"version": "8.6.1"}, "needs version 10 or 11"),
    ],
)
def test_what_is_missing_is_said(nvidia, monkeypatch, several: Path, tensorrt, tmp_path, change, said) -> None:
    nvidia.install(monkeypatch, nvidia.World(**change))
    ran = tensorrt(several)
    assert ran.exit_code == 1 and said in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "engines").exists()


def test_without_tensorrt_it_says_how_to_install_it(monkeypatch, several: Path, tensorrt) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    ran = tensorrt(several, "--verify")
    assert ran.exit_code == 1 and "python3-libnvinfer" in ran.stderr and "pypi.nvidia.com tensorrt" in ran.stderr


@pytest.mark.parametrize("world", VERSIONS[:1], indirect=True)
def test_a_form_that_the_bundle_lacks_is_named_with_what_makes_it(world, bare: Path, tensorrt) -> None:
    ran = tensorrt(bare, "--precision", "int8")
    assert ran.exit_code == 1
    assert (
        "no int8.symmetric encoder; this bundle has fp32" in ran.stderr and "pocketlens-export quantize" in ran.stderr
    )


@pytest.mark.parametrize("options", [["--precision", "int4"], ["--most", "0"], ["--verify", "--precision", "fp16"]])
def test_wrong_usage_is_wrong_usage(several: Path, tensorrt, options) -> None:
    assert tensorrt(several, *options).exit_code == 2


def test_an_altered_bundle_is_refused(world, several: Path, tensorrt, tmp_path) -> None:
    half = tmp_path / "edge"
    shutil.copytree(several, half)
    graph = half / "encoder.fp16.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    ran = tensorrt(half)
    assert ran.exit_code == 1 and "encoder.fp16.onnx: altered since export" in ran.stderr


def test_a_device_builds_engines_without_torch(tmp_path) -> None:
    """On a Jetson the export room's other libraries are not there."""
    program = (
        "import sys\n"
        "for name in ('torch', 'onnxscript', 'onnxslim', 'tokenizers', 'qdrant_edge', 'timm', 'tensorrt'):\n"
        "    sys.modules[name] = None\n"
        "from pocketlens_export.cli import app\n"
        f"app(['tensorrt', {str(default_bundle())!r}, '-o', {str(tmp_path / 'e')!r}])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 1 and "TensorRT is not installed here" in ran.stderr, ran.stderr


def test_a_record_says_how_near_its_engine_is(nvidia, monkeypatch, several: Path, tensorrt, tmp_path) -> None:
    world = nvidia.install(monkeypatch, nvidia.World(factor=1.0005))
    assert tensorrt(several, "--precision", "fp32").exit_code == 0
    (path,) = (tmp_path / "engines").glob("*.json")
    record = read_record(path)
    largest = np.abs(np.load(several / "golden.npz")["sentence"]).max()
    assert record.cosine == pytest.approx(1 / 1.0005, abs=1e-4)
    assert record.tolerance == pytest.approx(4 * 0.0005 * largest, rel=0.05)
    assert world.built
