"""The checklist of hostile inputs as people read it on a terminal. Takes the JSON object of hostile/run.py."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketlens_bench.hostile.case import Case
from pocketlens_bench.report.console import condition_lines


def print_checklist(cases: Iterable[Case]) -> None:
    """Every case: what it does, how it must end."""
    shown = _table("case", "does", "must end in")
    for each in cases:
        shown.add_row(each.id, escape(each.does), " or ".join(each.ends))
    Console().print(shown)


def print_hostile(console: Console, result: Mapping[str, Any]) -> None:
    """Every case, then the failures again, what was left out, and the conditions."""
    shown = _table("", "case", "does", "ended in")
    for row in result["rows"]:
        mark = "ok" if row["passed"] else "--" if row["left_out"] else "[red]NO[/red]"
        shown.add_row(mark, row["id"], escape(row["does"]), escape(row["came"]))
    console.print(shown)
    rows = {row["id"]: row for row in result["rows"]}
    for name in result["failed"]:
        row = rows[name]
        said = row["harm"] or f"ended in {row['came']}; right: {' or '.join(row['ends'])}"
        _say(console, f"{name}: {said}", style="red")
    for lacking, count in Counter(row["left_out"] for row in result["rows"] if row["left_out"]).items():
        _say(console, f"Left out: {count} cases that need {lacking}.")
    if result["not_tried"]:
        _say(console, f"Not tried, since the server was harmed: {len(result['not_tried'])} cases.", style="red")
    _say(console, f"{result['passed']} passed, {len(result['failed'])} failed.", style="bold")
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _table(*headings: str) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        shown.add_column(heading, overflow="fold", no_wrap=heading == "case")  # ids are copied, for --case
    return shown


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
