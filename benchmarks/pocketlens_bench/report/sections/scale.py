"""What a growing gallery costs: how much is found, how fast; and the trade-off the gallery's settings come from."""

from collections.abc import Iterator, Sequence
from typing import Any

from pocketlens_bench.report.blocks import Block, Picture, measured, short_count, size, table, times
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.accuracy import headline
from pocketlens_bench.report.sections.section import Section

WANTED_RECALL, WANTED_MS = 0.98, 6.0  # of exact search's first ten; p50 of a search
METRIC = "R@10"
LINE = 6.0  # points of recall that a line of text is high


class Scale(Section):
    kind = "scale"

    def title(self, result: Result) -> str:
        del result
        return "Scale: 1,000 to 1,000,000 pictures"

    def blocks(self, result: Result) -> Iterator[Block]:
        tables = result.data["tables"].each()
        if distractors := result.data.get("distractors"):
            yield f"{distractors.text()}."
        yield Picture(
            "scale-gallery",
            f"{METRIC} against the size of the gallery, for {', '.join(each['title'].text() for each in tables)}",
            lambda canvas: draw(canvas, tables),
        )
        for each in tables:
            yield f"**{headline(each)}**"
            yield _sizes(each)
        if approximate := result.data.each_of("approximate"):
            yield from _approximate(approximate)
        if checks := result.data.each_of("check"):
            yield from _check(checks)


def _sizes(each: Node) -> str:
    rows = each["rows"].each()
    metrics = rows[0].metrics()
    return table(
        ["gallery", "real pictures", *metrics, "search p50 ms", "p95 ms"],
        (
            [
                f"{row['gallery'].whole():,}",
                f"{row['real'].whole():,}",
                *(measured(row[metric].figure()) for metric in metrics),
                *(times(found.number()) if (found := row.get(key)) else "" for key in ("p50_ms", "p95_ms")),
            ]
            for row in rows
        ),
    )


def _approximate(rows: Sequence[Node]) -> Iterator[Block]:
    yield (
        "**Approximate search**, in the gallery on disk with its default settings, one search at a time; recall is the "
        "share of exact search's first ten that it finds."
    )
    yield table(
        ["asked by", "gallery", "ef", "recall", "R@10 exact", "R@10 approximate", "p50 ms", "p95 ms"],
        (
            [
                row["row"].text(),
                f"{row['gallery'].whole():,}",
                str(row["ef"].whole()),
                f"{row['recall'].number():.3f}",
                *(f"{row[key].number():.1f}" for key in ("R@10 exact", "R@10 approximate")),
                *(times(row[key].number()) for key in ("p50_ms", "p95_ms")),
            ]
            for row in rows
        ),
    )


def _check(checks: Sequence[Node]) -> Iterator[Block]:
    """Some of the distractors synthetic against all of them pictures."""
    rows = checks[0]["difference"].keys()
    metrics = checks[0]["difference"][rows[0]].keys()
    yield (
        "**Are the synthetic vectors as hard as pictures?** Some distractors synthetic, made from the others, against "
        "all of them pictures; the difference in points, paired."
    )
    yield table(
        ["distractors", "of them synthetic", "asked by", *metrics],
        (
            [
                f"{check['distractors'].whole():,}",
                f"{check['synthetic'].whole():,}",
                name,
                *(measured(check["difference"][name][metric].figure(), sign="+") for metric in metrics),
            ]
            for check in checks
            for name in rows
        ),
    )


class Tradeoff(Section):
    kind = "tradeoff"

    def title(self, result: Result) -> str:
        return f"Approximate search, {result.data['gallery'].whole():,} vectors"

    def blocks(self, result: Result) -> Iterator[Block]:
        rows = result.data["rows"].each()
        chosen = result.data.get("chosen")
        yield f"{result.data['title'].text()}."
        yield (
            f"Recall: the share of exact search's first ten that is found. Wanted: {WANTED_RECALL} at a median under "
            f"{WANTED_MS:g} ms. The gallery's default settings are marked; one search at a time."
        )
        yield Picture(
            "scale-tradeoff",
            "Recall of exact search's first ten against the median time of a search, a line for each way of building",
            lambda canvas: draw_tradeoff(canvas, drawn_rows(rows, chosen), chosen),
        )
        yield table(
            ["built with", "walked", "ef", "recall", "p50 ms", "p95 ms", "memory", "build, s"],
            (
                [
                    _built(row),
                    row["walked"].text(),
                    f"{row['ef'].whole()}{' **chosen**' if _is(row, chosen) else ''}",
                    f"{row['recall'].number():.3f}",
                    *(times(row[key].number()) for key in ("p50_ms", "p95_ms")),
                    size(row["memory_bytes"].number()),
                    f"{row['build_s'].number():,.0f}",
                ]
                for row in rows
            ),
        )


def drawn_rows(rows: Sequence[Node], chosen: Node | None) -> list[Node]:
    """A line per way of building, walked in its best way as the chosen row shows it; all are in the table."""
    best = chosen["walked"].text() if chosen else ""
    return [row for row in rows if row["walked"].text() == (best if row["quantised"].value else "float32")]


def _built(row: Node) -> str:
    how = f"m {row['m'].whole()}, ef_construct {row['ef_construct'].whole()}"
    quantised = row.get("quantised")
    return f"{how}, int8" if quantised and quantised.value else how


def _is(row: Node, chosen: Node | None) -> bool:
    return chosen is not None and row.value == chosen.value


# --- the plots


def draw(canvas: Canvas, tables: Sequence[Node]) -> None:
    """A line per kind of question; dotted from where the gallery is filled up with synthetic vectors."""
    (axes,) = canvas.panels(1, 1, height=3.6)
    ends: list[int] = []
    labels: list[tuple[float, str, str]] = []
    for each, style in zip(tables, canvas.styles(), strict=False):
        rows = sorted(each["rows"].each(), key=lambda row: row["gallery"].whole())
        across = [row["gallery"].whole() for row in rows]
        figures = [row[METRIC].figure() for row in rows]
        ends.extend(across)
        colour = style["color"]
        axes.fill_between(
            across, [f.low for f in figures], [f.high for f in figures], color=colour, alpha=0.16, linewidth=0
        )
        axes.plot(across, [f.value for f in figures], **{**style, "linestyle": "-"})
        labels.append((figures[-1].value, f"{each['title'].text()} {figures[-1].value:.1f}", colour))
    for at, (_, text, colour) in zip(apart([value for value, *_ in sorted(labels)]), sorted(labels), strict=True):
        canvas.write(axes, max(ends), at, text, color=colour, dx=7, va="center")
    ticks = sorted(set(ends))
    canvas.log(axes, ticks, [short_count(tick) for tick in ticks])
    axes.set_xlim(0.8 * ticks[0], 4 * ticks[-1])
    axes.set_ylim(0, 103)
    _boundary(canvas, axes, tables)
    canvas.label(axes, x="pictures in the gallery", y=f"{METRIC}, %")


def apart(values: Sequence[float]) -> list[float]:
    """Ascending places for labels of ascending values, no two nearer than a line of text is high."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + LINE) if places else value)
    return places


def _boundary(canvas: Canvas, axes: Any, tables: Sequence[Node]) -> None:
    """Where the pictures end and drawn vectors begin."""
    rows = [row for each in tables for row in each["rows"].each()]
    real = max(row["real"].whole() for row in rows)
    if any(row["gallery"].whole() > real for row in rows):
        axes.axvline(real, color=canvas.theme.faint, linewidth=1, linestyle=(0, (2, 2)))
        for text, side, dx in (("real pictures", "right", -6), ("+ synthetic vectors", "left", 6)):
            canvas.write(axes, real, 3, text, color=canvas.theme.faint, dx=dx, ha=side)


def draw_tradeoff(canvas: Canvas, rows: Sequence[Node], chosen: Node | None) -> None:
    """A line over ef for each way of building; what is wanted lies above and left of the dashes."""
    (axes,) = canvas.panels(1, 1, height=4.4)
    lines: dict[str, list[Node]] = {}
    for row in rows:
        lines.setdefault(_built(row), []).append(row)
    handles: dict[str, Any] = {}
    for (name, some), style in zip(lines.items(), canvas.styles(), strict=False):
        some.sort(key=lambda row: row["ef"].whole())
        (line,) = axes.plot([_p50(row) for row in some], [row["recall"].number() for row in some], **style)
        handles[name] = line
    if chosen:
        at = _p50(chosen), chosen["recall"].number()
        axes.plot(*at, "o", markersize=14, markerfacecolor="none", color=canvas.theme.ink, markeredgewidth=1.6)
        canvas.write(axes, *at, f"chosen, ef {chosen['ef'].whole()}", dx=26, dy=-38, fontweight="bold")
    axes.axhline(WANTED_RECALL, color=canvas.theme.faint, linewidth=1, linestyle=(0, (4, 3)))
    axes.axvline(WANTED_MS, color=canvas.theme.faint, linewidth=1, linestyle=(0, (4, 3)))
    canvas.write(axes, WANTED_MS, 1.002, f"{WANTED_MS:g} ms", color=canvas.theme.faint, dx=4)
    axes.set_ylim(min(row["recall"].number() for row in rows) - 0.02, 1.015)
    axes.set_xlim(0, 1.15 * max(_p50(row) for row in rows))
    efs = sorted({row["ef"].whole() for row in rows})
    canvas.label(
        axes,
        x=f"ms, median of a search; each line from ef {efs[0]} to ef {efs[-1]}",
        y="recall of exact search's first ten",
    )
    canvas.legend(list(handles.values()), list(handles), columns=3)


def _p50(row: Node) -> float:
    return row["p50_ms"].number()
