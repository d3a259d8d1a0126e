"""How well a bundle finds: every row of every table, with its interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pocketlens_bench.report.blocks import Block, Picture, measured, name_of, table
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

OURS = ("tuned", "zero-shot")  # what a user gets: the default first
BOUNDS = ("ceiling",)  # no way of asking; nothing is lost to it
PANELS = ("R@1", "R@10", "mAP@10")  # drawn where a table has them, else its first three
ENOUGH = 4  # rows worth a picture


@dataclass(frozen=True)
class Row:
    name: str
    node: Node


class Accuracy(Section):
    kind = "accuracy"

    def title(self, result: Result) -> str:
        return "Accuracy: the sample world" if result.about == "sample" else f"Accuracy: {result.about}"

    def blocks(self, result: Result) -> Iterator[Block]:
        yield (
            "Percent; after ± half of the 95 % interval by bootstrap over queries. Both ends, and breakdowns if any, "
            "are in the JSON."
        )
        if ranking := result.data.get("ranking"):
            yield f"Ranking: {ranking.text()}."
        if states := result.data.get("states"):
            yield statement(states)
        for each in result.data["tables"].each():
            if states := each.get("states"):
                yield statement(states)
            rows = rows_of(each)
            metrics = rows[0].node.metrics()
            yield f"**{headline(each)}**"
            yield table(
                ["asked by", *metrics], ([row.name, *(measured(row.node[m].figure()) for m in metrics)] for row in rows)
            )
            if len(rows) >= ENOUGH:
                yield picture(f"accuracy-{name_of(result.about)}-{name_of(each['title'].text())}", each)
            if differences := each.each_of("differences"):
                yield "Differences, query by query, in points:"
                yield differences_table(differences)

    def lost(self, result: Result) -> list[str]:
        said = result.data.sentences("lost")
        return said or [line for each in result.data["tables"].each() for line in lost_in(each)]


class Score(Accuracy):
    """Others' rankings under a protocol: the same tables; none of the rows is ours."""

    kind = "score"

    def title(self, result: Result) -> str:
        return f"Rankings scored: {result.about}"

    def lost(self, result: Result) -> list[str]:
        return result.data.sentences("lost") or ["No row is Pocketlens' own unless its name says so"]


def rows_of(each: Node) -> list[Row]:
    return [Row(row["name"].text(), row) for row in each["rows"].each()]


def headline(each: Node) -> str:
    """`picture + words: 1,200 queries, 6,000 pictures`, as far as the table says."""
    counts = [
        f"{there.whole():,} {what}"
        for key, what in (("queries", "queries"), ("gallery", "pictures"))
        if (there := each.get(key)) and isinstance(there.value, int)
    ]
    return f"{each['title'].text()}{': ' if counts else ''}{', '.join(counts)}"


def statement(states: Node) -> str:
    """What the numbers of a protocol mean, field by field."""
    return table(["", "this protocol"], ([key, states[key].text()] for key in states.keys()), texts=2)  # noqa: SIM118


def differences_table(differences: Sequence[Node]) -> str:
    metrics = differences[0].metrics()
    rows = (
        [row["of"].text(), row["over"].text(), *(_with_verdict(row[m]) for m in metrics if row.get(m))]
        for row in differences
    )
    return table(["of", "over", *metrics], rows, texts=2)


def _with_verdict(node: Node) -> str:
    figure = node.figure()
    shown = measured(figure, sign="+")
    return f"**{shown}**" if figure.low > 0 or figure.high < 0 else shown


def lost_in(each: Node) -> Iterator[str]:
    """Rows above ours by any metric, and whether that is beyond noise as far as unpaired intervals tell."""
    rows = rows_of(each)
    ours = next((row for name in OURS for row in rows if row.name == name), None)
    if ours is None:
        return
    for row in rows:
        above = [
            (m, row.node[m].figure(), ours.node[m].figure())
            for m in ours.node.metrics()
            if row.node[m].figure().value > ours.node[m].figure().value
        ]
        if row is ours or row.name in BOUNDS or not above:
            continue
        beyond = any(theirs.low > mine.high for _, theirs, mine in above)
        metrics = ", ".join(f"{m} {theirs.value:.1f} against {mine.value:.1f}" for m, theirs, mine in above)
        noise = "beyond noise" if beyond else "intervals overlap"
        yield f"{each['title'].text()}: `{row.name}` is above `{ours.name}` in {metrics} ({noise})"


# --- the plot


def picture(stem: str, each: Node) -> Picture:
    rows = rows_of(each)
    metrics = [m for m in PANELS if m in rows[0].node.metrics()] or rows[0].node.metrics()[:3]
    alt = f"{each['title'].text()}: {', '.join(metrics)} of {len(rows)} ways of asking, with 95 % intervals"
    return Picture(stem, alt, lambda canvas: draw(canvas, rows, metrics))


def draw(canvas: Canvas, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Dots with intervals, a panel per metric; ours in the first colour, the others in grey."""
    panels = canvas.panels(1, len(metrics), height=0.75 + 0.27 * len(rows), sharey=True)
    places = list(range(len(rows)))[::-1]
    for axes, metric in zip(panels, metrics, strict=True):
        canvas.title(axes, f"{metric}, %")
        for place, row in zip(places, rows, strict=True):
            figure = row.node[metric].figure()
            colour = canvas.theme.series[0] if row.name.split(",")[0] in OURS else canvas.theme.faint
            axes.plot(
                [figure.low, figure.high], [place, place], "-|", color=colour, linewidth=1.5, markersize=7,
                markeredgewidth=1.5,
            )  # fmt: skip
            axes.plot(figure.value, place, "o", color=colour, markersize=4)
            left = figure.value > 70
            canvas.write(
                axes, figure.low if left else figure.high, place, f"{figure.value:.1f}", dx=-6 if left else 6,
                ha="right" if left else "left", va="center",
            )  # fmt: skip
        axes.set_xlim(0, 104)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(places, [row.name for row in rows])
    panels[0].set_ylim(-0.6, len(rows) - 0.4)
