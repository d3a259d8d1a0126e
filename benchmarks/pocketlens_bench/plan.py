"""From what was measured on one machine to what a size and a rate would need: nodes, memory, network, time, money.

Owns the arithmetic and where each number comes from. Numbers from results files are measured; those of `Assumed` are
the asker's, with examples; what lies beyond the sizes that were measured is extrapolated, and named so on the page
(plan_page.py). Times at those sizes come from simulate.py. Called by cli/plan.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import ceil, exp, log, log10
from pathlib import Path
from typing import Any

import numpy as np
from pocketlens_cloud.serving.batching import Limits
from pocketlens_cloud.serving.front import HANDS
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.load import arrivals
from pocketlens_bench.simulate import Costs, House, Seconds, queue_times, simulate, slowest_of

LINK_BYTES = 4  # Qdrant keeps links as 32-bit numbers, 2 m of them on the lowest level of the graph
FORMS = ("fp32", "int8", "binary")
MILLION = 1_000_000
NORMAL_95 = 1.6449
SIMULATED = 20_000  # questions of the simulation of a shard; a front gets fewer
FRONT_SIMULATED = 1_500
MOST_FAN_OUT = 200  # shards asked by one question beyond which we no longer believe in asking all of them


class NoResult(PocketlensError):
    """A results file that the plan stands on is missing or lacks something. Names it."""


@dataclass(frozen=True)
class Found:
    """A measured number and where it stands."""

    value: float
    what: str
    source: str  # file and key


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the plan stands on. Times in seconds, sizes in bytes; `million`: one shard of a million vectors."""

    million_search: Found  # over int8 copies, rescored
    million_search_fp32: Found
    million_search_p95: Found
    million_memory: Found
    million_build: Found  # on build_cores
    build_cores: Found
    width: Found
    links: Found
    search_growth: Found  # a shard ten times as large: so many times as long
    build_growth: Found  # likewise, of a picture
    picture_s: Found
    request_bytes: Found
    reply_bytes: Found
    run_s: Found
    token_s: Found
    check_s: Found
    loop_s: Found
    way_s: Found
    finish_s: Found  # includes a search of a small gallery in process: too much rather than too little
    speeds: tuple[float, ...]

    def search_s(self, form: str, size: float) -> float:
        """Median of one search in a shard of `size`. Of binary copies nothing was measured: they count as int8."""
        base = self.million_search_fp32 if form == "fp32" else self.million_search
        return grown(base.value, self.search_growth.value, size)

    def found(self) -> list[Found]:
        return [each for each in vars(self).values() if isinstance(each, Found)]

    @property
    def front_file(self) -> str:
        return self.run_s.source.partition(":")[0]

    @property
    def overhead(self) -> float:
        """Measured memory over that of vectors, their int8 copies and links: the rest of what the engine holds."""
        vectors = self.width.value * (4 + 1) + link_bytes(self.links.value)
        return self.million_memory.value / (MILLION * vectors)

    @property
    def scatter(self) -> float:
        """Of the logarithm of one search's time."""
        return log(self.million_search_p95.value / self.million_search.value) / NORMAL_95


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What nobody measured here: the asker's to change. Prices are an example, no claim of what anything costs."""

    width: int = 512
    names: int = 2  # vectors of a picture: `original` and `union`, each with a graph of its own
    payload_bytes: int = 200
    links: int = 32  # m
    replicas: int = 2
    node_ram_gb: float = 256
    node_cores: int = 32
    node_reads_per_s: float = 500_000  # random, of its disk
    node_gbit_s: float = 25
    node_price_h: float = 2.0
    front_cores: int = 16
    front_price_h: float = 0.6
    fill: float = 0.7  # of a node's memory
    utilisation: float = 0.6  # of processors, disks, network, Python's lock, the threads that search
    rows: int = 3  # a composed question in tuned mode: with words, without, words alone
    row_tokens: int = 24
    top: int = 10
    hit_bytes: int = 64  # between nodes
    rescored: int = 20  # vectors read from disk by each shard: top x 2
    most_in_shard: int = 50 * MILLION


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A size and a rate."""

    pictures: float
    questions_per_s: float
    form: str  # of the vectors that searches walk: fp32, int8 or binary; the others lie on disk


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What it would take. Bytes, seconds; `breaks_first`: what sets the number of gallery nodes."""

    ask: Ask
    shards: int
    shards_a_node: int
    copies: float  # of each shard; more than `replicas` where memory is not what is short
    ram_bytes: float  # all copies that were asked for
    disk_bytes: float
    nodes_for: dict[str, int]  # memory, search, reads, network
    gallery_nodes: int
    fronts: int  # processes
    front_limits: dict[str, float]  # questions a second that each part of one process bears at the utilisation
    front_nodes: int
    search_cpu_s: float  # of one question, over all shards
    network_bytes_s: float  # between fronts and shards
    edge_bytes_s: float  # between devices and fronts
    encode_core_h: float
    build_core_h: float
    build_h: float  # on the gallery's own cores
    per_million: float

    @property
    def breaks_first(self) -> str:
        return max(self.nodes_for, key=lambda name: self.nodes_for[name])

    @property
    def believable(self) -> bool:
        return self.shards <= MOST_FAN_OUT


def link_bytes(links: float) -> float:
    """Of one vector in a graph with m = links: 2 m on the lowest level, m on each above; 1 in m reaches the next."""
    return LINK_BYTES * (2 * links + links / (links - 1))


def vector_bytes(form: str, width: int) -> float:
    """Of one vector as searches walk it."""
    return {"fp32": 4.0, "int8": 1.0, "binary": 1 / 8}[form] * width


def picture_ram(measured: Measured, assumed: Assumed, form: str) -> float:
    """Bytes of memory for one picture, one copy. Payload lies on disk."""
    one = vector_bytes(form, assumed.width) + link_bytes(assumed.links)
    return assumed.names * one * measured.overhead


def picture_disk(assumed: Assumed, form: str) -> float:
    """Bytes on disk for one picture, one copy: everything, since memory is a copy of it."""
    copy = 0 if form == "fp32" else vector_bytes(form, assumed.width)
    return assumed.names * (4 * assumed.width + copy + link_bytes(assumed.links)) + assumed.payload_bytes


def grown(base: float, growth: float, size: float) -> float:
    """What takes `base` in a shard of a million takes this in one of `size`: `growth` times for each tenfold."""
    return base * growth ** log10(size / MILLION)


def plan(measured: Measured, assumed: Assumed, ask: Ask) -> Planned:
    """The arithmetic, once through. Whole nodes; shards of even size."""
    usable = assumed.node_ram_gb * 1e9 * assumed.fill
    ram = picture_ram(measured, assumed, ask.form)
    shards = ceil(ask.pictures / min(assumed.most_in_shard, usable / ram))
    in_shard = ask.pictures / shards
    shards_a_node = min(max(1, int(usable / (in_shard * ram))), shards)
    rate, named = ask.questions_per_s, assumed.names
    mean = exp(measured.scatter**2 / 2)  # of a lognormal over its median
    search_s = measured.search_s(ask.form, in_shard) * mean
    network = rate * shards * (4 * assumed.width + assumed.top * assumed.hit_bytes)
    reads = 0.0 if ask.form == "fp32" else rate * shards * assumed.rescored
    nodes_for = {
        "memory": ceil(shards * assumed.replicas / shards_a_node),
        "search": ceil(rate * shards * search_s / assumed.utilisation / assumed.node_cores),
        "disk reads": ceil(reads / assumed.node_reads_per_s / assumed.utilisation),
        "network": ceil(network * 8 / 1e9 / assumed.node_gbit_s / assumed.utilisation),
    }
    nodes = max(nodes_for.values())
    limits = front_limits(measured, assumed, away_s=slowest_mean(search_s / mean, measured.scatter, shards))
    fronts = ceil(rate / min(limits.values()))
    front_nodes = ceil(fronts * len(measured.speeds) / assumed.front_cores)
    build_s = grown(measured.million_build.value * measured.build_cores.value / MILLION, measured.build_growth.value,
                    in_shard) * named * ask.pictures * assumed.replicas  # fmt: skip
    hourly = nodes * assumed.node_price_h + front_nodes * assumed.front_price_h
    return Planned(
        ask=ask,
        shards=shards,
        shards_a_node=shards_a_node,
        copies=nodes * shards_a_node / shards,
        ram_bytes=ask.pictures * ram * assumed.replicas,
        disk_bytes=ask.pictures * picture_disk(assumed, ask.form) * assumed.replicas,
        nodes_for=nodes_for,
        gallery_nodes=nodes,
        fronts=fronts,
        front_limits=limits,
        front_nodes=front_nodes,
        search_cpu_s=shards * search_s,
        network_bytes_s=network,
        edge_bytes_s=rate * (measured.request_bytes.value + measured.reply_bytes.value),
        encode_core_h=ask.pictures * measured.picture_s.value / 3600,
        build_core_h=build_s / 3600,
        build_h=build_s / 3600 / (nodes * assumed.node_cores),
        per_million=hourly / 3600 / rate * MILLION,
    )


def front_limits(measured: Measured, assumed: Assumed, *, away_s: float) -> dict[str, float]:
    """Questions a second that the parts of one server process bear. away_s: mean time of a search elsewhere, during
    which one of the process's hands waits."""
    rows_a_run = max(1, Limits().most_tokens // assumed.row_tokens)
    tower_s = assumed.rows * (measured.run_s.value / rows_a_run + measured.token_s.value * assumed.row_tokens)
    cores = len(measured.speeds) * measured.speeds[-1]
    by_hand = measured.check_s.value + measured.finish_s.value
    locked_s = by_hand + measured.loop_s.value
    return {
        "processors": assumed.utilisation * cores / (tower_s + locked_s),
        "Python's lock": assumed.utilisation / locked_s,
        "hands": assumed.utilisation * HANDS / (by_hand + away_s),
    }


def slowest_mean(median: float, scatter: float, shards: int) -> float:
    """Mean of the slowest of so many independent lognormal searches that wait for nobody."""
    draws = np.random.default_rng(0).lognormal(log(median), scatter, SIMULATED)
    return float(np.mean(slowest_of(draws, shards, SIMULATED, np.random.default_rng(1))))


# --- times, by simulation


def times(measured: Measured, assumed: Assumed, planned: Planned, *, seed: int = 0) -> dict[str, float]:
    """p50, p95, p99 in ms of a question, share turned away and how busy the tower is; one process at its share.

    Each copy of a shard is a queue before its cores; a question waits for the slowest of its shards."""
    rng = np.random.default_rng(seed)
    away_s = _searches(measured, assumed, planned, rng, seed)
    costs = Costs(
        run_s=measured.run_s.value,
        token_s=measured.token_s.value,
        speeds=measured.speeds,
        check_s=np.array([measured.check_s.value]),
        finish_s=np.array([measured.finish_s.value]),
        loop_s=measured.loop_s.value,
        way_s=measured.way_s.value,
        away_s=away_s,
    )
    rate = planned.ask.questions_per_s / planned.fronts
    due = np.array(arrivals(rate, FRONT_SIMULATED / rate, seed))
    house = House(batch=Limits(runs=len(measured.speeds)))
    return simulate(due, [(assumed.row_tokens,) * assumed.rows], costs, house, seed=seed).row(0, FRONT_SIMULATED / rate)


def _searches(measured: Measured, assumed: Assumed, planned: Planned, rng: np.random.Generator, seed: int) -> Seconds:
    """Seconds from asking all shards to the last one's answer."""
    in_shard = planned.ask.pictures / planned.shards
    median = measured.search_s(planned.ask.form, in_shard)
    servers = max(1, assumed.node_cores // planned.shards_a_node)
    due = np.array(arrivals(planned.ask.questions_per_s / planned.copies, 1.0, seed)[:SIMULATED])
    while len(due) < SIMULATED:  # the seconds that give as many as wanted
        seconds = 1.05 * SIMULATED / (planned.ask.questions_per_s / planned.copies)
        due = np.array(arrivals(planned.ask.questions_per_s / planned.copies, seconds, seed)[:SIMULATED])
    alone = queue_times(due, rng.lognormal(log(median), measured.scatter, len(due)), servers)
    return slowest_of(alone, planned.shards, SIMULATED, rng)


# --- where the numbers come from


def read_measured(folder: Path) -> Measured:
    """From the results files in `folder`. Raises NoResult."""
    trade, scale, latency = (_read(folder, f"{name}.json") for name in
                             ("synthetic-tradeoff", "sample-scale", "sample-latency"))  # fmt: skip
    zoo, front = _read(folder, "zoo.json"), _read(folder, _front_file(folder))
    rows = {row["gallery"]: (at, row) for at, row in enumerate(scale.value["approximate"]) if row["row"] == "tuned"}
    (small_at, small), (large_at, large) = rows[100_000], rows[MILLION]
    vit_at, vit = next(
        (at, row) for at, row in enumerate(zoo.value["tables"][0]["rows"]) if row["name"].startswith("CLIP ViT-B/32")
    )
    grows = f"approximate[{small_at}] and [{large_at}]"
    return Measured(
        million_search=trade.number("one search of a million, int8 copies, rescored, p50", "chosen.p50_ms", 1e-3),
        million_search_fp32=_exact_walk(trade),
        million_search_p95=trade.number("the same, p95", "chosen.p95_ms", 1e-3),
        million_memory=trade.number("memory of a million vectors with int8 copies and graph", "chosen.memory_bytes"),
        million_build=trade.number("building the graph of a million", "chosen.build_s"),
        build_cores=trade.number("on so many cores", "conditions.threads.build"),
        width=trade.number("numbers of a vector there", "conditions.sizes.width"),
        links=trade.number("m there", "chosen.m"),
        search_growth=Found(
            large["p50_ms"] / small["p50_ms"], "search, ten times as large (100,000 to a million, width 256), times",
            f"{scale.name}: {grows}, p50_ms",
        ),
        build_growth=Found(
            large["settle_s"] / small["settle_s"] / 10, "building, a picture of the larger one, times",
            f"{scale.name}: {grows}, settle_s",
        ),
        picture_s=Found(
            vit["forms"][0]["threads_1"]["p50_ms"] / 1e3, "the image tower of CLIP ViT-B/32, one thread",
            f"{zoo.name}: tables[0].rows[{vit_at}].forms[0].threads_1.p50_ms",
        ),
        request_bytes=latency.number("a question on the wire", "request.encodings.int8.wire_bytes"),
        reply_bytes=latency.number("its answer", "request.encodings.int8.reply_wire_bytes"),
        run_s=front.number("one run of the text tower, besides its tokens", "costs.run_s"),
        token_s=front.number("one token of it", "costs.token_s"),
        check_s=front.number("checking a question, p50", "costs.check_s.p50"),
        loop_s=front.number("a call, without tower and search", "costs.loop_s"),
        way_s=front.number("what else a call that does nothing takes", "costs.way_s"),
        finish_s=front.number("heads, search of 500 pictures and reply, p50", "costs.finish_s.p50"),
        speeds=tuple(front.value["costs"]["speeds"]),
    )  # fmt: skip


def _exact_walk(trade: _File) -> Found:
    """The fastest search of the same graph that walks the float32 vectors and finds as much."""
    chosen = trade.value["chosen"]
    alike = [
        (row["p50_ms"], at)
        for at, row in enumerate(trade.value["rows"])
        if row["walked"] == "float32" and row["recall"] >= 0.98
        and all(row[key] == chosen[key] for key in ("m", "ef_construct", "quantised"))
    ]  # fmt: skip
    if not alike:
        raise NoResult(f"{trade.name} has no walk of float32 vectors that finds 98 %: measure it again")
    ms, at = min(alike)
    return Found(ms / 1e3, "the same over float32, as much found", f"{trade.name}: rows[{at}].p50_ms")


@dataclass(frozen=True)
class _File:
    name: str
    value: Any = field(repr=False)

    def number(self, what: str, place: str, unit: float = 1.0) -> Found:
        at = self.value
        for key in place.split("."):
            if not isinstance(at, dict) or key not in at:
                raise NoResult(f"{self.name} has no {place}: measure it again")
            at = at[key]
        return Found(at * unit, what, f"{self.name}: {place}")


def _read(folder: Path, name: str) -> _File:
    try:
        return _File(name, json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise NoResult(
            f"{folder / name} is not there: the plan stands on it. Name the folder with --results"
        ) from error


def _front_file(folder: Path) -> str:
    """What `plan --check` found of a text tower of CLIP's size, else of the sample's."""
    return next(
        (name for name in ("vit-b-32-plan.json", "sample-plan.json") if (folder / name).is_file()), "sample-plan.json"
    )
