"""A picture from standard input gives the tokens of the same picture from a file; anything else is one sentence."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes on standard input; None closes it, `terminal` says that it is one."""

    def put(data: bytes | None, *, terminal: bool = False) -> None:
        stream = SimpleNamespace(buffer=io.BytesIO(data or b""), isatty=lambda: terminal)
        monkeypatch.setattr("sys.stdin", None if data is None else stream)

    return put


@pytest.fixture
def tokens_of(run, tmp_path):
    """The tokens that `encode` writes."""

    def encode(*arguments) -> np.ndarray:
        ran = run("encode", *arguments, "-o", tmp_path / "tokens.npz")
        assert ran.code == 0, ran.err
        with np.load(tmp_path / "tokens.npz") as saved:
            return saved["tokens"]

    return encode


def test_an_encoded_picture_is_the_file_itself(pipe, tokens_of, photo):
    pipe(photo.read_bytes())
    np.testing.assert_array_equal(tokens_of("-"), tokens_of(photo))


@pytest.mark.parametrize("layout", ["rgb24", "bgr24", "gray"])
def test_a_raw_frame_is_the_picture_it_holds(pipe, tokens_of, photo, tmp_path, layout):
    picture = Image.open(photo).convert("L" if layout == "gray" else "RGB").resize((50, 36))
    pixels = np.asarray(picture)
    pipe((pixels[..., ::-1] if layout == "bgr24" else pixels).tobytes())
    picture.save(tmp_path / "same.png")
    same = tokens_of(tmp_path / "same.png")
    np.testing.assert_array_equal(tokens_of("-", "--raw", "50x36", "--raw-format", layout), same)


def test_swapped_colours_are_another_picture(pipe, tokens_of, photo):
    """So the test above would see a layout that is ignored."""
    data = np.asarray(Image.open(photo).resize((50, 36))).tobytes()
    pipe(data)
    right = tokens_of("-", "--raw", "50x36")
    pipe(data)
    assert np.abs(tokens_of("-", "--raw", "50x36", "--raw-format", "bgr24") - right).max() > 0.1


def test_search_takes_it_and_shows_it(run, server, service, pipe, photo, tmp_path):
    pipe(photo.read_bytes())
    page = tmp_path / "out.html"
    ran = run("search", "-", "-t", "red", "-s", server, "--html", page)
    assert ran.code == 0, ran.err
    assert service.requests[0].HasField("sentence")
    assert "the picture asked with" in page.read_text()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(10 * 8 * 3 - 1), "10 x 8 in rgb24 has 240 bytes; 239 came"),
        (bytes(10 * 8 * 3 + 1), "10 x 8 in rgb24 has 240 bytes; more came"),
        (b"", "nothing came"),
    ],
)
def test_not_just_one_frame_is_refused_with_both_numbers(run, pipe, data, said):
    pipe(data)
    ran = run("encode", "-", "--raw", "10x8")
    assert ran.code == 1
    (line,) = ran.err.splitlines()
    assert said in line


def test_a_long_stream_is_not_read_to_its_end(run, monkeypatch):
    """A camera that never stops: one byte too many is enough to know."""

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "asked for everything there will ever be"
            self.given += size
            return bytes(size)

    endless = Endless()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=endless, isatty=lambda: False))
    assert run("encode", "-", "--raw", "10x8").code == 1
    assert endless.given == 10 * 8 * 3 + 1


@pytest.mark.parametrize("data", [b"", None])
def test_a_terminal_or_nothing_there_is_refused(run, pipe, data):
    pipe(data, terminal=True)
    ran = run("search", "-", "-t", "red")
    assert ran.code == 1
    assert ran.err.startswith("pocketlens-edge: standard input: no picture is piped in")


def test_what_is_no_picture_is_named(run, pipe):
    pipe(b"hello, this is text")
    ran = run("encode", "-")
    assert ran.code == 1
    assert ran.err.startswith("pocketlens-edge: standard input: not a picture of a known kind")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-", "--raw", "640"], "is not WIDTHxHEIGHT"),
        (["-", "--raw", "640x-480"], "is not WIDTHxHEIGHT"),
        (["-", "--raw", "7x100"], "at least 8 pixels"),
        (["-", "--raw", "100000x100000"], "at most 50 megapixels"),
        (["-", "--raw", "10x10", "--raw-format", "nv12"], "--raw-format"),
        (["mug.jpg", "--raw", "10x10"], "give - as PICTURE"),
    ],
)
def test_wrong_usage(run, pipe, arguments, said):
    pipe(bytes(300))
    ran = run("encode", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_a_folder_leads_to_batch(run, tmp_path):
    ran = run("encode", tmp_path)
    assert ran.code == 1
    assert "is a folder; pocketlens-edge batch" in ran.err


def test_ctrl_c_is_one_line(run, monkeypatch):
    class Stopped(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Stopped(), isatty=lambda: False))
    ran = run("encode", "-")
    assert (ran.code, ran.out, ran.err) == (130, "", "pocketlens-edge: stopped\n")
