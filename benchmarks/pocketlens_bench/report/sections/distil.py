"""How fast a distillation goes, beside the least it could do."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.section import Section

BARE = "bare"  # the row that the others are a share of
ENOUGH = 0.85  # of bare; below, the work around the models is worth a look
NEEDS = (
    ("gflops_per_picture", "arithmetic of forward and backward", "GFLOP a picture"),
    ("remembered_mb_per_picture", "remembered for backward", "MB a picture"),
    ("frozen_mb", "weights that stay: the large image and text towers", "MB"),
    ("trained_mb", "weights that learn: with gradient, both moments and the running mean", "MB"),
)


class Distil(Section):
    kind = "distill"

    def title(self, result: Result) -> str:
        del result
        return "Distillation: pictures a second"

    def blocks(self, result: Result) -> Iterator[Block]:
        conditions = result.conditions
        for each in result.data["tables"].each():
            rows = each["rows"].each()
            yield (
                f"**{each['title'].text()}**, on {conditions['device'].text()} in {conditions['precision'].text()}, "
                f"{conditions['sizes']['batch'].whole()} pictures a step. Of bare: the share of the pace at which "
                "student and text tower alone go forward and backward, timed by turns in the same run."
            )
            yield table(["a step", "seconds a step", "pictures a second", "of bare"], map(_row, rows))
        yield "What it takes on any machine:"
        yield table(["", "", ""], _needs(result.data), texts=1)

    def lost(self, result: Result) -> list[str]:
        return [
            f"`{row['name'].text()}` goes at {share:.0%} of bare: {1 - share:.0%} of its time goes elsewhere"
            for each in result.data["tables"].each()
            for row in each["rows"].each()
            if row["name"].text() != BARE and (share := row["of_bare"].number()) < ENOUGH
        ]


def _row(row: Node) -> list[str]:
    return [
        row["name"].text(),
        f"{row['seconds_per_step'].number():.3f}",
        f"{row['pictures_per_second'].number():,.0f}",
        f"{row['of_bare'].number():.0%}",
    ]


def _needs(data: Node) -> Iterator[list[str]]:
    student = data["student"]
    yield ["the student's parameters", f"{student['parameters'].number():,.0f}", ""]
    yield [
        "its multiply-adds for a picture, forward alone", f"{student['multiply_adds'].number() / 1e6:,.1f}", "million",
    ]  # fmt: skip
    for key, says, unit in NEEDS:
        value = data["needs"][key].number()
        yield [says, f"{value:,.2f}" if value < 10 else f"{value:,.0f}", unit]
