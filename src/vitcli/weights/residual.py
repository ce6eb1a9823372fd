"""The layouts of checkpoints of residual networks, and of those below a hybrid's patches, as tables; and what their shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitcli.config import EvalConfig
from vitcli.families.base import Shape
from vitcli.families.bit import GROUPS, BiTConfig, groups_of
from vitcli.families.hybrid import HybridConfig
from vitcli.families.vit import ModelConfig
from vitcli.weights.layout import Layout

Shapes = Mapping[str, Shape]

_SQUASHED = EvalConfig(resize="square", crop=1.0, interpolation="bilinear")  # pixels in -1…1
_UNIT = {
    **{f"conv{n}.weight": f"conv{n}.weight" for n in (1, 2, 3)},
    **{f"norm{n}.{{p}}": f"norm{n}.{{p}}" for n in (1, 2, 3)},
    "downsample.conv.weight": "downsample.conv.weight",
    "downsample.norm.{p}": "downsample.norm.{p}",
}
"""A unit of timm's and of transformers', under vit's names."""

# --- below a hybrid's patches ------------------------------------------------------------------------------

_BELOW = "patch_embed.backbone."
TIMM_BELOW = {
    f"{_BELOW}stem.conv.weight": f"{_BELOW}stem.conv.weight",
    f"{_BELOW}stem.norm.{{p}}": f"{_BELOW}stem.norm.{{p}}",
    # without stages the root alone (vit_tiny_r_s16_p8)
    f"{_BELOW}conv.weight": f"{_BELOW}stem.conv.weight",
    f"{_BELOW}norm.{{p}}": f"{_BELOW}stem.norm.{{p}}",
    **{
        f"{_BELOW}stages.{{i}}.blocks.{{j}}.{key}": f"{_BELOW}stages.{{i}}.blocks.{{j}}.{to}"
        for key, to in _UNIT.items()
    },
}
_GOOGLE_UNIT = {
    **{f"conv{n}/kernel": f"conv{n}.weight@hwio" for n in (1, 2, 3)},
    **{f"gn{n}/{{s}}": f"norm{n}.{{s}}@vector" for n in (1, 2, 3)},
    "conv_proj/kernel": "downsample.conv.weight@hwio",
    "gn_proj/{s}": "downsample.norm.{s}@vector",
}
GOOGLE_BELOW = {  # google-research/vision_transformer vit_jax/models_resnet.py
    "conv_root/kernel": f"{_BELOW}stem.conv.weight@hwio",
    "gn_root/{s}": f"{_BELOW}stem.norm.{{s}}@vector",
    **{
        f"block{{i}}/unit{{j}}/{key}": f"{_BELOW}stages.{{i-1}}.blocks.{{j-1}}.{to}" for key, to in _GOOGLE_UNIT.items()
    },
}

# --- BiT ---------------------------------------------------------------------------------------------------

_BIT = Layout(
    name="BiT",
    markers=(),
    table={},
    family="bit",
    needed=("stem.conv.weight", "stages.0.blocks.0.conv1.weight", "norm.weight"),
    eval=_SQUASHED,
)

TIMM_BIT = replace(
    _BIT,
    name="timm BiT",  # timm models/resnetv2.py, resnetv2_*_bit
    markers=("stages.{i}.blocks.{j}.conv3.weight",),
    table={
        "stem.conv.weight": "stem.conv.weight",
        **{f"stages.{{i}}.blocks.{{j}}.{key}": f"stages.{{i}}.blocks.{{j}}.{to}" for key, to in _UNIT.items()},
        "norm.{p}": "norm.{p}",
        "head.fc.weight": "head.weight@matrix",
        "head.fc.bias": "head.bias",
        "head.{p}": "head.{p}",  # vit's own, without its header
    },
    anchor="stem.conv.weight",
    keys={"weight_eps": 1e-8, "groups": GROUPS},
    fixed=False,
)

GOOGLE_BIT = replace(
    _BIT,
    name="Google BiT",  # google-research/big_transfer bit_pytorch/models.py, of its npz files
    markers=("resnet/root_block/standardized_conv2d/kernel",),
    table={
        "resnet/root_block/standardized_conv2d/kernel": "stem.conv.weight@hwio",
        **{
            f"resnet/block{{i}}/unit{{j}}/{part}/{key}": f"stages.{{i-1}}.blocks.{{j-1}}.{to}"
            for n, part in enumerate("abc", start=1)
            for key, to in {
                "standardized_conv2d{n}/kernel": f"conv{n}.weight@hwio",
                "group_norm{n}/gamma": f"norm{n}.weight@vector",
                "group_norm{n}/beta": f"norm{n}.bias@vector",
            }.items()
        },
        "resnet/block{i}/unit{j}/a/proj/standardized_conv2d{n}/kernel": "stages.{i-1}.blocks.{j-1}.downsample.conv.weight@hwio",
        "resnet/group_norm{n}/gamma": "norm.weight@vector",
        "resnet/group_norm{n}/beta": "norm.bias@vector",
        "resnet/head/conv2d{n}/kernel": "head.weight@hwio_matrix",
        "resnet/head/conv2d{n}/bias": "head.bias@vector",
    },
    anchor="resnet/root_block/standardized_conv2d/kernel",
    keys={"groups": GROUPS},
)

TORCH_BIT = replace(
    _BIT,
    name="BiT of bit_pytorch",  # google-research/big_transfer bit_pytorch/models.py
    markers=("body.block{i}.unit{j}.conv3.weight",),
    table={
        "root.conv.weight": "stem.conv.weight",
        **{
            f"body.block{{i}}.unit{{j}}.conv{n}.weight": f"stages.{{i-1}}.blocks.{{j-1}}.conv{n}.weight"
            for n in (1, 2, 3)
        },
        **{f"body.block{{i}}.unit{{j}}.gn{n}.{{p}}": f"stages.{{i-1}}.blocks.{{j-1}}.norm{n}.{{p}}" for n in (1, 2, 3)},
        "body.block{i}.unit{j}.downsample.weight": "stages.{i-1}.blocks.{j-1}.downsample.conv.weight",
        "head.gn.{p}": "norm.{p}",
        "head.conv.weight": "head.weight@matrix",
        "head.conv.bias": "head.bias",
    },
    anchor="root.conv.weight",
    keys={"groups": GROUPS},
)

TRANSFORMERS_BIT = replace(
    _BIT,
    name="transformers BiT",  # huggingface/transformers models/bit/modeling_bit.py
    markers=("encoder.stages.{i}.layers.{j}.conv3.weight",),
    table={
        "embedder.convolution.weight": "stem.conv.weight",
        **{f"encoder.stages.{{i}}.layers.{{j}}.{key}": f"stages.{{i}}.blocks.{{j}}.{to}" for key, to in _UNIT.items()},
        "norm.{p}": "norm.{p}",
        "classifier.1.{p}": "head.{p}",
    },
    prefixes=("bit.",),
    anchor="embedder.convolution.weight",
    keys={"weight_eps": 1e-8},
    eval=EvalConfig(crop=224 / 256),
)

LAYOUTS = (TIMM_BIT, GOOGLE_BIT, TORCH_BIT, TRANSFORMERS_BIT)

# --- what shapes tell --------------------------------------------------------------------------------------


def _units(shapes: Shapes, before: str) -> tuple[int, ...]:
    """Units of each stage. Raises ValueError where a stage is missing between others."""
    found: dict[int, set[int]] = {}
    for name in shapes:
        if name.startswith(f"{before}stages."):
            stage, _, unit = name.removeprefix(f"{before}stages.").split(".")[:3]
            found.setdefault(int(stage), set()).add(int(unit))
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"stages {', '.join(map(str, sorted(found)))} and none between")
    return tuple(1 + max(found[stage]) for stage in range(len(found)))


def patched_by(shapes: Shapes, keys: dict[str, Any]) -> ModelConfig:
    """A ViT with the dimensions of what is below its patches, the others at their defaults; `patch` is that of a token for E of
    one pixel or number. `keys` are the layout's own. Raises ValueError.
    """
    if f"{_BELOW}stem.conv.weight" not in shapes:
        return ModelConfig(name="", patch=(1, 1))
    units = _units(shapes, _BELOW)
    model = HybridConfig(name="", units=units, **keys)
    return replace(model, patch=(model.stride, model.stride))


def bit(shapes: Shapes, keys: dict[str, Any]) -> BiTConfig:
    """The network of these tensors, at the usual image size. `keys` are the layout's own. Raises ValueError."""
    channels, _, side, _ = shapes["stem.conv.weight"]
    classes = shapes.get("head.weight", (0,))[0]
    model = BiTConfig(
        name="",
        units=_units(shapes, ""),
        factor=channels / 64,
        root="large" if side == 7 else "small",
        groups=groups_of(channels / 64),
        classes=classes,
        **keys,
    )
    return replace(model, name=model.spelled())
