"""Console tables of `accuracy` on a benchmark other than the sample world. Computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketlens_bench.report.console import condition_lines
from pocketlens_bench.report.console_score import print_protocol

Json = Mapping[str, Any]
ASIDE = ("name", "against", "per_query", "of", "over")


def print_run(console: Console, result: Json) -> None:
    """A table per protocol, its statement first."""
    headlines = {protocol["name"]: protocol["headline"] for protocol in result["protocols"]}
    for protocol, table in zip(result["protocols"], result["tables"], strict=True):
        print_protocol(console, protocol)
        if result["limited"]:
            _line(console, "LIMITED to a part of the queries: not a benchmark number")
        _line(
            console, f"{table['queries']:,} queries, {table['gallery']:,} pictures, {len(table['missing']):,} missing."
        )
        if not table["rows"]:
            continue
        figures = [name for name in table["rows"][0] if name not in ASIDE]
        names = [name for name in headlines[table["key"]] if name in figures] or figures[:4]
        shown = Table("asked by", *(escape(f"{name} %") for name in names))
        for row in table["rows"]:
            shown.add_row(row["name"], *(_measured(row[name]) for name in names))
        for each in table["differences"]:
            shown.add_row(f"{each['of']} - {each['over']}", *(_measured(each[name], "+") for name in names))
        console.print(shown)
    for said in result["lost"]:
        _line(console, f"Loses: {said}.")
    for said in result["left_out"]:
        _line(console, f"Left out: {said}.")
    if result["written"]:
        _line(console, f"Written: {', '.join(result['written'])}.")
    _line(console, f"Ties broken: {result['ties']}. After ±: half of the 95 % interval. Other figures are in the JSON.")
    _line(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _line(console, line)


def _measured(figure: Mapping[str, float], sign: str = "") -> str:
    return f"{figure['value']:{sign}.1f} ±{(figure['high'] - figure['low']) / 2:.1f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
