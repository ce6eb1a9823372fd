"""Colour jitter, grayscale, blur and solarisation of whole batches, as self-supervised learning and DeiT-III use them.

Images are float tensors `[batch, 3, height, width]` with values 0..255, which stay fractions. Every operation works on an image
by itself and sums exactly, so that its result does not depend on the batch around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vitcli import host
from vitcli.config import AugmentConfig
from vitcli.data.batch import Images, Uniforms

Draw = Callable[[str, int], Uniforms]
"""Uniform numbers `[batch, count]` for a purpose."""
SIGMA = (0.1, 2.0)
"""Deviations of a blur, in pixels of a 224-pixel image (Chen et al., 2020, appendix A)."""
_SHARP = 0.1
"""Pixels; a narrower Gaussian has less than 1e-21 of its weight beyond its pixel."""
THRESHOLD = 128.0


def photometric(images: Images, config: AugmentConfig, draw: Draw) -> Images:
    """What `config` asks for, in this order: jitter, gray, blur, solarisation; with `three` one of the last three comes first.

    In place where all images take part.
    """
    if config.three:
        which = torch.floor(3 * draw("three", 1)[:, 0])
        sigmas = _sigmas(draw("blur", 2))
        images = _on(images, which == 0, lambda part, _: grayscale(part))
        images = _on(images, which == 1, lambda part, _: solarize(part))
        images = _on(images, which == 2, lambda part, own: blur(part, own(sigmas)))
        return _jittered(images, config, draw)
    images = _jittered(images, config, draw)
    if config.gray > 0:
        images = _on(images, draw("gray", 1)[:, 0] < config.gray, lambda part, _: grayscale(part))
    if config.blur > 0:
        u = draw("blur", 2)
        sigmas = _sigmas(u)
        images = _on(images, u[:, 0] < config.blur, lambda part, own: blur(part, own(sigmas)))
    if config.solarize > 0:
        images = _on(images, draw("solarize", 1)[:, 0] < config.solarize, lambda part, _: solarize(part))
    return images


def _sigmas(u: Uniforms) -> Float[Tensor, " batch"]:
    return SIGMA[0] + (SIGMA[1] - SIGMA[0]) * u[:, 1]


def _jittered(images: Images, config: AugmentConfig, draw: Draw) -> Images:
    if not any(config.jitter):
        return images
    u = draw("jitter", 5)
    return _on(images, u[:, 0] < config.jitter_p, lambda part, own: jitter_(part, config.jitter, own(u[:, 1:])))


Own = Callable[[Tensor], Tensor]
"""Of numbers of all images those of the images that are changed."""


def _on(images: Images, chosen: Bool[Tensor, " batch"], change: Callable[[Images, Own], Images]) -> Images:
    """`images` with `change` of those that are chosen, which may work in place."""
    if not host.can_read(images):
        return torch.where(chosen.view(-1, 1, 1, 1), change(images.clone(), lambda numbers: numbers), images)
    at = torch.from_numpy(np.flatnonzero(chosen.numpy()))
    if len(at) == len(images):
        return change(images, lambda numbers: numbers)
    if not len(at):
        return images
    return images.index_copy_(0, at, change(images.index_select(0, at), lambda numbers: numbers.index_select(0, at)))


# --- operations --------------------------------------------------------------------------------------------


def luma(images: Images) -> Float[Tensor, "batch 1 height width"]:
    """Brightness by ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def grayscale(images: Images) -> Images:
    return luma(images).repeat(1, 3, 1, 1)


def solarize(images: Images) -> Images:
    """What is bright inverted."""
    return torch.where(images < THRESHOLD, images, 255 - images)


def jitter_(images: Images, strengths: tuple[float, float, float, float], u: Uniforms) -> Images:
    """Brightness, contrast, saturation and hue, always in this order, where torchvision's ColorJitter shuffles them. In place.

    `u` is `[batch, 4]`. A strength s gives factors uniform in max(0, 1 - s) .. 1 + s, for the hue a shift by -s .. s of a turn.
    """

    def numbers(which: int, low: float, high: float) -> Float[Tensor, "batch 1 1 1"]:
        return (low + (high - low) * u[:, which]).float().view(-1, 1, 1, 1)

    def factors(which: int) -> Float[Tensor, "batch 1 1 1"]:
        return numbers(which, max(0.0, 1 - strengths[which]), 1 + strengths[which])

    if strengths[0]:
        images.mul_(factors(0)).clamp_(max=255)
    if strengths[1]:
        _blend_(images, _mean(luma(images)), factors(1))
    if strengths[2]:
        _blend_(images, luma(images), factors(2))
    if strengths[3]:
        turn_hue_(images, numbers(3, -strengths[3], strengths[3]))
    return images


def _mean(gray: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 1 1 1"]:
    """Of brightness in whole numbers, whose sum is exact in any order."""
    total = gray.round_().sum(3, keepdim=True).double().sum(2, keepdim=True)
    return total.div_(gray.shape[2] * gray.shape[3]).float()


def _blend_(images: Images, base: Tensor, factor: Float[Tensor, "batch 1 1 1"]) -> None:
    images.mul_(factor).add_(base.mul_(1 - factor)).clamp_(0, 255)


def turn_hue_(images: Images, turns: Float[Tensor, "batch 1 1 1"]) -> None:
    """Hue moved by parts of a turn at the same HSV saturation and value, in place.

    A channel is the value less the chroma times a trapezoid of the distance between the hue and the channel's own.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    ).add_(turns.squeeze(1) * 6)  # in sixths of a turn
    for channel, offset in enumerate((5, 3, 1)):
        place = (hue + offset).remainder_(6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        images[:, channel] = torch.addcmul(value, chroma, share, value=-1)


def blur(images: Images, sigmas: Float[Tensor, " batch"]) -> Images:
    """A Gaussian of each image's own deviation, in pixels of a 224-pixel image, cut off at three of the largest; borders reflect."""
    for axis in (2, 3):
        scale = images.shape[axis] / 224
        if SIGMA[1] * scale >= _SHARP:
            images = _blurred(images, sigmas * scale, math.ceil(3 * SIGMA[1] * scale), axis)
    return images


def _blurred(images: Images, sigmas: Float[Tensor, " batch"], radius: int, axis: int) -> Images:
    """Along one axis, by whole shifted copies: each image has a kernel of its own, and sums in the same order in any batch."""
    side = images.shape[axis]
    weights = torch.exp(-0.5 * (torch.arange(radius + 1, device=images.device) / sigmas[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True)
    weight = weights.float().T.reshape(radius + 1, -1, 1, 1, 1).unbind(0)
    padded = F.pad(images, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
    result = images * weight[0]
    for k in range(1, radius + 1):
        both = padded.narrow(axis, radius - k, side) + padded.narrow(axis, radius + k, side)
        result.addcmul_(both, weight[k])
    return result
