"""What students cost, beside two image towers."""

from collections.abc import Iterator, Sequence

from pocketlens_bench.report.blocks import Block, Picture, size, table, times
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # milliseconds


class Zoo(Section):
    kind = "zoo"

    def title(self, result: Result) -> str:
        del result
        return "Zoo: what a student costs"

    def blocks(self, result: Result) -> Iterator[Block]:
        data = result.data
        rows = [row for each in data["tables"].each() for row in each["rows"].each()]
        yield (
            "Backbones with the token learner, four tokens of the width named, and two image towers, exported and "
            "quantised by the same code; weights are drawn. Milliseconds of one picture at the median of "
            f"{result.conditions['sizes']['rounds'].whole()} rounds by turns, quartiles behind it."
        )
        yield Picture(
            "zoo-times",
            "Milliseconds of one picture with one thread, fp32 and int8, of "
            + ", ".join(r["name"].text() for r in rows),
            lambda canvas: draw(canvas, rows),
        )
        yield table(["", "pixels", "million parameters", "million multiply-adds", "int8 made"], map(_who, rows))
        yield table(
            ["", "", "file", "in ORT format", "1 thread, ms", "4 threads, ms", "most memory"],
            (line for row in rows for line in _forms(row)), texts=2,
        )  # fmt: skip
        yield (
            f"Memory is that of a process which only runs the graph, with one thread; Python, numpy and ONNX Runtime "
            f"alone take {size(data['empty_process_bytes'].number())} of it."
        )
        ratios = data["ratios"].each()
        if ratios:
            yield "**Ratios**, one thread, this run:"
            yield table(["", "times faster", "95 % interval", "asked for", ""], map(_ratio, ratios))
        stands = data.get("governor")
        yield (
            f"The processor's clock is set by `{stands.text()}`."
            if stands
            else ("This system does not say how the processor's clock is set.")
        )


def _who(row: Node) -> list[str]:
    return [
        row["name"].text(),
        f"{row['side'].whole()}",
        f"{row['parameters'].number() / 1e6:.1f}",
        f"{row['multiply_adds'].number() / 1e6:,.0f}",
        row["recipe"].text(),
    ]


def _forms(row: Node) -> Iterator[list[str]]:
    forms = row["forms"].each()
    for form in forms:
        yield [
            row["name"].text() if form is forms[0] else "",
            form["precision"].text(),
            size(form["graph_bytes"].number()),
            size(ort.number()) if (ort := form.get("ort_bytes")) else "",
            *(_time(form[threads]) for threads in ("threads_1", "threads_4")),
            size(form["peak_bytes"].number()),
        ]


def _time(node: Node) -> str:
    return f"{times(node['p50_ms'].number())} ({times(node['p25_ms'].number())} to {times(node['p75_ms'].number())})"


def _ratio(ratio: Node) -> list[str]:
    figure, least = ratio["times_faster"].figure(), ratio.get("least")
    verdict = {True: "PASS", False: "short of it", None: ""}[ratio["reached"].value]
    return [
        ratio["name"].text(), f"{figure.value:.2f}", f"{figure.low:.2f} to {figure.high:.2f}",
        f"{least.number():g}" if least else "", verdict,
    ]  # fmt: skip


def draw(canvas: Canvas, rows: Sequence[Node]) -> None:
    """A line for each row from int8 to fp32, the slowest above."""
    (axes,) = canvas.panels(1, 1, height=0.9 + 0.26 * len(rows))
    colours = canvas.theme.series
    handles = {}
    for place, row in enumerate(rows):
        found = {form["precision"].text(): form["threads_1"]["p50_ms"].number() for form in row["forms"].each()}
        axes.hlines(
            place, min(found["int8"], found["fp32"]), max(found["int8"], found["fp32"]), color=canvas.theme.grid
        )
        for precision, colour, mark in (("fp32", colours[0], "o"), ("int8", colours[1], "D")):
            (handles[precision],) = axes.plot(found[precision], place, mark, color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [row["name"].text() for row in rows])
    axes.invert_yaxis()
    seen = [form["threads_1"]["p50_ms"].number() for row in rows for form in row["forms"].each()]
    ticks = [tick for tick in TICKS if 0.6 * min(seen) <= tick <= 1.5 * max(seen)]
    canvas.log(axes, ticks, [f"{tick:g}" for tick in ticks])
    canvas.label(axes, x="milliseconds of one picture, one thread")
    canvas.legend(list(handles.values()), list(handles), columns=len(handles))
