"""What timm writes beside weights: its config.json, its train.py's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcli.classes import Class, from_json
from vitcli.config import EvalConfig
from vitcli.errors import CheckpointError
from vitcli.weights import names as named
from vitcli.weights.sidecar import (
    GELU,
    POOLS,
    RUN_BY_OTHERS,
    Sidecar,
    checked,
    count_of,
    shown,
    size_of,
)

_ANY = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
        "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "num_classes", "device", "dtype", "img_size",
        "patch_size", "embed_dim", "depth", "mlp_ratio", "class_token", "reg_tokens", "init_values", "no_embed_class",
        "layers", "channels", "width_factor", "stem_chs", "fc_norm", "scriptable", "exportable", "no_jit", "pretrained", "checkpoint_path", "cache_dir")  # fmt: skip
"""Arguments of timm's VisionTransformer and ResNetV2 that change nothing outside training, and those that the arrays tell."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "in_chans": (3,),
    "global_pool": ("token", "avg", ""),
    "qkv_bias": (True,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "pool_include_prefix": (False,),
    "embed_layer": (),
    "embed_norm_layer": (),
    "norm_layer": ("layernorm", "layernormfp32"),
    "act_layer": ("gelu", "gelu_tanh"),
    "block_fn": (),
    "mlp_layer": (),
    "attn_layer": ("", "attn"),
}
"""The values of the others that vit can compute, beside None, with which timm takes its own."""


def _check_arguments(arguments: Mapping[Any, Any], where: Path) -> None:
    """Raises CheckpointError for an argument of timm's VisionTransformer that vit does not know or cannot follow."""
    for key, value in arguments.items():
        name = str(key)[:40]
        if value is None or name in _ANY:
            continue
        if name == "num_heads":
            count_of(where, name, value)
            continue
        if name not in _ONLY:
            raise CheckpointError(
                f"{where}: {name} = {shown(value)} is an argument that vit does not know", RUN_BY_OTHERS
            )
        plain = value.replace("_", "").lower() if name == "norm_layer" and isinstance(value, str) else value
        if not any(type(plain) is type(known) and plain == known for known in _ONLY[name]):
            raise CheckpointError(f"{where}: {name} = {shown(value)} is nothing that vit can compute", RUN_BY_OTHERS)


def timm_says(config: dict[str, Any], usual: EvalConfig, path: Path) -> Sidecar:
    """A folder that timm wrote, or vit: `model_args` overrides what the architecture's name implies."""
    cfg = config["pretrained_cfg"]
    given = config.get("model_args")
    arguments: dict[str, Any] = given if isinstance(given, dict) else {}
    _check_arguments({"global_pool": config.get("global_pool")} | arguments, path)
    mode = cfg.get("crop_mode") or "center"
    resize = {"squash": "square", "center": "short"}.get(mode if isinstance(mode, str) else "")
    said = checked(
        path,
        usual,
        {
            "crop": ("crop_pct", cfg.get("crop_pct")),
            "resize": ("crop_mode", resize),
            "interpolation": ("interpolation", cfg.get("interpolation", "bicubic")),
            "mean": ("mean", cfg.get("mean")),
            "std": ("std", cfg.get("std")),
        },
    )
    size = cfg.get("input_size")
    size = size[1:] if isinstance(size, list) and len(size) == 3 else size
    name = config["architecture"] if isinstance(config.get("architecture"), str) else ""
    named.check_read(name, str(path))
    act = named.activation(name)
    return Sidecar(
        heads=arguments.get("num_heads"),
        img_size=size_of(path, "img_size", arguments.get("img_size")) or size_of(path, "input_size", size),
        norm_eps=_TIMM_EPS if act and arguments else None,
        gelu=GELU.get(str(arguments.get("act_layer"))) or (act if arguments else None),
        pool=POOLS.get(str(arguments.get("global_pool") or config.get("global_pool")))
        or (named.pooling(name, arguments.get("class_token") is not False) if act and arguments else None),
        eval=said if "mean" in cfg and resize else None,
        classes=_named(config.get("label_names"), path),
        names=(name,) if name else (),
    )


_TIMM_EPS = 1e-6  # of its LayerNorm, and so of every model that neither an argument nor its name gives another


def _named(names: Any, path: Path) -> tuple[Class, ...]:
    if not isinstance(names, list) or not names:
        return ()
    try:
        return from_json(names)
    except ValueError as error:
        raise CheckpointError(f"{path}: label_names: {error}", "is the file damaged?") from None


def from_training(arguments: Mapping[Any, Any], usual: EvalConfig, where: Path) -> Sidecar:
    """What the arguments of a training script say: timm's train.py (`model`, `gp`, `model_kwargs`, `mean` …), and the names
    that DeiT, torchvision and Lightning have for a model. Raises CheckpointError for a pooling or layer that vit does not have.
    """
    extra = arguments.get("model_kwargs")
    kwargs = dict(extra) if isinstance(extra, dict) else {}
    pool = arguments.get("gp")
    if isinstance(pool, str) and pool:
        kwargs["global_pool"] = pool
    if kwargs:
        _check_arguments(kwargs, where)
    given = [arguments.get(key) for key in ("model", "arch", "model_name", "architecture", "backbone", "net")]
    names = tuple(name for name in given if isinstance(name, str))
    act = next(filter(None, map(named.activation, names)), None) if kwargs else None
    mean, std, crop = (arguments.get(key) for key in ("mean", "std", "crop_pct"))
    whole = mean is not None and std is not None
    said = checked(
        where,
        usual,
        {
            "mean": ("mean", mean if whole else None),
            "std": ("std", std if whole else None),
            "crop": ("crop_pct", crop),
            "interpolation": ("interpolation", arguments.get("interpolation") or None),
        },
    )
    sizes = (size_of(where, "img_size", table.get("img_size")) for table in (kwargs, arguments))
    return Sidecar(
        heads=kwargs.get("num_heads"),
        img_size=next(filter(None, sizes), None),
        norm_eps=_TIMM_EPS if act else None,
        gelu=(GELU.get(kwargs["act_layer"]) if isinstance(kwargs.get("act_layer"), str) else None) or act,
        pool=POOLS.get(str(kwargs.get("global_pool"))),
        eval=said if whole else None,
        names=names,
    )
