"""Further forms of a bundle's graphs: half precision, int8, ONNX Runtime's own format; each measured before it goes in.

An encoder in int8 goes in if it passes the gate (gate.py). What was measured stands in parity.json, which the device's
manifest names. Needs a bundle and pictures, no training. Called by cli.py."""

from __future__ import annotations

import json
import shutil
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
from pocketlens_edge.runtime import Graph
from pocketlens_training.sets.sources import NoPictures, Source
from pocketlens_wire import manifest as manifests
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import EdgeManifest, EncoderGraph
from pocketlens_wire.pictures import PictureSpec
from pocketlens_wire.spaces import mint

from pocketlens_export import mistakes, parity, towers
from pocketlens_export.gate import ALLOWED, Asked, Changes, Judge, some, squares, themselves
from pocketlens_export.parity_page import write_page
from pocketlens_export.quantize import (
    MARGIN,
    Bench,
    Floats,
    Nearness,
    NoFormPasses,
    OnDone,
    Recipe,
    Search,
    Squares,
    Tried,
    encoder_of,
    find_int8,
    refusal,
)

AMONG = 4000  # pictures that shall find themselves, where there are no questions
FEWEST = 32  # pictures to quantise with
LARGE = 128  # pictures for the ranges of an image tower
ROUNDS = 60
CONVERTED = {"fp32.ort": parity.ELSEWHERE, "fp16": 2e-3, "int8.ort": 1e-2}
"""How far a converted form's tokens may lie from its original's, in token lengths: the same sums; sums in half
precision; sums of int8 that are rounded in other places."""
REPORT, PAGE = "parity.json", "parity.html"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One form of the encoder. near: its tokens beside torch's own fp32 form; changes: of what is found, by mode."""

    form: str
    bytes: int
    near: Nearness
    changes: Changes
    p50_ms: dict[int, float]
    """Milliseconds of one picture, by threads."""
    recipe: Recipe | None = None


def grow(
    folder: Path, pictures: Source, asked: Asked | None, *, on_done: OnDone, count: int = 256, must: bool = True
) -> dict[str, Any]:
    """Put every further form into the bundle in `folder`, its manifests with them; returns what parity.json says.

    pictures: to quantise with; of those that can be read the first half, at most `count`, gives the ranges, the second
    tells how near a form is. asked: composed questions of the gate; without any, each of `pictures` shall find itself.
    must: raise NoFormPasses when no int8 encoder passes; else the report says why there is none.
    Raises BadLines, NoPictures, BadBundle."""
    edge = folder / "edge"
    manifest, cloud = manifests.read_edge(edge), manifests.read_cloud(folder)
    original = edge / manifest.graph("fp32").file
    calibration, held_out, unreadable = _seen(pictures, manifest.picture, count)
    kind = "composed questions" if asked else "pictures that shall find themselves"
    judge = Judge(folder, asked or themselves(some(pictures, AMONG)), kind=kind)
    with TemporaryDirectory(prefix="pocketlens-forms-") as place:
        bench = Bench(original, calibration, held_out, Path(place) / "encoder")
        made = mistakes.make(judge, manifest, bench)
        search, why = _int8(bench, judge, manifest, edge / "encoder.int8.onnx", on_done, must=must)
        # A bundle is whole without the int8 that only TensorRT reads.
        other, why_not = _int8(bench, judge, manifest, edge / "encoder.int8.symmetric.onnx", on_done, symmetric=True)
        large, _ = squares(some(pictures, LARGE), cloud.picture)
        shrunk = towers.shrink(folder / "cloud", judge, np.stack(list(large.values())), Path(place), on_done=on_done)
    half_precision(original, edge / "encoder.fp16.onnx")
    found = {"fp32": True, "fp16": True, "int8": search.chosen, "int8.symmetric": other.chosen}
    forms = {form: edge / f"encoder.{form}{'' if form.endswith('.ort') else '.onnx'}" for form in manifests.FORMS
             if found[form.removesuffix(".ort")]}  # fmt: skip
    for form in forms:
        if form.endswith(".ort"):
            runtime_format(edge / f"encoder.{form.removesuffix('.ort')}.onnx", forms[form])
    recipes = {form: each.recipe for form, each in found.items() if isinstance(each, Tried)}
    measured, left_out = measure(forms, manifest, judge, held_out, recipes)
    for form in left_out:
        forms.pop(form).unlink()
    report = {
        "format": 1, "name": manifest.name, "gate": {"allowed": ALLOWED, "by": judge.kind, "questions": len(judge)},
        "forms": [asdict(each) for each in measured], "no_int8": why, "no_int8_symmetric": why_not,
        "left_out": left_out,
        "tried": [
            {"recipe": asdict(tried.recipe), "said": str(tried.recipe), "bytes": tried.bytes,
             "near": asdict(tried.near),
             "changes": None if changes is None else {mode: asdict(each) for mode, each in changes.items()}}
            for tried, changes in search.tried + other.tried
        ],
        "layers": [{"layer": layer, "lost": lost} for layer, lost in search.layers],
        "layers_symmetric": [{"layer": layer, "lost": lost} for layer, lost in other.layers],
        "towers": [asdict(each) for each in shrunk],
        "mistakes": [asdict(each) for each in made],
        "pictures": {
            "ranges": len(calibration), "held_out": len(held_out), "unreadable": unreadable + judge.unreadable,
        },
        **parity.made_with(),
    }  # fmt: skip
    (edge / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    write_page(json.loads((edge / REPORT).read_text()), edge / PAGE)
    _write_manifests(folder, manifest, forms)
    return report


def _int8(
    bench: Bench, judge: Judge, manifest: EdgeManifest, path: Path, on_done: OnDone, *, must: bool = False,
    symmetric: bool = False,
) -> tuple[Search, str | None]:  # fmt: skip
    """Write the int8 encoder that passes; else say why there is none, or raise NoFormPasses."""
    path.unlink(missing_ok=True)  # one that passed before
    try:
        search = find_int8(bench, judge, manifest, on_done=on_done, symmetric=symmetric)
    except NoFormPasses as few:
        search, none = Search(tried=[], layers=[], chosen=None), few
    else:
        if search.chosen is not None:
            shutil.copyfile(search.chosen.path, path)
            return search, None
        none = NoFormPasses(refusal(search, judge), search.layers)
    if must:
        raise none
    return search, str(none)


def _seen(pictures: Source, spec: PictureSpec, count: int) -> tuple[Squares, Squares, list[tuple[str, str]]]:
    """Pixels to calibrate with, others to compare on, and what cannot be read. Raises NoPictures."""
    found, bad = squares(some(pictures, 2 * count), spec)
    if len(found) < FEWEST:
        first = f"; the first that cannot: {bad[0][1]}" if bad else ""
        raise NoPictures(f"{len(found)} pictures to quantise with can be read; at least {FEWEST} are needed{first}")
    made = np.stack(list(found.values()))
    half = len(made) // 2
    return made[:half], made[half:], bad


def _write_manifests(folder: Path, manifest: EdgeManifest, forms: dict[str, Path]) -> None:
    """Both halves name every form: the device to run it, the service to accept its tokens."""
    edge = folder / "edge"
    graphs: dict[str, EncoderGraph] = {}
    for form, path in sorted(forms.items()):  # int8 before int8.ort
        of = graphs[form.removesuffix(".ort")] if form.endswith(".ort") else manifest.graphs["fp32"]
        graphs[form] = of if form == "fp32" else describe_form(path, of, form, edge, manifest)
    report, page = manifests.describe_file(edge / REPORT), manifests.describe_file(edge / PAGE)
    manifests.write(replace(manifest, graphs=graphs, report=report, page=page), edge)
    cloud = manifests.read_cloud(folder)
    accepted = list(dict.fromkeys([*cloud.encoders, *(graph.encoder for graph in graphs.values())]))
    manifests.write(replace(cloud, encoders=accepted), folder / "cloud")


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
    forms: dict[str, Path], manifest: EdgeManifest, judge: Judge, held_out: Squares, recipes: dict[str, Recipe]
) -> tuple[list[Measured], dict[str, str]]:
    """Every form beside the first, which is the original: nearness, what is found, and time by turns. Then those whose
    conversion went wrong, and how."""
    tokens, left_out = _read_all(forms, manifest, judge)
    times = _times({form: forms[form] for form in tokens}, held_out[:1])
    found = []
    for form, each in tokens.items():
        found.append(Measured(
            form=form, bytes=forms[form].stat().st_size, changes=judge.changes(each), p50_ms=times[form],
            near=Nearness.of(each, judge.tokens), recipe=recipes.get(form.removesuffix(".ort")),
        ))  # fmt: skip
    return found, left_out


def _read_all(forms: dict[str, Path], manifest: EdgeManifest, judge: Judge) -> tuple[dict[str, Floats], dict[str, str]]:
    """The tokens of every form, and why some are left out. Int8 has passed the gate; what was only converted must give
    its original's numbers: fp32 exactly, half precision and int8 nearly, as sums are rounded in other places."""
    tokens: dict[str, Floats] = {}
    left_out: dict[str, str] = {}
    for form, path in sorted(forms.items(), key=lambda item: item[0].endswith(".ort")):
        try:
            came = judge.read(encoder_of(path, manifest))
        except BadBundle as wrong:  # numbers beyond what float16 holds, for one
            left_out[form] = str(wrong)
            continue
        same = form.endswith(".ort")
        if same or form == "fp16":
            far = parity.token_distance(came, tokens[form.removesuffix(".ort")] if same else judge.tokens)
            allowed = CONVERTED[form]
            if not far <= allowed:
                left_out[form] = f"its tokens are {far:.1e} of a token's length off, {allowed:.0e} is allowed"
                continue
        tokens[form] = came
    return {form: tokens[form] for form in forms if form in tokens}, left_out


def _times(forms: dict[str, Path], pixels: Squares) -> dict[str, dict[int, float]]:
    """Median milliseconds of one picture, with one thread and with four, all forms by turns."""
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
