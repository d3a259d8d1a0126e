"""How long the device's whole process takes for one query, and how much memory."""

from collections.abc import Iterator

from pocketlens_bench.report.blocks import Block, table, times
from pocketlens_bench.report.results import Result
from pocketlens_bench.report.sections.section import Section

SENT_MS = 400  # beyond, an app that starts the program for each picture feels slow
PEAK_MB = 120  # of a device with 512 MB it is a quarter


class Start(Section):
    kind = "start"

    def title(self, result: Result) -> str:
        del result
        return "The device's process, from nothing to the request sent"

    def blocks(self, result: Result) -> Iterator[Block]:
        query, phases = result.data["tables"].each()
        rounds = result.conditions["sizes"]["rounds"].whole()
        yield (
            f"`pocketlens-edge search` with a picture and words, started {rounds:,} times each, by turns: milliseconds "
            "until the request is at the server and until the command has ended, and the most memory it held."
        )
        yield table(
            ["", "sent, p50", "p95", "ended, p50", "peak MB"],
            (
                [
                    row["name"].text(),
                    *(times(row[key].number()) for key in ("request_ms", "request_p95_ms", "whole_ms")),
                    f"{row['peak_mb'].number():,.1f}",
                ]
                for row in query["rows"].each()
            ),
        )
        if result.data.get("binary_mb"):
            yield f"The self-contained folder has {result.data['binary_mb'].number():,.0f} MB."
        yield f"**{phases['title'].text()}**"
        yield table(
            ["", "ms", "share"],
            (
                [row["name"].text(), times(row["phase_ms"].number()), f"{row['part'].number():.0%}"]
                for row in phases["rows"].each()
            ),
        )

    def lost(self, result: Result) -> list[str]:
        return [
            f"`{row['name'].text()}` takes {row[key].number():,.0f} {unit}, more than the {limit} it is meant to"
            for row in result.data["tables"].each()[0]["rows"].each()
            for key, unit, limit in (("request_ms", "ms", SENT_MS), ("peak_mb", "MB", PEAK_MB))
            if row[key].number() > limit
        ]
