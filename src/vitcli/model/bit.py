"""BiT's residual network (Kolesnikov et al., 2020, §3.1), under timm's parameter names but for the head's.

images → root → stages of pre-activated bottleneck units → norm, rectifier → mean over the map → head
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import Architecture
from vitcli.families.bit import BiTConfig
from vitcli.model import resnet
from vitcli.model.classifier import Classifier


class BiT(Classifier):
    """A BiT network of any units, factor and image size. Raises UsageError if the dimensions do not fit."""

    config: BiTConfig

    def __init__(self, config: BiTConfig) -> None:
        super().__init__(config)
        layers = resnet.Layers(config.groups, config.norm_eps, config.weight_eps, hybrid=False)
        self.stem = resnet.Root(config.stem_channels, layers, large=config.root == "large")
        self.stages = nn.ModuleList(resnet.Stage(units, resnet.PreActivation, layers) for units in config.stages())
        self.norm = layers.norm(config.features)
        self.head = nn.Linear(config.features, config.classes) if config.classes else nn.Identity()

    @property
    def heads(self) -> list[nn.Linear]:
        return [self.head] if isinstance(self.head, nn.Linear) else []

    def features(
        self, images: Float[Tensor, "batch 3 height width"], keep: Tensor | None = None
    ) -> Float[Tensor, "batch inputs"]:
        x: Tensor = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        mean: Tensor = self.norm(x).mean((2, 3))
        return mean

    @staticmethod
    def taken_filters(filters: Tensor, config: Architecture) -> Tensor:
        assert isinstance(config, BiTConfig)
        return resnet.standardised(filters, config.weight_eps)

    # --- weights and the optimizer ---

    def initialise(self, seed: int, how: str = "paper", head_bias: float = 0.0) -> None:
        """As resnet.initialise says, whatever `how`."""
        resnet.initialise(self, torch.Generator().manual_seed(seed))
        self.new_head(head_bias)

    @property
    def layers(self) -> int:
        return len(self.config.units) + 1

    def layer_of(self, name: str) -> int:
        """0 for the root, then stage by stage, since a rate that fell with every unit would leave the first of a hundred none; the last
        is what follows them.
        """
        if name.startswith("stem."):
            return 0
        if not name.startswith("stages."):
            return self.layers
        return int(name.split(".")[1]) + 1

    def matrices(self) -> dict[str, int]:
        return resnet.filters(self)
