"""What refining a question does, as people read it on a terminal. Takes the JSON object of refine.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.refine import Refine


def print_refine(console: Console, result: Mapping[str, Any]) -> None:
    """A table for each question, where it loses, and what to know."""
    for table in result["tables"]:
        _say(console, f"{table['title']}: {table['queries']:,} queries, {table['gallery']:,} pictures", style="bold")
        console.print(_table(table))
    _say(console, "Where it loses:", style="bold")
    for said in Refine().lost(Result(Path("this"), "refine", result["set"], Node("this", "", result))):
        _say(console, f"- {said}.")
    for said in result["left_out"]:
        _say(console, f"Left out: {said}.")
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _table(table: Mapping[str, Any]) -> Table:
    metrics = [name for name, value in table["rows"][0].items() if isinstance(value, dict)]
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("")
    for metric in metrics:
        shown.add_column(f"{metric}, %", justify="right", no_wrap=True)
    for row in table["rows"]:
        shown.add_row(row["name"], *(_measured(row[metric]) for metric in metrics))
    return shown


def _measured(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.1f} ±{(figure['high'] - figure['low']) / 2:.1f}"


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
