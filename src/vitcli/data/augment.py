"""Augmentation of whole batches on the training device, random for each sample.

Every random number comes from an address (randomness.py), so a sample's augmentation does not depend on which
batch, worker or process holds it. Images are float tensors `[batch, 3, height, width]` with values 0..255
until `normalise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import AugmentConfig, EvalConfig, Size
from vitcli.randomness import generator, uniforms

Images = Float[Tensor, "batch 3 height width"]
Uniforms = NDArray[np.float64]
TRIES = 10


@dataclass(frozen=True, eq=False)
class Batch:
    """Images ready for the model with the ids of their samples.

    `labels` is None for unlabelled data. After mixup or cutmix an image counts `weight` for `labels` and
    1 - weight for `partner_labels`. Several views of the same samples lie in `views`; `images` is the first.
    """

    views: tuple[Images, ...]
    labels: Int[Tensor, " batch"] | None
    ids: Int[Tensor, " batch"]
    partner_labels: Int[Tensor, " batch"] | None = None
    weight: float = 1.0

    @property
    def images(self) -> Images:
        return self.views[0]

    def __len__(self) -> int:
        return len(self.ids)

    def resized(self, size: Size) -> Batch:
        """The same batch at another size, by an antialiased bilinear resize."""
        views = tuple(F.interpolate(v, size, mode="bilinear", align_corners=False, antialias=True) for v in self.views)
        return replace(self, views=views)

    def rows(self, part: slice) -> Batch:
        """A micro-batch, or a process's share."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[part]

        return Batch(
            tuple(v[part] for v in self.views), cut(self.labels), self.ids[part], cut(self.partner_labels), self.weight
        )


def to_float(pixels: Int[Tensor, "batch 3 height width"]) -> Images:
    """As float32, values unchanged."""
    return pixels.to(torch.float32)


def normalise_(images: Images, config: EvalConfig) -> Images:
    """(x / 255 - mean) / std for each channel, in place."""
    mean = torch.tensor(config.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, 3, 1, 1)
    return images.sub_(255 * mean).div_(255 * std)


class Augmenter:
    """The augmentation of a run: crop, flip, RandAugment, normalisation, random erasing."""

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
        part = np.full((n, 2), 7 / 8)
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
    gathered = _rows(images, order)
    return _rows(torch.cat([gathered[:kept], gathered[kept:].flip(3)]), np.argsort(order))


def _rows(images: Tensor, order: NDArray[np.int64]) -> Tensor:
    """images[order], which torch does ten times slower than index_select, and setting them slower still."""
    return images.index_select(0, torch.from_numpy(order).to(images.device))


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


# --- RandAugment -------------------------------------------------------------------------------------------

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
    sorted_ = _rows(images, order)
    ends = np.searchsorted(choice[order], np.arange(len(OPERATIONS)), side="right")
    for operation, start, end in zip(OPERATIONS, (0, *ends[:-1]), ends, strict=True):
        if end > start:
            sorted_[start:end] = operation(sorted_[start:end], magnitude, numbers[start:end])
    return _rows(sorted_, np.argsort(order))


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
    """Mixup or cutmix of the global batch with itself rolled by one, one ratio a batch.

    Mixup takes max(λ, 1 - λ) as in big_vision; cutmix's ratio is the area that is left (Yun et al., 2019).
    With both, each batch draws one of them with equal chance. Drawn from (seed, step).
    """
    if (config.mixup <= 0 and config.cutmix <= 0) or batch.labels is None or len(batch) < 2:
        return batch
    draw = generator(seed, "mix", step)
    cut = config.cutmix > 0 and (config.mixup <= 0 or draw.random() < 0.5)
    weight = float(draw.beta(config.cutmix, config.cutmix) if cut else draw.beta(config.mixup, config.mixup))
    views = []
    if not cut:
        weight = max(weight, 1 - weight)
        views = [v * weight + v.roll(1, 0) * (1 - weight) for v in batch.views]
    else:
        height, width = batch.images.shape[2:]
        rows, columns = int(height * math.sqrt(1 - weight)), int(width * math.sqrt(1 - weight))
        y, x = int(draw.integers(height)), int(draw.integers(width))
        top, bottom = max(0, y - rows // 2), min(height, y + rows - rows // 2)
        left, right = max(0, x - columns // 2), min(width, x + columns - columns // 2)
        weight = 1 - (bottom - top) * (right - left) / (height * width)
        for v in batch.views:
            mixed = v.clone()
            mixed[:, :, top:bottom, left:right] = v.roll(1, 0)[:, :, top:bottom, left:right]
            views.append(mixed)
    return Batch(tuple(views), batch.labels, batch.ids, batch.labels.roll(1, 0), weight)
