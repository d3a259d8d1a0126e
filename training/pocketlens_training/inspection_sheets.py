"""Where tokens look and what sentences find, as pictures: heat over a picture, and two contact sheets.

Drawn with Pillow on light paper, for papers and talks; inspection_page.py shows the same in a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketlens_training.inspection import Inspection, Row, Seen, Token
from pocketlens_training.sets.pixels import Pixels

LEAST_PEAK = 3.0  # even shares that full heat is at least: a token that looks everywhere alike stays dim

# Of heat, from none to full: matplotlib's "inferno" (van der Walt and Smith 2015), every eighth of it.
HEAT = ((0, 0, 4), (34, 12, 75), (87, 16, 110), (138, 34, 106), (188, 55, 84), (228, 90, 49), (250, 142, 9),
         (249, 203, 53), (252, 255, 164))  # fmt: skip


def overlay(pixels: Pixels, attention: NDArray[np.float32], side: int) -> Image.Image:
    """Where a token looks, as heat over the picture in grey, `side` pixels square; cells of attention run smoothly into
    each other."""
    grey = Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BICUBIC)
    full = max(float(attention.max()), LEAST_PEAK / attention.size)
    cells = Image.fromarray((attention / full).astype(np.float32))
    heat = np.clip(np.asarray(cells.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)[..., None]
    colour = _heat_colours()[np.rint(heat[..., 0] * 255).astype(np.uint8)]
    share = 0.45 + 0.3 * heat  # of the colour; where nobody looks the picture is dark but still to be seen
    mixed = share * colour + (1 - share) * np.asarray(grey, np.float32)[..., None]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


@cache
def _heat_colours() -> NDArray[np.float32]:
    """(256, 3)"""
    at = np.linspace(0, 255, len(HEAT))
    return np.stack([np.interp(np.arange(256), at, [stop[i] for stop in HEAT]) for i in range(3)], 1).astype(np.float32)


def where_most(attention: NDArray[np.float32]) -> str:
    """In which ninth of the picture its strongest place lies."""
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    down = ("upper", "middle", "lower")[int(3 * (row + 0.5) / attention.shape[0])]
    across = ("left", "centre", "right")[int(3 * (column + 0.5) / attention.shape[1])]
    return "centre" if (down, across) == ("middle", "centre") else f"{down} {across}"


def found_rows(inspection: Inspection) -> list[tuple[Pixels, str, Row]]:
    """All rows of pictures that were found: (the picture asked with, its name, the row)."""
    rows = [(seen.pixels, seen.name, row) for seen in inspection.pictures for row in seen.rows]
    return rows + [(one.pixels, one.name, one.row) for one in inspection.questions]


# --- the contact sheets: light paper; units are pixels of the finished sheet

_PAPER, _CARD, _LINE, _INK, _SOFT, _GREEN, _BLUE = (
    "#ffffff", "#f4f4f1", "#dcdcd6", "#1d1d1f", "#6b6b70", "#11853f", "#0072b2",
)  # fmt: skip
_CELL, _GAP, _MARGIN, _HEAD, _STEP = 200, 20, 48, 108, 23
_ACROSS = 8  # tokens beside each other


def looks_sheet(pictures: Sequence[Seen], run: str) -> Image.Image:
    """One band per picture: the picture, where each token looks, and its nearest words."""
    tokens = len(pictures[0].tokens)
    across, lines = min(tokens, _ACROSS), -(-tokens // _ACROSS)
    words = max(len(token.words) for seen in pictures for token in seen.tokens)
    line = _CELL + 34 + _STEP * words + 26
    sheet = Image.new("RGB", (_x(across + 1) - _GAP + _MARGIN, _HEAD + lines * line * len(pictures) + 16), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, sheet.width, "Where each token looks", run)
    draw.text((_x(0), _HEAD - 34), "picture", font=_font(16), fill=_SOFT)
    draw.text((_x(1), _HEAD - 34), _shorten(_LOOKS_SAID, 16, sheet.width - _MARGIN - _x(1)), font=_font(16), fill=_SOFT)
    for number, seen in enumerate(pictures):
        top = _HEAD + number * lines * line
        _paste(sheet, draw, (_x(0), top), Image.fromarray(seen.pixels))
        draw.text((_x(0), top + _CELL + 8), _short_name(seen.name, 16, _CELL), font=_font(16), fill=_SOFT)
        for i, token in enumerate(seen.tokens):
            corner = (_x(1 + i % _ACROSS), top + i // _ACROSS * line)
            _paste(sheet, draw, corner, overlay(seen.pixels, token.attention, _CELL))
            _draw_words(draw, corner, i, token)
    return sheet


_LOOKS_SAID = "tokens: attention, norm, nearest words and their cosines"


def _draw_words(draw: ImageDraw.ImageDraw, corner: tuple[int, int], number: int, token: Token) -> None:
    x, y = corner[0], corner[1] + _CELL + 8
    draw.text((x, y), f"token {number + 1}", font=_font(16), fill=_SOFT)
    draw.text((x + _CELL, y), f"norm {token.norm:.3g}", font=_font(16), fill=_SOFT, anchor="ra")
    for place, word in enumerate(token.words):
        below = y + 26 + _STEP * place
        draw.text((x, below), _shorten(word.text, 17, _CELL - 54), font=_font(17), fill=_INK if place == 0 else _SOFT)
        draw.text((x + _CELL, below), f"{word.cosine:.2f}", font=_font(17), fill=_SOFT, anchor="ra")


def found_sheet(rows: Sequence[tuple[Pixels, str, Row]], run: str) -> Image.Image:
    """One line per row: the picture asked with, the words, what was found. Right ones have a green frame, the picture
    itself a blue one."""
    cell = 168
    line = cell + 34 + 24
    across = max(len(row.hits) for _, _, row in rows)
    left = _MARGIN + cell + _GAP + 230
    sheet = Image.new("RGB", (left + across * (cell + _GAP) - _GAP + _MARGIN, _HEAD + line * len(rows) + 8), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, sheet.width, "What sentences find", run)
    draw.text((_MARGIN, _HEAD - 34), "picture", font=_font(16), fill=_SOFT)
    draw.text((_MARGIN + cell + _GAP, _HEAD - 34), "words", font=_font(16), fill=_SOFT)
    said = "nearest pictures, with cosines; green frame: right, blue frame: the picture itself"
    draw.text((left, _HEAD - 34), _shorten(said, 16, sheet.width - left - _MARGIN), font=_font(16), fill=_SOFT)
    for number, (pixels, name, row) in enumerate(rows):
        top = _HEAD + number * line
        _paste(sheet, draw, (_MARGIN, top), Image.fromarray(pixels), cell)
        draw.text((_MARGIN, top + cell + 9), _short_name(name, 14, cell), font=_font(14), fill=_SOFT)
        for at, text in enumerate(_wrapped(row.words or "sentence alone", 19, 210, lines=4)):
            place = (_MARGIN + cell + _GAP, top + 26 * at)
            draw.text(place, text, font=_font(19), fill=_INK if row.words else _SOFT)
        for at, text in enumerate(_wrapped(verdict(row), 15, 210, lines=2)):
            draw.text((_MARGIN + cell + _GAP, top + cell - 36 + 19 * at), text, font=_font(15), fill=_SOFT)
        for rank, hit in enumerate(row.hits):
            corner = (left + rank * (cell + _GAP), top)
            _paste(sheet, draw, corner, None if hit.pixels is None else Image.fromarray(hit.pixels), cell)
            if hit.right or hit.itself:
                _frame(draw, corner, cell, _GREEN if hit.right else _BLUE)
            draw.text((corner[0], top + cell + 9), f"{rank + 1}", font=_font(15), fill=_INK)
            said = ("itself  " if hit.itself else "") + f"{hit.score:.3f}"
            draw.text((corner[0] + cell, top + cell + 9), said, font=_font(15), fill=_SOFT, anchor="ra")
    return sheet


def _x(column: int) -> int:
    return _MARGIN + column * (_CELL + _GAP)


def _head(draw: ImageDraw.ImageDraw, width: int, title: str, run: str) -> None:
    draw.text((_MARGIN, 28), title, font=_font(28), fill=_INK)
    after = _MARGIN + _font(28).getlength(title) + 18
    draw.text((after, 38), _shorten(run, 18, int(width - _MARGIN - after)), font=_font(18), fill=_SOFT)
    draw.line((_MARGIN, _HEAD - 10, width - _MARGIN, _HEAD - 10), fill=_LINE)


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], picture: Image.Image | None,
    cell: int = _CELL,
) -> None:  # fmt: skip
    x, y = corner
    if picture is None:
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=_CARD)
        draw.text((x + cell // 2, y + cell // 2), "not here", font=_font(15), fill=_SOFT, anchor="mm")
    else:
        sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), corner)
    draw.rectangle((x - 1, y - 1, x + cell, y + cell), outline=_LINE)


def _frame(draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, colour: str) -> None:
    x, y = corner
    draw.rectangle((x - 6, y - 6, x + cell + 5, y + cell + 5), outline=colour, width=5)


def verdict(row: Row) -> str:
    """Where the wanted picture was found."""
    said = []
    if row.right_rank is not None:
        said.append(f"first right: rank {row.right_rank:,}")
    if row.own_rank is not None:
        said.append(f"itself: rank {row.own_rank:,}")
    return f"{', '.join(said)} of {row.among:,}" if said else f"of {row.among:,} pictures"


def _short_name(name: str, size: int, width: int) -> str:
    """As much of a path's end as fits: that is what tells pictures apart."""
    for parts in (2, 1):
        text = "/".join(Path(name).parts[-parts:])
        if _font(size).getlength(text) <= width:
            break
    while _font(size).getlength(text) > width:
        text = "…" + text.removeprefix("…")[1:]
    return _shorten(text, size, width)


@cache
def _font(size: int) -> Any:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(size=size)


def _shorten(text: str, size: int, width: int) -> str:
    """`text` in one line of `width` pixels. Pillow's font has only basic Latin: accents are dropped, letters of other
    scripts become "?"; the page shows them."""
    bare = (letter for letter in unicodedata.normalize("NFKD", text[:400]) if not unicodedata.combining(letter))
    kept = "".join(letter if " " <= letter <= "~" or letter in "…“”" else "?" for letter in bare)
    if _font(size).getlength(kept) <= width:
        return kept
    while kept and _font(size).getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def _wrapped(text: str, size: int, width: int, *, lines: int) -> list[str]:
    words, made = text.split(), [""]
    for at, word in enumerate(words):
        longer = f"{made[-1]} {word}".strip()
        if _font(size).getlength(longer) <= width or not made[-1]:
            made[-1] = longer
        elif len(made) < lines:
            made.append(word)
        else:
            made[-1] = " ".join([made[-1], *words[at:]])
            break
    return [_shorten(line, size, width) for line in made]
