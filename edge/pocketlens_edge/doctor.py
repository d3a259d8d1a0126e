"""Prove a bundle on the machine it runs on, and that a server speaks its language.

Owns the checks and their order; each says what it found in one line and hands on its figures. Called by
cli.py. The export room calls `replay`: a bundle is accepted only if the device's own code reproduces it."""

from __future__ import annotations

import io
import platform
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_wire.errors import BadBundle, PocketlensError, SpaceMismatch
from pocketlens_wire.manifest import EdgeManifest, read_edge, resolve_half
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1.retrieval_pb2 import DescribeReply

from pocketlens_edge.client import Client
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.runtime import offered_providers, runtime_version

Found = TypeVar("Found")

_PHOTO = (640, 480)  # the picture that latency is measured with: what a small camera preview gives
_ROUNDS = 15  # medians of so many


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing examined. said: for people, one line. facts: the same and more for programs."""

    name: str
    ok: bool
    said: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Golden pictures run again here.

    pictures: how many. max_difference: largest absolute difference of a number. tolerance: largest allowed.
    max_angle_deg: largest angle between a token and its golden one, degrees; blind to length."""

    pictures: int
    max_difference: float
    tolerance: float
    max_angle_deg: float

    @property
    def ok(self) -> bool:
        return self.max_difference <= self.tolerance  # false for NaN


def examine(
    bundle: Path,
    *,
    threads: int = 1,
    precision: str | None = None,
    providers: Sequence[str] | None = None,
    server: str | None = None,
    timeout_s: float = 5.0,
) -> list[Check]:
    """Every check that can be made, in order; one whose ground is missing is left out.

    Raises nothing of ours: a PocketlensError becomes the failed check's sentence."""
    checks: list[Check] = []

    def attempt(name: str, examination: Callable[[], tuple[Found, Check]]) -> Found | None:
        try:
            found, check = examination()
        except PocketlensError as error:
            checks.append(Check(name=name, ok=False, said=str(error), facts={"kind": type(error).__name__}))
            return None
        checks.append(check)
        return found

    checks.append(_machine())
    manifest = attempt("bundle", lambda: _bundle(bundle))
    if manifest:
        encoder = attempt("encoder", lambda: _encoder(bundle, threads, precision, providers))
        if encoder:
            attempt("golden", lambda: _golden(encoder, resolve_half(bundle, "edge")))
            attempt("latency", lambda: _latency(encoder))
        if server:
            attempt("server", lambda: _server(server, manifest, precision, timeout_s))
    return checks


def replay(encoder: Encoder, folder: Path) -> Replay:
    """Run the golden pictures of the edge half in `folder` and compare.

    Raises BadBundle for a file that cannot be used; a difference is for the caller to judge (`Replay.ok`)."""
    pixels, golden = _read_golden(folder / encoder.manifest.golden.file, encoder.manifest)
    tokens = encoder.encode_pixels(pixels)
    return Replay(
        pictures=len(pixels),
        max_difference=float(np.abs(tokens - golden).max()),
        tolerance=encoder.tolerance,
        max_angle_deg=_max_angle_deg(tokens, golden),
    )


def _read_golden(path: Path, manifest: EdgeManifest) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels uint8 (n, side, side, 3) and sentence float32 (n, token_count, token_width), n at least 1."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, sentence = arrays["pixels"], arrays["sentence"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadBundle(
            f"{path}: not a file of golden vectors (pixels, sentence): {error}. Get the bundle again."
        ) from error
    side = manifest.picture.side
    wanted = ((len(pixels), side, side, 3), (len(pixels), manifest.token_count, manifest.token_width))
    if len(pixels) == 0 or (pixels.shape, sentence.shape) != wanted:
        raise BadBundle(
            f"{path}: golden arrays of shape {pixels.shape} and {sentence.shape}; expected {wanted}. "
            "Get the bundle again."
        )
    return pixels.astype(np.uint8, copy=False), sentence.astype(np.float32, copy=False)


def _max_angle_deg(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Largest angle between rows along the last axis. By the chord, since arccos is blind near zero."""
    units = [
        array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (ours.astype(float), theirs.astype(float))
    ]
    half_chords = np.linalg.norm(units[0] - units[1], axis=-1) / 2
    return float(np.degrees(2 * np.arcsin(np.minimum(half_chords, 1)).max()))


def _machine() -> Check:
    versions = {"python": platform.python_version(), "onnxruntime": runtime_version()}
    versions |= {name: _version(name) for name in ("numpy", "pillow", "grpcio", "pocketlens")}
    system = f"{platform.system()} {platform.machine()}"
    said = f"{system}; " + ", ".join(f"{name} {number}" for name, number in versions.items())
    return Check(name="machine", ok=True, said=said, facts={"system": system, "versions": versions})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _bundle(bundle: Path) -> tuple[EdgeManifest, Check]:
    folder = resolve_half(bundle, "edge")
    manifest = read_edge(folder)
    tokens = f"{manifest.token_count} tokens of width {manifest.token_width}"
    forms = ", ".join(manifest.graphs)
    return manifest, Check(
        name="bundle",
        ok=True,
        said=f"{manifest.name}: hashes hold; {tokens}; encoder in {forms}; {manifest.token_space}; {folder}",
        facts={
            "name": manifest.name,
            "folder": str(folder),
            "token_space": manifest.token_space,
            "encoders": {form: graph.encoder for form, graph in manifest.graphs.items()},
            "token_count": manifest.token_count,
            "token_width": manifest.token_width,
        },
    )


def _encoder(
    bundle: Path, threads: int, precision: str | None, providers: Sequence[str] | None
) -> tuple[Encoder, Check]:
    encoder = Encoder.load(bundle, threads=threads, precision=precision, providers=providers)
    others = [name for name in offered_providers() if name != encoder.provider]
    said = f"{encoder.encoder_id} in {encoder.form} runs on {encoder.provider}, {encoder.threads} thread(s)"
    if others:
        said += f"; also offered, with --provider: {', '.join(others)}"
    return encoder, Check(
        name="encoder",
        ok=True,
        said=said,
        facts={
            "encoder": encoder.encoder_id,
            "precision": encoder.form,
            "provider": encoder.provider,
            "threads": encoder.threads,
            "offered": offered_providers(),
        },
    )


def _golden(encoder: Encoder, folder: Path) -> tuple[Replay, Check]:
    replayed = replay(encoder, folder)
    relation = "within" if replayed.ok else "BEYOND"
    said = (
        f"{replayed.pictures} pictures: largest difference {replayed.max_difference:.1e}, {relation} the "
        f"tolerance {replayed.tolerance:.1e}; largest angle {replayed.max_angle_deg:.3f} degrees"
    )
    return replayed, Check(name="golden", ok=replayed.ok, said=said, facts=asdict(replayed))


def _latency(encoder: Encoder) -> tuple[dict[str, float], Check]:
    photo = _photo()
    encoder.encode_timed(photo)  # the first run also allocates
    rounds = [encoder.encode_timed(photo) for _ in range(_ROUNDS)]
    times_ms = {stage: median(encoded.times_ms[stage] for encoded in rounds) for stage in rounds[0].times_ms}
    times_ms["pack"] = _median_ms(lambda: pack(rounds[0].tokens, Encoding.INT8))
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in times_ms.items())
    said = f"{stages} ms, for a JPEG of {_PHOTO[0]} x {_PHOTO[1]}; medians of {_ROUNDS}"
    facts = {"times_ms": times_ms, "photo": list(_PHOTO), "rounds": _ROUNDS}
    return times_ms, Check(name="latency", ok=True, said=said, facts=facts)


def _photo() -> bytes:
    """A JPEG about as busy as a photo: coarse noise, smoothly enlarged."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(_PHOTO, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _server(
    server: str, manifest: EdgeManifest, precision: str | None, timeout_s: float
) -> tuple[DescribeReply, Check]:
    encoder = manifest.graph(precision).encoder
    with Client(server, token_space=manifest.token_space, encoder_id=encoder, timeout_s=timeout_s) as client:
        its = client.describe()
        round_trip_ms = _median_ms(client.describe)
    if its.token_space != manifest.token_space:
        raise SpaceMismatch(
            f"{server} speaks token space {its.token_space} (bundle {its.bundle}), this device "
            f"{manifest.token_space} (bundle {manifest.name}). Install the edge half of the server's bundle."
        )
    if encoder not in its.encoders:
        raise SpaceMismatch(
            f"{server} accepts encoders {', '.join(its.encoders) or 'none'}, this device has "
            f"{encoder}. Install the edge half of the server's bundle."
        )
    said = (
        f"{server}: same token space, encoder accepted; {its.gallery_size:,} pictures, {its.gallery_space}, "
        f"generation {its.generation}; server {its.server_version} on {its.provider}; "
        f"round trip {round_trip_ms:.1f} ms"
    )
    return its, Check(
        name="server",
        ok=True,
        said=said,
        facts={
            "server": server,
            "token_space": its.token_space,
            "gallery_space": its.gallery_space,
            "gallery_size": its.gallery_size,
            "generation": its.generation,
            "server_version": its.server_version,
            "provider": its.provider,
            "round_trip_ms": round_trip_ms,
        },
    )


def _median_ms(action: Callable[[], object]) -> float:
    """Milliseconds an action takes, median of _ROUNDS."""
    times: list[float] = []
    for _ in range(_ROUNDS):
        start = perf_counter()
        action()
        times.append(1e3 * (perf_counter() - start))
    return median(times)
