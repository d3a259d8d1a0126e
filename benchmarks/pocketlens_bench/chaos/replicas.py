"""Two replicas, one of them killed at a random moment, again and again; beside it an indexing, killed likewise.

Owns which server dies when; never both at once, so a client that tries again finds one. Called by driver.py."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Self, final

from pocketlens_wire.errors import ServerFault

from pocketlens_bench import indexing
from pocketlens_bench.chaos.asking import Asking, answers, asking
from pocketlens_bench.chaos.judging import Right, alike, fact
from pocketlens_bench.chaos.setting import Setting, copied
from pocketlens_bench.server import serving
from pocketlens_bench.world import OnProgress

PORTS = range(20_000, 30_000)  # below those that systems give to outgoing connections, which could take a dead one's


@final
class Replica:
    """A server that can be killed and comes back under the same address."""

    def __init__(self, bundle: Path, gallery: Path, port: int) -> None:
        self._bundle, self._gallery, self._port = bundle, gallery, port
        self.address = f"127.0.0.1:{port}"
        self._process = ExitStack()
        self._pid = 0

    def up(self) -> float:
        """Start it; seconds until it is ready. Raises ServerFault if it does not come up."""
        running = self._process.enter_context(
            serving(self._bundle, self._gallery, threads=1, more=("--port", self._port))
        )
        self._pid = running.pid
        return running.ready_s

    def kill(self) -> float:
        """kill -9; seconds until the system has taken it apart, which is when its clients notice."""
        began = perf_counter()
        os.kill(self._pid, signal.SIGKILL)
        self._process.close()
        return perf_counter() - began

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def measure(setting: Setting, on_progress: OnProgress) -> list[dict[str, Any]]:
    """The tables of both: what the clients saw, and what became of the indexed gallery."""
    sizes = setting.sizes
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(
            indexing.kill, setting.bundle, sizes.seconds, pictures=sizes.indexed, within_s=sizes.index_within_s,
            seed=setting.seed,
        )  # fmt: skip
        asked = _killed_under_load(setting, on_progress)
        on_progress("the end of the indexing", 0, 1)
        return [asked, _of_indexing(killed.result())]


def _killed_under_load(setting: Setting, on_progress: OnProgress) -> dict[str, Any]:
    sizes, questions = setting.sizes, setting.questions
    draws = random.Random(setting.seed)
    galleries = [copied(setting, setting.first, setting.home / f"replica-{turn}") for turn in range(2)]
    with ExitStack() as stack:
        both = [
            stack.enter_context(Replica(setting.bundle, gallery, port))
            for gallery, port in zip(galleries, stack.enter_context(held_ports(2)), strict=True)
        ]
        generation, hits = answers(both[0].address, questions, timeout_s=sizes.timeout_s)
        right = Right({generation: hits}, setting.contents)
        servers = ",".join(one.address for one in both)
        with asking(
            servers, questions, right,
            rate=sizes.rate, seconds=sizes.seconds, timeout_s=sizes.timeout_s, seed=setting.seed,
        ) as clients:  # fmt: skip
            gone, back = _disturbed(both, clients, setting, draws, lambda done: on_progress("kill servers", done, done))
            rows = clients.rows()
        ends = [answers(one.address, questions, timeout_s=sizes.timeout_s)[1] for one in both]
    other = sum(not alike(mine, its) for end in ends for mine, its in zip(end, hits, strict=True))
    return {
        "key": "replicas",
        "title": "One of two servers killed",
        "rows": rows,
        "facts": [
            fact("servers killed (kill -9)", len(back)),
            fact("seconds until the system had taken a killed one apart, median", median(gone) if gone else 0.0),
            fact("the longest", max(gone, default=0.0)),
            fact("seconds until a killed one answers again, median", median(back) if back else 0.0),
            fact("the longest", max(back, default=0.0)),
            fact("questions that the two answer otherwise at the end", other, must_be_zero=True),
        ],
    }


def _disturbed(
    both: Sequence[Replica], clients: Asking, setting: Setting, draws: random.Random, on_kill: Callable[[int], None]
) -> tuple[list[float], list[float]]:
    """Kill one, start it again, and so on while clients ask; seconds until each was gone, and answered again."""
    sizes, gone, back = setting.sizes, list[float](), list[float]()
    while not clients.over(draws.uniform(0, sizes.pause_s)):
        one = draws.choice(both)
        gone.append(one.kill())
        clients.over(draws.uniform(0, sizes.down_s))
        back.append(one.up())
        on_kill(len(back))
    return gone, back


def _of_indexing(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": "indexing",
        "title": "An indexing killed beside them",
        "rows": [],
        "facts": [
            fact("indexings killed (kill -9)", found["kills"]),
            fact("indexings that came to their end", found["finished"]),
            fact("pictures", found["pictures"]),
            *(fact(f"pictures {name}", count, must_be_zero=True) for name, count in found["faults"].items()),
        ],
    }


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports of this machine that nobody has, and that nobody is given as long as this holds them: two runs beside each
    other do not meet. Raises ServerFault if there are none.

    Bound alone at first; then a server may listen where we are merely bound. Elsewhere than on Linux it may not, and
    they are let go at once."""
    with ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(PORTS, 200):
            with suppress(OSError), ExitStack() as taken:
                holder = taken.enter_context(socket.socket())
                holder.bind(("127.0.0.1", port))
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.append(port)
                if sys.platform == "linux":
                    held.push(taken.pop_all())
            if len(found) == count:
                break
        else:
            raise ServerFault(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")
        yield found
