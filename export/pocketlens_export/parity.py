"""Does a written graph give what the torch module gave, through the device's and the cloud's own runtimes?

Each check also makes a classic mistake on purpose: if that mistake would pass (its difference is under ten times
the tolerance) the check proves nothing and the export is refused as surely as if the graph were wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.towers import ImageTower, Row, TextTower
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.catalogue import random_edits, random_spec
from pocketlens_samples.draw import draw_picture, draw_sketch
from pocketlens_samples.language import edit_phrase
from pocketlens_training.checkpoint import Trained
from pocketlens_training.text import composed_prompt, load_tokenizer, rows
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import read_cloud

Floats = NDArray[np.float32]

TOLERANCE = 2e-5
"""Largest |difference| allowed on a feature of unit length, or on a token in units of the mean token norm.
The same machine runs both sides, so this is rounding alone; measured values stand in the bundle's report.json."""
ELSEWHERE = 1e-4
"""The same on a machine that was not there at export (`doctor`): other kernels sum in another order."""
TEETH = 10.0
"""A classic mistake must differ by at least this many tolerances."""


class NotEqual(Exception):
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
    """What the checks run on: pixels uint8 (n, side, side, 3) of photos and sketches, and modifier texts (n)."""

    pixels: NDArray[np.uint8]
    words: list[str]


def material(count: int, seed: int) -> Material:
    """Drawn anew from `seed`, held-out combinations among them; every fourth picture is a sketch."""
    rng = np.random.default_rng([seed, 77])
    specs = [random_spec(rng, held_out=None) for _ in range(count)]
    pixels = [(draw_sketch if i % 4 == 3 else draw_picture)(spec, seed + i) for i, spec in enumerate(specs)]
    words = [edit_phrase(spec, random_edits(spec, 1 + i % 2, rng), rng) for i, spec in enumerate(specs)]
    return Material(np.stack(pixels), words)


@dataclass(frozen=True)
class Originals:
    """What the torch modules give for a Material; features have unit length unless called raw."""

    sentence: Floats  # (n, k, width)
    composed: Floats  # (n, dim)
    picture: Floats
    words: Floats
    query: Floats
    image_raw: Floats
    image: Floats
    union: Floats
    control: Floats
    symmetric: Floats  # (n, k, width)


@torch.no_grad()
def originals(trained: Trained, given: Material) -> Originals:
    """The torch side, in float32 and without autocast."""
    pixels = torch.from_numpy(given.pixels)
    sentence = trained.student(pixels)

    def text(texts: list[str], tokens: torch.Tensor | None) -> torch.Tensor:
        built = rows(
            load_tokenizer(trained.tokenizer_file), texts, context=trained.recipe.context,
            tokens=0 if tokens is None else tokens.shape[1],
        )  # fmt: skip
        filled = torch.zeros(len(texts), 1, trained.recipe.word_width) if tokens is None else tokens
        raw = trained.teacher.text(built.token_ids, filled, built.sentence_start, built.sentence_length, built.end)
        return F.normalize(raw, dim=1)

    composed = text([composed_prompt(w, picture=True) for w in given.words], sentence)
    picture = text([composed_prompt("", picture=True)] * len(sentence), sentence)
    words = text([composed_prompt(w, picture=False) for w in given.words], None)
    raw, places = trained.teacher.image(pixels)
    made = (
        sentence, composed, picture, words, trained.heads.query(composed, picture, words), raw, F.normalize(raw, dim=1),
        trained.heads.target(raw), trained.control.query(composed, picture, words), trained.symmetric(places),
    )  # fmt: skip
    return Originals(*(tensor.numpy() for tensor in made))


def check_bundle(folder: Path, given: Material, expected: Originals) -> list[Check]:
    """Run every graph of the bundle in `folder` and compare. Raises NotEqual with all that failed."""
    checks = [
        check_encoder(folder, given.pixels, expected.sentence),
        check_text_tower(folder, given, expected),
        check_image_tower(folder, given, expected),
        check_query_head(folder, given, expected),
        check_target_head(folder, expected),
        *check_baselines(folder, given, expected),
    ]
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
    tokenizer = load_tokenizer(folder / "cloud" / manifest.tokenizer.file)
    built = rows(
        tokenizer, [composed_prompt(w, picture=True) for w in given.words], context=manifest.context,
        tokens=expected.sentence.shape[1],
    )  # fmt: skip

    def run(*, shift: int = 0, reverse: bool = False, late: int = 0) -> Floats:
        made = []
        for ids, start, end, tokens in zip(
            built.token_ids.tolist(),
            built.sentence_start.tolist(),
            built.end.tolist(),
            expected.sentence,
            strict=True,
        ):
            sequence = ids[: end + 1 - late]
            made.append(Row(sequence, tokens[::-1] if reverse else tokens, start + shift))
        return tower.run(made)

    return Check(
        "text_tower.onnx", 3 * len(given.words), difference, TOLERANCE,
        {
            "sentence one position late": apart(run(shift=1), expected.composed),
            "tokens in reverse order": apart(run(reverse=True), expected.composed),
            "read one token before the end": apart(run(late=1), expected.composed),
        },
    )  # fmt: skip


def check_image_tower(folder: Path, given: Material, expected: Originals) -> Check:
    tower = ImageTower(folder / "cloud", read_cloud(folder))
    raw, image = tower.features(given.pixels)
    bgr = tower.features(np.ascontiguousarray(given.pixels[..., ::-1]))[1]
    scale = float(np.linalg.norm(expected.image_raw, axis=1).mean())
    return Check(
        "image_tower.onnx", len(image),
        max(apart(image, expected.image), apart(raw, expected.image_raw) / scale), TOLERANCE,
        {"BGR for RGB": apart(bgr, expected.image), "raw feature taken for unit": apart(raw, expected.image)},
    )  # fmt: skip


def check_query_head(folder: Path, given: Material, expected: Originals) -> Check:
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
    if union is None:
        raise BadBundle(f"{folder}: manifest promises union targets but the target head is missing")
    return Check(
        "target_head.onnx", len(union), apart(union, expected.union), TOLERANCE,
        {"image feature left as it was": apart(expected.image, expected.union)},
    )  # fmt: skip


def check_baselines(folder: Path, given: Material, expected: Originals) -> list[Check]:
    (places,) = Graph(folder / "cloud" / read_cloud(folder).image_tower.file).run(["places"], {"pixels": given.pixels})
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
