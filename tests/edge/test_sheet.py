"""The contact sheet and the page: pixel facts, and strangers' words that stay words."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pocketlens_edge import sheet
from pocketlens_edge.sheet import Row, contact_sheet, html_page, verdict

GREEN = np.array([0x11, 0x85, 0x3F])
HOSTILE = '<script>alert(1)</script> " onload="x" & </p>'


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def row(*correct: bool | None, words: str = "make it red", title: str = "picture + words") -> Row:
    hits = [(picture("#204080"), f"0.{9 - rank}00", value) for rank, value in enumerate(correct)]
    return Row(title=title, anchor=picture("#802040"), words=words, hits=hits)


def is_green(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) == GREEN).all(-1)


def cell(image: Image.Image, rank: int, number: int = 0) -> Image.Image:
    """The hit's cell with its frame, from the sheet."""
    x = sheet._hit_x(rank)
    y = sheet._HEAD + number * sheet._row_height() + sheet._ROW_GAP // 2
    margin = sheet._FRAME
    return image.crop((x - margin, y - margin, x + sheet._CELL + margin, y + sheet._CELL + margin))


def test_size_grows_with_rows_and_columns():
    one, three = contact_sheet([row(None)]), contact_sheet([row(None)] * 3)
    assert one.mode == "RGB"
    assert three.width == one.width
    assert three.height - one.height == 2 * sheet._row_height()
    assert contact_sheet([row(None)], columns=7).width > one.width
    assert contact_sheet([]).height > 0


def test_the_right_hit_has_a_frame_and_a_tick_and_only_it():
    image = contact_sheet([row(False, True, False), row(None, None, None)])
    framed = is_green(cell(image, 1))
    edge = np.ones_like(framed)
    edge[sheet._FRAME : -sheet._FRAME, sheet._FRAME : -sheet._FRAME] = False
    assert framed[edge].mean() > 0.9, "a whole frame"
    inside = framed[sheet._FRAME : 40, -40 : -sheet._FRAME]
    assert inside.sum() > 50, "the tick reaches into the picture: colour is not the only sign"
    for rank in (0, 2):
        assert not is_green(cell(image, rank)).any()
    for rank in range(3):
        assert not is_green(cell(image, rank, number=1)).any(), "unknown truth is not marked"


def test_a_missing_picture_is_a_labelled_card():
    hits = [(None, "0.900", None)]
    image = contact_sheet([Row(title="words only", anchor=None, words="red", hits=hits)])
    shown = np.asarray(cell(image, 0))
    assert (shown == np.array([0xF4, 0xF4, 0xF1])).all(-1).mean() > 0.7
    assert (shown < 0x90).all(-1).any(), "and it says so"


def test_pictures_keep_their_proportions():
    wide = Row(title="", anchor=None, words="x", hits=[(picture("#ff0000", (200, 50)), "", None)])
    red = (np.asarray(cell(contact_sheet([wide]), 0)) == [255, 0, 0]).all(-1)
    height, width = red.any(1).sum(), red.any(0).sum()
    assert width / height == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    "words", ["", "w" * 5000, "many words " * 500, "crème brûlée", "赤い靴", "\u202e \x00 \n\t 👟", HOSTILE]
)
def test_any_words_can_be_drawn_within_their_column(words, tmp_path):
    drawn, empty = (contact_sheet([row(None, words=text, title=text)]) for text in (words, ""))
    gap = (sheet._MARGIN + sheet._CELL + sheet._GAP + sheet._WORDS + 2, sheet._HEAD, sheet._hit_x(0) - 2, drawn.height)
    assert drawn.size == empty.size
    assert (np.asarray(drawn.crop(gap)) == 255).all(), "nothing runs over into the hits"
    html_page([row(None, words=words)], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("correct", "said"),
    [
        ((), ("", None)),
        ((None, None), ("", None)),
        ((False, True), ("found at rank 2", True)),
        ((None, True), ("found at rank 2", True)),
        ((False, False), ("not among the first 2", False)),
        ((False, False, True), ("not among the first 2", False)),
    ],
)
def test_verdict_speaks_of_what_is_shown(correct, said):
    assert verdict(row(*correct), columns=2) == said


class Elements(HTMLParser):
    """Every element's name, every attribute, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data):
        self.text += data


def test_hostile_words_stay_words(tmp_path):
    path = tmp_path / "page.html"
    hits = [(picture("#102030"), HOSTILE, True), (None, HOSTILE, False)]
    hostile = Row(title=HOSTILE, anchor=None, words=HOSTILE, hits=hits)
    html_page([hostile], path, title=HOSTILE, subtitle=HOSTILE)
    page = path.read_text(encoding="utf-8")
    elements = Elements(page)
    assert "script" not in elements.names
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert elements.text.count(HOSTILE) == 7, "title twice, subtitle, kind, words, two captions"


def test_the_page_stands_alone(tmp_path):
    path = tmp_path / "page.html"
    html_page([row(True, False), row(None)], path)
    page = path.read_text(encoding="utf-8")
    elements = Elements(page)
    sources = [value for name, value in elements.attributes if name in ("src", "href")]
    assert len(sources) == 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('class="right"') == page.count('aria-label="a match"') == 1
    assert elements.names.count("section") == 2
