"""The simulation beside a real server: the same arrivals, costs taken from bare parts, never from the served run.

Owns the run, the comparison and its result. Called by cli/plan.py."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving.batching import Limits
from pocketlens_samples.queries import composed_set
from pocketlens_wire.errors import ServerFault

from pocketlens_bench.calibrate import costs_of, way
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import shelve
from pocketlens_bench.load import WARM_UP_S, Outcome, arrivals, told
from pocketlens_bench.server import serving
from pocketlens_bench.serving import (
    DISTINCT,
    GALLERY,
    LONGEST,
    SHORTEST,
    TURNED_AWAY,
    Asker,
    Texts,
    processors,
    steadily,
)
from pocketlens_bench.simulate import Costs, House, simulate
from pocketlens_bench.world import OnProgress, silently

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
OPEN = 40  # questions in the closed loop
MISSED = 0.25  # of what was measured: beyond, the results say so
HONESTY = (
    "Nothing of the simulation was fitted to the served run: the tower, the checks and the search were timed bare, in "
    "one process without a server; what a call costs beyond them by Describe, which asks neither. The served run "
    "only said what rates to ask at. Both see the same arrivals. Questions are words alone, one row each, none "
    "remembered."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """shares: offered rates as shares of what a closed loop got. seconds: of each rate; bare_s: of each bare rate."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.7, 0.85, 2.0)
    seconds: float = 20.0
    bare_s: float = 5.0


FULL = Sizes()
QUICK = Sizes(shares=(0.3, 0.8), seconds=3.0, bare_s=0.5)


def check(
    bundle: Path, *, precision: str = "fp32", threads: int = 1, sizes: Sizes = FULL, seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:  # fmt: skip
    """Everything `pocketlens-bench plan --check` says, as one JSON object; times in ms but for `costs`, in seconds.

    Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    split = processors()
    composer = Composer.load(bundle, threads=threads, precision=precision)
    batch = Limits(runs=max(1, len(split.measured) // threads), kept=0, packs=composer.packs)
    texts = Texts(composer, seed)
    asked = texts.some(DISTINCT)
    requests, rows = texts.requests_of(asked), texts.rows_of(asked)
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder:
        shelf = Path(folder) / "gallery"
        shelve(bundle, composed_set(queries=5, gallery=GALLERY), Path(folder) / "pictures", shelf, on_progress)
        on_progress("the bare parts", 0, len(sizes.shares) + 2)
        with EmbeddedGallery.open(shelf) as gallery:
            bare = costs_of(
                Service(composer, gallery),
                rows,
                requests,
                split,
                most_tokens=batch.most_tokens,
                seconds=sizes.bare_s,
                threads=threads,
            )
        options = ("--precision", precision, "--runs", batch.runs)
        with serving(bundle, shelf, threads=threads, more=options, processors=split.measured) as server:
            asker = Asker(server, split, requests)
            on_progress("the bare way", 1, len(sizes.shares) + 2)
            asker.closed(OPEN, WARM_UP_S)
            loop_s, way_s = way(asker, sizes.bare_s, OPEN)
            capacity = steadily(asker.closed(OPEN, sizes.bare_s), sizes.bare_s)
            if not capacity:
                raise ServerFault(f"no question was answered in {sizes.bare_s:g} s: measure on a calmer machine")
            served = []
            for at, share in enumerate(sizes.shares):
                on_progress(f"served at {share:g} of capacity", at + 2, len(sizes.shares) + 2)
                served.append(asker.open(share * capacity, sizes.seconds + WARM_UP_S, seed))
    costs = replace(bare, loop_s=loop_s, way_s=way_s)
    house = House(batch=batch, hands=1)  # one works while no search holds it up
    lengths = [(len(row.ids),) for row in rows]
    tables = [
        _row(share, outcomes, share * capacity, lengths, bare, costs, house, sizes, seed)
        for share, outcomes in zip(sizes.shares, served, strict=True)
    ]
    return {
        "benchmark": "plan",
        "set": composer.manifest.name,
        "precision": precision,
        "capacity_per_s": capacity,
        "rows": tables,
        "costs": _told_costs(costs),
        "lost": [said for row in tables for said in losses(row)],
        "honesty": HONESTY,
        "left_out": [],
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"each run of the tower": threads, "runs at once": batch.runs},
            seeds={"questions": seed, "arrivals": seed},
            sizes={
                **asdict(sizes), "processors_measured": len(split.measured), "processors_asking": len(split.asker),
                "shortest": SHORTEST, "longest": min(LONGEST, composer.manifest.context), "distinct": DISTINCT,
                "gallery": GALLERY,
            },
        ),
    }  # fmt: skip


def _row(
    share: float, outcomes: Sequence[Outcome], rate: float, lengths: Sequence[tuple[int]], bare: Costs, costs: Costs,
    house: House, sizes: Sizes, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """One rate: measured, simulated, and simulated from tower and search alone."""
    due = np.array(arrivals(rate, sizes.seconds + WARM_UP_S, seed))
    measured = told(outcomes, sizes.seconds)
    turned_away = sum(measured["statuses"].get(status, 0) for status in TURNED_AWAY) / max(measured["asked"], 1)
    simulated = simulate(due, lengths, costs, house, seed=seed).row(WARM_UP_S, sizes.seconds)
    return {
        "share_of_capacity": share,
        "measured": {key: measured[key] for key in ("offered_per_s", "achieved_per_s", *QUANTILES)}
        | {"shed_share": turned_away, "statuses": measured["statuses"]},
        "asker_late_p99_ms": measured["asker_late_p99_ms"],
        "simulated": simulated,
        "simulated_without_the_way": simulate(due, lengths, bare, house, seed=seed).row(WARM_UP_S, sizes.seconds),
        "error": {
            key: simulated[key] / measured[key] - 1 for key in ("achieved_per_s", *QUANTILES) if measured[key]
        },
    }  # fmt: skip


def _told_costs(costs: Costs) -> dict[str, Any]:
    """Costs as the plan reads them: samples as their quantiles."""
    return {
        "run_s": costs.run_s,
        "token_s": costs.token_s,
        "scatter": _quantiles(costs.scatter),
        "speeds": list(costs.speeds),
        "check_s": _quantiles(costs.check_s),
        "finish_s": _quantiles(costs.finish_s),
        "loop_s": costs.loop_s,
        "way_s": costs.way_s,
    }


def _quantiles(samples: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.quantile(samples, q / 100)) for q in (5, 25, 50, 75, 95, 99)}


def losses(row: dict[str, Any]) -> list[str]:
    """A sentence where the simulation misses."""
    missed = [key for key in QUANTILES if abs(row["error"].get(key, 0.0)) > MISSED]
    if not missed:
        return []
    said = ", ".join(f"{key[:3]} {row['simulated'][key]:,.0f}" for key in missed)
    were = ", ".join(f"{row['measured'][key]:,.0f}" for key in missed)
    return [f"at {row['measured']['offered_per_s']:.0f} questions a second it says {said} ms; measured were {were}"]
