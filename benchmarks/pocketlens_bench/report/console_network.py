"""Console table of `network`. Computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]


def print_network(console: Console, result: Json) -> None:
    """A row per profile and way, then what was lost, then what is modelled."""
    shown = Table()
    for name in ("network", "asked with", "bytes up", "p50 ms", "p95 ms", "first ms", "p95 / tokens", "n"):
        shown.add_column(name, no_wrap=True)
    for row in result["tables"][0]["rows"]:
        times = (f"{row[name]:,.1f}" for name in ("p50_ms", "p95_ms", "first_ms"))
        ratio = row.get("p95_over_tokens")
        said = f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""
        shown.add_row(row["profile"], row["way"], f"{row['up_bytes']:,}", *times, said, str(row["rounds"]))
    console.print(shown)
    for said in [*(f"Loses: {said}." for said in result["lost"]), f"Read with care: {result['honesty']}"]:
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    for line in condition_lines(result["conditions"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
