"""The folders that transformers loads: configuration and weights as it writes them; timm's are in formats_timm.py.

| a model with                                          | is for transformers                              |
|-------------------------------------------------------|--------------------------------------------------|
| a class token that the head reads                     | ViTForImageClassification                        |
| two distilled heads                                   | DeiTForImageClassificationWithTeacher            |
| layer scale, registers, or a mean beside a class token | Dinov2…ForImageClassification, if it is square |
| no class token, the mean after the last LayerNorm     | SiglipForImageClassification, if it is square    |
| a norm before the blocks, the mean without a last one | CLIPForImageClassification, if it is square      |
| relative position bias, a LayerNorm after the mean    | BeitForImageClassification, if it is square      |

transformers has nothing that holds the others: a tanh layer before the head, a LayerNorm after the mean, pooling by attention or rotary
positions before a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcli.config import ModelConfig, Size, format_size
from vitcli.config_values import RGB
from vitcli.errors import CheckpointError
from vitcli.weights.describe import Description
from vitcli.weights.formats_timm import has_timm
from vitcli.weights.keys import keys_for
from vitcli.weights.layouts import (
    BEIT,
    HF_CLIP_CLASSIFIER,
    HF_SIGLIP,
    TRANSFORMERS_DEIT,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_VIT,
    Layout,
)
from vitcli.weights.sidecar import MULTI_LABEL

_BICUBIC, _BILINEAR = 3, 2  # Pillow's numbers


# --- transformers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TheirClass:
    """A class of transformers, its model_type, and how its files name things."""

    name: str
    model_type: str
    layout: Layout
    prefix: str


_VIT = TheirClass("ViTForImageClassification", "vit", TRANSFORMERS_VIT, "vit.")
_DEIT = TheirClass("DeiTForImageClassificationWithTeacher", "deit", TRANSFORMERS_DEIT, "deit.")
_DINOV2 = TheirClass("Dinov2ForImageClassification", "dinov2", TRANSFORMERS_DINOV2, "dinov2.")
_REGISTERS = TheirClass(
    "Dinov2WithRegistersForImageClassification",
    "dinov2_with_registers",
    TRANSFORMERS_DINOV2,
    "dinov2_with_registers.",
)
_SIGLIP = TheirClass("SiglipForImageClassification", "siglip", HF_SIGLIP, "vision_model.")
_CLIP = TheirClass("CLIPForImageClassification", "clip", HF_CLIP_CLASSIFIER, "vision_model.")
_BEIT = TheirClass("BeitForImageClassification", "beit", BEIT, "beit.")
_ACTS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu", "silu": "silu"}


def check_transformers(description: Description) -> None:
    """Raises CheckpointError where transformers has no class that computes the same."""
    transformers_architecture(description.vit)


def transformers_architecture(model: ModelConfig) -> TheirClass:
    """The class that computes the same. Raises CheckpointError where there is none."""
    _check_blocks(model)
    if model.positions == "bias":
        _check_square(model, "BEiT")  # its code takes a table's rows for columns
        return _BEIT
    if model.pre_norm:
        _check_square(model, "CLIP")
        return _CLIP
    if model.pre_logits or model.norm == "after":
        what = "a tanh layer before the head" if model.pre_logits else "a LayerNorm after the mean"
        raise CheckpointError(f"transformers has no image classifier with {what}", _elsewhere(model))
    if model.distilled:
        return _DEIT
    if not model.class_token:
        if model.layer_scale or model.registers or model.gated or model.qkv_bias != "all":
            raise CheckpointError(
                "transformers has no image classifier with layer scale, registers or a gated MLP and no class token",
                _elsewhere(model),
            )
        _check_square(model, "SigLIP")
        return _SIGLIP
    if model.layer_scale or model.registers or model.gated or model.pool != "cls":
        if not _widths(model):
            raise CheckpointError(
                f"transformers' DINOv2 takes an MLP of whole widths, not {model.mlp} for {model.width}",
                _elsewhere(model),
            )
        _check_square(model, "DINOv2")
        return _REGISTERS if model.registers else _DINOV2
    return _VIT


def _elsewhere(model: ModelConfig) -> str:
    """What else the model can be exported for."""
    return f"export it with {'--format timm or ' if has_timm(model) else ''}--format onnx"


def _check_blocks(model: ModelConfig) -> None:
    """Raises CheckpointError for parts that no classifier of transformers has."""
    bias = model.positions == "bias"
    fault = next(
        (
            text
            for text, wrong in {
                "LayerNorms after the sums (model.norm_place)": model.norm_place == "post",
                "relative positions in its attention (model.positions)": model.positions == "relative",
                "rotary positions (model.rope)": model.rope != "none",
                "norms within its branches": model.mlp_norm or model.attention_norm or model.qk_norm != "none",
                "norms other than LayerNorm": model.norm_kind == "rms" or model.patch_norm,
                "branches without biases": not model.branch_bias,
                "pooling by attention": model.pool == "map" or model.pool_prefix,
                "a gated MLP that is no SwiGLU": model.gated and (model.gelu != "silu" or bias or model.pre_norm),
                "biases of queries and values alone": (model.qkv_bias == "qv") != bias,
                "relative position bias without a norm after the mean": bias and model.norm != "after",
                "relative position bias and these tokens": bias and (model.pre_norm or not model.layer_scale),
                "a norm before the blocks and this pooling": model.pre_norm
                and (model.pool != "mean" or model.norm != "none" or not model.class_token),
                "a norm before the blocks and these parts": model.pre_norm
                and (model.patch_bias or bool(model.layer_scale) or model.registers > 0 or model.qkv_bias != "all"),
                "no last norm": model.norm == "none" and not model.pre_norm,
            }.items()
            if wrong
        ),
        "",
    )
    if fault:
        raise CheckpointError(f"transformers has no ViT with {fault} before a classifier", _elsewhere(model))


def _widths(model: ModelConfig) -> int:
    """`mlp_ratio` of transformers' DINOv2 for such an MLP, whose gated one has two thirds of it in multiples of eight; 0: none."""
    if not model.gated:
        return model.mlp // model.width if model.mlp % model.width == 0 else 0
    near = round(1.5 * model.mlp / model.width)
    fits = (
        ratio for ratio in range(max(1, near - 1), near + 2) if (model.width * ratio * 2 // 3 + 7) // 8 * 8 == model.mlp
    )
    return next(fits, 0)


def _check_square(model: ModelConfig, family: str) -> None:
    """Raises CheckpointError for a grid that is none: these families take its root for both sides."""
    if model.img_size[0] != model.img_size[1] or model.patch[0] != model.patch[1]:
        raise CheckpointError(
            f"transformers' {family}, which alone holds such a model, takes square images, not {format_size(model.img_size)}",
            _elsewhere(model),
        )


def transformers_config(description: Description) -> dict[str, Any]:
    """`config.json` of the class that computes the same."""
    model = description.vit
    architecture = transformers_architecture(model)
    encoder: dict[str, Any] = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_act": _ACTS[model.gelu] if not model.gated else "gelu",
        "layer_norm_eps": model.norm_eps,
        "image_size": _side(model.img_size),
        "patch_size": _side(model.patch),
        "num_channels": model.channels,
    }
    if architecture.layout is TRANSFORMERS_DINOV2:
        encoder |= {"mlp_ratio": _widths(model), "layerscale_value": model.layer_scale or 1.0}
        encoder |= {"use_swiglu_ffn": True} if model.gated else {}
        encoder |= {"num_register_tokens": model.registers} if model.registers else {}
    else:
        encoder["intermediate_size"] = model.mlp
    if architecture is _SIGLIP:
        encoder = {"vision_config": encoder | {"model_type": "siglip_vision_model", "vision_use_head": False}}
    elif architecture is _CLIP:
        encoder = {"vision_config": encoder | {"model_type": "clip_vision_model"}}
    elif architecture is _BEIT:
        encoder |= {
            "use_relative_position_bias": True,
            "use_absolute_position_embeddings": False,
            "use_mean_pooling": True,
            "layer_scale_init_value": model.layer_scale,
            "hidden_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
        }
    else:
        bias = model.qkv_bias == "all"
        encoder |= {"qkv_bias": bias, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        **encoder,
        **transformers_labels(description),
    }


def transformers_labels(description: Description) -> dict[str, Any]:
    """What `config.json` has of every model: the type of its numbers, and the names of its classes."""
    names = [c.name for c in description.classes] or [f"LABEL_{i}" for i in range(description.model.classes)]
    return {
        "dtype": "float32",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        **({"problem_type": MULTI_LABEL} if description.eval.scores == "sigmoid" else {}),
    }


def _side(size: Size) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def transformers_weights(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of its files: q, k and v apart, and what that class has and the model lacks."""
    model = description.vit
    architecture = transformers_architecture(model)
    written: dict[str, Tensor] = {}
    for name, tensor in _as_that_class(architecture, model, tensors).items():
        for key, which in keys_for(name, architecture.layout, architecture.prefix):
            order = "qv" if model.qkv_bias == "qv" and name.endswith("qkv.bias") else "qkv"
            if which and which not in order:
                continue
            part = tensor if not which else tensor.chunk(len(order))[order.index(which)]
            if model.gated:
                key = key.replace(".mlp.fc1.", ".mlp.weights_in.").replace(".mlp.fc2.", ".mlp.weights_out.")
            part = part[0] if key.endswith("position_embedding.weight") else part
            written[key] = part.reshape(-1) if key.endswith("class_embedding") else part
    if architecture is _CLIP:  # which the class has and does not read
        written |= {f"{architecture.prefix}post_layernorm.{p}": torch.ones(model.width) for p in ("weight", "bias")}
    if architecture.layout is TRANSFORMERS_DINOV2:
        written[f"{architecture.prefix}embeddings.mask_token"] = torch.zeros(1, model.width)
    return written


def _as_that_class(architecture: TheirClass, model: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of zeros for prefix tokens without positions, factors of one for branches without layer scale, a head of
    class token and mean with zeros for what it does not read.
    """
    whole = dict(tensors)
    if not model.patch_bias and not model.pre_norm:
        whole["patch_embed.proj.bias"] = torch.zeros(model.width)
    if model.positions == "bias":
        return whole
    missing = int(model.class_token) + int(model.distilled) - model.prefix_rows
    if missing:
        whole["pos_embed"] = torch.cat([torch.zeros(1, missing, model.width), whole["pos_embed"]], dim=1)
    if architecture.layout is TRANSFORMERS_DINOV2:
        ones = torch.ones(model.width)
        for block in range(model.depth):
            for scale in ("ls1", "ls2"):
                whole.setdefault(f"blocks.{block}.{scale}.gamma", ones)
        if model.pool != "cls+mean":
            head = whole["head.weight"]
            zeros = torch.zeros_like(head)
            whole["head.weight"] = torch.cat([head, zeros] if model.pool == "cls" else [zeros, head], dim=1)
    return whole


_ROUNDING = 'its usual backend resizes with torchvision, some levels of 255 from Pillow; backend="pil" does not'


def preprocessing_differences(description: Description, form: str) -> list[str]:
    """In what the pixels that a tool makes of an image by an exported folder differ from vit's; empty where they are the same.

    timm's are the same. transformers (5.24 image_processing_backends.py) has no resize of the short side for sizes that are
    not square, rounds the corner of the centre down where torchvision, timm and vit round to even, and resizes by torchvision.
    """
    config, size = description.eval, description.model.img_size
    channels = description.model.channels
    if form == "timm" and channels != RGB:
        return [f"its loaders make RGB of images unless told otherwise, and in_chans = {channels} here"]
    if form != "transformers":
        return []
    found = (
        [] if channels == RGB else [f"it leaves channels as they are, and takes images with num_channels = {channels}"]
    )
    left = [int(side / config.crop) - side for side in size]
    if config.resize == "short" and size[0] != size[1]:
        found.append(
            f"it has no resize to the short side for {format_size(size)} px, and shows another part of an image"
        )
    elif config.resize == "short" or any(round(n / 2) != n // 2 for n in left):
        found.append("it cuts the centre out a pixel further up or left where an odd number of pixels is left over")
    return [*found, _ROUNDING]


def preprocessor_config(description: Description) -> dict[str, Any]:
    """`preprocessor_config.json`: the processor of transformers that does what vit's evaluation does, or what comes nearest.

    In what that differs, `preprocessing_differences` says.
    """
    config, (height, width) = description.eval, description.model.img_size
    rows, columns = int(height / config.crop), int(width / config.crop)
    tree: dict[str, Any] = {
        "do_resize": True,
        "resample": _BICUBIC if config.interpolation == "bicubic" else _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": description.model.channels == RGB,
    }
    if config.resize == "square" and config.crop == 1:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}} | tree
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if config.resize == "square":
        return {"image_processor_type": "DeiTImageProcessor", "size": {"height": rows, "width": columns}} | crop | tree
    return {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": max(rows, columns)}} | crop | tree
