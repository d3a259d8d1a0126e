"""Console tables of `scale` and `tradeoff`. Computes nothing."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.report.console import condition_lines

Json = Mapping[str, Any]
METRICS = ("R@1", "R@10", "mAP@10")


def print_scale(console: Console, result: Json) -> None:
    """A row per size of the gallery, then approximate search, then the check of the synthetic vectors."""
    shown = _table(["asked by", "gallery", "of it real"], [f"{metric} %" for metric in METRICS])
    for table in result["tables"]:
        for row in table["rows"]:
            figures = (f"{row[m]['value']:.1f} ±{(row[m]['high'] - row[m]['low']) / 2:.1f}" for m in METRICS)
            shown.add_row(table["title"], f"{row['gallery']:,}", f"{row['real']:,}", *figures)
    console.print(shown)
    if result["approximate"]:
        shown = _table(["asked by", "gallery"], ["ef", "recall", "R@10 exact", "R@10", "p50 ms", "p95 ms"])
        for row in result["approximate"]:
            shown.add_row(
                row["row"], f"{row['gallery']:,}", str(row["ef"]), f"{row['recall']:.3f}", f"{row['R@10 exact']:.1f}",
                f"{row['R@10 approximate']:.1f}", f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}",
            )  # fmt: skip
        console.print(shown)
    _lines(console, result)
    for checked in result["check"]:
        for name, metrics in checked["difference"].items():
            said = ", ".join(f"{m} {f['value']:+.1f} [{f['low']:+.1f}, {f['high']:+.1f}]" for m, f in metrics.items())
            console.print(
                f"{checked['synthetic']:,} of {checked['distractors']:,} distractors synthetic, {name}: "
                f"{said}", highlight=False, soft_wrap=True,
            )  # fmt: skip
    console.print(result["distractors"] + ".", highlight=False)
    _conditions(console, result)


def print_tradeoff(console: Console, result: Json) -> None:
    """A table per way of building; a row per way of walking and ef; the default is marked."""
    console.print(f"{result['title']}; recall of exact search's first ten; * the gallery's default", highlight=False)
    builds: dict[str, list[Json]] = {}
    for row in result["rows"]:
        built = f"m {row['m']}, ef_construct {row['ef_construct']}{', int8 copies' if row['quantised'] else ''}"
        builds.setdefault(built, []).append(row)
    for built, rows in builds.items():
        first = rows[0]
        console.print(
            f"{built}: built in {first['build_s']:,.0f} s with {first['build_peak_bytes'] / 1e9:.1f} GB, "
            f"{first['disk_bytes'] / 1e9:.1f} GB on disk, searched with {first['memory_bytes'] / 1e9:.1f} GB",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        shown = _table(["walked"], ["ef", "recall", "p50 ms", "p95 ms", "p99 ms"])
        for row in rows:
            mark = "*" if row == result["chosen"] else ""
            times = (f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
            shown.add_row(row["walked"], f"{mark}{row['ef']}", f"{row['recall']:.3f}", *times)
        console.print(shown)
    _lines(console, result)
    _conditions(console, result)


def _lines(console: Console, result: Json) -> None:
    for said in result["lost"]:
        console.print(f"Loses: {said}.", markup=False, highlight=False, soft_wrap=True)
    for said in result["left_out"]:
        console.print(f"Left out: {said}.", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Read with care: {result['honesty']}", markup=False, highlight=False, soft_wrap=True)


def _conditions(console: Console, result: Json) -> None:
    for line in condition_lines(result["conditions"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(texts: list[str], numbers: list[str]) -> Table:
    shown = Table()
    for name in texts:
        shown.add_column(name, no_wrap=True)
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown
