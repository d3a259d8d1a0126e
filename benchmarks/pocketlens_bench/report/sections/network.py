"""What the network costs: tokens against uploading the picture, at each profile."""

from collections.abc import Iterator, Sequence
from typing import Any

from pocketlens_bench.report.blocks import Block, Picture, size, table, times
from pocketlens_bench.report.canvas_type import Canvas
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)  # ms
OURS = "tokens"  # ways whose names begin so


class Network(Section):
    kind = "network"

    def title(self, result: Result) -> str:
        del result
        return "Network: tokens or the picture itself"

    def blocks(self, result: Result) -> Iterator[Block]:
        rows = rows_of(result)
        yield (
            "The same question asked in several ways over simulated networks; the whole time, from the picture file "
            "to the answer, and the bytes of each direction."
        )
        yield table(
            ["profile", "up, Mbit/s", "down, Mbit/s", "delay, ms", "loss, %"],
            map(_profile, result.data["profiles"].each()),
        )
        yield Picture(
            "network-profiles",
            f"p95 of the whole time at {', '.join(_profiles(rows))}, for {', '.join(_ways(rows))}",
            lambda canvas: draw(canvas, rows),
        )
        yield table(["profile", "asked with", "bytes up", "bytes down", "p50 ms", "p95 ms"], map(_row, rows), texts=2)

    def lost(self, result: Result) -> list[str]:
        """Profiles at which a way that is not ours is as fast as our best."""
        said = result.data.sentences("lost")
        rows = rows_of(result)
        for profile in () if said else _profiles(rows):
            here = [row for row in rows if row["profile"].text() == profile]
            ours = [row for row in here if row["way"].text().startswith(OURS)]
            best = min((_p95(row) for row in ours), default=0.0)
            for row in here:
                if ours and row not in ours and _p95(row) <= best:
                    said.append(
                        f"{profile}: {row['way'].text()} takes {times(_p95(row))} ms at p95, "
                        f"tokens at best {times(best)}"
                    )
        return said


def rows_of(result: Result) -> list[Node]:
    return [row for each in result.data["tables"].each() for row in each["rows"].each()]


def _profiles(rows: Sequence[Node]) -> list[str]:
    return list(dict.fromkeys(row["profile"].text() for row in rows))


def _ways(rows: Sequence[Node]) -> list[str]:
    return list(dict.fromkeys(row["way"].text() for row in rows))


def _p95(row: Node) -> float:
    return row["p95_ms"].number()


def _profile(profile: Node) -> list[str]:
    numbers = (f"{profile[key].number():g}" for key in ("up_mbit", "down_mbit", "delay_ms"))
    return [profile["name"].text(), *numbers, f"{100 * profile['loss'].number():g}"]


def _row(row: Node) -> list[str]:
    return [
        row["profile"].text(),
        row["way"].text(),
        *(f"{row[key].number():,.0f}" for key in ("up_bytes", "down_bytes")),
        *(times(row[key].number()) for key in ("p50_ms", "p95_ms")),
    ]


# --- the plot


def draw(canvas: Canvas, rows: Sequence[Node]) -> None:
    """A band per profile, a mark per way: from p50 to p95; bytes up in the legend."""
    profiles, ways = _profiles(rows), _ways(rows)
    (axes,) = canvas.panels(1, 1, height=1.2 + 0.17 * len(profiles) * (len(ways) + 1))
    handles: dict[str, Any] = {}
    sent: dict[str, str] = {}
    places: dict[str, list[float]] = {}
    top = float(len(profiles) * (len(ways) + 1))
    for row in rows:
        style = dict(zip(ways, canvas.styles(), strict=False))[row["way"].text()]
        profile = row["profile"].text()
        place = top - profiles.index(profile) * (len(ways) + 1) - ways.index(row["way"].text())
        places.setdefault(profile, []).append(place)
        half, most = row["p50_ms"].number(), _p95(row)
        axes.plot([half, most], [place, place], color=style["color"], linewidth=2, alpha=0.6)
        (mark,) = axes.plot(most, place, style["marker"], color=style["color"], markersize=5.5)
        canvas.write(axes, most, place, times(most), dx=6, va="center")
        handles.setdefault(row["way"].text(), mark)
        sent.setdefault(row["way"].text(), size(row["up_bytes"].number()))  # a few bytes apart from line to line
    smallest = min(row["p50_ms"].number() for row in rows)
    largest = max(_p95(row) for row in rows)
    ticks = [tick for tick in TICKS if 0.5 * smallest <= tick <= 2 * largest]
    canvas.log(axes, ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlim(0.7 * smallest, 2.2 * largest)
    axes.set_yticks([sum(some) / len(some) for some in places.values()], list(places))
    axes.grid(visible=False, axis="y")
    canvas.label(axes, x="ms, logarithmic; line from p50 to the mark at p95")
    canvas.legend(list(handles.values()), [f"{way}, {sent[way]} up" for way in handles], columns=2)
