"""A written graph made as runtimes like it: fewer nodes, the same numbers.

Two changes are ours, because what they change costs a quantised encoder up to a third of its time in ONNX Runtime: a
mean over all places written as ReduceMean is read out of order once layers are int8, and a chain of Sub and Div on the
pixels is pulled behind a change of layout. For int8 alone there is a third, `read_levels`. Called by graphs.py and
quantize.py; whether the numbers are the same parity.py sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxslim
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

PLACES = ([2, 3], [-2, -1], [-1, -2], [3, 2])
NORMALISE = "normalise"  # the node that turns grey levels into what the network was trained on
CENTRE = 128  # of the grey levels


def tidy(path: Path) -> None:
    """Rewrite the graph in `path`. Raises onnx.checker.ValidationError for what would be no graph."""
    written = onnx.load(path)
    model = onnxslim.slim(onnx.load(path))
    assert isinstance(model, onnx.ModelProto)
    del model.graph.input[:]
    model.graph.input.extend(written.graph.input)  # also those that nothing reads: who runs it gives them all
    pool_means(model.graph)
    join_normalisation(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def pool_means(graph: GraphProto) -> None:
    """A mean over rows and columns that keeps them as axes of 1 becomes GlobalAveragePool."""
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if kept and constants[node.input[1]].tolist() in PLACES:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def join_normalisation(graph: GraphProto) -> None:
    """Constant Sub, Div, Add and Mul on (batch, 3, side, side) pixels become one BatchNormalization."""
    constants, takers = _constants(graph), _takers(graph)
    cast = next((node for node in graph.node if node.op_type == "Cast"), None)
    if cast is None or len(takers.get(cast.output[0], [])) != 1:
        return
    scale, shift = np.ones(3), np.zeros(3)
    at, chain = cast.output[0], []
    while len(takers.get(at, [])) == 1:
        node = takers[at][0]
        value = _by_channel(node, at, constants)
        if value is None:
            break
        if node.op_type in ("Div", "Mul"):
            factor = 1 / value if node.op_type == "Div" else value
            scale, shift = scale * factor, shift * factor
        else:
            shift = shift - value if node.op_type == "Sub" else shift + value
        chain.append(node)
        at = node.output[0]
    if not chain:
        return
    place = list(graph.node).index(chain[0])
    for node in chain:
        graph.node.remove(node)
    made = {"scale": scale, "shift": shift, "mean": np.zeros(3), "variance": np.ones(3)}
    names = [f"{NORMALISE}.{name}" for name in made]
    for name, value in zip(names, made.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    graph.node.insert(
        place,
        helper.make_node("BatchNormalization", [cast.output[0], *names], [at], epsilon=0.0, name=NORMALISE),
    )
    _drop_unused(graph)


def read_levels(graph: GraphProto) -> None:
    """The first convolution takes the pixels' own grey levels: its weights normalise them, and nothing rounds them.

    What padding adds must still be 0 *after* normalising. So a fourth plane is there, of one value within the picture
    and 0 in the padding, whose weights shift. ONNX Runtime's int8 convolutions also want channels in fours: with three
    the first alone takes a fifth of an encoder's time. Left alone: what is not normalised pixels into one
    convolution."""
    constants, takers = _constants(graph), _takers(graph)
    norm = next((node for node in graph.node if node.name == NORMALISE), None)
    cast = next((node for node in graph.node if norm is not None and node.output[0] == norm.input[0]), None)
    side = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if norm is None or cast is None or not side:
        return
    taken = takers.get(norm.output[0], [])
    convolution = taken[0] if len(taken) == 1 and taken[0].op_type == "Conv" else None
    if convolution is None or convolution.input[0] != norm.output[0] or convolution.input[1] not in constants:
        return
    weights = constants[convolution.input[1]].astype(np.float64)  # (out, 3, rows, columns)
    scale, shift = (constants[name].astype(np.float64)[None, :, None, None] for name in norm.input[1:3])
    if weights.shape[1] != 3:
        return
    whole = (weights * (shift + CENTRE * scale)).sum(1, keepdims=True) / (255 - CENTRE)
    made = {
        "weights": np.concatenate([weights * scale, whole], axis=1).astype(np.float32),
        "flat": np.array([0, 3, side * side]), "map": np.array([0, 4, side, side]),
        "fourth": np.array([0, 0, 0, 0, 1, 0]), "full": np.uint8(255),
        "step": np.float32(1), "centre": np.uint8(CENTRE),
    }  # fmt: skip
    for name, value in made.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"levels.{name}"))
    chain = (  # flat, for a runtime that keeps channels last would pad between the values of every pixel
        ("Reshape", "levels.flat"), ("Pad", "levels.fourth", "levels.full"), ("Reshape", "levels.map"),
        ("DequantizeLinear", "levels.step", "levels.centre"),
    )  # fmt: skip
    at, place = cast.input[0], list(graph.node).index(cast)
    graph.node.remove(cast)
    graph.node.remove(norm)
    for step, (kind, *constant) in enumerate(chain):
        graph.node.insert(
            place + step, helper.make_node(kind, [at, *constant], [f"levels.{step}"], name=f"levels.{step}.{kind}")
        )
        at = f"levels.{step}"
    convolution.input[0], convolution.input[1] = at, "levels.weights"
    _drop_unused(graph)


def _by_channel(node: NodeProto, at: str, constants: dict[str, NDArray]) -> NDArray | None:
    """The constant that `node` applies to its input `at`, one number for each of three channels; None for others."""
    if node.op_type not in ("Sub", "Div", "Add", "Mul") or node.input[0] != at or node.input[1] not in constants:
        return None
    value = constants[node.input[1]]
    if value.size == 1:
        return np.full(3, float(value.reshape(())))
    if value.size == 3 and value.shape[-3:] == (3, 1, 1):
        return value.reshape(3).astype(np.float64)
    return None


def _constants(graph: GraphProto) -> dict[str, NDArray]:
    return {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def _takers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Of each tensor the nodes that take it."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for each in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(each)
