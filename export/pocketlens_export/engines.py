"""TensorRT engines of a bundle's encoder, built for the GPU of this machine and held to what the CPU gives.

From the same graphs that every other runtime reads: fp32, fp16, and the int8 without zero points, as they are in the
bundle. Types come from the graph, a strongly typed network, so one way serves TensorRT 10 and 11. An engine is the
encoder it was built from on other hardware and keeps its id; it is written only if its tokens are that encoder's.
Needs onnx, tensorrt and cuda-python, no torch. Called by cli.py; the device's side is the edge room's engines.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pocketlens_edge import engines
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.runtime import CUDA, TENSORRT, offered_providers
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import EdgeManifest, read_edge, resolve_half

FORM_OF = {"fp32": "fp32", "fp16": "fp16", "int8": "int8.symmetric"}
"""The encoder's form that a precision is built from."""
LEAST = 0.999
"""Cosine of each token with what the same form gives on the CPU: rounding passes, another model does not."""
MARGIN = 4.0  # on the difference measured here: the same engine gives the same numbers, another build may not
ROUNDS, WARM = 50, 5

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
OnDone = Callable[[str, int, int], None]


class NotTheSame(BadBundle):
    """An engine, or another runtime, gives other tokens than the CPU. Holds all rows of the comparison."""

    def __init__(self, said: str, rows: Sequence[Row]) -> None:
        super().__init__(said)
        self.rows = list(rows)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One form on one runtime. cosine: least one with the CPU's tokens of the same form, over the golden pictures;
    difference: largest of a number from the golden vectors, and the tolerance a device allows; ms: median of one
    picture and of `most` at once."""

    form: str
    by: str
    encoder: str
    cosine: float
    difference: float
    tolerance: float
    ms: float
    ms_most: float
    ok: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How engines are built. most: pictures at once; workspace: bytes; least: cosine demanded."""

    most: int = 8
    workspace: int = engines.WORKSPACE_BYTES
    least: float = LEAST


def build(bundle: Path, folder: Path, forms: Sequence[str], asked: Asked, *, on_done: OnDone) -> dict[str, Any]:
    """Build an engine of each form, compare it with the CPU and write it into `folder`; returns what was found.

    Raises BadBundle: no TensorRT, no GPU, a form that the bundle lacks, a graph TensorRT does not read (node by node),
    an engine whose tokens are others (NotTheSame; it is not written)."""
    half = resolve_half(bundle, "edge")
    manifest = read_edge(half)
    for form in forms:
        if form not in manifest.graphs:
            raise BadBundle(
                f"{manifest.name}: no {form} encoder; this bundle has {', '.join(manifest.graphs)}. {_add(form)}"
            )
    trt, gpu = engines.load_tensorrt(), engines.this_gpu()
    version = str(trt.__version__)
    pixels, sentence = _golden(half, manifest)
    rows: list[Row] = []
    built: list[engines.Record] = []
    for done, form in enumerate(forms):
        on_done("engines", done, len(forms))
        graph = manifest.graphs[form]
        data = _engine(trt, half / graph.file, folder / f"timing.{gpu.compute_capability}.trt-{version}", asked)
        encoder = Encoder(manifest, form, engines.Engine(half / graph.file, data, gpu))
        exact = Encoder.load(half, precision=form, threads=0)
        row = _row(encoder, exact, pixels, sentence, asked)
        rows.append(row)
        if not row.ok:
            raise NotTheSame(_other(row, asked), rows)
        record = engines.describe(
            data, form=form, graph=graph, gpu=gpu, tensorrt=version, most=asked.most,
            tolerance=max(graph.tolerance, MARGIN * row.difference), cosine=row.cosine,
        )  # fmt: skip
        engines.save(data, record, folder)
        built.append(record)
    on_done("engines", len(forms), len(forms))
    return {
        "bundle": manifest.name, "folder": str(folder), "gpu": str(gpu), "tensorrt": version,
        "engines": [asdict(record) for record in built], "rows": [asdict(row) for row in rows],
    }  # fmt: skip


def verify(bundle: Path, folder: Path, asked: Asked, *, on_done: OnDone) -> dict[str, Any]:
    """Build engines of all forms that TensorRT reads; then run each as a device does, beside the CPU and ONNX Runtime's
    GPU providers where it has them. Raises as `build`; NotTheSame holds every row."""
    half = resolve_half(bundle, "edge")
    manifest = read_edge(half)
    forms = [form for form in engines.FORMS if form in manifest.graphs]
    report = build(bundle, folder, forms, asked, on_done=on_done)
    pixels, sentence = _golden(half, manifest)
    offered, rows, skipped = offered_providers(), [], []
    for done, form in enumerate(forms):
        on_done("runtimes", done, len(forms))
        exact = Encoder.load(half, precision=form, threads=0)
        rows.append(_row(exact, exact, pixels, sentence, asked))
        for provider in (engines.ENGINE, TENSORRT, CUDA):
            if provider != engines.ENGINE and provider not in offered:
                skipped.append(f"{form} on {provider}: not in this ONNX Runtime")
                continue
            other = Encoder.load(half, precision=form, providers=[provider], engines=folder)
            rows.append(_row(other, exact, pixels, sentence, asked))
    on_done("runtimes", len(forms), len(forms))
    missing = [form for form in engines.FORMS if form not in forms]
    skipped += [f"{form}: not in this bundle. {_add(form)}" for form in missing]
    if wrong := [row for row in rows if not row.ok]:
        raise NotTheSame("; ".join(_other(row, asked) for row in wrong), rows)
    return report | {"rows": [asdict(row) for row in rows], "skipped": skipped}


def _add(form: str) -> str:
    if form == "int8.symmetric":
        return "Make it with `pocketlens-export quantize`; its gate may have found none that passes."
    return "Make it with `pocketlens-export quantize`."


def _other(row: Row, asked: Asked) -> str:
    return (
        f"{row.form} on {row.by} gives other tokens than on the CPU: least cosine {row.cosine:.5f}, at least "
        f"{asked.least} is demanded; largest difference from the golden vectors {row.difference:.1e}, allowed "
        f"{row.tolerance:.1e}"
    )


def _golden(half: Path, manifest: EdgeManifest) -> tuple[Pixels, Floats]:
    with np.load(half / manifest.golden.file, allow_pickle=False) as held:
        return held["pixels"], held["sentence"]


def _row(encoder: Encoder, exact: Encoder, pixels: Pixels, sentence: Floats, asked: Asked) -> Row:
    """What `encoder` gives beside `exact`, the same form on the CPU, which itself is held to the golden vectors."""
    came = encoder.encode_pixels(pixels)
    cosine = float(_cosines(came, exact.encode_pixels(pixels)).min())
    difference = float(np.abs(came - sentence).max())
    ok = difference <= encoder.tolerance if encoder is exact else cosine >= asked.least
    many = np.concatenate([pixels] * (1 + asked.most // len(pixels)))[: asked.most]
    return Row(
        form=encoder.form, by=encoder.provider, encoder=encoder.encoder_id, cosine=cosine, difference=difference,
        tolerance=encoder.tolerance, ms=_ms(encoder, pixels[:1]), ms_most=_ms(encoder, many), ok=ok,
    )  # fmt: skip


def _ms(encoder: Encoder, pixels: Pixels) -> float:
    """Median milliseconds, pictures to tokens, copies to and from the GPU included."""
    taken = []
    for turn in range(ROUNDS + WARM):
        began = perf_counter()
        encoder.encode_pixels(pixels)
        if turn >= WARM:
            taken.append(1e3 * (perf_counter() - began))
    return median(taken)


def _cosines(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Of each token with the same one of the other side, (n, k); another length counts against it."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.maximum((a * a).sum(-1), (b * b).sum(-1)), 1e-12)


# --- TensorRT


def _engine(trt: Any, path: Path, timing: Path, asked: Asked) -> bytes:
    """The engine of the graph at `path`. timing: where its builder keeps the times of this GPU's kernels, so that the
    next engine is built sooner. Raises BadBundle."""
    log = engines.logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what pybind11 makes of a null pointer
        raise BadBundle(f"TensorRT cannot start here: {log.said[0] if log.said else error}.") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(readable(onnx.load(path)).SerializeToString()):
        raise BadBundle(f"{path}: TensorRT {trt.__version__} does not read it: {'; '.join(_refused(parser))}.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # else float32 would be rounded to 10 bits
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        given = network.get_input(index)
        one, most = ((rows, *tuple(given.shape)[1:]) for rows in (1, asked.most))
        profile.set_shape(given.name, one, one, most)
    config.add_optimization_profile(profile)
    times = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    if times is None or not config.set_timing_cache(times, False):  # noqa: FBT003  of another GPU, or torn
        config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BadBundle(
            f"{path}: TensorRT {trt.__version__} built no engine: {'; '.join(log.said[:3]) or 'no reason'}."
        )
    timing.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    timing.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _refused(parser: Any) -> Iterator[str]:
    """Each node that TensorRT's parser does not take, with its reason."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} `{error.node_name()}`" if error.node_operator() else "the graph"
        yield f"{where} ({' '.join(error.desc().split())[:200]})"


MOVES = ("Flatten", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph as TensorRT takes it, changed in place: bytes become numbers before anything moves them, because
    uint8 is known to it only at the network's door; and no operator sets are named that no node is of."""
    graph = model.graph
    for name in [given.name for given in graph.input if given.type.tensor_type.elem_type == TensorProto.UINT8]:
        _cast_at_the_door(graph, name)
    used = {node.domain for node in graph.node}
    for named in [each for each in model.opset_import if each.domain and each.domain not in used]:
        model.opset_import.remove(named)
    return model


def _cast_at_the_door(graph: onnx.GraphProto, name: str) -> None:
    """Turn the input `name` into numbers first, if all that is done with its bytes is to move and then cast them."""
    moved, casts = {name}, []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in moved:
            casts.append(node)
        elif moved & set(node.input):
            if node.op_type not in MOVES:
                return
            moved.update(node.output if node.op_type != "Shape" else ())
    kinds = {helper.get_node_attr_value(cast, "to") for cast in casts}
    left = {*moved, *(cast.output[0] for cast in casts)} & {made.name for made in graph.output}
    if moved == {name} or len(kinds) != 1 or left:
        return
    numbers, instead = f"{name}.numbers", {cast.output[0]: cast.input[0] for cast in casts}
    first = helper.make_node("Cast", [name], [numbers], name=f"{name}.cast", to=kinds.pop())
    kept = [node for node in graph.node if node not in casts]
    for node in kept:
        read = [instead.get(given, given) for given in node.input]
        node.input[:] = [numbers if given == name else given for given in read]
    del graph.node[:]
    graph.node.extend([first, *kept])
    known = [each for each in graph.value_info if each.name not in moved]
    del graph.value_info[:]
    graph.value_info.extend(known)
