"""The doctor on bundles whose hashes are right and whose content is not; and on every form of an encoder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from pocketlens_wire.manifest import describe_encoder, describe_file, read_edge, write


def with_forms(folder: Path, forms: dict[str, onnx.ModelProto]) -> None:
    """Further forms into the edge half in `folder`."""
    manifest = read_edge(folder)
    graphs = dict(manifest.graphs)
    for form, graph in forms.items():
        graph.producer_name = form  # no two forms are one file
        onnx.save(graph, folder / f"encoder.{form}.onnx")
        graphs[form] = describe_encoder(folder / f"encoder.{form}.onnx", encoder=f"enc-{form}", tolerance=1e-4)
    write(replace(manifest, graphs=graphs), folder)


def crooked(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with other colours: a form that computes something else."""
    (mean,) = [constant for constant in graph.graph.initializer if constant.name == "mean"]
    mean.CopyFrom(onnx.numpy_helper.from_array(np.array([0.4, 0.46, 0.48], np.float32), "mean"))
    return graph


def with_opset(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    graph.opset_import[0].version = opset
    return graph


def with_file_format(graph: onnx.ModelProto, version: int) -> onnx.ModelProto:
    graph.ir_version = version
    return graph


def without_a_node(graph: onnx.ModelProto) -> onnx.ModelProto:
    del graph.graph.node[3]
    return graph


def with_operator(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    graph.graph.node[3].op_type = name
    return graph


def with_weights_at(graph: onnx.ModelProto, place: str) -> onnx.ModelProto:
    (weights,) = [constant for constant in graph.graph.initializer if constant.name == "weights"]
    onnx.external_data_helper.set_external_data(weights, place, 0, len(weights.raw_data))
    weights.ClearField("raw_data")
    return graph


# --- every form


def test_every_form_is_replayed(run, own_bundle, toy):
    with_forms(own_bundle / "edge", {"fp16": toy.graph(), "int8": crooked(toy.graph())})
    checks = run("doctor", "--bundle", own_bundle, "--json").json["checks"]
    golden = {name: check["ok"] for name, check in checks.items() if name.startswith("golden")}
    assert golden == {"golden": True, "golden fp16": True, "golden int8": False}
    assert checks["golden int8"]["max_angle_deg"] > 0.1
    told = run("doctor", "--bundle", own_bundle)
    assert told.code == 1
    assert "not well: golden int8" in told.out


def test_one_form_alone(run, own_bundle, toy):
    with_forms(own_bundle / "edge", {"int8": crooked(toy.graph())})
    assert run("doctor", "--bundle", own_bundle, "--precision", "fp32").code == 0
    ran = run("doctor", "--bundle", own_bundle, "--precision", "int8", "--json")
    assert ran.code == 1
    assert list(ran.json["checks"]) == ["machine", "bundle", "encoder", "golden", "latency", "memory"]
    assert ran.json["checks"]["encoder"]["encoder"] == "enc-int8"


def test_a_form_that_is_not_there(run, own_bundle, server):
    ran = run("doctor", "--bundle", own_bundle, "--precision", "fp16", "--json", "--server", server)
    assert ran.code == 1
    assert "no fp16 encoder" in ran.json["checks"]["encoder"]["said"]
    assert list(ran.json["checks"]) == ["machine", "bundle", "encoder"]


def test_a_form_that_cannot_be_opened_leaves_the_rest_examined(run, own_bundle, toy, server):
    with_forms(own_bundle / "edge", {"int8": with_opset(toy.graph(), 99)})
    ran = run("doctor", "--bundle", own_bundle, "--json", "--server", server)
    assert ran.code == 1
    assert [name for name, check in ran.json["checks"].items() if not check["ok"]] == ["golden int8"]
    assert {"latency", "server", "tls"} <= set(ran.json["checks"])


def test_five_forms_and_a_server_still_fit_on_one_screen(run, own_bundle, toy, server, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with_forms(own_bundle / "edge", {form: toy.graph() for form in ("fp32.ort", "fp16", "int8", "int8.ort")})
    ran = run("doctor", "--bundle", own_bundle, "--server", server)
    assert ran.out.count("pictures off by") == 5
    assert len(ran.out.splitlines()) <= 24


# --- graphs

BROKEN = {
    "empty": (lambda graph: b"", "the file is broken"),
    "text": (lambda graph: b"hello, this is text", "the file is broken"),
    "cut": (lambda graph: graph.SerializeToString()[:20_000], "the file is broken"),
    "zeros": (lambda graph: bytes(5000), "the file is broken"),
    "a node gone": (without_a_node, "the graph is broken: Node input 'normal'"),
    "a newer opset": (lambda graph: with_opset(graph, 99), "needs ONNX opset 99, which is newer. Upgrade"),
    "a newer file format": (lambda graph: with_file_format(graph, 99), "ONNX file format 99 is newer. Upgrade"),
    "an unknown operator": (lambda graph: with_operator(graph, "Frob"), "needs the operator Frob"),
    "data missing": (lambda graph: with_weights_at(graph, "w.bin"), "w.bin, which is missing. Get"),
    "data elsewhere": (
        lambda graph: with_weights_at(graph, "../../../etc/passwd"),
        "outside the bundle, in ../../../etc/passwd. Get",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_graph_is_named_in_a_sentence(run, own_bundle, toy, photo, kind):
    make, said = BROKEN[kind]
    manifest = read_edge(own_bundle / "edge")
    path = own_bundle / "edge" / "encoder.fp32.onnx"
    made = make(toy.graph())
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    graphs = {"fp32": describe_encoder(path, encoder="enc-0", tolerance=1e-4)}
    write(replace(manifest, graphs=graphs), path.parent)

    ran = run("doctor", "--bundle", own_bundle, "--json")
    assert ran.code == 1
    check = ran.json["checks"]["encoder"]
    assert check["kind"] == "BadBundle"
    assert check["said"].startswith(str(path))
    assert said in check["said"]
    assert "/onnxruntime_src" not in check["said"]
    asked = run("encode", photo, "--bundle", own_bundle)
    assert asked.code == 1
    assert said in asked.err


# --- golden vectors


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


BAD_GOLDEN = {
    "empty": lambda pixels, sentence: b"",
    "text": lambda pixels, sentence: b"hello, this is text",
    "cut": lambda pixels, sentence: npz(pixels=pixels, sentence=sentence)[:-2000],
    "flipped": lambda pixels, sentence: flipped(npz(pixels=pixels, sentence=sentence)),
    "one array": lambda pixels, sentence: npy(pixels),
    "a key missing": lambda pixels, sentence: npz(pixels=pixels),
    "no pictures": lambda pixels, sentence: npz(pixels=pixels[:0], sentence=sentence[:0]),
    "other sizes": lambda pixels, sentence: npz(pixels=pixels[:, :16], sentence=sentence),
    "single numbers": lambda pixels, sentence: npz(pixels=np.float32(1), sentence=np.float32(2)),
    "words": lambda pixels, sentence: npz(pixels=pixels, sentence=sentence.astype(str)),
    "pixels beyond 255": lambda pixels, sentence: npz(pixels=pixels.astype(np.int32) + 256, sentence=sentence),
}


@pytest.mark.parametrize("kind", BAD_GOLDEN)
def test_a_broken_golden_file_is_named(run, own_bundle, toy, kind):
    folder = own_bundle / "edge"
    manifest, pixels = read_edge(folder), toy.golden_pixels()
    (folder / "golden.npz").write_bytes(BAD_GOLDEN[kind](pixels, toy.reference(pixels)))
    write(replace(manifest, golden=describe_file(folder / "golden.npz")), folder)
    ran = run("doctor", "--bundle", own_bundle, "--json")
    assert ran.code == 1
    bad = {name: check for name, check in ran.json["checks"].items() if not check["ok"]}
    assert list(bad) == ["golden"]
    assert bad["golden"]["said"].startswith(str(folder / "golden.npz"))
    assert "Get the bundle again." in bad["golden"]["said"]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none_are_told_to_programs_too(run, tmp_path, toy, number):
    sentence = toy.reference(toy.golden_pixels())
    sentence[0, 0, 0] = number
    toy.write_edge(tmp_path / "edge", graph=toy.graph(), sentence=sentence)
    golden = run("doctor", "--bundle", tmp_path, "--json").json["checks"]["golden"]
    assert golden["ok"] is False
    assert golden["max_difference"] is None


def test_a_golden_token_of_zeros_has_no_angle(run, tmp_path, toy):
    sentence = toy.reference(toy.golden_pixels())
    sentence[0, 0] = 0
    toy.write_edge(tmp_path / "edge", graph=toy.graph(), sentence=sentence)
    golden = run("doctor", "--bundle", tmp_path, "--json").json["checks"]["golden"]
    assert golden["ok"] is False
    assert golden["max_angle_deg"] is None
