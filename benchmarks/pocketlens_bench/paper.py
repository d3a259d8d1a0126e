"""The tables of a paper in one go: measured one after the other into a folder, then the page over all of them.

Owns which measurements belong to it, at which sizes, and whether a file that is already there is the one that would be
measured now. Measuring is the other modules' work. Called by cli/paper.py."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.command_line import remember_command
from pocketlens_bench.conditions import bundle_card
from pocketlens_bench.report.results import read_result
from pocketlens_bench.world import OnProgress, silently

Json = dict[str, Any]


class FolderTaken(PocketlensError):
    """The folder holds results of something else under a name that is needed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one whole run is made with."""

    bundle: Path
    quick: bool
    seed: int
    threads: int | None


@dataclass(frozen=True)
class Part:
    """One table.

    kind: of its results, and the command that measures it alone. sizes: what its card says of sizes when measured so.
    measure: measures it. options: of its command, for measuring it again so."""

    kind: str
    sizes: Callable[[Run], Mapping[str, Any]]
    measure: Callable[[Run, OnProgress], Json]
    options: Callable[[Run], Sequence[str]]


@dataclass(frozen=True)
class Done:
    """One table, ready. seconds: 0 for one that was there."""

    file: Path
    kept: bool
    seconds: float


def measured(
    parts: Sequence[Part], run: Run, folder: Path, *, on_progress: OnProgress = silently
) -> Iterator[tuple[Part, Done]]:
    """Measure each part into `folder`, unless it is there; what was measured stays if a later one fails.

    Raises FolderTaken, before anything is measured, for a file that holds something else."""
    folder.mkdir(parents=True, exist_ok=True)
    there = [part for part in parts if is_there(part, run, folder)]
    for number, part in enumerate(parts, start=1):
        file = _file(part, folder)
        if part in there:
            yield part, Done(file, kept=True, seconds=0.0)
            continue
        began = perf_counter()
        options = [*part.options(run), "--seed", str(run.seed), "--out", file.name]
        remember_command([part.kind, *options])
        head = f"{number} of {len(parts)}, {part.kind}"
        result = part.measure(run, lambda what, done, of, head=head: on_progress(f"{head}: {what}", done, of))
        _write(file, result)
        yield part, Done(file, kept=False, seconds=perf_counter() - began)


def is_there(part: Part, run: Run, folder: Path) -> bool:
    """Whether the folder holds this part of this run. Raises FolderTaken when its file is of another."""
    file = _file(part, folder)
    if not file.exists():
        return False
    found = read_result(file)
    card = found.conditions.value
    differs = [
        what
        for what, same in (
            ("kind", found.kind == part.kind),
            ("bundle", card.get("bundle") == bundle_card(run.bundle)),
            ("sizes", part.sizes(run).items() <= card.get("sizes", {}).items()),
            ("seed", card.get("seeds", {}).get("bootstrap") == run.seed),
        )
        if not same
    ]
    if differs:
        raise FolderTaken(
            f"{file}: measured before, with another {' and '.join(differs)}. "
            "Name another folder, or move the file away."
        )
    return True


def _file(part: Part, folder: Path) -> Path:
    return folder / f"{part.kind}.json"


def _write(file: Path, result: Json) -> None:
    """All or nothing: a file that is there is whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, file)


# --- the parts


def _latency(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.latency import measure

    return measure(run.bundle, **_latency_sizes(run), seed=run.seed, on_progress=on_progress)


def _latency_sizes(run: Run) -> dict[str, int]:
    return {"rounds": 50, "gallery": 1000} if run.quick else {"rounds": 500, "gallery": 3000}


def _latency_options(run: Run) -> list[str]:
    return [word for name, value in _latency_sizes(run).items() for word in (f"--{name}", str(value))]


def _robustness(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.robustness import FULL, QUICK, measure

    sizes = QUICK if run.quick else FULL
    return measure(run.bundle, sizes=sizes, seed=run.seed, threads=run.threads, on_progress=on_progress)


def _robustness_sizes(run: Run) -> Mapping[str, Any]:
    from pocketlens_bench.robustness import FULL, QUICK

    return asdict(QUICK if run.quick else FULL)


def _tokens(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.token_table import FULL, QUICK, measure

    sizes = QUICK if run.quick else FULL
    return measure(run.bundle, sizes=sizes, seed=run.seed, threads=run.threads, on_progress=on_progress)


def _tokens_sizes(run: Run) -> Mapping[str, Any]:
    from pocketlens_bench.token_table import FULL, QUICK

    return asdict(QUICK if run.quick else FULL)


def _network(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.network import PROFILES, measure

    profiles = [each for each in PROFILES if each.name in ("LAN", "4G")] if run.quick else PROFILES
    return measure(run.bundle, profiles=profiles, **_network_sizes(run), seed=run.seed, on_progress=on_progress)


def _network_sizes(run: Run) -> dict[str, Any]:
    from pocketlens_bench.network import BUDGET_S

    return {"gallery": 500, "budget_s": 1.0} if run.quick else {"gallery": 3000, "budget_s": BUDGET_S}


def _load(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.load import FULL, QUICK, measure

    return measure(run.bundle, sizes=QUICK if run.quick else FULL, seed=run.seed, on_progress=on_progress)


def _load_sizes(run: Run) -> Mapping[str, Any]:
    from pocketlens_bench.load import FULL, QUICK

    return _as_json(asdict(QUICK if run.quick else FULL))


def _as_json(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    """As a results file holds them: JSON knows lists, no tuples."""
    return json.loads(json.dumps(sizes))


def _scale(run: Run, on_progress: OnProgress) -> Json:
    from pocketlens_bench.cli.scale import default_cache
    from pocketlens_bench.scale import FULL, QUICK, measure

    sizes = QUICK if run.quick else FULL
    return measure(
        run.bundle, default_cache(), sizes=sizes, seed=run.seed, threads=run.threads, on_progress=on_progress
    )


def _scale_sizes(run: Run) -> Mapping[str, Any]:
    from pocketlens_bench.scale import FULL, QUICK

    return _as_json(asdict(QUICK if run.quick else FULL))


def _quick(run: Run) -> list[str]:
    return [*(["--quick"] if run.quick else []), *(["--threads", str(run.threads)] if run.threads else [])]


PARTS = (
    Part("latency", _latency_sizes, _latency, _latency_options),
    Part("network", _network_sizes, _network, lambda run: ["--quick"] if run.quick else []),
    Part("load", _load_sizes, _load, lambda run: ["--quick"] if run.quick else []),
    Part("scale", _scale_sizes, _scale, _quick),
    Part("robustness", _robustness_sizes, _robustness, _quick),
    Part("tokens", _tokens_sizes, _tokens, _quick),
)
