"""Bytes of images to pixels: one defined conversion a mode, and sizes that are exact."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngInfo

import torchvision_shim  # noqa: F401
from conftest import draw_image
from vitcli.config import EvalConfig
from vitcli.data import colour, decode
from vitcli.data.colour import BadImage
from vitcli.data.decode import View, eval_view, open_rgb, render

LIMIT = 89.0
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def laid_out(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[height, width, 3]`, as Pillow has it, of planes in their own memory."""
    assert planes.flags.c_contiguous
    assert len(planes) == 3
    return planes.transpose(1, 2, 0)


def shown(image: Image.Image, view: View) -> NDArray[np.uint8]:
    return laid_out(render(image, view))


def pixels(blob: bytes) -> NDArray[np.uint8]:
    """Decoded at the image's own size."""
    image, upright = open_rgb(blob, LIMIT)
    assert image.mode == "RGB"
    assert upright == (image.height, image.width)
    result, size = decode.decode(blob, View(upright), LIMIT)
    assert size == upright
    np.testing.assert_array_equal(laid_out(result), np.asarray(image))
    return laid_out(result)


def gray(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=-1)


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that declares a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


# --- modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF"])
def test_rgb_is_kept(form: str) -> None:
    image = draw_image(1, 2, 16)
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(image, form, **options)), np.asarray(image))


def test_gray_is_repeated() -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(RAMP))), gray(RAMP))


def test_one_bit_is_black_and_white() -> None:
    bits = RAMP % 3 == 0
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits))), gray(255 * bits))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_divided_by_257(form: str) -> None:
    wide = RAMP.astype(np.uint16) * 257
    blob = encoded(Image.fromarray(wide), form)
    assert Image.open(io.BytesIO(blob)).mode.startswith("I;16")
    np.testing.assert_array_equal(pixels(blob), gray(RAMP))


def test_16_bits_are_rounded_to_the_nearest() -> None:
    wide = np.array([[0, 128, 129, 257 * 7 + 128, 257 * 7 + 129, 65535 - 129, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 7, 8, 254, 255]])
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(wide))), gray(expected))


# White is the smallest of 1, 255, 4095 and 65535 that holds every pixel, of floats all but a fiftieth. By hand:
# 0.5 of 1 is 127.5, to the even 128; 1000 of 65535 is 3.89; 32767.5 is half of it, 127.5.
WIDE_GOLDEN: dict[str, tuple[list[float], type, list[int]]] = {
    "floats of 0..1": ([0, 0.25, 0.5, 1], np.float32, [0, 64, 128, 255]),
    "dark floats of 0..1": ([0, 0.01, 0.1, 0.2], np.float32, [0, 3, 26, 51]),
    "floats of 0..255": ([0, 1, 128.4, 255], np.float32, [0, 1, 128, 255]),
    "floats of 0..65535": ([0, 1000, 32767.5, 65535], np.float32, [0, 4, 128, 255]),
    "floats above 1": ([0, 0.4, 1, 1.5], np.float32, [0, 0, 1, 2]),
    "floats of 0..1, resized": ([0, 0.5, 1, 1.004], np.float32, [0, 128, 255, 255]),
    "floats of 0..255, resized": ([0, 128, 255, 255.3], np.float32, [0, 128, 255, 255]),
    "integers of 0..1": ([0, 1, 0, 1], np.int32, [0, 255, 0, 255]),
    "integers of 0..255": ([0, 7, 200, 255], np.int32, [0, 7, 200, 255]),
    "integers of 0..256": ([0, 128, 129, 256], np.int32, [0, 8, 8, 16]),
    "integers of 0..4095": ([0, 16, 1000, 4095], np.int32, [0, 1, 62, 255]),
    "integers of 0..65535": ([0, 257, 32896, 65535], np.int32, [0, 1, 128, 255]),
}


@pytest.mark.parametrize("kind", WIDE_GOLDEN)
def test_white_is_the_smallest_that_holds_every_pixel(kind: str) -> None:
    values, dtype, expected = WIDE_GOLDEN[kind]
    blob = encoded(Image.fromarray(np.array([values], dtype)), "TIFF")
    assert Image.open(io.BytesIO(blob)).mode in ("I", "F")
    np.testing.assert_array_equal(pixels(blob), gray(np.array([expected])))


@given(
    values=st.lists(st.floats(0, 65535, width=32), min_size=1, max_size=12),
    scale=st.sampled_from([1.0, 255.0, 65535.0]),
    kind=st.sampled_from([np.float32, np.int32]),
)
def test_wide_gray_keeps_its_order_and_its_range(values: list[float], scale: float, kind: type) -> None:
    wide = np.array([values], np.float64) / 65535 * scale
    wide = wide.astype(kind)
    shown_pixels = pixels(encoded(Image.fromarray(wide), "TIFF"))[0, :, 0].astype(int)
    order = np.argsort(wide[0], kind="stable")
    assert (np.diff(shown_pixels[order]) >= 0).all()
    above = 1.02 if kind is np.float32 else 1
    white = next(w for w in (1, 255, 4095, 65535) if wide.max() <= above * w)
    assert np.abs(shown_pixels - np.minimum(wide[0] / white, 1) * 255).max() <= 0.501


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("wrong", [-1, -500, 65536, 70000, 2**30])
def test_a_pixel_beyond_every_white_is_refused_with_the_range(kind: type, wrong: int) -> None:
    blob = encoded(Image.fromarray(np.array([[0, 7, wrong]], kind)), "TIFF")
    with pytest.raises(BadImage, match=r"0\.\.65535") as caught:
        open_rgb(blob, LIMIT)
    assert f"{min(0, wrong):g} to {max(7, wrong):g}" in str(caught.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_refused(wrong: float) -> None:
    blob = encoded(Image.fromarray(np.array([[0, 0.5, wrong]], np.float32)), "TIFF")
    with pytest.raises(BadImage, match="NaN or infinite"):
        open_rgb(blob, LIMIT)


@pytest.mark.parametrize("highest", [1, 200, 255, 256, 65535])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_what_is_declared_as_16_bits_stays_so_however_dark(form: str, highest: int) -> None:
    wide = np.array([[0, highest]], np.uint16)
    options = {"irreversible": False} if form == "JPEG2000" else {}
    blob = encoded(Image.fromarray(wide), form, **options)
    np.testing.assert_array_equal(pixels(blob), gray(np.rint(wide / 257)))


@pytest.mark.parametrize(("maximum", "expected"), [(255, [0, 100, 255]), (1000, [0, 26, 65]), (65535, [0, 0, 1])])
def test_a_pgm_says_what_is_white(maximum: int, expected: list[int]) -> None:
    values = np.array([0, 100, 255], np.uint8 if maximum < 256 else ">u2")
    blob = b"P5 3 1 %d\n" % maximum + values.tobytes()
    assert np.abs(pixels(blob)[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("order", [b"<", b">"])
@pytest.mark.parametrize("turn", [1, 6])
def test_16_bits_in_either_order_of_bytes(order: bytes, turn: int) -> None:
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    blob = tiff(wide.astype(order.decode() + "u2").tobytes(), 4, 1, order, {258: 16, 262: 1, 274: turn})
    expected = gray(np.array([[0, 1, 128, 255]]))
    np.testing.assert_array_equal(pixels(blob), np.rot90(expected, -1) if turn == 6 else expected)


def test_12_bits_are_4095_levels() -> None:
    blob = tiff(bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10]), 4, 1, b"<", {258: 12, 262: 1})
    assert Image.open(io.BytesIO(blob)).mode.startswith("I;16")  # 0, 4095, 2048, 16
    np.testing.assert_array_equal(pixels(blob), gray(np.array([[0, 255, 128, 1]])))


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_in_which_white_is_zero_is_inverted(bits: int) -> None:
    stored = {1: bytes([0b01000000]), 8: bytes([0, 255]), 16: np.array([0, 65535], "<u2").tobytes()}[bits]
    blob = tiff(stored, 2, 1, b"<", {258: bits, 262: 0})
    np.testing.assert_array_equal(pixels(blob), gray(np.array([[255, 0]])))


def tiff(stored: bytes, width: int, height: int, order: bytes, tags: dict[int, int]) -> bytes:
    """An uncompressed TIFF of one strip, one sample a pixel."""
    sign = order.decode()
    tags = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(stored)} | tags
    entries = b"".join(
        struct.pack(sign + "HHI", tag, 3, 1) + struct.pack(sign + "HH", value, 0) for tag, value in sorted(tags.items())
    )
    stored += bytes(len(stored) % 2)
    head = (b"II" if order == b"<" else b"MM") + struct.pack(sign + "HI", 42, 8 + len(stored))
    return head + stored + struct.pack(sign + "H", len(tags)) + entries + bytes(4)


def test_16_bits_a_colour_give_their_high_byte() -> None:
    blob = png(struct.pack(">6H", 0x1234, 0xFF00, 0x00FF, 0x8080, 0x7FFF, 0xFFFF), 2, 1, 16, 2)
    np.testing.assert_array_equal(pixels(blob), [[[0x12, 0xFF, 0x00], [0x80, 0x7F, 0xFF]]])


def png(row: bytes, width: int, height: int, bits: int, colour: int, key: tuple[int, ...] = ()) -> bytes:
    """A PNG whose rows are all `row`, with a colour key (tRNS)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    blob = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if key:
        blob += chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return blob + chunk(b"IDAT", zlib.compress((b"\0" + row) * height)) + chunk(b"IEND", b"")


# bits of a sample, colour type, a row of two pixels, the key, what is shown
KEYED: dict[str, tuple[int, int, bytes, tuple[int, ...], list[list[int]]]] = {
    "RGB": (8, 2, bytes([9, 8, 7, 1, 2, 3]), (9, 8, 7), [[255, 255, 255], [1, 2, 3]]),
    "RGB, one channel off": (8, 2, bytes([9, 8, 6, 1, 2, 3]), (9, 8, 7), [[9, 8, 6], [1, 2, 3]]),
    "RGB of 16 bits": (
        16, 2, struct.pack(">6H", 0x0901, 0x0801, 0x0701, 257, 514, 771), (0x0901, 0x0801, 0x0701),
        [[255, 255, 255], [1, 2, 3]],
    ),
    "gray of 1 bit, black": (1, 0, bytes([0b01000000]), (0,), [[255] * 3, [255] * 3]),
    "gray of 1 bit, white": (1, 0, bytes([0b01000000]), (1,), [[0] * 3, [255] * 3]),
    "gray of 2 bits": (2, 0, bytes([0b01100000]), (1,), [[255] * 3, [170] * 3]),
    "gray of 4 bits": (4, 0, bytes([0x3A]), (3,), [[255] * 3, [170] * 3]),
    "gray of 8 bits": (8, 0, bytes([17, 18]), (17,), [[255] * 3, [18] * 3]),
    "gray of 16 bits": (16, 0, struct.pack(">2H", 257, 258), (257,), [[255] * 3, [1] * 3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYED)
def test_a_colour_key_is_laid_on_white(kind: str) -> None:
    bits, colour, row, key, expected = KEYED[kind]
    np.testing.assert_array_equal(pixels(png(row, 2, 1, bits, colour, key)), [expected])
    without = pixels(png(row, 2, 1, bits, colour))
    assert (without == 255).all(-1).sum() <= (np.array([expected]) == 255).all(-1).sum()


@given(values=st.lists(st.integers(0, 3), min_size=3, max_size=24), key=st.tuples(*[st.integers(0, 3)] * 3))
def test_a_colour_key_whitens_its_colour_and_no_other(values: list[int], key: tuple[int, int, int]) -> None:
    values = values[: len(values) // 3 * 3]
    colours = np.array(values, np.uint8).reshape(1, -1, 3)
    expected = colours.copy()
    expected[(colours == key).all(-1)] = 255
    np.testing.assert_array_equal(pixels(png(bytes(values), colours.shape[1], 1, 8, 2, key)), expected)


# What each mode of Pillow gives, without a file between.
MODES: dict[str, tuple[Any, list[int]]] = {
    "1": (255, [255, 255, 255]),
    "L": (77, [77, 77, 77]),
    "LA": ((77, 0), [255, 255, 255]),
    "La": ((50, 100), [205, 205, 205]),  # premultiplied: 127 at an alpha of 100/255
    "PA": ((0, 0), [255, 255, 255]),
    "RGB": ((1, 2, 3), [1, 2, 3]),
    "RGBX": ((1, 2, 3, 4), [1, 2, 3]),
    "RGBA": ((255, 0, 0, 128), [255, 127, 127]),
    "RGBa": ((128, 0, 0, 128), [255, 127, 127]),
    "CMYK": ((0, 255, 255, 0), [255, 0, 0]),
    "YCbCr": ((76, 85, 255), [254, 0, 0]),
    "HSV": ((85, 255, 255), [0, 255, 0]),
    "LAB": ((255, 128, 128), [255, 255, 255]),
    "I;16": (32896, [128, 128, 128]),
    "I;16B": (32896, [128, 128, 128]),
    "I;16L": (32896, [128, 128, 128]),
    "I": (200, [200, 200, 200]),
    "F": (0.5, [128, 128, 128]),
}


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_has_its_conversion(mode: str, turn: int) -> None:
    value, expected = MODES[mode]
    image = Image.new(mode, (3, 2), value)
    result = colour.to_mode(image, turn, colour.StoredImage(""), "RGB")
    assert result.mode == "RGB" and result.size == ((2, 3) if turn == 6 else (3, 2))
    assert np.abs(np.asarray(result).astype(int) - expected).max() <= 1
    for channels, other in colour.MODES.items():
        converted = colour.to_mode(image, turn, colour.StoredImage(""), other)
        assert converted.mode == other and len(converted.getbands()) == channels and converted.size == result.size
        if other == "L":
            assert list(converted.tobytes()) == list(result.convert("L").tobytes())


def test_a_jpeg_of_inks_is_taken_as_adobe_writes_them() -> None:
    """Inverted: 0 is all of the ink. A file of only yellow shows yellow."""
    blob = encoded(Image.new("CMYK", (8, 8), (0, 0, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in blob
    assert np.abs(pixels(blob).astype(int) - [255, 255, 0]).max() <= 3


def test_a_palette_whose_colours_have_alpha_is_laid_on_white() -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    blob = header + bytes([30, 20, 10, 255, 30, 20, 10, 0]) + bytes([0, 1])  # BGRA
    assert Image.open(io.BytesIO(blob)).format == "TGA"
    np.testing.assert_array_equal(pixels(blob), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_laid_on_white(mode: str) -> None:
    image = Image.new(mode, (4, 1), (200, 10, 30, 255) if mode == "RGBA" else (200, 255))
    alpha = Image.fromarray(np.array([[0, 51, 128, 255]], np.uint8))
    image.putalpha(alpha)
    colour = np.array([200, 10, 30] if mode == "RGBA" else [200, 200, 200])
    part = np.array([0, 51, 128, 255])[:, None] / 255
    expected = 255 * (1 - part) + colour * part
    result = pixels(encoded(image))[0].astype(float)
    assert np.abs(result - expected).max() <= 1
    np.testing.assert_array_equal(result[0], 255)
    np.testing.assert_array_equal(result[3], colour)


def test_what_is_hidden_by_full_transparency_does_not_show() -> None:
    hidden = draw_image(0, 0, 8).convert("RGBA")
    hidden.putalpha(0)
    assert (pixels(encoded(hidden)) == 255).all()


def palette(values: list[int]) -> Image.Image:
    image = Image.frombytes("P", (len(values), 1), bytes(values))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    return image


def test_a_palette_gives_its_colours() -> None:
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]]
    np.testing.assert_array_equal(pixels(encoded(palette([0, 1, 2, 3]))), expected)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
def test_a_palette_with_transparency_is_laid_on_white(transparency: Any) -> None:
    blob = encoded(palette([0, 1, 2, 3]), transparency=transparency)
    assert "transparency" in Image.open(io.BytesIO(blob)).info
    expected = [[[255, 0, 0], [255, 255, 255], [0, 0, 255], [9, 8, 7]]]
    np.testing.assert_array_equal(pixels(blob), expected)


def test_gray_with_a_transparent_value_is_laid_on_white() -> None:
    blob = encoded(Image.fromarray(RAMP), transparency=17)
    expected = RAMP.copy()
    expected[RAMP == 17] = 255
    np.testing.assert_array_equal(pixels(blob), gray(expected))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, 8:16, 0] = 255
    inks[:, 16:24, 1] = 255
    inks[:, 24:, 3] = 255
    image = Image.frombytes("CMYK", (32, 8), inks.tobytes())
    blob = encoded(image, form, **({"quality": 100} if form == "JPEG" else {}))
    assert Image.open(io.BytesIO(blob)).mode == "CMYK"
    result = pixels(blob)[4, 4::8].astype(int)
    expected = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]])
    assert np.abs(result - expected).max() <= 6


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    if mode == "YCbCr":
        image = Image.new("RGB", (4, 4), (200, 60, 30)).convert(mode)
        expected = np.array([200, 60, 30])
    else:
        image, expected = Image.new("LAB", (4, 4), (255, 128, 128)), None
    blob = encoded(image, "TIFF")
    result = pixels(blob)[0, 0].astype(int)
    if expected is None:
        assert result.min() >= 250  # L* = 100 is white
    else:
        assert np.abs(result - expected).max() <= 3


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    blob = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(blob)).n_frames == 3
    np.testing.assert_array_equal(pixels(blob), np.broadcast_to([255, 0, 0], (4, 6, 3)))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


UPRIGHT = np.asarray(Image.frombytes("RGB", (3, 2), bytes(range(0, 180, 10))))
STORED = {  # how the upright picture lies in the file, by EXIF orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_set_upright(orientation: int, form: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"lossless": True} if form == "WEBP" else {}
    blob = encoded(image, form, exif=turned(orientation), **options)
    assert decode.decode(blob, View((2, 3)), LIMIT)[1] == (2, 3)
    np.testing.assert_array_equal(pixels(blob), UPRIGHT)


def test_a_turned_image_keeps_its_conversion() -> None:
    wide = np.rot90(RAMP.astype(np.uint16) * 257, 1)
    blob = encoded(Image.fromarray(np.ascontiguousarray(wide)), exif=turned(6))
    np.testing.assert_array_equal(pixels(blob), gray(RAMP))


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(UPRIGHT), exif=turned(orientation))), UPRIGHT)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(1, 1, b"\6\0\0\0"), (2, 2, b"6\0\0\0"), (5, 1, b"\x08\0\0\0"), (7, 1, b"\6\0\0\0"), (3, 0, bytes(4))],
    ids=["byte", "text", "fraction", "undefined", "empty"],
)
def test_an_orientation_that_is_no_number_is_ignored(kind: int, count: int, value: bytes) -> None:
    """The tag is of two-byte integers; a reader need not guess what another type means."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHI4s", 0x0112, kind, count, value) + bytes(4)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(UPRIGHT), exif=exif)), UPRIGHT)


def test_a_file_of_several_photographs_gives_the_first() -> None:
    """Phones write them; they begin as a JPEG does."""
    blob = encoded(draw_image(0, 0, 32), "MPO", save_all=True, append_images=[draw_image(1, 0, 32)])
    assert Image.open(io.BytesIO(blob)).format == "MPO"
    np.testing.assert_array_equal(pixels(blob), np.asarray(Image.open(io.BytesIO(blob))))


BROKEN_EXIF = {
    "garbage": b"\x99" * 20,
    "no directory": b"Exif\0\0MM\0*\0\0\0\x08\0\x07\x01\x12\0\x03\xff\xff\xff\xff",
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12",
    "far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "empty": b"Exif\0\0",
}


@pytest.mark.parametrize("kind", BROKEN_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_broken_exif_does_not_make_an_image_unreadable(form: str, kind: str) -> None:
    image = Image.new("RGB", (24, 16), (200, 40, 40))
    options: dict[str, Any] = {} if form == "TIFF" else {"exif": BROKEN_EXIF[kind]}
    if form == "TIFF":  # which has its EXIF in a directory of its own
        options = {"tiffinfo": {34665: 2**24, 34853: 3}}
    result = pixels(encoded(image, form, **options))
    assert result.shape == (16, 24, 3) and np.abs(result.astype(int) - [200, 40, 40]).max() <= 6


@pytest.mark.parametrize("profile", ["\nexif\n      20\n" + "99" * 20, "\nexif\n      6\nnothexhere!", "", "\n\n\n"])
def test_a_broken_text_profile_does_not_make_a_png_unreadable(profile: str) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", profile)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(UPRIGHT), pnginfo=info)), UPRIGHT)


@pytest.mark.parametrize("broken", [b"\x99\x99\x99\x99", b"II*\x07"])
def test_broken_exif_does_not_make_an_avif_unreadable(broken: bytes) -> None:
    image = Image.new("RGB", (24, 16), (200, 40, 40))
    blob = encoded(image, "AVIF", exif=turned(1).tobytes() + bytes(8))
    place = blob.rfind(b"II*\0") if b"II*\0" in blob else blob.rfind(b"MM\0*")
    result = pixels(blob[:place] + broken + blob[place + 4 :])
    assert np.abs(result.astype(int) - [200, 40, 40]).max() <= 3


@given(exif=st.binary(max_size=60), form=st.sampled_from(["JPEG", "PNG", "WEBP"]), head=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_exif_whatever_changes_more_than_the_way_up(exif: bytes, form: str, head: bool) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + exif if head else exif
    options = {"lossless": True} if form == "WEBP" else {}
    blob = encoded(Image.new("RGB", (3, 2), (200, 40, 40)), form, exif=exif, **options)
    image, size = open_rgb(blob, LIMIT)
    assert size == (image.height, image.width) and sorted(size) == [2, 3]
    assert np.abs(np.asarray(image).astype(int) - [200, 40, 40]).max() <= 3


@pytest.mark.parametrize("kind", [2, 7])  # text, undefined
def test_a_wrong_tag_beside_the_orientation_does_no_harm(kind: int) -> None:
    """The horizontal resolution has to be a fraction; nothing of it is needed to turn an image."""
    tags = [struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", 0x011A, kind, 1, b"7\0\0\0")]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)
    blob = encoded(Image.fromarray(np.ascontiguousarray(STORED[6])), exif=exif)
    np.testing.assert_array_equal(pixels(blob), UPRIGHT)


# --- what cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_jpeg_is_an_error(kept: float) -> None:
    blob = encoded(draw_image(0, 0, 64), "JPEG", quality=95)
    with pytest.raises(BadImage) as caught:
        open_rgb(blob[: int(kept * len(blob))], LIMIT)
    assert str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_other_truncated_files_are_errors(form: str) -> None:
    blob = encoded(draw_image(0, 0, 64), form)
    with pytest.raises(BadImage):
        open_rgb(blob[: len(blob) // 2], LIMIT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_the_start_of_a_file_is_an_error_or_has_all_its_pixels(form: str) -> None:
    """All but the last bytes may do, such as a JPEG's without the mark of its end."""
    blob = encoded(draw_image(0, 0, 12), form)
    whole = pixels(blob)
    failed = 0
    for kept in range(len(blob)):
        try:
            image, _ = open_rgb(blob[:kept], LIMIT)
        except BadImage as error:
            assert str(error)
            failed += 1
        else:
            np.testing.assert_array_equal(np.asarray(image), whole)
    assert failed >= 0.85 * len(blob)


STARTS = [
    ("JPEG", b"\xff\xd8\xff"),
    ("JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF\0"),
    ("PNG", b"\x89PNG"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("WEBP", b"RIFF"),
    ("WEBP", b"RIFF\0\0\0\0WEBP"),
    ("GIF", b"GIF8"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM"),
]


@pytest.mark.parametrize(("claimed", "start"), STARTS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "", "zeros", "noise"])
def test_first_bytes_that_lie_about_the_format_are_an_error(claimed: str, start: bytes, form: str) -> None:
    """The start of one format and the rest of another, of nothing or of no image."""
    if claimed == form:
        return
    rests = {"": b"", "zeros": bytes(3000), "noise": np.random.default_rng(0).bytes(3000)}
    rest = rests[form] if form in rests else encoded(draw_image(0, 0, 24), form)
    for blob in (start + rest, start + rest[len(start) :]):
        with pytest.raises(BadImage) as caught:
            decode.decode(blob, View((8, 8), draft=True), LIMIT)
        assert str(caught.value)
        assert "BytesIO" not in str(caught.value)
        assert "\n" not in str(caught.value)


WRITTEN = [form for form in decode.FORMATS if form not in ("SUN", "PSD")]  # which Pillow reads and does not write


@pytest.mark.parametrize("form", WRITTEN)
def test_a_format_is_read_whether_its_first_bytes_are_known_or_not(form: str) -> None:
    image = draw_image(0, 0, 24)
    blob = encoded(image, form)
    np.testing.assert_array_equal(pixels(blob), np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")))


def test_the_endings_are_all_that_pillow_has_for_the_formats() -> None:
    Image.init()
    formats = {*decode.FORMATS, "MPO"}
    registered = {ending for ending, form in Image.registered_extensions().items() if form in formats}
    assert set(decode.IMAGE_ENDINGS) == registered and len(decode.IMAGE_ENDINGS) == len(registered)
    assert all(ending == ending.lower() and ending.startswith(".") for ending in decode.IMAGE_ENDINGS)
    assert "photo.JFIF".lower().endswith(decode.IMAGE_ENDINGS)


def icon(side: int) -> bytes:
    """An icon whose one image is a PNG that declares a size."""
    inside = png_header(side, side)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "EPS": b"\xc5\xd0\xd3\xc6" + bytes(40),
    "PDF": b"%PDF-1.7\n",
    "ICO": icon(60_000),
    "ICNS": b"icns" + struct.pack(">I", 200) + b"ic10" + struct.pack(">I", 192) + png_header(60_000, 60_000),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "SVG": b"  <svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!DOCTYPE html><html></html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_photograph_is_refused_by_its_first_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a plugin of Pillow sees it."""

    def never(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a plugin was asked")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(BadImage) as caught:
        open_rgb(FOREIGN[kind], LIMIT)
    said = {"ICO": "ICO", "ICNS": "ICNS", "git-lfs": "LFS"}.get(kind, kind)
    assert said in str(caught.value)


def test_no_plugin_outside_the_list_is_ever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other one is replaced by a trap; none springs, whatever the first bytes are."""
    Image.init()

    def trap(*arguments: object) -> bool:
        raise AssertionError("a format that is not allowed was tried")

    for name in Image.OPEN:
        if name not in decode.FORMATS:
            monkeypatch.setitem(Image.OPEN, name, (trap, trap))
    noise = np.random.default_rng(0)
    for blob in (*FOREIGN.values(), *(noise.bytes(64) for _ in range(50)), b"", b"\0" * 64, b"#define x_width 3"):
        with pytest.raises(BadImage):
            open_rgb(blob, LIMIT)


@pytest.mark.parametrize(
    "blob",
    [b"", b"\0", b"<html><body>404</body></html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(5000)],
)
def test_bytes_that_are_no_image_are_an_error(blob: bytes) -> None:
    with pytest.raises(BadImage) as caught:
        open_rgb(blob, LIMIT)
    assert str(caught.value)
    assert "BytesIO" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (9_500, 9_400)])
def test_a_small_file_of_many_pixels_is_refused_with_the_limit(width: int, height: int) -> None:
    with pytest.raises(BadImage) as caught:
        open_rgb(png_header(width, height), LIMIT)
    assert "limit" in str(caught.value)
    if width * height < 178e6:  # beyond it Pillow's own limit speaks
        for word in ("89", "data.max_megapixels", str(width)):
            assert word in str(caught.value)


def test_the_limit_is_the_configured_one() -> None:
    blob = encoded(draw_image(0, 0, 50))
    assert open_rgb(blob, 0.0025)[0].size == (50, 50)
    with pytest.raises(BadImage, match=r"0\.0024"):
        open_rgb(blob, 0.0024)


def test_the_limit_can_be_raised_above_pillows_own() -> None:
    """A file of 200 megapixels then fails for what it is, a header without pixels."""
    with pytest.raises(BadImage) as caught:
        open_rgb(png_header(20_000, 10_000), 500)
    assert "limit" not in str(caught.value)


MUTATED = [
    encoded(
        draw_image(0, 0, 16), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    encoded(draw_image(1, 0, 16)),
    encoded(palette([0, 1, 2, 3]), transparency=1),
    encoded(draw_image(1, 0, 16), "GIF"),
    encoded(draw_image(1, 0, 16), "WEBP"),
    encoded(draw_image(1, 0, 16), "TIFF"),
    encoded(Image.fromarray(RAMP.astype(np.uint16) * 257)),
    encoded(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
    encoded(draw_image(1, 0, 16), "AVIF", exif=turned(6)),
    encoded(draw_image(1, 0, 16), "TGA"),
    encoded(draw_image(1, 0, 16), "QOI"),
]


@given(
    which=st.integers(0, len(MUTATED) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    draft=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_changed_bytes_give_pixels_or_a_reason(which: int, changes: list[tuple[float, int]], draft: bool) -> None:
    blob = bytearray(MUTATED[which])
    for place, value in changes:
        blob[min(int(place * len(blob)), len(blob) - 1)] = value
    try:
        result, _ = decode.decode(bytes(blob), View((8, 8), draft=draft), 1.0)
    except BadImage as error:
        assert str(error)
    else:
        assert result.shape == (3, 8, 8)


# --- large JPEGs ---------------------------------------------------------------------------------------------


def scene(height: int, width: int) -> Image.Image:
    """Smooth shapes, edges and some noise, as a camera has them."""
    random = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    layers = [110 + 60 * np.sin(x / (37 + 20 * i) + i) * np.cos(y / (53 - 9 * i)) for i in range(3)]
    values = np.stack(layers, -1)
    values[(x // 211 + y // 173) % 3 == 0] += 40
    values += random.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def large() -> Image.Image:
    return scene(1500, 2000)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [(256, 256), (438, 128), (128, 438)])
def test_a_working_copy_of_a_large_jpeg_is_close_to_that_of_the_whole(
    large: Image.Image, orientation: int, size: tuple[int, int]
) -> None:
    blob = encoded(large, "JPEG", quality=90, exif=turned(orientation))
    upright = (2000, 1500) if orientation >= 5 else (1500, 2000)
    quick, quick_size = decode.decode(blob, View(size, draft=True), LIMIT)
    whole, whole_size = decode.decode(blob, View(size), LIMIT)
    assert quick_size == whole_size == upright
    assert psnr(quick, whole) >= 40
    assert not np.array_equal(quick, whole)


def test_the_smallest_scale_that_is_not_too_small_is_decoded(large: Image.Image) -> None:
    blob = encoded(large, "JPEG", exif=turned(6))  # 1500 wide and 2000 high
    for draft, expected in {
        (320, 320): (375, 500),
        (500, 125): (375, 500),
        (125, 375): (375, 500),
        (501, 125): (750, 1000),
        (125, 376): (750, 1000),
        (250, 187): (188, 250),
        (1, 1): (188, 250),
        (1001, 1): (1500, 2000),
    }.items():
        image, size = open_rgb(blob, LIMIT, draft)
        assert image.size == expected
        assert size == (2000, 1500)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    draft=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    orientation=st.integers(1, 8),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
@settings(max_examples=60, deadline=None)
def test_a_smaller_scale_is_never_below_what_is_asked_for(
    height: int, width: int, draft: tuple[int, int], orientation: int, mode: str
) -> None:
    blob = encoded(Image.new(mode, (width, height)), "JPEG", exif=turned(orientation))
    image, size = open_rgb(blob, LIMIT, draft)
    assert image.mode == "RGB"
    assert size == ((width, height) if orientation >= 5 else (height, width))
    for side, original, wanted in zip((image.height, image.width), size, draft, strict=True):
        assert min(original, wanted) <= side <= original


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded_whole(form: str) -> None:
    blob = encoded(scene(700, 900), form)
    quick, quick_size = decode.decode(blob, View((64, 64), draft=True), LIMIT)
    whole, whole_size = decode.decode(blob, View((64, 64)), LIMIT)
    np.testing.assert_array_equal(quick, whole)
    assert quick_size == whole_size == (700, 900)


@pytest.mark.parametrize("size", [(100, 100), (511, 511), (511, 2000), (2000, 511), (639, 900), (900, 639)])
def test_a_jpeg_not_much_larger_than_the_working_size_is_decoded_whole(size: tuple[int, int]) -> None:
    blob = encoded(scene(*size), "JPEG")
    quick, quick_size = decode.decode(blob, View((256, 256), draft=True), LIMIT)
    np.testing.assert_array_equal(quick, decode.decode(blob, View((256, 256)), LIMIT)[0])
    assert quick_size == size


def test_evaluation_decodes_large_jpegs_whole(large: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = encoded(large, "JPEG")
    whole = Image.open(io.BytesIO(blob)).convert("RGB")

    def never(*arguments: object) -> None:
        raise AssertionError("a smaller scale was asked for")

    monkeypatch.setattr(JpegImageFile, "draft", never)
    for resize in ("short", "square"):
        for interpolation in ("bicubic", "bilinear"):
            view = eval_view((128, 96), EvalConfig(resize=resize, interpolation=interpolation))  # type: ignore[arg-type]
            assert not view.draft
            result, size = decode.decode(blob, view, LIMIT)
            np.testing.assert_array_equal(result, render(whole, view))
            assert size == (1500, 2000)
    with pytest.raises(BadImage, match="smaller scale"):
        decode.decode(blob, View((128, 96), draft=True), LIMIT)


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_large_jpeg_is_an_error_at_a_smaller_scale_too(large: Image.Image, kept: float) -> None:
    blob = encoded(large, "JPEG", quality=90)
    with pytest.raises(BadImage):
        decode.decode(blob[: int(kept * len(blob))], View((128, 128), draft=True), LIMIT)


def test_the_limit_is_that_of_the_whole_image(large: Image.Image) -> None:
    blob = encoded(large, "JPEG")
    with pytest.raises(BadImage, match=r"limit of 2\.9"):
        decode.decode(blob, View((64, 64), draft=True), 2.9)
    assert decode.decode(blob, View((64, 64), draft=True), 3)[1] == (1500, 2000)


# --- resizing ------------------------------------------------------------------------------------------------

SIDES = st.integers(1, 90)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(height=SIDES, width=SIDES, size=st.integers(1, 48), crop=st.sampled_from([1.0, 0.9, 0.875, 0.95]))
@settings(max_examples=80, deadline=None)
def test_a_square_is_torchvisions_resize_and_centre_crop(height: int, width: int, size: int, crop: float) -> None:
    from torchvision import transforms

    image = picture(height, width)
    oracle = transforms.Compose(
        [
            transforms.Resize(int(size / crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    np.testing.assert_array_equal(shown(image, View((size, size), "short", crop)), np.asarray(oracle(image)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop"), [(224, 0.9), (224, 0.875), (384, 1.0), (240, 0.95)])
def test_evaluation_is_timms(size: int, crop: float, interpolation: str) -> None:
    from timm.data import create_transform

    oracle = create_transform((3, size, size), is_training=False, crop_pct=crop, interpolation=interpolation)
    config = EvalConfig(crop=crop, interpolation=interpolation)  # type: ignore[arg-type]
    for height, width in ((333, 500), (500, 375), (120, 100)):
        image = picture(height, width)
        expected = image
        for transform in oracle.transforms[:2]:  # resize and crop; what follows makes a tensor
            expected = transform(expected)
        np.testing.assert_array_equal(shown(image, eval_view((size, size), config)), np.asarray(expected))


def test_real_photographs_are_timms(shared_data: Path) -> None:
    from timm.data import create_transform

    oracle = create_transform((3, 224, 224), is_training=False, crop_pct=0.9, interpolation="bicubic")
    for path in sorted((shared_data / "photos").glob("*/*"))[::23]:
        result, size = decode.decode(path.read_bytes(), View((224, 224), "short", 0.9), LIMIT)
        image = Image.open(path).convert("RGB")
        assert size == (image.height, image.width)
        for transform in oracle.transforms[:2]:
            image = transform(image)
        np.testing.assert_array_equal(laid_out(result), np.asarray(image))


@given(
    height=SIDES,
    width=SIDES,
    size=st.tuples(SIDES, SIDES),
    crop=st.floats(0.3, 1.0),
    mode=st.sampled_from(["short", "square"]),
)
@settings(max_examples=150, deadline=None)
def test_every_size_is_exact(height: int, width: int, size: tuple[int, int], crop: float, mode: Any) -> None:
    result = render(picture(height, width), View(size, mode, crop))
    assert result.shape == (3, *size)
    assert result.dtype == np.uint8


@given(height=SIDES, width=SIDES, size=st.tuples(st.integers(4, 60), st.integers(4, 60)))
@settings(max_examples=60, deadline=None)
def test_short_keeps_shapes_and_fills_the_frame(height: int, width: int, size: tuple[int, int]) -> None:
    """White images stay white up to the corners, and the scale is the smaller one that covers the frame."""
    assert (render(Image.new("RGB", (width, height), "white"), View(size, "short")) == 255).all()
    scale = max(size[0] / height, size[1] / width)
    visible = min(1.0, size[1] / (width * scale))  # part of the width within the frame
    across = np.linspace(0, 255, width).round().astype(np.uint8)
    ramp = Image.fromarray(np.repeat(np.repeat(across[None, :, None], height, 0), 3, 2))
    row = shown(ramp, View(size, "short", 1.0, "bilinear"))[size[0] // 2, :, 0].astype(float)
    if width * scale >= 8 and width >= 8:
        assert abs((row.max() - row.min()) - 255 * visible) < 255 * (2.5 / (width * scale) + 2.5 / width)


def test_square_squashes_the_whole_image() -> None:
    image = picture(30, 50)
    expected = np.asarray(image.resize((20, 10), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown(image, View((10, 20), "square")), expected)


def test_an_image_of_the_size_is_untouched() -> None:
    image = picture(24, 16)
    for mode in ("short", "square"):
        np.testing.assert_array_equal(shown(image, View((24, 16), mode)), np.asarray(image))  # type: ignore[arg-type]


def test_long_thin_images_take_memory_of_the_frame_not_of_their_length() -> None:
    """A pixel high and 3,000 wide: resized whole to cover 256 pixels it would be 768,000 wide."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = shown(Image.new("RGB", (3000, 1), (10, 20, 30)), View((256, 256), "short"))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (result == [10, 20, 30]).all()
    assert grown_kib < 300_000
