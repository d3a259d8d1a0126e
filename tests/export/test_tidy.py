"""A graph made tidier gives the same numbers, and a graph of another kind is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pocketlens_edge.runtime import Graph
from pocketlens_export.tidy import NORMALISE, tidy

SIDE = 8


def written(
    path: Path, *, keepdims: int = 1, axes: tuple[int, ...] = (2, 3), mean: tuple[int, ...] = (3, 1, 1)
) -> Path:
    """Pixels, normalised by three constants, convolved, and their mean over places."""
    random = np.random.default_rng(3)
    constants = {
        "grey": np.float32(255), "mean": random.random(mean, np.float32), "std": random.random(mean, np.float32) + 0.5,
        "weights": random.standard_normal((4, 3, 3, 3)).astype(np.float32), "axes": np.array(axes, np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "grey"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Conv", ["normal", "weights"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["seen", "axes"], ["sentence"], keepdims=keepdims),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("sentence", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run(path: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    return Graph(path).run(["sentence"], {"pixels": pixels})[0]


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_normalisation_is_one_node_and_means_are_pooled(tmp_path: Path) -> None:
    path = written(tmp_path / "g.onnx")
    before = run(path)
    tidy(path)
    assert np.abs(run(path) - before).max() < 1e-5
    assert kinds(path) == ["Transpose", "Cast", "BatchNormalization", "Conv", "GlobalAveragePool"]
    assert onnx.load(path).graph.node[2].name == NORMALISE
    assert {each.name for each in onnx.load(path).graph.initializer} >= {"weights"}
    assert not {"mean", "std", "grey"} & {each.name for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("changed", [{"keepdims": 0}, {"axes": (1, 2)}, {"axes": (2,)}])
def test_other_means_stay(tmp_path: Path, changed: dict) -> None:
    path = written(tmp_path / "g.onnx", **changed)
    before = run(path)
    tidy(path)
    assert np.abs(run(path) - before).max() < 1e-5 and "ReduceMean" in kinds(path)


def test_what_differs_from_place_to_place_is_no_normalisation(tmp_path: Path) -> None:
    path = written(tmp_path / "g.onnx", mean=(3, SIDE, SIDE))
    before = run(path)
    tidy(path)
    assert np.abs(run(path) - before).max() < 1e-5
    assert kinds(path).count("BatchNormalization") == 1  # of the grey levels alone
    assert "Sub" in kinds(path)


def test_an_input_that_nothing_reads_stays_an_input(tmp_path: Path) -> None:
    path = written(tmp_path / "g.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, path)
    tidy(path)
    assert [each.name for each in onnx.load(path).graph.input] == ["pixels", "unread"]
