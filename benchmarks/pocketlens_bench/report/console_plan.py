"""A plan, and the simulation beside a real server, as people read them on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketlens_bench.plan_page import bytes_of, count, number
from pocketlens_bench.report.console import condition_lines

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


def print_plan(console: Console, result: Mapping[str, Any]) -> None:
    """Takes the JSON object of `pocketlens-bench plan`."""
    ask, took = result["ask"], result["times"]
    asked = f"{count(ask['pictures'])} pictures, {ask['questions_per_s']:,.0f} questions a second"
    _say(console, f"{asked}, searches walk {ask['form']}", style="bold")
    for what, said in _facts(result, took).items():
        _say(console, f"{what + ':':24}{said}")
    if not result["believable"]:
        _say(console, "Asking every shard is no longer a sensible design here: docs/scale.md says what would be.")
    _say(console, "Arithmetic and simulation from results of one machine; see docs/scale.md.")


def _facts(result: Mapping[str, Any], took: Mapping[str, float] | None) -> dict[str, str]:
    within, outside = (number(result[key] / 1e9) for key in ("network_bytes_s", "edge_bytes_s"))
    encode, build, hours = (number(result[key]) for key in ("encode_core_h", "build_core_h", "build_h"))
    quantiles = "" if took is None else ", ".join(f"{key[:3]} {took[key]:.0f} ms" for key in QUANTILES)
    return {
        "shards": f"{result['shards']:,}, {result['shards_a_node']} on a node, {result['copies']:.1f} copies of each",
        "gallery nodes": f"{result['gallery_nodes']:,}; {_several(result['nodes_for'])}",
        "breaks first": result["breaks_first"],
        "memory, disk": f"{bytes_of(result['ram_bytes'])}, {bytes_of(result['disk_bytes'])}",
        "server processes": f"{result['fronts']:,} on {result['front_nodes']:,} nodes",
        "one bears, a second": _several(result["front_limits"]),
        "search of one question": f"{number(result['search_cpu_s'])} s of a core over all shards",
        "network": f"{within} GB/s within, {outside} GB/s with devices",
        "indexing": f"{encode} core hours for vectors, {build} for graphs: {hours} h on the gallery's own cores",
        "times, simulated": quantiles or "not: too many shards for one question",
        "a million questions": f"{number(result['per_million'])}, at the prices that were assumed",
    }


def print_check(console: Console, result: Mapping[str, Any]) -> None:
    """Takes the JSON object of plan_check.py."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("offered, per s", "", "answered, per s", "p50 ms", "p95 ms", "p99 ms", "turned away"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in result["rows"]:
        offered = f"{row['measured']['offered_per_s']:.0f}"
        for name, key in (
            ("measured", "measured"), ("simulated", "simulated"), ("without the way", "simulated_without_the_way"),
        ):  # fmt: skip
            one = row[key]
            figures = (f"{one[key]:.1f}" for key in ("achieved_per_s", *QUANTILES))
            shown.add_row(offered if name == "measured" else "", name, *figures, f"{one['shed_share']:.0%}")
        errors = (f"{row['error'].get(key, 0.0):+.0%}" for key in ("achieved_per_s", *QUANTILES))
        shown.add_row("", "error", *errors, "")
    console.print(shown)
    _say(console, f"Read with care: {result['honesty']}")
    for line in condition_lines(result["conditions"]):
        _say(console, line)


def _several(several: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in several.items())


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False)
