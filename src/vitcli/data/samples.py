"""Real photographs that a dependency ships, for what needs pixels and no labels."""

from __future__ import annotations

from importlib import resources

import numpy as np
from jaxtyping import UInt8

from vitcli.data.decode import View, open_rgb, render

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
"""scikit-learn's two sample photographs (CC BY), 640 x 427 pixels."""
PIECES = 5 * len(PHOTOGRAPHS)


def sample_photographs(view: View) -> UInt8[np.ndarray, "images 3 height width"]:
    """Each photograph whole and in quarters, as `view` frames them."""
    pieces = []
    for name in PHOTOGRAPHS:
        blob = resources.files("sklearn.datasets.images").joinpath(name).read_bytes()
        image, _ = open_rgb(blob, max_megapixels=1.0)
        across, down = image.width // 2, image.height // 2
        pieces.append(image)
        pieces += [image.crop((x, y, x + across, y + down)) for y in (0, down) for x in (0, across)]
    return np.stack([render(piece, view) for piece in pieces])
