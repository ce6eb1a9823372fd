"""Attention weights, layer by layer, from the q and k that the fast path uses.

The model runs block by block. Each layer's weights are formed for a few images at a time, handed to a reducer and used for
the layer's output, then dropped, so memory holds one layer's attention of one micro-batch. The model has no flag for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vitcli.model.attention import Attention, attention_weights
from vitcli.model.rope import of_block
from vitcli.model.vit import Block, ViT

MICRO_BYTES = {"cpu": 16_000_000, "mps": 64_000_000, "cuda": 256_000_000}
"""Weights that exist at once, at least one image's: one image of ViT-B/16 at 384 px on a CPU."""
_HEADS_BYTES = {"cpu": 2_000_000, "mps": 64_000_000, "cuda": 256_000_000}
"""Weights that are formed and multiplied at once, at least one head's, so that on a CPU they stay in the cache."""


Reducer = Callable[[int, slice, Tensor], None]
"""What is done with attention weights: called with a layer, counted from 1, with which images of the batch they are of, and
with the weights [images, heads, tokens, tokens] in float32, whose rows sum to one. It keeps what it makes of them, not the
weights: their memory is used again for the next ones."""


@torch.inference_mode()
def reduce_attention(
    model: ViT, images: Float[Tensor, "batch channels height width"], reduce: Reducer, bf16: bool = False
) -> None:
    """Run `model` on normalised images and hand every layer's attention weights, of every query, to `reduce`.

    Of the last block nothing but the weights is computed. With `bf16` the layers run under autocast as they do in
    evaluation; the weights are made from the same q and k in float32 either way. Raises ValueError for images of
    another size than the model's.
    """
    config, batch, device = model.config, len(images), images.device
    if tuple(images.shape[2:]) != tuple(config.img_size):
        raise ValueError(f"images of {tuple(images.shape[2:])}, the model takes {tuple(config.img_size)}")
    matrix = 4 * config.tokens**2
    size = min(batch, _at_once(MICRO_BYTES, device, config.heads * matrix))
    heads = _at_once(_HEADS_BYTES, device, size * matrix)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        x = model.embed(images)
        rope = model.rotations(config.grid)
        memory = torch.empty(size, config.heads, config.tokens, config.tokens, device=device)
        for layer, block in enumerate(model.blocks, start=1):
            assert isinstance(block, Block)
            qkv = block.attn.project(block.before(block.norm1, x), of_block(rope, layer - 1))
            is_last = layer == len(model.blocks)
            mixed = None if is_last else torch.empty_like(x, dtype=qkv.dtype)
            for part in (slice(start, min(start + size, batch)) for start in range(0, batch, size)):
                weights = memory[: part.stop - part.start]
                _attend(block.attn, qkv[:, part], heads, weights, None if mixed is None else mixed[part])
                reduce(layer, part, weights)
            del qkv
            if mixed is not None:  # what the block's own `forward` does from here on
                x = block.after(block.norm1, x + block.ls1(block.attn.joined(mixed)))
                del mixed
                x = block.after(block.norm2, x + block.mlp_branch(x))


def _attend(
    attention: Attention,
    qkv: Float[Tensor, "3 images heads tokens dim"],
    heads: int,
    weights: Float[Tensor, "images heads tokens tokens"],
    mixed: Float[Tensor, "images tokens width"] | None,
) -> None:
    """Fill `weights`, and `mixed` with what they make of v, the heads side by side."""
    q, k, v = qkv.unbind(0)
    by_head = None if mixed is None else mixed.unflatten(2, (q.shape[1], q.shape[3])).transpose(1, 2)
    for start in range(0, q.shape[1], heads):
        part = slice(start, start + heads)
        with torch.autocast(q.device.type, enabled=False):
            queries = q[:, part].float()
            found = attention_weights(queries, k[:, part].float(), attention.bias(queries, part))
        weights[:, part] = found
        if by_head is not None:
            by_head[:, part] = found.to(v.dtype) @ v[:, part]


def _at_once(most: dict[str, int], device: torch.device, each: int) -> int:
    """How many things of `each` bytes; one at least."""
    return max(1, most.get(device.type, most["cpu"]) // each)
