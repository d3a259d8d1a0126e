"""How the demo's answers are shown: a table, a sentence that counts, a contact sheet and a page.

Owns words and columns; the looks of sheet and page belong to pocketlens_edge.sheet. Called by demo.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlens_edge.client import Answer
from pocketlens_edge.sheet import Row, contact_sheet, html_page
from pocketlens_edge.show import hit_picture
from pocketlens_wire.pictures import open_picture
from rich import box
from rich.table import Table
from rich.text import Text

from pocketlens_samples import wording
from pocketlens_samples.catalogue import ATTRIBUTES
from pocketlens_samples.demo_questions import Plan, Question
from pocketlens_samples.language import vocabulary

STAGES = ("encode", "round_trip", "text_tower", "search")  # columns of the table


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question answered.

    anchor_file: the picture it was asked with, None for words alone. ms: milliseconds by stage, those of
    Answer.times_ms and, where there is a picture, `encode`."""

    question: Question
    anchor_file: Path | None
    answer: Answer
    ms: Mapping[str, float]

    def rank(self) -> int | None:
        """Rank of the first right hit, from 1; None when none of the hits is right."""
        for rank, hit in enumerate(self.answer.hits, start=1):
            if self.question.is_answer(hit.payload):
                return rank
        return None


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per question: what was asked, the first hit, the rank of the first right one, times, bytes.

    `encode` is the device's whole work from file to tokens; with the round trip it adds up to what the asker
    waits. Text tower and search are parts of the round trip."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", justify="right", style="dim")
    shown.add_column("asked", ratio=1)
    shown.add_column("first hit", ratio=1)
    for head in ("\nrank", "encode\nms", "round\ntrip", "text\ntower", "\nsearch", "sent\nbytes"):
        shown.add_column(head, justify="right", no_wrap=True)
    for number, outcome in enumerate(outcomes, start=1):
        rank, hits = outcome.rank(), outcome.answer.hits
        colour = "green" if rank == 1 else ""
        shown.add_row(
            str(number),
            _asked(outcome.question),
            Text(described(hits[0].payload) if hits else "no picture matches", style=colour),
            Text(str(rank) if rank else "-", style=colour),
            *(f"{outcome.ms[stage]:.1f}" if stage in outcome.ms else "-" for stage in STAGES),
            f"{outcome.answer.request_bytes:,}",
        )
    return shown


def _asked(question: Question) -> Text:
    thing = f" ({question.anchor.spec.category})" if question.anchor else ""
    asked = Text(question.kind + thing, style="dim")
    if question.words:
        asked.append(f"\n“{question.words}”", style="not dim")
    for key, value in question.where.items():
        asked.append(f"\nonly {key}={value}", style="not dim")
    return asked


def described(payload: Mapping[str, Any]) -> str:
    """What a picture shows, from its payload: "two small red striped mugs with handles on grass"."""
    category, count = payload["category"], payload["count"]
    many = count > 1
    things = wording.PLURAL[category] if many else category
    part = wording.PART[category][payload["part"]][int(many)][0]
    words = (
        wording.COUNT_WORD[count][0],
        payload["size"],
        payload["colour"],
        payload["pattern"],
        things,
        part,
    )
    return " ".join((*words, wording.PLACE[payload["background"]][0]))


def counted(outcomes: Sequence[Outcome], asked: Plan) -> str:
    """How many questions were answered rightly, counted from the answers."""
    ranks = [outcome.rank() for outcome in outcomes]
    first = sum(rank == 1 for rank in ranks)
    five = sum(rank is not None and rank <= 5 for rank in ranks)
    answers = [asked.answers(outcome.question) for outcome in outcomes]
    return (
        f"{first} of {len(ranks)} questions have a right picture at rank 1, {five} among the first five. "
        f"Of {len(asked.gallery):,} pictures {min(answers)} to {max(answers)} are right for a question."
    )


def honesty() -> str:
    """What these answers do and do not show."""
    things, words = len(ATTRIBUTES["category"]), len(vocabulary())
    return (
        f"This is a drawn, closed world: {things} kinds of things, {words} words, and a text tower that was "
        "taught, on text alone, how changes are asked for. It proves the deployment and the method; "
        "it is not open-vocabulary search."
    )


def write_sheets(outcomes: Sequence[Outcome], folder: Path, pictures: Path, subtitle: str) -> list[Path]:
    """Write contact sheet (PNG) and page (HTML) into `folder`. pictures: the indexed folder."""
    rows = [_row(outcome, pictures) for outcome in outcomes]
    sheet, page = folder / "contact-sheet.png", folder / "answers.html"
    # 160 colours: a third of the bytes, and drawn pictures hardly show it
    contact_sheet(rows, subtitle=subtitle).quantize(160).save(sheet, optimize=True)
    html_page(rows, page, subtitle=subtitle)
    return [sheet, page]


def _row(outcome: Outcome, pictures: Path) -> Row:
    question, payloads = outcome.question, [hit.payload for hit in outcome.answer.hits]
    only = "".join(f": {value}" for value in question.where.values())
    return Row(
        title=question.kind + only,
        anchor=open_picture(outcome.anchor_file) if outcome.anchor_file else None,
        words=question.words,
        hits=[
            (
                hit_picture(hit, pictures),
                f"{payload['colour']} {payload['pattern']} {payload['category']}",
                question.is_answer(payload),
            )
            for hit, payload in zip(outcome.answer.hits, payloads, strict=True)
        ],
    )
