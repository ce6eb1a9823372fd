"""Parameters, multiply-accumulates, FLOPs and memory of a ViT by arithmetic, without torch.

Counted are the matrix products; LayerNorm, softmax, GELU, biases and residuals are not. One
multiply-accumulate (MAC) is two floating-point operations. Tables elsewhere that say "GFLOPs" for ViTs
mostly mean GMACs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitcli.config import Config, ModelConfig


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
    """Bytes of a run: `state` is weights, gradients, optimizer and average, `saving` the copy of it that is being written and the
    libraries' own.

    A step holds the `activations` of a micro-batch beside the `pixels` of the whole batch, which before it takes
    `augmentation`; an evaluation, which comes between steps, holds `evaluation`.
    """

    state: int
    activations: int
    saving: int = 0
    augmentation: int = 0
    pixels: int = 0
    evaluation: int = 0

    @property
    def total(self) -> int:
        """What is held at the fullest."""
        return self.state + self.saving + max(self.augmentation, self.activations + self.pixels, self.evaluation)


_BLOCKS_IN_WORK = 2
"""Blocks' worth of gradients and intermediate values beside what every block keeps."""


def saved_bytes(model: ModelConfig, optimizer: str, ema: bool, frozen_backbone: bool = False) -> int:
    """Bytes of a saved step: weights, what the optimizer keeps, the average; float32 all of them."""
    count = parameters(model)
    trained = head_parameters(model) if frozen_backbone else count
    moments = {"adamw": 2, "sgd": 1, "muon": 1}[optimizer]
    return 4 * (count + trained * moments + (count if ema else 0))


def training_memory(
    model: ModelConfig, micro_batch: int, optimizer: str, ema: bool, bf16: bool, frozen_backbone: bool = False
) -> Memory:
    """An estimate of a step without its pixels: state exactly, activations as the tensors that a block keeps for its
    backward pass.
    """
    count = parameters(model)
    trained = head_parameters(model) if frozen_backbone else count
    state = saved_bytes(model, optimizer, ema, frozen_backbone) + 4 * trained + (2 * count if bf16 else 0)
    d, m, t = model.width, model.mlp, model.tokens
    item = 2 if bf16 else 4
    # kept by a block: two residual inputs and two normalised inputs, q, k, v, the attended values, the
    # MLP's two hidden tensors; the attention probabilities where they are formed.
    values = t * (2 * d * 4 + (2 * d + 3 * d + d + 2 * m) * item) + 2 * model.heads * t * t * item
    depth = 1 if frozen_backbone else model.depth + _BLOCKS_IN_WORK
    outputs = 4 * 4 * model.classes  # logits, their softmax and gradients
    return Memory(state, micro_batch * (depth * values + outputs))


def evaluation_memory(model: ModelConfig, images: int, bf16: bool) -> int:
    """An estimate of an evaluation of so many images at a time: pixels as bytes of this batch and the next two, and as
    numbers; the residual stream, and the widest of what a block makes of it.
    """
    d, m, t = model.width, model.mlp, model.tokens
    item = 2 if bf16 else 4
    block = t * (3 * d * 4 + (2 * m + 5 * d) * item)
    return images * (block + 3 * model.img_size[0] * model.img_size[1] * (4 + 2 * 4) + 5 * 8 * model.classes)


_WORKSPACE = 200_000_000
"""What the libraries take for their products and reading ahead, whatever the model."""
_FRAGMENTS = 1.5
"""Memory of large tensors that come and go, over their own size."""


def batch_memory(config: Config) -> tuple[int, int]:
    """(while a batch is augmented, while it is trained on): bytes of the pixels of the whole batch, all views.

    They are read ahead as bytes with a margin for crops, mirrored, sampled and kept as float32. RandAugment and mixing make
    copies, of which mixing's last one stays.
    """
    augment = config.augment
    pixels = 3 * config.model.img_size[0] * config.model.img_size[1] * config.train.batch_size
    mixes = augment.mixup > 0 or augment.cutmix > 0
    working = augment.views - 1 + (5 if augment.randaugment_layers else 3)
    mixing = augment.views + 5 if mixes else 0
    kept = augment.views * (2 if mixes else 1)
    return round(_FRAGMENTS * pixels * (5 + 4 * max(working, mixing))), round(_FRAGMENTS * pixels * (5 + 4 * kept))


def run_memory(config: Config, bf16: bool, evaluated_at_once: int) -> Memory:
    """Of the run that `config` describes, in which evaluation takes so many images at a time.

    An estimate. Peaks above what was there before the first step, in GB, and the estimates in brackets: the small model on
    CIFAR-10, batch 128, 0.52 (0.62), 2,048, 5.75 (6.3), 8,192 in 64 micro-batches 0.96 (0.95), the same with RandAugment and
    mixup 1.2 (1.1); ViT-S/16 at 224 px, batch 32, 1.9 (2.4), in float32 3.1 (3.7); ViT-Ti/16, batch 512 in 64
    micro-batches, 1.4 (2.3), with RandAugment and mixup 3.7 (3.8); ViT-B/16, batch 8, 2.4 (2.9).
    """
    train, frozen = config.train, config.train.freeze == "backbone"
    ema, optimizer = train.ema > 0, config.optim.name
    step = training_memory(config.model, train.batch_size // train.accumulate, optimizer, ema, bf16, frozen)
    augmentation, pixels = batch_memory(config)
    return replace(
        step,
        saving=_WORKSPACE + saved_bytes(config.model, optimizer, ema, frozen),
        augmentation=augmentation,
        pixels=pixels,
        evaluation=evaluation_memory(config.model, config.eval.batch_size or evaluated_at_once, bf16),
    )
