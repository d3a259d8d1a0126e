"""What survives under load, as people read it on a terminal. Takes the JSON object of chaos/driver.py."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_chaos(console: Console, result: Mapping[str, Any]) -> None:
    """Of each part what its clients saw and what else was counted; then what broke, and the conditions."""
    for table in result["tables"]:
        console.print(table["title"], style="bold", highlight=False)
        if table["rows"]:
            console.print(_shown(table))
        for row in table["rows"]:
            if late := row["errors"].get("TooLate"):
                _say(console, f"  {row['name']}: late while the machine stood still: {still_text(row, late)}")
        for fact in table["facts"]:
            must = "  (must be 0)" if fact["must_be_zero"] else ""
            _say(console, f"  {fact['name']}: {count_text(fact['value'])}{must}")
    for said in result["broken"]:
        _say(console, f"BROKEN: {said}.")
    if not result["broken"]:
        _say(console, "Nothing broke: no error, no wrong answer, nothing lost.")
    lines = [
        *(f"Loses: {said}." for said in result["lost"] if said not in result["broken"]),
        *(f"Left out: {said}." for said in result["left_out"]),
        f"Read with care: {result['honesty']}",
        *condition_lines(result["conditions"]),
    ]
    for line in lines:
        _say(console, line)


def _shown(table: Mapping[str, Any]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("asked by", no_wrap=True)
    for heading in ("asked", "errors", "wrong", "away", "p50 ms", "p99 ms", "slowest"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table["rows"]:
        shown.add_row(
            row["name"], f"{row['asked']:,}", f"{sum(row['errors'].values()):,}", f"{wrong_answers(row):,}",
            f"{row['turned_away']:,}", *(f"{row[key]:,.0f}" for key in ("p50_ms", "p99_ms", "slowest_ms")),
        )  # fmt: skip
    return shown


def wrong_answers(row: Mapping[str, Any]) -> int:
    return row["mixed"] + row["differing"] + row["of an unknown generation"]


def still_text(row: Mapping[str, Any], late: int) -> str:
    still = row["late_while_still"]
    return "not known" if still is None else f"{still:,} of {late:,} late ones; their asker itself awoke 50 ms late"


def count_text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
