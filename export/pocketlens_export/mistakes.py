"""Classic mistakes of a deployment, made on purpose and put before the gate.

A gate that lets another picture's tokens pass proves nothing, and is refused. The others are for the report: each shows
how far a mistake moves the tokens and what it costs, caught or not. Called by forms.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from pocketlens_training.sets.lines import BadLines
from pocketlens_wire.manifest import EdgeManifest
from pocketlens_wire.pictures import RESAMPLES, PictureSpec, fit

from pocketlens_export.gate import ALLOWED, Changes, Judge, passes
from pocketlens_export.quantize import Bench, Floats, Recipe, Squares, cosines, encoder_of

FOREIGN = "another picture's sentence"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake. cosine: of its tokens with the right ones, the mean; caught: whether the gate refuses it."""

    name: str
    cosine: float
    changes: Changes
    caught: bool


def make(judge: Judge, manifest: EdgeManifest, bench: Bench) -> list[Mistake]:
    """Every mistake that can be made with these pictures. Raises BadLines when the gate would let FOREIGN pass."""
    found = []
    for name, tokens in _tokens(judge, manifest, bench).items():
        changes = judge.changes(tokens)
        cosine = float(cosines(tokens, judge.tokens).mean())
        found.append(Mistake(name=name, cosine=cosine, changes=changes, caught=not passes(changes)))
    if not found[0].caught:
        raise BadLines(
            f"{judge.kind}: with {FOREIGN} they lose less than {ALLOWED} points of recall@10, so they cannot judge a "
            "form. Give questions whose answer depends on their picture"
        )
    return found


def _tokens(judge: Judge, manifest: EdgeManifest, bench: Bench) -> dict[str, Floats]:
    right, spec = judge.tokens, manifest.picture
    original = encoder_of(bench.source, manifest)
    other = "squash" if spec.fit == "crop" else "crop"
    seen: dict[str, Squares] = {
        "BGR for RGB": np.ascontiguousarray(judge.pixels[..., ::-1]),
        "grey levels halved (normalised twice)": judge.pixels // 2,
        "rows and columns swapped": np.ascontiguousarray(judge.pixels.transpose(0, 2, 1, 3)),
        "resized without antialiasing": judge.seen(_aliased),
        f"{other} in place of {spec.fit}": judge.seen(lambda picture, spec: fit(picture, _with_fit(spec, other))),
    }
    noise = np.random.default_rng(0).integers(0, 256, bench.calibration.shape, dtype=np.uint8)
    blind = Bench(bench.source, noise, bench.held_out, bench.folder / "blind")
    recipe = Recipe(channels=False, ranges="minmax", pictures=len(noise))
    return {
        FOREIGN: np.roll(right, 1, axis=0),
        "tokens in the opposite order": np.ascontiguousarray(right[:, ::-1]),
        "tokens brought to unit length": right / np.linalg.norm(right, axis=-1, keepdims=True),
        **{name: judge.read(original, pixels) for name, pixels in seen.items() if (pixels != judge.pixels).any()},
        "int8 with ranges of noise": judge.read(encoder_of(blind.try_out(recipe, "noise").path, manifest)),
    }


def _aliased(picture: Image.Image, spec: PictureSpec) -> Squares:
    """As libraries shrink that take as many pixels as if they enlarged."""
    short = min(picture.size)
    kept = (short, short) if spec.fit == "crop" else picture.size
    left, top = ((full - part) / 2 for full, part in zip(picture.size, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    made = picture.convert("RGB").transform(
        (spec.side, spec.side), Image.Transform.EXTENT, box, RESAMPLES[spec.resample]
    )
    return np.asarray(made)


def _with_fit(spec: PictureSpec, other: str) -> PictureSpec:
    return PictureSpec(spec.side, other, spec.resample)
