"""Bytes of an image file to RGB pixels of a stated size. Every mode has one defined conversion.

| mode of the file                 | conversion                                                             |
|----------------------------------|------------------------------------------------------------------------|
| RGB                              | as it is                                                               |
| L, 1, P without transparency     | to RGB, gray repeated                                                  |
| LA, PA, RGBA, P with transparency| laid on white                                                          |
| I;16, I, F (16 bits or more)     | divided by 257, rounded: 0..65535 to 0..255 (Pillow alone would cut at 255) |
| CMYK, YCbCr, LAB, HSV            | Pillow's conversion                                                    |
| any, with an EXIF orientation    | turned upright first                                                   |

Animations give their first frame. A truncated file is an error, never gray pixels. Pixels lie as planes,
`[3, height, width]`, as a model takes them.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcli.config import EvalConfig, Size

VERSION = 2
"""Raised whenever a conversion changes, so that older decode caches are not used."""

Image.MAX_IMAGE_PIXELS = None  # data.max_megapixels is the limit, and is checked before any pixel is decoded

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGEST_RESIZE = 16_000_000
"""Pixels above which only the part of an image that the frame shows is resized: a strip of 20,000 x 1 would need gigabytes."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


_FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF", b"BM": "BMP"}
"""By the first bytes of a file. Asking for a format saves Pillow trying all, half the time of a small image."""

_DRAFT_MARGIN = 1.25
"""A JPEG may be decoded at a half, quarter or eighth of its size where that is still so many times the working size.

At 2,000 px, to 256 x 256, this takes 7 ms where the whole takes 30 ms, and differs from it by a PSNR of 48 dB (a
bilinear in place of the bicubic resize: 42 dB); a margin of 1.5 takes 11 ms (54 dB).
"""


class BadImage(Exception):
    """An image that cannot be read, and why."""


@dataclass(frozen=True)
class View:
    """How a decoded image becomes `size`: squashed to it, or resized to cover size / crop and cut at the centre."""

    size: Size
    mode: Literal["short", "square"] = "square"
    crop: float = 1.0
    interpolation: str = "bicubic"
    draft: bool = False  # large JPEGs may be decoded at a smaller scale; never for measuring


def eval_view(size: Size, config: EvalConfig) -> View:
    return View(size, config.resize, config.crop, config.interpolation)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where the tag says anything else."""
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_size(image: Image.Image) -> Size:
    """(height, width) once turned upright, of an image that is open but not loaded; from orientation 5 on they change places."""
    turned = orientation(image) >= 5 and image.format != "TIFF"  # Pillow has turned a TIFF's size already
    return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` upright and in RGB by the table above."""
    turn = _UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float64)
        gray = np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def open_rgb(blob: bytes, max_megapixels: float, draft: Size | None = None) -> tuple[Image.Image, Size]:
    """The image in `blob`, upright, in RGB, and its size. Raises BadImage with the reason.

    With `draft` a JPEG may come smaller than it is, but no smaller than that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(blob), formats=_likely_formats(blob))
            megapixels = image.width * image.height / 1e6
            if megapixels > max_megapixels:
                raise BadImage(
                    f"{image.width} x {image.height} pixels are {megapixels:.0f} megapixels, "
                    f"over the limit of {max_megapixels:g} (data.max_megapixels)"
                )
            size = upright_size(image)
            if draft is not None and image.format == "JPEG":
                turned = size != (image.height, image.width)
                image.draft(None, (draft[0], draft[1]) if turned else (draft[1], draft[0]))
            image.load()
            return to_rgb(image), size
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"decompression bomb: {error}") from None
    except MemoryError:
        raise BadImage("too large for memory") from None
    except Exception as error:  # Pillow raises many types on broken files
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        raise BadImage(reason.splitlines()[0]) from None


def _likely_formats(blob: bytes) -> list[str] | None:
    """The format that the first bytes say; None, for any, where they say nothing."""
    return next(([name] for start, name in _FORMATS.items() if blob.startswith(start)), None)


def render(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """`[3, height, width]` pixels of `view.size`, resized in one step by Pillow, antialiased."""
    return np.ascontiguousarray(np.asarray(_resized(image, view)).transpose(2, 0, 1))


def _frame(native: Size, view: View) -> tuple[Size, Size]:
    """The rows and columns that an image is resized to, and the top and left of the frame that is cut out of them."""
    height, width = view.size
    if view.mode == "square":
        rows, columns = round(height / view.crop), round(width / view.crop)
    else:  # the smaller scale that covers the frame; for squares, torchvision's Resize(int)
        rows, columns = int(height / view.crop), int(width / view.crop)
        if rows * native[1] >= columns * native[0]:
            columns = max(columns, int(native[1] * rows / native[0]))
        else:
            rows = max(rows, int(native[0] * columns / native[1]))
    return (rows, columns), (round((rows - height) / 2), round((columns - width) / 2))


def seen_part(native: Size, view: View) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels of an upright image of the size `native`, of what `view` shows of it."""
    (rows, columns), (top, left) = _frame(native, view)
    down, across = native[0] / rows, native[1] / columns
    return left * across, top * down, (left + view.size[1]) * across, (top + view.size[0]) * down


def _resized(image: Image.Image, view: View) -> Image.Image:
    height, width = view.size
    if (image.height, image.width) == view.size and view.crop == 1:
        return image
    method = _FILTERS[view.interpolation]
    (rows, columns), (top, left) = _frame((image.height, image.width), view)
    if rows * columns > max(_LARGEST_RESIZE, 4 * height * width):
        across, down = image.width / columns, image.height / rows
        box = (
            left * across,
            top * down,
            min(image.width, (left + width) * across),
            min(image.height, (top + height) * down),
        )
        return image.resize((width, height), method, box=box)
    if (image.height, image.width) != (rows, columns):
        image = image.resize((columns, rows), method)
    if (rows, columns) != view.size:
        image = image.crop((left, top, left + width, top + height))
    return image


def decode(blob: bytes, view: View, max_megapixels: float) -> tuple[NDArray[np.uint8], Size]:
    """Pixels of `view` and the size of the upright original. Raises BadImage."""
    draft = (math.ceil(view.size[0] * _DRAFT_MARGIN), math.ceil(view.size[1] * _DRAFT_MARGIN)) if view.draft else None
    image, size = open_rgb(blob, max_megapixels, draft)
    try:
        return render(image, view), size
    except (MemoryError, ValueError, OSError) as error:
        raise BadImage(str(error) or type(error).__name__) from None
