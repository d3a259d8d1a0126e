"""The simulation that plans stand on, beside a real server."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table, times
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
WAYS = {
    "measured": "measured",
    "simulated": "simulated",
    "simulated_without_the_way": "simulated from tower and search alone",
}


class Plan(Section):
    kind = "plan"

    def title(self, result: Result) -> str:
        return f"The simulation of plans against a real server ({result.data['set'].text()})"

    def blocks(self, result: Result) -> Iterator[Block]:
        sizes = result.conditions["sizes"]
        yield (
            "Plans (docs/scale.md) rest on a simulation of the service. Here it is held to a server on "
            f"{sizes['processors_measured'].whole()} processors, text tower in {result.data['precision'].text()}: the "
            "same arrivals, every cost measured on bare parts."
        )
        headings = ["offered, per s", "", "answered, per s", "p50 ms", "p95 ms", "p99 ms", "turned away"]
        yield table(headings, _rows(result), texts=2)
        costs = result.data["costs"]
        run, call, wait = (times(1e3 * costs[key].number()) for key in ("run_s", "loop_s", "way_s"))
        check, finish = (times(1e3 * costs[key]["p50"].number()) for key in ("check_s", "finish_s"))
        yield (
            f"Measured bare, in ms: a run of the tower {run} and for each token {1e3 * costs['token_s'].number():.4f}; "
            f"checks {check}, heads and search {finish}; a call without them {call} of processor and {wait} of waiting."
        )

    def lost(self, result: Result) -> list[str]:
        return result.data.sentences("lost")

    def cautions(self, result: Result) -> list[str]:
        machine = result.conditions["machine"]
        load = machine.get("load_at_start")
        if load is None or load.number() <= machine["cores"].number() / 2:
            return super().cautions(result)
        busy = (
            f"The machine had other work (load {load.number():.0f} at the start): the served run waited for it, and "
            "the bare parts' times are the processor's own. Measure again on an idle one"
        )
        return [busy, *super().cautions(result)]


def _rows(result: Result) -> Iterator[list[str]]:
    for row in result.data["rows"].each():
        for key, name in WAYS.items():
            yield [
                f"{row['measured']['offered_per_s'].number():.1f}" if key == "measured" else "",
                name,
                *_figures(row[key]),
            ]


def _figures(one: Node) -> list[str]:
    return [
        f"{one['achieved_per_s'].number():.1f}",
        *(times(one[quantile].number()) for quantile in QUANTILES),
        f"{one['shed_share'].number():.0%}",
    ]
