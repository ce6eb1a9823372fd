"""Augmentation of whole batches on the training device, random for each sample.

Every random number comes from an address (randomness.py), so a sample's augmentation does not depend on which
batch, worker or process holds it. Images are float tensors `[batch, 3, height, width]` with values 0..255
until `normalise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def rows(self, part: slice) -> Batch:
        """A micro-batch, or a process's share."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[part]

        return Batch(
            tuple(v[part] for v in self.views), cut(self.labels), self.ids[part], cut(self.partner_labels), self.weight
        )


def to_float(pixels: Int[Tensor, "batch height width 3"]) -> Images:
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def normalise(images: Images, config: EvalConfig) -> Images:
    """(x / 255 - mean) / std for each channel."""
    mean = torch.tensor(config.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, 3, 1, 1)
    return (images - 255 * mean) / (255 * std)


class Augmenter:
    """The augmentation of a run: crop, flip, RandAugment, normalisation, random erasing."""

    def __init__(self, config: AugmentConfig, evaluation: EvalConfig, size: Size, seed: int) -> None:
        self.config, self.evaluation, self.size, self.seed = config, evaluation, size, seed

    def __call__(
        self,
        pixels: Int[Tensor, "batch height width 3"],
        sizes: NDArray[np.int32],
        epochs: NDArray[np.int64],
        ids: NDArray[np.int64],
        view: int = 0,
    ) -> Images:
        """One view of each image. `sizes` are the originals' heights and widths, `epochs` and `ids` the address."""
        config = self.config

        def draw(purpose: str, count: int) -> Uniforms:
            return uniforms(self.seed, f"{purpose}-{view}", epochs, ids, count)

        images = geometry(to_float(pixels), sizes, config, self.size, draw("geometry", 2 * TRIES + 3))
        for layer in range(config.randaugment_layers):
            images = randaugment_layer(
                images.round_().clamp_(0, 255), config.randaugment_magnitude, draw(f"randaugment-{layer}", 4)
            )
        images = normalise(images, self.evaluation)
        if config.erase > 0:
            numbers = draw("erase", 1 + 4 * TRIES)
            for row in np.flatnonzero(numbers[:, 0] < config.erase):
                noise = generator(self.seed, "erase-noise", int(epochs[row]), int(ids[row]), view)
                erase(images[row], numbers[row, 1:], noise)
        return images


# --- crop and flip -----------------------------------------------------------------------------------------


def geometry(images: Images, sizes: NDArray[np.int32], config: AugmentConfig, size: Size, u: Uniforms) -> Images:
    """Crop, resize to `size` and flip in one bilinear sampling of the batch.

    A crop is a box in parts of the sides, so its shape is right on a squashed copy too. `u` is
    `[batch, 2 * TRIES + 3]`: areas, shapes, two positions, the flip.
    """
    n = len(images)
    position = u[:, 2 * TRIES : 2 * TRIES + 2]
    flips = u[:, 2 * TRIES + 2] < config.flip
    same_size = tuple(images.shape[2:]) == size
    if config.crop == "resized":
        part = resized_crop_parts(sizes, config.scale, config.ratio, u[:, :TRIES], u[:, TRIES : 2 * TRIES])
    elif config.crop == "random":
        part = np.full((n, 2), 7 / 8)
    else:
        part = np.ones((n, 2))
    centre = (2 * position - 1) * (1 - part)
    if config.crop == "pad":
        steps = np.array([round(config.pad * s) for s in size])
        shift = np.minimum(np.floor(position * (2 * steps + 1)), 2 * steps) - steps
        centre = 2 * shift / np.array(size)
    elif config.crop == "none" and same_size:
        flip = torch.from_numpy(flips).to(images.device).view(-1, 1, 1, 1)
        return torch.where(flip, images.flip(3), images)
    matrix = np.zeros((n, 2, 3), np.float32)
    matrix[:, 0, 0] = part[:, 1] * np.where(flips, -1, 1)
    matrix[:, 1, 1] = part[:, 0]
    matrix[:, 0, 2], matrix[:, 1, 2] = centre[:, 1], centre[:, 0]
    return _sample(images, torch.from_numpy(matrix), size, "bilinear", "reflection")


def _sample(images: Images, matrix: Float[Tensor, "batch 2 3"], size: Size, mode: str, padding: str) -> Images:
    grid = F.affine_grid(matrix.to(images.device), [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


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
    result = images.clone()
    for index, operation in enumerate(OPERATIONS):
        rows = np.flatnonzero(choice == index)
        if len(rows):
            where = torch.from_numpy(rows).to(images.device)
            numbers = torch.from_numpy(u[rows, 1:].astype(np.float32)).to(images.device)
            result[where] = operation(images[where], magnitude, numbers)
    return result


def _signs(u: Tensor) -> Tensor:
    return torch.where(u[:, 0] < 0.5, -1.0, 1.0)


def _blend(base: Tensor, images: Tensor, factor: float) -> Tensor:
    return (base + factor * (images - base)).clamp_(0, 255).floor_()


def _enhancement(magnitude: float) -> float:
    return 0.1 + 1.8 * magnitude / MAX_LEVEL


def _gray(images: Tensor) -> Tensor:
    """Luma as Pillow rounds it, `[batch, 1, height, width]`."""
    weights = torch.tensor([19595.0, 38470.0, 7471.0], dtype=torch.float64, device=images.device).view(1, 3, 1, 1)
    return ((images.double() * weights).sum(1, keepdim=True).add_(32768) / 65536).floor_().float()


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


def _affine(images: Tensor, rows: Tensor) -> Tensor:
    """Nearest-neighbour sampling of an affine map in units of half sides; what comes from outside is gray."""
    return _sample(images - GRAY, rows, (images.shape[2], images.shape[3]), "nearest", "zeros") + GRAY


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


def erase(image: Float[Tensor, "3 height width"], u: NDArray[np.float64], noise: np.random.Generator) -> None:
    """Fill a box of a normalised image with N(0, 1), in place (Zhong et al., 2020; timm's `pixel` mode).

    The box has 2 to 33 % of the area and sides in the ratio 0.3 to 3.3; `u` has four numbers for each of ten tries.
    """
    height, width = image.shape[1:]
    for area, shape, top, left in u.reshape(TRIES, 4):
        pixels = height * width * (0.02 + (0.33 - 0.02) * area)
        aspect = math.exp(math.log(0.3) + math.log(3.3 / 0.3) * shape)
        rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < rows < height and 0 < columns < width:
            y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            box = noise.standard_normal((3, rows, columns), dtype=np.float32)
            image[:, y : y + rows, x : x + columns] = torch.from_numpy(box).to(image.device)
            return


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
