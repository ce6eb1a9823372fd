"""The families of architectures. One more is a class of its dimensions, a class of its layers, and a line here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitcli.config_values import Size, shown
from vitcli.errors import UsageError
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
    """The architecture that `name` stands for; None where no family reads it. Raises UsageError for one that cannot be."""
    return next((found for f in FAMILIES.values() if (found := f.config.parse(name)) is not None), None)


def model_config(name: str, img_size: Size = (224, 224), classes: int = 0) -> Architecture:
    """The architecture that `name` stands for. Raises UsageError."""
    found = named(name)
    if found is None:
        examples = "; ".join(family.example for family in FAMILIES.values())
        raise UsageError(f"unknown model {shown(name)}", f"a model is a size and a patch size, such as {examples}")
    return replace(found, img_size=img_size, classes=classes)
