"""An inspection as a page that opens anywhere, with its contact sheets and numbers beside it.

Drawn with Pillow and inline SVG, so that [train] needs no plotting library; curves in SVG follow the reader's light or
dark. The page holds its pictures itself: it loads nothing and executes nothing. Every text is escaped."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pocketlens_training.inspection import Hit, Inspection, Lesson, Question, Row, Seen, Token
from pocketlens_training.inspection_sheets import (
    HEAT,
    LEAST_PEAK,
    found_rows,
    found_sheet,
    looks_sheet,
    overlay,
    verdict,
    where_most,
)
from pocketlens_training.loop import write_json
from pocketlens_training.sets.pixels import Pixels

PAGE, NUMBERS, LOOKS, FOUND = "index.html", "inspect.json", "attention.png", "found.png"
SHOWN = 320  # pixels a side of a picture in the page: two screen pixels for one at the size shown


def write_inspection(inspection: Inspection, folder: Path) -> list[Path]:
    """Write all of it into `folder` and return the files, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / PAGE]
    rows = found_rows(inspection)
    sheets = {
        LOOKS: looks_sheet(inspection.pictures, inspection.run) if inspection.pictures else None,
        FOUND: found_sheet(rows, inspection.run) if rows else None,
    }
    for name, sheet in sheets.items():
        (folder / name).unlink(missing_ok=True)  # of an earlier inspection
        if sheet is not None:
            sheet.save(folder / name, optimize=True)
            made.append(folder / name)
    write_json(folder / NUMBERS, inspection.as_json())
    made.append(folder / NUMBERS)
    made[0].write_text(_page(inspection, made[1:]), encoding="utf-8", errors="replace")
    return made


# --- curves

_SHARES = ("finds_itself", "matched", "cosine")
_BESIDE = {"steps_per_s": "{} steps/s", "scale": "scale {}"}  # said, not drawn: neither a loss nor a share
_WIDE, _HIGH = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 28, 12, 34


def is_share(name: str) -> bool:
    """Whether a figure of a log lies between 0 and 1 and is no loss."""
    return name in _SHARES or name.startswith(("same ", "recall@"))


def curves(title: str, figures: Mapping[str, Sequence[tuple[int, float]]], *, shares: bool) -> str:
    """A figure as SVG, one line per figure of a log; a shares axis runs from 0 to 1."""
    steps = [step for points in figures.values() for step, _ in points]
    values = [value for points in figures.values() for _, value in points]
    low, high = (min(0.0, *values), 1.0) if shares else (min(0.0, *values), max(values) or 1.0)
    marks = ticks(low, high)
    low, high, last = marks[0], marks[-1], max(steps)

    def x(step: float) -> float:
        return round(_LEFT + step / max(1, last) * (_WIDE - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_HIGH - _TOP - _BOTTOM), 1)

    drawn = []
    for mark in marks:
        drawn.append(f'<path class="grid" d="M{_LEFT} {y(mark)}H{_WIDE - _RIGHT}"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{y(mark) + 4}" text-anchor="end">{_number(mark)}</text>')
    drawn += [
        f'<text x="{x(mark)}" y="{_HIGH - 14}" text-anchor="middle">{mark:,.0f}</text>'
        for mark in ticks(0, last, most=5)
        if mark <= last
    ]
    for i, points in enumerate(figures.values()):
        line = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        drawn.append(f'<polyline class="{_line_class(i)}" points="{line}"/>')
        if len(points) <= 30:
            drawn += [f'<circle class="{_line_class(i)}" cx="{x(s)}" cy="{y(v)}" r="2.6"/>' for s, v in points]
    said = ", ".join(f"{name} from {_number(p[0][1])} to {_number(p[-1][1])}" for name, p in figures.items())
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{html.escape(f"{title}: {said}")}">'
        f"{''.join(drawn)}</svg>"
    )


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, fewer than `most` steps apart."""
    wide = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(wide / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if wide / (unit * factor) <= most)
    return [round(i * step, 10) for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _line_class(number: int) -> str:
    """Every second line is dashed, so that one beneath it shows through; in the next eight it is the others."""
    return f"line c{number % 8}{' dashed' if (number + number // 8) % 2 else ''}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


# --- the page


def _page(inspection: Inspection, files: Sequence[Path]) -> str:
    title = html.escape(f"Inspection of {inspection.run}")
    sections = [_looks(inspection), _questions(inspection), _lessons(inspection)]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in inspection.notes)
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(_said(value))}</dd></div>"
        for name, value in inspection.facts.items()
    )
    links = " · ".join(f'<a href="{path.name}">{path.name}</a>' for path in files)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{_STYLE}</style></head><body>'
        f"<header><h1>{title}</h1>"
        "<p>Where the student looks, which words its tokens are near, what its sentences find, how it learned.</p>"
        f"<dl>{facts}</dl></header>"
        f"{_contents(inspection)}"
        f"{f'<aside><h2>Left out, and to know</h2><ul>{notes}</ul></aside>' if notes else ''}"
        f"<main>{''.join(sections)}</main>"
        f"<footer>Beside this page: {links}</footer></body></html>\n"
    )


def _said(value: str | float) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _contents(inspection: Inspection) -> str:
    """The table of contents: pictures lead to pictures."""
    entries = []
    if inspection.pictures:
        small = "".join(
            f'<a href="#picture-{i}">{_img(_square(seen.pixels, 96), f"Picture {i}: {seen.name}")}</a>'
            for i, seen in enumerate(inspection.pictures, 1)
        )
        entries.append(f'<li><a href="#looks">Where each token looks</a><div class="small">{small}</div></li>')
    if inspection.questions:
        small = "".join(
            f'<a href="#question-{i}">{_img(_square(one.pixels, 96), f"Question {i}: {one.row.words}")}</a>'
            for i, one in enumerate(inspection.questions, 1)
        )
        entries.append(f'<li><a href="#questions">Questions</a><div class="small">{small}</div></li>')
    if inspection.lessons:
        named = " · ".join(
            f'<a href="#lesson-{i}">{html.escape(lesson.title)}</a>' for i, lesson in enumerate(inspection.lessons, 1)
        )
        entries.append(f'<li><a href="#curves">How it learned</a><div>{named}</div></li>')
    return f'<nav aria-label="Contents"><ol>{"".join(entries)}</ol></nav>' if entries else ""


def _looks(inspection: Inspection) -> str:
    if not inspection.pictures:
        return ""
    articles = "".join(_seen(i, seen, inspection) for i, seen in enumerate(inspection.pictures, 1))
    stops = ",".join(f"rgb{stop}" for stop in HEAT)
    found = any(seen.rows for seen in inspection.pictures)
    owns = any(row.own_rank is not None for seen in inspection.pictures for row in seen.rows)
    return (
        '<section id="looks"><h2>Where each token looks</h2><p>Every panel is one token: the brighter a place, the '
        f"more of its attention lies there. Full heat is at least {LEAST_PEAK:g} times an even share, so a token that "
        "looks everywhere alike stays dim. Below each, the words of highest cosine; a token need not be a word, and "
        f'low cosines are usual.{_FOUND_SAID if found else ""}</p><p class="legend"><span><i class="scale" '
        f'style="background:linear-gradient(90deg,{stops})"></i>no attention to the token&rsquo;s most</span>'
        f"{_OWN_FRAME if owns else ''}</p>{articles}</section>"
    )


_FOUND_SAID = " Last, the pictures that the sentence finds, with their cosines."
_OWN_FRAME = '<span><i class="key itself"></i>the picture asked with</span>'
_RIGHT_FRAME = '<span><i class="key right"></i>right, as the file says</span>'
_KINDS = {"held-out": "held out", "learned": "seen in training", "given": "given"}


def _seen(number: int, seen: Seen, inspection: Inspection) -> str:
    side = len(seen.pixels)
    shown = _img(_square(seen.pixels, SHOWN), f"Picture {number}, {seen.name}, as the device sees it")
    tokens = "".join(_token(i, token, seen, inspection) for i, token in enumerate(seen.tokens, 1))
    rows = "".join(_row(row, seen.name) for row in seen.rows)
    return (
        f'<article id="picture-{number}"><h3>{number}. {html.escape(seen.name)} <small>{_KINDS[seen.kind]}</small></h3>'
        f'<div class="looks" style="max-width:{240 * (len(seen.tokens) + 1)}px"><figure>{shown}<figcaption>as the '
        f"device sees it<br>{side} &times; {side} pixels</figcaption></figure>"
        f"{tokens}</div>{rows}</article>"
    )


def _token(number: int, token: Token, seen: Seen, inspection: Inspection) -> str:
    words = "".join(
        f'<li><span>{html.escape(word.text)}</span><i style="width:{max(0.0, min(1.0, word.cosine)) * 100:.0f}%"></i>'
        f"<b>{word.cosine:.2f}</b></li>"
        for word in token.words
    )
    near = ", ".join(word.text for word in token.words[:3])
    most = f"{where_most(token.attention)}, {token.peak:.1f} times an even share"
    alt = f"Token {number} looks most at the {most}; near {near}"
    half = f"{token.half * 100:.0f} %" if token.half >= 0.01 else "under 1 %"
    return (
        f"<figure>{_img(overlay(seen.pixels, token.attention, SHOWN), alt)}<figcaption><strong>token {number}</strong>"
        f"<br>norm {token.norm:.3g}, of a word {inspection.facts['median word norm']:.3g}<br>"
        f"half its attention on {half}</figcaption><ol>{words}</ol></figure>"
    )


def _row(row: Row, name: str) -> str:
    words = f"“{html.escape(row.words)}”" if row.words else "sentence alone"
    hits = "".join(_hit(rank, hit) for rank, hit in enumerate(row.hits, 1))
    return (
        f'<div class="row"><p><strong>{words}</strong><br><small>{verdict(row)}</small></p>'
        f'<ol aria-label="{html.escape(f"Found with {name}")}">{hits}</ol></div>'
    )


def _hit(rank: int, hit: Hit) -> str:
    kind = "right" if hit.right else "itself" if hit.itself else ""
    told = {"right": ", a right answer", "itself": ", the picture itself"}.get(kind, "")
    inside = (
        '<span class="gone">not here</span>' if hit.pixels is None
        else _img(Image.fromarray(hit.pixels), f"Found at rank {rank}: {hit.name}{told}")
    )  # fmt: skip
    return f'<li class="{kind}" title="{html.escape(hit.name)}">{inside}<span><b>{rank}</b> {hit.score:.3f}</span></li>'


def _questions(inspection: Inspection) -> str:
    if not inspection.questions:
        return ""
    asked = "".join(_question(i, one) for i, one in enumerate(inspection.questions, 1))
    owns = any(one.row.own_rank is not None for one in inspection.questions)
    return (
        '<section id="questions"><h2>Questions</h2><p>Composed queries of the run&rsquo;s questions file: a picture '
        f'and words.</p><p class="legend">{_RIGHT_FRAME}{_OWN_FRAME if owns else ""}</p>{asked}</section>'
    )


def _question(number: int, one: Question) -> str:
    shown = _img(_square(one.pixels, 224), f"Question {number} asks with {one.name}")
    return f'<div class="asked" id="question-{number}">{shown}{_row(one.row, one.name)}</div>'


def _lessons(inspection: Inspection) -> str:
    if not inspection.lessons:
        return ""
    shown = "".join(_lesson(i, lesson) for i, lesson in enumerate(inspection.lessons, 1))
    return (
        '<section id="curves"><h2>How it learned</h2><p>The log of each lesson by optimiser step; beside a name its '
        f"last value.</p>{shown}</section>"
    )


def _lesson(number: int, lesson: Lesson) -> str:
    terms = {name: p for name, p in lesson.figures.items() if not is_share(name) and name not in _BESIDE}
    shares = {name: p for name, p in lesson.figures.items() if is_share(name)}
    panels = [
        f"<figure><figcaption>{kind}</figcaption>{curves(f'{lesson.title}, {kind}', figures, shares=kind == 'shares')}"
        f"{_legend(figures)}</figure>"
        for kind, figures in (("loss", terms), ("shares", shares))
        if figures
    ]
    beside = [said.format(_number(p[-1][1])) for name, said in _BESIDE.items() if (p := lesson.figures.get(name))]
    last = max(step for points in lesson.figures.values() for step, _ in points)
    told = html.escape(", ".join([f"{last:,} steps", *beside, lesson.file]))
    return (
        f'<article id="lesson-{number}"><h3>{html.escape(lesson.title)} <small>{told}</small></h3>'
        f'<div class="curves">{"".join(panels)}</div></article>'
    )


def _legend(figures: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    return "<ul>{}</ul>".format(
        "".join(
            f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="{_line_class(i)}" d="M1 4H23"/></svg>'
            f"{html.escape(name)} <b>{_number(points[-1][1])}</b></li>"
            for i, (name, points) in enumerate(figures.items())
        )
    )


def _square(pixels: Pixels, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _img(picture: Image.Image, alt: str) -> str:
    """The picture within the page, as a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=86)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'


_STYLE = """
:root{color-scheme:light dark;--page:#fff;--card:#f6f7f8;--ink:#1f2328;--faint:#59636e;--line:#d9dee4;--right:#11853f;
--own:#0072b2;--link:#0a5c94;--bar:#c9d3dc;--c0:#0072b2;--c1:#d55e00;--c2:#00825f;--c3:#a8488b;--c4:#b17a00;--c5:#3a9fd6;
--c6:#59636e;--c7:#7a4fc9}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--card:#161b22;--ink:#f0f6fc;--faint:#9aa4ae;--line:#30363d;
--right:#3fb968;--own:#56b4e9;--link:#79c0f5;--bar:#3b4754;--c0:#56b4e9;--c1:#ff8a4a;--c2:#2fc79b;--c3:#e79ccb;--c4:#f0bb3d;
--c5:#8fa8ff;--c6:#a9b3bd;--c7:#c3a6ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1248px;padding:28px 24px 60px;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:28px;margin:0}h2{font-size:22px;margin:44px 0 6px}h3{font-size:17px;margin:0 0 12px;overflow-wrap:anywhere}
p{margin:6px 0 14px;max-width:78ch}small,figcaption,header p{color:var(--faint)}small{font-weight:400;font-size:13px}
a{color:var(--link)}img,svg{display:block;width:100%;height:auto}figure{margin:0}
figcaption{font-size:13px;line-height:1.4;margin-top:6px}
dl{display:flex;flex-wrap:wrap;gap:8px 28px;margin:14px 0 0}dl div{min-width:0}dt{font-size:12px;color:var(--faint)}
dd{margin:0;overflow-wrap:anywhere}
nav,aside{background:var(--card);border-radius:10px;padding:14px 20px;margin:22px 0}
nav ol{margin:0;padding:0;list-style:none;display:grid;gap:12px}
.small{display:flex;flex-wrap:wrap;gap:8px;margin-top:6px}
.small img{width:48px;border-radius:5px}aside h2{font-size:16px;margin:0 0 4px}aside ul{margin:0;padding-left:20px}
aside li{overflow-wrap:anywhere}
article{border-top:1px solid var(--line);padding:22px 0 10px;scroll-margin-top:8px}
.looks{display:grid;grid-template-columns:repeat(auto-fit,minmax(168px,1fr));gap:20px}
.looks img{border-radius:6px}.looks ol{list-style:none;margin:8px 0 0;padding:0;font-size:14px}
.looks li{display:grid;grid-template-columns:1fr 36px;position:relative;padding:1px 0 4px}
.looks li span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.looks li b{font-weight:400;color:var(--faint);text-align:right}
.looks li i{position:absolute;left:0;bottom:1px;height:3px;border-radius:2px;background:var(--bar)}
.looks li:first-child span{font-weight:600}.looks li:first-child i{background:var(--own)}
.looks figcaption strong{color:var(--ink)}
.legend{display:flex;flex-wrap:wrap;gap:6px 26px;max-width:none;color:var(--faint);font-size:14px}
.legend i{display:inline-block;height:14px;border-radius:3px;margin-right:8px;vertical-align:-2px}
.legend .scale{width:120px}.legend .key{width:14px}
.key.right{border:4px solid var(--right)}.key.itself{border:4px solid var(--own)}
.row{display:grid;grid-template-columns:200px 1fr;gap:16px;margin:20px 0 4px;align-items:start;flex:1}.row p{margin:0;
line-height:1.35;overflow-wrap:anywhere}
.row ol{list-style:none;display:flex;flex-wrap:wrap;gap:14px;margin:0;padding:0}.row li{width:120px;font-size:13px;
color:var(--faint)}.row li img,.gone{width:112px;height:112px;margin:4px;border-radius:4px}
.row li.right img{outline:4px solid var(--right)}.row li.itself img{outline:4px solid var(--own)}
.row li span{padding:0 4px}.row li b{color:var(--ink)}.gone{display:grid;place-items:center;background:var(--card)}
.asked{display:flex;gap:16px;align-items:flex-start;border-top:1px solid var(--line);padding:14px 0}
.asked>img{width:112px;border-radius:4px;margin-top:4px}.asked .row{margin:0}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:28px}
.curves figcaption{margin:0 0 2px 52px}
.curves text{font:12px system-ui,sans-serif;fill:var(--faint)}.grid{stroke:var(--line);stroke-width:1}
.curves ul{display:flex;flex-wrap:wrap;gap:3px 16px;list-style:none;margin:6px 0 0;padding:0 0 0 52px;font-size:13px;
color:var(--faint)}.curves li{display:flex;gap:6px;align-items:center}.curves li svg{width:24px}
.curves li b{color:var(--ink);font-weight:600}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}circle.line{stroke:none}.dashed{stroke-dasharray:5 3}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}
circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}circle.c4{fill:var(--c4)}circle.c5{fill:var(--c5)}
circle.c6{fill:var(--c6)}circle.c7{fill:var(--c7)}
footer{margin-top:50px;color:var(--faint);font-size:14px}
@media(max-width:640px){body{padding:18px 14px 40px}.row{grid-template-columns:1fr}.looks{grid-template-columns:repeat(
auto-fill,minmax(136px,1fr));gap:14px}}
@media print{nav{display:none}article{break-inside:avoid}}
"""
