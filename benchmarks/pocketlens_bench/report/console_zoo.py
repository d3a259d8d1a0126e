"""The zoo as people read it on a terminal. Takes the JSON object of zoo.py; computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.blocks import size, times
from pocketlens_bench.report.console import condition_lines


def print_zoo(console: Console, result: Mapping[str, Any]) -> None:
    """A table, the ratios asked for, then what it does not say and the conditions."""
    (table,) = result["tables"]
    shown = _table(["", "pixels", "million parameters", "million mult.-adds"])
    for row in table["rows"]:
        shown.add_row(
            row["name"], str(row["side"]), f"{row['parameters'] / 1e6:.1f}", f"{row['multiply_adds'] / 1e6:,.0f}"
        )
    console.print(shown)
    console.print()
    shown = _table(["", "", "file", "1 thread", "4 threads", "memory"])
    for row in table["rows"]:
        for form in row["forms"]:
            shown.add_row(
                row["name"] if form is row["forms"][0] else "", form["precision"], size(form["graph_bytes"]),
                *(f"{times(form[threads]['p50_ms'])} ms" for threads in ("threads_1", "threads_4")),
                size(form["peak_bytes"]),
            )  # fmt: skip
    console.print(shown)
    console.print()
    for ratio in result["ratios"]:
        figure = ratio["times_faster"]
        asked = ""
        if ratio["least"] is not None:
            asked = f"; asked for {ratio['least']:g}: {'PASS' if ratio['reached'] else 'short of it'}"
        _say(
            console,
            f"{ratio['name']}, one thread: {figure['value']:.2f} times faster "
            f"({figure['low']:.2f} to {figure['high']:.2f}){asked}",
        )
    for said in result["lost"]:
        _say(console, f"Loses: {said}")
    for said in result["left_out"]:
        _say(console, f"Left out: {said}")
    _say(console, f"An empty process takes {size(result['empty_process_bytes'])} of the memory.")
    _say(console, f"Read with care: {result['honesty']}.")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _table(headings: list[str]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
