"""BiT networks and hybrids as timm and transformers write them: configuration, names of weights, and what neither of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcli.errors import CheckpointError
from vitcli.families.bit import BiTConfig
from vitcli.families.hybrid import HybridConfig
from vitcli.families.resnet import UNITS
from vitcli.weights import formats, formats_timm
from vitcli.weights.describe import Description
from vitcli.weights.keys import keys_for
from vitcli.weights.residual import TRANSFORMERS_BIT

_ONNX = "export it with --format onnx"

# --- hybrids -----------------------------------------------------------------------------------------------

_TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""The models of timm's vision_transformer_hybrid.py with such units: the rest of them is given as arguments."""


def hybrid_of(description: Description) -> HybridConfig:
    assert isinstance(description.model, HybridConfig)
    return description.model


def check_timm_hybrid(description: Description) -> None:
    """Raises CheckpointError for what timm's hybrids do not have."""
    model = hybrid_of(description)
    formats_timm.check_timm(description)
    if model.distilled:
        raise CheckpointError("timm has no hybrid with a distillation token", _ONNX)
    if model.units not in _TIMM_HYBRIDS:
        raise CheckpointError(f"timm has no hybrid with the units of {model.name}", _ONNX)


def timm_hybrid_config(description: Description) -> dict[str, Any]:
    """`config.json`: a hybrid of timm's by its units, with the dimensions of its transformer as arguments."""
    model = hybrid_of(description)
    tree = formats_timm.timm_config(description)
    tree["architecture"] = _TIMM_HYBRIDS[model.units]
    tree["model_args"]["patch_size"] = [side // model.stride for side in model.patch]
    tree["pretrained_cfg"]["first_conv"] = (
        "patch_embed.backbone.stem.conv" if model.units else "patch_embed.backbone.conv"
    )
    return tree


def timm_hybrid_weights(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A root without stages is timm's whole backbone."""
    if hybrid_of(description).units:
        return dict(tensors)
    return {name.replace("backbone.stem.", "backbone."): tensor for name, tensor in tensors.items()}


# --- BiT ---------------------------------------------------------------------------------------------------

_TIMM_BITS = {50: ("resnetv2_50x1_bit", 1), 101: ("resnetv2_101x1_bit", 1), 152: ("resnetv2_152x2_bit", 2)}
"""A model of timm's resnetv2.py for each number of layers, and the factor that it fixes."""


def bit_of(description: Description) -> BiTConfig:
    assert isinstance(description.model, BiTConfig)
    return description.model


def _layers(model: BiTConfig) -> int:
    return next((layers for layers, units in UNITS.items() if units == model.units), 0)


def check_timm_bit(description: Description) -> None:
    """Raises CheckpointError for what timm's BiT does not have."""
    model = bit_of(description)
    what = (
        "the root of small images"
        if model.root == "small"
        else f"groups of {model.groups}"
        if model.groups != 32
        else "" if _layers(model) in _TIMM_BITS else f"the units of {model.name}"
    )  # fmt: skip
    if what:
        raise CheckpointError(f"timm has no BiT with {what}", _ONNX)


def timm_bit_config(description: Description) -> dict[str, Any]:
    """`config.json`: BiT of that many layers, channels as arguments where its factor is another."""
    model, config = bit_of(description), description.eval
    architecture, factor = _TIMM_BITS[_layers(model)]
    arguments: dict[str, Any] = {}
    if model.factor != factor:
        arguments = {
            "stem_chs": model.stem_channels // factor,
            "channels": [stage[0].outputs // factor for stage in model.stages()],
        }
    tree = formats_timm.timm_document(description, architecture, arguments, "stem.conv", "head.fc")
    tree |= {"num_features": model.features, "global_pool": "avg"}
    tree["pretrained_cfg"] |= {"fixed_input_size": False, "pool_size": None, "crop_pct": config.crop}
    return tree


def timm_bit_weights(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's head is a convolution of one pixel."""
    written = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    return written | {"head.fc.weight": tensors["head.weight"][:, :, None, None], "head.fc.bias": tensors["head.bias"]}


def check_transformers_bit(description: Description) -> None:
    """Raises CheckpointError for what transformers' BiT does not have."""
    if bit_of(description).root == "small":
        raise CheckpointError("transformers has no BiT with the root of small images", _ONNX)


def transformers_bit_config(description: Description) -> dict[str, Any]:
    model = bit_of(description)
    return {
        "architectures": ["BitForImageClassification"],
        "model_type": "bit",
        "depths": list(model.units),
        "hidden_sizes": [stage[0].outputs for stage in model.stages()],
        "embedding_size": model.stem_channels,
        "num_groups": model.groups,
        "image_size": list(model.img_size),
        "layer_type": "preactivation",
        "hidden_act": "relu",
        **formats.transformers_labels(description),
    }


def transformers_bit_weights(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key if name.startswith("head.") else f"bit.{key}": tensor
        for name, tensor in tensors.items()
        for key, _ in keys_for(name, TRANSFORMERS_BIT)
    }
