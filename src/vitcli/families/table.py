"""The families of architectures. One more is a class of its dimensions, a class of its layers, and a line here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from vitcli.config_values import Size, shown
from vitcli.errors import UsageError
from vitcli.families import pretrained
from vitcli.families.base import Architecture
from vitcli.families.bit import BiTConfig
from vitcli.families.hybrid import HybridConfig
from vitcli.families.vit import ModelConfig


@dataclass(frozen=True)
class Family:
    """`build` is the `module:Class` of the model (model/classifier.py), which is imported where weights are made, so that what
    only needs numbers needs no torch. `example` is a name that the family reads.
    """

    config: type[Architecture]
    build: str
    example: str


FAMILIES: dict[str, Family] = {
    "vit": Family(ModelConfig, "vitcli.model.vit:ViT", "ViT-B/16, s/32 or ti/4"),
    "bit": Family(BiTConfig, "vitcli.model.bit:BiT", "R50x1 or R152x4"),
    "hybrid": Family(HybridConfig, "vitcli.model.hybrid:Hybrid", "R50+ViT-B/16"),
}


def named(name: str) -> Architecture | None:
    """The architecture that `name` stands for, timm's and transformers' names included; None where nobody has that name. Raises
    UsageError for one that cannot be.
    """
    own = next((found for f in FAMILIES.values() if (found := f.config.parse(name)) is not None), None)
    return _of_others(name) if own is None else own


def _of_others(name: str) -> Architecture | None:
    """By a name of timm's or transformers', at the image size that it says. Raises UsageError for a family that vit does not have."""
    row = pretrained.find(name)
    if row is not None:
        plain = named(row.spelled)
        assert plain is not None
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.fields.items()
        }
        return replace(plain, img_size=row.img_size, **fields)
    rule = pretrained.generic(name)
    if rule is not None:
        plain = named(rule[0])
        assert plain is not None
        return replace(plain, img_size=rule[1])
    other = pretrained.other_family(name)
    if other and ("_" in name or "-" in name):
        raise UsageError(
            f"{shown(name)} is no model that vit has: {other} is of another family",
            "vit models lists the names that it knows",
        )
    return None


def size_said(name: str) -> Size | None:
    """The image size that a name of timm's or transformers' says; None where it says none."""
    row, rule = pretrained.find(name), pretrained.generic(name)
    return row.img_size if row is not None else rule[1] if rule is not None else None


def model_config(name: str, img_size: Size = (224, 224), classes: int = 0) -> Architecture:
    """The architecture that `name` stands for. Raises UsageError."""
    found = named(name)
    if found is None:
        if os.path.lexists(name) or name.endswith((".safetensors", ".pth", ".npz")):
            raise UsageError(
                f"{shown(name)} is no name of a model",
                f"trained weights: vit finetune {name}, or vit pretrain --init {name}; vit info {name} names the model",
            )
        examples = "; ".join(family.example for family in FAMILIES.values())
        raise UsageError(
            f"unknown model {shown(name)}",
            f"a model is a size and a patch size, such as {examples}, or a name of timm's (vit_small_patch16_224): vit models",
        )
    return replace(found, img_size=img_size, classes=classes)
