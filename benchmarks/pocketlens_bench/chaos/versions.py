"""A version promoted and rolled back, again and again, while clients ask: each answer wholly of one.

Owns the order: `promote` and `rollback` by the commands a user has, then waiting until the server follows. Called by
driver.py."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from statistics import median
from threading import Event
from time import perf_counter
from typing import Any

from pocketlens_edge.client import Client
from pocketlens_wire.errors import PocketlensError, ServerFault

from pocketlens_bench.chaos.asking import Asking, answers, asking
from pocketlens_bench.chaos.judging import TURNED_AWAY, Right, fact, name_of
from pocketlens_bench.chaos.setting import Setting
from pocketlens_bench.server import program, serving
from pocketlens_bench.world import OnProgress

FOLLOWED_S = 30.0  # a server looks once a second; on a busy machine opening takes its time
LOOK_S = 0.05


def measure(setting: Setting, on_progress: OnProgress) -> list[dict[str, Any]]:
    """The table of what the clients saw."""
    sizes = setting.sizes
    with serving(setting.bundle, setting.shop, threads=1) as server:
        known = dict([answers(server.address, setting.questions, timeout_s=sizes.timeout_s)])
        _set(setting, "promote", server.address, set(known))
        known |= [answers(server.address, setting.questions, timeout_s=sizes.timeout_s)]
        first, second = known
        _set(setting, "rollback", server.address, {second})
        right = Right(known, setting.contents)
        with asking(
            server.address, setting.questions, right,
            rate=sizes.rate, seconds=sizes.seconds, timeout_s=sizes.timeout_s, seed=setting.seed,
        ) as clients:  # fmt: skip
            followed, missed, failed = _switched(setting, server.address, clients, [first, second], on_progress)
            rows, shares = clients.rows(), clients.generations()
    return [
        {
            "key": "versions",
            "title": "A version promoted and rolled back",
            "rows": rows,
            "facts": [
                fact("promotions and rollbacks", len(followed) + missed),
                fact("seconds from the command's end until the server follows, median", median(followed or [0.0])),
                fact("the longest", max(followed, default=0.0)),
                fact(f"switches not followed within {FOLLOWED_S:g} s", missed, must_be_zero=True),
                *(_failed(error, count) for error, count in failed.items()),
                *(fact(f"answers of generation {name}", shares.get(name, 0)) for name in known),
            ],
        }
    ]


def _switched(
    setting: Setting, address: str, clients: Asking, generations: list[str], on_progress: OnProgress
) -> tuple[list[float], int, Counter[str]]:
    """(seconds until each switch was followed, switches that were not, looks without an answer by the error's name),
    while clients ask. The first generation is live at the beginning."""
    draws, followed, missed, live = random.Random(setting.seed), list[float](), 0, 0
    failed = Counter[str]()
    while not clients.over(draws.uniform(0, setting.sizes.pause_s)):
        _command(setting, ("promote", "rollback")[live])
        live, began = 1 - live, perf_counter()
        if _until_followed(address, {generations[1 - live]}, setting.sizes.timeout_s, failed):
            followed.append(perf_counter() - began)
        else:
            missed += 1
        on_progress("promote, roll back", len(followed), len(followed))
    if live:  # as it was found, so that it can be measured again
        _command(setting, "rollback")
    return followed, missed, failed


def _failed(error: str, count: int) -> dict[str, Any]:
    name = f"looks whether the server follows that ended with {error}"
    return fact(name, count, must_be_zero=error != TURNED_AWAY)


def _set(setting: Setting, way: str, address: str, before: set[str]) -> None:
    """Promote or roll back before anything is measured. Raises ServerFault if the server does not follow."""
    _command(setting, way)
    if not _until_followed(address, before, setting.sizes.timeout_s, failed := Counter[str]()):
        said = ", ".join(f"{count} looks ended with {error}" for error, count in failed.items())
        raise ServerFault(f"the server did not follow gallery {way} within {FOLLOWED_S:g} s{said and f' ({said})'}")


def _command(setting: Setting, way: str) -> None:
    """`pocketlens-cloud gallery promote` or `rollback`, in a process of its own."""
    more = ["--version", setting.second, "--bundle", setting.bundle] if way == "promote" else []
    call = list(map(str, [*program(), "gallery", way, setting.shop, *more]))
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFault(f"gallery {way} left with {done.returncode}: {done.stderr.strip()[-300:]}")


def _until_followed(address: str, before: set[str], timeout_s: float, failed: Counter[str]) -> bool:
    """Wait until the server is at none of the generations `before`; whether it came to that. A look without an answer
    is counted in `failed`, and is followed by another."""
    began, pause = perf_counter(), Event()
    with Client(address, token_space="any", timeout_s=timeout_s) as client:
        while perf_counter() - began < FOLLOWED_S:
            try:
                if client.describe().generation not in before:
                    return True
            except PocketlensError as error:
                failed[name_of(error)] += 1
            pause.wait(LOOK_S)
    return False
