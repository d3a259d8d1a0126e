"""Every measured number of a result under a name of its own, so that two results can be laid side by side.

Owns which numbers are measurements, which way is better, and how an entry of a list is recognised in another file.
Knows no kind: it goes by the keys that all results share. Called by compare.py."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pocketlens_bench.report.results import Node

# What tells the entries of a list apart, in the order it is said.
NAMES = ("key", "name", "title")
IDENTITY = (
    "group", *NAMES, "of", "over", "profile", "way", "mode", "protocol", "task", "gallery", "real", "config", "m",
    "ef_construct", "ef", "quantised", "tokens", "precision", "severity", "offered_per_s",
)  # fmt: skip
SKIPPED = (
    "conditions",
    "differences",
    "per_query",
    "query_ids",
    "averaged",
    "profiles",
    "seeds",
    "sizes",
    "chosen",
    "tried",
    "over_base",
    "over_control",
    "runs",
)
BREAKDOWNS = ("groups", "severities", "drop", "p99_ms")  # parts of other figures, or too few values to be steady
LESS_IS_BETTER = ("drop", "more_lost")  # keys over figures that say how much was lost
TIMES = ("_ms", "_s")
SIZES = ("bytes", "_bytes", "_mb", "_gb")
RATES = ("achieved_per_s", "pictures_per_second")
SPANS = ("seconds_per_step",)
FAILURES = ("failed", "refused", "errors")
SHARES = ("recall",)
TIME_SHARES = ("of_bare",)  # as much a matter of the clock as times are
AMOUNTS = {  # what a thing takes, whatever the clock says
    "parameters": "count", "multiply_adds": "count", "gflops_per_picture": "GFLOP", "remembered_mb_per_picture": "MB",
    "frozen_mb": "MB", "trained_mb": "MB", "peak_mb": "MB", "binary_mb": "MB",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One measured number.

    name: where it stands, in words. low, high: its interval, or None. unit: percent, points, ms, s, bytes, times,
    per s, share, share of time, count, GFLOP or MB. more_is_better: which way is up. per_query: its values, if the
    file has them. queries: whose they are."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    more_is_better: bool
    per_query: tuple[float, ...] | None = None
    queries: tuple[str, ...] | None = None
    averaged: Node | None = None  # how the queries' values become the figure; None: by their plain mean


def quantities(data: Node, *, breakdowns: bool) -> dict[str, Quantity]:
    """All measured numbers of a result by name."""
    return {found.name: found for found in _walk(data, (), _Around(), breakdowns=breakdowns)}


@dataclass(frozen=True)
class _Around:
    """What was met on the way down."""

    row: Node | None = None
    queries: tuple[str, ...] | None = None
    averaged: Node | None = None
    loses: bool = False


def _walk(node: Node, way: tuple[str, ...], around: _Around, *, breakdowns: bool) -> Iterator[Quantity]:
    if node.is_figure():
        yield _figure(node, way, around)
    elif isinstance(node.value, dict):
        around = _Around(
            node if "per_query" in node.value else around.row,
            _queries(node) or around.queries,
            node.get("averaged") or around.averaged,
            around.loses,
        )
        for key in node.keys():  # noqa: SIM118, a Node is no dict
            if key in SKIPPED or (key in BREAKDOWNS and not breakdowns):
                continue
            below = replace(around, loses=around.loses or key in LESS_IS_BETTER)
            label = () if key in ("tables", "rows") else (key,)
            yield from _walk(node[key], (*way, *label), below, breakdowns=breakdowns)
    elif isinstance(node.value, list):
        for label, entry in _labelled(node):
            yield from _walk(entry, (*way, label), around, breakdowns=breakdowns)
    elif isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield from _number(node, way)


def _figure(node: Node, way: tuple[str, ...], around: _Around) -> Quantity:
    measured = node.figure()
    per_query = around.row["per_query"].get(way[-1]) if around.row and not around.loses else None
    times = way[-1].startswith("times_")
    return Quantity(
        name=" / ".join(way), value=measured.value, low=measured.low, high=measured.high,
        unit="times" if times else "points" if around.loses else "percent", more_is_better=not around.loses,
        per_query=tuple(map(_counted, per_query.each())) if per_query else None, queries=around.queries,
        averaged=around.averaged.get(way[-1]) if around.averaged else None,
    )  # fmt: skip


def _counted(value: Node) -> float:
    """A query's value; NaN where it does not count, which JSON says as null."""
    return float("nan") if value.value is None else value.number()


def _number(node: Node, way: tuple[str, ...]) -> Iterator[Quantity]:
    key = way[-1]
    unit = _unit(key)
    if unit and key not in IDENTITY:
        yield Quantity(
            name=" / ".join(way), value=node.number(), low=None, high=None, unit=unit,
            more_is_better=unit in ("per s", "share", "share of time"),
        )  # fmt: skip


def _unit(key: str) -> str:
    """Of a plain number by its key; "" for what is no measurement."""
    if key in RATES:
        return "per s"
    if key in SPANS:
        return "s"
    if key in SHARES:
        return "share"
    if key in TIME_SHARES:
        return "share of time"
    if key in AMOUNTS:
        return AMOUNTS[key]
    if key in FAILURES:
        return "count"
    if key.endswith("_per_s") or key in ("seconds", "delay_ms"):
        return ""
    if key.endswith(TIMES):
        return key.rpartition("_")[2]
    return "bytes" if key.endswith(SIZES) else ""


def _queries(node: Node) -> tuple[str, ...] | None:
    ids = node.get("query_ids")
    return tuple(str(each.value) for each in ids.each()) if ids else None


def _labelled(node: Node) -> Iterator[tuple[str, Node]]:
    """Entries of a list with what tells them apart; entries that say nothing go by their place."""
    entries = node.each()
    for labels in ([_name(entry) for entry in entries], [_description(entry) for entry in entries]):
        if all(labels) and len(set(labels)) == len(labels):
            yield from zip(labels, entries, strict=True)
            return
    yield from ((f"{place}", entry) for place, entry in enumerate(entries, start=1))


def _name(entry: Node) -> str:
    """What the entry is called, where it has a name: after its group, for another group may have the same name."""
    named = entry.value if isinstance(entry.value, dict) else {}
    name = next((named[key] for key in NAMES if isinstance(named.get(key), str)), "")
    return f"{named['group']}, {name}" if name and isinstance(named.get("group"), str) else name


def _description(entry: Node) -> str:
    """All that tells the entry apart from its neighbours."""
    said = entry.value if isinstance(entry.value, dict) else {}
    found = [(key, said[key]) for key in IDENTITY if isinstance(said.get(key), str | int | float)]
    return ", ".join(value if isinstance(value, str) else f"{key} {value:g}" for key, value in found)
