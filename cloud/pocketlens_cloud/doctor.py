"""Prove a bundle and a gallery on this machine.

Replays the bundle's golden vectors through the towers and heads that serving and indexing use, and says
what was found line by line. Prints nothing itself (cli.py does)."""

import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf
import grpc
import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import PocketlensError

from pocketlens_cloud import runtime, service
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.folder import open_gallery
from pocketlens_cloud.gallery.following import FollowingGallery, pinned
from pocketlens_cloud.serving.server import require_upb
from pocketlens_cloud.towers import ImageTower


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    what: str
    detail: str
    ok: bool = True


def examine(bundle: Path, gallery: Path | None = None) -> Iterator[Finding]:
    """Findings in order, each as soon as it is made; what fails ends its own section only."""
    yield from _guarded("versions", _versions())
    yield from _guarded("bundle", _bundle(bundle))
    if gallery is not None:
        yield from _guarded("gallery", _gallery(bundle, gallery))


def _guarded(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except PocketlensError as error:
        yield Finding(what, str(error), ok=False)


def _versions() -> Iterator[Finding]:
    yield Finding(
        "versions",
        f"pocketlens {service.version()}, Python {platform.python_version()}, "
        f"onnxruntime {runtime.version()}, grpcio {grpc.__version__}, protobuf {google.protobuf.__version__}",
    )
    require_upb()


def _bundle(bundle: Path) -> Iterator[Finding]:
    folder, manifest = open_cloud_half(bundle)
    yield Finding("bundle", f"{manifest.name} in {folder}: every file has its hash")
    yield Finding("spaces", f"token space {manifest.token_space}, gallery space {manifest.gallery_space}")
    with np.load(folder / manifest.golden.file, allow_pickle=False) as golden:
        for precision, form in manifest.text_tower.items():
            composer = Composer.load(folder, precision=precision)
            yield Finding("provider", f"{precision} text tower on {composer.provider}")
            yield from _compared(composer, golden, precision, form.tolerance)
        for precision, form in manifest.image_tower.items():
            tower = ImageTower(folder, manifest, precision=precision)
            yield Finding("provider", f"{precision} image tower on {tower.provider}")
            yield from _compared(tower, golden, precision, form.tolerance)


def _asked(composer: Composer, golden: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(golden name, what this machine computes) of everything that comes through the text tower."""
    asks = [(sentence, str(words)) for sentence, words in zip(golden["sentence"], golden["words"], strict=True)]
    features = composer.features(asks)
    yield "composed", features.composed
    yield "picture", features.picture
    yield "words_feature", features.words
    if "query" in golden:
        yield "query", composer.query(features, "tuned")


def _seen(tower: ImageTower, golden: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The same of everything that comes through the image tower."""
    image_raw, image = tower.features(golden["pixels"])
    yield "image_raw", image_raw
    yield "image", image
    union = tower.union(image_raw)
    if union is not None:
        yield "union", union


def differences(through: Composer | ImageTower, golden: Any) -> Iterator[tuple[str, float, float]]:
    """(golden name, largest difference on this machine, its scale) of all that comes through a tower.

    Scale: 1, or the largest golden number beyond it, as raw features are not of unit length. Shapes that differ are
    infinitely far apart."""
    found = _asked(through, golden) if isinstance(through, Composer) else _seen(through, golden)
    for name, came in found:
        wanted = golden[name]
        far = float(np.abs(came - wanted).max()) if came.shape == wanted.shape else math.inf
        yield name, far, max(1.0, float(np.abs(wanted).max()))


def _compared(through: Composer | ImageTower, golden: Any, precision: str, tolerance: float) -> Iterator[Finding]:
    for name, far, scale in differences(through, golden):
        said = f"worst difference {far:.2e}, allowed {tolerance * scale:.2e}"
        yield Finding(f"{name}, {precision}", said, ok=far <= tolerance * scale)


def _gallery(bundle: Path, path: Path) -> Iterator[Finding]:
    _, manifest = open_cloud_half(bundle)
    with open_gallery(path) as opened, pinned(opened) as gallery:
        if isinstance(opened, FollowingGallery):
            yield Finding("version", f"{gallery.title} is live")
        held = f"vectors {', '.join(gallery.vectors)}, keys {', '.join(gallery.payload_keys)}"
        yield Finding("gallery", f"{gallery.size} pictures, {held}", ok=gallery.size > 0)
        ours, theirs = gallery.gallery_space, manifest.gallery_space
        yield Finding("gallery space", f"gallery {ours}, bundle {theirs}", ok=ours == theirs)
        state = "settled" if gallery.settled else "an indexing was cut short; run it again"
        yield Finding("generation", f"{gallery.generation}: {state}", ok=gallery.settled)
