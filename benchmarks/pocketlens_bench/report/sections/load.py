"""What happens to the times when questions come faster: offered against achieved rate."""

from collections.abc import Iterator, Sequence

from pocketlens_bench.report.blocks import Block, Picture, table, times
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.latency import spoken
from pocketlens_bench.report.sections.section import Section

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
KEPT = 0.98  # of the offered rate: below, the server does not keep up


class Load(Section):
    kind = "load"

    def title(self, result: Result) -> str:
        del result
        return "Latency under load"

    def blocks(self, result: Result) -> Iterator[Block]:
        tables = result.data["tables"].each()
        yield (
            "Questions are sent at a set rate whether or not earlier ones are answered, and each is timed from the "
            "moment it was due: a slow server cannot slow down the asking and so hide its own delay."
        )
        titles = ", ".join(each["title"].text() for each in tables)
        alt = f"Achieved against offered rate, and p50, p95, p99 against offered rate: {titles}"
        yield Picture("load-rates", alt, lambda canvas: draw(canvas, tables))
        for each in tables:
            yield f"**{each['title'].text()}**"
            yield table(["offered, per s", "achieved, per s", "p50 ms", "p95 ms", "p99 ms", "failed"], _rows(each))
            if (rows := each["rows"].each())[0].get("stages"):
                yield (
                    "Where the time goes, p50 / p95 in ms of what was answered, by the offered rate. Waiting is what "
                    "the server's own stages leave: the way, and standing before the server's door."
                )
                yield table(["stage", *(f"{_offered(row):.0f} per s" for row in rows)], _stages(rows))

    def lost(self, result: Result) -> list[str]:
        said = result.data.sentences("lost")
        for each in () if said else result.data["tables"].each():
            behind = [row for row in each["rows"].each() if _achieved(row) < KEPT * _offered(row)]
            if behind:
                first = min(behind, key=_offered)
                said.append(
                    f"{each['title'].text()}: at {_offered(first):g} questions a second it no longer keeps up, "
                    f"{_achieved(first):.1f} are answered and p95 is {times(first['p95_ms'].number())} ms"
                )
        return said


def _offered(row: Node) -> float:
    return row["offered_per_s"].number()


def _achieved(row: Node) -> float:
    return row["achieved_per_s"].number()


def _rows(each: Node) -> Iterator[list[str]]:
    for row in each["rows"].each():
        failed = row.get("failed")
        yield [
            f"{_offered(row):.1f}",
            f"{_achieved(row):.1f}",
            *(times(row[quantile].number()) for quantile in QUANTILES),
            f"{failed.number():,.0f}" if failed else "",
        ]


def _stages(rows: Sequence[Node]) -> Iterator[list[str]]:
    for stage in rows[0]["stages"].keys():  # noqa: SIM118, a Node is no dict
        found = [row["stages"].get(stage) for row in rows]
        yield [
            spoken(stage),
            *(f"{times(one['p50_ms'].number())} / {times(one['p95_ms'].number())}" if one else "" for one in found),
        ]


# --- the plot


def draw(canvas: Canvas, tables: Sequence[Node]) -> None:
    """Left: achieved against offered, with the line of keeping up. Right: quantiles, on a logarithmic axis."""
    rates, waits = canvas.panels(1, 2, height=3.7)
    canvas.title(rates, "achieved rate")
    canvas.title(waits, "time to answer: p50, p95, p99, fainter")
    most = max(_offered(row) for each in tables for row in each["rows"].each())
    rates.plot([0, most], [0, most], color=canvas.theme.faint, linewidth=1, linestyle=(0, (2, 2)))
    handles = {}
    for each, style in zip(tables, canvas.styles(), strict=False):
        rows = sorted(each["rows"].each(), key=_offered)
        across = [_offered(row) for row in rows]
        (line,) = rates.plot(across, [_achieved(row) for row in rows], **style)
        handles[each["title"].text()] = line
        for quantile, shade in zip(QUANTILES, (1.0, 0.7, 0.45), strict=True):
            found = [row[quantile].number() for row in rows]
            waits.plot(across, found, **style, alpha=shade)
    highest = max(row["p99_ms"].number() for each in tables for row in each["rows"].each())
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if tick <= 2 * highest]
    canvas.log(waits, ticks, [f"{tick:,}" for tick in ticks], x=False)
    waits.set_xlim(0, 1.05 * most)
    rates.set_xlim(0, 1.05 * most)
    rates.set_ylim(0, 1.05 * most)
    canvas.label(rates, x="offered, questions a second", y="answered, a second")
    canvas.label(waits, x="offered, questions a second", y="ms from when it was due")
    canvas.legend(list(handles.values()), list(handles), columns=min(len(handles), 3))
