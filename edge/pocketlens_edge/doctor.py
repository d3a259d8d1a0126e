"""Prove a bundle on the machine it runs on, and that a server speaks its language.

Owns the checks and their order; each says what it found in one line and hands on its figures. Those that need a
server are doctor_server.py's. Called by the command line. The export room calls `replay`: a bundle is accepted only
if the device's own code reproduces it."""

from __future__ import annotations

import io
import math
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_wire.api_key import ApiKey
from pocketlens_wire.errors import BadBundle, PocketlensError
from pocketlens_wire.manifest import EdgeManifest, read_edge, resolve_half
from pocketlens_wire.tokens import Encoding, pack

from pocketlens_edge.check import Check, failed
from pocketlens_edge.connection import Tls
from pocketlens_edge.doctor_server import examine_server
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.engines import AUTO, ENGINE
from pocketlens_edge.runtime import offered_providers, runtime_version

Found = TypeVar("Found")

_PHOTO = (640, 480)  # the picture that latency is measured with: what a small camera preview gives
_ROUNDS = 15  # medians of so many


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
    engines: Path | None = None,
    server: str | None = None,
    timeout_s: float = 5.0,
    tls: Tls | None = None,
    api_key: ApiKey | None = None,
) -> list[Check]:
    """Every check that can be made, in order; one whose ground is missing is left out.

    `precision` names the only form of the encoder to examine; None: the most exact one, and the others' golden
    pictures. Raises nothing of ours: a PocketlensError becomes the failed check's sentence."""
    checks: list[Check] = []

    def attempt(name: str, examination: Callable[[], tuple[Found, Check]]) -> Found | None:
        try:
            found, check = examination()
        except PocketlensError as error:
            checks.append(failed(name, error))
            return None
        checks.append(check)
        return found

    checks.append(_machine())
    manifest = attempt("bundle", lambda: _bundle(bundle))
    if manifest is None:
        return checks
    folder = resolve_half(bundle, "edge")
    encoder = attempt("encoder", lambda: _encoder(bundle, threads, precision, providers, engines))
    if encoder:
        attempt("golden", lambda: _golden("golden", encoder, folder))
        attempt("latency", lambda: _latency(encoder))
        checks.append(_memory())
    chosen = manifest.graphs.get(precision) if precision else manifest.graph()
    # Not every form has an engine.
    others = [AUTO] if providers is not None and [name.lower() for name in providers] == [ENGINE] else providers
    for form in manifest.graphs if precision is None else ():
        if manifest.graphs[form] is not chosen:
            attempt(f"golden {form}", lambda form=form: _other_form(bundle, form, threads, others, engines))
    if server and chosen:
        checks += examine_server(server, manifest, chosen.encoder, timeout_s=timeout_s, tls=tls, api_key=api_key)
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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pixels, sentence = arrays["pixels"], arrays["sentence"]
        pixels, sentence = pixels.astype(np.uint8, casting="safe"), sentence.astype(np.float32, casting="same_kind")
    except Exception as error:  # numpy and zipfile raise many kinds on a broken file; all mean this
        raise BadBundle(
            f"{path}: not a file of golden vectors (pixels, sentence): {error}. Get the bundle again."
        ) from error
    side = manifest.picture.side
    count = len(pixels) if pixels.ndim else 0
    wanted = ((count, side, side, 3), (count, manifest.token_count, manifest.token_width))
    if count == 0 or (pixels.shape, sentence.shape) != wanted:
        raise BadBundle(
            f"{path}: golden arrays of shape {pixels.shape} and {sentence.shape}; expected {wanted}. "
            "Get the bundle again."
        )
    return pixels, sentence


def _max_angle_deg(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Largest angle between rows along the last axis. By the chord, since arccos is blind near zero."""
    with np.errstate(invalid="ignore"):  # a row of zeros has no direction: NaN
        units = [
            array / np.linalg.norm(array, axis=-1, keepdims=True)
            for array in (ours.astype(float), theirs.astype(float))
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
    return manifest, Check(
        name="bundle",
        ok=True,
        said=f"{manifest.name}: hashes hold; {tokens}; {manifest.token_space}; {folder}",
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
    bundle: Path, threads: int, precision: str | None, providers: Sequence[str] | None, engines: Path | None
) -> tuple[Encoder, Check]:
    encoder = Encoder.load(bundle, threads=threads, precision=precision, providers=providers, engines=engines)
    others = [name for name in offered_providers() if name != encoder.provider]
    said = f"{encoder.encoder_id} in {encoder.form} runs on {encoder.provider}, {encoder.threads} thread(s)"
    if others:
        said += f"; also offered, with --provider: {', '.join(others)}"
    said += "".join(f"; {note}" for note in encoder.notes)
    return encoder, Check(
        name="encoder",
        ok=True,
        warn=bool(encoder.notes),
        said=said,
        facts={
            "encoder": encoder.encoder_id,
            "precision": encoder.form,
            "provider": encoder.provider,
            "threads": encoder.threads,
            "notes": encoder.notes,
            "offered": offered_providers(),
        },
    )


def _golden(name: str, encoder: Encoder, folder: Path) -> tuple[Replay, Check]:
    replayed = replay(encoder, folder)
    relation = "within" if replayed.ok else "BEYOND"
    said = (
        f"{replayed.pictures} pictures off by {replayed.max_difference:.1e}, {relation} "
        f"{replayed.tolerance:.1e}; angle {replayed.max_angle_deg:.3f}°"
    )
    # JSON has no NaN.
    facts = {name: value if math.isfinite(value) else None for name, value in asdict(replayed).items()}
    return replayed, Check(name=name, ok=replayed.ok, said=said, facts=facts)


def _other_form(
    bundle: Path, form: str, threads: int, providers: Sequence[str] | None, engines: Path | None
) -> tuple[Replay, Check]:
    encoder = Encoder.load(bundle, threads=threads, precision=form, providers=providers, engines=engines)
    return _golden(f"golden {form}", encoder, resolve_half(bundle, "edge"))


def _memory() -> Check:
    """Called before other forms of the encoder are loaded: what one who uses this form needs."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = usage if platform.system() == "Darwin" else usage * 1024
    said = f"peak of this process {peak_bytes / 1e6:.0f} MB, with everything above in it"
    return Check(name="memory", ok=True, said=said, facts={"peak_bytes": peak_bytes})


def _latency(encoder: Encoder) -> tuple[dict[str, float], Check]:
    photo = _photo()
    encoder.encode_timed(photo)  # the first run also allocates
    rounds = [encoder.encode_timed(photo) for _ in range(_ROUNDS)]
    times_ms = {stage: median(encoded.times_ms[stage] for encoded in rounds) for stage in rounds[0].times_ms}
    times_ms["pack"] = _median_ms(lambda: pack(rounds[0].tokens, Encoding.INT8))
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in times_ms.items())
    said = f"{stages} ms at {_PHOTO[0]}x{_PHOTO[1]}"
    facts = {"times_ms": times_ms, "photo": list(_PHOTO), "rounds": _ROUNDS}
    return times_ms, Check(name="latency", ok=True, said=said, facts=facts)


def _photo() -> bytes:
    """A JPEG about as busy as a photo: coarse noise, smoothly enlarged."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(_PHOTO, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _median_ms(action: Callable[[], object]) -> float:
    """Milliseconds an action takes, median of _ROUNDS."""
    times: list[float] = []
    for _ in range(_ROUNDS):
        start = perf_counter()
        action()
        times.append(1e3 * (perf_counter() - start))
    return median(times)
