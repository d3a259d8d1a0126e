"""Indexing beside the bare image tower, as people read it on a terminal. Takes the JSON objects of indexing.py."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_indexing(console: Console, result: Mapping[str, Any]) -> None:
    """Rates and memory, the stages of each run; then what they do not say and the conditions."""
    console.print(f"Pictures a second, {result['set']}, image tower in {result['precision']}", style="bold")
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("decoded in", "per s", "bare tower", "share", "CPU ms", "bare", "whole s", "MB"):
        shown.add_column(heading, justify="left" if heading == "decoded in" else "right", no_wrap=True)
    for row in result["rows"]:
        figures = (
            f"{row['per_s']:,.1f}", f"{row['bare_per_s']:,.1f}", f"{row['share']:.0%}", f"{row['cpu_ms']:,.1f}",
            f"{row['bare_cpu_ms']:,.1f}", f"{row['whole_s']:,.1f}", f"{row['memory_mb']:,.0f}",
        )  # fmt: skip
        shown.add_row(row["decode"], *figures)
    console.print(shown)
    for row in result["rows"]:
        stages = ", ".join(f"{stage} {spent:,.1f}" for stage, spent in row["stages_s"].items())
        _say(console, f"Seconds, in {row['decode']}: {stages}.")
    if apart := [row["largest_decoder_mb"] for row in result["rows"] if row["decode"] == "processes"]:
        _say(console, f"A decoding process had at most {max(apart):,.0f} MB.")
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def print_kills(console: Console, result: Mapping[str, Any]) -> None:
    found = [f"{count} {name}" for name, count in result["faults"].items() if count]
    _say(
        console,
        f"{result['kills']} kills in {result['runs']} runs, {result['seconds']:g} s, {result['finished']} runs came to "
        f"their end. Of {result['pictures']} pictures "
        + (f"{', '.join(found)}." if found else f"none is {', '.join(result['faults'])}."),
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
