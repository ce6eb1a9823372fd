"""A Vision Transformer on a residual network's feature map (Dosovitskiy et al., 2021, §3.1), under timm's parameter names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import Architecture
from vitcli.families.hybrid import HybridConfig
from vitcli.families.resnet import root_channels
from vitcli.model import resnet
from vitcli.model.patches import PatchEmbed
from vitcli.model.vit import ViT

_GROUPS = 32


class Backbone(nn.Module):
    """Images to a map: the root, normalised and rectified, and stages of post-activated units."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        to_deviation = config.weight_eps_to == "deviation"
        layers = resnet.Layers(_GROUPS, config.group_eps, config.weight_eps, hybrid=True, to_deviation=to_deviation)
        self.stem = resnet.Root(root_channels(), layers, normalised=True)
        self.stages = nn.ModuleList(resnet.Stage(units, resnet.PostActivation, layers) for units in config.stages())

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> resnet.Map:
        x: Tensor = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return x


class MapEmbed(PatchEmbed):
    """E and its bias over the patches of a map, of one pixel each but without stages."""

    def __init__(self, config: HybridConfig) -> None:
        width, channels, *patch = config.patch_shape()
        super().__init__((patch[0], patch[1]), width, channels)
        self.backbone = Backbone(config)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        return super().forward(self.backbone(images))


class Hybrid(ViT):
    """A hybrid of any units, size and image size. Raises UsageError if the dimensions do not fit."""

    config: HybridConfig

    def make_patch_embed(self) -> PatchEmbed:
        return MapEmbed(self.config)

    @staticmethod
    def taken_filters(filters: Tensor, config: Architecture) -> Tensor:
        assert isinstance(config, HybridConfig)
        return resnet.standardised(filters, config.weight_eps, config.weight_eps_to == "deviation")

    def initialise(self, seed: int, how: str = "paper", head_bias: float = 0.0) -> None:
        """The transformer as a ViT's, the residual network as resnet.initialise says."""
        super().initialise(seed, how, head_bias)
        resnet.initialise(self.patch_embed, torch.Generator().manual_seed(seed))

    def matrices(self) -> dict[str, int]:
        return super().matrices() | resnet.filters(self)
