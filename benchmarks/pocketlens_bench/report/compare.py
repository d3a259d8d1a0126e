"""Two results of the same kind, laid side by side: better, worse, or within noise.

Owns when a difference counts. Called by cli/report.py."""

from collections.abc import Iterator, Mapping
from math import hypot
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pocketlens_bench.protocols.figures import CONFIDENCE, Figure, over_queries
from pocketlens_bench.report.console import BUSY
from pocketlens_bench.report.quantities import Quantity, quantities
from pocketlens_bench.report.results import BadResult, Node, Result

BETTER, WORSE, NOISE = "better", "worse", "within noise"
PAIRED = "paired bootstrap over the same queries"
INTERVALS = "intervals: the difference against the root of the summed squares of both half-widths"
RATIO = "ratio: times have no interval here"
EXACT = "exact: any difference counts"
JITTER = {"ms": 0.05, "s": 5e-5}  # below, a difference is the clock's and the scheduler's, whatever its ratio
TIMED = ("ms", "s", "per s", "share of time")


def compared(old: Result, new: Result, *, everything: bool, scatter: float, seed: int) -> dict[str, Any]:
    """Everything `pocketlens-bench compare` says, as one JSON object.

    scatter: ratio of times, less 1, below which they count as equal. Raises BadResult for different kinds or sets."""
    if (old.kind, old.about) != (new.kind, new.about):
        raise BadResult(
            f"{old.name} is {_about(old)}, {new.name} is {_about(new)}: compare two results of one kind and set"
        )
    before, after = (quantities(each.data, breakdowns=everything) for each in (old, new))
    rows = [judged(before[name], after[name], scatter=scatter, seed=seed) for name in before if name in after]
    if not rows:
        raise BadResult(
            f"{old.name} and {new.name} have no figure in common: {next(iter(before), 'nothing')} stands against "
            f"{next(iter(after), 'nothing')}. Two rankings are compared by `pocketlens-bench score --against`"
        )
    verdicts = [row["verdict"] for row in rows]
    return {
        "compared": new.kind,
        "set": new.about,
        "old": old.name,
        "new": new.name,
        "counts": {verdict: verdicts.count(verdict) for verdict in (BETTER, WORSE, NOISE)},
        "by_chance": round((1 - CONFIDENCE) * sum(row["by"] in (PAIRED, INTERVALS) for row in rows), 1),
        "methods": list(dict.fromkeys(row["by"] for row in rows)),
        "scatter": scatter,
        "warnings": list(_warnings(old, new, timed=any(row["unit"] in TIMED for row in rows))),
        "only_old": [name for name in before if name not in after],
        "only_new": [name for name in after if name not in before],
        "rows": [row for row in rows if everything or row["verdict"] != NOISE],
    }


def judged(old: Quantity, new: Quantity, *, scatter: float, seed: int) -> dict[str, Any]:
    """One number before and after."""
    by, low, high = _difference(old, new, seed=seed)
    if by == RATIO:
        ratio = new.value / old.value if old.value else 1.0 if new.value == old.value else float("inf")
        apart = abs(new.value - old.value) > JITTER.get(new.unit, 0)
        beyond = apart and (ratio > 1 + scatter or ratio < 1 / (1 + scatter))
    else:
        ratio = None
        beyond = low > 0 or high < 0
    up = (new.value > old.value) == new.more_is_better
    return {
        "name": new.name,
        "unit": new.unit,
        "old": old.value,
        "new": new.value,
        "difference": None if by == RATIO else {"value": new.value - old.value, "low": low, "high": high},
        "ratio": ratio if ratio is None or np.isfinite(ratio) else None,
        "by": by,
        "verdict": NOISE if not beyond else BETTER if up else WORSE,
    }


def _difference(old: Quantity, new: Quantity, *, seed: int) -> tuple[str, float, float]:
    """How the two are compared, and the interval of new less old."""
    apart = new.value - old.value
    if old.per_query and new.per_query and old.queries and old.queries == new.queries:
        pair = [figure_of(each) for each in (new, old)]
        same = [np.isclose(figure.value, each.value) for figure, each in zip(pair, (new, old), strict=True)]
        if all(same) and pairable(*pair):
            found = pair[0].minus(pair[1], seed=seed)
            return PAIRED, found.low, found.high
    if old.low is not None and old.high is not None and new.low is not None and new.high is not None:
        # Each end against the other's opposite end: intervals need not be symmetric.
        down = hypot(new.value - new.low, old.high - old.value)
        up = hypot(new.high - new.value, old.value - old.low)
        return INTERVALS, apart - down, apart + up
    if new.unit in TIMED:
        return RATIO, apart, apart
    return EXACT, apart, apart


def figure_of(each: Quantity) -> Figure:
    """The figure that a file's values of its queries make. Raises BadResult when they do not fit together."""
    values = np.array(each.per_query)
    if each.averaged is None:
        return over_queries(each.name, "", values)
    group = np.array([place.whole() for place in each.averaged["group"].each()], np.intp)
    names = tuple(name.text() for name in each.averaged["groups"].each())
    weights = np.array([weight.number() for weight in each.averaged["weights"].each()])
    decimals = each.averaged.get("group_decimals")
    if len(group) != len(values) or len(weights) != len(names) or group.max(initial=-1) >= len(names):
        raise each.averaged.wrong("a group for each query and a weight for each group")
    return Figure(
        name=each.name, says="", values=values, group=group, groups=names, weights=weights,
        group_decimals=decimals.whole() if decimals else None,
    )  # fmt: skip


def pairable(these: Figure, those: Figure) -> bool:
    """Whether the same queries count, in the same groups, in both."""
    return (
        these.groups == those.groups
        and np.array_equal(these.group, those.group)
        and np.array_equal(np.isnan(these.values), np.isnan(those.values))
    )


# --- what makes a comparison unfair


def _warnings(old: Result, new: Result, *, timed: bool) -> Iterator[str]:
    before, after = old.conditions.value, new.conditions.value
    for key, said in (
        ("bundle", "bundles differ: that is the comparison, or a mistake"),
        ("seeds", "seeds differ: other queries or other resamples were drawn"),
        ("sizes", "sizes differ: figures of smaller sets are not those of larger ones"),
    ):
        for what in _differing(before.get(key), after.get(key)):
            yield f"{said} ({what})"
    for which, result in (("old", old), ("new", new)):
        if any(_of_one_seed(row) for each in result.data.each_of("tables") for row in each.each_of("rows")):
            yield f"rows of the {which} one have a single seed: their interval is not known, and any difference counts"
    if timed:
        yield from _time_warnings(before, after)


def _of_one_seed(row: Node) -> bool:
    seeds = row.get("seeds")
    return seeds is not None and seeds.value == 1


def _time_warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    machines = before["machine"], after["machine"]
    for what in _differing(*({key: machine.get(key) for key in ("cpu", "cores", "ram_gb")} for machine in machines)):
        yield f"machines differ: times tell about the machines ({what})"
    for what in _differing(before.get("threads"), after.get("threads")):
        yield f"threads differ: so do the times ({what})"
    for which, machine in zip(("old", "new"), machines, strict=True):
        if (machine.get("load_at_start") or 0) >= BUSY:
            yield f"other work ran on the machine when the {which} one was measured (load {machine['load_at_start']:g})"


def _differing(before: Any, after: Any) -> Iterator[str]:
    """`key: old, new` for all that differs; one line."""
    if before == after:
        return
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield f"{_short(before)}, {_short(after)}"
        return
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    told = [key for key in keys if before.get(key) is not None and after.get(key) is not None]
    if told:
        yield "; ".join(f"{key.replace('_', ' ')}: {_short(before[key])}, {_short(after[key])}" for key in told)


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:40]


def _about(result: Result) -> str:
    return f"`{result.kind}`{f' on {result.about}' if result.about else ''}"


# --- for people


def print_compared(console: Console, found: Mapping[str, Any]) -> None:
    """Warnings, a table of what changed, then how it was judged."""
    for said in found["warnings"]:
        _say(console, f"Warning: {said}.")
    rows = sorted(found["rows"], key=lambda row: (WORSE, BETTER, NOISE).index(row["verdict"]))
    if rows:
        shown = Table()
        for name in ("", "of"):
            shown.add_column(name, overflow="fold")
        for name in ("old", "new", "difference"):
            shown.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(row["verdict"], row["name"], _number(row, "old"), _number(row, "new"), _apart(row))
        console.print(shown)
    counts = found["counts"]
    _say(console, f"{counts[WORSE]} worse, {counts[BETTER]} better, {counts[NOISE]} within noise.")
    for said in _notes(found):
        _say(console, said)


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    for method in found["methods"]:
        yield f"Judged by {method}."
    if RATIO in found["methods"]:
        yield f"Times within {found['scatter']:.0%} of each other count as noise; --scatter sets it."
    if found["by_chance"] >= 1:
        yield (
            f"Of so many figures about {found['by_chance']:g} would differ by chance alone: look for what differs "
            "together."
        )
    for key, which in (("only_old", "old"), ("only_new", "new")):
        if names := found[key]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"Only in the {which} one: {'; '.join(names[:3])}{more}."


def _number(row: Mapping[str, Any], key: str) -> str:
    decimals = {"percent": 1, "points": 1, "bytes": 0, "count": 0}.get(row["unit"], 2)
    unit = {"percent": " %", "points": "", "times": "", "share": "", "share of time": "", "count": ""}.get(
        row["unit"], f" {row['unit']}"
    )
    return f"{row[key]:,.{decimals}f}{unit}"


def _apart(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "" if row["ratio"] is None else f"x {row['ratio']:.2f}"
    decimals = {"percent": 1, "points": 1, "bytes": 0, "count": 0}.get(row["unit"], 2)
    figure = row["difference"]
    shown = f"{figure['value']:+,.{decimals}f}"
    half = (figure["high"] - figure["low"]) / 2
    return f"{shown} ±{half:.{decimals}f}" if half else shown


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
