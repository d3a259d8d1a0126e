"""A version promoted and rolled back, again and again, while clients ask: each answer wholly of one.

Owns the order: `promote` and `rollback` by the commands a user has, then waiting until the server follows. Called by
driver.py."""

from __future__ import annotations

import random
import subprocess
from statistics import median
from threading import Event
from time import perf_counter
from typing import Any

from pocketlens_edge.client import Client
from pocketlens_wire.errors import ServerFault

from pocketlens_bench.chaos.asking import Asking, answers, asking
from pocketlens_bench.chaos.judging import Right, fact
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
        _command(setting, "promote")
        _until_followed(server.address, set(known), sizes.timeout_s)
        known |= [answers(server.address, setting.questions, timeout_s=sizes.timeout_s)]
        first, second = known
        _command(setting, "rollback")
        _until_followed(server.address, {second}, sizes.timeout_s)
        right = Right(known, setting.contents)
        with asking(
            server.address, setting.questions, right,
            rate=sizes.rate, seconds=sizes.seconds, timeout_s=sizes.timeout_s, seed=setting.seed,
        ) as clients:  # fmt: skip
            followed, missed = _switched(setting, server.address, clients, [first, second], on_progress)
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
                *(fact(f"answers of generation {name}", shares.get(name, 0)) for name in known),
            ],
        }
    ]


def _switched(
    setting: Setting, address: str, clients: Asking, generations: list[str], on_progress: OnProgress
) -> tuple[list[float], int]:
    """(seconds until each switch was followed, switches that were not), while clients ask. The first generation is
    live at the beginning."""
    draws, followed, missed, live = random.Random(setting.seed), list[float](), 0, 0
    while not clients.over(draws.uniform(0, setting.sizes.pause_s)):
        _command(setting, ("promote", "rollback")[live])
        live, began = 1 - live, perf_counter()
        if _until_followed(address, {generations[1 - live]}, setting.sizes.timeout_s):
            followed.append(perf_counter() - began)
        else:
            missed += 1
        on_progress("promote, roll back", len(followed), len(followed))
    return followed, missed


def _command(setting: Setting, way: str) -> None:
    """`pocketlens-cloud gallery promote` or `rollback`, in a process of its own."""
    more = ["--version", setting.second, "--bundle", setting.bundle] if way == "promote" else []
    call = list(map(str, [*program(), "gallery", way, setting.shop, *more]))
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFault(f"gallery {way} left with {done.returncode}: {done.stderr.strip()[-300:]}")


def _until_followed(address: str, before: set[str], timeout_s: float) -> bool:
    """Wait until the server is at none of the generations `before`; whether it came to that."""
    began, pause = perf_counter(), Event()
    with Client(address, token_space="any", timeout_s=timeout_s) as client:
        while perf_counter() - began < FOLLOWED_S:
            if client.describe().generation not in before:
                return True
            pause.wait(LOOK_S)
    return False
