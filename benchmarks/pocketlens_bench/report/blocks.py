"""What a section of the results page is made of: Markdown paragraphs, tables, pictures.

Owns how a figure, a table and a picture look in Markdown. Called by the sections and page.py."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketlens_bench.protocols.figures import Measured

if TYPE_CHECKING:
    from pocketlens_bench.report.canvas import Canvas


@dataclass(frozen=True)
class Picture:
    """A plot. stem: of its file names. alt: what it shows, for those who cannot see it."""

    stem: str
    alt: str
    draw: "Callable[[Canvas], None]"


Block = str | Picture


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are words, the others numbers."""
    rules = ["---"] * texts + ["--:"] * (len(headings) - texts)
    return "\n".join(_line(cells) for cells in (headings, rules, *rows))


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_sentence(line)}" for line in lines)


def measured(figure: Measured, *, sign: str = "", decimals: int = 1) -> str:
    """`86.8 ±1.9`: half of the interval's width."""
    return f"{figure.value:{sign}.{decimals}f} ±{(figure.high - figure.low) / 2:.{decimals}f}"


def times(ms: float) -> str:
    """Milliseconds with as many digits as help."""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def size(count: float) -> str:
    """Bytes: 877 B, 23.4 kB, 1.2 GB."""
    for unit, scale, above in (("GB", 1e9, 1e9), ("MB", 1e6, 1e6), ("kB", 1e3, 1e4)):
        if count >= above:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"


def short_count(count: float) -> str:
    """950, 30k, 1M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:g}{unit}"
    return f"{count:g}"


def name_of(text: str) -> str:
    """Part of a file name: letters, digits, dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."
