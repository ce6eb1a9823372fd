"""The folder that timm loads: its class that computes the same, the arguments of the class, the names of its weights.

| a model with                                              | is built by timm's                            |
|-----------------------------------------------------------|-----------------------------------------------|
| relative position bias                                    | Beit                                          |
| rotary positions, biases of q and v alone                 | Eva                                           |
| two distilled heads                                       | VisionTransformerDistilled                    |
| anything else                                             | VisionTransformer                             |

What is a function of timm's code cannot be an argument in a file: a name is taken whose model has the norm and the MLP wanted, and the
other arguments are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitcli.config import ModelConfig
from vitcli.config_values import RGB
from vitcli.errors import CheckpointError
from vitcli.weights.describe import Description

_EPS = 1e-6


def check_timm(description: Description) -> None:
    """Raises CheckpointError for what timm's ViTs do not have."""
    model = description.vit
    fault = next((text for text, wrong in _faults(model).items() if wrong), "")
    if fault:
        raise CheckpointError(f"timm has no ViT with {fault}", "export it with --format onnx")


def has_timm(model: ModelConfig) -> bool:
    """Whether timm has a ViT that computes the same."""
    return not any(_faults(model).values())


def _class(model: ModelConfig) -> str:
    if model.positions == "bias":
        return "Beit"
    if model.distilled:
        return "VisionTransformerDistilled"
    return "Eva" if model.rope != "none" or model.qkv_bias == "qv" else "VisionTransformer"


def _faults(model: ModelConfig) -> dict[str, bool]:
    """What is not to be had in the class of a model, and whether it has it."""
    cls = _class(model)
    plain_gelu = model.gelu == ("silu" if model.gated else "erf")
    both_rms = model.norm_kind == ("layer" if model.qk_norm == "none" else model.qk_norm)
    eva = {
        f"gelu = {model.gelu} beside {cls}'s parts": not plain_gelu,
        "MLPs without biases beside rotary positions": not model.branch_bias,
        "norms of another kind beside rotary positions": model.norm_kind == "rms"
        and (model.norm_eps != _EPS or model.pre_norm),
        "a norm of the patch embedding beside rotary positions": model.patch_norm,
        "turned registers (model.rope_registers)": model.rope_registers > 0,
        "pooling by attention of patches alone beside rotary positions": model.pool == "map"
        and not model.pool_prefix
        and model.prefix_tokens > 0,
        "a mean over class token and registers": model.pool == "mean" and model.pool_prefix,
        "mixed rotations of halves": model.rope == "mixed" and model.rope_layout == "half",
    }
    beit = {
        "relative position bias and biases of keys": model.qkv_bias == "all",
        f"gelu = {model.gelu} beside relative position bias": not plain_gelu,
        "relative position bias and other norms": model.norm_kind == "rms" or model.pre_norm or model.attention_norm,
        "relative position bias and norms of queries and keys": model.qk_norm != "none" or model.patch_norm,
        "relative position bias and rotary positions": model.rope != "none",
        "relative position bias and this pooling": model.pool not in ("cls", "mean") or model.pool_prefix,
        "relative position bias and MLPs without biases": not model.branch_bias,
        "relative position bias and no last norm": model.norm == "none",
    }
    vit = {
        "heads of its own in the pooling (model.pool_heads, model.pool_mlp)": model.pool == "map"
        and bool(model.pool_heads or model.pool_mlp),
        "gated MLPs with norms of their channels beside these parts": model.gated
        and model.mlp_norm
        and model.norm_kind == "layer",
        "a norm of the patch embedding beside LayerNorms": model.patch_norm and model.norm_kind == "layer",
        "root mean square norms with this MLP": model.norm_kind == "rms" and not model.gated and model.norm_eps != _EPS,
        "a distillation token beside these parts": model.distilled
        and (model.gated or model.pre_norm or model.norm_kind == "rms" or model.norm == "none"),
    }
    return {
        "relative positions in its attention (model.positions)": model.positions == "relative",
        "LayerNorms after the sums (model.norm_place)": model.norm_place == "post",
        "a tanh layer before the head": model.pre_logits,
        "a head that reads class token and mean": model.pool == "cls+mean",
        "norms of queries and keys of another kind than its other norms": model.qk_norm != "none" and not both_rms,
        "a norm before the blocks and a bias of the patch embedding": model.pre_norm and model.patch_bias,
        **{"Eva": eva, "Beit": beit}.get(cls, vit),
    }


def timm_config(description: Description) -> dict[str, Any]:
    """`config.json` as timm reads it from a local folder or the hub, and transformers by way of timm.

    It has no model_type, by which transformers would take it for a model of its own, and no num_classes among the
    arguments, which timm gives from beside them.
    """
    model = description.vit
    arguments: dict[str, Any] = {
        "img_size": list(model.img_size),
        "patch_size": list(model.patch),
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "class_token": model.class_token,
        "global_pool": {"cls": "token", "map": "map"}.get(model.pool, "avg"),
    }
    cls = _class(model)
    own = {"Eva": _eva, "Beit": _beit}.get(cls, _plain)
    architecture, more = own(model)
    arguments |= more
    if model.channels != RGB:
        arguments["in_chans"] = model.channels
    if model.distilled or cls == "Beit":
        del arguments["class_token"]  # which they always have
    head = "head" if not model.distilled else ["head", "head_dist"]
    tree = timm_document(description, architecture, arguments, "patch_embed.proj", head)
    return tree | {"num_features": model.width, "global_pool": arguments["global_pool"]}


def _plain(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """A name whose norm and MLP are those of the model, and the arguments that the name does not give."""
    found: dict[str, Any] = {
        "mlp_ratio": (1 + (model.gated and model.norm_kind == "layer")) * model.mlp / model.width,
        "fc_norm": model.norm == "after",
        "act_layer": {"tanh": "gelu_tanh", "quick": "quick_gelu", "silu": "silu"}.get(model.gelu, "gelu"),
    }
    if model.layer_scale:
        found["init_values"] = model.layer_scale
    if model.registers:
        found["reg_tokens"] = model.registers
    if model.prefix_tokens and not model.prefix_rows:
        found["no_embed_class"] = True
    if model.distilled:
        return "deit_base_distilled_patch16_224", found
    switches = {
        "final_norm": model.norm != "none",
        "pre_norm": model.pre_norm,
        "qkv_bias": model.qkv_bias == "all",
        "qk_norm": model.qk_norm != "none",
        "proj_bias": model.branch_bias,
        "scale_attn_norm": model.attention_norm,
        "scale_mlp_norm": model.mlp_norm,
        "pool_include_prefix": model.pool_prefix,
    }
    usual = {"final_norm": True, "qkv_bias": True, "proj_bias": True}
    name = _by_layers(model)
    given = {"pre_norm"} if "clip" in name else {"qkv_bias", "proj_bias"} if "aimv2" in name else set()
    found |= {key: value for key, value in switches.items() if value != usual.get(key, False) or key in given}
    if model.norm_kind == "rms" and "aimv2" not in name:
        found["norm_layer"] = "rmsnorm"
    if not model.has_tables:
        found["pos_embed"] = "none"
    if "dinov2" in name:
        found.setdefault("init_values", None)
    return name, found


def _by_layers(model: ModelConfig) -> str:
    if model.norm_kind == "rms" and model.patch_norm:
        return "aimv2_large_patch14_224"  # RMS norms of epsilon 1e-5, gate and value apart
    if model.gated:
        return "vit_giant_patch14_dinov2"
    return (
        "vit_base_patch16_clip_224" if model.norm_eps == 1e-5 and model.norm_kind == "layer" else "vit_base_patch16_224"
    )


def _eva(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """A name with the epsilon, and every argument that differs from its own."""
    found: dict[str, Any] = {
        "mlp_ratio": _ratio(model.mlp, model.width),
        "attn_type": "rope" if model.qkv_bias == "all" else "eva",
        "qkv_bias": model.qkv_bias != "none",
        "qkv_fused": True,
        "qk_norm": model.qk_norm != "none",
        "swiglu_mlp": model.gated,
        "swiglu_align_to": 0,
        "scale_mlp": model.mlp_norm,
        "scale_attn_inner": model.attention_norm,
        "init_values": model.layer_scale or None,
        "num_reg_tokens": model.registers,
        "no_embed_class": model.prefix_tokens > 0 and not model.prefix_rows,
        "use_abs_pos_emb": model.positions == "learned",
        "use_pre_transformer_norm": model.pre_norm,
        "use_post_transformer_norm": model.norm == "before",
        "use_fc_norm": model.norm == "after",
        "use_rot_pos_emb": model.rope != "none",
        "dynamic_img_size": False,
    }
    if model.rope != "none":
        found |= {
            "rope_type": {"index": "cat", "centred": "dinov3"}.get(model.rope, "mixed"),
            "rope_temperature": model.rope_theta,
            "rope_grid_indexing": "xy" if model.rope_order == "xy" else "ij",
            "rope_rotate_half": model.rope_layout == "half",
            "rope_grid_offset": model.rope_offset if model.rope == "index" else 0.0,
            "ref_feat_shape": list(model.rope_grid) if model.rope == "index" and model.rope_grid else None,
        }
    if model.pool == "map":
        found["attn_pool_num_heads"] = model.pool_heads or model.heads
        found["attn_pool_mlp_ratio"] = _ratio(model.pool_mlp or model.mlp, model.width)
    if model.norm_kind == "rms":
        return "vit_base_patch16_sapiens2", found | {"num_kv_heads": None, "attn_only_layer_scale": False}
    return ("vit_base_patch16_dinov3" if model.norm_eps == 1e-5 else "eva02_base_patch14_224"), found


def _ratio(hidden: int, width: int) -> float:
    """Of which timm's rounding down makes `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _beit(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    return "beit_base_patch16_224", {
        "mlp_ratio": _ratio(model.mlp, model.width),
        "qkv_bias": model.qkv_bias != "none",
        "swiglu_mlp": model.gated,
        "scale_mlp": model.mlp_norm,
        "init_values": model.layer_scale or None,
        "use_fc_norm": model.norm == "after",
    }


def timm_document(
    description: Description, architecture: str, arguments: dict[str, Any], first: str, head: str | list[str]
) -> dict[str, Any]:
    """What `config.json` has of every model: `first` is the layer that reads the image, `head` what gives the logits."""
    model, config = description.model, description.eval
    return {
        "architecture": architecture,
        "num_classes": model.classes,
        "model_args": arguments,
        "label_names": [c.name for c in description.classes],
        "pretrained_cfg": {
            "num_classes": model.classes,
            "input_size": [model.channels, *model.img_size],
            "fixed_input_size": True,
            "pool_size": None,
            "crop_pct": config.crop,
            "crop_mode": "squash" if config.resize == "square" else "center",
            "interpolation": config.interpolation,
            "mean": list(config.mean),
            "std": list(config.std),
            "first_conv": first if model.channels == RGB else None,  # else timm converts it as one of three channels
            "classifier": head,
        },
    }


def timm_weights(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """vit's names are those of timm's VisionTransformer; Eva and Beit have others for some."""
    model = description.vit
    cls = _class(model)
    written = dict(tensors)
    if not model.patch_bias and not model.pre_norm:
        written["patch_embed.proj.bias"] = torch.zeros(model.width)
    split = model.gated and (
        cls == "Beit"
        or (cls == "Eva" and model.mlp_norm)
        or (cls == "VisionTransformer" and "aimv2" in _by_layers(model))
    )
    for name in list(written):
        block, _, _ = name.rpartition(".attn.qkv.bias")
        if cls in ("Eva", "Beit") and name.endswith((".ls1.gamma", ".ls2.gamma")):
            stem, _, _ = name.rpartition(".ls")
            written[f"{stem}.gamma_{name[-7]}"] = written.pop(name)
        elif block and model.qkv_bias == "qv":
            written[f"{block}.attn.q_bias"], written[f"{block}.attn.v_bias"] = written.pop(name).chunk(2)
        elif split and ".mlp.fc1." in name and name.startswith("blocks."):
            stem, kind = name.split(".fc1.")
            written[f"{stem}.fc1_g.{kind}"], written[f"{stem}.fc1_x.{kind}"] = written.pop(name).chunk(2)
    return written
