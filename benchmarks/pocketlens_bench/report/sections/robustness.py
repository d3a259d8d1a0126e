"""How much is still found in bad pictures: corruptions at severities."""

from collections.abc import Iterator, Sequence
from typing import Any

from pocketlens_bench.report.blocks import Block, Picture, measured, name_of, table
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.accuracy import headline
from pocketlens_bench.report.sections.section import Section

METRIC = "R@10"
COLUMNS = 5  # panels in a row


class Robustness(Section):
    kind = "robustness"

    def title(self, result: Result) -> str:
        del result
        return "Robustness: blur, noise, light, JPEG, occlusion"

    def blocks(self, result: Result) -> Iterator[Block]:
        yield (
            "Only the picture that is asked with is corrupted, at five severities; the gallery stays clean. "
            f"{METRIC} in percent; after ± half of the 95 % interval. Other metrics are in the JSON."
        )
        for each in result.data["tables"].each():
            yield f"**{headline(each)}**"
            yield _picture(each)
            yield "Mean of the five severities:"
            yield _by_corruption(each)
            if differences := each.each_of("differences"):
                yield (
                    "One way of asking over another, in points, query by query. More lost: what the first loses "
                    "against its own clean result beyond what the second loses; above 0 the first is more fragile."
                )
                yield _fragility(differences)
        yield "What is done, and how strongly at each severity:"
        yield table(
            ["corruption", "what", "1", "2", "3", "4", "5"],
            (
                [each["name"].text(), each["says"].text(), *(f"{level.number():g}" for level in each["levels"].each())]
                for each in result.data["corruptions"].each()
            ),
            texts=2,
        )

    def cautions(self, result: Result) -> list[str]:
        training = result.data.get("training")
        return [*super().cautions(result), *([training.text()] if training else [])]


def _by_corruption(each: Node) -> str:
    rows = each["rows"].each()
    names = [corruption["name"].text() for corruption in rows[0]["corruptions"].each()]
    lines = [["clean", *(measured(row["clean"][METRIC].figure()) for row in rows)]]
    for place, name in enumerate(names):
        lines.append([name, *(measured(row["corruptions"].each()[place][METRIC].figure()) for row in rows)])
    lines.append(["**mean**", *(measured(row["corrupted"][METRIC].figure()) for row in rows)])
    lines.append(["lost against clean", *(measured(row["corrupted"]["drop"][METRIC].figure()) for row in rows)])
    return table(["corruption", *(row["name"].text() for row in rows)], lines)


def _fragility(differences: Sequence[Node]) -> str:
    keys = ("clean", "corrupted", "more_lost")
    return table(
        ["of", "over", "clean", "corrupted", "more lost"],
        (
            [row["of"].text(), row["over"].text(), *(measured(row[key][METRIC].figure(), sign="+") for key in keys)]
            for row in differences
        ),
        texts=2,
    )


# --- the plot


def _picture(each: Node) -> Picture:
    rows = each["rows"].each()
    count = len(rows[0]["corruptions"].each())
    alt = (
        f"{each['title'].text()}: {METRIC} against severity, one panel for each of {count} corruptions, one line each "
        f"for {', '.join(row['name'].text() for row in rows)}"
    )
    return Picture(f"robustness-{name_of(each['key'].text())}", alt, lambda canvas: draw(canvas, rows))


def draw(canvas: Canvas, rows: Sequence[Node]) -> None:
    """A panel per corruption; lines from the clean picture to the fifth severity, with their intervals as bands."""
    names = [corruption["name"].text() for corruption in rows[0]["corruptions"].each()]
    deep = -(-len(names) // COLUMNS)
    panels = canvas.panels(deep, min(COLUMNS, len(names)), height=0.6 + 1.75 * deep, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for place, (axes, name) in enumerate(zip(panels, names, strict=False)):
        canvas.title(axes, name)
        for row, style in zip(rows, canvas.styles(), strict=False):
            corruption = row["corruptions"].each()[place]
            cells = [row["clean"], *corruption["severities"].each()]
            figures = [cell[METRIC].figure() for cell in cells]
            across = range(len(figures))
            axes.fill_between(
                across,
                [f.low for f in figures],
                [f.high for f in figures],
                color=style["color"],
                alpha=0.16,
                linewidth=0,
            )
            (line,) = axes.plot(across, [f.value for f in figures], **style)
            handles.setdefault(row["name"].text(), line)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    ends = len(rows[0]["corruptions"].each()[0]["severities"].each())
    panels[0].set_xlim(-0.2, ends + 0.2)
    panels[0].set_ylim(0, 103)
    panels[0].set_xticks(range(ends + 1), [str(severity) for severity in range(ends + 1)])
    for axes in panels[::-1][: min(COLUMNS, len(names))]:
        canvas.label(axes, x="severity, 0: clean")
    for row in range(deep):
        canvas.label(panels[row * min(COLUMNS, len(names))], y=f"{METRIC}, %")
    canvas.legend(list(handles.values()), list(handles), columns=len(handles))
