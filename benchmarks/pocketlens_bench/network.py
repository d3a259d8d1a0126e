"""Sentence tokens against the picture itself, over networks from LAN to 2G.

Owns the profiles, the ways of asking, and the table: bytes and time from the picture file to the answer. Every way
begins with the same 12 megapixel photo and ends with ten hits of galleries alike. Called by cli/network.py."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.queries import composed_set
from pocketlens_wire.errors import PocketlensError
from pocketlens_wire.tokens import Encoding

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import camera_photo, client_of, shelve
from pocketlens_bench.protocols.figures import CONFIDENCE, RESAMPLES
from pocketlens_bench.server import serving, serving_uploads
from pocketlens_bench.shaper import MODEL, Profile, Shaper
from pocketlens_bench.uploads import UploadClient, as_taken, as_the_tower_sees, made_smaller
from pocketlens_bench.world import OnProgress, silently

WORDS = "make it red and put it on grass"
THREADS = 1
BLOBS = 15  # the photo, made as small as the tower takes it, is then as heavy as photos usually are: about 4 KB
WPT = "WebPageTest's preset of that name; jitter and loss are ours"
PROFILES = (
    Profile(name="LAN", up_mbit=1000, down_mbit=1000, delay_ms=0.2, jitter_ms=0, loss=0, source="ours"),
    Profile(name="home Wi-Fi", up_mbit=20, down_mbit=50, delay_ms=10, jitter_ms=2, loss=0.001, source="ours"),
    Profile(name="4G", up_mbit=9, down_mbit=9, delay_ms=85, jitter_ms=5, loss=0.002, source=WPT),
    Profile(name="3G", up_mbit=0.768, down_mbit=1.6, delay_ms=150, jitter_ms=10, loss=0.005, source=WPT),
    Profile(name="2G", up_mbit=0.256, down_mbit=0.28, delay_ms=400, jitter_ms=20, loss=0.01, source=WPT),
)
BUDGET_S = 40.0  # of one way at one profile: decides its rounds, so that a p95 rests on twenty or more
MOST, FEWEST = 60, 3
LONG_S = 30.0  # a query that takes so long is asked once
TIMEOUT_S = 600.0
FIRST = 3  # connections opened for the first query's time
OURS = "tokens int8"
HONESTY = (
    "The network is simulated and the device is this machine's processor: a slower device lengthens every way that "
    "decodes the photo, tokens and resized uploads alike. Energy is not measured. All ways begin with one synthetic 12 "
    "megapixel photo."
)


@dataclass(frozen=True)
class Way:
    """One way of asking. ask: the whole way on an open connection; connect: makes one to an address."""

    name: str
    connect: Callable[[str, ExitStack], Callable[[bytes], None]]
    server: str  # address of the server it talks to


def measure(
    bundle: Path,
    *,
    profiles: Sequence[Profile] = PROFILES,
    gallery: int = 3000,
    budget_s: float = BUDGET_S,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench network` says, as one JSON object; times in ms.

    Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    encoder = Encoder.load(bundle, threads=THREADS)
    photo = camera_photo(BLOBS)
    failed: list[str] = []
    found = composed_set(queries=20, gallery=gallery)
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder, ExitStack() as open_:
        shelf, other = Path(folder) / "gallery", Path(folder) / "gallery-of-uploads"
        shelve(bundle, found, Path(folder) / "pictures", shelf, on_progress)
        shutil.copytree(shelf, other)  # a gallery is held by one process
        tokens = open_.enter_context(serving(bundle, shelf, threads=THREADS)).address
        uploads = open_.enter_context(serving_uploads(bundle, other, threads=THREADS)).address
        ways = every_way(bundle, encoder, tokens, uploads)
        rows = [
            row
            for at, profile in enumerate(profiles)
            for row in at_profile(
                profile, ways, photo, budget_s, seed, at * len(ways), len(profiles) * len(ways), on_progress, failed
            )
        ]
    return {
        "benchmark": "network",
        "set": "sample",
        "profiles": [asdict(profile) for profile in profiles],
        "model": MODEL,
        "photo_bytes": len(photo),
        "tables": [{"key": "network", "title": "from photo to answer", "rows": rows}],
        "lost": [*losses(rows)],
        "left_out": failed,
        "honesty": f"{HONESTY} {MODEL}.",
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"device": THREADS, "cloud": THREADS},
            seeds={"network": seed, "bootstrap": seed},
            sizes={"gallery": gallery, "budget_s": budget_s, "words": len(WORDS.split())},
        ),
    }


def every_way(bundle: Path, encoder: Encoder, tokens: str, uploads: str) -> list[Way]:
    """Tokens in three encodings; the picture in three sizes."""
    spec = open_cloud_half(bundle)[1].picture

    def with_tokens(encoding: Encoding) -> Way:
        def connect(address: str, open_: ExitStack) -> Callable[[bytes], None]:
            client = open_.enter_context(client_of(encoder, address, encoding))
            client.timeout_s = TIMEOUT_S
            return lambda photo: _discard(client.search(encoder.encode_timed(photo).tokens, WORDS))

        return Way(f"tokens {encoding}", connect, tokens)

    def with_upload(name: str, prepare: Callable[[bytes], bytes]) -> Way:
        def connect(address: str, open_: ExitStack) -> Callable[[bytes], None]:
            client = open_.enter_context(UploadClient(address))
            return lambda photo: _discard(client.search(prepare(photo), WORDS, timeout_s=TIMEOUT_S))

        return Way(f"JPEG, {name}", connect, uploads)

    return [
        *(with_tokens(encoding) for encoding in (Encoding.INT8, Encoding.INT4, Encoding.F32)),
        with_upload(f"{spec.side} px, the tower's own", as_the_tower_sees(spec, 90)),
        with_upload("512 px", made_smaller(512, 85)),
        with_upload("as taken", as_taken),
    ]


def at_profile(
    profile: Profile, ways: Sequence[Way], photo: bytes, budget_s: float, seed: int, done: int, of: int,
    on_progress: OnProgress, failed: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row per way; what fails is told in `failed`."""
    ours: list[float] = []
    for at, way in enumerate(ways):
        on_progress(f"{profile.name}: {way.name}", done + at, of)
        try:
            row, times = asked(profile, way, photo, budget_s, seed)
        except (grpc.RpcError, PocketlensError) as error:  # one way that fails must not cost minutes of the others
            failed.append(f"{profile.name}, {way.name}: it failed ({str(error).splitlines()[-1][:200]})")
            continue
        ours = times if way.name == OURS else ours
        if ours and len(times) >= FEWEST and way.name != OURS:
            row["p95_over_tokens"] = ratio_of_p95(times, ours, seed)
        yield row


def asked(profile: Profile, way: Way, photo: bytes, budget_s: float, seed: int) -> tuple[dict[str, Any], list[float]]:
    """One way at one profile: the first query of fresh connections, then queries on a warm one."""
    firsts, took = [], []
    with Shaper(way.server, profile, seed=seed) as network:
        rounds = MOST
        while len(firsts) < FIRST and not (firsts and firsts[0] > 1e3 * LONG_S):
            with ExitStack() as open_:
                before = network.up
                firsts.append(_timed(way.connect(network.address, open_), photo))
                first_up = network.up - before
        rounds = 1 if firsts[0] > 1e3 * LONG_S else int(np.clip(1e3 * budget_s / firsts[0], FEWEST, MOST))
        with ExitStack() as open_:
            ask = way.connect(network.address, open_)
            if rounds > 1:
                ask(photo)  # opens the connection
            up, down = network.up, network.down
            took = [_timed(ask, photo) for _ in range(rounds)]
            up, down = (network.up - up) / rounds, (network.down - down) / rounds
    p50, p95, p99 = (float(q) for q in np.quantile(took, (0.5, 0.95, 0.99)))
    return {
        "profile": profile.name, "way": way.name, "rounds": rounds, "up_bytes": round(up), "down_bytes": round(down),
        "first_up_bytes": first_up, "first_ms": float(np.median(firsts)), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
    }, took  # fmt: skip


def ratio_of_p95(times: Sequence[float], ours: Sequence[float], seed: int) -> dict[str, float]:
    """How many times as long a way takes at p95 as tokens do, with a bootstrap interval over the rounds of each."""
    rng = np.random.default_rng(seed)

    def p95(some: Sequence[float]) -> np.ndarray:
        return np.quantile(rng.choice(some, (RESAMPLES, len(some))), 0.95, axis=1)

    low, high = np.quantile(p95(times) / p95(ours), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = np.quantile(times, 0.95) / np.quantile(ours, 0.95)
    return {"value": float(value), "low": float(low), "high": float(high)}


def losses(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where an upload is as fast as tokens, or cannot be told from them."""
    for row in rows:
        ratio = row.get("p95_over_tokens")
        if ratio and row["way"].startswith("JPEG") and ratio["low"] <= 1:
            how = "is faster than" if ratio["high"] < 1 else "cannot be told from"
            yield (
                f"{row['profile']}: {row['way']} {how} tokens at p95, {row['p95_ms']:.0f} ms "
                f"({ratio['value']:.2f} times, {ratio['low']:.2f} to {ratio['high']:.2f})"
            )


def _timed(ask: Callable[[bytes], None], photo: bytes) -> float:
    began = perf_counter()
    ask(photo)
    return 1e3 * (perf_counter() - began)


def _discard(answer: object) -> None:
    del answer
