"""What objectives that look at single patches have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from vitcli import host
from vitcli.config import Architecture, Config, EvalConfig, ModelConfig, format_size
from vitcli.errors import UsageError
from vitcli.model.classifier import Classifier
from vitcli.model.vit import ViT
from vitcli.randomness import Step, step_uniforms
from vitcli.train.progressive import stages


def patched(model: Architecture, objective: str) -> ModelConfig:
    """The architecture of a Vision Transformer. Raises UsageError for a model without patches of the image."""
    if not isinstance(model, ModelConfig) or not model.reads_pixels:
        raise UsageError(
            f"train.objective = {objective} learns from patches of the image, and {model.name} has none",
            "take a Vision Transformer, or another --objective",
        )
    return model


def check_part(config: Config, objective: str, name: str, counted: Callable[[int, float], int]) -> None:
    """Raises UsageError where the part of an image's patches that is set by `name` leaves nothing to see or nothing to guess, at one
    of the sizes that a run trains at. `counted` says how many of so many patches the part is.
    """
    part = getattr(config.settings_of(objective), name)
    for _, size in stages(config.model, config.train.low_res):
        rows, columns = replace(patched(config.model, objective), img_size=size).grid
        if 0 < counted(rows * columns, part) < rows * columns:
            continue
        small = size != config.model.img_size
        raise UsageError(
            f"{objective}.{name} = {part:g} of {rows * columns} patches leaves nothing to see or nothing to guess"
            + (f", at the {format_size(size)} px of train.low_res" if small else ""),
            "leave train.low_res out" if small else "take another part, or a model with smaller patches",
        )


def part_of(patches: int, part: float) -> int:
    """How many patches a part of them is, rounded down as the decimal number that it is: 0.9 of 100 are 90, and 0.1 of 100 are 10."""
    return int(patches * part + 1e-9)


def shuffled(model: ViT, images: Tensor, seed: int, purpose: str, step: Step) -> Int[Tensor, "images patches"]:
    """The patches of each image in an order of its own, by its address."""
    rows, columns = model.grid_of(images)
    numbers = step_uniforms(seed, purpose, step, len(images), rows * columns, host.numbers_of(images.device))
    return numbers.argsort(dim=1, stable=True).to(images.device)


def taken(
    tokens: Shaped[Tensor, "batch patches dim"], index: Int[Tensor, "batch chosen"]
) -> Shaped[Tensor, "batch chosen dim"]:
    """Of each image the tokens at its own places."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def vit(model: Classifier) -> ViT:
    assert isinstance(model, ViT)  # `check` has seen to it
    return model


def pixels(images: Float[Tensor, "batch channels *rest"], config: EvalConfig) -> Float[Tensor, "batch channels *rest"]:
    """Normalised values as they were in 0..1."""
    shape = [1, -1, *[1] * (images.ndim - 2)]
    mean, std = (host.constants(v, images.device).view(shape) for v in (config.mean, config.std))
    return images * std + mean


@torch.no_grad()
def initialise(modules: nn.Module, draw: torch.Generator) -> None:
    """Linear layers Xavier uniform, biases zero, norms one and zero (facebookresearch/mae models_mae.py)."""
    for module in modules.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=draw)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
