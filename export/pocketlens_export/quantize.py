"""Int8 forms of an encoder: recipes of static quantisation, tried from the smallest file up until one passes the gate.

Static, with QuantizeLinear and DequantizeLinear nodes (QDQ), so that any runtime can read it; weights int8, activations
uint8, which is what ONNX Runtime has fast kernels for. TensorRT reads another int8, signed, without zero points and
with float biases; there are recipes for that too. The quantiser is ONNX Runtime's; ours is which recipe, and the proof.
Nothing here needs a training, only a bundle and pictures. Called by forms.py and towers.py."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from pocketlens_edge.encoder import PIXELS, SENTENCE, Encoder
from pocketlens_edge.runtime import Graph
from pocketlens_wire import manifest as manifests
from pocketlens_wire.manifest import EdgeManifest

from pocketlens_export.gate import ALLOWED, Changes, Judge, needed, passes
from pocketlens_export.tidy import NORMALISE, join_normalisation, read_levels

RANGES: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.999}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512}),  # with the library's 128 nothing is ever cut
}
TYPES = sorted({*QLinearOpsRegistry, *QDQRegistry})
WEIGHTED = ["Conv", "Gemm", "MatMul"]
SYMMETRIC = {
    "ActivationSymmetric": True, "WeightSymmetric": True,  # TensorRT's parser refuses zero points other than 0,
    "QuantizeBias": False,  # and int32 biases
    # NVIDIA's advice on where Q and DQ stand: inputs of weighted layers, not what they give.
    "OpTypesToExcludeOutputQuantization": WEIGHTED,
}  # fmt: skip
FRONTS = (0, 2)  # convolutions at the input that stay float: of few channels, int8 gains nothing there
LEAVE_OUT = (1, 2, 4, 8, 16, 32)  # so many of the most sensitive layers stay float
QUANTILES = [n / 50 for n in range(51)]
FLOAT_OUT = ["MatMul", "Gemm"]  # what they give stays float: who wants int8 rounds it, and a sum does not
PLAIN = {"OpTypesToExcludeOutputQuantization": FLOAT_OUT}
BATCH = 16
STEP = 0.05  # files of less difference in size count as equally small; the one with the nearer tokens goes first

MARGIN = 4.0  # on the difference measured here: elsewhere other kernels round otherwise

Floats = NDArray[np.float32]
Squares = NDArray[np.uint8]
OnDone = Callable[[str, int, int], None]


class NoFormPasses(ValueError):
    """No int8 form of an encoder keeps what it finds. layers: to blame, the worst first, with 1 - mean cosine."""

    def __init__(self, said: str, layers: Sequence[tuple[str, float]]) -> None:
        super().__init__(said)
        self.layers = list(layers)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an encoder is quantised. ranges: how the range of an activation follows from `pictures` pictures; channels:
    each output channel of a weight has a scale of its own; front: convolutions at the input that stay float; spared:
    further layers that do; symmetric: as TensorRT reads it."""

    channels: bool
    ranges: str
    pictures: int
    front: int = 0
    spared: tuple[str, ...] = ()
    symmetric: bool = False

    def __str__(self) -> str:
        said = f"{'per channel' if self.channels else 'per tensor'}, {self.ranges}, {self.pictures} pictures"
        said += ", symmetric" if self.symmetric else ""
        said += f", first {self.front} convolutions float" if self.front else ""
        return said + (f", {len(self.spared)} sensitive layers float" if self.spared else "")


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Cosines of what a form gives with what the original gives. quantiles: at QUANTILES."""

    least: float
    percentile_1: float
    mean: float
    quantiles: list[float]

    @classmethod
    def of(cls, form: Floats, original: Floats) -> Nearness:
        found = cosines(form, original)
        return cls(
            least=float(found.min()), percentile_1=float(np.quantile(found, 0.01)), mean=float(found.mean()),
            quantiles=[float(each) for each in np.quantile(found, QUANTILES)],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A recipe, its file, and how near its tokens are."""

    recipe: Recipe
    path: Path
    bytes: int
    near: Nearness


class Bench:
    """One graph over pixels to be quantised, the pictures for it, and a folder for what is tried."""

    def __init__(
        self, original: Path, calibration: Squares, held_out: Squares, folder: Path, *, output: str = SENTENCE
    ) -> None:
        """original: its fp32 graph. calibration, held_out: pixels uint8 (n, side, side, 3); both should be what the
        device will see, sketches among them if it will see sketches. output: what nearness is measured of.
        folder: its own; ranges are kept there."""
        self.source, self.folder, self.calibration, self.held_out = original, folder, calibration, held_out
        self._output = output
        folder.mkdir(exist_ok=True)
        self._graph, self._levels = folder / "prepared.onnx", folder / "levels.onnx"
        with quiet():
            quant_pre_process(str(original), str(self._graph), skip_symbolic_shape=True)
        model = onnx.load(self._graph)
        join_normalisation(model.graph)  # a graph of an earlier version may not have been tidied
        onnx.save(model, self._graph)  # for TensorRT, which reads no unsigned levels
        read_levels(model.graph)
        onnx.save(model, self._levels)
        names = [node.name for node in model.graph.node]
        convolutions = [place for place, node in enumerate(model.graph.node) if node.op_type == "Conv"]
        self._before = {n: names[: convolutions[n]] if n and n < len(convolutions) else [] for n in FRONTS}
        weights = {each.name for each in model.graph.initializer}
        # Attention multiplies what it computed, without weights.
        self._weightless = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] not in weights]
        self._apart = [NORMALISE, *_small(model.graph)]
        self.layers = [n.name for n in model.graph.node if n.op_type in WEIGHTED and n.name not in self._apart]
        self.original = given(original, held_out, output)

    def recipes(self, *, symmetric: bool = False) -> list[Recipe]:
        """All that are tried first: none spares a layer for being sensitive."""
        counts = sorted({min(64, len(self.calibration)), len(self.calibration)})
        if symmetric:
            return [
                Recipe(channels=True, ranges=ranges, pictures=count, symmetric=True)
                for count in counts for ranges in RANGES
            ]  # fmt: skip
        fronts = [front for front in FRONTS if not front or self._before[front]]
        return [
            Recipe(channels=channels, ranges=ranges, pictures=count, front=front)
            for count in counts for ranges in RANGES for channels in (False, True) for front in fronts
        ]  # fmt: skip

    def try_out(self, recipe: Recipe, name: str) -> Tried:
        path = self.folder / f"{name}.onnx"
        self._quantise(recipe, path, exclude=[*self._apart, *self._before[recipe.front], *recipe.spared])
        return Tried(recipe=recipe, path=path, bytes=path.stat().st_size, near=self.nearness(path))

    def nearness(self, graph: Path) -> Nearness:
        return Nearness.of(given(graph, self.held_out, self._output), self.original)

    def sensitivity(self, recipe: Recipe) -> Iterator[tuple[str, float]]:
        """Of each layer, 1 - mean cosine of the tokens when it alone is quantised."""
        path = self.folder / "alone.onnx"
        for layer in self.layers:
            self._quantise(recipe, path, only=[layer])
            yield layer, 1.0 - self.nearness(path).mean

    def _quantise(self, recipe: Recipe, path: Path, *, exclude: Sequence[str] = (), only: Sequence[str] = ()) -> None:
        symmetric = recipe.symmetric
        graph = self._graph if symmetric else self._levels
        with quiet():
            quantize_static(
                str(graph), str(path), quant_format=QuantFormat.QDQ, per_channel=recipe.channels,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
                op_types_to_quantize=WEIGHTED if symmetric else TYPES,
                nodes_to_exclude=[*exclude, *(self._weightless if symmetric else ())], nodes_to_quantize=list(only),
                extra_options=dict(SYMMETRIC if symmetric else PLAIN), calibrate_method=RANGES[recipe.ranges][0],
                calibration_cache_path=self._ranges(graph, recipe.ranges, recipe.pictures),
            )  # fmt: skip

    def _ranges(self, graph: Path, ranges: str, pictures: int) -> Path:
        """The range of every tensor, computed once: which layers are quantised differs from recipe to recipe."""
        kept = self.folder / f"ranges-{graph.stem}-{ranges}-{pictures}.json"
        if not kept.exists():
            method, options = RANGES[ranges]
            calibrator: Any = create_calibrator(
                graph, TYPES, str(self.folder / "augmented.onnx"), method, extra_options=options
            )
            calibrator.collect_data(_Pictures(self.calibration[:pictures]))
            save_tensors_data(calibrator.compute_data(), kept)
        return kept


@dataclass(frozen=True, kw_only=True)
class Search:
    """How an int8 form was looked for. tried: all recipes, in the order of the gate; chosen: the one that passed."""

    tried: list[tuple[Tried, Changes | None]]
    layers: list[tuple[str, float]]
    chosen: Tried | None


def find_int8(
    bench: Bench, judge: Judge, manifest: EdgeManifest, *, on_done: OnDone, symmetric: bool = False
) -> Search:
    """The smallest int8 form that passes; if none does, those that leave the most sensitive layers float.

    symmetric: of those that TensorRT reads.
    Raises NoFormPasses at once when there are too few questions for any to pass."""
    if len(judge) < needed():
        raise NoFormPasses(f"{len(judge)} {judge.kind}: fewer than {needed()} can prove nothing; give more", [])

    def judged(tried: Tried) -> Changes:
        return judge.changes(judge.read(encoder_of(tried.path, manifest)))

    reader = " for TensorRT" if symmetric else ""
    recipes, tried = bench.recipes(symmetric=symmetric), []
    for done, recipe in enumerate(recipes):
        on_done(f"recipes{reader}", done, len(recipes))
        tried.append(bench.try_out(recipe, f"recipe-{done}"))
    on_done(f"recipes{reader}", len(recipes), len(recipes))
    waiting = smallest_first(tried)
    asked: list[tuple[Tried, Changes | None]] = []
    for place, each in enumerate(waiting):
        changes = judged(each)
        asked.append((each, changes))
        if passes(changes):
            return Search(tried=asked + [(other, None) for other in waiting[place + 1 :]], layers=[], chosen=each)
    best = max(waiting, key=lambda each: each.near.percentile_1)
    layers = []
    for done, layer in enumerate(bench.sensitivity(best.recipe)):
        on_done(f"layers{reader}", done + 1, len(bench.layers))
        layers.append(layer)
    layers.sort(key=lambda layer: -layer[1])
    for number, recipe in enumerate(sparing(best.recipe, [name for name, _ in layers])):
        each = bench.try_out(recipe, f"sparing-{number}")
        changes = judged(each)
        asked.append((each, changes))
        if passes(changes):
            return Search(tried=asked, layers=layers, chosen=each)
    return Search(tried=asked, layers=layers, chosen=None)


def refusal(search: Search, judge: Judge) -> str:
    """Of a search in vain: how near the best came, and the layers to blame."""
    tried, changes = max(
        (each for each in search.tried if each[1]), key=lambda each: min(c.low for c in (each[1] or {}).values())
    )
    mode, worst = min((changes or {}).items(), key=lambda item: item[1].low)
    return (
        f"no int8 form passes: the best ({tried.recipe}) changes recall@10 of {len(judge)} {judge.kind} by "
        f"{worst.change:+.2f} points in {mode} mode, 95 % {worst.low:+.2f} to {worst.high:+.2f}; a loss of {ALLOWED} "
        f"is allowed. Layers to blame: {', '.join(name for name, _ in search.layers[:5])}"
    )


def encoder_of(graph: Path, manifest: EdgeManifest) -> Encoder:
    """An encoder that is in no bundle yet, run as the device would."""
    described = manifests.describe_encoder(graph, encoder="not minted", tolerance=1.0)
    return Encoder(replace(manifest, graphs={"int8": described}), "int8", Graph(graph, threads=0))


def _small(graph: onnx.GraphProto) -> Iterator[str]:
    """Nodes whose work is not worth the rounding to int8 and back: behind the last convolution all but products with
    trained weights. There a few tokens are left of a whole map."""
    constants = {each.name for each in graph.initializer}
    wanted: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "Conv" or wanted.intersection(node.output):
            wanted.update(node.input)
        elif node.op_type not in FLOAT_OUT or node.input[1] not in constants:
            yield node.name


def smallest_first(tried: Sequence[Tried]) -> list[Tried]:
    """In steps of STEP of the smallest file; within a step the nearest tokens first."""
    least = min(each.bytes for each in tried)
    return sorted(tried, key=lambda each: (int((each.bytes / least - 1) / STEP), -each.near.percentile_1))


def sparing(recipe: Recipe, sensitive: Sequence[str]) -> Iterator[Recipe]:
    """The recipe with more and more of the most sensitive layers left float."""
    for count in LEAVE_OUT:
        if count < len(sensitive):
            yield replace(recipe, spared=tuple(sensitive[:count]))


def given(graph: Path, pixels: Squares, output: str) -> Floats:
    """What a graph gives for pixels (n, side, side, 3), by the device's own runtime: (n, ...)."""
    session = Graph(graph, threads=0)
    parts = [session.run([output], {PIXELS: pixels[i : i + BATCH]})[0] for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def cosines(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Of each vector along the last axis with the same one of the other side."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)


class _Pictures(CalibrationDataReader):
    def __init__(self, pixels: Squares) -> None:
        self._batches = iter({PIXELS: pixels[i : i + BATCH]} for i in range(0, len(pixels), BATCH))

    def get_next(self) -> dict[str, Squares] | None:  # type: ignore[override]
        return next(self._batches, None)


@contextmanager
def quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger and prints its progress; ours is a bar."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
