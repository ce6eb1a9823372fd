"""Attention weights, layer by layer, from the q and k that the fast path uses.

The model runs block by block. Each layer's weights are formed for a few images at a time, handed to a reducer and used for
the layer's output, then dropped, so memory holds one layer's attention of one micro-batch. The model has no flag for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from vitcli.model.attention import attention_weights
from vitcli.model.vit import Block, ViT

MICRO_BYTES = {"cpu": 16_000_000, "mps": 64_000_000, "cuda": 256_000_000}
"""Weights that are formed at once, at least one image's. On a CPU they stay in the cache: one image of ViT-B/16 at 384 px."""


class Reducer(Protocol):
    """What is done with attention weights. It keeps what it makes of them, never the weights."""

    def __call__(self, layer: int, images: slice, weights: Float[Tensor, "images heads tokens tokens"]) -> None:
        """Take the weights of `layer`, counted from 1, of these images of the batch: float32, each row sums to one."""


@torch.inference_mode()
def reduce_attention(
    model: ViT, images: Float[Tensor, "batch 3 height width"], reduce: Reducer, bf16: bool = False
) -> None:
    """Run `model` on normalised images and hand every layer's attention weights, of every query, to `reduce`.

    Of the last block nothing but the weights is computed. With `bf16` the layers run under autocast as they do in
    evaluation; the weights are made from the same q and k in float32 either way. Raises ValueError for images of
    another size than the model's.
    """
    if tuple(images.shape[2:]) != tuple(model.config.img_size):
        raise ValueError(f"images of {tuple(images.shape[2:])}, the model takes {tuple(model.config.img_size)}")
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        x = model.embed(images)
        for layer, block in enumerate(model.blocks, start=1):
            assert isinstance(block, Block)
            if layer == len(model.blocks):
                _weights_alone(block, layer, x, reduce)
            else:
                x = _through(block, layer, x, reduce)


def _through(
    block: Block, layer: int, x: Float[Tensor, "batch tokens width"], reduce: Reducer
) -> Float[Tensor, "batch tokens width"]:
    """The block's output, as its own `forward` has it, by way of the weights."""
    qkv = block.attn.project(block.norm1(x))
    mixed = x.new_empty(*qkv.shape[1:2], qkv.shape[3], qkv.shape[2], qkv.shape[4], dtype=qkv.dtype)
    for part in _micro_batches(qkv[0]):
        q, k, v = qkv[:, part]
        weights = _weights(q, k)
        reduce(layer, part, weights)
        mixed[part] = (weights.to(v.dtype) @ v).transpose(1, 2)
        del weights
    x = x + block.ls1(block.attn.proj(mixed.flatten(2)))
    del qkv, mixed
    return x + block.mlp_branch(x)


def _weights_alone(block: Block, layer: int, x: Float[Tensor, "batch tokens width"], reduce: Reducer) -> None:
    qkv = block.attn.project(block.norm1(x))
    for part in _micro_batches(qkv[0]):
        reduce(layer, part, _weights(qkv[0, part], qkv[1, part]))


def _weights(
    q: Float[Tensor, "images heads tokens dim"], k: Float[Tensor, "images heads tokens dim"]
) -> Float[Tensor, "images heads tokens tokens"]:
    with torch.autocast(q.device.type, enabled=False):
        return attention_weights(q.float(), k.float())


def _micro_batches(q: Float[Tensor, "batch heads tokens dim"]) -> Iterator[slice]:
    batch, heads, tokens, _ = q.shape
    size = max(1, MICRO_BYTES.get(q.device.type, MICRO_BYTES["cpu"]) // (4 * heads * tokens * tokens))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))
