"""Int8 forms of an encoder: recipes of static quantisation, tried from the smallest file up until one passes the gate.

Static, with QuantizeLinear and DequantizeLinear nodes (QDQ), so that any runtime can read it; weights int8, activations
uint8, which is what ONNX Runtime has fast kernels for. The quantiser is ONNX Runtime's; ours is which recipe, and the
proof. Nothing here needs a training, only a bundle and pictures. Called by forms.py."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
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
from pocketlens_edge.encoder import PIXELS, SENTENCE
from pocketlens_edge.runtime import Graph

from pocketlens_export.tidy import NORMALISE

RANGES: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.999}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512}),  # with the library's 128 nothing is ever cut
}
TYPES = sorted({*QLinearOpsRegistry, *QDQRegistry})
FRONTS = (0, 2)  # convolutions at the input that stay float: of few channels, int8 gains nothing there
LEAVE_OUT = (1, 2, 4, 8, 16, 32)  # so many of the most sensitive layers stay float
BATCH = 16
STEP = 0.05  # files of less difference in size count as equally small; the one with the nearer tokens goes first

Floats = NDArray[np.float32]
Squares = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an encoder is quantised. ranges: how the range of an activation follows from `pictures` pictures; channels:
    each output channel of a weight has a scale of its own; front: convolutions at the input that stay float; spared:
    further layers that do."""

    channels: bool
    ranges: str
    pictures: int
    front: int = 0
    spared: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{'per channel' if self.channels else 'per tensor'}, {self.ranges}, {self.pictures} pictures"
        said += f", first {self.front} convolutions float" if self.front else ""
        return said + (f", {len(self.spared)} sensitive layers float" if self.spared else "")


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Cosines of a form's tokens with the original's, over held-out pictures."""

    least: float
    percentile_1: float
    mean: float

    @classmethod
    def of(cls, form: Floats, original: Floats) -> Nearness:
        found = cosines(form, original)
        return cls(least=float(found.min()), percentile_1=float(np.quantile(found, 0.01)), mean=float(found.mean()))


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A recipe, its file, and how near its tokens are."""

    recipe: Recipe
    path: Path
    bytes: int
    near: Nearness


class Bench:
    """One encoder to be quantised, the pictures for it, and a folder for what is tried."""

    def __init__(self, original: Path, calibration: Squares, held_out: Squares, folder: Path) -> None:
        """original: its fp32 graph. calibration, held_out: pixels uint8 (n, side, side, 3); both should be what the
        device will see, sketches among them if it will see sketches."""
        self.folder, self.calibration, self.held_out = folder, calibration, held_out
        self._graph = folder / "prepared.onnx"
        with _quiet():
            quant_pre_process(str(original), str(self._graph), skip_symbolic_shape=True)
        model = onnx.load(self._graph)
        names = [node.name for node in model.graph.node]
        convolutions = [place for place, node in enumerate(model.graph.node) if node.op_type == "Conv"]
        self._before = {n: names[: convolutions[n]] if n and n < len(convolutions) else [] for n in FRONTS}
        self.layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
        self.original = tokens(original, held_out)

    def recipes(self) -> list[Recipe]:
        """All that are tried first: none spares a layer for being sensitive."""
        counts = sorted({min(64, len(self.calibration)), len(self.calibration)})
        fronts = [front for front in FRONTS if not front or self._before[front]]
        return [
            Recipe(channels=channels, ranges=ranges, pictures=count, front=front)
            for count in counts for ranges in RANGES for channels in (False, True) for front in fronts
        ]  # fmt: skip

    def try_out(self, recipe: Recipe, name: str) -> Tried:
        path = self.folder / f"{name}.onnx"
        self._quantise(recipe, path, exclude=[NORMALISE, *self._before[recipe.front], *recipe.spared])
        return Tried(recipe=recipe, path=path, bytes=path.stat().st_size, near=self.nearness(path))

    def nearness(self, graph: Path) -> Nearness:
        return Nearness.of(tokens(graph, self.held_out), self.original)

    def sensitivity(self, recipe: Recipe) -> Iterator[tuple[str, float]]:
        """Of each layer, 1 - mean cosine of the tokens when it alone is quantised."""
        path = self.folder / "alone.onnx"
        for layer in self.layers:
            self._quantise(recipe, path, only=[layer])
            yield layer, 1.0 - self.nearness(path).mean

    def _quantise(self, recipe: Recipe, path: Path, *, exclude: Sequence[str] = (), only: Sequence[str] = ()) -> None:
        with _quiet():
            quantize_static(
                str(self._graph), str(path), quant_format=QuantFormat.QDQ, per_channel=recipe.channels,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=TYPES,
                nodes_to_exclude=list(exclude), nodes_to_quantize=list(only),
                calibrate_method=RANGES[recipe.ranges][0],
                calibration_cache_path=self._ranges(recipe.ranges, recipe.pictures),
            )  # fmt: skip

    def _ranges(self, ranges: str, pictures: int) -> Path:
        """The range of every tensor, computed once: which layers are quantised differs from recipe to recipe."""
        kept = self.folder / f"ranges-{ranges}-{pictures}.json"
        if not kept.exists():
            method, options = RANGES[ranges]
            calibrator: Any = create_calibrator(
                self._graph, TYPES, str(self.folder / "augmented.onnx"), method, extra_options=options
            )
            calibrator.collect_data(_Pictures(self.calibration[:pictures]))
            save_tensors_data(calibrator.compute_data(), kept)
        return kept


def smallest_first(tried: Sequence[Tried]) -> list[Tried]:
    """In steps of STEP of the smallest file; within a step the nearest tokens first."""
    least = min(each.bytes for each in tried)
    return sorted(tried, key=lambda each: (int((each.bytes / least - 1) / STEP), -each.near.percentile_1))


def sparing(recipe: Recipe, sensitive: Sequence[str]) -> Iterator[Recipe]:
    """The recipe with more and more of the most sensitive layers left float."""
    for count in LEAVE_OUT:
        if count < len(sensitive):
            yield replace(recipe, spared=tuple(sensitive[:count]))


def tokens(graph: Path, pixels: Squares) -> Floats:
    """What an encoder graph gives for pixels (n, side, side, 3), by the device's own runtime: (n, k, width)."""
    session = Graph(graph, threads=0)
    parts = [session.run([SENTENCE], {PIXELS: pixels[i : i + BATCH]})[0] for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def cosines(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Of each token with the same one of the other side, (n, k)."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)


class _Pictures(CalibrationDataReader):
    def __init__(self, pixels: Squares) -> None:
        self._batches = iter({PIXELS: pixels[i : i + BATCH]} for i in range(0, len(pixels), BATCH))

    def get_next(self) -> dict[str, Squares] | None:  # type: ignore[override]
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger and prints its progress; ours is a bar."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
