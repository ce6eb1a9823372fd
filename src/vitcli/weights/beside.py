"""What the configuration files beside somebody else's weights say: timm's and transformers' config.json, preprocessor_config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitcli.classes import Class, from_json
from vitcli.config import EvalConfig, Size, from_dict
from vitcli.errors import CheckpointError, UsageError

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh", "gelu_erf": "erf"}


@dataclass(frozen=True)
class Beside:
    """None, or nothing, where the files are silent or say what cannot be."""

    heads: int | None = None
    img_size: Size | None = None
    norm_eps: float | None = None
    gelu: str | None = None
    pool: str | None = None
    eval: EvalConfig | None = None
    classes: Sequence[Class] = ()


def read_beside(weights: Path, usual: EvalConfig) -> Beside:
    """What stands beside a file that a folder or the hub gives its usual name; `usual` is its layout's preprocessing.

    Raises CheckpointError where it names an activation that vit does not have: the numbers would be others.
    """
    if weights.stem not in ("model", "pytorch_model", "model.safetensors.index"):
        return Beside()
    config, processor = _json(weights.parent / "config.json"), _json(weights.parent / "preprocessor_config.json")
    if isinstance(config.get("pretrained_cfg"), dict):
        return _timm(config, usual)
    return _transformers(config, processor, usual, weights)


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return tree if isinstance(tree, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _checked(values: dict[str, Any], usual: EvalConfig) -> EvalConfig | None:
    """`usual` with these values; None where they cannot be."""
    try:
        known = {k: getattr(usual, k) for k in ("crop", "resize", "interpolation", "mean", "std")}
        config: EvalConfig = from_dict(EvalConfig, known | {k: v for k, v in values.items() if v is not None})
    except (UsageError, TypeError, ValueError):
        return None
    return config if min(config.std) > 0 and 0 < config.crop <= 1 else None


def _pair(value: Any) -> Size | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        value = [value["height"], value["width"]]
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value):
        return value[0], value[1]
    return None


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _timm(config: dict[str, Any], usual: EvalConfig) -> Beside:
    """A folder that timm wrote, or vit: `model_args` overrides what the architecture's name implies."""
    cfg = config["pretrained_cfg"]
    given = config.get("model_args")
    arguments: dict[str, Any] = given if isinstance(given, dict) else {}
    values = {
        "crop": cfg.get("crop_pct"),
        "resize": {"squash": "square", "center": "short"}.get(str(cfg.get("crop_mode")), "short"),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "mean": cfg.get("mean"),
        "std": cfg.get("std"),
    }
    size = cfg.get("input_size")
    names = config.get("label_names")
    return Beside(
        heads=_positive(arguments.get("num_heads")),
        img_size=_pair(arguments.get("img_size")) or (_pair(size[1:]) if isinstance(size, list) else None),
        gelu=_GELU.get(str(arguments.get("act_layer"))),
        pool={"token": "cls", "avg": "mean"}.get(str(arguments.get("global_pool", config.get("global_pool")))),
        eval=_checked(values, usual) if "mean" in cfg else None,
        classes=_named(names),
    )


def _named(names: Any) -> tuple[Class, ...]:
    if not isinstance(names, list) or not names:
        return ()
    try:
        return from_json(names)
    except (KeyError, TypeError, ValueError):
        return ()


def _transformers(config: dict[str, Any], processor: dict[str, Any], usual: EvalConfig, weights: Path) -> Beside:
    vision = config.get("vision_config") if isinstance(config.get("vision_config"), dict) else config
    assert isinstance(vision, dict)
    act = vision.get("hidden_act")
    if act is not None and act not in _GELU:
        raise CheckpointError(
            f"{weights.parent / 'config.json'}: hidden_act {str(act)[:40]!r} is not a GELU that vit has",
            f"known: {', '.join(sorted(_GELU))}",
        )
    eps = vision.get("layer_norm_eps")
    names = config.get("id2label")
    classes: tuple[Class, ...] = ()
    if isinstance(names, dict) and any(not str(v).startswith("LABEL_") for v in names.values()):
        try:
            classes = tuple(Class(str(names[key])) for key in sorted(names, key=int))
        except ValueError:
            classes = ()
    return Beside(
        heads=_positive(vision.get("num_attention_heads")),
        img_size=_pair(vision.get("image_size")),
        norm_eps=float(eps) if isinstance(eps, (int, float)) and not isinstance(eps, bool) and 0 < eps < 1 else None,
        gelu=_GELU.get(str(act)),
        eval=_processor(processor, usual) if processor else None,
        classes=classes,
    )


def _processor(tree: dict[str, Any], usual: EvalConfig) -> EvalConfig | None:
    """An image processor's steps: resized to a size or to a short side, the centre cut out."""
    size, cut = tree.get("size"), _pair(tree.get("crop_size"))
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    square = _pair(size)
    config = usual
    if short is not None or square is not None:
        side = short if isinstance(short, int) else square[0] if square else 0
        crops = bool(tree.get("do_center_crop")) and cut is not None and 0 < cut[0] <= side
        config = replace(
            usual,
            resize="short" if square is None else "square",
            crop=cut[0] / side if crops and cut is not None else 1.0,
        )
    values = {
        "interpolation": _RESAMPLE.get(tree.get("resample", 2), "bicubic"),
        "mean": tree.get("image_mean"),
        "std": tree.get("image_std"),
    }
    return _checked(values, config)
