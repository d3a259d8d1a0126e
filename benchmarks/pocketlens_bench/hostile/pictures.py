"""Pictures as weapons, wherever they are taken: by `Gallery.Add`, `pocketlens-cloud index`, the device's encoder.

Each file goes all three ways, and must end alike. What is no regular file has no bytes to send and goes two."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pocketlens_wire.v1 import gallery_pb2

from pocketlens_bench.hostile.case import ANSWERED, NO_PICTURE, REFUSED, Case, case
from pocketlens_bench.hostile.target import Target

LEFT_ALONE: Final = "left alone"  # by indexing, which takes up regular files of the folder only
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@dataclass(frozen=True)
class File:
    """One of them. make: its bytes, or who lays it at a path. sent: how Gallery.Add ends, if otherwise than `ends`."""

    name: str
    does: str
    ends: str
    make: Callable[[], bytes] | None = None
    lay: Callable[[Path], None] | None = None
    sent: str | None = None

    def put(self, folder: Path) -> Path:
        path = folder / self.name
        if self.make:
            path.write_bytes(self.make())
        elif self.lay:
            self.lay(path)
        return path


# --- bytes


def _painted(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    drawn = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(drawn).convert(mode)


def _saved(picture: Image.Image | None = None, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    (picture or _painted()).save(file, kind, **how)
    return file.getvalue()


def _turned(orientation: int) -> Callable[[], bytes]:
    def make() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _saved(kind="JPEG", exif=exif.tobytes())

    return make


def _animated(kind: str) -> Callable[[], bytes]:
    frames = [_painted(30 + n, 30 + n).resize((30, 30)) for n in range(3)]
    return lambda: _saved(frames[0], kind, save_all=True, append_images=frames[1:], loop=0)


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    made = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", made)


def _png(width: int, height: int, *chunks: bytes, depth: int = 1, colour: int = 0, pixels: int | None = None) -> bytes:
    """A PNG of zeros by hand. pixels: bytes that its data inflate to; None: as many as it needs."""
    row = (width * depth * (3 if colour == 2 else 1) + 7) // 8 + 1
    squeezer = zlib.compressobj(1)
    left, data, block = (row * height if pixels is None else pixels), b"", bytes(1 << 20)
    while left > 0:
        data, left = data + squeezer.compress(block[: min(left, 1 << 20)]), left - (1 << 20)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(chunks) + _chunk(b"IDAT", data + squeezer.flush())
        + _chunk(b"IEND", b"")
    )  # fmt: skip


def _swollen(kind: bytes, head: bytes) -> bytes:
    """A chunk that inflates to 200 MB."""
    squeezer = zlib.compressobj(9)
    squeezed = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(200)) + squeezer.flush()
    return _chunk(kind, head + squeezed)


def _scans(count: int) -> bytes:
    whole = _saved(_painted(64, 64, "L"), "JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff\xda", first + 2)
    third = whole.index(b"\xff\xda", second + 2)
    return whole[:second] + whole[second:third] * count + whole[second:]


def _lying_jpeg(width: int, height: int) -> bytes:
    """A good JPEG whose header says another size."""
    whole = bytearray(_saved(kind="JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def _tiff(*entries: tuple[int, int, int, int], follow: int = 0) -> bytes:
    """A TIFF's head and one directory: (tag, type, count, value) each."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", follow)


def _webp_canvas() -> bytes:
    """An extended WEBP that says its canvas has 16,384 pixels each way."""
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x00" * 4 + b"\xff\x3f\x00" * 2
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10 << 20))
    return file.getvalue()


def _not_finite() -> bytes:
    return _saved(Image.fromarray(np.full((16, 16), np.nan, np.float32)), "TIFF")


def _boxed(brand: bytes) -> bytes:
    """The head of an ISO media file, as HEIC and AVIF are."""
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(1000)


# --- what is no regular file


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


_SIXTEEN: Final = Image.fromarray(np.arange(0, 65536, 128).astype(np.uint16).reshape(16, 32))

FILES: list[File] = [
    File("empty.jpg", "no bytes", NO_PICTURE, lambda: b"", sent=REFUSED),
    File("one-pixel.png", "1 x 1", NO_PICTURE, lambda: _saved(_painted(1, 1))),
    File("strip.png", "1 x 10,000", NO_PICTURE, lambda: _saved(_painted(1, 10_000))),
    File("thin.png", "8 x 10,000, the thinnest that goes", ANSWERED, lambda: _saved(_painted(8, 10_000))),
    File("large-1-bit.png", "8,192 x 8,192 of one bit, 8 KB", NO_PICTURE, lambda: _png(8192, 8192)),
    File("largest-1-bit.png", "7,000 x 7,000 of one bit, the largest that goes", ANSWERED, lambda: _png(7000, 7000)),
    File("huge.png", "16,384 x 16,384", NO_PICTURE, lambda: _png(16_384, 16_384)),
    File("beyond.png", "2**31 - 1 x 2**31 - 1", NO_PICTURE, lambda: _png(2**31 - 1, 2**31 - 1, pixels=100)),
    File("bad-sum.png", "a chunk whose sum is wrong", NO_PICTURE,
         lambda: _saved()[:29] + b"\0\0\0\0" + _saved()[33:]),
    File("deep.png", "data that inflate to 300 MB beyond the pixels", ANSWERED, lambda: _png(64, 64, pixels=300 << 20)),
    File("text-bomb.png", "a comment that inflates to 200 MB", NO_PICTURE,
         lambda: _png(64, 64, _swollen(b"zTXt", b"Comment\0\0"))),
    File("profile-bomb.png", "a colour profile that inflates to 200 MB", NO_PICTURE,
         lambda: _png(64, 64, _swollen(b"iCCP", b"p\0\0"))),
    File("truncated.jpg", "half of a JPEG", NO_PICTURE, lambda: _saved(_painted(300, 300), "JPEG")[:9000]),
    File("lying.jpg", "a JPEG that says 65,500 x 65,500", NO_PICTURE, lambda: _lying_jpeg(65_500, 65_500)),
    File("longer.jpg", "a JPEG that says more pixels than it has", ANSWERED, lambda: _lying_jpeg(40, 48)),
    File("endless-scans.jpg", "a JPEG of 20,000 scans", NO_PICTURE, lambda: _scans(20_000)),
    File("endless-notes.jpg", "a JPEG with 10 MB of comments", ANSWERED,
         lambda: (whole := _saved(kind="JPEG"))[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 160 + whole[2:]),
    File("cmyk.jpg", "a JPEG of four inks", ANSWERED, lambda: _saved(_painted(mode="CMYK"), "JPEG")),
    File("16-bit.png", "16 bit of grey", ANSWERED, lambda: _saved(_SIXTEEN)),
    File("palette.png", "a palette, one colour of which is transparent", ANSWERED,
         lambda: _saved(_painted(mode="P"), transparency=3)),
    File("bad-palette.png", "a palette of no colours", ANSWERED, lambda: _png(64, 64, depth=8, colour=3)),
    File("animated.gif", "an animated GIF", ANSWERED, _animated("GIF")),
    File("animated.webp", "an animated WEBP", ANSWERED, _animated("WEBP")),
    *(File(f"turned-{n}.jpg", f"EXIF orientation {n}", ANSWERED, _turned(n)) for n in (1, 2, 3, 4, 5, 6, 7, 8, 99)),
    File("bad-exif.jpg", "EXIF that is none", ANSWERED,
         lambda: _saved(kind="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" * 9)),
    File("profile.jpg", "a colour profile of random bytes", ANSWERED,
         lambda: _saved(kind="JPEG", icc_profile=np.random.default_rng(1).bytes(3000))),
    File("canvas.webp", "a WEBP that says 16,384 x 16,384", NO_PICTURE, _webp_canvas),
    File("canvas.gif", "a GIF that says 65,535 x 65,535", NO_PICTURE, lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + b";"),
    File("negative.bmp", "a BMP of size -2**31", NO_PICTURE,
         lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 64, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0)),
    File("huge.ppm", "a PPM that says 10**9 x 10**9", NO_PICTURE, lambda: b"P6\n1000000000 1000000000\n255\n"),
    File("endless.ppm", "a PPM whose size has 10,000 digits", NO_PICTURE,
         lambda: b"P6\n" + b"9" * 10_000 + b" 9\n255\n"),
    File("loop.tiff", "a TIFF whose directory follows itself", NO_PICTURE, lambda: _tiff((256, 4, 1, 64), follow=8)),
    File("strips.tiff", "a TIFF of 2**32 - 1 strips", NO_PICTURE,
         lambda: _tiff((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (273, 4, 2**32 - 1, 0),
         (279, 4, 2**32 - 1, 0))),
    File("not-finite.tiff", "a TIFF of NaN", NO_PICTURE, _not_finite),
    File("photo.avif.png", "AVIF", NO_PICTURE, lambda: _boxed(b"avif")),
    File("photo.heic.jpg", "HEIC named .jpg", NO_PICTURE, lambda: _boxed(b"heic")),
    File("drawing.png", "SVG named .png that names a file of the machine", NO_PICTURE, lambda: SVG),
    File("script.jpg", "a script for ImageMagick", NO_PICTURE,
         lambda: b"push graphic-context\nfill 'url(|touch /tmp/x)'\n"),
    File("page.gif", "PostScript named .gif", NO_PICTURE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n"),
    File("bomb.png", "a zip bomb named .png", NO_PICTURE, _zipped),
    File("polyglot.gif", "a GIF that is a script as well", ANSWERED, lambda: _saved(kind="GIF") + b"*/=1;alert(1)//"),
    File("polyglot.jpg", "a JPEG with a web page in it and a zip behind it", ANSWERED,
         lambda: _saved(kind="JPEG", comment=b"<script>alert(1)</script>") + _zipped()),
    File("odd\x1b[31m\n'name.png", "a name of control codes", ANSWERED, lambda: _saved(_painted(41, 41))),
    File("pipe.png", "a named pipe", LEFT_ALONE, lay=_pipe),
    File("device.png", "a link to /dev/zero", LEFT_ALONE, lay=_to("/dev/zero")),
    File("secret.png", "a link to /etc/passwd", LEFT_ALONE, lay=_to("/etc/passwd")),
    File("circle.png", "a link to itself", LEFT_ALONE, lay=_to("circle.png")),
    File("folder.png", "a folder named .png", LEFT_ALONE, lay=lambda path: path.mkdir()),
]  # fmt: skip


def _shown(file: File) -> Callable[[Target], str]:
    def act(to: Target) -> str:
        indexing = to.own()
        came = {"indexing": indexing.ended(file.name)}
        if file.make:
            added = to.add((indexing.folder / file.name).read_bytes())
            came["Gallery.Add"] = file.ends if added == file.sent else added
        device = to.seen(indexing.folder / file.name)
        came["device"] = LEFT_ALONE if file.lay and device == NO_PICTURE else device
        alike = set(came.values())
        return alike.pop() if len(alike) == 1 else "; ".join(f"{way}: {how}" for way, how in came.items())

    return act


def _chunks(*parts: gallery_pb2.AddRequest) -> Callable[[Target], str]:
    return lambda to: to.add_parts(parts)


def _name(file: File) -> str:
    return "".join(each if each.isalnum() else "-" for each in file.name.replace("\x1b[31m\n'", "-"))


CASES: list[Case] = [
    *(case("pictures", _name(file), file.does, file.ends, _shown(file)) for file in FILES),
    case("pictures", "less-than-said", "fewer bytes than were announced", REFUSED,
         lambda to: to.add(_saved(), announced=9999)),
    case("pictures", "more-than-said", "more bytes than were announced", REFUSED,
         lambda to: to.add(_saved(), announced=9)),
    case("pictures", "four-gib-said", "4 GiB announced", REFUSED, lambda to: to.add(b"", announced=2**32 - 1)),
    case("pictures", "nothing-said", "neither a picture nor vectors", REFUSED, lambda to: to.add(b"")),
    case("pictures", "chunk-first", "bytes before they are announced", REFUSED,
         _chunks(gallery_pb2.AddRequest(chunk=b"x"), gallery_pb2.AddRequest(chunk=b"x"))),
    case("pictures", "empty-chunks", "chunks of no bytes", REFUSED,
         _chunks(gallery_pb2.AddRequest(begin=gallery_pb2.Begin(picture_bytes=9)), gallery_pb2.AddRequest(chunk=b""))),
    case("pictures", "begun-twice", "announced twice", REFUSED,
         _chunks(*[gallery_pb2.AddRequest(begin=gallery_pb2.Begin(picture_bytes=9))] * 2)),
    case("pictures", "bad-vectors", "vectors of NaN", REFUSED,
         lambda to: to.add_parts([gallery_pb2.AddRequest(begin=gallery_pb2.Begin(
             gallery_space=to.facts.gallery_space, id="0" * 32,
             vectors=[gallery_pb2.Vector(name="original", data=b"\xff" * 64)]))])),
]  # fmt: skip
