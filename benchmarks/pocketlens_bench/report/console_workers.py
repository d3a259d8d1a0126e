"""What more workers bring, as people read it on a terminal. Takes the JSON object of workers.py."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_workers(console: Console, result: Mapping[str, Any]) -> None:
    """A row for each number of workers; then what it does not say and the conditions."""
    columns = ("workers", "per s", "least", "most", "p50 ms", "p99 ms", "processors busy", "MB", "not answered")
    shown = Table(*columns, box=None, pad_edge=False)
    for row in result["rows"]:
        turns = row["turns"]
        times = [turn["times"] or {"p50_ms": float("nan"), "p99_ms": float("nan")} for turn in turns]
        shown.add_row(
            str(row["workers"]),
            *(f"{row[name]:,.0f}" for name in ("per_s", "least_per_s", "most_per_s")),
            *(f"{_mean([each[name] for each in times]):.1f}" for name in ("p50_ms", "p99_ms")),
            f"{_mean([turn['processors_busy'] for turn in turns]):.2f}",
            f"{_mean([turn['memory_mb'] for turn in turns]):,.0f}",
            f"{sum(turn['not_answered'] for turn in turns)}",
        )
    console.print(shown)
    for said in (f"Read with care: {result['honesty']}", *condition_lines(result["conditions"])):
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
