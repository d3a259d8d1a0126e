"""The golden pictures: every kind of picture file a device may meet, drawn anew from seeds.

Whatever answers for Pocketlens (library, command, binary, browser) must make the same tokens of each. The name says
the kind. What they show is of the sample world, so that rankings mean something; files stay small, since what is
large is smooth.

`python tests/golden_pictures.py FOLDER` writes them for a look."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin
from pocketlens_samples.catalogue import random_spec
from pocketlens_samples.draw import draw_picture, draw_sketch

Named = tuple[str, bytes]  # a file's name without its number, and its bytes

_CUBIC, _NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
_ORIENTATION = 0x0112


def golden_pictures(folder: Path) -> list[Path]:
    """Write all of them into `folder` (made if need be), in order: the same bytes on every call with one Pillow."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, (name, data) in enumerate(_all()):
        path = folder / f"{number:03d}-{name}"
        path.write_bytes(data)
        paths.append(path)
    return paths


def _all() -> Iterator[Named]:
    for kind in (
        _plain, _sketches, _shapes, _strips, _tiny, _huge,
        _turned, _turned_with_thumbnail, _alpha, _grey, _deep, _palette,
        _jpegs, _four_inks, _profiles, _webps, _animations, _others,
    ):  # fmt: skip
        yield from kind()


# --- what they show


def _photo(width: int, height: int, seed: int) -> Image.Image:
    """RGB of that size: one drawn thing where the sides are alike, else a row or column of different ones."""
    short = min(width, height)
    picture = Image.new("RGB", (width, height))
    for index, at in enumerate(_starts(max(width, height), short)):
        tile = Image.fromarray(draw_picture(_spec(seed + index), seed + index)).resize((short, short), _CUBIC)
        picture.paste(tile, (at, 0) if width >= height else (0, at))
    return picture


def _starts(long: int, short: int) -> list[int]:
    """Where squares of side `short` begin so that they cover `long` with one in the middle; at most 21 of them."""
    middle, step = (long - short) // 2, max(short, long // 20)
    count = -(-middle // step)
    return [middle + step * index for index in range(-count, count + 1)]


def _spec(seed: int) -> Any:
    return random_spec(np.random.default_rng(seed), held_out=None)


def _grainy(picture: Image.Image, seed: int) -> Image.Image:
    """With the grain of a camera."""
    noise = np.random.default_rng(seed).normal(0, 5, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _veil(width: int, height: int) -> Image.Image:
    """An alpha channel, L: opaque in the middle, then every degree, nothing in the corners."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return Image.fromarray(np.clip(380 - 300 * np.hypot(x, y), 0, 255).astype(np.uint8))


def _as(format_: str, picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


# --- the kinds


def _plain() -> Iterator[Named]:
    for seed in range(24):
        yield f"plain-96x96-{seed}.png", _as("PNG", _photo(96, 96, 100 + seed))


def _sketches() -> Iterator[Named]:
    for seed in range(8):
        sketch = Image.fromarray(draw_sketch(_spec(200 + seed), 200 + seed))
        yield f"sketch-96x96-{seed}.png", _as("PNG", sketch.convert("L"))
        large = sketch.resize((640, 480), _CUBIC)
        yield f"sketch-640x480-{seed}.jpg", _as("JPEG", large, quality=85)


_SHAPES = (
    (640, 480), (480, 640), (800, 600), (600, 800), (1280, 720), (720, 1280), (500, 333), (333, 500),
    (97, 61), (61, 97), (191, 193), (193, 191), (224, 224), (300, 299), (1024, 400), (400, 1024),
)  # fmt: skip


def _shapes() -> Iterator[Named]:
    for seed, (width, height) in enumerate(_SHAPES):
        photo = _photo(width, height, 300 + seed)
        yield f"shape-{width}x{height}.png", _as("PNG", photo)
        yield f"shape-{width}x{height}.jpg", _as("JPEG", _grainy(photo, seed), quality=88)


def _strips() -> Iterator[Named]:
    for seed, (width, height) in enumerate(((1000, 8), (8, 1000), (2000, 20), (20, 2000), (3000, 96), (96, 3000))):
        photo = _photo(width, height, 400 + 30 * seed)
        yield f"strip-{width}x{height}.png", _as("PNG", photo)
        yield f"strip-{width}x{height}.jpg", _as("JPEG", photo, quality=92)


def _tiny() -> Iterator[Named]:
    for seed, (width, height) in enumerate(((8, 8), (9, 31), (31, 9), (16, 16), (8, 64), (33, 17), (47, 48))):
        photo = _photo(width, height, 600 + 10 * seed)
        yield f"tiny-{width}x{height}.png", _as("PNG", photo)
        yield f"tiny-{width}x{height}.jpg", _as("JPEG", photo, quality=95)
    icon = _photo(16, 16, 690)
    yield "tiny-16x16.gif", _as("GIF", icon)
    yield "tiny-16x16.bmp", _as("BMP", icon)
    yield "tiny-16x16-lossless.webp", _as("WEBP", icon, lossless=True)


def _huge() -> Iterator[Named]:
    yield "huge-6000x4000.jpg", _as("JPEG", _photo(6000, 4000, 700), quality=80)
    yield "huge-4000x6000-progressive.jpg", _as("JPEG", _photo(4000, 6000, 710), quality=75, progressive=True)
    yield "huge-4032x3024-orientation-6.jpg", _as("JPEG", _photo(4032, 3024, 720), quality=80, exif=_exif(6))
    yield "huge-8000x2000-444.jpg", _as("JPEG", _photo(8000, 2000, 730), quality=80, subsampling=0)
    yield "huge-7000x7000-grey.jpg", _as("JPEG", _photo(7000, 7000, 740).convert("L"), quality=60)
    blocks = _photo(96, 96, 750).resize((4000, 3000), _NEAREST)
    yield "huge-4000x3000.png", _as("PNG", blocks, compress_level=1)
    yield "huge-4000x3000-palette.png", _as("PNG", blocks.quantize(64), compress_level=1)
    yield "huge-3000x2000.webp", _as("WEBP", _photo(3000, 2000, 760), quality=60, method=0)


def _exif(orientation: int, *, thumbnail: bytes = b"", order: str = "<") -> bytes:
    """An EXIF block by hand: Pillow writes neither thumbnails nor a byte order of one's choice."""
    entry = struct.Struct(f"{order}HHI4s")
    value = struct.pack(f"{order}HH", orientation, 0)
    second = 8 + 2 + 12 + 4
    first = struct.pack(f"{order}H", 1) + entry.pack(_ORIENTATION, 3, 1, value)
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8) + first
    if not thumbnail:
        return b"Exif\0\0" + block + struct.pack(f"{order}I", 0)
    start = second + 2 + 3 * 12 + 4
    rows = ((0x0103, 3, struct.pack(f"{order}HH", 6, 0)), (0x0201, 4, start), (0x0202, 4, len(thumbnail)))
    table = b"".join(
        entry.pack(tag, kind, 1, value if isinstance(value, bytes) else struct.pack(f"{order}I", value))
        for tag, kind, value in rows
    )
    block += struct.pack(f"{order}I", second) + struct.pack(f"{order}H", 3) + table + struct.pack(f"{order}I", 0)
    return b"Exif\0\0" + block + thumbnail


def _turned() -> Iterator[Named]:
    for turn in range(1, 9):
        photo = _photo(320, 200, 800 + turn)
        yield f"exif-{turn}-320x200.jpg", _as("JPEG", _grainy(photo, turn), quality=90, exif=_exif(turn))
        yield (
            f"exif-{turn}-big-endian-200x320.jpg",
            _as("JPEG", photo.transpose(Image.Transpose.ROTATE_90), quality=90, exif=_exif(turn, order=">")),
        )
        yield f"exif-{turn}-320x200.png", _as("PNG", photo, exif=_exif(turn))
        yield f"exif-{turn}-320x200.webp", _as("WEBP", photo, quality=90, exif=_exif(turn))
    for nonsense in (0, 9, 65535):
        yield (
            f"exif-{nonsense}-means-nothing-160x90.jpg",
            _as("JPEG", _photo(160, 90, 820 + nonsense % 7), quality=90, exif=_exif(nonsense)),
        )


def _turned_with_thumbnail() -> Iterator[Named]:
    """The thumbnail shows something else, so whoever takes it is found out."""
    other = _as("JPEG", _photo(80, 60, 831), quality=70)
    for turn in (1, 3, 6, 8):
        block = _exif(turn, thumbnail=other)
        yield f"exif-{turn}-thumbnail-400x300.jpg", _as("JPEG", _photo(400, 300, 840 + turn), quality=90, exif=block)


def _alpha() -> Iterator[Named]:
    for seed, (width, height) in enumerate(((96, 96), (300, 200), (200, 300), (64, 640))):
        photo, veil = _photo(width, height, 900 + 10 * seed), _veil(width, height)
        coloured = photo.copy()
        coloured.putalpha(veil)
        grey = photo.convert("L")
        grey.putalpha(veil)
        size = f"{width}x{height}"
        yield f"alpha-rgba-{size}.png", _as("PNG", coloured)
        yield f"alpha-grey-{size}.png", _as("PNG", grey)
        yield f"alpha-lossless-{size}.webp", _as("WEBP", coloured, lossless=True, exact=True)
        yield f"alpha-lossy-{size}.webp", _as("WEBP", coloured, quality=85)
        cut = _with_a_hole(photo, veil)
        yield f"alpha-palette-{size}.png", _as("PNG", cut, transparency=255)
        degrees = bytes(min(255, 8 * index) for index in range(256))
        yield f"alpha-palette-degrees-{size}.png", _as("PNG", photo.quantize(64), transparency=degrees[:64])
        yield f"alpha-{size}.gif", _as("GIF", cut, transparency=255)
    key = Image.new("RGB", (240, 160), (1, 2, 3))
    key.paste(_photo(120, 160, 950), (60, 0))
    yield "alpha-one-colour-240x160.png", _as("PNG", key, transparency=(1, 2, 3))
    level = Image.new("L", (160, 240), 7)
    level.paste(_photo(160, 120, 951).convert("L"), (0, 60))
    yield "alpha-one-grey-160x240.png", _as("PNG", level, transparency=7)
    coloured = _photo(120, 180, 952)
    coloured.putalpha(_veil(120, 180))
    yield "alpha-120x180.tiff", _as("TIFF", coloured, compression="tiff_lzw")


def _with_a_hole(photo: Image.Image, veil: Image.Image) -> Image.Image:
    """With a palette of 256 colours, whose last (green) stands where the veil is thin."""
    cut = photo.quantize(255)
    colours = cut.getpalette() or []
    cut.putpalette([*colours[:765], *[0] * (765 - len(colours)), 0, 255, 0])
    cut.paste(255, mask=veil.point(lambda degree: 255 * (degree < 128)))
    return cut


def _grey() -> Iterator[Named]:
    for seed, (width, height) in enumerate(((96, 96), (240, 160), (90, 400))):
        grey = _photo(width, height, 1000 + 10 * seed).convert("L")
        size = f"{width}x{height}"
        yield f"grey-{size}.png", _as("PNG", grey)
        yield f"grey-{size}.jpg", _as("JPEG", grey, quality=85)
        yield f"grey-{size}.bmp", _as("BMP", grey)
        yield f"grey-{size}.pgm", _as("PPM", grey)
        yield f"one-bit-{size}.png", _as("PNG", grey.convert("1"))
    bits = _photo(200, 130, 1040).convert("1")
    yield "one-bit-200x130.tiff", _as("TIFF", bits, compression="group4")
    yield "one-bit-200x130.bmp", _as("BMP", bits)
    yield "one-bit-200x130.pbm", _as("PPM", bits)


def _deep() -> Iterator[Named]:
    """16 bit a channel. The lower bytes are noise: what is rounded, cut or swapped differs."""
    for seed, (width, height) in enumerate(((96, 96), (320, 180), (50, 250))):
        photo = np.asarray(_photo(width, height, 1100 + 10 * seed)).astype(np.uint16)
        fine = photo * 256 + np.random.default_rng(seed).integers(0, 256, photo.shape, dtype=np.uint16)
        grey = fine[:, :, 1]
        size = f"{width}x{height}"
        yield f"sixteen-bit-grey-{size}.png", _png(grey[:, :, None], depth=16)
        yield f"sixteen-bit-rgb-{size}.png", _png(fine, depth=16)
        yield f"sixteen-bit-grey-{size}.tiff", _as("TIFF", Image.fromarray(grey))
        yield f"sixteen-bit-grey-{size}.pgm", b"P5\n%d %d\n65535\n" % (width, height) + grey.astype(">u2").tobytes()


def _png(samples: np.ndarray, *, depth: int, interlaced: bool = False) -> bytes:
    """A PNG of (height, width, channels) by hand: Pillow writes neither 16-bit colour nor interlaced ones."""
    height, width, channels = samples.shape
    big_endian = samples.astype(">u2" if depth == 16 else np.uint8)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    lines = b"".join(
        b"\0" + line.tobytes()
        for top, left, down, right in (passes if interlaced else ((0, 0, 1, 1),))
        for line in big_endian[top::down, left::right]
        if line.size
    )
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _palette() -> Iterator[Named]:
    for colours in (2, 16, 256):
        few = _photo(220, 150, 1200 + colours).quantize(colours)
        yield f"palette-{colours}-220x150.png", _as("PNG", few)
        yield f"palette-{colours}-220x150.gif", _as("GIF", few)
        yield f"palette-{colours}-220x150.bmp", _as("BMP", few)
    yield "palette-64-150x220.tiff", _as("TIFF", _photo(150, 220, 1230).quantize(64))


def _jpegs() -> Iterator[Named]:
    for quality in (10, 40, 75, 100):
        for code, name in enumerate(("444", "422", "420")):
            photo = _grainy(_photo(250, 170, 1300 + quality), quality)
            yield (
                f"jpeg-{name}-quality-{quality}-250x170.jpg",
                _as("JPEG", photo, quality=quality, subsampling=code),
            )
    photo = _grainy(_photo(301, 203, 1420), 1)
    yield "jpeg-411-301x203.jpg", _as("JPEG", photo, quality=80, subsampling="4:1:1")
    yield "jpeg-progressive-301x203.jpg", _as("JPEG", photo, quality=80, progressive=True)
    yield "jpeg-progressive-444-301x203.jpg", _as("JPEG", photo, quality=90, progressive=True, subsampling=0)
    yield "jpeg-progressive-grey-301x203.jpg", _as("JPEG", photo.convert("L"), quality=80, progressive=True)
    yield "jpeg-restarts-301x203.jpg", _as("JPEG", photo, quality=80, restart_marker_rows=1)
    yield "jpeg-rgb-inside-301x203.jpg", _as("JPEG", photo, quality=90, keep_rgb=True)
    yield "jpeg-with-bytes-after-301x203.jpg", _as("JPEG", photo, quality=80) + b"\0trailing bytes of a camera"


def _four_inks() -> Iterator[Named]:
    """CMYK as it is, and turned to YCCK by hand: brightness, two colours, and black, said so in Adobe's marker."""
    for seed, (width, height) in enumerate(((180, 120), (120, 180), (96, 96))):
        photo = _photo(width, height, 1500 + 10 * seed)
        inks = Image.merge("CMYK", [*_inks(photo)])
        size = f"{width}x{height}"
        yield f"cmyk-{size}.jpg", _as("JPEG", inks, quality=92)
        yield f"ycck-{size}.jpg", _ycck(inks)
        yield f"cmyk-{size}.tiff", _as("TIFF", inks, compression="tiff_lzw")


def _inks(photo: Image.Image) -> Iterator[Image.Image]:
    """Cyan, magenta, yellow and black, L, with half of what is common in black."""
    missing = 255 - np.asarray(photo).astype(int)
    black = missing.min(axis=2) // 2
    for channel in range(3):
        ink = 255 * (missing[:, :, channel] - black) / np.maximum(255 - black, 1)
        yield Image.fromarray(np.clip(np.rint(ink), 0, 255).astype(np.uint8))
    yield Image.fromarray(black.astype(np.uint8))


def _ycck(inks: Image.Image) -> bytes:
    """A reader turns the first three planes into colours and inverts all four; Pillow inverts what it writes."""
    *colours, black = inks.split()
    planes = [plane.point(lambda value: 255 - value) for plane in Image.merge("RGB", colours).convert("YCbCr").split()]
    plain = _as("JPEG", Image.merge("CMYK", [*planes, black]), quality=92)
    at = plain.index(b"Adobe\0\x64") + 11
    assert plain[at] == 0, "Pillow wrote another transform than none"
    return plain[:at] + b"\2" + plain[at + 1 :]


def _profiles() -> Iterator[Named]:
    """Colour profiles, which are not applied: with the second one, red would be green for whoever applies it."""
    honest = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    honest[24:36], honest[84:100] = bytes(12), bytes(16)  # the moment it was made, and the sum over it
    swapped = honest.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    for seed, (name, profile) in enumerate((("srgb", bytes(honest)), ("swapped", bytes(swapped)))):
        photo = _photo(210, 140, 1600 + 10 * seed)
        yield f"profile-{name}-210x140.jpg", _as("JPEG", photo, quality=90, icc_profile=profile)
        yield f"profile-{name}-210x140.png", _as("PNG", photo, icc_profile=profile)
        yield f"profile-{name}-210x140.webp", _as("WEBP", photo, quality=90, icc_profile=profile)
        yield f"profile-{name}-210x140.tiff", _as("TIFF", photo, icc_profile=profile)
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100000))
    yield "profile-gamma-1-210x140.png", _as("PNG", _photo(210, 140, 1630), pnginfo=gamma)


def _webps() -> Iterator[Named]:
    for quality in (20, 60, 95):
        photo = _grainy(_photo(260, 190, 1700 + quality), quality)
        yield f"webp-lossy-{quality}-260x190.webp", _as("WEBP", photo, quality=quality)
    yield "webp-lossless-190x260.webp", _as("WEBP", _photo(190, 260, 1710), lossless=True)
    yield "webp-lossless-33x700.webp", _as("WEBP", _photo(33, 700, 1720), lossless=True)


def _animations() -> Iterator[Named]:
    """The first frame counts."""
    frames = [_photo(180, 140, 1800 + 10 * index) for index in range(3)]
    rest = {"save_all": True, "append_images": frames[1:], "duration": 80}
    yield "animated-180x140.gif", _as("GIF", frames[0], **rest)
    yield "animated-180x140-lossless.webp", _as("WEBP", frames[0], lossless=True, **rest)
    yield "animated-180x140-lossy.webp", _as("WEBP", frames[0], quality=80, **rest)
    yield "animated-180x140.png", _as("PNG", frames[0], **rest)
    yield "pages-180x140.tiff", _as("TIFF", frames[0], save_all=True, append_images=frames[1:])


def _others() -> Iterator[Named]:
    for seed, (width, height) in enumerate(((230, 150), (151, 229))):
        photo = _photo(width, height, 1900 + 10 * seed)
        size = f"{width}x{height}"
        yield f"other-{size}.bmp", _as("BMP", photo)
        yield f"other-{size}.ppm", _as("PPM", photo)
        yield f"other-{size}.tiff", _as("TIFF", photo)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
            yield f"other-{compression}-{size}.tiff", _as("TIFF", photo, compression=compression)
        yield f"other-interlaced-{size}.png", _png(np.asarray(photo), depth=8, interlaced=True)


if __name__ == "__main__":
    written = golden_pictures(Path(sys.argv[1]))
    print(f"{len(written)} pictures, {sum(path.stat().st_size for path in written):,} bytes in {sys.argv[1]}")  # noqa: T201
