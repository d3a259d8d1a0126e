"""Show answers as pictures: a contact sheet (PNG) and a page (HTML), one row per question.

Owns how a row looks. Knows no network and no gallery: rows come ready from show.py, the demo, the benchmarks.
"""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont, ImageOps

# Light paper, dark ink, one signal colour; units are pixels of the finished sheet.
_PAPER, _CARD, _LINE, _INK, _SOFT, _GREEN = "#ffffff", "#f4f4f1", "#dcdcd6", "#1d1d1f", "#6b6b70", "#11853f"
_CELL, _GAP, _MARGIN, _WORDS = 152, 18, 56, 236
_CAPTION, _ROW_GAP, _HEAD = 30, 34, 118
_FRAME = 5  # of a right hit, drawn around the picture
_EMBEDDED_SIDE = 320  # longest side of a picture in the page: two screen pixels for one at the size shown

# One hit: its picture (None if not at hand), its caption, and whether it is right (None if nobody knows).
Hit = tuple[Image.Image | None, str, bool | None]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question and its hits, best first. anchor: the picture asked with, None if words alone asked."""

    title: str
    anchor: Image.Image | None
    words: str
    hits: Sequence[Hit] = ()


def verdict(row: Row, columns: int) -> tuple[str, bool | None]:
    """What to say of a row's ground truth and whether it is good news; ("", None) when there is none."""
    shown = [correct for _, _, correct in row.hits[:columns]]
    if True in shown:
        return f"found at rank {shown.index(True) + 1}", True
    if False in shown:
        return f"not among the first {len(shown)}", False
    return "", None


# --- the contact sheet ---


def contact_sheet(
    rows: Sequence[Row], columns: int = 5, *, title: str = "Pocketlens", subtitle: str = ""
) -> Image.Image:
    """An RGB picture with one row per question: anchor, words, and the first `columns` hits.

    A right hit has a green frame and a tick; the others are left alone."""
    width = 2 * _MARGIN + _CELL + _GAP + _WORDS + columns * (_CELL + _GAP)
    height = _HEAD + len(rows) * _row_height() + _MARGIN // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, columns, title, subtitle)
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, row, columns, _HEAD + number * _row_height())
    return sheet


def _row_height() -> int:
    return _CELL + _CAPTION + _ROW_GAP


def _hit_x(rank: int) -> int:
    """Left edge of the hit at `rank` (from 0)."""
    return _MARGIN + _CELL + _GAP + _WORDS + _GAP + rank * (_CELL + _GAP)


def _head(draw: ImageDraw.ImageDraw, columns: int, title: str, subtitle: str) -> None:
    draw.text((_MARGIN, 34), title, font=_font(30), fill=_INK)
    if subtitle:
        left = _MARGIN + draw.textlength(title, font=_font(30)) + 20
        room = _hit_x(columns) - _GAP - int(left)
        draw.text((left, 44), _shorten(subtitle, _font(18), room), font=_font(18), fill=_SOFT)
    for x, label in (
        (_MARGIN, "picture"),
        (_MARGIN + _CELL + _GAP, "words"),
        (_hit_x(0), f"best {columns} hits"),
    ):
        draw.text((x, _HEAD - 30), label, font=_font(16), fill=_SOFT)
    draw.line((_MARGIN, _HEAD - 8, _hit_x(columns) - _GAP, _HEAD - 8), fill=_LINE, width=1)


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, columns: int, top: int) -> None:
    top += _ROW_GAP // 2
    _draw_picture(sheet, draw, (_MARGIN, top), row.anchor, "words only")
    _draw_words(draw, (_MARGIN + _CELL + _GAP, top), row, columns)
    for rank, (picture, caption, correct) in enumerate(row.hits[:columns]):
        corner = (_hit_x(rank), top)
        _draw_picture(sheet, draw, corner, picture, "no picture here")
        if correct:
            _draw_mark(sheet, draw, corner)
        draw.text((corner[0], top + _CELL + 9), f"{rank + 1}", font=_font(16), fill=_INK)
        text = _shorten(caption, _font(16), _CELL - 24)
        draw.text((corner[0] + 24, top + _CELL + 9), text, font=_font(16), fill=_GREEN if correct else _SOFT)
    if not row.hits:
        draw.text((_hit_x(0), top + _CELL // 2 - 10), "no picture matches", font=_font(18), fill=_SOFT)


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    picture: Image.Image | None,
    absent: str,
) -> None:
    """The picture, whole, in its square; or an empty card that says why there is none."""
    x, y = corner
    draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=_CARD)
    if picture is None:
        draw.text((x + _CELL // 2, y + _CELL // 2), absent, font=_font(16), fill=_SOFT, anchor="mm")
    else:
        whole = ImageOps.contain(picture.convert("RGB"), (_CELL, _CELL), Image.Resampling.LANCZOS)
        sheet.paste(whole, (x + (_CELL - whole.width) // 2, y + (_CELL - whole.height) // 2))
    draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), outline=_LINE, width=1)


def _draw_mark(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    """A green frame around the cell and a tick on its upper right corner."""
    x, y = corner
    end = _CELL - 1 + _FRAME
    draw.rectangle((x - _FRAME, y - _FRAME, x + end, y + end), outline=_GREEN, width=_FRAME)
    tick = _tick()
    sheet.paste(tick, (x + _CELL + 2 * _FRAME - tick.width, y - 2 * _FRAME), tick)


@cache
def _tick() -> Image.Image:
    """A white tick on a green disc with a white rim, RGBA; drawn large and reduced, as Pillow draws hard edges."""
    side = 8 * 32
    tick = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(tick)
    draw.ellipse((0, 0, side - 1, side - 1), fill=_PAPER)
    draw.ellipse((16, 16, side - 17, side - 17), fill=_GREEN)
    draw.line([(76, 132), (112, 168), (180, 92)], fill=_PAPER, width=24, joint="curve")
    return tick.resize((32, 32), Image.Resampling.LANCZOS)


def _draw_words(draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: Row, columns: int) -> None:
    x, y = corner
    draw.text((x, y), _shorten(row.title, _font(16), _WORDS), font=_font(16), fill=_SOFT)
    y += 26
    for line in _wrap(row.words or "no words", _font(20), _WORDS, lines=4):
        draw.text((x, y), line, font=_font(20), fill=_INK if row.words else _SOFT)
        y += 27
    said, good = verdict(row, columns)
    draw.text((x, corner[1] + _CELL - 18), said, font=_font(16), fill=_GREEN if good else _SOFT)


@cache
def _font(size: int) -> Font:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(size=size)


def _wrap(text: str, font: Font, width: int, *, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    words, wrapped = text.split(), [""]
    for at, word in enumerate(words):
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        elif len(wrapped) < lines:
            wrapped.append(word)
        else:
            wrapped[-1] = " ".join([wrapped[-1], *words[at:]])
            break
    return [_shorten(line, font, width) for line in wrapped]


def _shorten(text: str, font: Font, width: int) -> str:
    """`text` in one line of `width` pixels. Accents are dropped: Pillow's font has only basic Latin."""
    plain = (char for char in unicodedata.normalize("NFKD", text[:400]) if not unicodedata.combining(char))
    text = " ".join("".join(plain).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


# --- the page ---


def html_page(
    rows: Sequence[Row], path: Path, *, columns: int = 5, title: str = "Pocketlens", subtitle: str = ""
) -> None:
    """Write the same rows as one self-contained page: pictures inside, nothing loaded, nothing executed.

    Light or dark as the reader's system is. Every text is escaped: words and payloads are strangers' input.
    """
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        rows="\n".join(_html_row(row, columns) for row in rows),
    )
    path.write_text(page, encoding="utf-8", errors="replace")


def _html_row(row: Row, columns: int) -> str:
    said, good = verdict(row, columns)
    words = _html_words(row.words)
    hits = "".join(_html_hit(rank, hit) for rank, hit in enumerate(row.hits[:columns], start=1))
    return (
        f"<section><figure>{_html_card(row.anchor, 'the picture asked with', 'words only')}</figure>"
        f"<div><h2>{html.escape(row.title)}</h2>{words}"
        f'<p class="verdict{" good" if good else ""}">{said}</p></div>'
        f"<ol>{hits or '<li class=none>no picture matches</li>'}</ol></section>"
    )


def _html_words(words: str) -> str:
    if not words:
        return '<p class="words none">no words</p>'
    return f'<p class="words">{html.escape(words)}</p>'


def _html_hit(rank: int, hit: Hit) -> str:
    picture, caption, correct = hit
    kind = ' class="right"' if correct else ""
    tick = '<span class="tick" role="img" aria-label="a match">✓</span>' if correct else ""
    return (
        f"<li><figure{kind}>"
        f"{_html_card(picture, f'hit {rank}', 'no picture here')}{tick}"
        f"<figcaption><b>{rank}</b>{html.escape(caption)}</figcaption></figure></li>"
    )


def _html_card(picture: Image.Image | None, alt: str, absent: str) -> str:
    inside = absent if picture is None else f'<img alt="{alt}" src="{_data_uri(picture)}">'
    return f'<div class="card">{inside}</div>'


def _data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG of at most _EMBEDDED_SIDE, inside the address itself."""
    small = picture.convert("RGB")
    small.thumbnail((_EMBEDDED_SIDE, _EMBEDDED_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
