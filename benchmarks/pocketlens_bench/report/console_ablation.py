"""The ablation as people read it on a terminal. Takes the JSON object of ablation/driver.py; computes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]
OVER = "over_base"
NARROW = (
    ("composed R@10", "composed\nR@10"), ("composed mAP@10", "composed\nmAP@10"), ("sketch R@10", "sketch\nR@10"),
    (f"{OVER} composed mAP@10", "over base\nmAP@10"),
)  # fmt: skip
WIDE = (
    *NARROW[:3], ("sketch_and_words R@10", "+ words\nR@10"), ("pale_sketch R@10", "pale\nR@10"),
    (f"{OVER} composed R@10", "over base\nR@10"), NARROW[3],
)  # fmt: skip
ENOUGH = 112  # characters: room for WIDE beside the longest names
CONTROLLED = ("composed R@10", "composed mAP@10")


def print_ablation(console: Console, result: Json) -> None:
    """A table with a heading per group, targets over their controls, then conditions and what it does not say."""
    (table,) = result["tables"]
    _say(console, table["title"], style="bold")
    console.print(_cells(table["rows"], WIDE if console.width >= ENOUGH else NARROW))
    console.print()
    if any("over_control" in row for row in table["rows"]):
        _say(console, "Targets over their controls", style="bold")
        console.print(_controls(table["rows"]))
        console.print()
    for line in _notes(result):
        _say(console, line)


def _cells(rows: Sequence[Json], columns: Sequence[tuple[str, str]]) -> Table:
    most = max(row["seeds"] for row in rows)
    shown = _table(["cell"], [heading for _, heading in columns])
    for group, some in groupby(rows, key=lambda row: row["group"]):
        alone = group == "base"
        if not alone:
            shown.add_row(Text(group, style="bold"))
        for row in some:
            name = Text(f"{'' if alone else '  '}{row['name']}{_number(row)}", style="bold" if alone else "")
            if row["seeds"] < most:
                name.append(f", {row['seeds']} of {most} seeds")
            shown.add_row(name, *(_cell(row, key) for key, _ in columns))
    return shown


def _controls(rows: Sequence[Json]) -> Table:
    shown = _table(["of", "over"], [key.replace(" ", "\n") for key in CONTROLLED])
    for row in rows:
        if over := row.get("over_control"):
            shown.add_row(
                row["name"], row["control"], *(_measured(over[key], over["seeds"], sign="+") for key in CONTROLLED)
            )
    return shown


def _cell(row: Json, key: str) -> str:
    what, _, metric = key.partition(" ")
    if what != OVER:
        return _measured(row[key], row["seeds"]) if key in row else ""
    over = row.get(OVER, {})
    return _measured(over[metric], over["seeds"], sign="+") if metric in over else ""


def _number(row: Json) -> str:
    """What was chosen on the validation set: one number, or from the least to the largest over seeds."""
    numbers = row.get("numbers")
    if not numbers:
        return ""
    ends = sorted({min(numbers), max(numbers)})
    return f" ({' to '.join(f'{number:g}' for number in ends)})"


def _measured(figure: Mapping[str, float], seeds: int, *, sign: str = "") -> str:
    half = f" ±{(figure['high'] - figure['low']) / 2:.1f}" if seeds > 1 else ""
    return f"{figure['value']:{sign}.1f}{half}"


def _notes(result: Json) -> Iterator[str]:
    yield (
        "Percent, over base in points, paired by seed. After ±: half of the 95 % interval over seeds, wide for few. In "
        "brackets: the number chosen on the validation set. All figures are in the JSON, and `pocketlens-bench report` "
        "makes a page of it."
    )
    yield from (f"Left out: {said}." for said in result["left_out"])
    yield f"Read with care: {result['honesty']}"
    yield from condition_lines(result["conditions"])


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in texts:
        shown.add_column(name, overflow="fold", vertical="bottom")
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
