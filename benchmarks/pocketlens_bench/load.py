"""What becomes of the times when questions come faster: an open loop against a real server.

Arrivals are drawn in advance (Poisson, seeded) and questions are sent when they are due, answered or not; each is timed
from the moment it was due. So a server that stalls cannot slow down the asking and hide its own delay, which is called
coordinated omission. A process of its own asks, over several connections, and reports its own lateness.
Called by cli/load.py."""

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from random import uniform
from time import perf_counter
from typing import Any

import grpc
import numpy as np
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.questions import Mode, question
from pocketlens_samples.queries import ComposedSet, composed_set
from pocketlens_wire.errors import RETRY_METADATA
from pocketlens_wire.pictures import open_picture
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import shelve
from pocketlens_bench.server import serving, serving_uploads
from pocketlens_bench.uploads import METHOD, UNLIMITED, as_the_tower_sees, message
from pocketlens_bench.world import OnProgress, photographed, silently

SEARCH = "/pocketlens.v1.Retrieval/Search"
CONNECTIONS = 8  # a server takes so many streams a connection and no more
DEADLINE_S = 5.0
PROBE_S = 4.0  # of asking in a closed loop, to find out what the server can do at most
PROBE_AT_ONCE = 8
WARM_UP_S = 1.0  # of each rate, not counted
WAITING = "way_and_waiting"
KEPT = 0.98  # of the offered rate: below, the server does not keep up
HONESTY = (
    "Server and asker share this machine, so the asker takes a part of the processor: other machines will do better. "
    "Uploads carry the picture exactly as the large tower takes it; decoding a larger one would cost the server more."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """shares: offered rates as shares of what a closed loop got. seconds: of each rate."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.8, 1.0, 1.5)
    seconds: float = 15.0
    gallery: int = 3000
    questions: int = 100


FULL = Sizes()
QUICK = Sizes(shares=(0.25, 0.8, 1.5), seconds=3.0, gallery=500, questions=20)


@dataclass(frozen=True)
class Plan:
    """What the asking process is to do. due: seconds after the start at which each question is to be sent; none: as
    many as go with `at_once` open, for `seconds`."""

    address: str
    method: str
    messages: tuple[bytes, ...]
    due: tuple[float, ...] = ()
    at_once: int = 0
    seconds: float = 0.0
    connections: int = CONNECTIONS


@dataclass(frozen=True)
class Outcome:
    """One question: when it was due and how late it was sent, when it was answered after it was due, how it ended, and
    where the time went: what the server's stages leave of it is the way, and waiting for the server to take it up.
    retry_s: after which the server wants to be asked again, if it turned the question away."""

    due: float
    lag_s: float
    took_s: float
    status: str
    stages: Mapping[str, float] = field(default_factory=dict)  # milliseconds, as the server told them
    retry_s: float = 0.0


def measure(
    bundle: Path, *, sizes: Sizes = FULL, threads: int = 1, seed: int = 0, on_progress: OnProgress = silently
) -> dict[str, Any]:
    """Everything `pocketlens-bench load` says, as one JSON object; times in ms. threads: of each model run.

    Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    found = composed_set(queries=min(sizes.questions, sizes.gallery // 5), gallery=sizes.gallery)
    files = photographed([query.anchor for query in found.queries])
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder:
        shelf, other = Path(folder) / "gallery", Path(folder) / "gallery-of-uploads"
        shelve(bundle, found, Path(folder) / "pictures", shelf, on_progress)
        shutil.copytree(shelf, other)
        with serving(bundle, shelf, threads=threads) as server:
            asked = token_messages(bundle, files, found)
            tables = [swept("tokens", server.address, SEARCH, asked, sizes, seed, on_progress)]
        with serving_uploads(bundle, other, threads=threads) as server:
            asked = upload_messages(bundle, files, found)
            tables.append(swept("JPEG, the tower's own size", server.address, METHOD, asked, sizes, seed, on_progress))
    most = [table["capacity_per_s"] for table in tables]
    return {
        "benchmark": "load",
        "set": "sample",
        "tables": tables,
        "tokens_over_uploads": most[0] / most[1],
        "lost": [said for table in tables for said in losses(table)],
        "left_out": [],
        "honesty": HONESTY,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"each model run": threads},
            seeds={"arrivals": seed, "bootstrap": seed},
            sizes=asdict(sizes),
        ),
    }


def token_messages(bundle: Path, files: Sequence[bytes], found: ComposedSet) -> tuple[bytes, ...]:
    """Search requests as the device's client sends them: int8 tokens and words, zero-shot."""
    encoder = Encoder.load(bundle, threads=1)
    return tuple(
        question(
            token_space=encoder.manifest.token_space, encoder_id=encoder.encoder_id,
            tokens=encoder.encode(open_picture(file)), words=query.text, encoding=Encoding.INT8, top=10,
            mode=Mode.ZERO_SHOT, where={},
        ).SerializeToString()
        for file, query in zip(files, found.queries, strict=True)
    )  # fmt: skip


def upload_messages(bundle: Path, files: Sequence[bytes], found: ComposedSet) -> tuple[bytes, ...]:
    """The same questions with the picture itself, as small as the large tower takes it."""
    prepare = as_the_tower_sees(open_cloud_half(bundle)[1].picture, 90)
    return tuple(message(prepare(file), query.text) for file, query in zip(files, found.queries, strict=True))


def swept(
    title: str, address: str, method: str, messages: tuple[bytes, ...], sizes: Sizes, seed: int, on_progress: OnProgress
) -> dict[str, Any]:
    """A row per offered rate."""
    on_progress(f"{title}: what it can do at most", 0, len(sizes.shares))
    probe = in_a_process(Plan(address, method, messages, at_once=PROBE_AT_ONCE, seconds=PROBE_S))
    capacity = sum(one.status == "OK" for one in probe) / PROBE_S
    rows = []
    for at, share in enumerate(sizes.shares):
        on_progress(f"{title}: {share:g} of it", at, len(sizes.shares))
        due = arrivals(share * capacity, sizes.seconds + WARM_UP_S, seed)
        outcomes = in_a_process(Plan(address, method, messages, due=due))
        rows.append({"share_of_capacity": share, **told(outcomes, sizes.seconds)})
    return {"key": title, "title": title, "capacity_per_s": capacity, "rows": rows}


def arrivals(rate: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Times of a Poisson process of `rate` a second, from 0 up to `seconds`."""
    rng = np.random.default_rng([seed, round(1e6 * rate)])
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10)))
    return tuple(times[times < seconds].tolist())


def told(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """One row: the questions that were due after the warm-up."""
    counted = [one for one in outcomes if one.due >= WARM_UP_S]
    answered = [1e3 * one.took_s for one in counted if one.status == "OK"]
    in_time = sum(one.status == "OK" and one.due + one.took_s <= WARM_UP_S + seconds for one in counted)
    p50, p95, p99 = (float(q) for q in np.quantile(answered, (0.5, 0.95, 0.99))) if answered else (0.0, 0.0, 0.0)
    return {
        "offered_per_s": len(counted) / seconds,
        "achieved_per_s": in_time / seconds,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "asked": len(counted),
        "failed": sum(one.status != "OK" for one in counted),
        "statuses": dict(Counter(one.status for one in counted)),
        "asker_late_p99_ms": 1e3 * float(np.quantile([one.lag_s for one in counted], 0.99)) if counted else 0.0,
        "seconds": seconds,
        "stages": stages([one for one in counted if one.status == "OK" and one.stages]),
    }


def stages(answered: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Quantiles of each of the server's stages, and of what they leave of the time."""
    found: dict[str, dict[str, float]] = {}
    for stage in answered[0].stages if answered else ():
        name, took = (stage, [one.stages[stage] for one in answered])
        if stage == "total":
            name, took = WAITING, [1e3 * one.took_s - one.stages["total"] for one in answered]
        p50, p95, p99 = (float(q) for q in np.quantile(took, (0.5, 0.95, 0.99)))
        found[name] = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    return found


def losses(table: dict[str, Any]) -> list[str]:
    """Where a server no longer keeps up, and where it turns questions away."""
    return [
        f"{table['title']}: of {row['offered_per_s']:.0f} questions a second {row['achieved_per_s']:.0f} are answered "
        f"in time, {row['failed']:,} of {row['asked']:,} fail, p95 of the others is {row['p95_ms']:.0f} ms"
        for row in table["rows"]
        if row["achieved_per_s"] < KEPT * row["offered_per_s"]
    ]


# --- the asking process


def in_a_process(plan: Plan) -> list[Outcome]:
    """Carry out a plan in a fresh process, whose event loop nothing else delays."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(carried_out, plan).result()


def carried_out(plan: Plan) -> list[Outcome]:
    return asyncio.run(_asked(plan))


def _of_tokens(reply: bytes) -> Mapping[str, float]:
    times = pb.SearchReply.FromString(reply).times
    return {each.name.removesuffix("_ms"): getattr(times, each.name) for each in times.DESCRIPTOR.fields}


def _of_uploads(reply: bytes) -> Mapping[str, float]:
    return json.loads(reply)["times_ms"]


def _untold(reply: bytes) -> Mapping[str, float]:
    del reply
    return {}


READ: Mapping[str, Callable[[bytes], Mapping[str, float]]] = {SEARCH: _of_tokens, METHOD: _of_uploads}


async def _asked(plan: Plan) -> list[Outcome]:
    options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(plan.address, options) for _ in range(plan.connections)]
    calls = cycle(
        [channel.unary_unary(plan.method, response_deserializer=READ.get(plan.method, _untold)) for channel in channels]
    )
    content = cycle(plan.messages)
    try:
        for _ in range(plan.connections):  # connect before the clock starts
            await next(calls)(next(content), timeout=DEADLINE_S)
        if plan.at_once:
            return await _closed_loop(plan, calls, content)
        return await _open_loop(plan, calls, content)
    finally:
        for channel in channels:
            await channel.close()


async def _open_loop(plan: Plan, calls: Any, content: Any) -> list[Outcome]:
    """Each call begins when it is due: 200,000 begun at once would take seconds, and as many collections of garbage."""
    start, ended = perf_counter(), list[Outcome]()

    async def ask(due: float) -> None:
        ended.append(await _one(next(calls), next(content), start, due))

    async with asyncio.TaskGroup() as under_way:
        for due in plan.due:
            if (early := start + due - perf_counter()) > 0:
                await asyncio.sleep(early)
            under_way.create_task(ask(due))
    return sorted(ended, key=lambda one: one.due)


async def _one(call: Any, content: bytes, start: float, due: float) -> Outcome:
    """Ask now; timed from when it was due."""
    lag = perf_counter() - start - due
    retry_s = 0.0
    try:
        stages = await call(content, timeout=DEADLINE_S)
        status = "OK"
    except grpc.aio.AioRpcError as error:
        stages, status = {}, error.code().name
        told = dict(error.trailing_metadata() or ())
        retry_s = int(told.get(RETRY_METADATA, 1000 if status == "CANCELLED" else 0)) / 1e3
    return Outcome(due, lag, perf_counter() - start - due, status, stages, retry_s)


async def _closed_loop(plan: Plan, calls: Any, content: Any) -> list[Outcome]:
    start = perf_counter()

    async def ask() -> list[Outcome]:
        done = []
        while (now := perf_counter() - start) < plan.seconds:
            done.append(await _one(next(calls), next(content), start, now))
            await asyncio.sleep(done[-1].retry_s * uniform(1, 1.5))  # as the device's client does
        return done

    parts = await asyncio.gather(*(ask() for _ in range(plan.at_once)))
    return [one for part in parts for one in part]
