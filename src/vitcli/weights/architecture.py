"""From the shapes of a file's weights to the architecture that they are of."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from vitcli.config import VARIANTS, Architecture, ModelConfig, Size
from vitcli.errors import CheckpointError, UsageError
from vitcli.families.base import Shape
from vitcli.families.bit import GROUPS as BIT_GROUPS
from vitcli.weights import residual
from vitcli.weights.keys import WHOLE, Found, Shapes
from vitcli.weights.layout import Layout
from vitcli.weights.layouts import (
    BIG_VISION,
    DINOV2,
    TIMM,
)
from vitcli.weights.sidecar import Sidecar


def check_shapes(found: Shapes, model: Architecture, where: str) -> None:
    """Raises CheckpointError naming the keys that are missing, unexpected or of another shape."""
    blocks = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", key) is not None for key in found)
    if isinstance(model, ModelConfig) and model.depth > blocks + 1:
        raise CheckpointError(f"{where} has {blocks} blocks, not the {model.depth} of {model.name}", WHOLE)
    wanted = model.shapes()
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
            "vit loads every weight of a file or none",
        )


@dataclass(frozen=True)
class Stored:
    """The architecture of a file, and how its position embedding lies there."""

    model: Architecture
    rows: int = 0  # position rows of prefix tokens in the file, which may be more than the model has: they are added in
    registers_from: str = ""  # "dist_token": it is kept as a register, since no head reads it
    guessed: tuple[str, ...] = ()  # keys of the model that neither the arrays nor anything beside them tell


def architecture(found: Found, said: Sidecar, where: str) -> Stored:
    """The architecture of a recognised file, `said` by its configuration where that is there. Raises CheckpointError."""
    layout = found.layout
    missing = [key for key in layout.needed if key not in found.shapes]
    if missing:
        strays = f" and has {', '.join(sorted(found.strays)[:4])} beside" if found.strays else ""
        raise CheckpointError(f"{where} has the layout of {layout.name}, but lacks {missing[0]}{strays}", WHOLE)
    try:
        stored = _READERS[layout.family](found, said, where)
        stored.model.check()
    except (ValueError, IndexError, TypeError, UsageError, ZeroDivisionError, OverflowError) as error:
        text = error.message if isinstance(error, UsageError) else str(error)
        raise CheckpointError(f"{where} is not a model that vit can build: {text}", WHOLE) from None
    check_shapes(_folded(found.shapes, stored) | dict(found.strays), stored.model, where)
    return stored


def _bit(found: Found, said: Sidecar, where: str) -> Stored:
    """A residual network, which takes images of any size: those of its configuration, else the usual one, which is said."""
    keys = dict(found.layout.keys)
    usual = keys.pop("groups", None)
    model = residual.bit(found.shapes, keys)
    by_code = _by_code(found, said, model)
    groups = said.groups or (usual if by_code.get("groups") else None)
    told = by_code | {"groups": groups or model.groups == BIT_GROUPS, "img_size": said.img_size}
    model = replace(model, groups=groups or model.groups, img_size=said.img_size or model.img_size)
    return Stored(model, guessed=tuple(key for key, known in told.items() if not known))


def _vit(found: Found, said: Sidecar, where: str) -> Stored:
    """A Vision Transformer, of a hybrid with what is below its patches. Raises ValueError and its like, CheckpointError."""
    shapes, layout = found.shapes, found.layout
    base = residual.patched_by(shapes, dict(layout.keys))
    width, _, *sides = shapes["patch_embed.proj.weight"]
    patch = (sides[0] * base.patch[0], sides[1] * base.patch[1])
    if min(width, *patch) < 1:
        raise ValueError(f"patch embedding of shape {shapes['patch_embed.proj.weight']}")
    depth = 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in shapes) if m)
    mlp = shapes["blocks.0.mlp.fc1.weight"][0]
    class_token, distilled = "cls_token" in shapes, "head_dist.weight" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    unread = "dist_token" in shapes and not distilled  # transformers' DeiT with one head, and DeiT without any
    prefix = class_token + ("dist_token" in shapes) + registers
    scaled = "blocks.0.ls1.gamma" in shapes
    counts = (prefix, int(class_token), 0) if registers or scaled or layout in _ROWLESS else (prefix,)
    rows, img_size = _grid(shapes["pos_embed"][1], counts, patch, said.img_size, where)
    after = "fc_norm.weight" in shapes
    head = shapes.get("head.weight", (0, width))
    pool = said.pool or ("mean" if after or not class_token else "cls")
    if head[0] and class_token and head[1:] == (2 * width,):
        pool = "cls+mean"
    model = replace(
        base,
        width=width,
        depth=depth,
        heads=said.heads or found.heads or usual_heads(width, depth, mlp),
        mlp=mlp,
        patch=patch,
        img_size=img_size,
        classes=head[0],
        pool=pool,  # type: ignore[arg-type]
        class_token=class_token,
        pre_logits="pre_logits.fc.weight" in shapes,
        gelu=said.gelu or layout.gelu,  # type: ignore[arg-type]
        norm_eps=layout.norm_eps if said.norm_eps is None else said.norm_eps,
        norm="after" if after else "before",
        registers=registers + unread,
        distilled=distilled,
        layer_scale=1e-5 if scaled else 0.0,
        prefix_positions=rows > 0 or prefix == 0,
        posemb=_interpolation(layout, registers),  # type: ignore[arg-type]
    )
    if model.registers:
        model = replace(model, prefix_positions=False)
    model = replace(model, name=model.spelled())
    if width % model.heads:
        raise ValueError(f"a width of {width} has no {model.heads} heads")
    return Stored(model, rows, "dist_token" if unread else "", _guessed(model, found, said))


_READERS = {"vit": _vit, "bit": _bit}
"""By the family of a layout."""


def _by_code(found: Found, said: Sidecar, model: Architecture) -> dict[str, bool]:
    """Keys of a ResNet's layers that a layout's code has, and whether anything says that it is that code's file."""
    keys = found.layout.keys.keys() & model.fixed()
    return dict.fromkeys(sorted(keys), found.layout.fixed or bool(said.names))


def _guessed(model: ModelConfig, found: Found, said: Sidecar) -> tuple[str, ...]:
    """Which keys of the model nothing told, in an order for people."""
    open_ = not found.layout.fixed
    reads_either = model.classes > 0 and model.class_token and model.norm == "before" and not model.distilled
    return tuple(
        key
        for key, told in {
            "heads": said.heads or found.heads,
            "gelu": said.gelu or not open_,
            "norm_eps": said.norm_eps is not None or not open_,
            "pool": said.pool or not open_ or not reads_either or model.pool == "cls+mean" or found.layout is not TIMM,
            **_by_code(found, said, model),
        }.items()
        if not told
    )


def usual_heads(width: int, depth: int, mlp: int) -> int:
    """A guess: those of a published model of this size or width, else heads of 64, or the nearest number that fits."""
    for known in VARIANTS.values():
        if known[:3] == (width, depth, mlp):
            return known[3]
    usual = {1152: 16, 1408: 16, 1664: 16, 1536: 24}.get(width, width // 64)  # so400m, giant, gigantic, DINOv2's giant
    return max((n for n in range(1, min(width, 256) + 1) if width % n == 0 and n <= max(1, usual)), default=1)


def _interpolation(layout: Layout, registers: int) -> str:
    """How the family's own code takes its positions to another grid, where that is not `auto`.

    Models with registers: antialiased (facebookresearch/dinov2 hub/backbones.py, transformers, timm). Facebook's DINOv2
    without: by a factor of (new + 0.1) / old.
    """
    if registers:
        return "bicubic-antialias"
    return "bicubic-offset" if layout is DINOV2 else "auto"


def _folded(shapes: Shapes, stored: Stored) -> dict[str, Shape]:
    """The shapes once prefix rows are added to their tokens and an unread distillation token is a register."""
    shapes, model = dict(shapes), stored.model
    if not isinstance(model, ModelConfig):
        return shapes
    if stored.rows > model.prefix_rows:
        one, rows, width = shapes["pos_embed"]
        shapes["pos_embed"] = (one, rows - stored.rows + model.prefix_rows, width)
    if stored.registers_from:
        shapes.pop(stored.registers_from)
        shapes["reg_token"] = (1, model.registers, model.width)
    return shapes


_ROWLESS = (BIG_VISION,)
"""Families whose class token may have no row in the position embedding, beside those with layer scale or registers."""


def _grid(rows: int, counts: tuple[int, ...], patch: Size, img_size: Size | None, where: str) -> tuple[int, Size]:
    """(position rows of prefix tokens, image size). `counts` are how many rows of prefix tokens there may be.

    The grid is the configuration's, or else a square: a grid that is none could be taken for one with other rows, so
    that tokens without rows of their own are only believed of families that have them.
    """
    if img_size is not None:
        cells = (img_size[0] // patch[0]) * (img_size[1] // patch[1])
        for count in (*counts, 0):
            if rows - count == cells:
                return count, (img_size[0] // patch[0] * patch[0], img_size[1] // patch[1] * patch[1])
    for count in counts:
        side = math.isqrt(max(0, rows - count))
        if side > 0 and side * side == rows - count:
            return count, (side * patch[0], side * patch[1])
    raise CheckpointError(
        f"{where} has {rows} position rows, not a square grid, and no configuration that gives its shape",
        "keep config.json beside the weights",
    )
