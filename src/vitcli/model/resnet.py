"""Layers of residual networks with standardised weights and group norms: BiT's units, and those below a hybrid's patches.

| what                  | BiT (google-research/big_transfer bit_pytorch/models.py) | hybrid (google-research/vision_transformer vit_jax/models_resnet.py) |
|-----------------------|-----------------------------------------------|----------------------------------------------|
| order                 | norm, rectifier, convolution (He et al., 2016b) | convolution, norm, rectifier (He et al., 2016a) |
| shortcut              | of the pre-activated input where it projects  | projected and normalised                     |
| padding, stride of two | the same at both ends                        | more at the end, as TensorFlow's SAME        |

On a GPU activations and filters lie channels-last, as its convolutions take them. On a CPU they do not: oneDNN's blocked layouts
are of its own, and torch's group norm of channels-last maps sums squares without their mean, which in float32 moved logits of a
BiT-R50x1 by 2e-5 of their spread where this order moves them by 8e-6.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.families.resnet import Unit
from vitcli.model.held import Held

Map = Float[Tensor, "batch _ _ _"]
"""Channels, rows and columns of an image."""


def _order(tensor: Tensor) -> torch.memory_format:
    return torch.contiguous_format if tensor.device.type == "cpu" else torch.channels_last


def standardised(weight: Tensor, eps: float, to_deviation: bool = False) -> Tensor:
    """Each filter less its mean over √(variance + eps), or over its standard deviation + eps (Qiao et al., 2019)."""
    with torch.autocast(weight.device.type, enabled=False):
        flat = weight.flatten(1)
        if not to_deviation:
            return F.layer_norm(flat, flat.shape[1:], eps=eps).view_as(weight)
        centred = flat - flat.mean(1, keepdim=True)
        # the root's slope at zero, of a filter that is constant, is none
        deviation = centred.square().mean(1, keepdim=True).clamp(min=1e-30).sqrt()
        return (centred / (deviation + eps)).view_as(weight)


class StdConv(Held):
    """A convolution without bias, of standardised weights. `same`: padded as TensorFlow's SAME, else alike at both ends."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, eps: float, to_deviation: bool, same: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.kernel, self.stride, self.same = kernel, stride, same
        self.eps, self.to_deviation = eps, to_deviation

    def make(self) -> Tensor:
        return standardised(self.weight, self.eps, self.to_deviation).contiguous(memory_format=_order(self.weight))

    def forward(self, x: Map) -> Map:
        if not self.same or self.stride == 1:
            return F.conv2d(x, self.taken(), stride=self.stride, padding=self.kernel // 2)
        return F.conv2d(same_padded(x, self.kernel, self.stride), self.taken(), stride=self.stride)


def same_padded(x: Map, kernel: int, stride: int) -> Map:
    """Zeros around `x` as TensorFlow's SAME has them: results for every stride, and at odd numbers one more at the end."""
    rows, columns = (max(0, (math.ceil(side / stride) - 1) * stride + kernel - side) for side in x.shape[2:])
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class Norm(nn.GroupNorm):
    """A group norm, and a rectifier after it unless `rectified` is false. In bfloat16 it stays there; its sums do not."""

    def __init__(self, groups: int, channels: int, eps: float, rectified: bool = True) -> None:
        super().__init__(groups, channels, eps)
        self.rectified = rectified

    def forward(self, x: Map) -> Map:
        with torch.autocast(x.device.type, enabled=False):
            found = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.relu_(found) if self.rectified else found


class Layers:
    """Convolutions and norms of one network, which have epsilons and groups in common."""

    def __init__(
        self, groups: int, norm_eps: float, weight_eps: float, *, hybrid: bool, to_deviation: bool = False
    ) -> None:
        self.groups, self.norm_eps, self.weight_eps = groups, norm_eps, weight_eps
        self.same, self.to_deviation = hybrid, to_deviation

    def convolution(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> StdConv:
        return StdConv(
            inputs, outputs, kernel, stride, eps=self.weight_eps, to_deviation=self.to_deviation, same=self.same
        )

    def norm(self, channels: int, rectified: bool = True) -> Norm:
        return Norm(self.groups, channels, self.norm_eps, rectified)


class PreActivation(nn.Module):
    """x + f(x), or P r + f(r) where the shortcut projects: r the normalised and rectified x, which f convolves three times."""

    def __init__(self, unit: Unit, layers: Layers) -> None:
        super().__init__()
        self.downsample = _Projection(unit, layers) if unit.projects else None
        self.norm1, self.conv1 = layers.norm(unit.inputs), layers.convolution(unit.inputs, unit.inner)
        self.norm2, self.conv2 = layers.norm(unit.inner), layers.convolution(unit.inner, unit.inner, 3, unit.stride)
        self.norm3, self.conv3 = layers.norm(unit.inner), layers.convolution(unit.inner, unit.outputs)

    def forward(self, x: Map) -> Map:
        read = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(read)
        found = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(read)))))
        return found.add_(shortcut)


class PostActivation(nn.Module):
    """The rectified x + f(x); the last norm of f starts at zero, so that a new unit passes its input on."""

    def __init__(self, unit: Unit, layers: Layers) -> None:
        super().__init__()
        self.downsample = _Projection(unit, layers, normalised=True) if unit.projects else None
        self.conv1, self.norm1 = layers.convolution(unit.inputs, unit.inner), layers.norm(unit.inner)
        self.conv2, self.norm2 = layers.convolution(unit.inner, unit.inner, 3, unit.stride), layers.norm(unit.inner)
        self.conv3, self.norm3 = (
            layers.convolution(unit.inner, unit.outputs),
            layers.norm(unit.outputs, rectified=False),
        )

    def forward(self, x: Map) -> Map:
        shortcut = x if self.downsample is None else self.downsample(x)
        found = self.norm3(self.conv3(self.norm2(self.conv2(self.norm1(self.conv1(x))))))
        return F.relu_(found.add_(shortcut))


class _Projection(nn.Module):
    """A shortcut to other channels or another stride."""

    def __init__(self, unit: Unit, layers: Layers, normalised: bool = False) -> None:
        super().__init__()
        self.conv = layers.convolution(unit.inputs, unit.outputs, 1, unit.stride)
        self.norm = layers.norm(unit.outputs, rectified=False) if normalised else nn.Identity()

    def forward(self, x: Map) -> Map:
        projected: Tensor = self.norm(self.conv(x))
        return projected


class Stage(nn.Module):
    """Units one after the other."""

    def __init__(self, units: list[Unit], kind: type[PreActivation] | type[PostActivation], layers: Layers) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(kind(unit, layers) for unit in units))

    def forward(self, x: Map) -> Map:
        found: Tensor = self.blocks(x)
        return found


class Root(nn.Module):
    """The first convolution, for large images a 7x7 one of stride two and a pooling of stride two after it. A hybrid's is
    normalised and rectified, so that the zeros around it are below nothing; BiT's is neither, and its zeros count.
    """

    def __init__(self, channels: int, layers: Layers, *, large: bool = True, normalised: bool = False) -> None:
        super().__init__()
        self.large, self.same = large, layers.same
        self.conv = layers.convolution(3, channels, 7, 2) if large else layers.convolution(3, channels, 3)
        self.norm = layers.norm(channels) if normalised else nn.Identity()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Map:
        x: Tensor = self.norm(self.conv(images.contiguous(memory_format=_order(images))))
        if not self.large:
            return x
        return F.max_pool2d(same_padded(x, 3, 2) if self.same else F.pad(x, (1, 1, 1, 1)), 3, 2)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Every parameter of the layers above.

    | parameter        | distribution                                                                       |
    |------------------|------------------------------------------------------------------------------------|
    | convolutions     | LeCun normal, of which standardising takes mean and spread (Flax's default)        |
    | norms            | weight 1, bias 0                                                                   |
    | norm3 of a hybrid | weight 0, bias 0 (google-research/vision_transformer vit_jax/models_resnet.py)    |
    """
    for layer in module.modules():
        if isinstance(layer, StdConv):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()), generator=generator)
        elif isinstance(layer, Norm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, PostActivation):
            nn.init.zeros_(layer.norm3.weight)


def filters(module: nn.Module) -> dict[str, int]:
    """The convolutions' weights by their names in `module`, each a matrix for Muon: of every filter a row."""
    return {f"{name}.weight": 1 for name, layer in module.named_modules() if isinstance(layer, StdConv)}
