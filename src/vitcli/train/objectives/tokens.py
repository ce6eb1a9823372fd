"""What objectives that look at single patches have in common."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitcli.config import Architecture, Config, EvalConfig, ModelConfig
from vitcli.errors import UsageError
from vitcli.model.classifier import Classifier
from vitcli.model.vit import ViT
from vitcli.randomness import generator


def patched(model: Architecture, objective: str) -> ModelConfig:
    """The architecture of a Vision Transformer. Raises UsageError for a model without patches."""
    if not isinstance(model, ModelConfig):
        raise UsageError(
            f"train.objective = {objective} learns from patches, and {model.name} has none",
            "take a Vision Transformer, or another --objective",
        )
    return model


def check_part(config: Config, objective: str, name: str, part: float) -> None:
    """Raises UsageError where `part` of an image's patches, a setting of this `name`, is none of them or all."""
    model = patched(config.model, objective)
    patches = model.grid[0] * model.grid[1]
    if not 0 < part_of(patches, part) < patches:
        raise UsageError(
            f"{objective}.{name} = {part:g} of {patches} patches leaves {'none' if part > 0.5 else 'all'} of them",
            "take another part, or a model with smaller patches",
        )


def part_of(patches: int, part: float) -> int:
    """How many patches a part of them is, rounded down as the decimal number that it is: 0.9 of 100 are 90, and 0.1 of 100 are 10."""
    return int(patches * part + 1e-9)


def shuffled(model: ViT, images: Tensor, seed: int, purpose: str, step: int) -> Int[Tensor, "images patches"]:
    """The patches of each image in an order of its own, by its address."""
    rows, columns = model.grid_of(images)
    numbers = generator(seed, purpose, step).random((len(images), rows * columns), dtype=np.float32)
    return torch.from_numpy(numbers).argsort(dim=1, stable=True).to(images.device)


def taken(
    tokens: Float[Tensor, "batch patches dim"], index: Int[Tensor, "batch chosen"]
) -> Float[Tensor, "batch chosen dim"]:
    """Of each image the tokens at its own places."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def vit(model: Classifier) -> ViT:
    assert isinstance(model, ViT)  # `check` has seen to it
    return model


def pixels(images: Float[Tensor, "batch 3 *rest"], config: EvalConfig) -> Float[Tensor, "batch 3 *rest"]:
    """Normalised values as they were in 0..1."""
    shape = [1, 3, *[1] * (images.ndim - 2)]
    mean, std = (torch.tensor(v, device=images.device).view(shape) for v in (config.mean, config.std))
    return images * std + mean


@torch.no_grad()
def initialise(modules: nn.Module, draw: torch.Generator) -> None:
    """Linear layers Xavier uniform, biases zero, norms one and zero (facebookresearch/mae models_mae.py)."""
    for module in modules.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=draw)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
