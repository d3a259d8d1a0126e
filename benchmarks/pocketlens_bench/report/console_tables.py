"""The token table and the robustness table as people read them on a terminal.

Takes the JSON objects of token_table.py and robustness.py as they are; computes nothing. Called by cli/."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]

INTERVALS = "After ±: half of the 95 % interval by bootstrap over queries; both ends are in the JSON."


def print_tokens(console: Console, result: Json) -> None:
    """A table per kind of question, then the students and what to know."""
    metrics = ("R@1", "R@10", "mAP@10")
    for table in result["tables"]:
        _heading(console, f"{table['title']}: {table['queries']:,} queries, {table['gallery']:,} pictures")
        shown = _table(["asked with"], ["bytes", *(f"{name} %" for name in metrics)])
        for before, row in zip([None, *table["rows"]], table["rows"], strict=False):
            if before and before["tokens"] != row["tokens"]:
                shown.add_section()
            mark = "" if row["offered"] else " *"
            shown.add_row(
                row["name"] + mark, f"{row['request_bytes']:,.0f}", *(_measured(row[name]) for name in metrics)
            )
        console.print(shown)
        shown = _table(["of", "over"], [f"{name}, points" for name in metrics])
        for row in table["differences"]:
            if row["about"] == "tokens":
                shown.add_row(row["of"], row["over"], *(_measured(row[name], sign="+") for name in metrics))
        if shown.row_count:
            console.print(shown)
        console.print()
    _print_lines(console, _token_notes(result))


def _token_notes(result: Json) -> Iterator[str]:
    yield INTERVALS
    yield f"* {result['precisions']}."
    yield f"Bytes: the request message, a mean over the questions. All rows zero-shot. {result['why_this_gallery']}."
    for student in result["students"]:
        macs = student["million_multiply_adds"]
        whose = ", the bundle's own" if student["own"] else ""
        cost = f", {macs:.1f} million multiply-adds" if macs else ""
        yield f"{student['tokens']} tokens: {student['encoder']}{whose}; {student['graph_bytes'] / 1e6:.2f} MB{cost}."
    yield from _common_notes(result)


def print_robustness(console: Console, result: Json) -> None:
    """By corruption and by severity, every row beside the others; then what loses more."""
    for table in result["tables"]:
        title = table["title"]
        _heading(console, f"{title}: {table['queries']:,} queries, {table['gallery']:,} pictures")
        _heading(console, "R@10 %, mean of the five severities")
        console.print(_by_corruption(table, "R@10"))
        _heading(console, f"{title}: R@10 %, mean of the corruptions")
        console.print(_by_severity(table, "R@10"))
        _heading(console, f"{title}: paired differences")
        console.print(_fragility(table, "R@10"))
        console.print()
    _print_lines(console, _robustness_notes(result))


def _by_corruption(table: Json, metric: str) -> Table:
    rows = table["rows"]
    shown = _table(["corruption"], [row["name"] for row in rows])
    shown.add_row("clean", *(_measured(row["clean"][metric]) for row in rows))
    shown.add_section()
    for place, corruption in enumerate(rows[0]["corruptions"]):
        shown.add_row(corruption["name"], *(_measured(row["corruptions"][place][metric]) for row in rows))
    shown.add_section()
    shown.add_row("mean", *(_measured(row["corrupted"][metric]) for row in rows))
    shown.add_row("lost", *(_measured(row["corrupted"]["drop"][metric]) for row in rows))
    return shown


def _by_severity(table: Json, metric: str) -> Table:
    rows = table["rows"]
    shown = _table(["severity"], [row["name"] for row in rows])
    for place, severity in enumerate(rows[0]["severities"]):
        shown.add_row(str(severity["severity"]), *(_measured(row["severities"][place][metric]) for row in rows))
    return shown


def _fragility(table: Json, metric: str) -> Table:
    shown = _table([f"{metric}, points"], ["clean", "corrupted", "more lost"])
    for row in table["differences"]:
        shown.add_row(
            f"{row['of']} over {row['over']}",
            *(_measured(row[key][metric], sign="+") for key in ("clean", "corrupted", "more_lost")),
        )
    return shown


def _robustness_notes(result: Json) -> Iterator[str]:
    yield INTERVALS
    yield (
        "More lost: points that the first loses against its own clean result beyond those the second loses; above 0 "
        "the first is more fragile, if both find about as much in clean pictures."
    )
    yield from (f"{name}: {says}." for name, says in result["rows"].items())
    for each in result["corruptions"]:
        yield f"{each['name']}: {each['says']}; {', '.join(f'{level:g}' for level in each['levels'])}."
    yield "Corruptions after the idea of ImageNet-C (Hendrycks and Dietterich 2019), strengths ours, for 96 pixels."
    yield from _common_notes(result)


def _common_notes(result: Json) -> Iterator[str]:
    yield f"Ranking: {result['ranking']}."
    yield from (f"Left out: {said}." for said in result["left_out"])
    yield from (f"Lost: {said}." for said in result["lost"])
    yield f"Read with care: {result['training']}. {result['honesty']}"
    yield from condition_lines(result["conditions"])


def _table(texts: list[str], numbers: list[str]) -> Table:
    shown = Table()
    for name in texts:
        shown.add_column(name, no_wrap=True)
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _heading(console: Console, text: str) -> None:
    console.print(text, style="bold", markup=False, highlight=False)


def _print_lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _measured(figure: Mapping[str, float], *, sign: str = "") -> str:
    return f"{figure['value']:{sign}.1f} ±{(figure['high'] - figure['low']) / 2:.1f}"
