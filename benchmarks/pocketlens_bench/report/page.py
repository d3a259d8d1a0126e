"""The results page: sections in order, each with what it lost, what it does not say and how to measure it again.

The same results give the same page, byte for byte, so a test can hold the committed page to the committed results. A
picture carries the hash of what it was drawn from; `stale` compares that and draws nothing. Called by cli/report.py and
paper.py."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pocketlens_bench.report.blocks import Block, Picture, bullets, table
from pocketlens_bench.report.console import commit_text
from pocketlens_bench.report.results import BadResult, Node, Result
from pocketlens_bench.report.sections import registry
from pocketlens_bench.report.sections.section import Section

MADE = "<!-- Made by `pocketlens-bench report`. Do not edit: change the results, then run it again. -->"
STAMP = "Pocketlens-Source"
SHOWN = 860  # pixels: the width of a picture on the page
NOTHING_LOST = "Nothing that was compared here came out ahead of it"


@dataclass(frozen=True)
class Drawing:
    """A picture of the page and what it is drawn from."""

    picture: Picture
    stamp: str


@dataclass(frozen=True)
class Page:
    """A page not yet written. folder: of its pictures, relative to the page."""

    text: str
    drawings: tuple[Drawing, ...]
    folder: str


def page_of(results: Sequence[Result], out: Path) -> Page:
    """The page that `out` should hold. Raises BadResult for an unknown kind or a result that lacks something."""
    folder = f"img/{out.stem}"
    ordered = sorted(results, key=lambda result: (_order(result), result.about, result.name))
    titles = _titles(ordered)
    drawings: list[Drawing] = []
    lines = [MADE, "# Results", _opening(ordered), "\n".join(f"- [{title}](#{_anchor(title)})" for title in titles)]
    for result, title in zip(ordered, titles, strict=True):
        lines.append(f"## {title}")
        for block in _blocks(result, out):
            if isinstance(block, Picture):
                drawings.append(Drawing(block, _stamp(result)))
                block = _shown(block, folder)  # noqa: PLW2901
            lines.append(block)
    return Page("\n\n".join(lines) + "\n", tuple(drawings), folder)


def write(page: Page, out: Path) -> list[Path]:
    """Write the page and its pictures in both themes; gives the files written. Needs matplotlib."""
    from pocketlens_bench.report.canvas import THEMES, Canvas

    out.parent.mkdir(parents=True, exist_ok=True)
    written = [out]
    for drawing in page.drawings:
        for theme in THEMES:
            canvas = Canvas(theme)
            drawing.picture.draw(canvas)
            file = out.parent / page.folder / _file(drawing.picture, theme.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(canvas.png(drawing.stamp))
            written.append(file)
    out.write_text(page.text, encoding="utf-8")
    return written


def stale(page: Page, out: Path) -> list[str]:
    """What of the page on disk does not agree with the results; empty when all does."""
    said: list[str] = []
    if not out.is_file():
        return [f"{out} is not there"]
    if out.read_text(encoding="utf-8") != page.text:
        said.append(f"{out} does not agree with the results")
    for drawing in page.drawings:
        for theme in ("light", "dark"):
            file = out.parent / page.folder / _file(drawing.picture, theme)
            if not file.is_file():
                said.append(f"{file} is not there")
            elif _stamp_of(file) != drawing.stamp:
                said.append(f"{file} was drawn from other results")
    return said


# --- the page's parts


def _opening(results: Sequence[Result]) -> str:
    files = len(results)
    return (
        f"From {files} results file{'s' if files > 1 else ''}. Each section says how it was measured, what it does not "
        "say and where Pocketlens loses."
    )


def _blocks(result: Result, out: Path) -> list[Block]:
    try:
        return list(_section(result, out))
    except IndexError as error:
        raise BadResult(f"{result.name}: a table without rows. Measure it again.") from error


def _section(result: Result, out: Path) -> Iterator[Block]:
    section = section_of(result)
    yield from section.blocks(result)
    yield "**Where it loses**"
    yield bullets(section.lost(result) or [NOTHING_LOST])
    if cautions := section.cautions(result):
        yield "**What it does not say**"
        yield bullets(cautions)
    yield "**To measure it again**"
    yield f"```\n{command_of(result)}\n```"
    yield _conditions(result, out)


def section_of(result: Result) -> Section:
    """Raises BadResult for a kind the report does not know."""
    known = {section.kind: section for section in registry.SECTIONS}
    if result.kind not in known:
        raise BadResult(
            f"{result.path}: results of kind `{result.kind}`; this version reports {', '.join(sorted(known))}. "
            "Leave the file out, or update pocketlens."
        )
    return known[result.kind]


def command_of(result: Result) -> str:
    """What makes such a result, as far as the card says."""
    typed = result.conditions.get("command")
    if typed:
        words = [word.text() for word in typed.each()]
        if words and words[0] == result.kind:
            return shlex.join(["pocketlens-bench", *words])
    which = ["--set", result.about] if result.kind == "accuracy" and result.about else []
    return shlex.join(["pocketlens-bench", result.kind, *which, "--out", result.name])


def _conditions(result: Result, out: Path) -> str:
    """The card as a table that opens on a click; GitHub wants empty lines around the table."""
    rows = [(name, said) for name, said in _card(result.conditions) if said]
    rows.append(("raw figures", _link(result, out)))
    return f"<details>\n<summary>Conditions</summary>\n\n{table(['', ''], rows, texts=2)}\n\n</details>"


def _card(conditions: Node) -> Iterator[tuple[str, str]]:
    machine = conditions["machine"]
    commit, bundle = conditions.get("commit"), conditions.get("bundle")
    yield "commit", commit_text(commit.value) if commit else "not recorded"
    if bundle:
        yield "bundle", ", ".join(bundle[key].text() for key in ("name", "encoder", "token_space", "gallery_space"))
    memory = machine.get("ram_gb")
    yield (
        "machine",
        (
            f"{machine['cpu'].text()}, {machine['cores'].whole()} cores, "
            f"{f'{memory.number():g} GB, ' if memory else ''}{machine['system'].text()}"
        ),
    )
    load = machine.get("load_at_start")
    yield "load at start", f"{load.number():g}" if load else ""
    stolen = machine.get("stolen_share")
    yield "time its host gave to others", f"{stolen.number():.1%}" if stolen else ""
    for name in ("threads", "seeds", "sizes", "versions"):
        yield name, _pairs(conditions.get(name))
    took = conditions.get("seconds")
    yield "measured", f"{conditions['time'].text()}{f', in {took.number():g} s' if took else ''}"


def _pairs(node: Node | None) -> str:
    if node is None:
        return ""
    return ", ".join(f"{key.replace('_', ' ')} {_plain(node[key].value)}" for key in node.keys())  # noqa: SIM118


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        return "/".join(_plain(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _link(result: Result, out: Path) -> str:
    """A link to the results file where page and file move together; else its name alone."""
    try:
        away = os.path.relpath(result.path.resolve(), out.resolve().parent)
    except ValueError:  # another drive
        return f"`{result.name}`"
    return f"`{result.name}`" if away.count("../") > 1 else f"[`{result.name}`]({Path(away).as_posix()})"


def _shown(picture: Picture, folder: str) -> str:
    light, dark = (f"{folder}/{_file(picture, theme)}" for theme in ("light", "dark"))
    alt = picture.alt.replace('"', "'")
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" width="{SHOWN}" alt="{alt}">\n</picture>'
    )


def _titles(results: Sequence[Result]) -> list[str]:
    """Headings; those of the same name get the file's name behind them."""
    plain = [section_of(result).title(result) for result in results]
    return [
        f"{title} ({result.name})" if plain.count(title) > 1 else title
        for title, result in zip(plain, results, strict=True)
    ]


def _order(result: Result) -> int:
    return registry.SECTIONS.index(section_of(result))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in "-_ ")
    return kept.replace(" ", "-")


def _file(picture: Picture, theme: str) -> str:
    return f"{picture.stem}-{theme}.png"


def _stamp(result: Result) -> str:
    return hashlib.sha256(json.dumps(result.data.value, sort_keys=True).encode()).hexdigest()[:16]


def _stamp_of(file: Path) -> str | None:
    with Image.open(file) as picture:
        return picture.info.get(STAMP)
