"""Console table of `load`. Computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines


def print_load(console: Console, result: Mapping[str, Any]) -> None:
    """A table per server, a row per offered rate; `late`: the asker's own p99."""
    for table in result["tables"]:
        console.print(f"{table['title']}: {table['capacity_per_s']:.0f} a second in a closed loop", highlight=False)
        shown = Table()
        for name in ("offered /s", "achieved /s", "p50 ms", "p95 ms", "p99 ms", "failed", "late ms"):
            shown.add_column(name, justify="right", no_wrap=True)
        for row in table["rows"]:
            numbers = (
                f"{row[name]:,.0f}" for name in ("offered_per_s", "achieved_per_s", "p50_ms", "p95_ms", "p99_ms")
            )
            shown.add_row(*numbers, f"{row['failed']:,}", f"{row['asker_late_p99_ms']:.1f}")
        console.print(shown)
    lines = [
        f"Tokens: {result['tokens_over_uploads']:.2f} times as many questions a second as uploads.",
        *(f"Loses: {said}." for said in result["lost"]),
        f"Read with care: {result['honesty']}",
        *condition_lines(result["conditions"]),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
