"""What each choice of a training gives, beside the base; targets beside their controls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from pocketlens_bench.protocols.figures import Measured
from pocketlens_bench.report.blocks import Block, Picture, measured, table
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import BadResult, Node, Result
from pocketlens_bench.report.sections.section import Section

BASE, TARGETS, BASELINES, FREE = "base", "targets", "baselines", "free"
COMPOSED = ("composed R@1", "composed R@10", "composed mAP@10")
SKETCHES = ("sketch R@10", "sketch_and_words R@10", "pale_sketch R@10")
CHOSEN_ON = ("validation R@10", "validation mAP@10")
PANELS = ("composed R@10", "composed mAP@10")
NEAR = 20.0  # points from the base: rows farther off stand at the edge of a panel, with their number
ROOM = 0.22  # of a panel's width, for numbers beside the dots
EVEN = 1e-9  # points: floating noise


@dataclass(frozen=True)
class Row:
    """A row of the result. name: as the page says it."""

    node: Node

    @cached_property
    def group(self) -> str:
        return self.node["group"].text()

    @cached_property
    def name(self) -> str:
        return self.node["name"].text()

    @property
    def label(self) -> str:
        return f"{self.name}: {self.says}" if self.says else self.name

    @property
    def says(self) -> str:
        there = self.node.get("says")
        return there.text() if there else ""

    @property
    def seeds(self) -> int:
        return self.node["seeds"].whole()

    @property
    def control(self) -> str:
        there = self.node.get("control")
        return there.text() if there else ""

    def figure(self, key: str) -> Measured:
        return self.node[key].figure()

    def metrics(self, wanted: Sequence[str]) -> list[str]:
        return [key for key in wanted if self.node.get(key)]

    def over(self, what: str) -> "Over | None":
        there = self.node.get(what)
        return Over(there) if there else None


@dataclass(frozen=True)
class Over:
    """Differences, paired by seed."""

    node: Node

    def figure(self, key: str) -> Measured | None:
        there = self.node.get(key)
        return there.figure() if there else None

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return self.node["seeds"].whole() > 1

    def beyond(self, figure: Measured) -> bool:
        return self.known and (figure.low > EVEN or figure.high < -EVEN)

    def where(self, keys: Sequence[str], holds: Callable[[Measured], bool]) -> str:
        """`composed R@10 +1.2 (-0.3 to 2.7)` and so on, of the keys whose difference is such; empty for none."""
        found = [(key, figure) for key in keys if (figure := self.figure(key)) and holds(figure)]
        return ", ".join(f"{spoken(key)} {figure.value:+.1f} ({self._ends(figure)})" for key, figure in found)

    def _ends(self, figure: Measured) -> str:
        return f"{figure.low:+.1f} to {figure.high:+.1f}" if self.known else "one seed"


class Ablation(Section):
    kind = "ablation"

    def title(self, result: Result) -> str:
        del result
        return "Ablation: what each choice gives"

    def blocks(self, result: Result) -> Iterator[Block]:
        for each in result.data["tables"].each():
            rows = rows_of(each)
            base = base_of(each, rows)
            most = max(row.seeds for row in rows)
            yield (
                f"Short trainings on the sample world, {most} seed{'s' if most > 1 else ''} each. Every cell differs "
                f"from the base ({base.says or 'as the recipe has it'}) in what its name says. Percent; "
                "after ± half of the 95 % interval over seeds, which of few seeds is wide: of three, 2.5 standard "
                "deviations to each side. Differences are paired by seed, in points, bold where their interval "
                "excludes 0. Choices are made on the validation columns."
            )
            yield Picture(
                "ablation",
                f"{' and '.join(PANELS)} of {len(rows)} cells, with 95 % intervals over seeds; the base's as a band",
                lambda canvas, rows=rows, base=base: draw(canvas, rows, base),
            )
            yield (
                "Hollow: controls. The axes begin where the cells near the base do: what lies beyond stands at the "
                "edge, with its number, and an interval that goes beyond has no end mark."
            )
            for group, some in groupby(rows, key=lambda row: row.group):
                if group != BASE:
                    yield from _group(group, base, list(some))

    def lost(self, result: Result) -> list[str]:
        return [line for each in result.data["tables"].each() for line in lost_in(each)]


def rows_of(each: Node) -> list[Row]:
    return [Row(row) for row in each["rows"].each()]


def base_of(each: Node, rows: Sequence[Row]) -> Row:
    found = next((row for row in rows if row.group == BASE), None)
    if found is None:
        raise BadResult(f"{each.file}: {each.place or 'top level'} has no row of the group `{BASE}`. Measure it again.")
    return found


def spoken(key: str) -> str:
    """`sketch_and_words R@10` as people say it."""
    return key.replace("sketch_and_words", "sketch + words").replace("pale_sketch", "pale sketch")


# --- tables


def _group(group: str, base: Row, rows: Sequence[Row]) -> Iterator[Block]:
    """Values under those of the base, then differences."""
    keys = [key for key in (*COMPOSED, *SKETCHES, *CHOSEN_ON) if any(row.node.get(key) for row in rows)]
    numbers = any(row.node.get("numbers") for row in rows)
    few = {row.seeds for row in (base, *rows)} != {base.seeds}
    shared = {row.says for row in rows} if len(rows) > 1 else set()
    common = shared.pop() if len(shared) == 1 else ""
    yield f"**{group}**{f': {common}' if common else ''}"
    headings = ["cell", *(["seeds"] if few else []), *(["number"] if numbers else []), *map(spoken, keys)]
    yield table(headings, ([
        row.name if row is base or common else row.label,
        *([str(row.seeds)] if few else []),
        *([_numbers(row)] if numbers else []),
        *(_value(row, key) for key in keys),
    ] for row in (base, *rows)))  # fmt: skip
    if numbers:
        yield "Number: chosen on the validation set, of each seed for itself."
    if any(row.over("over_base") for row in rows):
        yield "Over the base:"
        yield table(["cell", *map(spoken, keys)], _differences(rows, "over_base", keys))
    if any(row.over("over_control") for row in rows):
        yield "Over the control: the same composition searching the vectors as they are (`plain`: the base)."
        found = [row for row in rows if row.over("over_control")]
        lines = zip(found, _differences(found, "over_control", keys), strict=True)
        yield table(
            ["cell", "control", *map(spoken, keys)],
            ([name, row.control, *cells] for row, (name, *cells) in lines), texts=2,
        )  # fmt: skip


def _value(row: Row, key: str) -> str:
    if not row.node.get(key):
        return ""
    figure = row.figure(key)
    return measured(figure) if row.seeds > 1 else f"{figure.value:.1f}"


def _differences(rows: Sequence[Row], what: str, keys: Sequence[str]) -> Iterator[list[str]]:
    for row in rows:
        if over := row.over(what):
            yield [row.name, *(_difference(over, key) for key in keys)]


def _difference(over: Over, key: str) -> str:
    figure = over.figure(key)
    if figure is None:
        return ""
    shown = measured(figure, sign="+") if over.known else f"{figure.value:+.1f}"
    return f"**{shown}**" if over.beyond(figure) else shown


def _numbers(row: Row) -> str:
    there = row.node.each_of("numbers")
    numbers = [f"{number.number():g}" for number in there]
    return ", ".join(numbers[:1] if len(set(numbers)) == 1 else numbers)


# --- what was lost


def lost_in(each: Node) -> Iterator[str]:
    """Other choices beyond the base; what stands level with the student without being it; targets that do not raise
    their controls. Each line says by which of these rules it is here."""
    rows = rows_of(each)
    base_of(each, rows)
    for row in rows:
        over, control = row.over("over_base"), row.over("over_control")
        if over is None:
            continue
        if row.group in (BASELINES, FREE):
            if said := over.where(COMPOSED, _level):
                yield f"`{row.name}` ({row.group}) is at or above the base student: {said}"
        elif row.group == TARGETS:
            if said := over.where(COMPOSED, _below):
                yield f"`{row.name}` is below the base, which has no heads: {said}"
            if control and row.control != BASE and (said := control.where(COMPOSED, _behind)):
                yield f"`{row.name}` is below its control `{row.control}`: {said}"
            if control and row.control != BASE and (said := control.where(COMPOSED, _tied)):
                yield f"`{row.name}` cannot be told from its control `{row.control}`, of which it is no better: {said}"
        elif over.known and (said := over.where((*COMPOSED, *SKETCHES, *CHOSEN_ON), _beyond)):
            yield f"`{row.group}: {row.name}` beats the base beyond its interval: {said}"


def _level(difference: Measured) -> bool:
    return difference.value >= -EVEN


def _below(difference: Measured) -> bool:
    return difference.value < -EVEN


def _behind(difference: Measured) -> bool:
    return difference.high < -EVEN


def _tied(difference: Measured) -> bool:
    return _below(difference) and not _behind(difference)


def _beyond(difference: Measured) -> bool:
    return difference.low > EVEN


# --- the plot


def draw(canvas: Canvas, rows: Sequence[Row], base: Row) -> None:
    """A dot with its interval for each cell, groups under headings; the base's interval as a band; controls hollow."""
    lines: list[Row | str] = []
    for group, some in groupby(rows, key=lambda row: row.group):
        lines += [*([group] if group != BASE else []), *some]
    places = list(range(len(lines)))[::-1]
    panels = canvas.panels(1, len(PANELS), height=0.9 + 0.215 * len(lines), sharey=True)
    for axes, key in zip(panels, PANELS, strict=True):
        canvas.title(axes, f"{key}, %")
        middle = base.figure(key)
        left, right = _ends(rows, key, middle)
        axes.axvspan(max(middle.low, left), min(middle.high, right), color=canvas.theme.series[0], alpha=0.13, lw=0)
        axes.axvline(middle.value, color=canvas.theme.series[0], linewidth=0.9, alpha=0.6)
        axes.set_xlim(left, right)
        for place, line in zip(places, lines, strict=True):
            if isinstance(line, Row) and line.node.get(key):
                _dot(canvas, axes, place, line, key)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, [line if isinstance(line, str) else line.name for line in lines])
    panels[0].set_ylim(-0.7, len(lines) - 0.3)
    for label, line in zip(panels[0].get_yticklabels(), lines, strict=True):
        if isinstance(line, str) or line is base:
            label.set_fontweight("bold")


def _ends(rows: Sequence[Row], key: str, middle: Measured) -> tuple[float, float]:
    """Of the axis: all that is near the base, within what a percentage can be, and room for numbers on both sides."""
    near = [row.figure(key) for row in rows if row.node.get(key)]
    near = [figure for figure in near if abs(figure.value - middle.value) <= NEAR]
    left = max(min(figure.low for figure in near), middle.value - 1.5 * NEAR, 0)
    right = min(max(figure.high for figure in near), middle.value + 1.5 * NEAR, 100)
    wide = max(right - left, 0.1)
    return left - ROOM * wide, right + ROOM * wide


def _dot(canvas: Canvas, axes: Any, place: int, row: Row, key: str) -> None:
    figure, theme = row.figure(key), canvas.theme
    left, right = axes.get_xlim()
    colour = theme.faint if row.group in (BASELINES, FREE) else theme.series[1 if row.group == TARGETS else 0]
    number = f"{figure.value:.1f}"
    inner = ROOM * (right - left) / (1 + 2 * ROOM)
    if not left <= figure.value <= right:
        away = figure.value < left
        canvas.write(
            axes, left if away else right, place, f"◂ {number}" if away else f"{number} ▸", dx=3 if away else -3,
            ha="left" if away else "right", va="center", color=colour,
        )  # fmt: skip
        return
    ends = max(figure.low, left), min(figure.high, right, 100)
    axes.plot(ends, [place, place], "-", color=colour, linewidth=1.4)
    marked = [end for end, whole in zip(ends, (figure.low, figure.high), strict=True) if end == min(whole, 100)]
    axes.plot(marked, [place] * len(marked), "|", color=colour, markersize=6, markeredgewidth=1.4)
    hollow = row.group == TARGETS and not row.control
    axes.plot(figure.value, place, "o", color=colour, markersize=4.5, markerfacecolor=theme.page if hollow else colour)
    if ends[1] <= right - 0.8 * inner:
        canvas.write(axes, ends[1], place, number, dx=5, ha="left", va="center")
    elif ends[0] >= left + 0.8 * inner:
        canvas.write(axes, ends[0], place, number, dx=-5, ha="right", va="center")
    else:  # an interval as wide as the panel
        canvas.write(axes, figure.value, place, number, dy=2, ha="center", va="bottom")
