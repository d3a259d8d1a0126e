"""Further forms of a bundle's graphs: half precision, int8, ONNX Runtime's own format; each measured before it goes in.

An encoder in int8 goes in if it passes the gate (gate.py). What was measured stands in parity.json, which the device's
manifest names. Needs a bundle and pictures, no training. Called by cli.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16
from pocketlens_cloud.compose import Mode
from pocketlens_edge.encoder import Encoder
from pocketlens_training.sets.sources import NoPictures, Source
from pocketlens_wire import manifest as manifests
from pocketlens_wire.manifest import EdgeManifest, EncoderGraph
from pocketlens_wire.spaces import mint

from pocketlens_export import parity
from pocketlens_export.gate import ALLOWED, Asked, Change, Judge, needed, squares, themselves
from pocketlens_export.quantize import Bench, Nearness, Recipe, Squares, Tried, smallest_first, sparing

AMONG = 4000  # pictures that shall find themselves, where there are no questions
FEWEST = 32  # pictures to quantise with
MARGIN = 4.0  # on the difference measured here: elsewhere other kernels round otherwise
ROUNDS = 60
OnDone = Callable[[str, int, int], None]


class NoFormPasses(ValueError):
    """No int8 form of an encoder keeps what it finds. layers: to blame, the worst first, with 1 - mean cosine."""

    def __init__(self, said: str, layers: Sequence[tuple[str, float]]) -> None:
        super().__init__(said)
        self.layers = list(layers)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One form of the encoder. near: its tokens beside torch's own fp32 form; changes: of what is found, by mode."""

    form: str
    bytes: int
    near: Nearness
    changes: dict[Mode, Change]
    p50_ms: dict[int, float]
    """Milliseconds of one picture, by threads."""
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How an int8 form was looked for. tried: all recipes, in the order of the gate; chosen: the one that passed."""

    tried: list[tuple[Tried, dict[Mode, Change] | None]]
    layers: list[tuple[str, float]]
    chosen: Tried | None


def find_int8(bench: Bench, judge: Judge, encoder: Encoder, *, on_done: OnDone) -> Search:
    """The smallest int8 form that passes; if none does, those that leave the most sensitive layers float."""
    manifest, original = encoder.manifest, judge.tokens(encoder)

    def judged(tried: Tried) -> dict[Mode, Change]:
        return judge.compare(original, judge.tokens(encoder_of(tried.path, manifest)))

    recipes, tried = bench.recipes(), []
    for done, recipe in enumerate(recipes):
        on_done("recipes", done, len(recipes))
        tried.append(bench.try_out(recipe, f"recipe-{done}"))
    on_done("recipes", len(recipes), len(recipes))
    waiting = smallest_first(tried)
    asked: list[tuple[Tried, dict[Mode, Change] | None]] = []
    for place, each in enumerate(waiting):
        changes = judged(each)
        asked.append((each, changes))
        if passes(changes):
            return Search(tried=asked + [(other, None) for other in waiting[place + 1 :]], layers=[], chosen=each)
    best = max(waiting, key=lambda each: each.near.percentile_1)
    layers = []
    for done, layer in enumerate(bench.sensitivity(best.recipe)):
        on_done("layers", done + 1, len(bench.layers))
        layers.append(layer)
    layers.sort(key=lambda layer: -layer[1])
    for number, recipe in enumerate(sparing(best.recipe, [name for name, _ in layers])):
        each = bench.try_out(recipe, f"sparing-{number}")
        changes = judged(each)
        asked.append((each, changes))
        if passes(changes):
            return Search(tried=asked, layers=layers, chosen=each)
    return Search(tried=asked, layers=layers, chosen=None)


REPORT = "parity.json"


def grow(folder: Path, pictures: Source, asked: Asked | None, *, on_done: OnDone, count: int = 256) -> dict[str, Any]:
    """Put every further form into the bundle in `folder`, its manifests with them; returns what parity.json says.

    pictures: to quantise with; of those that can be read the first half, at most `count`, gives the ranges, the second
    tells how near a form is. asked: composed questions of the gate; without any, each of `pictures` shall find itself.
    Raises NoFormPasses, BadLines, NoPictures, BadBundle."""
    edge = folder / "edge"
    manifest, cloud = manifests.read_edge(edge), manifests.read_cloud(folder)
    original = edge / manifest.graph("fp32").file
    calibration, held_out, unreadable = _seen(pictures, manifest, count)
    kind = "composed questions" if asked else "pictures that shall find themselves"
    judge = Judge(folder, manifest.picture, asked or themselves(_some(pictures, AMONG)), kind=kind)
    with TemporaryDirectory(prefix="pocketlens-forms-") as place:
        bench = Bench(original, calibration, held_out, Path(place))
        search = find_int8(bench, judge, Encoder.load(edge, threads=0), on_done=on_done)
        if search.chosen is None:
            raise NoFormPasses(_refusal(search, judge), search.layers)
        shutil.copyfile(search.chosen.path, edge / "encoder.int8.onnx")
    half_precision(original, edge / "encoder.fp16.onnx")
    for form in ("fp32", "int8"):
        runtime_format(edge / f"encoder.{form}.onnx", edge / f"encoder.{form}.ort")
    forms = {form: edge / f"encoder.{form}{'' if form.endswith('.ort') else '.onnx'}" for form in manifests.FORMS}
    measured = measure(forms, manifest, judge, held_out, search.chosen.recipe)
    report = {
        "format": 1, "gate": {"allowed": ALLOWED, "by": judge.kind, "questions": len(judge)},
        "forms": [asdict(each) for each in measured],
        "tried": [
            {"recipe": asdict(tried.recipe), "bytes": tried.bytes, "near": asdict(tried.near),
             "changes": None if changes is None else {mode: asdict(each) for mode, each in changes.items()}}
            for tried, changes in search.tried
        ],
        "layers": [{"layer": layer, "lost": lost} for layer, lost in search.layers],
        "pictures": {
            "ranges": len(calibration), "held_out": len(held_out), "unreadable": unreadable + judge.unreadable,
        },
    }  # fmt: skip
    (edge / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    _write_manifests(folder, manifest, cloud, forms)
    return report


def _seen(pictures: Source, manifest: EdgeManifest, count: int) -> tuple[Squares, Squares, list[tuple[str, str]]]:
    """Pixels to calibrate with, others to compare on, and what cannot be read. Raises NoPictures."""
    found, bad = squares(_some(pictures, 2 * count), manifest.picture)
    if len(found) < FEWEST:
        first = f"; the first that cannot: {bad[0][1]}" if bad else ""
        raise NoPictures(f"{len(found)} pictures to quantise with can be read; at least {FEWEST} are needed{first}")
    made = np.stack(list(found.values()))
    half = len(made) // 2
    return made[:half], made[half:], bad


def _some(pictures: Source, count: int) -> Source:
    """At most so many of them, drawn."""
    return _Some(pictures, np.random.default_rng(0).permutation(len(pictures))[:count].tolist())


class _Some(Source):
    def __init__(self, pictures: Source, numbers: Sequence[int]) -> None:
        self._pictures, self._numbers = pictures, numbers
        self.names = [pictures.names[number] for number in numbers]

    def read(self, number: int) -> bytes:
        return self._pictures.read(self._numbers[number])


def _refusal(search: Search, judge: Judge) -> str:
    tried, changes = max(
        (each for each in search.tried if each[1]), key=lambda each: min(c.low for c in (each[1] or {}).values())
    )
    mode, worst = min((changes or {}).items(), key=lambda item: item[1].low)
    said = (
        f"no int8 form passes: the best ({tried.recipe}) changes recall@10 of {len(judge)} {judge.kind} by "
        f"{worst.change:+.2f} points in {mode} mode, 95 % {worst.low:+.2f} to {worst.high:+.2f}; a loss of {ALLOWED} "
        f"is allowed. Layers to blame: {', '.join(name for name, _ in search.layers[:5])}"
    )
    few = needed()
    return said + (f". Of fewer than {few} questions none could pass: give more" if len(judge) < few else "")


def _write_manifests(
    folder: Path, manifest: EdgeManifest, cloud: manifests.CloudManifest, forms: dict[str, Path]
) -> None:
    """Both halves name every form: the device to run it, the service to accept its tokens."""
    edge = folder / "edge"
    graphs: dict[str, EncoderGraph] = {}
    for form, path in sorted(forms.items()):  # int8 before int8.ort
        of = graphs[form.removesuffix(".ort")] if form.endswith(".ort") else manifest.graphs["fp32"]
        graphs[form] = of if form == "fp32" else describe_form(path, of, form, edge, manifest)
    manifests.write(replace(manifest, graphs=graphs, report=manifests.describe_file(edge / REPORT)), edge)
    accepted = list(dict.fromkeys([*cloud.encoders, *(graph.encoder for graph in graphs.values())]))
    manifests.write(replace(cloud, encoders=accepted), folder / "cloud")


def passes(changes: dict[Mode, Change]) -> bool:
    return all(change.passes for change in changes.values())


def encoder_of(graph: Path, manifest: EdgeManifest) -> Encoder:
    """An encoder that is in no bundle yet, run as the device would."""
    from pocketlens_edge.runtime import Graph

    described = manifests.describe_encoder(graph, encoder="not minted", tolerance=1.0)
    return Encoder(replace(manifest, graphs={"int8": described}), "int8", Graph(graph, threads=0))


def half_precision(original: Path, path: Path) -> None:
    """The encoder in float16, its input and output as they were."""
    model: Any = convert_float_to_float16(onnx.load(original), keep_io_types=True)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def runtime_format(original: Path, path: Path) -> None:
    """The graph in ONNX Runtime's own format, for its small builds; what any processor gains from is done already."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(original), options, providers=["CPUExecutionProvider"])


def describe_form(path: Path, of: EncoderGraph, form: str, folder: Path, manifest: EdgeManifest) -> EncoderGraph:
    """The record of a form. In ONNX Runtime's format the numbers are the same, and so is the id; another precision is
    another encoder, which a service may accept or not."""
    with np.load(folder / manifest.golden.file, allow_pickle=False) as golden:
        pixels, sentence = golden["pixels"], golden["sentence"]
    norm = float(np.linalg.norm(sentence, axis=-1).mean())
    came = encoder_of(path, manifest).encode_pixels(pixels)
    tolerance = max(parity.ELSEWHERE * norm, MARGIN * parity.apart(came, sentence))
    file = manifests.describe_file(path)
    same = form.endswith(".ort")
    encoder = of.encoder if same else mint("encoder", {"of": of.encoder, "form": form, "graph": file.sha256})
    return manifests.describe_encoder(path, encoder=encoder, tolerance=tolerance)


def measure(
    forms: dict[str, Path], manifest: EdgeManifest, judge: Judge, held_out: Squares, recipe: Recipe | None
) -> list[Measured]:
    """Every form beside the first, which is the original: nearness, what is found, and time by turns."""
    encoders = {form: encoder_of(path, manifest) for form, path in forms.items()}
    asked = {form: judge.tokens(encoder) for form, encoder in encoders.items()}
    original = next(iter(asked.values()))
    times = _times(forms, held_out[:1])
    found = []
    for form, path in forms.items():
        found.append(Measured(
            form=form, bytes=path.stat().st_size, changes=judge.compare(original, asked[form]), p50_ms=times[form],
            near=Nearness.of(asked[form], original),
            recipe=recipe if form.startswith("int8") else None,
        ))  # fmt: skip
    return found


def _times(forms: dict[str, Path], pixels: Squares) -> dict[str, dict[int, float]]:
    """Median milliseconds of one picture, with one thread and with four, all forms by turns."""
    from pocketlens_edge.runtime import Graph

    taken: dict[str, dict[int, float]] = {form: {} for form in forms}
    for threads in (1, 4):
        graphs = {form: Graph(path, threads=threads) for form, path in forms.items()}
        rounds: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(ROUNDS + 5):
            for form, graph in graphs.items():
                began = perf_counter()
                graph.run(["sentence"], {"pixels": pixels})
                if turn >= 5:
                    rounds[form].append(1e3 * (perf_counter() - began))
        for form, each in rounds.items():
            taken[form][threads] = median(each)
    return taken
