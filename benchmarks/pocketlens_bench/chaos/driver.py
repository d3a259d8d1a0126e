"""All parts in order, and what they come to: what broke, what was slow, the conditions.

Called by cli/chaos.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from pocketlens_bench.chaos import replicas, rotation, versions
from pocketlens_bench.chaos.certificates import HAS_OPENSSL
from pocketlens_bench.chaos.judging import COSINE, broken
from pocketlens_bench.chaos.setting import Setting, Sizes, made
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.world import OnProgress, silently

PARTS: Mapping[str, Callable[[Setting, OnProgress], list[dict[str, Any]]]] = {
    "replicas": replicas.measure,
    "versions": versions.measure,
    "rotation": rotation.measure,
}
QUICK = Sizes(
    seconds=20.0, rate=20.0, pictures=100, questions=20, pause_s=1.5, down_s=1.0, indexed=200, index_within_s=3.0
)
SLOW_MS = 1000.0  # an answer that took longer is named
HONESTY = (
    "Servers, clients and the indexing share one machine and one loopback: a killed process closes its connections at "
    "once, which a machine without power or a cut cable does not; then a question waits for its deadline. The replicas "
    "have galleries on their own disk, of one snapshot. What is counted as an error is what a `Client` raises after "
    f"its own retries; in the part of certificates nobody tries again. Scores of one answer may differ by {COSINE:g}. "
    "What a server turned away because it had too much to do is counted apart. Times are of a machine on which "
    "everything at once was running."
)


def measure(
    bundle: Path,
    *,
    parts: Sequence[str] = tuple(PARTS),
    sizes: Sizes | None = None,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench chaos` says, as one JSON object; times in ms.

    `broken` holds what should have been none and was not. Raises the PocketlensError of whatever part could not be
    carried out, such as a server that does not come up again."""
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as home:
        setting = made(bundle, Path(home), sizes or Sizes(), seed, on_progress)
        return measured(setting, parts=parts, on_progress=on_progress)


def measured(setting: Setting, *, parts: Sequence[str], on_progress: OnProgress = silently) -> dict[str, Any]:
    """`measure` upon what was made."""
    load, began = load_now(), perf_counter()
    left_out, tables = list[str](), list[dict[str, Any]]()
    for part in parts:
        if part == "rotation" and not HAS_OPENSSL:
            left_out.append("certificates and keys: the openssl command, which makes certificates, is not here")
            continue
        tables += PARTS[part](setting, on_progress)
    wrong = broken(tables)
    return {
        "benchmark": "chaos",
        "set": "sample",
        "tables": tables,
        "broken": wrong,
        "lost": [*wrong, *felt(tables)],
        "left_out": left_out,
        "honesty": HONESTY,
        "conditions": conditions(
            setting.bundle,
            load=load,
            load_at_end=load_now(),
            seconds=round(perf_counter() - began, 1),
            threads={"each server's runs": 1},
            seeds={"disturbances and arrivals": setting.seed},
            sizes=asdict(setting.sizes),
        ),
    }


def felt(tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where nothing broke and a client felt it all the same."""
    for table in tables:
        for row in table["rows"]:
            where = f"{table['title']}, {row['name']}"
            if row["turned_away"]:
                yield f"{where}: {row['turned_away']:,} of {row['asked']:,} questions were turned away for load"
            if row["slowest_ms"] > SLOW_MS:
                yield f"{where}: the slowest answer took {row['slowest_ms']:,.0f} ms, p50 is {row['p50_ms']:.0f} ms"
