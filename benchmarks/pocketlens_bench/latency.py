"""How long a query takes and how many bytes it sends, stage by stage, all in one run and with one thread.

Owns what is timed: the device's stages, the student against the large image tower, the way through a real server
process on loopback, the server's start, a first query beside later ones. Pictures are files, the client is the
device's own. Called by cli/latency.py."""

import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.indexing import ingest
from pocketlens_cloud.towers import ImageTower
from pocketlens_edge.client import Answer, Client
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.questions import Mode, mode_name
from pocketlens_samples.queries import ComposedSet, composed_set, write_gallery
from pocketlens_wire.pictures import fit, open_picture
from pocketlens_wire.tokens import Encoding, pack

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.protocols.figures import CONFIDENCE, RESAMPLES, Measured
from pocketlens_bench.proxy import CountingProxy
from pocketlens_bench.server import Running, serving
from pocketlens_bench.world import OnProgress, photographed, silently

THREADS = 1  # of every model run, on both sides
WARM_UP = 10  # rounds not counted
STARTS = 10  # servers started, each asked one first question
QUERIES = 100  # pictures and words taken in turn
CAMERA = (4032, 3024)  # a phone's 12 megapixels
CAMERA_ROUNDS = 50  # at most: each decodes 12 megapixels
EIGHT_WORDS = "make it red and put it on grass"
COUNTED = 20  # queries whose bytes are counted after the first
SETTLE_S = 0.1  # for the connection's own frames to pass before bytes are read off

Times = Mapping[str, float]  # milliseconds by stage
Tokens = NDArray[np.float32]  # (token_count, token_width)


def measure(
    bundle: Path,
    *,
    rounds: int = 200,
    gallery: int = 3000,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench latency` says, as one JSON object; times in ms unless a name says otherwise.

    Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    found = composed_set(queries=min(QUERIES, gallery // 5), gallery=gallery)
    files = photographed([query.anchor for query in found.queries])
    encoder = Encoder.load(bundle, threads=THREADS)
    ratio = student_and_teacher(bundle, encoder, files, rounds, seed, on_progress)
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder:
        shelf = Path(folder) / "gallery"
        anchors, camera = stored(files, Path(folder)), stored([camera_photo()], Path(folder) / "camera")
        tables = [
            edge_table("device, sample picture", encoder, anchors, rounds, on_progress),
            edge_table("device, 12 megapixel photo", encoder, camera, min(rounds, CAMERA_ROUNDS), on_progress),
        ]
        shelve(bundle, found, Path(folder) / "pictures", shelf, on_progress)
        starts = [start_once(bundle, shelf, anchors[0], found.queries[0].text) for _ in range(STARTS)]
        with serving(bundle, shelf, threads=THREADS) as server:
            warm = end_to_end(server, encoder, anchors, found, rounds, on_progress)
            request = request_bytes(server, encoder, files[0])
    cold = table("end to end, first query", [start["first_query"] for start in starts])
    tables += [*warm, cold]
    return {
        "benchmark": "latency",
        "set": "sample",
        "tables": tables,
        "student_and_teacher": ratio,
        "request": request,
        "start": {
            "starts": STARTS,
            "ready_s": median([start["ready_s"] for start in starts]),
            "first_answer_s": median([start["first_answer_s"] for start in starts]),
        },
        "first_query": {
            "cold_ms": cold["stages"]["round_trip"]["p50_ms"],
            "warm_ms": warm[0]["stages"]["round_trip"]["p50_ms"],
        },
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"device": THREADS, "cloud": THREADS},
            providers=ratio.pop("providers"),
            seeds={"bootstrap": seed},
            sizes={"rounds": rounds, "gallery": gallery, "queries": len(files)},
        ),
    }


# --- the device


def edge_table(
    title: str, encoder: Encoder, files: Sequence[Path], rounds: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Open, decode, fit, encode, pack (to serialised bytes)."""

    def once(i: int) -> Times:
        tokens, took = encoded(encoder, files[i % len(files)])
        packing = perf_counter()
        pack(tokens).SerializeToString()
        packed = {"pack": _ms_since(packing)}
        return {**took, **packed, "all": sum(took.values()) + packed["pack"]}

    return table(title, repeat(once, rounds, title, on_progress))


def encoded(encoder: Encoder, file: Path) -> tuple[Tokens, dict[str, float]]:
    """A picture file's tokens, and the device's stages: `open` reads the file, which lies in the system's cache."""
    opening = perf_counter()
    content = file.read_bytes()
    opened = _ms_since(opening)
    came = encoder.encode_timed(content)
    decode = came.times_ms["open"]  # of content that is in memory there is nothing else to open
    return came.tokens, {"open": opened, "decode": decode, **{k: v for k, v in came.times_ms.items() if k != "open"}}


def stored(files: Sequence[bytes], folder: Path) -> list[Path]:
    """The pictures as files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{place:04d}.jpg" for place in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def camera_photo(blobs: int = 48) -> bytes:
    """A JPEG as large as a phone's, with enough noise to be as heavy. blobs: patches of colour from top to bottom,
    which decide how heavy it is when made small."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (blobs, blobs * 4 // 3, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize(CAMERA, Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def student_and_teacher(
    bundle: Path, encoder: Encoder, files: Sequence[bytes], rounds: int, seed: int, on_progress: OnProgress
) -> dict[str, Any]:
    """One picture through the student's graph and through the large tower's, in turn; medians and their ratio."""
    folder, manifest = open_cloud_half(bundle)
    tower = ImageTower(folder, manifest, threads=THREADS)
    pictures = [open_picture(file) for file in files]
    small = [fit(picture, encoder.manifest.picture)[None] for picture in pictures]
    large = [fit(picture, manifest.picture)[None] for picture in pictures]

    def student(i: int) -> float:
        began = perf_counter()
        encoder.encode_pixels(small[i % len(small)])
        return _ms_since(began)

    def teacher(i: int) -> float:
        began = perf_counter()
        tower.features(large[i % len(large)])
        return _ms_since(began)

    def once(i: int) -> Times:
        if i % 2:  # neither always comes after the other
            return {"teacher": teacher(i), "student": student(i)}
        return {"student": student(i), "teacher": teacher(i)}

    times = repeat(once, rounds, "student and teacher", on_progress)
    faster = ratio_of_medians([t["teacher"] for t in times], [t["student"] for t in times], seed=seed)
    return {
        "student_ms": median([t["student"] for t in times]),
        "teacher_ms": median([t["teacher"] for t in times]),
        "times_faster": asdict(faster),
        "rounds": rounds,
        "million_multiply_adds": multiply_adds(bundle),
        "providers": {"device": encoder.provider, "cloud": tower.provider},
    }


def ratio_of_medians(of: Sequence[float], over: Sequence[float], *, seed: int) -> Measured:
    """Median of `of` / median of `over`, with a bootstrap interval over the paired rounds."""
    above, below = np.array(of), np.array(over)
    drawn = np.random.default_rng(seed).integers(0, len(above), (RESAMPLES, len(above)))
    ratios = np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measured(float(np.median(above) / np.median(below)), float(low), float(high))


def multiply_adds(bundle: Path) -> dict[str, float] | None:
    """Millions for one picture, as export counted them into the bundle's report; None if it did not."""
    try:
        cost = json.loads((bundle / "report.json").read_text(encoding="utf-8"))["cost"]
        return {
            "student": cost["student"]["multiply_adds"] / 1e6,
            "teacher": cost["teacher_image_tower"]["multiply_adds"] / 1e6,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- the whole way


def shelve(bundle: Path, found: ComposedSet, pictures: Path, gallery: Path, on_progress: OnProgress) -> None:
    """The gallery's pictures as files, indexed as `pocketlens-cloud index` does."""
    total = len(found.gallery)
    write_gallery(pictures, found.gallery, processes=1, on_done=lambda done: on_progress("draw gallery", done, total))
    ingest.index(
        pictures,
        gallery,
        bundle,
        threads=THREADS,
        on_progress=lambda done, of: on_progress("index gallery", done, of),
    )


def start_once(bundle: Path, gallery: Path, file: Path, words: str) -> dict[str, Any]:
    """Start a server and ask it one question with a new client and a newly loaded encoder; stop it.

    first_query: as `stages`, and `load`, the encoder's verification and loading, which no later query pays."""
    with serving(bundle, gallery, threads=THREADS) as server:
        began = perf_counter()
        encoder = Encoder.load(bundle, threads=THREADS)
        load = _ms_since(began)
        with client_of(encoder, server.address) as client:
            tokens, took = encoded(encoder, file)
            asking = perf_counter()
            answer = client.search(tokens, words)
            ended = perf_counter()
        times = stages(took, answer, search_ms=1e3 * (ended - asking), whole_ms=1e3 * (ended - began))
        return {
            "ready_s": server.ready_s,
            "first_answer_s": server.ready_s + ended - asking,
            "first_query": {"load": load, **times},
        }


def end_to_end(
    server: Running, encoder: Encoder, files: Sequence[Path], found: ComposedSet, rounds: int, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """Picture file and words to answer, one table per mode; the modes take turns."""
    with client_of(encoder, server.address) as client:
        modes = [Mode(mode) for mode in _modes(client)]

        def once(i: int, mode: Mode) -> Times:
            at = i % len(files)
            began = perf_counter()
            tokens, took = encoded(encoder, files[at])
            asking = perf_counter()
            answer = client.search(tokens, found.queries[at].text, mode=mode)
            return stages(took, answer, search_ms=_ms_since(asking), whole_ms=_ms_since(began))

        both = repeat(lambda i: {mode: once(i, mode) for mode in modes}, rounds, "end to end", on_progress)
    return [table(f"end to end, {mode}", [times[mode] for times in both]) for mode in modes]


def stages(device: Times, answer: Answer, *, search_ms: float, whole_ms: float) -> Times:
    """The stages of one query in their order. `round_trip` is `transport` and the five of the server."""
    came = answer.times_ms
    return {
        **device,
        "pack_and_read": search_ms - came["round_trip"],
        "round_trip": came["round_trip"],
        "transport": came["round_trip"] - came["total"],
        **{name: came[name] for name in ("check", "queue", "text_tower", "heads", "search")},
        "all": whole_ms,
    }


def request_bytes(server: Running, encoder: Encoder, file: bytes) -> dict[str, Any]:
    """One question of eight words in every encoding: its message, and what its connection carries upwards."""
    tokens = encoder.encode(open_picture(file))
    return {
        "words": len(EIGHT_WORDS.split()),
        "encodings": {str(encoding): counted(server, encoder, tokens, encoding) for encoding in Encoding},
    }


def counted(server: Running, encoder: Encoder, tokens: Any, encoding: Encoding) -> dict[str, float]:
    """Bytes of the message; on the wire with the first question and as a mean of later ones; of a reply."""
    with CountingProxy(server.address) as proxy, client_of(encoder, proxy.address, encoding) as client:
        answer = client.search(tokens, EIGHT_WORDS)
        time.sleep(SETTLE_S)
        first_up, first_down = proxy.up, proxy.down
        for _ in range(COUNTED):
            client.search(tokens, EIGHT_WORDS)
        time.sleep(SETTLE_S)
        return {
            "message_bytes": answer.request_bytes,
            "first_wire_bytes": first_up,
            "wire_bytes": round((proxy.up - first_up) / COUNTED),
            "reply_wire_bytes": round((proxy.down - first_down) / COUNTED),
        }


def client_of(encoder: Encoder, address: str, encoding: Encoding = Encoding.INT8) -> Client:
    """The device's client for the encoder's bundle."""
    return Client(address, encoder, encoding=encoding, timeout_s=30.0)


def _modes(client: Client) -> list[str]:
    """What the server offers, its default first."""
    described = client.describe()
    names = [mode_name(mode) for mode in described.modes]
    return sorted(names, key=lambda name: name != mode_name(described.default_mode))


# --- times


def repeat(once: Callable[[int], Any], rounds: int, what: str, on_progress: OnProgress) -> list[Any]:
    """What `once` gives in each round, after a warm-up."""
    for i in range(WARM_UP):
        once(i)
    times = []
    for i in range(rounds):
        times.append(once(i))
        on_progress(what, i + 1, rounds)
    return times


def table(title: str, times: Sequence[Times]) -> dict[str, Any]:
    """Quantiles of each stage over the rounds; those of a sum are not sums of quantiles."""
    return {
        "title": title,
        "rounds": len(times),
        "stages": {
            stage: dict(
                zip(
                    ("p50_ms", "p95_ms", "p99_ms"),
                    (float(q) for q in np.quantile([t[stage] for t in times], (0.5, 0.95, 0.99))),
                    strict=True,
                )
            )
            for stage in times[0]
        },
    }


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _ms_since(began: float) -> float:
    return 1e3 * (perf_counter() - began)
