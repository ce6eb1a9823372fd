"""What transformers writes beside weights: config.json and preprocessor_config.json."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.classes import Class
from vitcli.config import EvalConfig
from vitcli.errors import CheckpointError
from vitcli.weights.sidecar import (
    GELU,
    RESAMPLE,
    RUN_BY_OTHERS,
    Sidecar,
    channels_of,
    checked,
    count_of,
    shown,
    size_of,
)

_CLASSES: dict[str, tuple[str, float]] = {
    # model_type: the activation and epsilon of a configuration that says nothing (models/*/configuration_*.py)
    "vit": ("gelu", 1e-12),
    "vit_mae": ("gelu", 1e-12),
    "deit": ("gelu", 1e-12),
    "vit_msn": ("gelu", 1e-6),
    "dinov2": ("gelu", 1e-6),
    "dinov2_with_registers": ("gelu", 1e-6),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
    "siglip_vision_model": ("gelu_pytorch_tanh", 1e-6),
    "siglip2": ("gelu_pytorch_tanh", 1e-6),
    "siglip2_vision_model": ("gelu_pytorch_tanh", 1e-6),
    "clip": ("quick_gelu", 1e-5),
    "clip_vision_model": ("quick_gelu", 1e-5),
    "dinov3_vit": ("gelu", 1e-5),
    "beit": ("gelu", 1e-12),
    "data2vec-vision": ("gelu", 1e-12),
    "aimv2": ("silu", 1e-5),
    "aimv2_vision_model": ("silu", 1e-5),
    "ijepa": ("gelu", 1e-12),
}

_HEADS = {"dinov3_vit": 6, "aimv2": 8, "aimv2_vision_model": 8}  # 12 of the others

_REGISTERED = ("dinov3_vit", "dinov2_with_registers")

_OTHER_ACTS = {"bit": "relu"}
"""Of classes without a GELU."""

_REQUIRED: dict[str, Any] = {
    "layer_type": "preactivation",
    "global_padding": None,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "use_mean_pooling": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_absolute_position_embeddings": True,
}
"""What vit computes, of what changes the numbers of one of these classes."""
_OTHERWISE: dict[str, dict[str, tuple[Any, ...]]] = {
    kind: {
        "use_mean_pooling": (True,),
        "use_relative_position_bias": (True, False),
        "use_absolute_position_embeddings": (True, False),
    }
    for kind in ("beit", "data2vec-vision")
} | {
    "dinov3_vit": {"qkv_bias": (True, False), "proj_bias": (True, False), "mlp_bias": (True, False)},
    "aimv2": {"qkv_bias": (True, False), "is_native": (False,)},
    "aimv2_vision_model": {"qkv_bias": (True, False), "is_native": (False,)},
}
"""What it computes of a kind instead, beside what is not said; arrays tell which."""


def transformers_says(config: dict[str, Any], usual: EvalConfig, path: Path, pooler: bool) -> Sidecar:
    vision = config.get("vision_config") if isinstance(config.get("vision_config"), dict) else config
    assert isinstance(vision, dict)
    kind = vision.get("model_type", config.get("model_type"))
    act, eps = vision.get("hidden_act"), vision.get("layer_norm_eps", vision.get("rms_norm_eps"))
    kind = kind if isinstance(kind, str) else ""
    usual_act, usual_eps = _CLASSES.get(kind, (None, None))
    act, eps = usual_act if act is None else act, usual_eps if eps is None else eps
    other = _OTHER_ACTS.get(kind)
    if other and act not in (other, None):
        raise CheckpointError(f"{path}: hidden_act {shown(act)} is nothing that vit can compute", RUN_BY_OTHERS)
    act = None if other else act
    if act is not None and (not isinstance(act, str) or act not in GELU):
        raise CheckpointError(
            f"{path}: hidden_act {shown(act)} is not a GELU that vit has", f"known: {', '.join(sorted(GELU))}"
        )
    own = _OTHERWISE.get(kind, {})
    for key, fits in ({key: (wanted,) for key, wanted in _REQUIRED.items()} | own).items():
        if vision.get(key) is not None and vision[key] not in fits:
            raise CheckpointError(
                f"{path}: {key} = {shown(vision[key])} is nothing that vit can compute", RUN_BY_OTHERS
            )
    if pooler and vision.get("pooler_act") not in (None, "tanh"):
        raise CheckpointError(
            f"{path}: pooler_act = {shown(vision['pooler_act'])}, and vit's layer before the head is tanh",
            RUN_BY_OTHERS,
        )
    if eps is not None and (type(eps) not in (int, float) or not 0 < eps < 1):
        raise CheckpointError(f"{path}: layer_norm_eps = {shown(eps)} is no small number", "is the file damaged?")
    facts = _rotary(path, vision) if kind == "dinov3_vit" else {}
    if vision.get("qkv_bias") is False:
        facts["qkv_bias"] = "none"
    return Sidecar(
        heads=count_of(path, "num_attention_heads", vision.get("num_attention_heads"))
        or (None if usual_act is None else _HEADS.get(kind, 12)),
        img_size=size_of(path, "image_size", vision.get("image_size")),
        norm_eps=eps,
        gelu="silu" if vision.get("use_swiglu_ffn") is True else GELU.get(str(act)),
        facts=facts,
        shown={f"{key} = {shown(vision[key])}": told for key, told in _arrays(kind, vision).items() if key in vision}
        | _classes(config.get("architectures")),
        channels=channels_of(path, "num_channels", vision.get("num_channels")),
        groups=count_of(path, "num_groups", vision.get("num_groups")),
        classes=_labels(config.get("id2label"), path),
    )


def _classes(architectures: Any) -> dict[str, tuple[str, Any]]:
    """What the classes that a model was written by say of its head."""
    names = architectures if isinstance(architectures, list) else []
    name = next((name for name in names if isinstance(name, str) and name.endswith("WithProjection")), None)
    return {} if name is None else {f"architectures = {shown(name)}": ("has_head", True)}


def _arrays(kind: str, vision: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """What a configuration says that arrays tell as well."""
    biases = any(vision.get(key, True) for key in ("query_bias", "value_bias"))
    patch = vision.get("patch_size")
    return {
        **({"patch_size": ("patch", (patch, patch))} if kind in _CLASSES and type(patch) is int else {}),
        **(
            {"num_register_tokens": ("register_tokens", vision.get("num_register_tokens"))}
            if kind in _REGISTERED
            else {}
        ),
        "use_swiglu_ffn": ("gated", vision.get("use_swiglu_ffn") is True),
        "use_gated_mlp": ("gated", vision.get("use_gated_mlp") is True),
        **({"query_bias": ("has_qkv_bias", biases)} if kind == "dinov3_vit" else {}),
        "qkv_bias": ("has_qkv_bias", vision.get("qkv_bias") is not False),
    }


def _rotary(path: Path, vision: dict[str, Any]) -> dict[str, Any]:
    """DINOv3's base of frequencies. Raises CheckpointError for no such number."""
    theta = vision.get("rope_theta", 100.0)
    if type(theta) not in (int, float) or not 0 < theta < 1e12:
        raise CheckpointError(f"{path}: rope_theta = {shown(theta)} is no such number", "is the file damaged?")
    return {"rope_theta": float(theta)}


def _labels(names: Any, path: Path) -> tuple[Class, ...]:
    """The classes that a table from index to name has; none where all have the name that transformers makes up."""
    if not isinstance(names, dict):
        return ()
    wrong = next((key for key, name in names.items() if not isinstance(name, (str, int, float))), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: id2label.{wrong[:80]} is no name", "is the file damaged?")
    if all(str(name).startswith("LABEL_") for name in names.values()):
        return ()
    try:
        return tuple(Class(str(names[key])) for key in sorted(names, key=int))
    except ValueError:
        return ()


def processor_says(tree: dict[str, Any], usual: EvalConfig, path: Path) -> EvalConfig | None:
    """An image processor's steps: resized to a size or to a short side, the centre cut out. Raises CheckpointError."""
    size, cut = tree.get("size"), size_of(path, "crop_size", _sides(tree.get("crop_size")))
    short = count_of(path, "size.shortest_edge", size.get("shortest_edge")) if isinstance(size, dict) else None
    square = None if short else size_of(path, "size", _sides(size))
    config = usual
    if short is not None or square is not None:
        side = short or (square[0] if square else 0)
        crops = bool(tree.get("do_center_crop")) and cut is not None and 0 < cut[0] <= side
        config = replace(
            usual,
            resize="short" if square is None else "square",
            crop=_part(cut[0], side) if crops and cut is not None else 1.0,
        )
    plain = tree.get("do_normalize", True) is False
    resample, factor = tree.get("resample", 2), tree.get("rescale_factor", 1 / 255)
    if type(resample) is not int or type(factor) not in (int, float) or not 0 <= factor < 1e6:
        name = "rescale_factor" if type(resample) is int else "resample"
        raise CheckpointError(f"{path}: {name} = {shown(tree[name])} is no number", "is the file damaged?")
    said = checked(
        path,
        config,
        {
            "interpolation": ("resample", RESAMPLE.get(resample, "none")),
            "crop": ("crop_size", config.crop),
            "mean": ("image_mean", [0.0] * 3 if plain else tree.get("image_mean")),
            "std": ("image_std", [1.0] * 3 if plain else tree.get("image_std")),
        },
    )
    if tree.get("do_rescale", True) is not True or abs(factor - 1 / 255) > 1e-6:
        return None  # pixels in another range than the statistics of vit's are of
    return said


def _sides(value: Any) -> Any:
    """None for a size of another kind, such as a longest edge."""
    return None if isinstance(value, dict) and not {"height", "width"} <= value.keys() else value


def _part(cut: int, side: int) -> float:
    """cut / side, so that the size over it, rounded down, is `side` again."""
    part = cut / side
    return part if int(cut / part) == side else math.nextafter(part, 0)
