"""Upright, and from the modes in which images are stored to red, green and blue, to gray, or to either with alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class StoredImage:
    """What a file says about its pixels that Pillow forgets when it loads them."""

    form: str
    raw: str = ""  # how a pixel lies in the file, in Pillow's words: L;2, RGB;16B, I;12
    white_is_zero: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> StoredImage:
        tiles = getattr(image, "tile", None)
        tile = tiles[0] if tiles else None
        arguments: Any = tile[3] if tile is not None else ""
        raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        tags = getattr(image, "tag_v2", {})
        return cls(image.format or "", raw if isinstance(raw, str) else "", bool(tags) and tags.get(262) == 0)


MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's modes, by their channels."""


def to_mode(image: Image.Image, turn: int, stored: StoredImage, mode: str) -> Image.Image:
    """A loaded image turned upright from the orientation `turn`, and in one of `MODES` by the table of decode.py. Raises BadImage.

    Without alpha, what is transparent is white; with it, colours are as they are in the file, and what has no alpha is opaque.
    """
    key = image.info.get("transparency")
    if turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[turn])
    with_alpha = mode.endswith("A")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _in(_gray(image, stored, key, with_alpha), mode)
    if image.mode in ("1", "L", "RGB"):
        return _in(_keyed(image, stored, key, with_alpha), mode)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data and not with_alpha:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return _in(image.convert("RGBA" if with_alpha else "RGB"), mode)


def _in(image: Image.Image, mode: str) -> Image.Image:
    """Without the copy that Pillow makes of an image that has the mode."""
    return image if image.mode == mode else image.convert(mode)


_LEVELS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies gray of fewer than eight bits by; the colour key stays as it is in the file."""


def _keyed(image: Image.Image, stored: StoredImage, key: Any, with_alpha: bool) -> Image.Image:
    """1, L or RGB in RGB, white where it has the colour `key`; in RGBA transparent there."""
    colour = image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(key, int) and image.mode != "RGB":
        scale = _LEVELS.get(stored.raw, 1)
        key = (key * scale,) * 3 if image.mode == "1" else (key % (255 // scale + 1) * scale,) * 3
    if not (isinstance(key, tuple) and len(key) == 3):
        return colour
    key = [part >> 8 if stored.raw.startswith("RGB;16") else part & 255 for part in key]
    pixels = np.array(colour)
    return _without(pixels, (pixels == np.array(key, np.uint8)).all(-1), with_alpha)


def _without(pixels: NDArray[np.uint8], clear: NDArray[np.bool_], with_alpha: bool) -> Image.Image:
    """The pixels with what is clear in white, or transparent."""
    if with_alpha:
        image = Image.fromarray(pixels).convert("RGB")
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        return image
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _gray(image: Image.Image, stored: StoredImage, key: Any, with_alpha: bool) -> Image.Image:
    """Gray of more than eight bits in eight, without the colour `key`. Raises BadImage where nothing says what is white."""
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("pixels that are NaN or infinite: gray in floating point is read where all are numbers")
    low, high = values.min(), values.max()
    declared = image.mode.startswith("I;16") or (stored.form in ("PNG", "PPM", "JPEG2000") and image.mode == "I")
    if low < 0 or high > 65535:
        raise BadImage(
            f"pixels of {low:g} to {high:g}: gray is read where all lie within 0..1, 0..255, 0..4095 or 0..65535"
        )
    if declared:
        white = 4095.0 if stored.raw.startswith("I;12") else 65535.0
    else:
        above = 1.02 if values.dtype.kind == "f" else 1.0  # what a bicubic resize leaves, 1.004 or 255.3
        white = next(w for w in (1.0, 255.0, 4095.0, 65535.0) if high <= above * w)
    gray = values.astype(np.float32)  # holds every integer below 2²⁴, and divides by 257 to the right side of a half
    gray = np.minimum(np.rint(gray / 257 if white == 65535 else gray * np.float32(255 / white)), 255)
    if stored.white_is_zero:
        gray = 255 - gray
    shown = gray.astype(np.uint8)
    return _without(shown, values == key, with_alpha) if isinstance(key, int) else Image.fromarray(shown)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that cannot be read, and why."""


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where the tag says anything else or cannot be read."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # of many types: the bytes are a stranger's, and no pixel depends on them
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
