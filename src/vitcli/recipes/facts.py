"""What is known before a recipe decides, and what recipes have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from vitcli.config import (
    Architecture,
    EvalConfig,
    ModelConfig,
    Size,
    model_config,
)
from vitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known before a recipe decides."""

    command: str  # pretrain or finetune
    images: int  # for training
    classes: int
    size: Size  # of the images: the common one, or a typical one
    mirror: bool  # whether a mirror image keeps its class
    device: str
    model: str = ""  # asked for by name
    img_size: Size | None = None  # asked for
    parent: Architecture | None = None  # finetune: the checkpoint's model
    parent_eval: EvalConfig | None = None
    new_head: bool = True  # finetune: the classes are not the checkpoint's
    compute: float | None = None  # FLOPs of a matrix product that fit into the time budget, if there is one
    parent_seen: int | None = (
        None  # finetune: images on which the checkpoint was trained from random weights, if it was
    )
    epochs: float | None = None  # asked for, as the next two
    steps: int | None = None
    batch_size: int | None = None
    tune: str = "all"  # which weights are trained (train.tune)


def model_for(facts: Facts, default: str, img_size: Size = (224, 224)) -> Architecture:
    """The model asked for, else the default, with the GELU of the published code; finetune keeps its parent's."""
    size = facts.img_size or img_size
    if facts.parent is not None:
        return replace(facts.parent.without_dropout(), img_size=size, classes=facts.classes)
    return model_config(facts.model or default, size, facts.classes).suited_to(size).published()


def vit_for(facts: Facts, recipe: str) -> ModelConfig:
    """The model of a recipe that is published for Vision Transformers alone. Raises UsageError for another one."""
    model = model_for(facts, "ViT-B/16")
    if not isinstance(model, ModelConfig):
        raise UsageError(f"recipe {recipe} is of Vision Transformers, not of {model.name}", "leave --recipe out")
    return model


def evaluation_for(facts: Facts) -> EvalConfig:
    """As the checkpoint's, where there is one; without mirrored views of images whose mirror image is of another class."""
    evaluation = facts.parent_eval or EvalConfig()
    return evaluation if facts.mirror else replace(evaluation, views=1)


def is_tiny(facts: Facts) -> bool:
    return max(facts.size) <= 64


def is_mild(facts: Facts) -> bool:
    """Whether images are too small to lose more than a little at the border: up to 16 px, and about as wide as high."""
    return max(facts.size) <= 16 and max(facts.size) < 1.5 * min(facts.size)


_LONG, _MOST_LONG = 2.0, 16.0
"""Longer over shorter side from which images are long, and the most that a model's image has."""


def is_long(size: Size) -> bool:
    """Whether an image is so long that a resized crop of it is mostly its central part, and its centre a third or less."""
    return max(size) >= _LONG * min(size)


def is_shaped_like(size: Size, img_size: Size) -> bool:
    """Whether squashing images of `size` to `img_size` changes width over height by less than a half."""
    change = (size[1] / size[0]) / (img_size[1] / img_size[0])
    return 1 / 1.5 < change < 1.5


def shaped(facts: Facts, img_size: Size, patch: Size) -> Size:
    """`img_size`, or for long images of another shape a size of their shape with about as many patches.

    DeiT-Ti's probe on strips of 128 x 512 px with a pet in one of four places (914 for training, 148 held out) has 0.236
    where the centre is cut out at 224 px, 0.122 where the strip is squashed to 224 px, and 0.473 at 112 x 448 px.
    """
    if facts.img_size or not is_long(facts.size) or is_shaped_like(facts.size, img_size):
        return img_size
    shape = min(_MOST_LONG, max(1 / _MOST_LONG, facts.size[1] / facts.size[0]))
    area = img_size[0] * img_size[1]
    rows, columns = math.sqrt(area / shape) / patch[0], math.sqrt(area * shape) / patch[1]
    return max(1, round(rows)) * patch[0], max(1, round(columns)) * patch[1]


def crop(facts: Facts, img_size: Size, tiny: bool) -> Literal["pad", "resized"]:
    """Shifts of small images and of long ones at a size of their shape, so that training sees their ends."""
    long = is_long(facts.size) and is_shaped_like(facts.size, img_size)
    return "pad" if (tiny and not is_mild(facts)) or long else "resized"
