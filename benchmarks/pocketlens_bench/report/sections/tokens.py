"""How many tokens a picture needs, and in how many bits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pocketlens_bench.protocols.figures import Measured
from pocketlens_bench.report.blocks import Block, Picture, measured, size, table
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.accuracy import differences_table, headline
from pocketlens_bench.report.sections.section import Section

METRIC = "R@10"
TICKS = (200, 500, 1000, 2000, 5000, 10_000, 20_000)  # bytes
UNOFFERED = " \\*"  # a star, escaped for Markdown
DEFAULT = "int8"  # how tokens travel unless asked otherwise: the large mark
HOLLOW = {"int2 fitted": "int2, scale fitted"}
APART = "fitted"  # a precision whose scale was chosen otherwise, at the bytes of another: no point of the line


class Tokens(Section):
    kind = "tokens"

    def title(self, result: Result) -> str:
        del result
        return "Tokens: how many, and in how many bits"

    def cautions(self, result: Result) -> list[str]:
        training = result.data.get("training")
        return [*super().cautions(result), *([training.text()] if training else [])]

    def blocks(self, result: Result) -> Iterator[Block]:
        tables = result.data["tables"].each()
        yield (
            "A student for each number of tokens, taught alike; its tokens in every precision. Percent; after ± half "
            "of the 95 % interval. Bytes are those of the request message."
        )
        yield Picture(
            "tokens-bytes",
            f"{METRIC} against bytes of the request, a line for each number of tokens, for "
            f"{', '.join(each['title'].text() for each in tables)}",
            lambda canvas: draw(canvas, tables),
        )
        yield table(
            ["tokens", "encoder", "size", "million multiply-adds"], map(_student, result.data["students"].each())
        )
        for each in tables:
            metrics = each["rows"].each()[0].metrics()
            yield f"**{headline(each)}**"
            yield table(
                ["asked with", "tokens, bytes", "request, bytes", *metrics],
                (_row(row, metrics) for row in each["rows"].each()),
            )
            by_number = [row for row in each.each_of("differences") if _about(row) == "tokens"]
            if by_number:
                yield "Against the bundle's own number of tokens, query by query, in points:"
                yield differences_table(by_number)
        yield f"\\* {result.data['precisions'].text()}."


def _student(student: Node) -> list[str]:
    macs = student.get("million_multiply_adds")
    own = student.get("own")
    return [
        f"{student['tokens'].whole()}{' (the bundle)' if own and own.value else ''}",
        f"`{student['encoder'].text()}`",
        size(student["graph_bytes"].number()),
        f"{macs.number():.1f}" if macs else "",
    ]


def _row(row: Node, metrics: Sequence[str]) -> list[str]:
    offered = row["offered"].value
    return [
        row["name"].text() + ("" if offered else UNOFFERED),
        f"{row['token_bytes'].number():,.0f}",
        f"{row['request_bytes'].number():,.0f}",
        *(measured(row[metric].figure()) for metric in metrics),
    ]


def _about(row: Node) -> str:
    about = row.get("about")
    return about.text() if about else ""


# --- the plot


def draw(canvas: Canvas, tables: Sequence[Node]) -> None:
    """A panel per kind of question; a line per number of tokens from few bits to many, the default precision filled."""
    panels = canvas.panels(1, len(tables), height=3.7)
    handles: dict[str, Any] = {}
    hollow: dict[str, Any] = {}
    for axes, each in zip(panels, tables, strict=True):
        canvas.title(axes, each["title"].text())
        rows = each["rows"].each()
        groups = [(key, list(some)) for key, some in groupby(rows, lambda row: row["tokens"].whole())]
        for (count, some), colour in zip(groups, canvas.theme.series, strict=False):
            points = [_Point(row) for row in some]
            line = sorted((each for each in points if APART not in each.precision), key=lambda each: each.bytes)
            axes.plot([each.bytes for each in line], [each.figure.value for each in line], color=colour, linewidth=1.3)
            for point in points:
                mark = _mark(canvas, axes, point, colour)
                if point.precision == DEFAULT:
                    handles[f"k = {count}, {DEFAULT}"] = mark
                elif APART in point.precision or not point.row["offered"].value:
                    hollow.setdefault(HOLLOW.get(point.precision, "not on the wire"), mark)
            if some is groups[-1][1] and axes is panels[0]:
                _name_precisions(canvas, axes, points)
        _axes(canvas, axes, rows)
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
        axes.set_ylim(low, high + 0.12 * (high - low))  # room for the precisions' names
    canvas.label(panels[0], y=f"{METRIC}, %")
    handles |= hollow
    canvas.legend(list(handles.values()), list(handles), columns=len(handles))


@dataclass(frozen=True)
class _Point:
    row: Node

    @property
    def precision(self) -> str:
        return self.row["precision"].text()

    @property
    def bytes(self) -> float:
        return self.row["request_bytes"].number()

    @property
    def figure(self) -> Measured:
        return self.row[METRIC].figure()


def _mark(canvas: Canvas, axes: Any, point: _Point, colour: str) -> Any:
    """A point with its interval: filled where the wire offers the precision, larger for the default one."""
    figure = point.figure
    axes.vlines(point.bytes, figure.low, figure.high, color=colour, linewidth=1.2, alpha=0.55)
    (mark,) = axes.plot(
        point.bytes, figure.value, "D" if APART in point.precision else "o", color=colour,
        markersize=7 if point.precision == DEFAULT else 4.5,
        markerfacecolor=colour if point.row["offered"].value else canvas.theme.page,
    )  # fmt: skip
    return mark


def _name_precisions(canvas: Canvas, axes: Any, points: Sequence[_Point]) -> None:
    best = max(point.figure.low for point in points)
    for point in points:
        if APART in point.precision:
            continue
        if point.figure.high < best:
            canvas.write(axes, point.bytes, point.figure.value, point.precision, dx=7, va="center")
        else:
            canvas.write(
                axes, point.bytes, point.figure.high, point.precision, dy=4, ha="center", va="bottom", rotation=90
            )


def _axes(canvas: Canvas, axes: Any, rows: Sequence[Node]) -> None:
    across = [row["request_bytes"].number() for row in rows]
    ticks = [tick for tick in TICKS if 0.8 * min(across) <= tick <= 1.2 * max(across)]
    canvas.log(axes, ticks, [f"{tick:,}" for tick in ticks])
    canvas.label(axes, x="bytes of a request")
