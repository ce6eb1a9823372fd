"""The Vision Transformer's tensors by name, and what it takes, by arithmetic."""

from __future__ import annotations

import math

from vitcli.families.base import Activations, Cost, Shape
from vitcli.families.vit_keys import VitKeys

_BLOCKS_IN_WORK = 2
"""Blocks' worth of gradients and intermediate values beside what every block keeps."""
_BLOCKS_AGAIN = 5
"""Blocks' worth of all values where blocks are computed again: the one in work, its gradients, and what taking and freeing so much
leaves unused (docs/log.md)."""
_QKV_BIASES = {"all": 3, "qv": 2, "none": 0}


# --- tensors -----------------------------------------------------------------------------------------------


def shapes(model: VitKeys) -> dict[str, Shape]:
    """Every tensor of the model, under timm's names. q and v without a bias of k lie in attn.qkv.bias side by side, gate and value
    of a gated MLP in mlp.fc1.
    """
    d = model.width
    found: dict[str, Shape] = {**model.position_shapes(), "patch_embed.proj.weight": model.patch_shape()}
    if model.patch_bias:
        found["patch_embed.proj.bias"] = (d,)
    if model.class_token:
        found["cls_token"] = (1, 1, d)
    if model.distilled:
        found["dist_token"] = (1, 1, d)
    if model.registers:
        found["reg_token"] = (1, model.registers, d)
    if model.rope == "mixed":
        found["rope.freqs"] = (2, model.depth, model.heads, d // model.heads // 2)
    last = {"before": "norm", "after": "fc_norm", "none": ""}[model.norm]
    norms = {"patch_embed.norm": model.patch_norm, "norm_pre": model.pre_norm, last: bool(last)}
    for name in (name for name, there in norms.items() if there):
        found |= _norm(model, name, d)
    block = block_shapes(model)
    found |= {f"blocks.{i}.{name}": shape for i in range(model.depth) for name, shape in block.items()}
    if model.pool == "map":
        found |= _pool(model)
    if model.pre_logits:
        found |= {"pre_logits.fc.weight": (d, d), "pre_logits.fc.bias": (d,)}
    if model.classes:
        found |= {"head.weight": (model.classes, model.features), "head.bias": (model.classes,)}
    if model.classes and model.distilled:
        found |= {"head_dist.weight": (model.classes, d), "head_dist.bias": (model.classes,)}
    return found


def block_shapes(model: VitKeys) -> dict[str, Shape]:
    """Of one block."""
    d, m = model.width, model.mlp
    found: dict[str, Shape] = {}
    for name, there, width in (
        ("norm1", True, d),
        ("norm2", True, d),
        ("attn.norm", model.attention_norm, d),
        ("mlp.norm", model.mlp_norm, m),
    ):
        found |= _norm(model, name, width) if there else {}
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": ((1 + model.gated) * m, d), "mlp.fc2": (d, m)}
    for name, shape in layers.items():
        found[f"{name}.weight"] = shape
        rows = _QKV_BIASES[model.qkv_bias] * d if name == "attn.qkv" else shape[0] * model.branch_bias
        if rows:
            found[f"{name}.bias"] = (rows,)
    if model.qk_norm != "none":
        for name in ("attn.q_norm", "attn.k_norm"):
            found |= _affine(name, d // model.heads, model.qk_norm)
    if model.offsets:
        found["attn.offset_embed"] = (1, model.offsets, d)
    if model.bias_rows:
        found["attn.relative_position_bias_table"] = (model.bias_rows, model.heads)
    if model.layer_scale:
        found |= {"ls1.gamma": (d,), "ls2.gamma": (d,)}
    return found


def _norm(model: VitKeys, name: str, width: int) -> dict[str, Shape]:
    return _affine(name, width, model.norm_kind)


def _affine(name: str, width: int, kind: str) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (width,)}
    return weight | ({f"{name}.bias": (width,)} if kind == "layer" else {})


def _pool(model: VitKeys) -> dict[str, Shape]:
    d, m = model.width, model.pool_mlp or model.mlp
    found: dict[str, Shape] = {"attn_pool.latent": (1, 1, d)} | _norm(model, "attn_pool.norm", d)
    for name, rows, columns in (("q", d, d), ("kv", 2 * d, d), ("proj", d, d), ("mlp.fc1", m, d), ("mlp.fc2", d, m)):
        found |= {f"attn_pool.{name}.weight": (rows, columns), f"attn_pool.{name}.bias": (rows,)}
    return found


# --- what it takes -----------------------------------------------------------------------------------------


def cost(model: VitKeys) -> Cost:
    """Of an image of the configuration's size."""
    d, t = model.width, model.tokens
    sizes = {name: math.prod(shape) for name, shape in shapes(model).items()}
    head_macs = (1 + model.distilled) * model.features * model.classes + (d * d if model.pre_logits else 0)
    pool_macs = 2 * d * d * (t + 1) + 2 * t * d + 2 * d * (model.pool_mlp or model.mlp) if model.pool == "map" else 0
    outputs = Activations(float32=4 * model.classes)  # logits, their softmax and gradients
    # the residual stream, and the widest of what a block makes of it
    widest = Activations(float32=3 * t * d, rounded=t * ((2 + model.gated) * model.mlp + 5 * d))
    return Cost(
        parameters=sum(sizes.values()),
        head_parameters=sum(n for name, n in sizes.items() if name.startswith(("head.", "head_dist.", "pre_logits."))),
        macs=(t - model.prefix_tokens) * model.patch_inputs * d
        + model.depth * block_macs(model, t)
        + pool_macs
        + head_macs,
        head_macs=head_macs,
        training=activations(model, t) + outputs,
        training_head=_kept(model, t) + outputs,
        checkpointed=activations(model, t, again=True) + outputs,
        evaluation=widest,
    )


def block_macs(model: VitKeys, tokens: int) -> int:
    """Multiply-accumulates of a block for so many tokens."""
    d = model.width
    products = 4 * tokens * d**2 + 2 * tokens**2 * d + (2 + model.gated) * tokens * d * model.mlp
    return products + (tokens - model.prefix_tokens) * model.offsets * d


def activations(model: VitKeys, tokens: int, again: bool = False) -> Activations:
    """What all blocks keep of so many tokens for the backward pass; where it computes them `again`, their inputs."""
    if again:
        return Activations(float32=model.depth * tokens * model.width) + _kept(model, tokens) * _BLOCKS_AGAIN
    return _kept(model, tokens) * (model.depth + _BLOCKS_IN_WORK)


def _kept(model: VitKeys, t: int) -> Activations:
    """By a block: two residual inputs; two normalised inputs, q, k, v, the attended values, the MLP's hidden tensors; the attention
    probabilities where they are formed; q and k before they are turned or normalised.
    """
    d, m = model.width, model.mlp
    hidden = (2 + 2 * model.gated + model.mlp_norm) * m
    turned = 2 * d * ((model.rope != "none") + (model.qk_norm != "none")) + d * model.attention_norm
    matrices = 2 * model.heads * t * (t + model.offsets + (t if model.bias_rows else 0))
    return Activations(float32=2 * t * d, rounded=t * (6 * d + hidden + turned) + matrices)
