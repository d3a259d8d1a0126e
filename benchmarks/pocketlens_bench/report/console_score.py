"""Console tables of `score` and `protocols`. Computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]
SAID = ("gallery", "queries", "ids", "exclusions", "denominators", "ties", "source")


def print_score(console: Console, result: Json) -> None:
    """Statement, figures, groups, differences, conditions."""
    (protocol,), (table,) = result["protocols"], result["tables"]
    print_protocol(console, protocol)
    _line(console, f"Ties broken: {result['ties']}. {table['queries']:,} queries, {table['gallery']:,} pictures.")
    figures = list(dict.fromkeys(name for row in table["rows"] for name in row if name not in ("name", "per_query")))
    shown = Table("figure, %", *(escape(row["name"]) for row in table["rows"]))
    for name in figures:
        shown.add_row(escape(name), *(_measured(row.get(name)) for row in table["rows"]))
    console.print(shown)
    for row in table["groups"]:
        if headline := [name for name in figures if name in row][:3]:
            console.print(_groups(row, headline))
    for each in table["differences"]:
        _line(console, f"{each['of']} less {each['over']}, points, paired:")
        console.print(_differences(each))
    for said in [*(f"Note: {note}." for note in result["left_out"]), f"Read with care: {result['honesty']}"]:
        _line(console, said)
    for line in condition_lines(result["conditions"]):
        _line(console, line)


def print_protocol(console: Console, protocol: Json) -> None:
    """One protocol's statement."""
    console.print(f"{protocol['name']}: {protocol['title']}", style="bold", markup=False, highlight=False)
    for key in SAID:
        _line(console, f"  {key}: {protocol[key]}")


def _groups(row: Json, names: Sequence[str]) -> Table:
    shown = Table(escape(f"{row['name']}, by group"), *map(escape, names))
    for group in row[names[0]]:
        shown.add_row(escape(group), *(_number(row[name][group]) for name in names))
    return shown


def _differences(each: Json) -> Table:
    shown = Table("figure", "difference", "95 % interval", "noise?", "better", "worse", "alike")
    for name, one in each.items():
        if name in ("of", "over"):
            continue
        shown.add_row(
            escape(name), f"{one['value']:+.2f}", f"{one['low']:+.2f} to {one['high']:+.2f}",
            "no" if one["beyond_noise"] else "may be",
            *(f"{one[f'queries_{how}']:,}" for how in ("better", "worse", "alike")),
        )  # fmt: skip
    return shown


def _measured(figure: Json | None) -> str:
    if figure is None:
        return "not known"
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _number(value: float | None) -> str:
    return "none counts" if value is None else f"{value:.2f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
