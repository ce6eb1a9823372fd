"""A family of architectures: perceptrons with one hidden layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.config_values import key
from vitcli.families.base import Activations, Architecture, Cost, Shape
from vitcli.families.table import FAMILIES, Family
from vitcli.model.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Architecture):
    family: str = key("mlp", "family of architectures", fixed=True, settable=False)
    hidden: int = key(32, "numbers of the hidden layer", least=1, most=10**5, fixed=True)

    DIMENSIONS: ClassVar[frozenset[str]] = frozenset({"hidden"})

    @classmethod
    def parse(cls, name: str) -> MLPConfig | None:
        match = re.fullmatch(r"mlp-(\d{1,5})", name.strip(), re.IGNORECASE)
        return cls(name=f"MLP-{int(match[1])}", hidden=int(match[1])) if match else None

    def spelled(self) -> str:
        return f"MLP-{self.hidden}"

    @property
    def features(self) -> int:
        return self.hidden

    def cost(self) -> Cost:
        pixels = 3 * self.img_size[0] * self.img_size[1]
        head = (self.hidden + 1) * self.classes
        held = Activations(float32=pixels + 2 * self.hidden + 4 * self.classes)
        return Cost(
            parameters=(pixels + 1) * self.hidden + head,
            head_parameters=head,
            macs=pixels * self.hidden + self.hidden * self.classes,
            head_macs=self.hidden * self.classes,
            training=held,
            training_head=held,
            evaluation=held,
        )

    def shapes(self) -> dict[str, Shape]:
        pixels = 3 * self.img_size[0] * self.img_size[1]
        head = {"head.weight": (self.classes, self.hidden), "head.bias": (self.classes,)} if self.classes else {}
        return {"hidden.weight": (self.hidden, pixels), "hidden.bias": (self.hidden,), **head}


class MLP(Classifier):
    config: MLPConfig

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(3 * config.img_size[0] * config.img_size[1], config.hidden)
        self.head = nn.Linear(config.hidden, config.classes) if config.classes else nn.Identity()

    @property
    def heads(self) -> list[nn.Linear]:
        return [self.head] if isinstance(self.head, nn.Linear) else []

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return torch.relu(self.hidden(images.flatten(1)))

    @torch.no_grad()
    def initialise(self, seed: int, how: str = "paper", head_bias: float = 0.0) -> None:
        nn.init.xavier_uniform_(self.hidden.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.hidden.bias)
        self.new_head(head_bias)

    def layer_of(self, name: str) -> int:
        return 0 if name.startswith("hidden.") else 1

    @staticmethod
    def resize(
        tensors: Mapping[str, Tensor], old: Architecture, new: Architecture, method: str = ""
    ) -> dict[str, Tensor]:
        weight = tensors["hidden.weight"].unflatten(1, (3, *old.img_size))
        ratio = (old.img_size[0] * old.img_size[1]) / (new.img_size[0] * new.img_size[1])
        return {"hidden.weight": (ratio * F.interpolate(weight, new.img_size, mode="bilinear")).flatten(1)}


def add() -> None:
    FAMILIES["mlp"] = Family(MLPConfig, "outside.family:MLP", "mlp-64")
