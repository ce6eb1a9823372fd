"""What timm writes beside weights: its config.json, its train.py's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.classes import Class, from_json
from vitcli.config import EvalConfig
from vitcli.errors import CheckpointError
from vitcli.weights import names as named
from vitcli.weights.sidecar import (
    POOLS,
    RUN_BY_OTHERS,
    Sidecar,
    channels_of,
    checked,
    size_of,
)
from vitcli.weights.timm_arguments import Unknown, activation, check, facts, shown
from vitcli.weights.timm_arguments import named as named_architecture


def _check_arguments(arguments: Mapping[Any, Any], where: Path) -> None:
    """Raises CheckpointError for an argument of timm's classes that vit does not know or cannot follow."""
    try:
        check(arguments)
    except Unknown as unknown:
        raise CheckpointError(f"{where}: {unknown}", RUN_BY_OTHERS) from None


def _told(name: str, arguments: dict[str, Any], where: Path) -> Sidecar:
    """What timm's class computes by a name and the arguments beside it, checked before. Raises CheckpointError."""
    given = {key: value for key, value in arguments.items() if value is not None}
    known, act = named_architecture(name), named.activation(name)
    further = bool(given.keys() - {"global_pool"})  # then what is not among them is as the class has it
    own: dict[str, Any] = {
        "heads": given.get("num_heads"),
        "gelu": activation(given.get("act_layer")) or (act if further else None),
        "norm_eps": _EPS if act and further else None,
        "pool": POOLS.get(given.get("global_pool", ""))
        or (named.pooling(name, given.get("class_token") is not False) if act and further else None),
    }
    if known is None:
        return Sidecar(**own, own=own, shown=shown("VisionTransformer", given, every=False))
    return replace(by_class(known.cls, dict(known.arguments) | given, str(where)), own=own)


def by_class(cls: str, arguments: Mapping[str, Any], where: str) -> Sidecar:
    """What a class of timm's computes with these arguments. Raises CheckpointError for what vit cannot follow."""
    try:
        check(arguments)
        told = facts(cls, arguments)
    except Unknown as unknown:
        raise CheckpointError(f"{where}: {unknown}", RUN_BY_OTHERS) from None
    fields = {key: told.pop(key) for key in ("heads", "gelu", "norm_eps", "pool")}
    return Sidecar(**fields, facts=told, shown=shown(cls, arguments))


_EPS = 1e-6  # of its LayerNorm


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
    told = _told(name, {"global_pool": config.get("global_pool")} | arguments, path)
    return replace(
        told,
        img_size=size_of(path, "img_size", arguments.get("img_size")) or size_of(path, "input_size", size),
        channels=channels_of(path, "in_chans", arguments.get("in_chans")),
        eval=said if "mean" in cfg and resize else None,
        classes=_named(config.get("label_names"), path),
        names=(name,) if name else (),
    )


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
    told = [_told(name, kwargs, where) for name in names or ("",)] if kwargs else []
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
    first = next((one for one in told if one.facts), told[0] if told else Sidecar())
    return replace(
        first,
        img_size=next(filter(None, sizes), None),
        channels=channels_of(where, "in_chans", kwargs.get("in_chans", arguments.get("in_chans"))),
        eval=said if whole else None,
        names=names,
    )
