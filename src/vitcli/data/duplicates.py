"""Images that are the same: byte for byte, or the same picture encoded anew, resized, squashed or mirrored.

A picture is looked at as 32 x 32 pixels. Two are near duplicates, one of them mirrored or not, where their coarse forms (16 x 16, without
brightness and contrast, colours counting half) have a correlation of `COARSE`, and the brightness between 3 and 9 pixels of the 32, which
unlike pictures do not share, one of `FINE`; and where that stands out from what else is like either of them, since of digits or
icons many are alike. What was measured stands in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image

from vitcli.progress import Progress, silent

SIDE = 32
COARSE, FINE = 0.9, 0.8
RATIO, SAME, _UNLIKE = 0.4, 0.998, 0.5
_SMOOTH_BELOW, _LEVELS = 0.5, 20.0
"""Levels of brightness of 255: what is finer than 9 pixels in a smooth picture, and the difference of two that is no likeness."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_OPPONENT = np.stack([_LUMA, np.array([0.5, -0.25, -0.25]) / 2, np.array([-0.25, -0.25, 0.5]) / 2], 1).astype(
    np.float32
)
_ROWS = 1024
_SAMPLE, _AXES = 4096, 127
_MOST_NEAR = 256
"""Candidates of an image that are looked at closely: of a thousand frames of one still picture each has as many."""

Thumbs = Int[np.ndarray, "images 32 32 3"]
Pairs = Int[np.ndarray, "pairs 2"]


def thumb_of(image: Image.Image) -> NDArray[np.uint8]:
    """An image in RGB as SIDE x SIDE pixels, whatever its shape."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def near_pairs(thumbs: Thumbs, progress: Progress = silent) -> Pairs:
    """The pairs of near duplicates, the first before the second, in order. Memory is 5 kB an image.

    Coarse forms are compared by 127 principal axes and the length of what these leave out, which gives no less than their
    correlation, so none is missed.
    """
    if len(thumbs) < 2:
        return np.zeros((0, 2), np.int64)
    axes = _axes(thumbs)
    plain, mirrored = _placed(thumbs, axes, False), _placed(thumbs, axes, True)
    found, likeness = [], []
    for start in range(0, len(thumbs), _ROWS):
        rows = slice(start, start + _ROWS)
        for own in (plain, mirrored):
            candidates = _candidates(own[rows] @ plain[start:].T, start)
            found.append(candidates)
            likeness.append(_likeness(thumbs, candidates, own is mirrored))
        progress("comparing", min(start + _ROWS, len(thumbs)), len(thumbs))
    pairs, places = np.unique(np.concatenate(found), axis=0, return_inverse=True)
    distance = np.full(len(pairs), 2.0, np.float32)
    np.minimum.at(distance, places.ravel(), 1 - np.concatenate(likeness))  # plain or mirrored
    own = _own(pairs, distance, len(thumbs))
    return pairs[(distance <= 1 - FINE) & ((distance <= own[pairs].min(1)) | (distance <= 1 - SAME))]


def _own(pairs: Pairs, distance: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """For each image the distance up to which others are copies of it, and not only like it as many are: the last one behind which the next
    is more than 1 / RATIO times as far.
    """
    image, far = pairs.T.ravel(), np.tile(distance, 2)
    order = np.lexsort((far, image))
    image, far = image[order], far[order]
    is_last = np.append(image[1:] != image[:-1], True) if len(image) else np.zeros(0, bool)
    # an image with fewer candidates than are looked at has nothing else that is near
    beyond = np.where(np.bincount(image, minlength=count) < _MOST_NEAR, _UNLIKE, 0.0)
    behind = np.where(is_last, beyond[image], np.append(far[1:], 0.0))
    parted = far <= RATIO * np.minimum(behind, _UNLIKE)
    own = np.zeros(count, np.float32)
    np.maximum.at(own, image[parted], far[parted])
    return own


def _candidates(likeness: Float[np.ndarray, "rows others"], start: int) -> Pairs:
    """Pairs above the threshold, each once; of a row with too many the nearest."""
    above = likeness >= COARSE
    above &= np.arange(likeness.shape[1]) > np.arange(len(likeness))[:, None]
    crowded = np.flatnonzero(above.sum(1) > _MOST_NEAR)
    for row in crowded:
        scores = np.where(above[row], likeness[row], -1)
        above[row] = False
        above[row, np.argpartition(-scores, _MOST_NEAR)[:_MOST_NEAR]] = True
    first, second = np.nonzero(above)
    return np.stack([first, second], 1) + start


def _unit(values: Float[np.ndarray, "images numbers"]) -> Float[np.ndarray, "images numbers"]:
    """Of length one; an image of one colour stays at zero, since it is like no other."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 4, length, np.inf)


def _coarse(thumbs: Thumbs, mirrored: bool) -> Float[np.ndarray, "images numbers"]:
    """Brightness and, counting half, two differences of colour at half the resolution."""
    thumbs = thumbs[:, :, ::-1] if mirrored else thumbs
    half = SIDE // 2
    blocks = thumbs.reshape(len(thumbs), half, 2, half, 2, 3).mean((2, 4), dtype=np.float32) @ _OPPONENT
    # how bright an image is does not count, its colour does
    blocks[..., 0] -= blocks[..., 0].mean((1, 2), keepdims=True)
    return _unit(blocks.reshape(len(thumbs), -1))


def _axes(thumbs: Thumbs) -> Float[np.ndarray, "numbers axes"]:
    sample = thumbs[np.unique(np.linspace(0, len(thumbs) - 1, _SAMPLE).astype(np.int64))]
    both = np.concatenate([_coarse(sample, False), _coarse(sample, True)])
    return np.linalg.eigh(both.T @ both)[1][:, -_AXES:]


def _placed(thumbs: Thumbs, axes: Float[np.ndarray, "numbers axes"], mirrored: bool) -> Float[np.ndarray, "images 128"]:
    """Coordinates of coarse forms on the axes, and the length of the rest."""
    placed = np.empty((len(thumbs), axes.shape[1] + 1), np.float32)
    for start in range(0, len(thumbs), _ROWS):
        rows = slice(start, start + _ROWS)
        whole = _coarse(thumbs[rows], mirrored)
        placed[rows, :-1] = whole @ axes
        placed[rows, -1] = np.sqrt((np.square(whole).sum(1) - np.square(placed[rows, :-1]).sum(1)).clip(0))
    return placed


def _box(width: int) -> Float[np.ndarray, "32 32"]:
    """A mean over `width` pixels, the edge reflected, as a matrix."""
    matrix = np.zeros((SIDE, SIDE), np.float32)
    for row in range(SIDE):
        for offset in range(-(width // 2), width // 2 + 1):
            place = abs(row + offset)
            matrix[row, place if place < SIDE else 2 * SIDE - 2 - place] += 1 / width
    return matrix


_SMOOTH, _BROAD = _box(3), _box(9)


def _fine(thumbs: Thumbs) -> tuple[Float[np.ndarray, "images numbers"], NDArray[np.bool_]]:
    """What lies between a mean over 3 and one over 9 pixels of the brightness, of colours JPEG keeps half the resolution; and of which
    images that is next to nothing.
    """
    values = thumbs.astype(np.float32) @ _LUMA
    smooth = _SMOOTH @ values @ _SMOOTH.T
    band = (smooth - _BROAD @ smooth @ _BROAD.T)[:, 4:-4, 4:-4].reshape(len(thumbs), -1)  # at the edge a slope has some
    return _unit(band), np.abs(band).mean(1) < _SMOOTH_BELOW


def _likeness(thumbs: Thumbs, pairs: Pairs, mirrored: bool) -> NDArray[np.float32]:
    """The fine correlation of each pair, -1 where the coarse one is too small. Smooth pictures, such as gradients, have nothing fine, and are
    alike where their pixels are.
    """
    result = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), _ROWS):
        first, second = thumbs[pairs[start : start + _ROWS, 0]], thumbs[pairs[start : start + _ROWS, 1]]
        first = first[:, :, ::-1] if mirrored else first
        coarse = (_coarse(first, False) * _coarse(second, False)).sum(1)
        (one, is_smooth), (other, too) = _fine(first), _fine(second)
        apart = np.abs(first.astype(np.float32) - second).mean((1, 2, 3))
        fine = np.where(is_smooth | too, np.where(is_smooth & too, 1 - apart / _LEVELS, -1), (one * other).sum(1))
        result[start : start + _ROWS] = np.where(coarse >= COARSE, fine, -1)
    return result


def groups_of(pairs: Sequence[tuple[int, int]] | Pairs, count: int) -> Iterator[list[int]]:
    """What pairs join, directly or through others, in order of the first; each group in order."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in np.asarray(pairs).tolist():
        one, other = root(first), root(second)
        parent[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for item in {int(i) for pair in np.asarray(pairs).tolist() for i in pair}:
        members.setdefault(root(item), []).append(item)
    yield from (sorted(members[key]) for key in sorted(members))


def equal_groups(digests: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Positions of the same digest, in order; 0 is no image's."""
    order = np.argsort(digests, kind="stable")
    edges = np.flatnonzero(np.diff(digests[order])) + 1
    found = [part.tolist() for part in np.split(order, edges) if len(part) > 1 and digests[part[0]]]
    yield from sorted(found)
