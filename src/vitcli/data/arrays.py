"""Images of any number of channels: NumPy's .npy files of `[height, width, channels]`, whole numbers of 0 to 255."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcli.config import Size
from vitcli.data.colour import BadImage
from vitcli.plots import as_shown

ARRAY_ENDING = ".npy"
_FIRST = b"\x93NUMPY"


def is_array(blob: bytes) -> bool:
    """By its first bytes."""
    return blob.startswith(_FIRST)


def array_size(blob: bytes) -> Size:
    """Height and width of the image in `blob`. Raises BadImage."""
    height, width, _ = _header(io.BytesIO(blob))[0]
    return height, width


def read_array(blob: bytes, max_megapixels: float) -> NDArray[np.uint8]:
    """The image in `blob`. Its header is read, and no object is made of what stands in it, so nothing is ever unpickled. Raises BadImage."""
    stream = io.BytesIO(blob)
    shape, by_columns, kind = _header(stream)
    height, width, channels = shape
    if height * width > max_megapixels * 1e6:
        raise BadImage(
            f"{width} x {height} pixels are {height * width / 1e6:.0f} megapixels, over the limit of {max_megapixels:g} "
            "(data.max_megapixels)"
        )
    if kind != np.uint8:
        raise BadImage(f"an array of {kind}, and an image has uint8, whole numbers of 0 to 255")
    size = len(blob) - stream.tell()
    if size != height * width * channels:
        raise BadImage(
            f"{size:,} bytes of pixels, not the {height * width * channels:,} of {height} x {width} x {channels}"
        )
    flat = np.frombuffer(blob, np.uint8, offset=stream.tell())
    return flat.reshape(shape, order="F" if by_columns else "C")


def _header(stream: io.BytesIO) -> tuple[tuple[int, int, int], bool, np.dtype]:
    """The shape, whether columns come first in memory, and the type of the numbers. Raises BadImage."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(stream)
    except Exception as error:  # of many types: the bytes are a stranger's
        raise BadImage(
            f"not a NumPy array that is read: {str(error).splitlines()[0][:80] if str(error) else 'damaged'}"
        ) from None
    shape = (*shape, 1) if len(shape) == 2 else shape
    if len(shape) != 3 or min(shape) < 1:
        raise BadImage(f"an array of shape {shape}, and an image has [height, width, channels]")
    return shape, by_columns, kind


def picture_of(array: NDArray[np.uint8]) -> Image.Image:
    """An image of any channels as people see it."""
    return Image.fromarray(np.ascontiguousarray(as_shown(array)))
