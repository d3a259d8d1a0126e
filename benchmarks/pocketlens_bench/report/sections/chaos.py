"""What survives while servers are killed, versions switched and certificates replaced under load."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table, times
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

WRONG = ("mixed", "differing", "of an unknown generation")


class Chaos(Section):
    kind = "chaos"

    def title(self, result: Result) -> str:
        del result
        return "What survives under load"

    def blocks(self, result: Result) -> Iterator[Block]:
        sizes = result.conditions["sizes"]
        yield (
            f"{sizes['seconds'].number():g} s of each part, {sizes['rate'].number():g} questions a second at times "
            "drawn in advance (where connections are encrypted: as fast as four threads ask). Every answer is compared "
            "with that of the same server before it was disturbed. Wrong is one that differs, or whose hits are not "
            "all of the generation that it names."
        )
        for each in result.data["tables"].each():
            yield f"**{each['title'].text()}**"
            if rows := each["rows"].each():
                headings = ["asked by", "asked", "errors", "wrong", "turned away", "p50 ms", "p99 ms", "slowest ms"]
                cells = [_row(row) for row in rows]
                if any("late_while_still" in row.keys() for row in rows):  # noqa: SIM118, a Node is no dict; older lack it
                    headings.append("late while the machine stood still")
                    cells = [[*cell, _still(row)] for cell, row in zip(cells, rows, strict=True)]
                yield table(headings, cells)
            yield table(["counted", "", "must be"], map(_fact, each["facts"].each()))


def _row(row: Node) -> list[str]:
    errors = [(name, row["errors"][name].whole()) for name in row["errors"].keys()]  # noqa: SIM118, a Node is no dict
    return [
        row["name"].text(),
        f"{row['asked'].whole():,}",
        ", ".join(f"{count:,} {name}" for name, count in errors) or "0",
        f"{sum(row[key].whole() for key in WRONG):,}",
        f"{row['turned_away'].whole():,}",
        *(times(row[key].number()) for key in ("p50_ms", "p99_ms", "slowest_ms")),
    ]


def _still(row: Node) -> str:
    still = row.get("late_while_still")
    return f"{still.whole():,}" if still else "not known"


def _fact(each: Node) -> list[str]:
    value = each["value"].number()
    said = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
    return [each["name"].text(), said, "0" if each["must_be_zero"].value else ""]
