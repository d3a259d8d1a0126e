"""What more worker processes bring: the same server with one, with two, and so on, in turns, on the same processors.

The gallery lies on a Qdrant server, which several processes may ask. So that it neither bounds the rate itself nor
takes from those processors, canned_gallery.py answers the searches. Questions are serving.py's. Called by
cli/workers.py."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pocketlens_cloud.compose import Composer

from pocketlens_bench.canned_gallery import canned
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.load import Outcome
from pocketlens_bench.server import serving
from pocketlens_bench.serving import DISTINCT, Asker, Split, Texts, answered, quantiles, steadily
from pocketlens_bench.world import OnProgress, silently

AT_ONCE = 32  # questions open in the closed loop; more than a server does in 0.1 s are turned away and asked again
WARM_UP_S = 2.0  # before each measurement that is longer
CONNECTIONS = 32  # the kernel gives connections to workers, not questions: with few of them the shares differ much
HONESTY = (
    "The server remembers nothing, so every question is read by the tower. Every search is answered at once with the "
    "first answer of its kind, so the gallery costs what its client costs and nothing else. Asker and gallery have a "
    "processor each of the same machine. A closed loop: the rate is what the slowest part bears; where the server's "
    "processors were not busy, it was the asker or the gallery."
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A gallery on a Qdrant server of this machine. url: by HTTP, as in http://127.0.0.1:6333."""

    url: str
    grpc_port: int
    name: str

    @property
    def grpc(self) -> str:
        return f"{urlsplit(self.url).hostname}:{self.grpc_port}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """seconds: of each measurement; rounds: how often each number of workers has its turn."""

    seconds: float = 15.0
    rounds: int = 3


FULL = Sizes()
QUICK = Sizes(seconds=2.0, rounds=1)


def measure(
    bundle: Path,
    gallery: Place,
    *,
    counts: Sequence[int] = (1, 2),
    processors: int | None = None,
    at_once: int = AT_ONCE,
    threads: int = 1,
    sizes: Sizes = FULL,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench workers` says, as one JSON object; rates a second, times in ms.

    gallery: a live one of this bundle; processors: how many the server has, all but the last two if None. Raises the
    PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    split, beside = split_of(processors)
    requests = Texts(Composer.load(bundle, threads=threads), seed).requests(DISTINCT)
    turns = [count for at in range(sizes.rounds) for count in (counts if at % 2 == 0 else counts[::-1])]
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    with canned(gallery.grpc, beside) as port:
        where = ("--qdrant", gallery.url, "--qdrant-grpc-port", port, "--collection", gallery.name)
        for at, count in enumerate(turns):
            on_progress(f"{count} worker{'s' * (count > 1)}", at, len(turns))
            found[count].append(one_turn(bundle, where, count, split, threads, requests, at_once, sizes.seconds))
    return {
        "benchmark": "workers",
        "rows": [{"workers": count, **summed_up(turns)} for count, turns in found.items()],
        "honesty": HONESTY,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"each run of the tower": threads},
            seeds={"questions": seed},
            sizes={
                **asdict(sizes), "processors_measured": len(split.measured), "processors_asking": len(split.asker),
                "at_once": at_once, "connections": CONNECTIONS, "distinct": DISTINCT,
            },
        ),
    }  # fmt: skip


def split_of(processors: int | None) -> tuple[Split, tuple[int, ...]]:
    """The first `processors` serve, the last asks, the one before it stands for the gallery; few are shared."""
    here = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Split((here[:-2] or here)[:processors], here[-1:]), here[-2:-1] or here


def one_turn(
    bundle: Path, gallery: Sequence[object], count: int, split: Split, threads: int, requests: tuple[bytes, ...],
    at_once: int, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """A server with `count` workers, asked as much as goes."""
    more = ("--workers", count)
    with serving(bundle, gallery, threads=threads, more=more, processors=split.measured) as server:
        asker = Asker(server, split, requests, connections=CONNECTIONS)
        if seconds > WARM_UP_S:
            asker.closed(at_once, WARM_UP_S)
        family = _family(server.pid)
        before, began = _busy_s(family), perf_counter()
        outcomes = asker.closed(at_once, seconds)
        took_s = perf_counter() - began
        return {
            "per_s": steadily(outcomes, seconds),
            "not_answered": len(outcomes) - answered(outcomes),
            "times": quantiles(_times(outcomes)),
            "processors_busy": (_busy_s(family) - before) / took_s if family else None,
            "memory_mb": sum(map(_memory_bytes, family)) / 1e6 if family else None,
        }


def summed_up(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates = [turn["per_s"] for turn in turns]
    return {"per_s": float(np.mean(rates)), "least_per_s": min(rates), "most_per_s": max(rates), "turns": list(turns)}


def _times(outcomes: Iterable[Outcome]) -> list[float]:
    return [1e3 * one.took_s for one in outcomes if one.status == "OK"]


def _family(pid: int) -> list[int]:
    """A process and its children; none where the system does not tell."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *map(int, children.read_text().split())] if children.is_file() else []


def _busy_s(pids: Iterable[int]) -> float:
    """Processor time that they have used."""
    ticks = 0
    for pid in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
