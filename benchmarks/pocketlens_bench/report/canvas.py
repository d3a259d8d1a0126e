"""Where a plot is drawn: one figure in one theme, and the PNG bytes it becomes.

Owns colours (told apart by colour-blind eyes and by lightness), fonts and sizes for GitHub's column, and that the same
drawing gives the same bytes. The only module besides the plots that loads matplotlib."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH = 8.6  # inches; GitHub's column is about 860 pixels wide
DPI = 180  # about two pixels of the file for one of the page: sharp on fine screens
SHADES = 160  # of the PNG's palette: flat colours and their blurred edges need no more
DASHES = ("-", (0, (3, 1.6)), "-", (0, (1, 1.2)))  # so that a line shows through one that lies upon it
SMALL, NORMAL = 9.0, 10.0  # points, at 100 pixels an inch: 12 and 14 pixels
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STAMP = "Pocketlens-Source"  # the PNG's text entry that says what it was drawn from


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a page. series: after Okabe and Ito, darkened or lightened until they stand out from `page`."""

    name: str
    page: str
    ink: str
    faint: str
    grid: str
    series: tuple[str, ...]
    families: dict[str, tuple[str, ...]]  # shades of one hue, from strong to weak, for parts of one thing


LIGHT = Theme(
    name="light", page="#ffffff", ink="#1f2328", faint="#59636e", grid="#d9dee4",
    series=("#0072b2", "#d55e00", "#00825f", "#a8488b", "#b17a00", "#3a9fd6", "#59636e", "#7a4fc9"),
    families={
        "device": ("#063f63", "#0b5a8a", "#2b86bd", "#6cb3dc", "#a3d0ea", "#cfe6f4"),
        "way": ("#8a949e",),
        "cloud": ("#a34700", "#d55e00", "#ef8f4c", "#f5b589", "#fad7bf"),
    },
)  # fmt: skip
DARK = Theme(
    name="dark", page="#0d1117", ink="#f0f6fc", faint="#9aa4ae", grid="#30363d",
    series=("#56b4e9", "#ff8a4a", "#2fc79b", "#e79ccb", "#f0bb3d", "#8fa8ff", "#a9b3bd", "#c3a6ff"),
    families={
        "device": ("#15527c", "#1f6ea3", "#3a94cc", "#6cb8e6", "#a3d6f3", "#d3ebfa"),
        "way": ("#87919b",),
        "cloud": ("#b65413", "#e0712b", "#ff9a5c", "#ffbd93", "#ffdcc6"),
    },
)  # fmt: skip
THEMES = (LIGHT, DARK)


@dataclass
class Canvas:
    """One figure to draw on."""

    theme: Theme
    figure: Figure = field(default_factory=lambda: Figure(figsize=(WIDTH, 4.0), dpi=DPI, layout="constrained"))

    def panels(self, rows: int, columns: int, *, height: float, **more: Any) -> list[Axes]:
        """Axes in reading order, plain: no box, faint grid."""
        self.figure.set_size_inches(WIDTH, height)
        self.figure.set_facecolor(self.theme.page)
        found = self.figure.subplots(rows, columns, squeeze=False, **more)
        axes = [each for row in found for each in row]
        for each in axes:
            self.plain(each)
        return axes

    def plain(self, axes: Axes) -> None:
        theme = self.theme
        axes.set_facecolor(theme.page)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("bottom", "left"):
            axes.spines[side].set_color(theme.grid)
        axes.tick_params(colors=theme.faint, labelcolor=theme.ink, labelsize=SMALL, length=3, which="both")
        axes.grid(visible=True, color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)

    def title(self, axes: Axes, text: str) -> None:
        axes.set_title(text, loc="left", fontsize=NORMAL, color=self.theme.ink, fontweight="bold")

    def label(self, axes: Axes, *, x: str = "", y: str = "") -> None:
        for text, put in ((x, axes.set_xlabel), (y, axes.set_ylabel)):
            if text:
                put(text, fontsize=SMALL, color=self.theme.faint)

    def write(self, axes: Axes, x: float, y: float, text: str, *, color: str = "", **more: Any) -> Any:
        """Text beside a point: `dx`, `dy` points away from it."""
        away = (more.pop("dx", 0), more.pop("dy", 0))
        return axes.annotate(
            text, (x, y), xytext=away, textcoords="offset points", fontsize=more.pop("fontsize", SMALL),
            color=color or self.theme.ink, **more,
        )  # fmt: skip

    def legend(self, handles: Sequence[Any], labels: Sequence[str], *, columns: int) -> None:
        """One for the whole figure, below it."""
        self.figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL,
            labelcolor=self.theme.ink, handlelength=1.6, columnspacing=1.4,
        )  # fmt: skip

    def styles(self) -> Iterator[dict[str, Any]]:
        """Colour, marker and dashes of one line after the other."""
        for colour, marker, dashes in zip(cycle(self.theme.series), cycle(MARKERS), cycle(DASHES), strict=False):
            yield {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 3.6, "linewidth": 1.5}

    def log(self, axes: Axes, ticks: Sequence[float], labels: Sequence[str], *, x: bool = True) -> None:
        """A logarithmic axis with these ticks and no others."""
        (axes.set_xscale if x else axes.set_yscale)("log")
        axis = axes.xaxis if x else axes.yaxis
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FixedFormatter(list(labels)))
        axis.set_minor_locator(NullLocator())

    def png(self, stamp: str) -> bytes:
        """The drawing, without date or version; the same drawing gives the same bytes."""
        raw = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(raw, metadata={"Software": None})
        with Image.open(raw) as picture:
            small = picture.convert("RGB").quantize(SHADES, dither=Image.Dither.NONE)
        entry, file = PngInfo(), io.BytesIO()
        entry.add_text(STAMP, stamp)
        small.save(file, "PNG", optimize=True, pnginfo=entry)
        return file.getvalue()
