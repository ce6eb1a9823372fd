"""What training, evaluation, checkpoints and exports ask of any model, whatever its family."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import Architecture, Size
from vitcli.families.table import FAMILIES
from vitcli.model.attention import AttentionPath
from vitcli.randomness import Step


class Classifier(nn.Module):
    """A model of one family (families/table.py). Raises UsageError if the dimensions of `config` do not fit.

    Names of its parameters and buffers are those of `config.shapes()`, and all are floating-point. What its own class must add: the layers, `heads`, `features`,
    `initialise` and `layer_of`; the rest has an answer that suits a model without it.
    """

    config: Architecture

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        config.check()
        self.config = config
        self._also_takes: Size | None = None

    # --- the forward pass ---

    @property
    def heads(self) -> list[nn.Linear]:
        """The layers that give logits; none without classes. With more than one, `forward` says what becomes of them."""
        raise NotImplementedError

    def features(
        self, images: Float[Tensor, "batch channels height width"], keep: Tensor | None = None
    ) -> Float[Tensor, "batch inputs"]:
        """What the head reads. `keep` is what `draw` drew for these images."""
        raise NotImplementedError

    def forward(
        self, images: Float[Tensor, "batch channels height width"], keep: Tensor | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Logits of normalised images, the first head's; without a head the features. Raises ValueError for images of another size."""
        self.check_size(images)
        features = self.features(images, keep)
        return self.heads[0](features) if self.heads else features

    def logits(self, images: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> list[Tensor]:
        """Of each head apart, `[batch, classes]`."""
        return [self(images, keep)]

    def check_size(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """Raises ValueError for images of another size than the configuration's, or of `taking`."""
        if tuple(images.shape[2:]) not in (tuple(self.config.img_size), self._also_takes):
            raise ValueError(f"images of {tuple(images.shape[2:])}, the model takes {tuple(self.config.img_size)}")

    @contextlib.contextmanager
    def taking(self, size: Size) -> Iterator[None]:
        """Within it, images of `size` are taken as well."""
        before, self._also_takes = self._also_takes, size
        try:
            yield
        finally:
            self._also_takes = before

    def draw(self, seed: int, step: Step, batch: int, device: torch.device | None = None) -> Tensor | None:
        """What a training step draws for the images of a global batch, its last axis, from (seed, step) and on `device`;
        None: nothing.
        """
        return None

    def use_attention(self, path: AttentionPath | None) -> None:
        """How attention is computed, where there is any; None: the fastest for device and length."""

    def use_checkpointing(self, on: bool) -> None:
        """Whether a block's inner values are computed again for the backward pass instead of being kept, where there are blocks."""

    # --- weights ---

    def initialise(self, seed: int, how: str = "paper", head_bias: float = 0.0) -> None:
        """Every parameter anew; the head is zero with a bias of `head_bias`."""
        raise NotImplementedError

    @torch.no_grad()
    def new_head(self, bias: float = 0.0) -> None:
        """Heads of weights zero (paper §3.2) and this bias."""
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, bias)

    def head_names(self) -> tuple[str, ...]:
        """What the names of the heads' parameters begin with."""
        heads = set(map(id, self.heads))
        return tuple(f"{name}." for name, module in self.named_modules() if id(module) in heads)

    def replaced_names(self) -> tuple[str, ...]:
        """What the names of the parameters begin with that a new head replaces."""
        return self.head_names()

    @staticmethod
    def resize(
        tensors: Mapping[str, Tensor], old: Architecture, new: Architecture, method: str = ""
    ) -> dict[str, Tensor]:
        """The weights that differ for another image size, or whatever else of `new` may differ. Raises UsageError."""
        return {}

    @staticmethod
    def taken_filters(filters: Tensor, config: Architecture) -> Tensor:
        """The filters that read the image (`config.reader`), as a pass takes them."""
        return filters

    # --- the optimizer ---

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, from 0 for what reads the image to `layers` for the head: for layer-wise rates."""
        raise NotImplementedError

    @property
    def layers(self) -> int:
        return max(self.layer_of(name) for name, _ in self.named_parameters())

    def undecayed(self) -> frozenset[str]:
        """Names of parameters without weight decay, beside vectors."""
        return frozenset()

    def matrices(self) -> dict[str, int]:
        """The parameters that Muon takes, and how many matrices each holds."""
        return {}


def class_of(config: Architecture) -> type[Classifier]:
    """The class of a family's models."""
    module, _, name = FAMILIES[config.family].build.partition(":")
    found: type[Classifier] = getattr(import_module(module), name)
    return found


def build(config: Architecture) -> Classifier:
    """A model of any family, its weights not set yet. Raises UsageError if the dimensions do not fit."""
    return class_of(config)(config)
