"""Whether the dimensions of a Vision Transformer fit together."""

from __future__ import annotations

import math

from vitcli.config_values import check_bounds, format_size
from vitcli.errors import UsageError
from vitcli.families.vit_keys import VitKeys

_MOST_TOKENS = 10**6
_MOST_PARAMETERS = 10**12
"""Bounds far above any Vision Transformer that was trained (22 billion parameters, 48 blocks, 6144 channels), as are those of its
dimensions."""


def check(model: VitKeys) -> None:
    check_bounds("model", model)
    if model.width % model.heads:
        raise UsageError(
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}",
            "every head has width / heads channels; 64 are usual",
        )
    _check_size(model)
    for side, pixels, patch in zip(("height", "width"), model.img_size, model.patch, strict=True):
        if pixels % patch:
            near = max(patch, round(pixels / patch) * patch)
            raise UsageError(
                f"image {side} {pixels} is not a multiple of the patch size {patch} of {model.name}",
                f"the nearest {side} that is: {near}",
            )
    if model.positions == "2d" and model.width % 2:
        raise UsageError(
            f"model.positions = 2d gives a column and a row half of the channels each, and model.width = {model.width} is odd",
            "take an even width",
        )
    _check_reading(model)
    _check_places(model)


def _check_size(model: VitKeys) -> None:
    """Raises UsageError for dimensions that no machine holds, before anything is computed with them."""
    if model.tokens > _MOST_TOKENS:
        raise UsageError(
            f"{format_size(model.img_size)} px in patches of {format_size(model.patch)} are {model.tokens:,} tokens, over "
            f"{_MOST_TOKENS:,}",
            "take a smaller --img-size, or a model with larger patches",
        )
    block = 4 * model.width**2 + 2 * model.width * model.mlp
    ends = model.patch_inputs + model.tokens + model.classes
    parameters = model.depth * (block + model.offsets * model.width) + ends * model.width
    if parameters > _MOST_PARAMETERS:
        raise UsageError(
            f"{model.name} with {model.classes:,} classes has about {min(parameters, 10**300):.2g} parameters, over {_MOST_PARAMETERS:.0e}",
            "take a smaller --model",
        )


def _check_reading(model: VitKeys) -> None:
    """Raises UsageError where what the head is to read is not there."""
    if model.pool not in ("mean", "map") and not model.class_token:
        raise UsageError(f"model.pool = {model.pool} needs model.class_token = true", "or set model.pool=mean")
    if model.pool == "map" and model.width % (model.pool_heads or model.heads):
        raise UsageError(
            f"model.width = {model.width} is not a multiple of model.pool_heads = {model.pool_heads}",
            "every head has width / pool_heads channels",
        )
    if model.norm == "after" and model.pool != "mean":
        raise UsageError(f"model.norm = after needs model.pool = mean, not {model.pool}", "leave model.norm out")
    if model.distilled and (model.pool != "cls" or model.pre_logits or model.registers):
        raise UsageError(
            "model.distilled goes with model.pool = cls alone", "leave out model.pre_logits and model.registers"
        )
    if model.pre_logits and model.pool == "cls+mean":
        raise UsageError("model.pre_logits reads one token, not model.pool = cls+mean", "leave one of them out")


def _check_places(model: VitKeys) -> None:
    """Raises UsageError where positions in attention do not fit the rest."""
    if model.rope != "none" and model.width // model.heads % 4:
        raise UsageError(
            f"model.rope turns pairs of channels for two axes: heads of {model.width // model.heads} are no multiple of 4",
            "take another model.heads or model.width",
        )
    side = math.isqrt(model.registers)
    if model.rope_registers and (model.rope == "none" or side * side != model.registers or not side):
        raise UsageError(
            f"model.rope_registers turns registers as a square grid, and there are {model.registers} with model.rope = {model.rope}",
            "take model.registers=4, or model.rope_registers=0",
        )
    if len(model.rope_grid) == 1:
        raise UsageError(f"model.rope_grid = {model.rope_grid[0]} is no grid", "give rows and columns, or none")
    if model.positions == "bias" and (model.prefix_tokens != 1 or not model.class_token):
        raise UsageError(
            "model.positions = bias is of patches and one class token", "leave model.registers and model.distilled out"
        )
