"""Parameters, multiply-accumulates, FLOPs and memory of a ViT by arithmetic, without torch.

Counted are the matrix products; LayerNorm, softmax, GELU, biases and residuals are not. One
multiply-accumulate (MAC) is two floating-point operations. Tables elsewhere that say "GFLOPs" for ViTs
mostly mean GMACs.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitcli.config import ModelConfig


def head_parameters(model: ModelConfig) -> int:
    pre_logits = model.width * model.width + model.width if model.pre_logits else 0
    heads = (1 + model.distilled) * (model.head_inputs * model.classes + model.classes) if model.classes else 0
    return pre_logits + heads


def backbone_parameters(model: ModelConfig) -> int:
    d, m = model.width, model.mlp
    patch = 3 * model.patch[0] * model.patch[1] * d + d
    block = 4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d + (2 * d if model.layer_scale else 0)
    return patch + model.prefix_tokens * d + model.position_rows * d + model.depth * block + 2 * d


def parameters(model: ModelConfig) -> int:
    """All trainable numbers, head included."""
    return backbone_parameters(model) + head_parameters(model)


def head_macs(model: ModelConfig) -> int:
    heads = (1 + model.distilled) * model.head_inputs * model.classes
    return heads + (model.width * model.width if model.pre_logits else 0)


def macs(model: ModelConfig) -> int:
    """Multiply-accumulates of one image's forward pass."""
    d, m, t = model.width, model.mlp, model.tokens
    patches = t - model.prefix_tokens
    embed = patches * 3 * model.patch[0] * model.patch[1] * d
    block = 4 * t * d * d + 2 * t * t * d + 2 * t * d * m
    return embed + model.depth * block + head_macs(model)


def training_flops(model: ModelConfig, images: int, frozen_backbone: bool = False) -> int:
    """Floating-point operations of training on `images` images: the backward pass is twice the forward.

    For the ViTs of the paper's Table 6 this gives the exaFLOPs that are printed there.
    """
    if frozen_backbone:
        return images * (2 * macs(model) + 4 * head_macs(model))
    return 6 * macs(model) * images


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: `state` is weights, gradients, optimizer and average; the rest is per micro-batch."""

    state: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.activations


def saved_bytes(model: ModelConfig, optimizer: str, ema: bool, frozen_backbone: bool = False) -> int:
    """Bytes of a saved step: weights, what the optimizer keeps, the average; float32 all of them."""
    count = parameters(model)
    trained = head_parameters(model) if frozen_backbone else count
    moments = {"adamw": 2, "sgd": 1, "muon": 1}[optimizer]
    return 4 * (count + trained * moments + (count if ema else 0))


def training_memory(
    model: ModelConfig, micro_batch: int, optimizer: str, ema: bool, bf16: bool, frozen_backbone: bool = False
) -> Memory:
    """An estimate: state exactly, activations as the tensors that a block keeps for its backward pass."""
    count = parameters(model)
    trained = head_parameters(model) if frozen_backbone else count
    state = saved_bytes(model, optimizer, ema, frozen_backbone) + 4 * trained + (2 * count if bf16 else 0)
    d, m, t = model.width, model.mlp, model.tokens
    item = 2 if bf16 else 4
    # kept by a block: two residual inputs and two normalised inputs, q, k, v, the attended values, the
    # MLP's two hidden tensors; the attention probabilities where they are formed.
    values = t * (2 * d * 4 + (2 * d + 3 * d + d + 2 * m) * item) + 2 * model.heads * t * t * item
    depth = 1 if frozen_backbone else model.depth
    pixels = 3 * model.img_size[0] * model.img_size[1] * 4 * 3
    return Memory(state, micro_batch * (depth * values + pixels))
