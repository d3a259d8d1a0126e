"""Int8 forms of the service's two towers, tried from the smallest file up until one passes the gate.

What multiplies matrices is quantised dynamically: the ranges of activations are taken as they come, so no pictures are
needed and transformers keep their precision. An image tower of convolutions is quantised as the encoder is, with ranges
from pictures. A tower of which nothing passes stays fp32: a service without int8 is slower, not worse. Called by
forms.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from pocketlens_cloud.doctor import differences
from pocketlens_cloud.towers import ImageTower, TextTower
from pocketlens_wire import manifest as manifests
from pocketlens_wire.manifest import CloudManifest, TowerGraph

from pocketlens_export import parity
from pocketlens_export.gate import Changes, Judge, passes
from pocketlens_export.quantize import MARGIN, Bench, Recipe, Squares, quiet, smallest_first

DYNAMIC = (("MatMul", "Gemm", "Gather"), ("MatMul", "Gemm"))  # with the table of words, and without
STATIC = [
    Recipe(channels=channels, ranges=ranges, pictures=64)
    for ranges in ("minmax", "percentile") for channels in (True, False)
]  # fmt: skip
ROUNDS = 20

Tower = TextTower | ImageTower
OnDone = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """What became of one tower. said: how its int8 form was made, None when nothing passed; tried: (how, bytes, what
    it changes), in the order of the gate; p50_ms: of one query's rows or one picture, by precision."""

    tower: str
    said: str | None
    bytes: dict[str, int]
    tried: list[tuple[str, int, Changes]]
    p50_ms: dict[str, float]


def shrink(cloud: Path, judge: Judge, pictures: Squares, place: Path, *, on_done: OnDone) -> list[Shrunk]:
    """Put an int8 form of each tower into the cloud half, its manifest with it, where one passes.

    pictures: uint8 (n, side, side, 3) as the image tower sees them, for ranges. place: a folder for what is tried."""
    manifest = manifests.read_cloud(cloud)
    text, image = cloud / manifest.text_tower["fp32"].file, cloud / manifest.image_tower["fp32"].file
    found = []
    for name, kind, original, candidates in (
        ("text_tower", TextTower, text, dynamic(text, place)),
        ("image_tower", ImageTower, image, _image(image, pictures, place)),
    ):
        tried: list[tuple[str, int, Changes]] = []
        chosen = None
        for said, path in candidates:
            on_done(name, len(tried), len(tried) + 1)
            tower = _open(kind, path, cloud, manifest)
            changes = _changes(judge, tower)
            tried.append((said, path.stat().st_size, changes))
            if passes(changes):
                chosen = said, path, tower
                break
        on_done(name, len(tried), len(tried))
        p50_ms = {"fp32": _p50_ms(_open(kind, original, cloud, manifest), judge)}
        sizes = {"fp32": original.stat().st_size}
        if chosen:
            file = cloud / f"{original.stem}.int8.onnx"
            chosen[1].replace(file)
            p50_ms["int8"], sizes["int8"] = _p50_ms(chosen[2], judge), file.stat().st_size
            forms = {
                **getattr(manifest, name),
                "int8": _described(file, chosen[2], judge, cloud / manifest.golden.file),
            }
            manifest = replace(manifest, **{name: forms})
            manifests.write(manifest, cloud)
        found.append(Shrunk(tower=name, said=chosen and chosen[0], bytes=sizes, tried=tried, p50_ms=p50_ms))
    return found


def dynamic(original: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """(how, file), the smallest first. Each is made when it is asked for."""
    model = onnx.load(original)
    del model.graph.value_info[:]  # shapes noted before slimming contradict those of the quantised weights
    bare = place / f"{original.stem}.bare.onnx"
    onnx.save(model, bare)
    for kinds in DYNAMIC:
        for channels in (True, False):
            said = f"dynamic, {'per channel' if channels else 'per tensor'}{', words too' if 'Gather' in kinds else ''}"
            path = place / f"{original.stem}.{len(kinds)}.{channels}.onnx"
            with quiet():
                quantize_dynamic(
                    bare, path, op_types_to_quantize=list(kinds), per_channel=channels, weight_type=QuantType.QInt8
                )
            yield said, path


def _image(original: Path, pictures: Squares, place: Path) -> Iterator[tuple[str, Path]]:
    """Dynamic for a transformer, static for convolutions: whichever holds more of the weights."""
    if _held_by(original, ("Conv",)) < _held_by(original, ("MatMul", "Gemm")):
        yield from dynamic(original, place)
        return
    half = len(pictures) // 2
    bench = Bench(original, pictures[:half], pictures[half:], place / "image", output="image")
    for each in smallest_first([bench.try_out(recipe, f"image-{n}") for n, recipe in enumerate(STATIC)]):
        yield f"static, {each.recipe}", each.path


def _held_by(graph: Path, kinds: Sequence[str]) -> int:
    """Numbers in the weights that nodes of these kinds take."""
    model = onnx.load(graph)
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    return sum(sizes.get(name, 0) for node in model.graph.node if node.op_type in kinds for name in node.input)


def _open(kind: type[Tower], path: Path, cloud: Path, manifest: CloudManifest) -> Tower:
    """A tower that is in no bundle yet, run as the service would; heads and all else are the bundle's."""
    described = TowerGraph(file=str(path.absolute()), sha256="", bytes=0, tolerance=1.0)
    return kind(cloud, replace(manifest, text_tower={"fp32": described}, image_tower={"fp32": described}))


def _changes(judge: Judge, tower: Tower) -> Changes:
    if isinstance(tower, TextTower):
        return judge.changes(composer=judge.composer.with_tower(tower))
    return judge.changes(vectors=judge.vectors(tower))


def _p50_ms(tower: Tower, judge: Judge) -> float:
    """Milliseconds of one query's rows, or of one picture."""
    if isinstance(tower, TextTower):
        composer = judge.composer.with_tower(tower)
        work = partial(composer.compose, judge.tokens[0], judge.words[0], judge.modes[-1])
    else:
        work = partial(tower.features, judge.large(1))
    times = []
    for _ in range(ROUNDS + 3):
        began = perf_counter()
        work()
        times.append(1e3 * (perf_counter() - began))
    return median(times[3:])


def _described(path: Path, tower: Tower, judge: Judge, golden: Path) -> TowerGraph:
    with np.load(golden, allow_pickle=False) as vectors:
        through = judge.composer.with_tower(tower) if isinstance(tower, TextTower) else tower
        worst = max(far / scale for _, far, scale in differences(through, vectors))
    return manifests.describe_tower(path, tolerance=max(parity.ELSEWHERE, MARGIN * worst))
