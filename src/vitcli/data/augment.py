"""Augmentation of whole batches on the training device, random for each sample.

Every random number comes from an address (randomness.py), so a sample's augmentation does not depend on which
batch, worker or process holds it. Images are float tensors `[batch, channels, height, width]` with values 0..255
until `normalise`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitcli import host
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
        self._noise: Tensor | None = None

    def __call__(
        self,
        pixels: Int[Tensor, "batch channels height width"],
        sizes: Int[Tensor, "batch 2"],
        epochs: Int[Tensor, " batch"],
        ids: Int[Tensor, " batch"],
        view: int = 0,
    ) -> Images:
        """One view of each image. `sizes` are the originals' heights and widths, `epochs` and `ids` the address, all on the
        device of the pixels.
        """
        config = self.config

        def draw(purpose: str, count: int) -> Uniforms:
            return uniforms(self.seed, f"{purpose}-{view}", epochs, ids, count)

        strength = (epochs.double() / config.ramp).clamp(max=1.0) if config.ramp else None
        images = geometry(pixels, sizes, config, self.size, draw("geometry", 2 * TRIES + 3), strength)
        images = photometric(images, config, draw)
        for layer in range(config.randaugment_layers):
            images = randaugment_layer(
                images.round_().clamp_(0, 255), config.randaugment_magnitude, draw(f"randaugment-{layer}", 4)
            )
        images = normalise_(images, self.evaluation)
        if config.erase > 0:
            numbers = draw("erase", 2 + 4 * TRIES)
            images = erased(images, numbers[:, 0] < config.erase, numbers[:, 1:], self._noise_on(images.device))
        return images

    def _noise_on(self, device: torch.device) -> Float[Tensor, " n"]:
        """Copied to the device once."""
        if self._noise is None or self._noise.device != device:
            self._noise = noise_of(self.seed).to(device)
        return self._noise


# --- crop and flip -----------------------------------------------------------------------------------------


def geometry(
    pixels: Tensor,
    sizes: Int[Tensor, "batch 2"],
    config: AugmentConfig,
    size: Size,
    u: Uniforms,
    strength: Float[Tensor, " batch"] | None = None,
) -> Images:
    """Flip, then crop and resize to `size` in one bilinear sampling of the batch, `[batch, channels, height, width]`.

    A crop is a box in parts of the sides, so its shape is right on a squashed copy too. `u` is
    `[batch, 2 * TRIES + 3]`: areas, shapes, two positions, the flip. `strength` is 0 for the whole image and 1, as
    where it is None, for the crop or shift of the configuration.
    """
    position = u[:, 2 * TRIES : 2 * TRIES + 2]
    flips = u[:, 2 * TRIES + 2] < config.flip
    if config.crop == "none" and tuple(pixels.shape[2:]) == size:
        return to_float(_mirrored(pixels, flips))
    if config.crop == "resized":
        part = resized_crop_parts(sizes, config.scale, config.ratio, u[:, :TRIES], u[:, TRIES : 2 * TRIES])
    else:
        part = torch.full_like(position, 1 / config.margin if config.crop == "random" else 1.0)
    if strength is not None:
        part = 1 - (1 - part) * strength[:, None]
    centre = (2 * position - 1) * (1 - part)
    if config.crop == "pad":
        centre = torch.stack([_shifts(position[:, i], config.pad, size[i], strength) for i in (0, 1)], dim=1)
    if host.can_read(pixels) and config.crop != "pad" and min(size) >= _ONE_BY_ONE:
        return _resized(pixels, part, centre, flips, size)
    images = to_float(_mirrored(pixels, flips))
    across = torch.where(flips, -centre[:, 1], centre[:, 1])  # the box lies where it lay in the image as it was
    centre = torch.stack([centre[:, 0], across], dim=1)
    return _stretched(images, part, centre, size, "reflection" if config.crop == "pad" else "border")


def _shifts(
    u: Float[Tensor, " batch"], pad: float, side: int, strength: Float[Tensor, " batch"] | None
) -> Float[Tensor, " batch"]:
    """Of whole pixels by up to `pad` of the side, in half sides."""
    most = round(pad * side)
    shift = torch.floor(u * (2 * most + 1)).clamp(max=2 * most) - most
    if strength is not None:
        shift = torch.round(shift * strength)
    return 2 * shift / side


_ONE_BY_ONE = 128
"""Pixels from which a CPU resizes boxes of whole pixels one by one: at 224 px 276 against 411 µs an image, at 96 px 106 against 87."""


def _resized(
    pixels: Tensor,
    part: Float[Tensor, "batch 2"],
    centre: Float[Tensor, "batch 2"],
    flips: Bool[Tensor, " batch"],
    size: Size,
) -> Images:
    """The boxes as `_stretched` takes them, rounded to whole pixels as torchvision's RandomResizedCrop rounds them."""
    sides, mirrored = np.array(pixels.shape[2:]), flips.numpy()
    extent = np.clip(np.rint(part.numpy() * sides), 1, sides).astype(int)
    start = np.clip(np.rint((centre.numpy() + 1) / 2 * sides - extent / 2), 0, sides - extent).astype(int)
    result = torch.empty(*pixels.shape[:2], *size)
    for index, ((top, left), (rows, columns)) in enumerate(zip(start.tolist(), extent.tolist(), strict=True)):
        box = pixels[index : index + 1, :, top : top + rows, left : left + columns]
        box = to_float(box.flip(3) if mirrored[index] else box)
        result[index] = F.interpolate(box, size, mode="bilinear", align_corners=False)[0]
    return result


def _mirrored(images: Tensor, flips: Bool[Tensor, " batch"]) -> Tensor:
    """A copy with these images mirrored. Sampling from right to left instead would take twice as long."""
    if not host.can_read(images):
        return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
    order = torch.argsort(flips, stable=True)
    kept = len(flips) - int(flips.numpy().sum())
    gathered = rows_of(images, order)
    return rows_of(torch.cat([gathered[:kept], gathered[kept:].flip(3)]), torch.argsort(order))


def _stretched(
    images: Images, scale: Float[Tensor, "batch 2"], centre: Float[Tensor, "batch 2"], size: Size, outside: str
) -> Images:
    """Bilinear sampling of boxes parallel to the sides: `scale` and `centre` are rows then columns, in half sides;
    `outside` is grid_sample's padding.

    The same as torch's affine_grid would give, whose general product takes longer than the sampling itself.
    """
    axes = []
    for axis in (0, 1):
        step = (2 * torch.arange(size[axis], device=images.device) + 1) / size[axis] - 1
        axes.append(scale[:, axis : axis + 1].float() * step + centre[:, axis : axis + 1].float())
    grid = torch.empty(len(images), *size, 2, device=images.device)
    grid[..., 0], grid[..., 1] = axes[1][:, None, :], axes[0][:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def resized_crop_parts(
    sizes: Int[Tensor, "batch 2"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    areas: Uniforms,
    shapes: Uniforms,
) -> Float[Tensor, "batch 2"]:
    """(height, width) of Inception's random crop as parts of the image's.

    The area is uniform in `scale`, the shape log-uniform in `ratio`; the first of ten tries that fits is
    taken, else the largest central box within `ratio` (torchvision's RandomResizedCrop).
    """
    height, width = sizes[:, :1].double(), sizes[:, 1:].double()
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    shape = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shapes)
    rows, columns = torch.sqrt(area / shape) / height, torch.sqrt(area * shape) / width
    fits = (rows <= 1) & (columns <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    part = torch.cat([rows.gather(1, first), columns.gather(1, first)], dim=1)
    whole = (width / height)[:, 0]
    widest = torch.stack([(whole / ratio[0]).clamp(max=1), (ratio[1] / whole).clamp(max=1)], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), part, widest)


# --- erasing and mixing ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def noise_of(seed: int) -> Float[Tensor, " n"]:
    """A million normal numbers. A box takes a stretch of them from a place of its own: to draw each box anew takes
    longer than all other augmentation of small images.
    """
    return torch.from_numpy(generator(seed, "erase-noise").standard_normal(2**20, dtype=np.float32))


def erased(
    images: Images, chosen: Bool[Tensor, " batch"], u: Uniforms, noise: Float[Tensor, " n"]
) -> Float[Tensor, "batch channels height width"]:
    """Normalised images, a box of each chosen one filled with N(0, 1) (Zhong et al., 2020; timm's `pixel` mode); a CPU works in
    place.

    The box has 2 to 33 % of the area and sides in the ratio 0.3 to 3.3; the first of ten tries that fits is taken.
    `u` is `[batch, 1 + 4 * TRIES]`: where the noise begins, then four numbers a try.
    """
    channels, height, width = images.shape[1:]
    tries = u[:, 1:].reshape(-1, TRIES, 4)
    pixels = height * width * (0.02 + (0.33 - 0.02) * tries[..., 0])
    aspect = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * tries[..., 1])
    rows, columns = torch.round(torch.sqrt(pixels * aspect)).long(), torch.round(torch.sqrt(pixels / aspect)).long()
    fits = (rows > 0) & (rows < height) & (columns > 0) & (columns < width)
    first = fits.int().argmax(1, keepdim=True)
    r, c, down, along = (t.gather(1, first).squeeze(1) for t in (rows, columns, tries[..., 2], tries[..., 3]))
    y, x = (down * (height - r + 1)).long(), (along * (width - c + 1)).long()
    start = (u[:, 0] * len(noise)).long()
    chosen = chosen & fits.any(1)
    if host.can_read(images):
        return _filled(images, chosen, torch.stack([start, y, x, r, c], dim=1), noise)
    # of each pixel its row and column in the box, and with these its place in the box's stretch of the noise
    i = torch.arange(height, device=images.device) - y[:, None]
    j = torch.arange(width, device=images.device) - x[:, None]
    inside = ((i >= 0) & (i < r[:, None]))[:, :, None] & ((j >= 0) & (j < c[:, None]))[:, None, :]
    place = start[:, None, None] + i[:, :, None] * c[:, None, None] + j[:, None, :]
    channel = torch.arange(channels, device=images.device)[:, None, None] * (r * c)[:, None, None, None]
    filled = noise[(place[:, None] + channel) % len(noise)]
    return torch.where((inside & chosen[:, None, None])[:, None], filled, images)


def _filled(
    images: Images, chosen: Bool[Tensor, " batch"], boxes: Int[Tensor, "batch 5"], noise: Float[Tensor, " n"]
) -> Images:
    """The same box by box, in place: `boxes` are where the noise begins, top, left, rows and columns."""
    places, channels = boxes.numpy(), images.shape[1]
    for row in np.flatnonzero(chosen.numpy()):
        start, y, x, r, c = places[row].tolist()
        count = channels * r * c
        box = noise[start : start + count]
        if len(box) < count:  # over the end, and as often as a large box needs
            box = torch.cat([box, noise.repeat(math.ceil(count / len(noise)))])[:count]
        images[row, :, y : y + r, x : x + c] = box.view(channels, r, c)
    return images


def partners(config: AugmentConfig, is_labelled: bool) -> int:
    """How many images before its own a part of a batch needs for mixing."""
    return config.repeats if is_labelled and (config.mixup > 0 or config.cutmix > 0) else 0


def mixed(whole: Batch, config: AugmentConfig, seed: int, steps: Int[Tensor, " steps"], before: int = 0) -> list[Batch]:
    """The batches of these steps, which lie in `whole` one behind the other, each mixed with itself rolled by one image and its
    repeats, by one ratio a batch. With `before` they are parts of batches: so many of the first images stand before the part.

    Mixup takes max(λ, 1 - λ) as in big_vision; cutmix's ratio is the area that is left (Yun et al., 2019).
    With both, each batch draws one of them with equal chance. Drawn from (seed, step), on the device of `steps`.
    """
    size = len(whole) // len(steps)
    parts = [slice(i * size, (i + 1) * size) for i in range(len(steps))]
    labelled = whole.labels is not None or whole.targets is not None
    if not partners(config, labelled) or size < 2:
        return [whole] if len(parts) == 1 else [whole.rows(part) for part in parts]
    height, width = whole.images.shape[2:]
    u = uniforms(seed, "mix", steps, torch.zeros_like(steps), 5)
    # what part of each image's pixels stays its own, `[steps, height, width]` or `[steps, 1, 1]`, and the weight of its label
    if config.cutmix > 0:
        keeps, weight = _box(u, config.cutmix, height, width)
    if config.mixup > 0:
        ratio = symmetric_beta(config.mixup, u[:, 1], u[:, 2])
        ratio = torch.maximum(ratio, 1 - ratio)
        everywhere = ratio[:, None, None]
        if config.cutmix > 0:
            cut = u[:, 0] < 0.5
            keeps, weight = torch.where(cut[:, None, None], keeps, everywhere), torch.where(cut, weight, ratio)
        else:
            keeps, weight = everywhere, ratio

    def paired(each: Tensor) -> tuple[Tensor, Tensor]:
        """Of `[steps, images, ...]` the images and their partners."""
        return (each[:, before:], each[:, :-before]) if before else (each, each.roll(config.repeats, 1))

    def blended(t: Tensor, own: Tensor) -> Tensor:
        """By a part `own` of each image for its own, the rest its partner's."""
        each = t.unflatten(0, (len(steps), size))
        shape = (len(steps), *[1] * (each.ndim - own.ndim), *own.shape[1:])
        each, other = paired(each)
        return (each * own.to(t.dtype).view(shape) + other * (1 - own).to(t.dtype).view(shape)).flatten(0, 1)

    views = tuple(blended(v, keeps) for v in whole.views)
    targets = None if whole.targets is None else blended(whole.targets, weight[:, None])
    labels = partner = whole.labels
    if labels is not None:
        labels, partner = (part.flatten() for part in paired(labels.view(len(steps), size)))
    ids = whole.ids.view(len(steps), size)[:, before:].flatten()
    parts = [slice(i * (size - before), (i + 1) * (size - before)) for i in range(len(steps))]
    both = replace(whole, views=views, labels=labels, ids=ids, partner_labels=partner, targets=targets)
    return [replace(both.rows(part), weight=own) for part, own in zip(parts, weight.float().unbind(), strict=True)]


def _box(
    u: Uniforms, alpha: float, height: int, width: int
) -> tuple[Float[Tensor, "steps height width"], Float[Tensor, " steps"]]:
    """Of cutmix: one outside of a box and zero within, and the part of the area that is outside."""
    left = symmetric_beta(alpha, u[:, 1], u[:, 2])
    outside, inner = [], torch.ones_like(left)
    for axis, side in enumerate((height, width)):
        extent = torch.floor(side * torch.sqrt(1 - left))
        half = torch.floor(extent / 2)
        middle = torch.floor(u[:, 3 + axis] * side)
        low, high = (middle - half).clamp(min=0), (middle + extent - half).clamp(max=side)
        place = torch.arange(side, device=u.device)
        outside.append((place < low[:, None]) | (place >= high[:, None]))
        inner = inner * (high - low)
    keeps = (outside[0][:, :, None] | outside[1][:, None, :]).to(u.dtype)
    return keeps, 1 - inner / (height * width)


def symmetric_beta(alpha: float, u: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Beta(alpha, alpha) of two uniform numbers, without a loop (Devroye, 1996, "Random variate generation in one line of code"):
    ½ + ½ · sign(cos 2πv) / √(1 + 1 / ((u^(-1/alpha) - 1) · cos² 2πv)).
    """
    wave = torch.cos(2 * math.pi * v)
    tail = torch.expm1(-torch.log(1 - u) / alpha) * wave.square()
    return 0.5 + 0.5 * torch.sign(wave) * torch.sqrt(tail / (1 + tail)).nan_to_num(nan=1.0)
