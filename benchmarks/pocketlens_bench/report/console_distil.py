"""A distillation's pace as people read it on a terminal. Takes the JSON object of distil_pace.py; computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_distil(console: Console, result: Mapping[str, Any]) -> None:
    """A table, then what it does not say and the conditions."""
    (table,) = result["tables"]
    _say(console, table["title"], style="bold")
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("a step", overflow="fold")
    for heading in ("seconds", "pictures/s", "of bare"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table["rows"]:
        pace, share = f"{row['pictures_per_second']:,.0f}", f"{row['of_bare']:.0%}"
        shown.add_row(row["name"], f"{row['seconds_per_step']:.3f}", pace, share)
    console.print(shown)
    console.print()
    needs, student, conditions = result["needs"], result["student"], result["conditions"]
    _say(
        console,
        f"A picture needs {needs['gflops_per_picture']:,.2f} GFLOP, and "
        f"{needs['remembered_mb_per_picture']:,.1f} MB while "
        f"it is learned from; weights: {needs['frozen_mb']:,.0f} MB frozen, {needs['trained_mb']:,.0f} MB trained.",
    )
    _say(
        console,
        f"The student has {student['parameters']:,} parameters and takes {student['multiply_adds'] / 1e6:,.1f} million "
        "multiply-adds for a picture.",
    )
    _say(
        console,
        f"On {conditions['device']} in {conditions['precision']}, {conditions['sizes']['batch']} pictures a step.",
    )
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(conditions):
        _say(console, line)


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
