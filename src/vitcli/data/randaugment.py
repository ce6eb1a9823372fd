"""RandAugment on whole batches (Cubuk et al., 2020), an operation drawn for each image."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitcli import host
from vitcli.data.batch import Images, Uniforms

MAX_LEVEL = 10

GRAY = 128.0

Operation = Callable[[Tensor, float, Tensor], Tensor]
Matrices = Float[Tensor, "batch 2 3"]


def randaugment_layer(images: Images, magnitude: float, u: Uniforms) -> Images:
    """One operation for each image, always applied, in the form of big_vision archive/autoaugment.py.

    `images` hold whole numbers 0..255. `u` is `[batch, 4]`: the operation, the sign, a position. Shifts and
    the cut-out's size are in pixels of a 224-pixel image and scale with the side.
    """
    choice = (u[:, 0] * len(OPERATIONS)).long().clamp(max=len(OPERATIONS) - 1)
    if not host.can_read(images):
        return _all_at_once(images, magnitude, choice, u[:, 1:].float())
    order = torch.argsort(choice, stable=True)  # an operation's images lie together, so that it works in place
    numbers = u[order, 1:].float()
    sorted_ = rows_of(images, order)
    ends = np.searchsorted(choice[order].numpy(), np.arange(len(OPERATIONS)), side="right")
    for operation, start, end in zip(OPERATIONS, (0, *ends[:-1]), ends, strict=True):
        if end > start:
            sorted_[start:end] = operation(sorted_[start:end], magnitude, numbers[start:end])
    return rows_of(sorted_, torch.argsort(order))


def _all_at_once(
    images: Images, magnitude: float, choice: Int[Tensor, " batch"], u: Float[Tensor, "batch 3"]
) -> Images:
    """The same without asking which image drew what: each kind of operation for all images, with numbers at which it changes
    nothing for those that drew another.
    """

    def drew(*names: Operation) -> Bool[Tensor, "batch 1 1 1"]:
        hit = [choice == OPERATIONS.index(name) for name in names]
        return torch.stack(hit).any(0).view(-1, 1, 1, 1)

    # what a value becomes by itself: a table for each image and channel
    levels = torch.arange(256.0, device=images.device).expand(len(images), 3, 1, 256)
    table = levels
    for operation in (invert, posterize, solarize, brightness, solarize_add):
        table = torch.where(drew(operation), operation(levels, magnitude, u), table)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    table = torch.where(drew(autocontrast), _between(levels, low, high), table)
    table = torch.where(drew(equalize), _equalized(_counts(images), levels.long()).float(), table)
    table = torch.where(drew(contrast), _blend(_mean_gray(images), levels, _enhancement(magnitude)), table)
    images = table.flatten(1, 2).gather(2, images.long().flatten(2)).view_as(images)
    # what is drawn towards gray, or towards its neighbours
    base = torch.where(drew(color), _gray(images), images)
    if min(images.shape[2:]) >= 3:
        base = torch.where(drew(sharpness), _smooth(images), base)
    images = _blend(base, images, _enhancement(magnitude))
    # what moves, and what is cut out
    matrix = _matrices(images)
    for operation, moved in (
        (rotate, rotation(images, magnitude, u)),
        (shear_x, shear(images, magnitude, u, 0)),
        (shear_y, shear(images, magnitude, u, 1)),
        (translate_x, translation(images, magnitude, u, 0)),
        (translate_y, translation(images, magnitude, u, 1)),
    ):
        matrix = torch.where(drew(operation).squeeze(3), moved, matrix)
    images = _affine(images, matrix)
    return torch.where(drew(cutout), cutout(images, magnitude, u), images)


def _signs(u: Tensor) -> Tensor:
    return torch.where(u[:, 0] < 0.5, -1.0, 1.0)


def _blend(base: Tensor, images: Tensor, factor: float) -> Tensor:
    return (base + factor * (images - base)).clamp_(0, 255).floor_()


def _enhancement(magnitude: float) -> float:
    return 0.1 + 1.8 * magnitude / MAX_LEVEL


def _gray(images: Tensor) -> Tensor:
    """Luma as Pillow rounds it, `[batch, 1, height, width]`."""
    # whole numbers below 2**24 are exact in float32, in whatever order they are added
    red, green, blue = images.unbind(1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).div_(65536).floor_().unsqueeze(1)


def autocontrast(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _between(images, images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True))


def _between(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Stretched so that these become 0 and 255."""
    scaled = ((values - low) * (255 / (high - low).clamp(min=1))).floor_().clamp_(0, 255)
    return torch.where(high > low, scaled, values)


def equalize(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _equalized(_counts(images), images.long()).to(images.dtype)


def _counts(images: Tensor) -> Int[Tensor, "batch channels 256"]:
    """How many pixels have each value."""
    n, channels = images.shape[:2]
    offset = 256 * torch.arange(n * channels, device=images.device).view(n, channels, 1, 1)
    places = (images.long() + offset).flatten()
    counts = torch.zeros(n * channels * 256, dtype=torch.long, device=images.device)
    return counts.scatter_add_(0, places, torch.ones_like(places)).view(n, channels, 256)


def _equalized(counts: Int[Tensor, "batch channels 256"], values: Tensor) -> Tensor:
    """Of whole numbers `[batch, channels, rows, columns]` what makes each as frequent as any other."""
    levels = torch.arange(256, device=values.device)
    last = (counts > 0).long().mul(levels).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    table = torch.where(step > 0, ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255), levels)
    return table.gather(2, values.flatten(2)).view_as(values)


def invert(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return 255 - images


def posterize(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    step = 2.0 ** (8 - min(8, int(4 * magnitude / MAX_LEVEL)))
    return (images / step).floor_() * step


def solarize(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return torch.where(images < int(256 * magnitude / MAX_LEVEL), images, 255 - images)


def solarize_add(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return torch.where(images < 128, (images + int(110 * magnitude / MAX_LEVEL)).clamp(max=255), images)


def color(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _blend(_gray(images), images, _enhancement(magnitude))


def contrast(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _blend(_mean_gray(images), images, _enhancement(magnitude))


def _mean_gray(images: Tensor) -> Tensor:
    """In whole numbers, whose sum does not depend on the number of threads."""
    return (_gray(images).long().sum((1, 2, 3), keepdim=True) / (images.shape[2] * images.shape[3]) + 0.5).floor()


def brightness(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, _enhancement(magnitude))


def sharpness(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    return _blend(_smooth(images), images, _enhancement(magnitude))


def _smooth(images: Tensor) -> Tensor:
    """Pillow's SMOOTH, the border as it is."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(images, kernel / 13, groups=3) + 0.5).floor_()
    return smooth


def _affine(images: Tensor, matrix: Float[Tensor, "batch 2 3"]) -> Tensor:
    """Nearest-neighbour sampling of an affine map in units of half sides; what comes from outside is gray."""
    height, width = images.shape[2:]
    x, y = ((2 * torch.arange(n, device=images.device) + 1) / n - 1 for n in (width, height))
    m = matrix[..., None, None]
    grid = m[:, :, 0] * x + m[:, :, 1] * y[:, None] + m[:, :, 2]
    grid = grid.permute(0, 2, 3, 1)
    return F.grid_sample(images - GRAY, grid, mode="nearest", padding_mode="zeros", align_corners=False) + GRAY


def _matrices(images: Tensor) -> Tensor:
    return torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)


def rotation(images: Tensor, magnitude: float, u: Tensor) -> Matrices:
    angle = _signs(u) * math.radians(30 * magnitude / MAX_LEVEL)
    height, width = images.shape[2:]
    matrix = _matrices(images)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = angle.sin() * height / width, -angle.sin() * width / height
    return matrix


def shear(images: Tensor, magnitude: float, u: Tensor, axis: int) -> Matrices:
    matrix = _matrices(images)
    sides = (images.shape[3], images.shape[2])
    matrix[:, axis, 1 - axis] = _signs(u) * 0.3 * magnitude / MAX_LEVEL * sides[1 - axis] / sides[axis]
    return matrix


def translation(images: Tensor, magnitude: float, u: Tensor, axis: int) -> Matrices:
    matrix = _matrices(images)
    matrix[:, axis, 2] = _signs(u) * 2 * (100 / 224) * magnitude / MAX_LEVEL
    return matrix


def rotate(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _affine(images, rotation(images, magnitude, u))


def shear_x(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _affine(images, shear(images, magnitude, u, 0))


def shear_y(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _affine(images, shear(images, magnitude, u, 1))


def translate_x(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _affine(images, translation(images, magnitude, u, 0))


def translate_y(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _affine(images, translation(images, magnitude, u, 1))


def cutout(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    inside = torch.ones(1, device=images.device, dtype=torch.bool)
    for axis, side in ((2, images.shape[2]), (3, images.shape[3])):
        half = int(40 * magnitude / MAX_LEVEL) * side / 224
        centre = (u[:, axis - 1] * side).floor().view(-1, 1, 1, 1)
        places = torch.arange(side, device=images.device).view([-1 if a == axis else 1 for a in range(4)])
        inside = inside & (places >= centre - half) & (places < centre + half)
    return torch.where(inside, GRAY, images)


OPERATIONS = (
    autocontrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    cutout,
    solarize_add,
)


def rows_of(images: Tensor, order: Int[Tensor, " batch"]) -> Tensor:
    """images[order], which torch does ten times slower than index_select, and setting them slower still."""
    return images.index_select(0, order)
