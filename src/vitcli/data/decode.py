"""Bytes of an image file to pixels of a stated size, RGB unless other channels are asked for. Every mode has one defined conversion.

| mode of the file                 | conversion                                                             |
|----------------------------------|------------------------------------------------------------------------|
| RGB                              | as it is; of 16 bits a colour the high byte                            |
| L, 1, P without transparency     | to RGB, gray repeated                                                  |
| LA, La, PA, RGBA, RGBa, P with alpha | laid on white                                                      |
| a colour key (tRNS) of any mode  | pixels of that colour are white; of 16 bits a colour by the high bytes |
| I;16 in any byte order, and I of PNG, PGM and JPEG 2000 | declared to be 16 bits: divided by 257, rounded (Pillow alone would cut at 255) |
| I;16 of a TIFF of 12 bits        | 0..4095 to 0..255                                                      |
| I, F otherwise                   | gray with white at the smallest of 1, 255, 4095 and 65535 that holds every pixel; floats may be a fiftieth above, and are cut |
| TIFF gray in which white is zero | inverted                                                               |
| CMYK                             | Pillow's conversion; of JPEGs inverted first, as Adobe writes them     |
| YCbCr, LAB, HSV                  | Pillow's conversion                                                    |
| any, with an EXIF orientation    | turned upright first; EXIF that cannot be read says nothing            |

In I and F a negative pixel, one above 65535, a NaN or an infinity is an error: nothing says which of them is white.
Animations give their first frame. A truncated file is an error, never gray pixels. Pixels lie as planes,
`[channels, height, width]`, as a model takes them.

For one channel, what is RGB by this table becomes gray by Pillow's weights (L); for two and four, gray or RGB with alpha (LA, RGBA), in
the file's own colours, opaque where it has none. Any number of channels comes from arrays (arrays.py). Where there are not three, each
channel is resized by itself, so that alpha weighs no colour.

Which plugin of Pillow a file may reach is an allow-list, looked up by its first bytes: no file starts another program
(Ghostscript), opens another file, or unpacks an image inside of it before its size is known (ICO, ICNS, PDF).
"""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitcli.config import EvalConfig, Size
from vitcli.config_values import RGB
from vitcli.data.arrays import array_size, is_array, picture_of, read_array
from vitcli.data.colour import MODES, BadImage, StoredImage, orientation, to_mode

VERSION = 4
"""Raised whenever a conversion changes, so that older decode caches are not used."""

Image.MAX_IMAGE_PIXELS = None  # data.max_megapixels is the limit, and is checked before any pixel is decoded

FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "DDS", "QOI", "PCX", "SGI", "SUN",
    "PSD", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read: those that hold one picture's pixels and nothing that acts. MPO, several
JPEGs in a file, is opened as JPEG. TGA comes last, since it has no first bytes of its own."""

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".dds",
    ".qoi", ".pcx", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".psd", ".tga", ".icb", ".vda", ".vst",
)  # fmt: skip
"""Every ending that Pillow registers for `FORMATS`, in lower case."""

_LARGEST_RESIZE = 16_000_000
"""Pixels above which only the part of an image that the frame shows is resized: a strip of 20,000 x 1 would need gigabytes."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


_STARTS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WEBP"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"DDS ", "DDS"), (b"qoif", "QOI"), (b"\x59\xa6\x6a\x95", "SUN"), (b"8BPS", "PSD"),
)  # fmt: skip
"""Formats by the first bytes of a file. Asking for one saves Pillow trying all, half the time of a small image."""

_FOREIGN = (
    (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"%PDF", "a PDF"), (b"\0\0\1\0", "an icon (ICO)"),
    (b"icns", "an icon (ICNS)"), (b"\xd7\xcd\xc6\x9a", "WMF"), (b"SIMPLE", "FITS"), (b"\x89HDF", "HDF5"),
    (b"<svg", "SVG"), (b"<?xml", "XML or SVG"), (b"<!DOCTYPE", "an HTML page"), (b"<html", "an HTML page"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull brings the file)"), (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)  # fmt: skip
"""What is known by its first bytes not to be read, so that the reason can name it."""

_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

_DRAFT_MARGIN = 1.25
"""A JPEG may be decoded at a half, quarter or eighth of its size where that is still so many times the working size.

At 2,000 px, to 256 x 256, this takes 7 ms where the whole takes 30 ms, and differs from it by a PSNR of 48 dB (a
bilinear in place of the bicubic resize: 42 dB); a margin of 1.5 takes 11 ms (54 dB).
"""


_LARGEST_FILE = 2**30
"""Bytes of an image file at most, half as much again as 89 megapixels of 64 bits take: what claims more is no image (the
system's own memory, as a file)."""


def open_file(path: str, most: int = _LARGEST_FILE) -> IO[bytes]:
    """A file of at most so many bytes, to be read. Raises OSError, also for what is none: a pipe would be waited for, a
    device may never end.
    """
    found = os.stat(path)  # noqa: PTH116 (a Path a file costs as much as the call)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", path)
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, over {most:,}", path)
    return open(path, "rb", opener=_at_once)


def read_file(path: str, most: int = _LARGEST_FILE) -> bytes:
    """The bytes of a file, as `open_file` opens it. Of what says that it is empty, and may go on without end, a megabyte."""
    with open_file(path, most) as file:
        is_empty = os.fstat(file.fileno()).st_size == 0
        return file.read(2**20 if is_empty else -1) or b""


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


_MOST_PIECES, _MOST_STRIPS, _MOST_SCANS = 5_000_000, 500_000, 100
_MOST_SCANNED_MEGAPIXELS = 2000
_LARGEST_TEXT = 2**25
"""What makes a small file take minutes or gigabytes: pieces that Pillow reads one by one, strips or tiles of a TIFF, scans of
a JPEG (libtiff's limit for those within TIFF) and the pixels that they draw together, and pixels written as text."""


class _Pieces(io.BytesIO):
    """The bytes of a file, read in so many pieces at most. Raises BadImage at the next."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.count += 1
        if self.count > _MOST_PIECES:
            raise BadImage(f"more than {_MOST_PIECES:,} pieces")
        return super().read(size)


@dataclass(frozen=True)
class View:
    """How a decoded image becomes `size`: squashed to it, or resized to cover size / crop and cut at the centre."""

    size: Size
    mode: Literal["short", "square"] = "square"
    crop: float = 1.0
    interpolation: str = "bicubic"
    draft: bool = False  # large JPEGs may be decoded at a smaller scale; never for measuring
    channels: int = field(default=RGB, repr=False)  # caches of three are called as they always were

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image's pixels."""
        return (self.channels, *self.size)


def eval_view(size: Size, config: EvalConfig) -> View:
    return View(size, config.resize, config.crop, config.interpolation, channels=len(config.mean))


def open_image(file: bytes | IO[bytes]) -> Image.Image:
    """`file`, not yet loaded, by the plugin that its first bytes ask for. Raises BadImage, or what Pillow raises."""
    stream = _Pieces(file) if isinstance(file, bytes) else file
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(32)
    foreign = next((kind for first, kind in _FOREIGN if start.lstrip().startswith(first)), None)
    if foreign is not None:
        raise BadImage(f"not a picture that is read: {foreign}")
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _HEIF and b"avi" not in start
    if is_heif:
        raise BadImage("HEIC, which Pillow does not read: convert it to JPEG or PNG")
    known = next((name for first, name in _STARTS if start.startswith(first)), None)
    if start[4:8] == b"ftyp":
        return _open_avif(stream)
    if start[:2] in (b"P1", b"P2", b"P3") and length > _LARGEST_TEXT:
        raise BadImage(f"{length:,} bytes of pixels written as text, over {_LARGEST_TEXT:,}: convert it to PNG")
    if known == "TIFF" and (strips := _strips(stream)) > _MOST_STRIPS:
        raise BadImage(f"{strips:,} strips or tiles, over {_MOST_STRIPS:,}")
    return Image.open(stream, formats=[known] if known else _here())


@functools.cache
def _here() -> list[str]:
    """Those of `FORMATS` that this version of Pillow has; Image.open fails on a name that it does not know."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open_avif(stream: IO[bytes]) -> Image.Image:
    """An AVIF file, without its EXIF where that cannot be read; the decoder refuses the whole image otherwise."""
    try:
        return Image.open(stream, formats=["AVIF"])
    except Exception:
        stream.seek(0)
        blob = stream.read()
        without = re.sub(rb"(infe\x02.{7}|infe\x03.{9})Exif", rb"\1skip", blob, flags=re.DOTALL)  # the type of the item
        if without == blob:
            raise
        return Image.open(io.BytesIO(without), formats=["AVIF"])


def _strips(stream: IO[bytes]) -> int:
    """How many strips or tiles the first page of a TIFF says it has (TIFF 6.0, section 2); 0 where it does not say."""
    stream.seek(0)
    start = stream.read(16)
    order: Literal["little", "big"] = "little" if start[:2] == b"II" else "big"
    big = 43 in start[2:4]
    place, entry, head, number = (8, 20, 8, 8) if big else (4, 12, 2, 4)
    stream.seek(int.from_bytes(start[place : place + number], order))
    entries = stream.read(min(int.from_bytes(stream.read(head), order), 2**16) * entry)
    stream.seek(0)
    counts = [
        int.from_bytes(entries[i + 4 : i + 4 + number], order)
        for i in range(0, len(entries), entry)
        if int.from_bytes(entries[i : i + 2], order) in (273, 324)
    ]
    return max(counts, default=0)


def upright_size(image: Image.Image, turn: int | None = None) -> Size:
    """(height, width) once turned upright, of an image that is open but not loaded; from orientation 5 on they change
    places. `turn` is its orientation, where that is known.
    """
    turned = (turn or orientation(image)) >= 5 and image.format != "TIFF"  # Pillow has turned a TIFF's size already
    return (image.width, image.height) if turned else (image.height, image.width)


def native_size(blob: bytes) -> Size:
    """(height, width) of the upright image in `blob`, by its header. Raises BadImage, or what Pillow raises."""
    return array_size(blob) if is_array(blob) else upright_size(open_image(blob))


def open_rgb(blob: bytes, max_megapixels: float, draft: Size | None = None) -> tuple[Image.Image, Size]:
    """The image in `blob`, upright, in RGB, and its size, as people see it. Raises BadImage with the reason.

    With `draft` a JPEG may come smaller than it is, but no smaller than that.
    """
    if is_array(blob):
        array = read_array(blob, max_megapixels)
        return picture_of(array), (array.shape[0], array.shape[1])
    return _open(blob, max_megapixels, draft, "RGB")


def _open(blob: bytes, max_megapixels: float, draft: Size | None, mode: str) -> tuple[Image.Image, Size]:
    """The same in one of colour.MODES."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(blob)
            megapixels = image.width * image.height / 1e6
            if megapixels > max_megapixels:
                raise BadImage(
                    f"{image.width} x {image.height} pixels are {megapixels:.0f} megapixels, "
                    f"over the limit of {max_megapixels:g} (data.max_megapixels)"
                )
            stored, size = StoredImage.of(image), None
            if image.format in ("JPEG", "MPO"):
                scans = blob.count(b"\xff\xda")
                if scans > _MOST_SCANS or scans * megapixels > max(_MOST_SCANNED_MEGAPIXELS, 2 * megapixels):
                    raise BadImage(f"a JPEG of {scans:,} scans")
            if image.format == "JPEG":
                size = upright_size(image)
                if draft is not None:
                    turned = size != (image.height, image.width)
                    image.draft(None, (draft[0], draft[1]) if turned else (draft[1], draft[0]))
            image.load()  # which turns a TIFF upright, and finds the EXIF that stands behind a PNG's pixels
            turn = 1 if image.format == "TIFF" else orientation(image)
            return to_mode(image, turn, stored, mode), (size if size else upright_size(image, turn))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"decompression bomb: {error}") from None
    except MemoryError:
        raise BadImage("too large for memory") from None
    except Exception as error:  # Pillow raises many types on broken files
        reason = "not an image of a format that is read" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = reason.split("<_io")[0].strip() or type(error).__name__
        raise BadImage(reason.splitlines()[0]) from None


def render(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """`[3, height, width]` pixels of `view.size`, resized in one step by Pillow, antialiased."""
    return np.ascontiguousarray(np.asarray(_resized(image, view)).transpose(2, 0, 1))


def render_bands(bands: Sequence[Image.Image], view: View) -> NDArray[np.uint8]:
    """The same of channels one by one."""
    return np.stack([np.asarray(_resized(band, view)) for band in bands])


def _frame(native: Size, view: View) -> tuple[Size, Size]:
    """The rows and columns that an image is resized to, and the top and left of the frame that is cut out of them."""
    height, width = view.size
    rows, columns = int(height / view.crop), int(width / view.crop)  # as timm data/transforms_factory.py rounds
    if view.mode == "short" and rows != columns:  # the smaller scale that covers the frame, timm's ResizeKeepRatio
        ratio = min(native[0] / rows, native[1] / columns)
        rows, columns = max(rows, round(native[0] / ratio)), max(columns, round(native[1] / ratio))
    elif view.mode == "short":  # torchvision's Resize(int)
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
    try:
        if view.channels == RGB and not is_array(blob):
            image, size = _open(blob, max_megapixels, draft, "RGB")
            return render(image, view), size
        bands, size = _bands(blob, max_megapixels, draft, view.channels)
        return render_bands(bands, view), size
    except (MemoryError, ValueError, OSError) as error:
        raise BadImage(str(error) or type(error).__name__) from None


def _bands(blob: bytes, max_megapixels: float, draft: Size | None, channels: int) -> tuple[Sequence[Image.Image], Size]:
    """The channels of an image one by one, and its size. Raises BadImage where it has others than the model takes."""
    if is_array(blob):
        array = read_array(blob, max_megapixels)
        if array.shape[2] != channels:
            raise BadImage(f"an array of {array.shape[2]} channels, and the model takes {channels} (model.channels)")
        return [Image.fromarray(np.ascontiguousarray(band)) for band in array.transpose(2, 0, 1)], array.shape[:2]
    if channels not in MODES:
        raise BadImage(
            f"a picture of at most {max(MODES)} channels, and the model takes {channels} (model.channels): arrays (.npy) of "
            f"[height, width, {channels}] hold so many"
        )
    image, size = _open(blob, max_megapixels, draft, MODES[channels])
    return image.split(), size
