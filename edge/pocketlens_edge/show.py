"""Show one answer: to a person (table), to a program (JSON), as rows of a sheet.

Owns the words and columns; pictures are laid out in sheet.py. Everything a server sent is cleaned before it
meets a terminal. Called by cli.py, the demo may use it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import open_picture
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pocketlens_edge.check import Check
from pocketlens_edge.client import Answer, Hit
from pocketlens_edge.sheet import Row

if TYPE_CHECKING:
    from pocketlens_edge.converse import InForce, Turn
    from pocketlens_edge.outbox import Question

_SHORT_ID = 12
_THUMBNAIL = 320  # the side hits are decoded for: as large as the page embeds them


def printable(text: str) -> str:
    """`text` in one line without control characters: what came over the wire must not steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def print_answer(
    console: Console,
    answer: Answer,
    device_ms: Mapping[str, float],
    made_by: Mapping[str, str] | None = None,
    *,
    keys: Sequence[str] = (),
    first: int = 1,
) -> None:
    """The hits as a table, then bytes and milliseconds, then what the asker should know.

    made_by: `id`, `precision` and `provider` of the encoder, if a picture was asked with. keys: of payload, each a
    column. first: rank of the first hit."""
    print_hits(console, answer.hits, keys=keys, first=first)
    for line in _cost_lines(answer, device_ms):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    if made_by:
        said = f"tokens by {made_by['id']} in {made_by['precision']} on {made_by['provider']}"
        console.print(said, style="dim", highlight=False, soft_wrap=True)
    for note in answer.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)


def print_hits(console: Console, hits: Sequence[Hit], *, keys: Sequence[str] = (), first: int = 1) -> None:
    """The hits as a table; with a column for the group where there are groups."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("id")
    table.add_column("file", overflow="fold")
    grouped = any(hit.group is not None for hit in hits)
    further = [key for key in keys if key != "file"]
    for name in [*(["group"] if grouped else []), *further]:
        table.add_column(Text(printable(name)), overflow="fold")
    table.add_column("score", justify="right")
    for rank, hit in enumerate(hits, start=first):
        group = [str(hit.group)] if grouped else []
        asked = [str(hit.payload.get(key, "")) for key in further]
        cells = (str(rank), hit.id[:_SHORT_ID], str(hit.payload.get("file", "")), *group, *asked, f"{hit.score:.3f}")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table if hits else "no picture matches")


def print_turn(console: Console, turn: Turn) -> None:
    """One turn of a conversation: what counts, the hits, what it took."""
    console.print(
        Text(f"turn {turn.number}: {printable(summary(turn.in_force)) or 'like the picture'}"), soft_wrap=True
    )
    print_hits(console, turn.answer.hits, first=turn.skip + 1)
    answer = turn.answer
    cost = f"sent {answer.request_bytes:,} bytes; {answer.mode}; round trip {answer.times_ms['round_trip']:.1f} ms"
    console.print(cost, style="dim", highlight=False, soft_wrap=True)
    for note in answer.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)


def summary(in_force: Sequence[InForce]) -> str:
    """The words that count in one line: `in blue (1), not striped (2)`."""
    return ", ".join(f"{_measured(each)} ({each.turn})" for each in in_force)


def _measured(each: InForce) -> str:
    if each.weight == 1:
        return each.words
    return f"not {each.words}" if each.weight == -1 else f"{each.weight:g} of {each.words}"


def turn_json(turn: Turn) -> dict[str, Any]:
    """The whole turn in plain values; keys only ever get added."""
    return {
        "turn": turn.number,
        "in_force": [asdict(each) for each in turn.in_force],
        "before": turn.before,
        "top": turn.top,
        "skip": turn.skip,
        **answer_json(turn.answer, {}, first=turn.skip + 1),
    }


def _cost_lines(answer: Answer, device_ms: Mapping[str, float]) -> tuple[str, ...]:
    """What the answer took: bytes, milliseconds here, milliseconds there."""
    sent = "nothing, the gallery is on this device"
    if answer.request_bytes:
        with_envelope = answer.request_bytes + answer.envelope_bytes
        sent = f"{answer.request_bytes:,} bytes, about {with_envelope:,} with the gRPC envelope"
    where = "server " if answer.request_bytes else "gallery"
    there = {stage: ms for stage, ms in answer.times_ms.items() if stage not in ("round_trip", "total")}
    return (
        f"sent    {sent}; {answer.mode}",
        f"device  {_stages(device_ms)}",
        f"{where} {_stages(there)}; round trip {answer.times_ms['round_trip']:.1f} ms",
    )


def _stages(times_ms: Mapping[str, float]) -> str:
    if not times_ms:
        return "nothing to encode"
    return ", ".join(f"{stage.replace('_', ' ')} {ms:.1f}" for stage, ms in times_ms.items()) + " ms"


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """What the doctor found, a line or two a check; well or not is said in words, colour only helps."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        mark = Text("FAIL", style="bold red") if not check.ok else Text("ok", style="green")
        if check.ok and check.warn:
            mark = Text("warn", style="yellow")
        name = check.name.removeprefix("golden ")  # of a further form: its name says enough, and lines are short
        table.add_row(mark, name, Text(printable(check.said), overflow="fold"))
    console.print(table)
    bad = [check.name for check in checks if not check.ok]
    warned = [check.name for check in checks if check.ok and check.warn]
    said = f"not well: {', '.join(bad)}" if bad else "all well"
    console.print(f"{said}; look at: {', '.join(warned)}" if warned else said, style="bold")


def print_outbox(console: Console, waiting: Sequence[Question], *, now: datetime) -> None:
    """What waits in an outbox as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for name in ("age", "picture", "words"):
        table.add_column(name, overflow="fold")
    for question in waiting:
        minutes = (now - question.created).total_seconds() / 60
        age = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        cells = (question.id, age, question.picture or "", question.request.words)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if waiting:
        console.print(table)


def answer_json(answer: Answer, device_ms: Mapping[str, float], *, first: int = 1) -> dict[str, Any]:
    """The whole answer in plain values; keys only ever get added. Times in milliseconds.

    first: rank of the first hit."""
    return {
        "hits": [
            {"rank": rank, "id": hit.id, "score": hit.score, "payload": hit.payload}
            | ({} if hit.group is None else {"group": hit.group})
            for rank, hit in enumerate(answer.hits, start=first)
        ],
        "mode": answer.mode,
        "notes": answer.notes,
        "words_used": answer.words_used,
        "token_space": answer.token_space,
        "gallery_space": answer.gallery_space,
        "generation": answer.generation,
        "reranked": answer.reranked,
        "bytes": {"message": answer.request_bytes, "envelope_estimate": answer.envelope_bytes},
        "times_ms": {"device": dict(device_ms), "server_and_wire": answer.times_ms},
    }


def sheet_row(answer: Answer, anchor: Image.Image | None, words: str, pictures: Path | None) -> Row:
    """The answer as one row of a sheet; `pictures` is the folder that was indexed, None if it is not here."""
    asked = " + ".join(part for part, there in (("picture", anchor), ("words", words.strip())) if there)
    hits = [(hit_picture(hit, pictures), _caption(hit), None) for hit in answer.hits]
    return Row(title=asked, anchor=anchor, words=words, hits=hits)


def hit_picture(hit: Hit, pictures: Path | None) -> Image.Image | None:
    """The hit's picture from the folder `pictures`; None when it is not there, or not readable, or elsewhere.

    The file's name is the server's word, so it may not lead out of the folder."""
    file = hit.payload.get("file")
    if pictures is None or not isinstance(file, str) or not file:
        return None
    root = pictures.resolve()
    path = (root / file).resolve()
    if not path.is_relative_to(root):
        return None
    try:
        return open_picture(path, near=_THUMBNAIL)
    except BadPicture:
        return None


def _caption(hit: Hit) -> str:
    name = str(hit.payload.get("file") or hit.id[:_SHORT_ID])
    return f"{hit.score:.3f}  {printable(Path(name).stem)}"
