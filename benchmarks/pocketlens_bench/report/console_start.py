"""The start of the device's process as people read it on a terminal. Takes the JSON object of start.py."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_start(console: Console, result: Mapping[str, Any]) -> None:
    """Both tables, then what they do not say and the conditions."""
    query, phases = result["tables"]
    shown = _table(console, query["title"], ["sent, ms", "p95", "answered", "peak MB"])
    for row in query["rows"]:
        times = [f"{row[key]:,.0f}" for key in ("request_ms", "request_p95_ms", "whole_ms")]
        shown.add_row(row["name"], *times, f"{row['peak_mb']:,.1f}")
    console.print(shown)
    shown = _table(console, phases["title"], ["ms", "share"])
    for row in phases["rows"]:
        shown.add_row(row["name"], f"{row['phase_ms']:,.1f}", f"{row['part']:.0%}")
    console.print(shown)
    if result["binary_mb"]:
        _say(console, f"The self-contained folder has {result['binary_mb']:,.0f} MB.")
    for said in result["left_out"]:
        _say(console, f"Left out: {said}.")
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _table(console: Console, title: str, numbers: list[str]) -> Table:
    _say(console, title, style="bold")
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("", overflow="fold")
    for heading in numbers:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
