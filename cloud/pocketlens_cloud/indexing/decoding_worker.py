"""What a decoding process does: a picture's bytes in on one pipe, its pixels out on another, until the first ends.

Loads numpy and Pillow, no model and no engine. Started by decoding.py alone."""

import os
import signal
import sys
from typing import Any, BinaryIO

from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec, fit, open_picture

from pocketlens_cloud.indexing.decoding import HEAD, LENGTH, PIXELS, READY, TROUBLE


def main(spec: dict[str, Any]) -> None:
    """Answer until standard input ends, as it does when whoever started this is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the pixels
    out.write(READY)
    out.flush()
    try:
        while answer(sys.stdin.buffer, out, PictureSpec(**spec)):
            out.flush()
    except BrokenPipeError:
        os._exit(1)


def answer(source: BinaryIO, out: BinaryIO, spec: PictureSpec) -> bool:
    """Decode one picture; False if none comes any more."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return False
    name_length, size = HEAD.unpack(head)
    name, data = source.read(name_length).decode(), source.read(size)
    if len(data) < size:
        return False
    try:
        pixels = fit(open_picture(data, name=name, near=spec.side), spec)
    except BadPicture as error:
        said = str(error).encode()
        out.write(TROUBLE + LENGTH.pack(len(said)) + said)
    else:
        out.write(PIXELS)
        out.write(pixels.tobytes())
    return True
