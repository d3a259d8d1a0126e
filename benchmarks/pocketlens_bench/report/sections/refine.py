"""What refining a question does: words to lead away from, words with weights, re-ranking."""

from collections.abc import Iterator

from pocketlens_bench.protocols.figures import Measured
from pocketlens_bench.report.blocks import Block, measured, table
from pocketlens_bench.report.results import Node, Result
from pocketlens_bench.report.sections.accuracy import differences_table
from pocketlens_bench.report.sections.section import Section

ASKED = {
    "away": (
        "The picture shows what `not` names, and other words ask for something else. Of the first ten hits, percent "
        "without what was not wanted, of the picture's category, and with what the other words ask for. Plain numbers "
        "are what the service does with such a weight. Ways it could have gone: `PDV` takes the difference that the "
        "words make beside the picture; `before the head` moves what the query head is given, `by the tower` takes "
        "the differences of the text tower."
    ),
    "weights": (
        "Words that ask for a colour, and second words with a weight. Of the first ten hits, percent with what the "
        "second words ask for, and with the colour. Words of weight 1 are joined as text; `PDV` and `words alone` "
        "would move the vector for them too."
    ),
    "re-ranking": "The best hits rearranged by their own vectors; differences are paired, in points.",
}


class Refine(Section):
    kind = "refine"

    def title(self, result: Result) -> str:
        del result
        return "Refining: words to leave, words with weights, re-ranking"

    def blocks(self, result: Result) -> Iterator[Block]:
        told = set()
        for each in result.data["tables"].each():
            what = _what(each)
            if what not in told:
                yield ASKED[what]
            told.add(what)
            queries, gallery = each["queries"].whole(), each["gallery"].whole()
            yield f"**{each['title'].text()}: {queries:,} queries, {gallery:,} pictures**"
            rows = each["rows"].each()
            metrics = rows[0].metrics()
            yield table(
                ["", *metrics], ([row["name"].text(), *(measured(row[m].figure()) for m in metrics)] for row in rows)
            )
            if what == "re-ranking":
                yield differences_table(each["differences"].each())
                spent = ", ".join(f"{row['name'].text()} {row['rerank_ms'].number():.2f} ms" for row in rows[1:])
                yield f"It takes, on one core: {spent}."

    def lost(self, result: Result) -> list[str]:
        """Beyond noise alone: each is a paired interval that does not hold zero, or that does where it should not."""
        lost = {"away": _lost_away, "weights": _lost_weights, "re-ranking": _lost_reranking}
        return [said for each in result.data["tables"].each() for said in lost[_what(each)](each)]


def _what(each: Node) -> str:
    return each["key"].text().partition(",")[0]


def _lost_away(each: Node) -> Iterator[str]:
    for row in each["differences"].each():
        if row["way"].text() != "-1":
            continue
        gained, category, words = (row[name].figure() for name in ("without it", "category", "has the words"))
        name = f"{each['title'].text()}: `{row['of'].text()}`"
        if gained.low <= 0:
            yield f"{name} does not lead away, {_points(gained)}"
        for what, figure in (("the picture's category", category), ("what the words ask for", words)):
            if figure.high < 0:
                yield f"{name} loses {what}, {_points(figure)}"


def _lost_weights(each: Node) -> Iterator[str]:
    for row in each["differences"].each():
        more, words = (row[name].figure() for name in ("has it", "has the words"))
        if row["way"].text() in ("joined by and", "joined by nothing", "1, PDV") and more.low > 0:
            yield f"{each['title'].text()}: `{row['of'].text()}` finds more than joined text, {_points(more)}"
        if row["way"].text() == "1.5" and words.high < 0:
            yield f"{each['title'].text()}: `{row['of'].text()}` costs what the first words ask for, {_points(words)}"


def _lost_reranking(each: Node) -> Iterator[str]:
    for row in each["differences"].each():
        worse = [f"{name} {_points(row[name].figure())}" for name in row.metrics() if row[name].figure().high < 0]
        if worse:
            yield f"{each['title'].text()}: `{row['of'].text()}` makes it worse, {', '.join(worse)}"


def _points(figure: Measured) -> str:
    return f"{measured(figure, sign='+')} points"
