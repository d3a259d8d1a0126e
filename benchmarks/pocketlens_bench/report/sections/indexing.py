"""Pictures a second into a gallery, beside the bare image tower."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table
from pocketlens_bench.report.results import Result
from pocketlens_bench.report.sections.section import Section

OF_THE_TOWER = 0.9


class Indexing(Section):
    kind = "indexing"

    def title(self, result: Result) -> str:
        return f"Indexing, pictures of {result.data['set'].text()}, image tower in {result.data['precision'].text()}"

    def blocks(self, result: Result) -> Iterator[Block]:
        sizes = result.conditions["sizes"]
        yield (
            f"{sizes['pictures'].whole():,} JPEGs from disk into a new gallery, {sizes['batch'].whole()} in a batch; "
            "the bare tower reads the same batches, ready in memory."
        )
        yield table(
            ["decoded in", "per second", "bare tower", "share", "processor ms a picture", "bare", "memory, MB"],
            (
                [
                    row["decode"].text(),
                    *(f"{row[key].number():,.1f}" for key in ("per_s", "bare_per_s")),
                    f"{row['share'].number():.0%}",
                    *(f"{row[key].number():,.1f}" for key in ("cpu_ms", "bare_cpu_ms")),
                    f"{row['memory_mb'].number():,.0f}",
                ]
                for row in result.data["rows"].each()
            ),
        )

    def lost(self, result: Result) -> list[str]:
        return [
            f"decoding in {row['decode'].text()}, indexing reaches {share:.0%} of the bare tower, "
            f"less than the {OF_THE_TOWER:.0%} meant"
            for row in result.data["rows"].each()
            if (share := row["share"].number()) < OF_THE_TOWER
        ]
