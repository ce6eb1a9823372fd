"""What the arguments of timm's classes say of a model and its arrays do not: activation, heads, epsilon, pooling, rotary positions.

Arguments of a name are those of tables/timm.tsv, which docs/architectures.py writes; a config.json changes some of them. Facts of timm
1.0.31 models/vision_transformer.py, models/eva.py and models/beit.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vitcli.config import EvalConfig, Size
from vitcli.weights.sidecar import GELU, POOLS
from vitcli.weights.sidecar import shown as as_text

_EPS = 1e-6
"""Of timm's norms."""
_HEADS = 12


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A name of timm's: its class, the arguments that it builds it by, and how its usual weights' pixels are made."""

    name: str
    cls: str
    arguments: Mapping[str, Any]
    eval: EvalConfig
    img_size: Size


@functools.cache
def _table() -> dict[str, tuple[str, str, str]]:
    text = resources.files("vitcli.tables").joinpath("timm.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: (cls, arguments, pixels) for name, cls, arguments, pixels in rows}


def named(name: str) -> Architecture | None:
    """What timm builds by a name, with or without its owner and tag; None where it is none of its Vision Transformers."""
    bare = name.strip().rpartition("/")[2].partition(".")[0]
    row = _table().get(bare)
    if row is None:
        return None
    cls, arguments, pixels = row
    mean, std, crop, mode, interpolation, size = json.loads(pixels)
    config = EvalConfig(
        crop=crop,
        resize="square" if mode == "squash" else "short",
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    return Architecture(name=bare, cls=cls, arguments=json.loads(arguments), eval=config, img_size=(size[0], size[1]))


class Unknown(ValueError):
    """An argument that vit cannot follow: its name and value."""

    def __init__(self, name: str, value: Any, what: str = "is nothing that vit can compute") -> None:
        super().__init__(f"{name} = {as_text(value)} {what}")


_ANY = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
        "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "num_classes", "device", "dtype", "img_size",
        "patch_size", "embed_dim", "depth", "mlp_ratio", "class_token", "reg_tokens", "init_values", "no_embed_class", "in_chans",
        "layers", "channels", "width_factor", "stem_chs", "fc_norm", "scriptable", "exportable", "no_jit", "pretrained",
        "checkpoint_path", "cache_dir", "qkv_fused",
        "num_reg_tokens", "use_abs_pos_emb", "use_rel_pos_bias", "use_fc_norm",
        "use_post_transformer_norm", "swiglu_align_to", "attn_type", "head_init_scale",
        "attn_pool_mlp_ratio", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords")  # fmt: skip
"""Arguments that change nothing outside training, and those that the arrays tell."""
_READ = ("num_heads", "act_layer", "norm_layer", "global_pool", "pool_include_prefix", "attn_pool_num_heads", "use_rot_pos_emb", "rope_type",
         "rope_grid_offset", "rope_grid_indexing", "rope_temperature", "rope_rotate_half", "ref_feat_shape")  # fmt: skip
"""Arguments that `facts` reads."""
_SHOWN = {
    "pre_norm": "pre_norm",
    "use_pre_transformer_norm": "pre_norm",
    "qk_norm": "has_qk_norm",
    "scale_attn_norm": "attention_norm",
    "scale_attn_inner": "attention_norm",
    "scale_mlp_norm": "mlp_norm",
    "scale_mlp": "mlp_norm",
    "swiglu_mlp": "gated",
    "proj_bias": "branch_bias",
    "qkv_bias": "has_qkv_bias",
    "final_norm": "has_last_norm",
}
"""Flags of which the arrays tell the same, each by a key of `model.`."""
_USUAL = {"proj_bias", "qkv_bias", "final_norm"}
_OF_CLASS = {
    "Eva": {"use_pre_transformer_norm", "qk_norm", "scale_attn_inner", "scale_mlp", "swiglu_mlp", "qkv_bias"},
    "Beit": {"scale_mlp", "swiglu_mlp", "qkv_bias"},
}
_OF_VIT = {"pre_norm", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "qkv_bias", "final_norm"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "pos_embed": ("learn", "", "none"),
    "embed_layer": (),
    "embed_norm_layer": ("rmsnorm", "layernorm"),
    "block_fn": (),
    "mlp_layer": ("swiglu", "glumlp"),
    "attn_layer": ("", "attn"),
    "use_post_norm": (False,),
    "attn_only_layer_scale": (False,),
    "use_shared_rel_pos_bias": (False,),
    "rope_mrope_section": (),
    "num_kv_heads": (),
}
"""The values of the others that vit can compute, beside None, with which timm takes its own."""
_NORMS = {"layernorm", "layernormfp32", "rmsnorm"}


def _name(value: Any) -> Any:
    """A layer by its bare name."""
    value = value.get("name") if isinstance(value, dict) else value
    return value.replace("_", "").lower() if isinstance(value, str) else value


def check(arguments: Mapping[Any, Any]) -> None:
    """Raises Unknown for an argument that vit does not know or cannot follow."""
    for key, value in arguments.items():
        name = str(key)[:40]
        if value is None or name in _ANY:
            continue
        if name in _READ:
            _check_read(name, value)
        elif name in _SHOWN:
            if type(value) is not bool:
                raise Unknown(name, value)
        elif name not in _ONLY:
            raise Unknown(name, value, "is an argument that vit does not know")
        elif not any(type(_name(value)) is type(known) and _name(value) == known for known in _ONLY[name]) or (
            isinstance(value, dict) and value.get("gate_last", False) is not False
        ):
            raise Unknown(name, value)


def _check_read(name: str, value: Any) -> None:
    fits = {
        "num_heads": lambda v: type(v) is int and 0 < v <= 10**4,
        "attn_pool_num_heads": lambda v: type(v) is int and 0 < v <= 10**4,
        "act_layer": lambda v: activation(v) is not None,
        "norm_layer": lambda v: _name(v) in _NORMS,
        "global_pool": lambda v: v in ("token", "avg", "map", ""),
        "pool_include_prefix": lambda v: type(v) is bool,
        "use_rot_pos_emb": lambda v: type(v) is bool,
        "rope_type": lambda v: v in ("cat", "dinov3", "mixed", ""),
        "rope_grid_offset": lambda v: type(v) in (int, float) and 0 <= v < 1e6,
        "rope_grid_indexing": lambda v: v in ("ij", "xy"),
        "rope_temperature": lambda v: type(v) in (int, float) and 0 < v < 1e12,
        "rope_rotate_half": lambda v: type(v) is bool,
        "ref_feat_shape": lambda v: _pair(v) is not None,
    }[name]
    if not fits(value):
        raise Unknown(name, value)


_ACTS = {"quickgelu": "quick", "silu": "silu", "swish": "silu", "gelutanh": "tanh"}


def activation(value: Any) -> str | None:
    """An activation in the names of `model.gelu`; None where it is none of them."""
    text = value.lower() if isinstance(value, str) else ""
    return _ACTS.get(text.replace("_", "")) or GELU.get(text)


def _pair(value: Any) -> Size | None:
    if type(value) is int and 0 < value < 10**5:
        return value, value
    whole = (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(type(n) is int and 0 < n < 10**5 for n in value)
    )
    return (value[0], value[1]) if whole else None


def facts(cls: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a class with these arguments, checked before: values of `model.` that arrays do not tell."""
    get = {key: value for key, value in arguments.items() if value is not None}.get
    norm = get("norm_layer")
    found: dict[str, Any] = {
        "heads": get("num_heads", _HEADS),
        "norm_eps": norm.get("eps", _EPS) if isinstance(norm, dict) else _EPS,
        "gelu": activation(get("act_layer")) or "erf",
        "rope": "none",
        "qkv_bias": "all" if get("qkv_bias", True) else "none",
        "width": get("embed_dim", 768),
        "depth": get("depth", 12),
    }
    if cls not in _OF_CLASS and get("mlp_layer") is None and get("act_layer") is None:
        found["gates_silently"] = True
    pool = get("global_pool", "token" if cls.startswith("VisionTransformer") else "avg")
    found["pool"] = POOLS.get(pool) or ("mean" if get("class_token") is False else "cls")
    if found["pool"] == "map":
        found["pool_prefix"] = get("pool_include_prefix", False) if cls != "Eva" else True
        found["pool_heads"] = get("attn_pool_num_heads", 0) if cls == "Eva" else 0
        if cls != "Eva" and get("mlp_layer") is not None and found["gelu"] != "erf":
            raise Unknown(
                "global_pool", "map", f"pools by an MLP of {as_text(_name(get('act_layer')))}, which vit has not"
            )
    elif get("pool_include_prefix"):
        found["pool_prefix"] = found["pool"] == "mean"
    if cls in ("Eva", "Beit"):
        found["gelu"] = "silu" if get("swiglu_mlp") else "erf"
    if cls == "Eva":
        found |= _rotary(arguments) if get("use_rot_pos_emb") else {}
    return found


def shown(cls: str, arguments: Mapping[str, Any], every: bool = True) -> dict[str, tuple[str, Any]]:
    """What arguments say of arrays: by the argument a key of `model.` and its value. `every`: of those not given, the class's own."""
    flags = {key: value for key, value in arguments.items() if value is not None}
    wanted = _OF_CLASS.get(cls, _OF_VIT)
    if every:
        flags = {key: key in _USUAL for key in wanted} | flags
    found: dict[str, tuple[str, Any]] = {key: (_SHOWN[key], flags[key]) for key in wanted & flags.keys()}
    found |= _sizes(cls, flags, every)
    if every or "norm_layer" in flags:
        found["norm_layer"] = ("norm_kind", "rms" if _name(flags.get("norm_layer")) == "rmsnorm" else "layer")
    # a class, and so in few files: of those with a gated MLP their readers give it in code
    if cls not in _OF_CLASS and "mlp_layer" in flags:
        found["mlp_layer"] = ("gated", _name(flags.get("mlp_layer")) in ("swiglu", "glumlp"))
    if "global_pool" in flags:
        found["global_pool"] = ("pools_by_attention", flags["global_pool"] == "map")
    return {
        f"{key} = {as_text(_name(flags.get(key)))}" if key in flags else f"nothing of {key}": value
        for key, value in found.items()
    }


def _sizes(cls: str, flags: Mapping[str, Any], every: bool) -> dict[str, tuple[str, Any]]:
    """As `shown`, of what are no layers: patches, tokens beside them, positions."""
    registers = "num_reg_tokens" if cls == "Eva" else "reg_tokens"
    usual = {"patch_size": 16} | ({} if cls == "Beit" else {"class_token": True, registers: 0})
    given = {**(usual if every else {}), **flags}
    found: dict[str, tuple[str, Any]] = {}
    if _pair(given.get("patch_size")):
        found["patch_size"] = ("patch", _pair(given["patch_size"]))
    if type(given.get("class_token")) is bool:
        found["class_token"] = ("class_token", given["class_token"])
    if type(given.get(registers)) is int:
        found[registers] = ("register_tokens", given[registers])
    if cls == "Eva" and every:
        found["use_abs_pos_emb"] = ("has_positions", flags.get("use_abs_pos_emb") is not False)
    if cls not in _OF_CLASS and every:
        found["pos_embed"] = ("has_positions", flags.get("pos_embed", "learn") not in ("", "none"))
        found["embed_norm_layer"] = ("patch_norm", "embed_norm_layer" in flags)
    return found


def _rotary(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Unknown for rotations that vit does not have."""
    get = {key: value for key, value in arguments.items() if value is not None}.get
    kind = get("rope_type", "cat")
    if kind == "dinov3" and get("rope_grid_offset", 0):
        raise Unknown("rope_grid_offset", get("rope_grid_offset"))
    found: dict[str, Any] = {
        "rope": {"cat": "index", "dinov3": "centred", "mixed": "mixed"}.get(kind, "index"),
        "rope_theta": float(get("rope_temperature", 10_000.0)),
        "rope_layout": "half" if get("rope_rotate_half") else "interleaved",
        "rope_order": "xy" if get("rope_grid_indexing", "ij") == "xy" else "yx",
    }
    if kind in ("cat", ""):
        found |= {
            "rope_offset": float(get("rope_grid_offset", 0.0)),
            "rope_grid": _pair(get("ref_feat_shape")) or (),
        }
    return found
