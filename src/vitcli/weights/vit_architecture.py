"""From the shapes of a ViT's weights, and what stands beside them, to its configuration.

Arrays tell its parts; activation, heads, epsilon, pooling and rotary positions are of a configuration, a name or the layout's code. What
none of them tells is a guess that is said, or with a layout that is `strict` an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from vitcli.config import VARIANTS, Architecture, ModelConfig, Size
from vitcli.errors import CheckpointError
from vitcli.families.base import Shape
from vitcli.weights import residual
from vitcli.weights.axes import biased_rows, check_axes, check_pool, check_shown, depth_of, hidden_of, width_of
from vitcli.weights.keys import Found
from vitcli.weights.layout import Layout, pattern
from vitcli.weights.layouts import BEIT, BIG_VISION, DINOV2
from vitcli.weights.sidecar import Sidecar

FACTS = (
    "rope",
    "rope_theta",
    "rope_layout",
    "rope_order",
    "rope_offset",
    "rope_grid",
    "rope_registers",
    "pool_heads",
    "pool_prefix",
)
"""Keys of `model.` that no array tells, beside activation, heads, epsilon and pooling."""


@dataclass(frozen=True)
class Stored:
    """The architecture of a file, and how its position embedding lies there."""

    model: Architecture
    rows: int = 0  # position rows of prefix tokens in the file, which may be more than the model has: they are added in
    registers_from: str = ""  # "dist_token": it is kept as a register, since no head reads it
    guessed: tuple[str, ...] = ()  # keys of the model that neither the arrays nor anything beside them tell
    zeros: tuple[str, ...] = ()  # tensors of the model that are zero, since the file's has none


def vit(found: Found, said: Sidecar, where: str) -> Stored:
    """A Vision Transformer, of a hybrid with what is below its patches. Raises ValueError and its like, CheckpointError."""
    shapes, layout = found.shapes, found.layout
    check_axes(found, where)
    base = residual.patched_by(shapes, dict(layout.keys))
    _, inputs, *sides = shapes["patch_embed.proj.weight"]
    width = width_of(shapes)
    patch = (sides[0] * base.patch[0], sides[1] * base.patch[1])
    if min(width, *patch) < 1:
        raise ValueError(f"patch embedding of shape {shapes['patch_embed.proj.weight']}")
    depth = depth_of(found, where)
    said = _fitting(said, width, depth)
    told = {**layout.facts, **said.facts}
    parts = _parts(shapes, width)
    if parts["qkv_bias"] == "none" and not layout.strict and told.get("qkv_bias", "all") == "all":
        parts["qkv_bias"] = "all"  # one block may have lost it
    if parts["gated"] and told.get("gates_silently"):
        said = replace(said, gelu=None)
    class_token, distilled = "cls_token" in shapes, "head_dist.weight" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    unread = "dist_token" in shapes and not distilled  # transformers' DeiT with one head, and DeiT without any
    prefix = class_token + ("dist_token" in shapes) + registers
    scaled = any(key.endswith((".ls1.gamma", ".ls2.gamma")) for key in shapes)
    rows, img_size = _grid(found, patch, prefix, said.img_size, where)
    classes, pool = _reading(shapes, said.pool or told.get("pool"), class_token, width)
    check_pool(pool, parts["norm"], found, said, where)
    mlp = parts["mlp"]
    model = replace(
        base,
        **parts,
        width=width,
        depth=depth,
        heads=said.heads or found.heads or (layout.heads or {}).get(width) or usual_heads(width, depth, mlp),
        patch=patch,
        img_size=img_size,
        classes=classes,
        channels=inputs if base.reads_pixels else base.channels,
        pool=pool,
        class_token=class_token,
        gelu=said.gelu or _usual_gelu(layout, parts["gated"]),  # type: ignore[arg-type]
        norm_eps=layout.norm_eps if said.norm_eps is None else said.norm_eps,
        registers=registers + unread,
        distilled=distilled,
        layer_scale=1e-5 if scaled else 0.0,
        prefix_positions=rows > 0 or prefix == 0,
        register_positions=registers > 0 and rows == prefix,
        posemb=_interpolation(found, registers),  # type: ignore[arg-type]
    )
    if model.registers and not model.register_positions:
        model = replace(model, prefix_positions=False)
    model = _placed(model, told, shapes)
    model = replace(model, name=model.spelled())
    if width % model.heads:
        raise ValueError(f"a width of {width} has no {model.heads} heads")
    check_shown(model, found, said, where)
    guessed = _guessed(model, found, said, told)
    _refuse(found, guessed, where)
    zeros = ("head.bias",) if layout.projects and "head.weight" in shapes and "head.bias" not in shapes else ()
    return Stored(model, rows, "dist_token" if unread else "", guessed, zeros)


def _fitting(said: Sidecar, width: int, depth: int) -> Sidecar:
    """Without what is said of a model of other dimensions."""
    facts = dict(said.facts)
    if (facts.pop("width", width), facts.pop("depth", depth)) != (width, depth):
        return replace(said, **said.own, facts={}, shown={})
    return replace(said, facts=facts)


def _parts(shapes: dict[str, Shape], width: int) -> dict[str, Any]:
    """What is in a block and around the blocks. Raises ValueError, KeyError."""
    hidden, inner = hidden_of(shapes)
    gated = hidden == 2 * inner
    blocks = {re.sub(r"^blocks\.\d+\.", "", key): shape for key, shape in shapes.items() if key.startswith("blocks.")}

    def there(*names: str) -> bool:
        """Whether some block, or what is around them, has one of these: a single one that is missing is then missed."""
        return any(
            f"{name}.{kind}" in among for among in (blocks, shapes) for name in names for kind in ("weight", "bias")
        )

    biases = biased_rows(shapes)
    pooled = shapes.get("attn_pool.mlp.fc1.weight", (0,))[0]
    pre_norm, affine = there("norm_pre"), ("norm1.bias", "norm2.bias")
    return {
        "mlp": inner if gated else hidden,
        "gated": gated,
        "mlp_norm": there("mlp.norm"),
        "attention_norm": there("attn.norm"),
        "qk_norm": ("layer" if "attn.q_norm.bias" in blocks else "rms")
        if there("attn.q_norm", "attn.k_norm")
        else "none",
        "qkv_bias": {0: "none", 2 * width: "qv"}.get(biases, "all"),
        "branch_bias": any(f"{name}.bias" in blocks for name in ("attn.proj", "mlp.fc1", "mlp.fc2")),
        "norm_kind": "layer" if any(name in blocks for name in affine) else "rms",
        "patch_bias": "patch_embed.proj.bias" in shapes or not pre_norm,
        "patch_norm": there("patch_embed.norm"),
        "pre_norm": pre_norm,
        "pre_logits": there("pre_logits.fc"),
        "norm": "before" if there("norm") else "after" if there("fc_norm") else "none",
        "pool_mlp": 0 if pooled == (inner if gated else hidden) else pooled,
        "positions": "learned"
        if "pos_embed" in shapes
        else "bias"
        if "attn.relative_position_bias_table" in blocks
        else "none",
    }


def _reading(shapes: dict[str, Shape], pool: str | None, class_token: bool, width: int) -> tuple[int, Any]:
    """Outputs of the head, and what it reads."""
    head = shapes.get("head.weight", (*shapes.get("head.bias", (0,)), width))
    if any(key.startswith("attn_pool.") for key in shapes):
        return head[0], "map"
    if head[0] and class_token and head[1:] == (2 * width,):
        return head[0], "cls+mean"
    pool = None if pool == "map" else pool
    averaged = not class_token or not shapes.keys().isdisjoint(("fc_norm.weight", "fc_norm.bias"))
    return head[0], pool or ("mean" if averaged else "cls")


def _usual_gelu(layout: Layout, gated: bool) -> str:
    if gated:
        return "silu"
    return layout.gelu if layout.gelu not in ("", "silu") else "erf"


def _placed(model: ModelConfig, told: dict[str, Any], shapes: dict[str, Shape]) -> ModelConfig:
    """With rotary positions and the pooling's heads."""
    values = {key: told[key] for key in FACTS if key in told}
    if "rope.freqs" in shapes:
        values["rope"] = "mixed"
    if values.get("rope", "none") == "none":
        values = {key: value for key, value in values.items() if not key.startswith("rope")}
    elif model.posemb == "auto":
        values["posemb"] = "bicubic-antialias"  # as in timm
    if values.get("rope_grid") == "own":
        values["rope_grid"] = model.grid
    if values.get("rope_offset") == "cls":
        values["rope_offset"] = float(model.class_token)
    if model.pool not in ("map", "mean"):
        values.pop("pool_prefix", None)
    if model.pool != "map" or values.get("pool_heads") == model.heads:
        values.pop("pool_heads", None)
    return replace(model, **values)


def _guessed(model: ModelConfig, found: Found, said: Sidecar, told: dict[str, Any]) -> tuple[str, ...]:
    """Which keys of the model nothing told, in an order for people."""
    layout, shapes = found.layout, found.shapes
    open_ = not layout.fixed
    reads_either = model.classes > 0 and model.class_token and model.norm == "before" and not model.distilled
    gelu_known = said.gelu or ((layout.strict or not told.get("gates_silently")) if model.gated else not open_)
    placeless = "pos_embed" not in shapes and model.positions == "none"
    return tuple(
        key
        for key, known in {
            "heads": said.heads or found.heads or (layout.heads or {}).get(model.width),
            "gelu": gelu_known or (layout.fixed and layout.gelu != ""),
            "norm_eps": said.norm_eps is not None or not open_,
            "pool": said.pool
            or not open_
            or not reads_either
            or model.pool in ("cls+mean", "map")
            or not layout.name.startswith("timm"),
            "rope": "rope" in told or not layout.strict or not _may_turn(shapes),
            "img_size": said.img_size or not placeless,
            **by_code(found, said, model),
        }.items()
        if not known
    )


def _may_turn(shapes: dict[str, Shape]) -> bool:
    """Whether these parts are of families with rotary positions, of which arrays tell nothing."""
    if "rope.freqs" in shapes or "blocks.0.attn.relative_position_bias_table" in shapes:
        return False
    partial = shapes.get("blocks.0.attn.qkv.bias", (0,))[0] == 2 * shapes["patch_embed.proj.weight"][0]
    towers = "norm_pre.weight" in shapes and ("attn_pool.latent" in shapes or "norm.weight" not in shapes)
    return "pos_embed" not in shapes or partial or towers or "blocks.0.mlp.norm.weight" in shapes


def _refuse(found: Found, guessed: tuple[str, ...], where: str) -> None:
    """Raises CheckpointError where numbers would depend on what nothing tells."""
    layout = found.layout
    open_ = [key for key in guessed if key != "img_size"]
    if layout.strict and open_:
        names = " and ".join(f"model.{key}" for key in open_)
        settings = " ".join(f"--set model.{key}=…" for key in open_)
        marks = [pattern(marker) for marker in layout.markers]
        named = {row.key: row.key.removeprefix(found.prefix) for row in found.report}
        ends = {
            key: min((name.removeprefix(p) for p in ("", *layout.prefixes)), key=len) for key, name in named.items()
        }
        mark = next((key for key, end in ends.items() if any(m.match(end) for m in marks)), "its keys")
        raise CheckpointError(
            f"{where} has the layout of {layout.name}, by {mark}, and neither its arrays nor anything beside them tells {names}",
            f"keep its configuration beside the weights, or give {settings}",
        )


def by_code(found: Found, said: Sidecar, model: Architecture) -> dict[str, bool]:
    """Keys of a ResNet's layers that a layout's code has, and whether anything says that it is that code's file."""
    keys = found.layout.keys.keys() & model.fixed()
    return dict.fromkeys(sorted(keys), found.layout.fixed or bool(said.names))


def usual_heads(width: int, depth: int, mlp: int) -> int:
    """A guess: those of a published model of this size or width, else heads of 64, or the nearest number that fits."""
    for known in VARIANTS.values():
        if known[:3] == (width, depth, mlp):
            return known[3]
    usual = {1152: 16, 1408: 16, 1664: 16, 1536: 24}.get(width, width // 64)  # so400m, giant, gigantic, DINOv2's giant
    return max((n for n in range(1, min(width, 256) + 1) if width % n == 0 and n <= max(1, usual)), default=1)


def _interpolation(found: Found, registers: int) -> str:
    """How the family's own code takes its positions to another grid, where that is not `auto`.

    Models with registers: antialiased (facebookresearch/dinov2 hub/backbones.py, transformers, timm). Facebook's DINOv2
    without: by a factor of (new + 0.1) / old. SigLIP 2 NaFlex: bilinear, antialiased (models/siglip2/modeling_siglip2.py). BEiT's
    bias, bilinear (models/beit/modeling_beit.py).
    """
    if found.layout is BEIT and "blocks.0.attn.relative_position_bias_table" in found.parts:
        return "bilinear"
    if found.parts["patch_embed.proj.weight"][0].op == "pixels":
        return "bilinear-antialias"
    if found.layout.name == "timm" and "blocks.0.attn.relative_position_bias_table" in found.shapes:
        return "geometric"
    if registers and found.layout.posemb == "auto":
        return "bicubic-antialias"
    return "bicubic-offset" if found.layout is DINOV2 else found.layout.posemb


_ROWLESS = (BIG_VISION,)
"""Families whose class token may have no row in the position embedding, beside those with layer scale or registers."""


def _grid(found: Found, patch: Size, prefix: int, img_size: Size | None, where: str) -> tuple[int, Size]:
    """(position rows of prefix tokens, image size).

    The grid is the configuration's, or else a square: a grid that is none could be taken for one with other rows, so
    that tokens without rows of their own are only believed of families that have them.
    """
    shapes, layout = found.shapes, found.layout
    side = None if img_size is None else (img_size[0] // patch[0], img_size[1] // patch[1])
    table = shapes.get("blocks.0.attn.relative_position_bias_table")
    if "pos_embed" not in shapes and table is None:
        size = img_size or layout.img_size or (224, 224)
        return 0, (max(1, size[0] // patch[0]) * patch[0], max(1, size[1] // patch[1]) * patch[1])
    if "pos_embed" not in shapes:
        assert table is not None
        return 0, _sized(_bias_grid(table[0], side, where, found), patch)
    rows = shapes["pos_embed"][1]
    several = prefix > 1 or "blocks.0.ls1.gamma" in shapes or layout in _ROWLESS or layout.strict
    counts = (prefix, int("cls_token" in shapes), 0) if several else (prefix,)
    if side is not None:
        for count in (*counts, 0):
            if rows - count == side[0] * side[1]:
                return count, _sized(side, patch)
    for count in counts:
        root = math.isqrt(max(0, rows - count))
        if root > 0 and root * root == rows - count:
            return count, _sized((root, root), patch)
    whole = math.isqrt(max(0, rows - 1)) ** 2 == rows - 1 and "cls_token" not in shapes and rows > 1
    lacks = f"; it lacks {found.spelt('cls_token')}, which would have one of them" if whole else ""
    raise CheckpointError(
        f"{where} has {rows} position rows in {found.spelt('pos_embed')}, not a square grid, and no configuration that gives its shape{lacks}",
        "keep config.json beside the weights",
    )


def _sized(grid: Size, patch: Size) -> Size:
    return grid[0] * patch[0], grid[1] * patch[1]


def _bias_grid(rows: int, side: Size | None, where: str, found: Found) -> Size:
    """The grid whose offsets have so many rows, three of the class token among them."""
    if side is not None and (2 * side[0] - 1) * (2 * side[1] - 1) + 3 == rows:
        return side
    root = math.isqrt(max(0, rows - 3))
    if root % 2 and root * root == rows - 3:
        return (root + 1) // 2, (root + 1) // 2
    raise CheckpointError(
        f"{where} has {rows} rows in {found.spelt('blocks.0.attn.relative_position_bias_table')}, of no square grid, and no configuration that gives its shape",
        "keep config.json beside the weights",
    )


def folded(shapes: dict[str, Shape], stored: Stored) -> dict[str, Shape]:
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
    if not model.registers:
        shapes.pop("reg_token", None)
    wanted = model.shapes()
    return shapes | {name: wanted[name] for name in stored.zeros}
