"""RandAugment on whole batches (Cubuk et al., 2020), an operation drawn for each image."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.data.batch import Images, Uniforms

MAX_LEVEL = 10

GRAY = 128.0


def randaugment_layer(images: Images, magnitude: float, u: Uniforms) -> Images:
    """One operation for each image, always applied, in the form of big_vision archive/autoaugment.py.

    `images` hold whole numbers 0..255. `u` is `[batch, 4]`: the operation, the sign, a position. Shifts and
    the cut-out's size are in pixels of a 224-pixel image and scale with the side.
    """
    choice = np.minimum((u[:, 0] * len(OPERATIONS)).astype(int), len(OPERATIONS) - 1)
    order = np.argsort(choice, kind="stable")  # an operation's images lie together, so that it works in place
    numbers = torch.from_numpy(u[order, 1:].astype(np.float32)).to(images.device)
    sorted_ = rows_of(images, order)
    ends = np.searchsorted(choice[order], np.arange(len(OPERATIONS)), side="right")
    for operation, start, end in zip(OPERATIONS, (0, *ends[:-1]), ends, strict=True):
        if end > start:
            sorted_[start:end] = operation(sorted_[start:end], magnitude, numbers[start:end])
    return rows_of(sorted_, np.argsort(order))


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
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    scaled = ((images - low) * (255 / (high - low).clamp(min=1))).floor_().clamp_(0, 255)
    return torch.where(high > low, scaled, images)


def equalize(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    n, channels = images.shape[:2]
    values = images.long().reshape(n * channels, -1)
    offset = 256 * torch.arange(n * channels, device=images.device).unsqueeze(1)
    counts = torch.bincount((values + offset).view(-1), minlength=256 * n * channels).view(n * channels, 256)
    last = (counts > 0).long().mul(torch.arange(256, device=images.device)).amax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, last)) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    result = torch.where(step > 0, table.gather(1, values), values)
    return result.view_as(images).to(images.dtype)


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
    # the mean in whole numbers, whose sum does not depend on the number of threads
    mean = (_gray(images).long().sum((1, 2, 3), keepdim=True) / (images.shape[2] * images.shape[3]) + 0.5).floor()
    return _blend(mean, images, _enhancement(magnitude))


def brightness(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, _enhancement(magnitude))


def sharpness(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(images, kernel / 13, groups=3) + 0.5).floor_()
    return _blend(smooth, images, _enhancement(magnitude))


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


def rotate(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    angle = _signs(u) * math.radians(30 * magnitude / MAX_LEVEL)
    height, width = images.shape[2:]
    matrix = _matrices(images)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = angle.sin() * height / width, -angle.sin() * width / height
    return _affine(images, matrix)


def _shear(images: Tensor, magnitude: float, u: Tensor, axis: int) -> Tensor:
    matrix = _matrices(images)
    sides = (images.shape[3], images.shape[2])
    matrix[:, axis, 1 - axis] = _signs(u) * 0.3 * magnitude / MAX_LEVEL * sides[1 - axis] / sides[axis]
    return _affine(images, matrix)


def _translate(images: Tensor, magnitude: float, u: Tensor, axis: int) -> Tensor:
    matrix = _matrices(images)
    matrix[:, axis, 2] = _signs(u) * 2 * (100 / 224) * magnitude / MAX_LEVEL
    return _affine(images, matrix)


def shear_x(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _shear(images, magnitude, u, 0)


def shear_y(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _shear(images, magnitude, u, 1)


def translate_x(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _translate(images, magnitude, u, 0)


def translate_y(images: Tensor, magnitude: float, u: Tensor) -> Tensor:
    return _translate(images, magnitude, u, 1)


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


def rows_of(images: Tensor, order: NDArray[np.int64]) -> Tensor:
    """images[order], which torch does ten times slower than index_select, and setting them slower still."""
    return images.index_select(0, torch.from_numpy(order).to(images.device))
