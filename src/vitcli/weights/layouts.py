"""Whose names a file's weights have, and the architecture that their shapes imply."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, VARIANTS, EvalConfig, ModelConfig, model_name
from vitcli.errors import CheckpointError, UsageError

Shapes = Mapping[str, tuple[int, ...]]

_PREFIXES = ("module.", "_orig_mod.")


def strip_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Each name without what DataParallel and torch.compile put before it."""
    stripped = {}
    names = list(names)
    for name in names:
        bare = name
        while bare.startswith(_PREFIXES):
            bare = bare.partition(".")[2]
        stripped[name] = bare
    if len(set(stripped.values())) < len(stripped):
        twice = next(b for b in stripped.values() if list(stripped.values()).count(b) > 1)
        raise CheckpointError(f"two keys are {twice} without their prefix")
    return stripped


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a ViT under timm's names."""
    d, m = model.width, model.mlp
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, model.tokens, d),
        "patch_embed.proj.weight": (d, 3, *model.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if model.class_token:
        shapes["cls_token"] = (1, 1, d)
    for i in range(model.depth):
        for name, shape in {
            "norm1": (d,),
            "attn.qkv": (3 * d, d),
            "attn.proj": (d, d),
            "norm2": (d,),
            "mlp.fc1": (m, d),
            "mlp.fc2": (d, m),
        }.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    if model.pre_logits:
        shapes |= {"pre_logits.fc.weight": (d, d), "pre_logits.fc.bias": (d,)}
    if model.classes:
        shapes |= {"head.weight": (model.classes, d), "head.bias": (model.classes,)}
    return shapes


def check_shapes(found: Shapes, model: ModelConfig, where: str) -> None:
    """Raises CheckpointError naming the keys that are missing, unexpected or of another shape."""
    blocks = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", key) is not None for key in found)
    if model.depth > blocks + 1:
        raise CheckpointError(f"{where} has {blocks} blocks, not the {model.depth} of {model.name}")
    wanted = expected_shapes(model)
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misfit = [
        f"{k} is {found[k]}, not {wanted[k]}" for k in sorted(wanted.keys() & found.keys()) if found[k] != wanted[k]
    ]
    faults = [
        f"{word}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("shape", misfit))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit {model.name}: {'; '.join(faults)}",
            "vit reads its own checkpoints and plain ViT weights under timm's names",
        )


def timm_model(shapes: Shapes, where: str) -> ModelConfig:
    """The architecture of plain ViT weights under timm's names, with timm's GELU. Raises CheckpointError."""
    needed = (
        "patch_embed.proj.weight",
        "pos_embed",
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
        "norm.weight",
    )
    missing = [key for key in needed if key not in shapes]
    if missing:
        some = ", ".join(list(shapes)[:4])
        raise CheckpointError(
            f"{where} has weights of an unknown layout: no {missing[0]} among its {len(shapes)} keys ({some} …)",
            "vit reads its own checkpoints and plain ViT weights under timm's names",
        )
    try:
        width, _, *patch = shapes["patch_embed.proj.weight"]
        if min(width, *patch) < 1:
            raise ValueError(f"patch embedding of shape {shapes['patch_embed.proj.weight']}")
        rows = shapes["pos_embed"][1]
        depth = 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in shapes) if m)
        mlp = shapes["blocks.0.mlp.fc1.weight"][0]
        class_token = "cls_token" in shapes
        side = math.isqrt(rows - class_token)
        heads = next((h for w, d, m, h in VARIANTS.values() if (w, d, m) == (width, depth, mlp)), max(1, width // 64))
        model = ModelConfig(
            "",
            width,
            depth,
            heads,
            mlp,
            (patch[0], patch[1]),
            (side * patch[0], side * patch[1]),
            classes=shapes.get("head.weight", (0,))[0],
            pool="cls" if class_token else "mean",
            class_token=class_token,
            pre_logits="pre_logits.fc.weight" in shapes,
            gelu="erf",
        )
        model = replace(model, name=model_name(model))
        if width % heads:
            raise ValueError(f"a width of {width} has no heads of 64")
    except (ValueError, IndexError, TypeError, UsageError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where} is not a ViT: {error}") from None
    if side * side != rows - class_token:
        raise CheckpointError(
            f"{where} has {rows} position rows, not a square grid, and no configuration that gives its shape",
            "keep config.json beside the weights",
        )
    check_shapes(shapes, model, where)
    return model


def preprocessing_by_name(name: str) -> tuple[EvalConfig, str]:
    """The pixel statistics and crop that a bare file's name implies as a timm model name, and why.

    timm's configurations: DeiT takes ImageNet statistics and a 0.9 crop, the Google weights (`augreg`,
    `orig_in21k`) 0.5 and 0.9; both 1.0 at 384 px.
    """
    crop = 1.0 if "384" in name else 0.9
    if re.search(r"augreg|orig_in21k|in21k|sam_in1k", name):
        return EvalConfig(crop=crop), "Google's pixel range -1…1, as the file's name says"
    why = (
        "DeiT's ImageNet pixel statistics, as the file's name says"
        if "deit" in name
        else "ImageNet pixel statistics, a guess: the file does not say"
    )
    return EvalConfig(crop=crop, mean=IMAGENET_MEAN, std=IMAGENET_STD), why
