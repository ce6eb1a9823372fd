"""Images of other channels than three: pictures as gray or with alpha, arrays of any, resized as Pillow resizes each channel."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import draw_image
from vitcli.config import DataConfig
from vitcli.data.cache import open_images
from vitcli.data.colour import BadImage
from vitcli.data.decode import View, decode, native_size, open_rgb
from vitcli.data.layout import images_among, list_folder
from vitcli.data.samples import sample_photographs
from vitcli.data.sources import open_source
from vitcli.errors import DataError

LIMIT = 89.0
NOISE = np.random.default_rng(0).integers(0, 256, (13, 17, 6), np.uint8)


def png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def npy(array: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def seen(blob: bytes, channels: int, size: tuple[int, int] = (13, 17), **view: Any) -> NDArray[np.uint8]:
    return decode(blob, View(size, channels=channels, **view), LIMIT)[0]


# --- pictures ----------------------------------------------------------------------------------------------


def test_one_channel_is_pillow_s_gray() -> None:
    colours = Image.fromarray(np.ascontiguousarray(NOISE[..., :3]))
    np.testing.assert_array_equal(seen(png(colours), 1)[0], np.asarray(colours.convert("L")))
    levels = Image.fromarray(np.arange(221, dtype=np.uint8).reshape(13, 17))
    np.testing.assert_array_equal(seen(png(levels), 1)[0], np.asarray(levels))


def test_sixteen_bits_become_eight() -> None:
    values = np.linspace(0, 65535, 221).astype(np.uint16).reshape(13, 17)
    np.testing.assert_array_equal(seen(png(Image.fromarray(values)), 1)[0], np.rint(values / 257))


def test_alpha_is_the_file_s_and_colours_are_not_weighed_by_it() -> None:
    picture = Image.fromarray(np.ascontiguousarray(NOISE[..., :4]), "RGBA")
    np.testing.assert_array_equal(seen(png(picture), 4), NOISE[..., :4].transpose(2, 0, 1))
    small = seen(png(picture), 4, (6, 5))
    for channel, band in enumerate(picture.split()):
        np.testing.assert_array_equal(small[channel], np.asarray(band.resize((5, 6), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(seen(png(picture), 2)[1], NOISE[..., 3])


def test_what_has_no_alpha_is_opaque_and_a_colour_key_is_clear() -> None:
    picture = draw_image(0, 0, size=12)
    assert (seen(png(picture), 4, (12, 12))[3] == 255).all()
    keyed = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8))
    np.testing.assert_array_equal(seen(png(keyed, transparency=(1, 2, 3)), 4, (1, 2))[3], [[255, 0]])
    assert seen(png(keyed, transparency=(1, 2, 3)), 1, (1, 2))[0, 0, 1] == 255, "white without alpha"


def test_a_picture_has_no_more_than_four_channels() -> None:
    with pytest.raises(BadImage, match=r"at most 4 channels, and the model takes 6.*\.npy"):
        seen(png(draw_image(0, 0)), 6)


# --- arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_an_array_s_channels_are_resized_one_by_one(channels: int) -> None:
    array = NOISE[..., :channels]
    small = seen(npy(array), channels, (7, 7), mode="short", crop=0.9)
    for channel in range(channels):
        alone = Image.fromarray(np.ascontiguousarray(array[..., channel]))
        np.testing.assert_array_equal(small[channel], seen(png(alone), 1, (7, 7), mode="short", crop=0.9)[0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_as_it_lies(order: Any) -> None:
    blob = npy(np.asarray(NOISE, order=order))
    np.testing.assert_array_equal(seen(blob, 6), NOISE.transpose(2, 0, 1))
    assert native_size(blob) == (13, 17)


def test_an_array_without_channels_is_gray() -> None:
    np.testing.assert_array_equal(seen(npy(NOISE[..., 0]), 1)[0], NOISE[..., 0])


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (npy(NOISE[..., :4]), "array of 4 channels, and the model takes 6"),
        (npy(NOISE.astype(np.float32)), "array of float32"),
        (npy(NOISE[None]), "shape"),
        (npy(NOISE)[:-5], "bytes of pixels"),
        (npy(NOISE)[:8] + b"\xff" * 200, "NumPy"),
        (npy(np.array([{}], object), allow_pickle=True), "shape"),
        (npy(np.full((2, 2, 6), None, object), allow_pickle=True), "array of object"),
        (npy(np.zeros((1, 1, 1), np.uint8)).replace(b"(1, 1, 1)", b"(9**9,9,6)"), "NumPy"),
        (npy(np.zeros((10, 10, 6), np.uint8)).replace(b"(10, 10, 6), }    ", b"(99999, 99999, 6), }"), "megapixels"),
    ],
)
def test_what_is_no_image_is_refused(blob: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        seen(blob, 6)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    array = np.full((1, 1, 6), None, object)
    array[0, 0, 0] = Trap()
    blob = npy(array, allow_pickle=True)
    assert pickle.PROTO in blob
    with pytest.raises(BadImage):
        seen(blob, 6)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_an_array_is_shown_in_colours_or_gray(channels: int) -> None:
    image, size = open_rgb(npy(NOISE[..., :channels]), LIMIT)
    shown = np.asarray(image)
    assert size == (13, 17) and shown.shape == (13, 17, 3)
    if channels in (3, 4):
        np.testing.assert_array_equal(shown, NOISE[..., :3])
    elif channels < 3:
        np.testing.assert_array_equal(shown, NOISE[..., :1].repeat(3, -1))
    else:
        np.testing.assert_array_equal(shown[..., 0], np.rint(NOISE.mean(-1)))


# --- folders and caches ------------------------------------------------------------------------------------


def test_arrays_are_images_only_where_there_are_no_pictures() -> None:
    assert images_among(["a/1.npy", "a/2.NPY", "a/notes.txt"]) == ["a/1.npy", "a/2.NPY"]
    assert images_among(["a/1.npy", "a/1.jpg"]) == ["a/1.jpg"]


def test_a_cache_is_of_its_channels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            np.save(tmp_path / "data" / name / f"{index}.npy", NOISE[:, :, :2] if name == "b" and index == 5 else NOISE)
    assert len(list_folder(tmp_path / "data").images) == 12 and not list_folder(tmp_path / "data").left_out()
    split = open_source(DataConfig(source=str(tmp_path / "data"))).splits["train"]
    with pytest.raises(DataError, match=r"b/5\.npy.*array of 2 channels, and the model takes 6"):
        open_images(split, View((8, 8), channels=6), DataConfig())
    fitting = split.subset(np.arange(len(split) - 1))
    images = open_images(fitting, View((8, 8), channels=6), DataConfig(), where="cached")
    assert images.cached is not None and images.cached.shape == (11, 6, 8, 8)
    pixels, sizes = images.read(np.array([10, 0]))
    np.testing.assert_array_equal(pixels[0], seen(npy(NOISE), 6, (8, 8)))
    assert sizes.tolist() == [[13, 17]] * 2


def test_a_view_of_three_channels_is_called_as_it_always_was() -> None:
    """Caches are found by it."""
    assert str(View((8, 8))) == "View(size=(8, 8), mode='square', crop=1.0, interpolation='bicubic', draft=False)"


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_sample_photographs_have_channels_that_differ(channels: int) -> None:
    pixels = sample_photographs(View((16, 24), channels=channels))
    assert pixels.shape == (10, channels, 16, 24)
    assert len(np.unique(pixels[0].reshape(channels, -1), axis=0)) == min(channels, 6)
