"""Pictures: every kind that comes in, the pixels that go out, and every kind that is refused by name."""

import io
import os
import random
import re
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import MAX_FILE_BYTES, MAX_PIXELS, MIN_SIDE, PictureSpec, fit, open_picture

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def painted(width: int = 40, height: int = 24) -> Image.Image:
    """Four quarters: red, green / blue, yellow."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return Image.fromarray(pixels)


def pixels_of(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


# --- what comes in


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("way", ["path", "string", "bytes", "file", "pipe"])
def test_every_format_from_every_source(tmp_path, format_, way):
    data = encoded(painted(), format_)
    path = tmp_path / "no-suffix"
    path.write_bytes(data)
    if way == "file":
        with path.open("rb") as file:
            picture = open_picture(file)
    elif way == "pipe":
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            picture = open_picture(process.stdout)
    else:
        picture = open_picture({"path": path, "string": str(path), "bytes": data}[way])
    assert picture.size == (40, 24)
    inner = pixels_of(picture)[[4, 4, -4, -4], [4, -4, 4, -4]]
    wanted = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    assert np.abs(inner - wanted).max() <= (12 if format_ in ("JPEG", "WEBP") else 0)


ORIENT = {  # EXIF orientation -> how a camera held that way stores the upright picture
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENT)
def test_pictures_stand_upright(format_, orientation):
    upright = np.asarray(painted())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENT[orientation](upright)))
    lossless = {"lossless": True} if format_ == "WEBP" else {}
    came = open_picture(encoded(stored, format_, exif=exif, **lossless))
    assert came.size == (40, 24)
    middle = (slice(4, -4), slice(4, -4))
    wrong = np.abs(pixels_of(came) - upright)[middle]
    assert np.median(wrong) <= 2
    assert wrong.max() == 0 or format_ == "JPEG"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and that is right
def test_broken_exif_does_not_cost_the_picture():
    data = encoded(painted(), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + b"\0" * 20)
    assert open_picture(data).size == (40, 24)


def test_transparency_shows_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    grey = Image.new("LA", (16, 16), (0, 128))
    assert pixels_of(open_picture(encoded(clear, "PNG")))[8, 8].tolist() == [255, 255, 255]
    assert pixels_of(open_picture(encoded(half, "PNG")))[8, 8].tolist() == [255, 127, 127]
    assert pixels_of(open_picture(encoded(half, "WEBP", lossless=True)))[8, 8].tolist() == [255, 127, 127]
    assert pixels_of(open_picture(encoded(grey, "PNG")))[8, 8].tolist() == [127, 127, 127]


def test_a_palette_with_one_clear_colour_and_one_with_many():
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.paste(2, (0, 0, 8, 16))
    for format_ in ("PNG", "GIF"):
        came = pixels_of(open_picture(encoded(picture, format_, transparency=2)))
        assert came[8, 2].tolist() == [255, 255, 255]
        assert came[8, 12].tolist() == [255, 0, 0]
    many = pixels_of(open_picture(encoded(picture, "PNG", transparency=bytes([255, 128, 0]))))
    assert many[8, 2].tolist() == [255, 255, 255]
    assert many[8, 12].tolist() == [255, 127, 127]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_colour_modes(mode):
    format_ = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    for colour in ((255, 255, 255), (0, 0, 0)):
        picture = Image.new("RGB", (16, 16), colour).convert(mode)
        assert np.abs(pixels_of(open_picture(encoded(picture, format_))) - colour).max() <= 3


def test_cmyk_keeps_its_colours():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    for format_ in ("JPEG", "TIFF"):
        red, green, blue = pixels_of(open_picture(encoded(picture, format_)))[8, 8]
        assert red > 250
        assert green < 6
        assert blue < 6


def grey_ramp(values: list[float], kind: str) -> np.ndarray:
    """Columns of 8 x 8 pixels, one for each value."""
    return np.repeat(np.repeat(np.array([values]), 8, axis=0), 8, axis=1).astype(kind)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format_):
    values = grey_ramp([0, 128, 129, 300, 32768, 65535], "<u2")
    came = pixels_of(open_picture(encoded(Image.fromarray(values), format_)))
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 300 / 257 = 1.17, 32768 / 257 = 127.5
    assert came[4, 4::8, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_big_endian_sixteen_bits():
    head = b"P5 24 8 65535\n"
    values = grey_ramp([0, 32768, 65535], ">u2")
    assert pixels_of(open_picture(head + values.tobytes()))[4, 4::8, 0].tolist() == [0, 128, 255]
    tiff = encoded(Image.frombytes("I;16B", (24, 8), values.tobytes()), "TIFF")
    assert pixels_of(open_picture(tiff))[4, 4::8, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([0, 32768, 65535], "<i4", [0, 128, 255]),  # taken as 16 bit
        ([-100, 0, 155], "<i4", [0, 100, 255]),  # stretched
        ([0, 500_000, 1_000_000], "<i4", [0, 128, 255]),
        ([0, 0.5, 1], "<f4", [0, 128, 255]),  # taken as 0 to 1
        ([0, 100, 200], "<f4", [0, 100, 200]),  # taken as 0 to 255
        ([-3e38, 0, 3e38], "<f4", [0, 128, 255]),  # stretched, without overflow
        ([1e6, 1e6, 1e6], "<f4", [0, 0, 0]),  # flat, without division by zero
    ],
)
def test_wider_numbers_find_their_range(values, kind, wanted):
    data = encoded(Image.fromarray(grey_ramp(values, kind)), "TIFF")
    assert pixels_of(open_picture(data))[4, 4::8, 0].tolist() == wanted


def test_numbers_that_are_not_finite_are_refused():
    data = encoded(Image.fromarray(grey_ramp([0, np.nan, 1], "<f4")), "TIFF")
    with pytest.raises(BadPicture, match="not finite"):
        open_picture(data)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(format_):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    red, green, blue = pixels_of(open_picture(data))[8, 8]
    assert red > 240
    assert max(green, blue) < 12


# --- JPEG at a reduced size


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_near_decodes_a_jpeg_at_a_reduced_size():
    data = encoded(photo(1600, 1200), "JPEG", quality=95)
    assert open_picture(data).size == (1600, 1200)
    assert open_picture(data, near=96).size == (400, 300)  # an eighth would be under 2 x 96
    assert open_picture(data, near=75).size == (200, 150)
    assert open_picture(data, near=601).size == (1600, 1200)
    assert open_picture(encoded(photo(1600, 1200), "PNG"), near=96).size == (1600, 1200)


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_near_hardly_changes_the_fitted_pixels(how):
    data = encoded(photo(1600, 1200), "JPEG", quality=95)
    spec = PictureSpec(96, how)
    wrong = np.abs(fit(open_picture(data), spec).astype(int) - fit(open_picture(data, near=96), spec).astype(int))
    assert wrong.mean() < 0.5
    assert wrong.max() <= 6


def test_near_works_with_every_orientation_and_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(photo(1600, 1200), "JPEG", exif=exif), near=96).size == (300, 400)
    assert open_picture(encoded(photo(1600, 1200).convert("L"), "JPEG"), near=96).size == (400, 300)


# --- the square


def test_a_square_of_the_right_size_is_left_alone():
    picture = photo(96, 96)
    for how in ("crop", "squash"):
        np.testing.assert_array_equal(fit(picture, PictureSpec(96, how)), np.asarray(picture))


def test_bicubic_is_antialiased():
    # Halving a step from 0 to 255. Keys' kernel (a = -0.5) stretched to the double has, at distances 0.25, 0.75,
    # 1.25, 1.75, the weights 0.8672, 0.2266, -0.0703, -0.0234; both sides sum to 2. The pixel before the step
    # takes (0.2266 - 0.0703 - 0.0234) / 2 = 0.0664 of 255 = 17, the one before that -3, cut to 0.
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 255
    rows = fit(Image.fromarray(step), PictureSpec(8, "crop"))
    assert rows.dtype == np.uint8
    assert rows.shape == (8, 8, 3)
    assert rows[3, :, 0].tolist() == [0, 0, 0, 17, 238, 255, 255, 255]


@pytest.mark.parametrize("size", [(400, 200), (200, 400)])
def test_crop_is_resizing_the_short_side_and_cutting_the_middle(size):
    picture = photo(*size)
    whole = picture.resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    left, top = (whole.width - 100) // 2, (whole.height - 100) // 2
    middle = np.asarray(whole.crop((left, top, left + 100, top + 100)))
    wrong = np.abs(fit(picture, PictureSpec(100, "crop")).astype(int) - middle)
    assert wrong.max() <= 2  # Pillow may take the two passes in the other order, each rounded to 8 bit
    assert wrong.mean() < 0.2


def test_crop_takes_the_exact_middle_also_when_it_falls_between_pixels():
    picture = photo(41, 20)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    spec = PictureSpec(10, "crop")
    wrong = np.abs(fit(mirrored, spec)[:, ::-1].astype(int) - fit(picture, spec).astype(int))
    assert wrong.max() <= 1


def test_squash_is_resizing_both_sides():
    picture = photo(400, 200)
    whole = np.asarray(picture.resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit(picture, PictureSpec(96, "squash")), whole)


def test_fit_takes_any_mode():
    assert fit(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), PictureSpec(8, "crop")).min() == 255
    assert fit(Image.new("L", (20, 20), 7), PictureSpec(8, "crop")).max() == 7


@pytest.mark.parametrize(
    ("side", "how", "resample", "says"),
    [
        (0, "crop", "bicubic", "side must be 1 to 4096 pixels, came 0"),
        (4097, "crop", "bicubic", "side must be 1 to 4096 pixels, came 4097"),
        (8, "pad", "bicubic", "fit must be one of crop, squash, came 'pad'"),
        (8, "crop", "box", "resample must be one of bicubic, bilinear, came 'box'"),
    ],
)
def test_a_spec_that_cannot_be_meant(side, how, resample, says):
    with pytest.raises(ValueError, match=says):
        PictureSpec(side, how, resample)


# --- refusals


def png_header(width: int, height: int) -> bytes:
    """The first 33 bytes of a PNG."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def claiming(format_: str, width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    lossless = {"lossless": True} if format_ == "WEBP" else {}
    data = bytearray(encoded(Image.new("RGB", (16, 16), "red"), format_, **lossless))
    if format_ == "PNG":
        return png_header(width, height) + b"\0\1\0\0IDAT"
    if format_ == "PPM":
        return b"P6\n%d %d\n255\n" % (width, height)
    if format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif format_ == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format_ == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format_ == "TIFF":
        (directory,) = struct.unpack_from("<I", data, 4)
        for entry, value in enumerate((width, height)):  # tags 256 and 257 come first
            struct.pack_into("<HHII", data, directory + 2 + 12 * entry, 256 + entry, 4, 1, value)
    else:
        data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14 | data[24] >> 4 << 28)
    return bytes(data)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("side", [7_072, 9_500, 13_500, 16_383])  # over our limit, Pillow's warning and its error
def test_size_is_judged_by_the_header_and_pillow_keeps_quiet(format_, side, recwarn):
    with pytest.raises(BadPicture, match=rf"big\.x: {side} x {side} is .* megapixels; the limit is 50 megapixels"):
        open_picture(claiming(format_, side, side), name="big.x")
    assert not recwarn.list


@pytest.mark.parametrize("format_", ["BMP", "PNG", "PPM", "TIFF"])
def test_size_at_the_limit_passes_the_header_check(format_):
    with pytest.raises(BadPicture, match="truncated or broken"):  # as the pixels are not there
        open_picture(claiming(format_, 10_000, MAX_PIXELS // 10_000))


def test_a_frame_larger_than_its_gif_is_refused(recwarn):
    data = bytearray(encoded(Image.new("RGB", (16, 16), "red"), "GIF"))
    at = data.index(b",\0\0\0\0\x10\0\x10\0") + 5
    for side in (10_000, 60_000):
        data[at : at + 4] = struct.pack("<HH", side, side)
        with pytest.raises(BadPicture, match="megapixels"):
            open_picture(bytes(data))


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, MIN_SIDE - 1), (MIN_SIDE - 1, MIN_SIDE)])
def test_too_small(size):
    with pytest.raises(BadPicture, match=rf"dot: {size[0]} x {size[1]} pixels is too small.*at least 8 pixels"):
        open_picture(encoded(Image.new("RGB", size), "PNG"), name="dot")


def test_the_smallest_that_will_do():
    assert open_picture(encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), "PNG")).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a picture of a known kind. Accepted are JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%PDF-1.7", "not a picture"),
        (b"PK\x03\x04" + b"\0" * 50, "not a picture"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 50, "not a picture"),
        (b"8BPS" + b"\0" * 50, "not a picture"),
        (b"\xff\xd8\xff", "the JPEG data is truncated or broken"),
        (b"\x89PNG\r\n\x1a\n", "the PNG data is truncated or broken"),
        (b"GIF89a", "the GIF data is truncated or broken"),
        (b"RIFF\0\0\0\0WEBP", "the WEBP data is truncated or broken"),
        (b"RIFF\0\0\0\0WEBPJUNK" + b"\0" * 40, "the WEBP data is truncated or broken"),
        (b"BM", "the BMP data is truncated or broken"),
        (b"II*\0", "the TIFF data is truncated or broken"),
        (b"P6 16 16 255\n", "the PPM data is truncated or broken"),
    ],
)
def test_what_is_no_picture(tmp_path, data, says):
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(BadPicture, match=re.escape(f"{path}: {says}")):
        open_picture(path)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_named(tmp_path, format_, part):
    data = encoded(photo(64, 64), format_)
    path = tmp_path / "half"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BadPicture, match=f"half: the {format_} data is truncated or broken .*again"):
        open_picture(path)


def test_every_truncation_is_a_picture_or_a_refusal():
    for format_ in FORMATS:
        data = encoded(photo(9, 9), format_)
        for length in range(len(data)):
            try:
                assert open_picture(data[:length]).mode == "RGB"
            except BadPicture:
                continue


SEEDS = {format_: encoded(photo(17, 11), format_) for format_ in FORMATS} | {
    "GIF frames": encoded(photo(17, 11), "GIF", save_all=True, append_images=[photo(17, 11).rotate(90)]),
    "PNG palette": encoded(photo(17, 11).quantize(16), "PNG", transparency=3),
    "PNG 16": encoded(Image.fromarray(grey_ramp([0, 65535], "<u2")), "PNG"),
    "TIFF lzw": encoded(photo(17, 11), "TIFF", compression="tiff_lzw"),
    "WEBP lossless": encoded(photo(17, 11), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", SEEDS)
@given(seed=st.integers(0, 2**32))
def test_damaged_pictures_are_a_picture_or_a_refusal(kind, seed):
    rng = random.Random(seed)
    data = bytearray(SEEDS[kind])
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    try:
        picture = open_picture(bytes(data), near=8)
    except BadPicture:
        return
    assert picture.mode == "RGB"
    assert fit(picture, PictureSpec(8, "crop")).shape == (8, 8, 3)


def test_paths_that_lead_to_no_file(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    for name, says in {
        "absent.jpg": "no such file",
        "dangling": "no such file",
        ".": "is a folder",
        "pipe": "is not a regular file",  # and opening it must not wait for a writer
        "nul\0byte": "cannot be opened",
        "x" * 300: "cannot be opened",
    }.items():
        path = tmp_path / name
        with pytest.raises(BadPicture, match=re.escape(f"{path}: ") + says):
            open_picture(path)
    with pytest.raises(BadPicture, match="/dev/zero: is not a regular file"):
        open_picture(Path("/dev/zero"))


def test_a_link_to_a_picture_is_a_picture(tmp_path):
    (tmp_path / "real").write_bytes(encoded(painted(), "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_picture(tmp_path / "link").size == (40, 24)


def test_huge_files_are_refused(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(png_header(16, 16))
    os.truncate(path, MAX_FILE_BYTES + 1)  # sparse: takes no room on disk
    with pytest.raises(BadPicture, match="huge: the file has 512 MiB; the limit is 512 MiB"):
        open_picture(path)


def test_a_file_that_fails_while_being_read():
    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(BadPicture, match=r"card: cannot be read \(Input/output error\)"):
        open_picture(Failing(), name="card")  # type: ignore[arg-type]


# --- JPEGs of endless scans


def scanned(extra: int) -> bytes:
    """A progressive JPEG whose second scan comes `extra` times more, with padding before a marker as libjpeg allows."""
    whole = encoded(painted(), "JPEG", progressive=True)
    first, second, third = (found.start() for found in list(re.finditer(rb"\xff\xda", whole))[:3])
    assert first < second < third
    return whole[:second] + (whole[second:third] + b"\xff" * 3) * extra + whole[second:]


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(monkeypatch):
    few, many = scanned(80), scanned(100)
    assert open_picture(few).size == (40, 24)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda _: pytest.fail("it was decoded"))
    for source in (many, io.BytesIO(many * 2)):
        with pytest.raises(BadPicture, match=r"more than 100 scans.*Save it anew"):
            open_picture(source)


def test_scans_are_counted_where_they_are_scans(tmp_path):
    plain = encoded(painted(), "JPEG")
    note = b"\xff\xda" * 1000  # in a comment these bytes say nothing, and after the picture's end neither
    (tmp_path / "noted.jpg").write_bytes(
        plain[:2] + b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note + plain[2:] + note
    )
    assert open_picture(tmp_path / "noted.jpg").tobytes() == open_picture(plain).tobytes()
