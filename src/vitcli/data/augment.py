"""Augmentation of whole batches on the training device, random for each sample.

Every random number comes from an address (randomness.py), so a sample's augmentation does not depend on which
batch, worker or process holds it. Images are float tensors `[batch, 3, height, width]` with values 0..255
until `normalise`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import AugmentConfig, EvalConfig, Size
from vitcli.data.batch import Batch, Images, Uniforms, normalise_, to_float
from vitcli.data.photometric import photometric
from vitcli.data.randaugment import randaugment_layer, rows_of
from vitcli.randomness import generator, uniforms

TRIES = 10


class Augmenter:
    """The augmentation of a run: crop, flip, colours, RandAugment, normalisation, random erasing."""

    def __init__(self, config: AugmentConfig, evaluation: EvalConfig, size: Size, seed: int) -> None:
        self.config, self.evaluation, self.size, self.seed = config, evaluation, size, seed

    def __call__(
        self,
        pixels: Int[Tensor, "batch 3 height width"],
        sizes: NDArray[np.int32],
        epochs: NDArray[np.int64],
        ids: NDArray[np.int64],
        view: int = 0,
    ) -> Images:
        """One view of each image. `sizes` are the originals' heights and widths, `epochs` and `ids` the address."""
        config = self.config

        def draw(purpose: str, count: int) -> Uniforms:
            return uniforms(self.seed, f"{purpose}-{view}", epochs, ids, count)

        strength = np.minimum(1.0, epochs / config.ramp) if config.ramp else None
        images = geometry(pixels, sizes, config, self.size, draw("geometry", 2 * TRIES + 3), strength)
        images = photometric(images, config, draw)
        for layer in range(config.randaugment_layers):
            images = randaugment_layer(
                images.round_().clamp_(0, 255), config.randaugment_magnitude, draw(f"randaugment-{layer}", 4)
            )
        images = normalise_(images, self.evaluation)
        if config.erase > 0:
            numbers = draw("erase", 2 + 4 * TRIES)
            erase_(images, numbers[:, 0] < config.erase, numbers[:, 1:], noise_of(self.seed))
        return images


# --- crop and flip -----------------------------------------------------------------------------------------


def geometry(
    pixels: Tensor,
    sizes: NDArray[np.int32],
    config: AugmentConfig,
    size: Size,
    u: Uniforms,
    strength: NDArray[np.float64] | None = None,
) -> Images:
    """Flip, then crop and resize to `size` in one bilinear sampling of the batch, `[batch, 3, height, width]`.

    A crop is a box in parts of the sides, so its shape is right on a squashed copy too. `u` is
    `[batch, 2 * TRIES + 3]`: areas, shapes, two positions, the flip. `strength` is 0 for the whole image and 1, as
    where it is None, for the crop or shift of the configuration.
    """
    n = len(pixels)
    position = u[:, 2 * TRIES : 2 * TRIES + 2]
    flips = u[:, 2 * TRIES + 2] < config.flip
    if config.crop == "none" and tuple(pixels.shape[2:]) == size:
        return to_float(_mirrored(pixels, flips))
    if config.crop == "resized":
        part = resized_crop_parts(sizes, config.scale, config.ratio, u[:, :TRIES], u[:, TRIES : 2 * TRIES])
    elif config.crop == "random":
        part = np.full((n, 2), 1 / config.margin)
    else:
        part = np.ones((n, 2))
    if strength is not None:
        part = 1 - (1 - part) * strength[:, None]
    centre = (2 * position - 1) * (1 - part)
    if config.crop == "pad":
        steps = np.array([round(config.pad * s) for s in size])
        shift = np.minimum(np.floor(position * (2 * steps + 1)), 2 * steps) - steps
        if strength is not None:
            shift = np.rint(shift * strength[:, None])
        centre = 2 * shift / np.array(size)
    if pixels.device.type == "cpu" and config.crop != "pad" and min(size) >= _ONE_BY_ONE:
        return _resized(pixels, part, centre, flips, size)
    images = to_float(_mirrored(pixels, flips))
    centre[:, 1] *= np.where(flips, -1, 1)  # the box lies where it lay in the image as it was
    return _stretched(images, part, centre, size, "reflection" if config.crop == "pad" else "border")


_ONE_BY_ONE = 128
"""Pixels from which a CPU resizes boxes of whole pixels one by one: at 224 px 276 against 411 µs an image, at 96 px 106 against 87."""


def _resized(
    pixels: Tensor, part: NDArray[np.float64], centre: NDArray[np.float64], flips: NDArray[np.bool_], size: Size
) -> Images:
    """The boxes as `_stretched` takes them, rounded to whole pixels as torchvision's RandomResizedCrop rounds them."""
    sides = np.array(pixels.shape[2:])
    extent = np.clip(np.rint(part * sides), 1, sides).astype(int)
    start = np.clip(np.rint((centre + 1) / 2 * sides - extent / 2), 0, sides - extent).astype(int)
    result = torch.empty(len(pixels), 3, *size)
    for index, ((top, left), (rows, columns)) in enumerate(zip(start.tolist(), extent.tolist(), strict=True)):
        box = pixels[index : index + 1, :, top : top + rows, left : left + columns]
        box = to_float(box.flip(3) if flips[index] else box)
        result[index] = F.interpolate(box, size, mode="bilinear", align_corners=False)[0]
    return result


def _mirrored(images: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """A copy with these images mirrored. Sampling from right to left instead would take twice as long."""
    order = np.argsort(flips, kind="stable")
    kept = len(flips) - int(flips.sum())
    gathered = rows_of(images, order)
    return rows_of(torch.cat([gathered[:kept], gathered[kept:].flip(3)]), np.argsort(order))


def _stretched(
    images: Images, scale: NDArray[np.float64], centre: NDArray[np.float64], size: Size, outside: str
) -> Images:
    """Bilinear sampling of boxes parallel to the sides: `scale` and `centre` are `[batch, 2]`, rows then columns,
    in half sides; `outside` is grid_sample's padding.

    The same as torch's affine_grid would give, whose general product takes longer than the sampling itself.
    """
    axes = []
    for axis in (0, 1):
        step = (2 * torch.arange(size[axis], device=images.device) + 1) / size[axis] - 1
        a, b = (torch.from_numpy(values[:, axis : axis + 1].astype(np.float32)) for values in (scale, centre))
        axes.append(a.to(images.device) * step + b.to(images.device))
    grid = torch.empty(len(images), *size, 2, device=images.device)
    grid[..., 0], grid[..., 1] = axes[1][:, None, :], axes[0][:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def resized_crop_parts(
    sizes: NDArray[np.int32], scale: tuple[float, float], ratio: tuple[float, float], areas: Uniforms, shapes: Uniforms
) -> NDArray[np.float64]:
    """(height, width) of Inception's random crop as parts of the image's, `[batch, 2]`.

    The area is uniform in `scale`, the shape log-uniform in `ratio`; the first of ten tries that fits is
    taken, else the largest central box within `ratio` (torchvision's RandomResizedCrop).
    """
    height, width = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    shape = np.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shapes)
    rows, columns = np.sqrt(area / shape) / height, np.sqrt(area * shape) / width
    fits = (rows <= 1) & (columns <= 1)
    first = fits.argmax(axis=1)[:, None]
    part = np.concatenate([np.take_along_axis(rows, first, 1), np.take_along_axis(columns, first, 1)], axis=1)
    whole = (width / height)[:, 0]
    widest = np.stack([np.minimum(1, whole / ratio[0]), np.minimum(1, ratio[1] / whole)], axis=1)
    return np.where(fits.any(axis=1)[:, None], part, widest)


# --- erasing and mixing ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def noise_of(seed: int) -> Float[Tensor, " n"]:
    """A million normal numbers. A box takes a stretch of them from a place of its own: to draw each box anew takes
    longer than all other augmentation of small images.
    """
    return torch.from_numpy(generator(seed, "erase-noise").standard_normal(2**20, dtype=np.float32))


def erase_(images: Images, chosen: NDArray[np.bool_], u: Uniforms, noise: Float[Tensor, " n"]) -> None:
    """Fill a box of each chosen normalised image with N(0, 1), in place (Zhong et al., 2020; timm's `pixel` mode).

    The box has 2 to 33 % of the area and sides in the ratio 0.3 to 3.3; the first of ten tries that fits is taken.
    `u` is `[batch, 1 + 4 * TRIES]`: where the noise begins, then four numbers a try.
    """
    height, width = images.shape[2:]
    tries = u[:, 1:].reshape(-1, TRIES, 4)
    pixels = height * width * (0.02 + (0.33 - 0.02) * tries[..., 0])
    aspect = np.exp(math.log(0.3) + math.log(3.3 / 0.3) * tries[..., 1])
    rows, columns = np.rint(np.sqrt(pixels * aspect)).astype(int), np.rint(np.sqrt(pixels / aspect)).astype(int)
    fits = (rows > 0) & (rows < height) & (columns > 0) & (columns < width)
    first = fits.argmax(1)
    for row in np.flatnonzero(chosen & fits.any(1)):
        _, _, top, left = tries[row, first[row]]
        r, c = int(rows[row, first[row]]), int(columns[row, first[row]])
        y, x = int(top * (height - r + 1)), int(left * (width - c + 1))
        start, count = int(u[row, 0] * len(noise)), 3 * r * c
        box = noise[start : start + count]
        if len(box) < count:  # over the end, and as often as a large box needs
            box = torch.cat([box, noise.repeat(math.ceil(count / len(noise)))])[:count]
        images[row, :, y : y + r, x : x + c] = box.view(3, r, c).to(images.device)


def mix(batch: Batch, config: AugmentConfig, seed: int, step: int) -> Batch:
    """Mixup or cutmix of the global batch with itself rolled by one image and its repeats, one ratio a batch.

    Mixup takes max(λ, 1 - λ) as in big_vision; cutmix's ratio is the area that is left (Yun et al., 2019).
    With both, each batch draws one of them with equal chance. Drawn from (seed, step).
    """
    if (config.mixup <= 0 and config.cutmix <= 0) or (batch.labels is None and batch.targets is None) or len(batch) < 2:
        return batch
    draw, by = generator(seed, "mix", step), config.repeats
    cut = config.cutmix > 0 and (config.mixup <= 0 or draw.random() < 0.5)
    weight = float(draw.beta(config.cutmix, config.cutmix) if cut else draw.beta(config.mixup, config.mixup))
    views = []
    if not cut:
        weight = max(weight, 1 - weight)
        views = [v * weight + v.roll(by, 0) * (1 - weight) for v in batch.views]
    else:
        height, width = batch.images.shape[2:]
        rows, columns = int(height * math.sqrt(1 - weight)), int(width * math.sqrt(1 - weight))
        y, x = int(draw.integers(height)), int(draw.integers(width))
        top, bottom = max(0, y - rows // 2), min(height, y + rows - rows // 2)
        left, right = max(0, x - columns // 2), min(width, x + columns - columns // 2)
        weight = 1 - (bottom - top) * (right - left) / (height * width)
        for v in batch.views:
            mixed = v.clone()
            mixed[:, :, top:bottom, left:right] = v.roll(by, 0)[:, :, top:bottom, left:right]
            views.append(mixed)
    targets = batch.targets
    if targets is not None:
        targets = weight * targets + (1 - weight) * targets.roll(by, 0)
    partner = None if batch.labels is None else batch.labels.roll(by, 0)
    return replace(batch, views=tuple(views), partner_labels=partner, weight=weight, targets=targets)
