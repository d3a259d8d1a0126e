"""A graph made tidier gives the same numbers, and a graph of another kind is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pocketlens_edge.runtime import Graph
from pocketlens_export.tidy import NORMALISE, read_levels, tidy

SIDE = 8


def written(
    path: Path, *, keepdims: int = 1, axes: tuple[int, ...] = (2, 3), mean: tuple[int, ...] = (3, 1, 1),
    pooled: bool = True,
) -> Path:  # fmt: skip
    """Pixels, normalised by three constants, convolved, and their mean over places unless `pooled` is False."""
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
        helper.make_node("ReduceMean", ["seen", "axes"], ["sentence"], keepdims=keepdims)
        if pooled
        else helper.make_node("Identity", ["seen"], ["sentence"]),
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


# --- for int8: the first convolution reads grey levels


def levelled(path: Path, change=lambda graph: None) -> Path:
    tidy(path)
    model = onnx.load(path)
    change(model.graph)
    read_levels(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path.with_suffix(".levels.onnx"))
    return path.with_suffix(".levels.onnx")


def test_grey_levels_give_what_normalised_pixels_gave_at_the_rim_too(tmp_path: Path) -> None:
    path = written(tmp_path / "g.onnx", pooled=False)
    before = run(path)
    after = run(levelled(path))
    assert before.shape == (3, 4, SIDE, SIDE) and np.abs(after - before).max() < 1e-4
    assert kinds(levelled(path))[:6] == ["Transpose", "Reshape", "Pad", "Reshape", "DequantizeLinear", "Conv"]


def test_grey_levels_stand_for_themselves(tmp_path: Path) -> None:
    """One step is one level: nothing is rounded between the picture and the first weights."""
    graph = onnx.load(levelled(written(tmp_path / "g.onnx"))).graph
    named = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    read = next(node for node in graph.node if node.op_type == "DequantizeLinear")
    assert named[read.input[1]] == 1 and named[read.input[2]].dtype == np.uint8


def test_normalised_pixels_that_something_else_reads_too_are_left_alone(tmp_path: Path) -> None:
    def read_twice(graph: onnx.GraphProto) -> None:
        norm = next(node for node in graph.node if node.name == NORMALISE)
        graph.node.append(helper.make_node("Identity", [norm.output[0]], ["also"]))

    path = written(tmp_path / "g.onnx")
    assert "DequantizeLinear" not in kinds(levelled(path, read_twice))
    assert np.abs(run(levelled(path, read_twice)) - run(path)).max() == 0
