"""What the service makes of its processors, and what ten times too many questions do to it."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table, times
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
OF_THE_TOWER = 0.9  # served against the bare tower: the rest is what a service costs
OVER_THE_LIBRARY = {"fp32": 6.0, "int8": 10.0}
BEYOND_MS = 2.0  # p50 beyond tower and search, one question at a time
OF_CAPACITY = 0.9  # answered in overload
SLOWER = 2.0  # p99 of those answered in overload, against 70 % of capacity
LATE_MS = 20.0
STOLEN = 0.03
REFUSED_MS = 20.0  # p99 of being turned away
GROUPS = {
    "calm": "answered at 70 % of capacity",
    "accepted": "answered in overload",
    "turned_away": "turned away in overload",
    "after": "answered at 70 % again",
}


class Serving(Section):
    kind = "serving"

    def title(self, result: Result) -> str:
        return f"Serving, text tower in {result.data['precision'].text()}"

    def blocks(self, result: Result) -> Iterator[Block]:
        sizes, overload = result.conditions["sizes"], result.data["overload"]
        yield (
            f"Words of {sizes['shortest'].whole()} to {sizes['longest'].whole()} tokens, all lengths equally often, "
            f"{sizes['at_once'].whole()} questions open at a time. Everything measured has "
            f"{sizes['processors_measured'].whole()} processors."
        )
        yield table(
            ["", "per second", "served is", "processor ms a question"],
            (
                [
                    row["name"].text(),
                    f"{row['per_s'].number():,.1f}",
                    "" if at == 0 else f"{row['served_is'].number():.2f} times",
                    f"{row['processor_ms'].number():.1f}",
                ]
                for at, row in enumerate(result.data["rates"].each())
            ),
        )
        yield "**One question at a time, ms**"
        alone = result.data["unloaded"]
        yield table(
            ["", "p50", "p95", "p99"],
            (
                [name, *_quantiles(found)]
                for name, key in (
                    ("whole", "whole"),
                    ("tower and search", "tower_and_search"),
                    ("beyond them", "beyond"),
                    ("of that, in the service, from its first line to its last", "in_service"),
                    ("a gRPC call that asks nothing", "bare_call"),
                )
                if (found := alone.get(key))
            ),
        )
        yield (
            f"**{overload['offered_per_s'].number():,.0f} questions a second for {overload['seconds'].number():g} s, "
            f"of which {overload['goodput_per_s'].number():,.1f} a second were answered in time, "
            f"{overload['goodput_share'].number():.0%} of capacity**"
        )
        rows = [[name, *_quantiles(found)] for key, name in GROUPS.items() if (found := overload.get(key))]
        yield table(["ms", "p50", "p95", "p99"], rows)
        if punctual := overload.get("on_time"):
            yield (
                f"**The same, of seconds in which the asker itself was on time, "
                f"{punctual['share'].number():.0%} of overload's**"
            )
            rows = [[name, *_quantiles(found)] for key, name in GROUPS.items() if (found := punctual.get(key))]
            yield table(["ms", "p50", "p95", "p99"], rows)
        if memory := overload.get("memory_mb"):
            begin, end = memory["begin"].number(), memory["end"].number()
            yield f"Memory {begin:,.0f} MB at its beginning, {end:,.0f} at its end."

    def cautions(self, result: Result) -> list[str]:
        late, stolen = (
            result.data["overload"].get("asker_late_p99_ms"),
            result.conditions["machine"].get("stolen_share"),
        )
        said = [*super().cautions(result)]
        if late and late.number() > LATE_MS:
            said.append(
                f"in overload the asker itself was up to {late.number():,.0f} ms late (p99): its times say little"
            )
        if stolen and stolen.number() > STOLEN:
            said.append(f"the machine's host gave {stolen.number():.0%} of its time to others: trust ratios, not times")
        return said

    def lost(self, result: Result) -> list[str]:
        return [*self._slow(result), *self._overloaded(result.data["overload"])]

    def _slow(self, result: Result) -> Iterator[str]:
        rates = result.data["rates"].each()
        precision = result.data["precision"].text()
        for row in rates[1:]:
            least = OF_THE_TOWER if "bare" in row["name"].text() else OVER_THE_LIBRARY[precision]
            if (times_it := row["served_is"].number()) < least:
                yield f"served is {times_it:.2f} times `{row['name'].text()}`, less than the {least:g} meant"
        beyond = result.data["unloaded"]["beyond"]["p50_ms"].number()
        if beyond > BEYOND_MS:
            yield f"one question costs {beyond:.1f} ms beyond tower and search, more than the {BEYOND_MS:g} meant"

    def _overloaded(self, overload: Node) -> Iterator[str]:
        if (share := overload["goodput_share"].number()) < OF_CAPACITY:
            yield f"in overload {share:.0%} of capacity are answered, less than the {OF_CAPACITY:.0%} meant"
        calm, accepted, refused = (overload.get(key) for key in ("calm", "accepted", "turned_away"))
        if calm and accepted and _p99(accepted) > SLOWER * _p99(calm):
            slower = _p99(accepted) / _p99(calm)
            yield f"p99 of those answered in overload is {slower:.1f} times that at 70 %, above the {SLOWER:g} meant"
        if refused and _p99(refused) > REFUSED_MS:
            yield f"p99 of being turned away is {_p99(refused):.0f} ms, more than the {REFUSED_MS:g} meant"


def _p99(of: Node) -> float:
    return of["p99_ms"].number()


def _quantiles(of: Node) -> list[str]:
    return [times(of[quantile].number()) for quantile in QUANTILES]
