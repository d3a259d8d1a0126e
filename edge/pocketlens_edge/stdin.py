"""A picture from standard input: an encoded file, or one raw frame of a camera.

Owns what a raw frame is and how many bytes it has. A frame becomes a PPM, which is the same pixels behind a
header, so that it goes the way of every picture and meets the same limits. Called by the command line."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pocketlens_wire.errors import BadPicture, BadQuery
from pocketlens_wire.pictures import MAX_FILE_BYTES, MAX_PIXELS, MIN_SIDE

NAME = "standard input"
CHANNELS = {"rgb24": 3, "bgr24": 3, "gray": 1}  # ffmpeg's names of 8-bit layouts; bytes a pixel

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The layout of one raw frame: rows from the top, no padding between them. layout: a key of CHANNELS."""

    width: int
    height: int
    layout: str

    @property
    def size_bytes(self) -> int:
        return self.width * self.height * CHANNELS[self.layout]


def parse_frame(size: str, layout: str) -> Frame:
    """`640x480` and a key of CHANNELS. Raises BadQuery for another size, or one no picture may have."""
    matched = _SIZE.fullmatch(size)
    if not matched:
        raise BadQuery(f"raw frame `{size}` is not WIDTHxHEIGHT in pixels, as in 640x480.")
    width, height = int(matched[1]), int(matched[2])
    if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
        raise BadQuery(
            f"raw frame {size}: each side needs at least {MIN_SIDE} pixels, both together at most "
            f"{MAX_PIXELS / 1e6:g} megapixels."
        )
    return Frame(width=width, height=height, layout=layout)


def read_picture(frame: Frame | None = None) -> bytes:
    """All of standard input, as the bytes of a picture file; with `frame`, exactly one such frame.

    Raises BadPicture when a terminal is there, nothing comes, or not just one frame comes."""
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]  None when closed
        raise BadPicture(f"{NAME}: no picture is piped in. Give one, as in `< mug.jpg`, or name a file.")
    stream: BinaryIO = sys.stdin.buffer
    data = stream.read(frame.size_bytes + 1 if frame else MAX_FILE_BYTES + 1)
    if not data:
        raise BadPicture(f"{NAME}: nothing came. The command before the pipe says why.")
    return _as_ppm(data, frame) if frame else data


def _as_ppm(data: bytes, frame: Frame) -> bytes:
    if len(data) != frame.size_bytes:
        came = f"{len(data):,}" if len(data) < frame.size_bytes else "more"
        raise BadPicture(
            f"{NAME}: one frame of {frame.width} x {frame.height} in {frame.layout} has {frame.size_bytes:,} bytes; "
            f"{came} came. Name the size and layout that the camera gives, and take one frame."
        )
    if frame.layout == "bgr24":
        data = np.frombuffer(data, np.uint8).reshape(-1, 3)[:, ::-1].tobytes()
    kind = "P5" if CHANNELS[frame.layout] == 1 else "P6"
    return f"{kind} {frame.width} {frame.height} 255\n".encode() + data
