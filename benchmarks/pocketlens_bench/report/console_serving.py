"""What the service makes of its processors, as people read it on a terminal. Takes the JSON object of serving.py."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


def print_serving(console: Console, result: Mapping[str, Any]) -> None:
    """Rates, one question alone, overload; then what they do not say and the conditions."""
    served, *others = result["rates"]
    shown = _table(
        console, f"Questions a second, text tower in {result['precision']}", ["per s", "served is", "processor ms"]
    )
    shown.add_row(served["name"], f"{served['per_s']:,.1f}", "", f"{served['processor_ms']:.1f}")
    for row in others:
        shown.add_row(
            row["name"], f"{row['per_s']:,.1f}", f"{row['served_is']:.2f} times", f"{row['processor_ms']:.1f}"
        )
    console.print(shown)
    shown = _table(console, "One question at a time, ms", ["p50", "p95", "p99"])
    for name, key in (
        ("whole", "whole"),
        ("tower and search", "tower_and_search"),
        ("beyond", "beyond"),
        ("of it, in the service", "in_service"),
        ("a bare gRPC call", "bare_call"),
    ):
        shown.add_row(name, *(f"{result['unloaded'][key][quantile]:.2f}" for quantile in QUANTILES))
    console.print(shown)
    _print_overload(console, result["overload"])
    for said in result["left_out"]:
        _say(console, f"Left out: {said}.")
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _print_overload(console: Console, overload: Mapping[str, Any]) -> None:
    shown = _table(console, "Overload, ms", ["p50", "p95", "p99"])
    for name, key in (
        ("at 70 % of capacity", "calm"), ("answered in overload", "accepted"),
        ("turned away in overload", "turned_away"), ("at 70 % again", "after"),
    ):  # fmt: skip
        found = overload[key] or dict.fromkeys(QUANTILES, float("nan"))
        shown.add_row(name, *(f"{found[quantile]:.1f}" for quantile in QUANTILES))
    for name, key in (("at 70 %", "calm"), ("answered", "accepted"), ("turned away", "turned_away")):
        if found := overload["on_time"][key]:
            shown.add_row(f"{name}, asker on time", *(f"{found[quantile]:.1f}" for quantile in QUANTILES))
    console.print(shown)
    _say(console, f"The asker was on time in {overload['on_time']['share']:.0%} of overload's seconds.")
    _say(
        console,
        f"Of {overload['offered_per_s']:,.0f} questions a second for {overload['seconds']:g} s, "
        f"{overload['goodput_per_s']:,.1f} a second were answered in time, "
        f"{overload['goodput_share']:.0%} of capacity. "
        f"Statuses: {overload['statuses']['overload']}.",
    )
    if memory := overload["memory_mb"]:
        _say(console, f"Memory {memory['begin']:,.0f} -> {memory['end']:,.0f} MB, at most {memory['most']:,.0f}.")


def _table(console: Console, title: str, numbers: list[str]) -> Table:
    _say(console, title, style="bold")
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("", overflow="fold")
    for heading in numbers:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
