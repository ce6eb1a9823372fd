"""What the arrays of a file agree on, so that one of another size or of other axes is named and not believed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from vitcli.config import ModelConfig
from vitcli.errors import CheckpointError
from vitcli.families.base import Shape
from vitcli.weights.keys import WHOLE, Found, Shapes
from vitcli.weights.layout import UNREAD_POOL
from vitcli.weights.sidecar import Sidecar

_AXES: tuple[tuple[str, int], ...] = (
    (r".*\.(bias|gamma)", 1),
    (r"(.*\.)?(\w*norm\w*)\.weight", 1),
    (r"cls_token|dist_token|reg_token|pos_embed|attn_pool\.latent", 3),
    (r"patch_embed\.proj\.weight", 4),
    (r"blocks\.\d+\.attn\.relative_position_bias_table", 2),
    (r"rope\.freqs", 4),
    (r"(blocks\.\d+|attn_pool)\.(.*\.)?(qkv|q|kv|proj|fc1|fc2)\.weight|head(_dist)?\.weight|pre_logits\.fc\.weight", 2),
)
"""Of vit's tensors, the first that fits."""
_LINEAR = r"(head|head_dist|attn_pool\.(q|kv|proj|mlp\.fc1|mlp\.fc2))\.weight"
"""Layers of which there is one, so that no other tells which of weight and bias is of another size."""


def check_axes(found: Found, where: str) -> None:
    """Raises CheckpointError for an array with other axes than a tensor of its name has, or with none of a length."""
    for name, shape in found.shapes.items():
        axes = next((axes for pattern, axes in _AXES if re.fullmatch(pattern, name)), len(shape))
        empty = 0 in shape and name != "reg_token"  # which transformers writes where there are none
        if len(shape) != axes or empty:
            what = "an axis of no length" if empty else f"{len(shape)} axes, not {axes}"
            raise CheckpointError(f"{where}: {found.spelt(name)} has the shape {shape}: {what}", WHOLE)
        bias = found.shapes.get(f"{name.removesuffix('weight')}bias", shape[:1])
        if re.fullmatch(_LINEAR, name) and bias != shape[:1]:
            keys = f"{found.spelt(name)} has the shape {shape} and {found.spelt(name.removesuffix('weight') + 'bias')} {bias}"
            raise CheckpointError(f"{where}: {keys}", WHOLE)


def depth_of(found: Found, where: str) -> int:
    """The number of blocks. Raises CheckpointError where one has less than half of what the others have."""
    blocks: dict[int, list[str]] = {}
    for name in found.shapes:
        match = re.match(r"blocks\.(\d+)\.", name)
        if match is not None:
            blocks.setdefault(int(match[1]), []).append(name)
    usual = max(map(len, blocks.values()))
    for number, names in sorted(blocks.items()):
        if 2 * len(names) < usual:
            held = ", ".join(found.spelt(name) for name in names[:4])
            raise CheckpointError(
                f"{where} has {len(names)} tensors of block {number} and {usual} of others: {held}", WHOLE
            )
    return 1 + max(blocks)


def width_of(shapes: Shapes) -> int:
    """The width that most arrays of the blocks have."""
    vectors = re.compile(r"blocks\.\d+\.(norm[12]\.(weight|bias)|ls[12]\.gamma|mlp\.fc2\.bias|attn\.proj\.bias)")
    counted = [shape[0] for name, shape in shapes.items() if vectors.fullmatch(name)]
    return _usual([*counted, shapes["patch_embed.proj.weight"][0]])


def hidden_of(shapes: Shapes) -> tuple[int, int]:
    """What most arrays have of the rows of an MLP's first layer, and of the columns of its second."""
    rows = _sides(shapes, r"fc1\.(weight|bias)", 0)
    columns = _sides(shapes, r"fc2\.weight", 1)
    hidden = _usual(rows)
    if not columns:
        return hidden, hidden
    inner = _usual(columns)
    fits = [side for side in columns if side in (hidden, hidden // 2)]
    return hidden, inner if 2 * columns.count(inner) > len(columns) or not fits else _usual(fits)


def _sides(shapes: Shapes, layer: str, axis: int) -> list[int]:
    return [shape[axis] for name, shape in shapes.items() if re.fullmatch(rf"blocks\.\d+\.mlp\.{layer}", name)]


def _usual(sides: Iterable[int]) -> int:
    return Counter(sides).most_common(1)[0][0]


def biased_rows(shapes: dict[str, Shape]) -> int:
    """The rows that most biases of queries, keys and values have; 0 where there are none."""
    rows = [shape[0] for name, shape in shapes.items() if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", name)]
    return _usual(rows) if rows else 0


# --- against what the configuration says -------------------------------------------------------------------


def check_pool(pool: str, norm: str, found: Found, said: Sidecar, where: str) -> None:
    """Raises CheckpointError for a pooling that the arrays do not go with."""
    unread = next((row.key for row in found.report if row.to == UNREAD_POOL), "")
    if unread and said.pool is None:
        raise CheckpointError(
            f"{where} pools by {unread}, an attention that vit does not have",
            "--set model.pool=mean reads the mean of its patches",
        )
    if pool in ("cls", "cls+mean") and "cls_token" not in found.shapes:
        raise CheckpointError(f"{where} lacks {found.spelt('cls_token')}, and its pooling is {pool}", WHOLE)
    if norm == "after" and pool != "mean":
        head = f", by {found.spelt('head.weight')}" if pool == "cls+mean" else ""
        raise CheckpointError(
            f"{where} has {found.spelt('fc_norm.weight')}, a norm of a mean, and its pooling is {pool}{head}",
            "vit has such a norm behind the mean of the patches alone",
        )


_TELLS = {
    "has_qk_norm": "blocks.0.attn.q_norm.weight",
    "has_qkv_bias": "blocks.0.attn.qkv.bias",
    "has_last_norm": "norm.weight",
    "has_head": "head.weight",
    "has_positions": "pos_embed",
    "pools_by_attention": "attn_pool.latent",
    "register_tokens": "reg_token",
    "patch": "patch_embed.proj.weight",
    "class_token": "cls_token",
    "pre_norm": "norm_pre.weight",
    "patch_norm": "patch_embed.norm.weight",
    "attention_norm": "blocks.0.attn.norm.weight",
    "mlp_norm": "blocks.0.mlp.norm.weight",
    "branch_bias": "blocks.0.attn.proj.bias",
    "gated": "blocks.0.mlp.fc1.weight",
    "norm_kind": "blocks.0.norm1.bias",
}
"""By what a configuration says, the tensor that tells the same."""


def check_shown(model: ModelConfig, found: Found, said: Sidecar, where: str) -> None:
    """Raises CheckpointError where arrays are not as the configuration beside them says."""
    shapes = found.shapes
    further = {
        "has_head": model.classes > 0,
        "has_positions": "pos_embed" in shapes,
        "register_tokens": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "has_qk_norm": model.qk_norm != "none",
        "has_qkv_bias": model.qkv_bias != "none",
        "has_last_norm": model.norm != "none",
        "pools_by_attention": model.pool == "map",
    }
    for name, (key, value) in said.shown.items():
        own = further[key] if key in further else getattr(model, key)
        if own != value and (key != "patch" or model.reads_pixels):
            by = f", by {found.spelt(_TELLS[key])}" if key in _TELLS else ""
            raise CheckpointError(
                f"{where}: its configuration or name says {name}, and its arrays are of a model with {key} = {own}{by}",
                "keep the configuration beside the weights that it was written with",
            )
