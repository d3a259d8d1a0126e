"""How long a query takes, stage by stage, and how many bytes it sends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pocketlens_bench.report.blocks import Block, Picture, table, times
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.console import BUSY, STAGES
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

SUMS = ("round_trip", "total", "all")  # stages that hold others
WHOLE = ("all", "total")
FAMILY = {
    "load": "device",
    "open": "device",
    "decode": "device",
    "fit": "device",
    "resize": "device",
    "encode": "device",
    "pack": "device",
    "pack_and_read": "device",
    "transport": "way",
    "wire": "way",
}  # fmt: skip  the others are the server's
QUANTILES = ("p50_ms", "p95_ms", "p99_ms")
MOST = 0.5  # of the whole: such a stage is named


@dataclass(frozen=True)
class Times:
    """One table's quantiles in ms."""

    title: str
    stages: Mapping[str, Mapping[str, float]]

    @property
    def parts(self) -> list[str]:
        return [stage for stage in self.stages if stage not in SUMS]

    @property
    def whole(self) -> Mapping[str, float] | None:
        return next((self.stages[name] for name in WHOLE if name in self.stages), None)


class Latency(Section):
    kind = "latency"

    def title(self, result: Result) -> str:
        del result
        return "Latency, stage by stage"

    def blocks(self, result: Result) -> Iterator[Block]:
        tables = [times_of(node) for node in result.data["tables"].each()]
        yield (
            "Milliseconds, one question after the other. Each stage has its own quantiles: they do not add up to those "
            "of the whole."
        )
        drawn = [each for each in tables if "load" not in each.stages]  # loading would make the others' bars thin
        yield Picture(
            "latency-stages",
            f"Median time of each stage, stacked, for {', '.join(each.title for each in drawn)}",
            lambda canvas: draw(canvas, drawn),
        )
        for node, each in zip(result.data["tables"].each(), tables, strict=True):
            rounds = node.get("rounds")
            yield f"**{each.title}**{f', {rounds.whole():,} rounds' if rounds else ''}"
            yield table(["stage", "p50", "p95", "p99"], _rows(each))
        yield from _more(result.data)

    def lost(self, result: Result) -> list[str]:
        said = result.data.sentences("lost")
        for node in result.data["tables"].each():
            each = times_of(node)
            if not each.whole:
                continue
            stage = max(each.parts, key=lambda name: each.stages[name]["p50_ms"])
            share = each.stages[stage]["p50_ms"] / each.whole["p50_ms"]
            if share > MOST:
                said.append(
                    f"{each.title}: {share:.0%} of the median goes into `{spoken(stage)}`, "
                    f"{times(each.stages[stage]['p50_ms'])} of {times(each.whole['p50_ms'])} ms"
                )
        if first := result.data.get("first_query"):
            cold, warm = first["cold_ms"].number(), first["warm_ms"].number()
            if cold > warm:
                said.append(
                    f"The first query of a new connection to a new server takes {times(cold)} ms, "
                    f"{cold / warm:.1f} times a later one"
                )
        return said

    def cautions(self, result: Result) -> list[str]:
        said = super().cautions(result)
        load = result.conditions["machine"].get("load_at_start")
        if load and load.number() >= BUSY:
            said.append("Other work ran on this machine at the start: trust ratios and bytes, not the times")
        said.append(
            "Both sides ran on one machine over loopback: no radio, no slow processor of a phone is in these times"
        )
        return said


def times_of(node: Node) -> Times:
    stages = {
        name: {quantile: node["stages"][name][quantile].number() for quantile in QUANTILES}
        for name in node["stages"].keys()  # noqa: SIM118, a Node is no dict
    }
    return Times(node["title"].text(), stages)


def spoken(stage: str) -> str:
    return STAGES.get(stage, stage).strip().replace("_", " ")


def _rows(each: Times) -> Iterator[list[str]]:
    for stage, found in each.stages.items():
        name = f"**{spoken(stage)}**" if stage in SUMS else spoken(stage)
        yield [name, *(times(found[quantile]) for quantile in QUANTILES)]


def _more(data: Node) -> Iterator[str]:
    if ratio := data.get("student_and_teacher"):
        faster = ratio["times_faster"].figure()
        yield (
            f"The student encodes a picture in {times(ratio['student_ms'].number())} ms, the large image tower in "
            f"{times(ratio['teacher_ms'].number())} ms: {faster.value:.2f} times faster (95 % interval "
            f"{faster.low:.2f} to {faster.high:.2f}), in turn, one thread each."
        )
    if sent := data.get("request"):
        encodings = sent["encodings"]
        yield f"Bytes of a request with {sent['words'].whole()} words, counted on the wire:"
        yield table(
            ["tokens as", "message", "on the wire", "with the connection's opening"],
            (
                [
                    name,
                    *(
                        f"{encodings[name][key].number():,.0f}"
                        for key in ("message_bytes", "wire_bytes", "first_wire_bytes")
                    ),
                ]
                for name in encodings.keys()  # noqa: SIM118
            ),
        )
    if start := data.get("start"):
        yield f"Server start to first answer: {start['first_answer_s'].number():.2f} s."


# --- the plot


def draw(canvas: Canvas, tables: Sequence[Times]) -> None:
    """Stacked medians, a bar per table; a tick at the whole's p95."""
    (axes,) = canvas.panels(1, 1, height=1.3 + 0.5 * len(tables))
    theme = canvas.theme
    used = {"device": 0, "way": 0, "cloud": 0}
    colours: dict[str, str] = {}
    for stage in dict.fromkeys(stage for each in tables for stage in each.parts):
        family = FAMILY.get(stage, "cloud")
        shades = theme.families[family]
        colours[stage] = shades[used[family] % len(shades)]
        used[family] += 1
    handles = {}
    for place, each in zip(range(len(tables))[::-1], tables, strict=True):
        left = 0.0
        for stage in each.parts:
            wide = each.stages[stage]["p50_ms"]
            bar = axes.barh(
                place, wide, left=left, height=0.56, color=colours[stage], edgecolor=theme.page, linewidth=0.6
            )
            handles.setdefault(stage, bar)
            left += wide
        if whole := each.whole:
            p95 = whole["p95_ms"]
            axes.plot([p95, p95], [place - 0.36, place + 0.36], color=theme.ink, linewidth=1.8)
            said = f"p50 {times(whole['p50_ms'])}, p95 {times(p95)} ms"
            canvas.write(axes, max(p95, left), place, said, dx=6, va="center")
    longest = max((each.whole["p95_ms"] for each in tables if each.whole), default=1.0)
    axes.set_xlim(0, 1.32 * longest)
    axes.set_yticks(range(len(tables))[::-1], [each.title for each in tables])
    axes.grid(visible=False, axis="y")
    canvas.label(axes, x="ms; bars: median of each stage, stroke: p95 of the whole")
    canvas.legend([handles[stage][0] for stage in handles], [spoken(stage) for stage in handles], columns=6)
