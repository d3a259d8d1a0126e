"""Console table of `network`. Computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]


def print_network(console: Console, result: Json) -> None:
    """A table per profile with a row per way, then what was lost, then what is modelled."""
    rows = result["tables"][0]["rows"]
    for profile in dict.fromkeys(row["profile"] for row in rows):
        console.print(ways_table(profile, [row for row in rows if row["profile"] == profile]))
    for said in [*(f"Loses: {said}." for said in result["lost"]), f"Read with care: {result['honesty']}"]:
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    for line in condition_lines(result["conditions"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def ways_table(profile: str, rows: Sequence[Json]) -> Table:
    """Bytes and times of each way over one network."""
    shown = Table(title=profile, title_justify="left")
    shown.add_column("asked with")
    for name in ("bytes up", "p50 ms", "p95 ms", "first ms", "p95 over tokens"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = (f"{row[name]:,.0f}" for name in ("p50_ms", "p95_ms", "first_ms"))
        ratio = row.get("p95_over_tokens")
        said = f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""
        shown.add_row(row["way"], f"{row['up_bytes']:,}", *times, said)
    return shown
