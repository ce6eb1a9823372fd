"""Images for what needs pixels and no labels: files that are named one by one, and photographs that a dependency ships."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vitcli.config_values import RGB
from vitcli.data.colour import MODES
from vitcli.data.decode import View, open_rgb, render, render_bands
from vitcli.data.identity import Contents
from vitcli.data.split import Split, as_text
from vitcli.errors import DataError

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
"""scikit-learn's two sample photographs (CC BY), 640 x 427 pixels."""
PIECES = 5 * len(PHOTOGRAPHS)


def sample_photographs(view: View) -> UInt8[np.ndarray, "images channels height width"]:
    """Each photograph whole and in quarters, as `view` frames them. Of one channel they are gray; of others, those after the first
    three are the same colours upside down.
    """
    return np.stack([_seen(piece, view) for piece in _pieces()])


def _seen(piece: Image.Image, view: View) -> UInt8[np.ndarray, "channels height width"]:
    if view.channels == RGB:
        return render(piece, view)
    return render_bands(_bands(piece, view.channels), view)


def _bands(piece: Image.Image, channels: int) -> list[Image.Image]:
    if channels == 1:
        return [piece.convert("L")]
    colours = piece.split()
    return [colours[c % RGB] if c < RGB else ImageOps.flip(colours[c % RGB]) for c in range(channels)]


def _pieces() -> list[Image.Image]:
    pieces = []
    for name in PHOTOGRAPHS:
        blob = resources.files("sklearn.datasets.images").joinpath(name).read_bytes()
        image, _ = open_rgb(blob, max_megapixels=1.0)
        across, down = image.width // 2, image.height // 2
        pieces.append(image)
        pieces += [image.crop((x, y, x + across, y + down)) for y in (0, down) for x in (0, across)]
    return pieces


def sample_split(channels: int = RGB) -> Split:
    """The sample photographs as unlabelled data, as arrays for a model of channels that pictures do not have."""

    def encoded(piece: Image.Image) -> bytes:
        stream = io.BytesIO()
        if channels not in MODES:
            np.save(stream, np.stack([np.asarray(band) for band in _bands(piece, channels)], axis=-1))
            return stream.getvalue()
        piece.save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    return _split("sample photographs", [{"bytes": encoded(piece), "path": ""} for piece in _pieces()])


def files_split(paths: Sequence[str]) -> Split:
    """Image files in the order named, as unlabelled data. Raises DataError for one that is not there."""
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"no image {path!r}", "name image files, or a folder of them")
    return _split("files", [{"bytes": None, "path": as_text(str(Path(path).absolute()))} for path in paths])


def _split(name: str, items: list[dict[str, Any]]) -> Split:
    import datasets

    table = datasets.Dataset.from_dict({"image": items})
    return Split(name, table, "image", np.arange(len(items)), None, Contents(rows=len(items)))
