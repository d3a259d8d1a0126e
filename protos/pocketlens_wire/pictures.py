"""What pixels a picture is: the one way from a file to the square that an encoder or tower sees.

Owns decoding with limits (the size is read from the header before anything is decoded), turning by EXIF,
flattening of alpha, reduction to 8 bit, and the geometry of `fit`. Called on the device, in indexing and in
training, so that a student, its teacher and the gallery see the same pixels. Knows no normalisation: that is
inside the graphs. Colour profiles are not applied; numbers are taken as sRGB.
"""

import io
import os
import re
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pocketlens_wire.errors import BadPicture

MAX_PIXELS: Final = 50_000_000  # 50 MP: above any phone's usual output; 150 MB as RGB
MIN_SIDE: Final = 8  # pixels; one JPEG block. Spacers and tracking pixels lie below, icons begin at 16
MAX_SCANS: Final = 100  # of a JPEG; programs write up to 18. Each may be of 70 bytes, and costs a pass over all pixels
MAX_FILE_BYTES: Final = 512 * 1024 * 1024  # an uncompressed 16-bit RGBA picture of 50 MP has 400 MB

ENDINGS: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
"""By which a picture is known in a folder; what it is its first bytes decide."""

FITS: Final = ("crop", "squash")
RESAMPLES: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# First bytes -> format. Anything else is refused before a decoder is chosen; a file's name decides nothing.
_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    *((b"P%d" % digit + space, "PPM") for digit in range(1, 7) for space in (b"\n", b" ", b"\r", b"\t")),
)

# The decoders themselves rather than Image.open: that one sets off Pillow's own bomb warning before we have
# seen the size, and silencing a warning is a process-wide act.
_DECODERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}

_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG; a restart within a scan is none here
_START_OF_SCAN, _END_OF_IMAGE, _NO_PARAMETERS = 0xDA, 0xD9, 0x01

_EXIF_ORIENTATION: Final = 0x0112
_TURN: Final[dict[int, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PictureSpec:
    """How a picture becomes a square. Part of every manifest; raises ValueError when it cannot be meant.

    side: pixels of the square, 1 to 4096.
    fit: "crop" (short side to `side`, then the centre) or "squash" (both sides to `side`).
    resample: "bicubic" or "bilinear", always antialiased.
    """

    side: int
    fit: str
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 4096:
            raise ValueError(f"side must be 1 to 4096 pixels, came {self.side}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, came {self.fit!r}")
        if self.resample not in RESAMPLES:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLES)}, came {self.resample!r}")


def open_picture(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None, near: int | None = None
) -> Image.Image:
    """Decode a picture: RGB, 8 bit, upright, on white.

    source: a path, the file's bytes, or an open binary file (read from where it stands, to its end).
    name: what to call it in errors; by default the path, or "picture".
    near: the side it will be fitted to, in pixels; a JPEG is then decoded at a reduced size whose sides are
      at least twice that: faster for a phone photo, and the fitted pixels differ by a few grey levels.
    Animations give their first frame. 16-bit greyscale is scaled, not clipped; integers beyond 16 bit and
    floating point beyond 0..255 are stretched between their own minimum and maximum.
    Raises BadPicture, naming the picture, what is wrong, the limit and the next step, when it is missing, not
    a regular file, not JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM, truncated or broken, above MAX_PIXELS,
    MAX_FILE_BYTES or MAX_SCANS, or has a side under MIN_SIDE.
    """
    with _stream(source, name) as (stream, called):
        format_ = _format(stream, called)
        with _blaming(called, format_):
            if format_ == "WEBP":
                _check_size(_webp_size(stream), called)  # its decoder allocates the canvas when it opens
            picture = _DECODERS[format_](stream, called)
            _check_size(picture.size, called)
            if format_ == "JPEG":
                _check_scans(stream, called)
                if near is not None:
                    picture.draft(None, (2 * near, 2 * near))
            picture.load()
            return _plain(picture)


def take_picture(picture: Image.Image | NDArray[np.uint8], *, name: str = "picture") -> Image.Image:
    """A picture that is in memory already, as `open_picture` would give it: RGB, 8 bit, upright, on white.

    picture: any of Pillow's, turned as its EXIF says; or an array uint8 (height, width, 3) in RGB, such as a camera's
      frame. (OpenCV's frames are BGR: give `frame[..., ::-1]`.)
    name: what to call it in errors.
    Raises BadPicture for another array, a picture whose file is broken, and for a size that open_picture refuses.
    """
    if isinstance(picture, np.ndarray):
        return _framed(picture, name)
    _check_size(picture.size, name)
    with _blaming(name, picture.format or "picture"):
        return _plain(picture)


def fit(picture: Image.Image, spec: PictureSpec) -> NDArray[np.uint8]:
    """The square an encoder sees: uint8 (side, side, 3), RGB, antialiased.

    "crop" keeps the proportions and the middle; the cropping is done inside the resize, so a strip of
    1 x 10,000 costs no more than its own pixels. "squash" keeps everything and bends the proportions.
    """
    rgb = picture if picture.mode == "RGB" else _on_white(_to_8_bit(picture))
    width, height = rgb.size
    box = (0.0, 0.0, float(width), float(height))
    if spec.fit == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
    return np.array(rgb.resize((spec.side, spec.side), RESAMPLES[spec.resample], box=box), dtype=np.uint8)


# --- getting at the bytes


@contextmanager
def _stream(source: str | os.PathLike[str] | bytes | BinaryIO, name: str | None) -> Generator[tuple[BinaryIO, str]]:
    """A seekable stream at its beginning, and the name to use in errors."""
    if isinstance(source, bytes):
        yield io.BytesIO(_within_file_limit(source, name or "picture")), name or "picture"
    elif isinstance(source, str | os.PathLike):
        name = name or str(source)
        with _regular_file(Path(source), name) as file:
            yield file, name
    else:
        name = name or "picture"
        try:
            data = source.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadPicture(f"{name}: cannot be read ({error.strerror or error}).") from error
        yield io.BytesIO(_within_file_limit(data, name)), name


@contextmanager
def _regular_file(path: Path, name: str) -> Generator[BinaryIO]:
    """Open a regular file; whatever else lies there (folder, pipe, device) is refused without waiting."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        _check_regular(os.stat(path), name)  # before opening: merely opening a device can do things
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadPicture(f"{name}: {_why_not(error)}.") from error
    with open(descriptor, "rb") as file:
        _check_regular(os.fstat(descriptor), name)  # it may have been exchanged in between
        yield file


def _why_not(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path"
    if isinstance(error, PermissionError):
        return "may not be read by this user; check its permissions"
    return f"cannot be opened ({getattr(error, 'strerror', None) or error})"


def _check_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise BadPicture(f"{name}: is a folder; name a picture file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise BadPicture(f"{name}: is not a regular file but a pipe, socket or device; save the picture to a file.")
    if status.st_size > MAX_FILE_BYTES:
        raise BadPicture(_file_too_large(name, status.st_size))


def _within_file_limit(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise BadPicture(_file_too_large(name, len(data)))
    return data


def _file_too_large(name: str, size: int) -> str:
    return (
        f"{name}: the file has {size / 2**20:,.0f} MiB; the limit is {MAX_FILE_BYTES // 2**20} MiB. "
        "Save it compressed, for example as JPEG."
    )


# --- looking at the header


def _format(stream: BinaryIO, name: str) -> str:
    """Format by the first bytes; the stream is put back to its beginning."""
    head = stream.read(16)
    stream.seek(0)
    if not head:
        raise BadPicture(f"{name}: the file is empty. Copy or download it again.")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for magic, format_ in _MAGIC:
        if head.startswith(magic):
            return format_
    raise BadPicture(
        f"{name}: not a picture of a known kind. Accepted are {', '.join(_DECODERS)}; convert it to JPEG or PNG."
    )


def _webp_size(stream: BinaryIO) -> tuple[int, int]:
    """(width, height) of a WEBP from its first chunk (RFC 9649, section 2); the stream is put back."""
    head = stream.read(30)
    stream.seek(0)
    if len(head) < 30:
        raise EOFError("the file ends in its header")
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"unknown first chunk {head[12:16]!r}")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadPicture(
            f"{name}: {width} x {height} is {width * height / 1e6:,.1f} megapixels; "
            f"the limit is {MAX_PIXELS / 1e6:g} megapixels. Scale it down first."
        )
    if min(size) < MIN_SIDE:
        raise BadPicture(
            f"{name}: {width} x {height} pixels is too small to show anything; "
            f"each side needs at least {MIN_SIDE} pixels. Use a larger version."
        )


def _check_scans(stream: BinaryIO, name: str) -> None:
    """Refuse a JPEG of endless scans: libjpeg goes through all coefficients for each, however little it says.

    Finds markers as libjpeg does: what is no marker is passed over. The stream is left where it stood."""
    place = stream.tell()
    stream.seek(0)
    data = stream.getbuffer() if isinstance(stream, io.BytesIO) else stream.read()
    stream.seek(place)
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        marker, at = found[0][-1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker == _START_OF_SCAN and (scans := scans + 1) > MAX_SCANS:
            raise BadPicture(
                f"{name}: the JPEG has more than {MAX_SCANS} scans, where programs write up to 18; it is made to keep "
                "decoders busy. Save it anew from its original."
            )
        if marker != _NO_PARAMETERS:
            at += int.from_bytes(data[at : at + 2], "big")


@contextmanager
def _blaming(name: str, format_: str) -> Generator[None]:
    """Turn whatever a decoder raises on a broken file into BadPicture."""
    try:
        yield
    except (BadPicture, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(
            f"{name}: a part of this {format_} is above {MAX_PIXELS / 1e6:g} megapixels, the limit. "
            "Scale it down first."
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, zlib.error and more; all mean this
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadPicture(
            f"{name}: the {format_} data is truncated or broken ({why}). Copy or download it again."
        ) from error


# --- from any mode to upright RGB


def _plain(picture: Image.Image) -> Image.Image:
    plain = _upright(picture, _on_white(_to_8_bit(picture)))
    plain.info = {}  # it holds the EXIF, and who is given this picture again must not turn it again
    return plain


def _framed(frame: NDArray[Any], name: str) -> Image.Image:
    """A frame as a picture. Raises BadPicture."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise BadPicture(
            f"{name}: an array must be uint8 of shape (height, width, 3), in RGB; came {frame.dtype} {frame.shape}."
        )
    _check_size((frame.shape[1], frame.shape[0]), name)
    return Image.fromarray(np.ascontiguousarray(frame))


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """Modes of more than 8 bits a channel (I, F, I;16...) to L; all others as they are."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    if values.dtype.kind == "u":
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 -> 255, rounded
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    low, high = float(values.min()), float(values.max())
    if picture.mode == "I" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif picture.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    """Any 8-bit mode to RGB; what is transparent shows white."""
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    if not has_alpha:
        return picture.convert("RGB")
    layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _upright(original: Image.Image, picture: Image.Image) -> Image.Image:
    """Turn as the original's EXIF says; unreadable EXIF says nothing."""
    turn = _TURN.get(_orientation(original))
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> Any:
    try:
        return picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  the parser raises many kinds on broken metadata; the pixels are still good
        return 1
