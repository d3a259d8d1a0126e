"""Does a written graph give what the torch module gave, through the device's and the cloud's own runtimes?

Each check also makes a classic mistake on purpose: if that mistake would pass (its difference is under ten times
the tolerance) the check proves nothing and the export is refused as surely as if the graph were wrong."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.runtime import version as runtime_version
from pocketlens_cloud.towers import ImageTower, Row, TextTower
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.catalogue import random_edits, random_spec
from pocketlens_samples.draw import draw_picture, draw_sketch
from pocketlens_samples.language import edit_phrase
from pocketlens_training.checkpoint import Trained
from pocketlens_training.loop import machine
from pocketlens_training.reading import RowMaker, reader_of
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import read_cloud
from pocketlens_wire.pictures import PictureSpec, fit
from tokenizers import Tokenizer

from pocketlens_export.graphs import OPSET

Floats = NDArray[np.float32]

TOLERANCE = 2e-5
"""Largest |difference| allowed on a feature of unit length, or on a token in units of the mean token norm.
The same machine runs both sides, so this is rounding alone; measured values stand in the bundle's report.json."""
ELSEWHERE = 1e-4
"""The same on a machine that was not there at export (`doctor`): other kernels sum in another order."""
TEETH = 10.0
"""A classic mistake must differ by at least this many tolerances."""


class NotEqual(ValueError):
    """A graph disagrees with its torch original, or a check has no teeth. No bundle is written."""


@dataclass(frozen=True)
class Check:
    """One graph's verdict: differences are max |a - b| on comparable (unit-length) scales."""

    graph: str
    rows: int
    difference: float
    tolerance: float
    mistakes: dict[str, float]

    def verdict(self) -> str | None:
        """None when passed; else what is wrong."""
        if not self.difference <= self.tolerance:
            return f"{self.graph}: differs from torch by {self.difference:.2e}, allowed {self.tolerance:.0e}"
        for name, difference in self.mistakes.items():
            if not difference >= TEETH * self.tolerance:
                return f"{self.graph}: mistake `{name}` differs by {difference:.2e} only; the check has no teeth"
        return None


@dataclass(frozen=True)
class Material:
    """What the checks run on: drawn photos and sketches as the device sees them (`pixels`) and as the large tower does
    (`large`), uint8 (n, side, side, 3) each, and modifier texts (n). Any model takes them, whatever it was taught
    on."""

    pixels: NDArray[np.uint8]
    large: NDArray[np.uint8]
    words: list[str]


def material(count: int, seed: int, picture: PictureSpec, large: PictureSpec) -> Material:
    """Drawn anew from `seed`, held-out combinations among them; every fourth picture is a sketch."""
    rng = np.random.default_rng([seed, 77])
    specs = [random_spec(rng, held_out=None) for _ in range(count)]
    drawn = [
        Image.fromarray((draw_sketch if i % 4 == 3 else draw_picture)(spec, seed + i)) for i, spec in enumerate(specs)
    ]
    words = [edit_phrase(spec, random_edits(spec, 1 + i % 2, rng), rng) for i, spec in enumerate(specs)]
    return Material(np.stack([fit(p, picture) for p in drawn]), np.stack([fit(p, large) for p in drawn]), words)


@dataclass(frozen=True)
class Originals:
    """What the torch modules give for a Material; features have unit length unless called raw. None: the run has no
    such module."""

    sentence: Floats  # (n, k, width)
    composed: Floats  # (n, dim)
    picture: Floats
    words: Floats
    image_raw: Floats
    image: Floats
    query: Floats | None
    union: Floats | None
    control: Floats | None
    symmetric: Floats | None  # (n, k, width)


CHUNK = 16  # rows through a torch tower at once: large ones must fit into memory


@torch.no_grad()
def originals(trained: Trained, given: Material) -> Originals:
    """The torch side, in float32 and without autocast."""
    teacher = trained.teacher
    reader = reader_of(teacher, machine("cpu", "fp32"), exact=True)
    for module in (teacher.image, teacher.text, trained.student):
        module.cpu()

    def chunked(run: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        return torch.cat([run(slice(at, at + CHUNK)) for at in range(0, len(given.words), CHUNK)])

    sentence = chunked(lambda n: trained.student(torch.from_numpy(given.pixels[n])))
    composed = chunked(lambda n: reader.unit([reader.composed(each) for each in given.words[n]], sentence[n]))
    picture = chunked(lambda n: reader.unit([reader.alone] * len(sentence[n]), sentence[n]))
    words = chunked(lambda n: reader.unit([reader.words(each) for each in given.words[n]]))
    towered = [teacher.image(torch.from_numpy(given.large[i : i + CHUNK])) for i in range(0, len(given.large), CHUNK)]
    raw = torch.cat([each for each, _ in towered])
    heads, control = trained.heads, trained.control
    symmetric = trained.symmetric and torch.cat([trained.symmetric(places) for _, places in towered])
    optional = (
        heads and heads.query(composed, picture, words), heads and heads.target(raw),
        control and control.query(composed, picture, words), symmetric,
    )  # fmt: skip
    made = (sentence, composed, picture, words, raw, F.normalize(raw, dim=1), *optional)
    return Originals(*(None if tensor is None else tensor.numpy() for tensor in made))  # type: ignore[arg-type]


def check_bundle(folder: Path, given: Material, expected: Originals) -> list[Check]:
    """Run every graph of the bundle in `folder` and compare. Raises NotEqual with all that failed."""
    checks = [
        check_encoder(folder, given.pixels, expected.sentence),
        check_text_tower(folder, given, expected),
        check_image_tower(folder, given, expected),
    ]
    manifest = read_cloud(folder)
    if manifest.query_head is not None:
        checks.append(check_query_head(folder, given, expected))
    if manifest.target_head is not None:
        checks.append(check_target_head(folder, expected))
    if (folder / "baselines").is_dir():
        checks += check_baselines(folder, given, expected)
    return passed(checks)


def passed(checks: list[Check]) -> list[Check]:
    """The same checks. Raises NotEqual with all that failed."""
    failed = [verdict for check in checks if (verdict := check.verdict())]
    if failed:
        raise NotEqual("; ".join(failed))
    return checks


def apart(left: Floats, right: Floats) -> float:
    """Largest |difference| of any number; NaN counts as infinitely far."""
    difference = float(np.abs(left.astype(np.float64) - right).max())
    return difference if np.isfinite(difference) else float("inf")


def token_distance(left: Floats, right: Floats) -> float:
    """Largest |difference| of any token number, in units of the mean token norm."""
    return apart(left, right) / float(np.linalg.norm(right, axis=-1).mean())


def check_encoder(folder: Path, pixels: NDArray[np.uint8], expected: Floats) -> Check:
    """The device's half in `folder`, against the sentences (n, k, width) that torch gives for `pixels`."""
    run = Encoder.load(folder).encode_pixels
    wrong = {
        "BGR for RGB": np.ascontiguousarray(pixels[..., ::-1]),
        "pixels scaled twice": pixels // 2,  # a second normalisation outside the graph
        "rows and columns swapped": np.ascontiguousarray(pixels.transpose(0, 2, 1, 3)),
    }
    return Check(
        "encoder.fp32.onnx", len(pixels), token_distance(run(pixels), expected), TOLERANCE,
        {name: token_distance(run(seen), expected) for name, seen in wrong.items()},
    )  # fmt: skip


def check_text_tower(folder: Path, given: Material, expected: Originals) -> Check:
    composer = Composer.load(folder)
    features = composer.features(list(zip(expected.sentence, given.words, strict=True)))
    difference = max(
        apart(features.composed, expected.composed),
        apart(features.picture, expected.picture),
        apart(features.words, expected.words),
    )
    manifest = read_cloud(folder)
    tower = TextTower(folder / "cloud", manifest)
    maker = RowMaker(
        Tokenizer.from_file(str(folder / "cloud" / manifest.tokenizer.file)), manifest.text, manifest.context
    )
    prompts = manifest.prompts
    texts = [prompts.composed.replace("{words}", each) for each in given.words]
    built = maker.rows(texts, tokens=expected.sentence.shape[1])

    def run(*, shift: int = 0, turn: int = 0, late: int = 0) -> Floats:
        made = []
        turned = np.roll(expected.sentence, turn, axis=0)
        ids_of, starts, ends = built.token_ids.tolist(), built.sentence_start.tolist(), built.end.tolist()
        for ids, start, end, tokens in zip(ids_of, starts, ends, turned, strict=True):
            sequence = ids[: end + 1]
            if late:
                sequence = [*sequence[:-2], sequence[-1]]
            made.append(Row(sequence, tokens, start + shift))
        return tower.run(made)

    return Check(
        "text_tower.onnx", 3 * len(given.words), difference, TOLERANCE,
        {
            "sentence one position late": apart(run(shift=1), expected.composed),
            "another picture's sentence": apart(run(turn=1), expected.composed),
            "the last word lost": apart(run(late=1), expected.composed),
        },
    )  # fmt: skip


def check_image_tower(folder: Path, given: Material, expected: Originals) -> Check:
    tower = ImageTower(folder / "cloud", read_cloud(folder))
    raw, image = _large(tower, given.large)
    bgr = _large(tower, np.ascontiguousarray(given.large[..., ::-1]))[1]
    scale = float(np.linalg.norm(expected.image_raw, axis=1).mean())
    return Check(
        "image_tower.onnx", len(image),
        max(apart(image, expected.image), apart(raw, expected.image_raw) / scale), TOLERANCE,
        {"BGR for RGB": apart(bgr, expected.image), "raw feature taken for unit": apart(raw, expected.image)},
    )  # fmt: skip


def _large(tower: ImageTower, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    parts = [tower.features(pixels[i : i + CHUNK]) for i in range(0, len(pixels), CHUNK)]
    return np.concatenate([raw for raw, _ in parts]), np.concatenate([image for _, image in parts])


def check_query_head(folder: Path, given: Material, expected: Originals) -> Check:
    assert expected.query is not None
    composer = Composer.load(folder)
    features = composer.features(list(zip(expected.sentence, given.words, strict=True)))
    swapped = type(features)(features.words, features.picture, features.composed)
    return Check(
        "query_head.onnx", len(given.words), apart(composer.query(features, "tuned"), expected.query), TOLERANCE,
        {"composed and words swapped": apart(composer.query(swapped, "tuned"), expected.query)},
    )  # fmt: skip


def check_target_head(folder: Path, expected: Originals) -> Check:
    tower = ImageTower(folder / "cloud", read_cloud(folder))
    union = tower.union(expected.image_raw)
    if union is None or expected.union is None:
        raise BadBundle(f"{folder}: manifest promises union targets but the target head is missing")
    return Check(
        "target_head.onnx", len(union), apart(union, expected.union), TOLERANCE,
        {"image feature left as it was": apart(expected.image, expected.union)},
    )  # fmt: skip


def check_baselines(folder: Path, given: Material, expected: Originals) -> list[Check]:
    assert expected.control is not None and expected.symmetric is not None
    tower = Graph(folder / "cloud" / read_cloud(folder).image_tower["fp32"].file)
    (places,) = tower.run(["places"], {"pixels": given.large})
    (sentence,) = Graph(folder / "baselines" / "symmetric.onnx").run(["sentence"], {"places": places})
    feeds = {"composed": expected.composed, "picture": expected.picture, "words": expected.words}
    head = Graph(folder / "baselines" / "query_head_control.onnx")
    (control,) = head.run(["query"], feeds)
    (swapped,) = head.run(["query"], {**feeds, "composed": expected.words, "words": expected.composed})
    (moved,) = Graph(folder / "baselines" / "symmetric.onnx").run(["sentence"], {"places": places[..., ::-1].copy()})
    return [
        Check(
            "symmetric.onnx", len(sentence), token_distance(sentence, expected.symmetric), TOLERANCE,
            {"channels reversed": token_distance(moved, expected.symmetric)},
        ),
        Check(
            "query_head_control.onnx", len(control), apart(control, expected.control), TOLERANCE,
            {"composed and words swapped": apart(swapped, expected.control)},
        ),
    ]  # fmt: skip


def as_report(checks: list[Check]) -> list[dict[str, object]]:
    """JSON-ready records."""
    return [asdict(check) for check in checks]


def made_with() -> dict[str, object]:
    """What a report says of the tools and the machine."""
    return {
        "opset": OPSET,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "onnx": onnx.__version__,
            "onnxruntime": runtime_version(), "numpy": np.__version__,
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip
