"""FLOPs and memory of a run by arithmetic, without torch, from what its architecture costs (families/base.py).

Tables elsewhere that say "GFLOPs" for ViTs mostly mean GMACs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitcli.config import Config, ModelConfig
from vitcli.families.base import Activations, Architecture
from vitcli.tuning import blocks_of, tuned_numbers


def parameters(model: Architecture) -> int:
    """All trainable numbers, head included."""
    return model.cost().parameters


def backbone_parameters(model: Architecture) -> int:
    cost = model.cost()
    return cost.parameters - cost.head_parameters


def tuned_parameters(model: Architecture, tuned: str = "all") -> int:
    """Numbers that are trained, of those that are `tuned` (train.tune)."""
    return parameters(model) if tuned == "all" else tuned_numbers(model.shapes(), tuned)


def macs(model: Architecture) -> int:
    """Multiply-accumulates of one image's forward pass."""
    return model.cost().macs


def training_flops(model: Architecture, images: int, tuned: str = "all") -> int:
    """Floating-point operations of training on `images` images: the backward pass is twice the forward, the gradients of what a product
    reads and of its weights, as far down and of such weights as are `tuned` (train.tune).

    For the ViTs of the paper's Table 6 this gives the exaFLOPs that are printed there.
    """
    cost, last = model.cost(), blocks_of(tuned)
    if tuned == "head":
        return images * (2 * cost.macs + 4 * cost.head_macs)
    if tuned == "all" or not isinstance(model, ModelConfig):
        return 6 * cost.macs * images
    block = model.block_macs(model.tokens)
    if last is not None:
        return images * (2 * cost.macs + 4 * (last * block + cost.head_macs))
    attention, weights = 2 * model.tokens**2 * model.width, model.tokens * model.width**2
    if tuned == "bias":  # down to the patches' own; of attention, both factors are computed
        return images * (2 * cost.macs + model.depth * 2 * (block + attention) + 4 * cost.head_macs)
    below = 2 * (2 * attention + 4 * weights)  # of the first block, its attention and what that reads
    whole = model.depth * 2 * (block + attention + weights)
    return images * (2 * cost.macs + whole - below + 4 * cost.head_macs)


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


_MOMENTS = {"adamw": 2, "lamb": 2, "sgd": 1, "muon": 1}


def kept_bytes(model: Architecture, optimizer: str, tuned: str = "all") -> int:
    """Bytes of what an optimizer keeps of those that are `tuned`. Muon leaves what is no matrix of a block to AdamW."""
    moments = 2 if tuned in ("head", "bias") and optimizer == "muon" else _MOMENTS[optimizer]
    return 4 * moments * tuned_parameters(model, tuned)


def saved_bytes(model: Architecture, optimizer: str, ema: bool, tuned: str = "all") -> int:
    """Bytes of a saved step: weights, what the optimizer keeps of those that are `tuned`, the average; float32 all of them."""
    count = parameters(model)
    return 4 * (count + (count if ema else 0)) + kept_bytes(model, optimizer, tuned)


def update_bytes(model: Architecture, optimizer: str, tuned: str = "all") -> int:
    """Bytes of what an update needs beside the weights: gradients and what the optimizer keeps."""
    return 4 * tuned_parameters(model, tuned) + kept_bytes(model, optimizer, tuned)


def activations(model: Architecture, tuned: str = "all", checkpointing: bool = False) -> Activations:
    """What is kept of an image for the backward pass: of the last blocks alone, where no gradient goes further down."""
    last = blocks_of(tuned)
    if tuned == "head":
        return model.cost().training_head
    cost = (replace(model, depth=last) if last is not None and isinstance(model, ModelConfig) else model).cost()
    return (cost.checkpointed if checkpointing else None) or cost.training


def training_memory(
    model: Architecture,
    micro_batch: int,
    optimizer: str,
    ema: bool,
    bf16: bool,
    tuned: str = "all",
    kept: Activations | None = None,
    checkpointing: bool = False,
) -> Memory:
    """An estimate of a step without its pixels: state exactly, activations as the tensors that the model keeps for its
    backward pass, or what is `kept` of an image instead.
    """
    cost = model.cost()
    state = saved_bytes(model, optimizer, ema, tuned) + 4 * tuned_parameters(model, tuned)
    state += (2 * cost.parameters if bf16 else 0) + 8 * cost.held
    kept = kept or activations(model, tuned, checkpointing)
    return Memory(state, micro_batch * kept.bytes(bf16))


def evaluation_memory(model: Architecture, images: int, bf16: bool) -> int:
    """An estimate of an evaluation of so many images at a time: pixels as bytes of this batch and the next two, and as
    numbers; what the model holds of them.
    """
    pixels = 3 * model.img_size[0] * model.img_size[1] * (4 + 2 * 4)
    return images * (model.cost().evaluation.bytes(bf16) + pixels + 5 * 8 * model.classes)


_WORKSPACE = 200_000_000
"""What the libraries take for their products and reading ahead, whatever the model."""
_FRAGMENTS = 1.5
"""Memory of large tensors that come and go, over their own size."""


def batch_memory(config: Config) -> tuple[int, int]:
    """(while a batch is augmented, while it is trained on): bytes of the pixels of the whole batch, all views.

    They are read ahead as bytes with a margin for crops, mirrored, sampled and kept as float32. RandAugment, the changes
    of colours and mixing make copies, of which mixing's last one stays.
    """
    augment = config.augment
    pixels = config.model.channels * config.model.img_size[0] * config.model.img_size[1] * config.train.batch_size
    mixes = augment.mixup > 0 or augment.cutmix > 0
    coloured = augment.three or any(augment.jitter) or augment.gray + augment.blur + augment.solarize > 0
    working = augment.views - 1 + (5 if augment.randaugment_layers or coloured else 3)
    mixing = augment.views + 5 if mixes else 0
    kept = augment.views * (2 if mixes else 1)
    return round(_FRAGMENTS * pixels * (5 + 4 * max(working, mixing))), round(_FRAGMENTS * pixels * (5 + 4 * kept))


def run_memory(config: Config, bf16: bool, evaluated_at_once: int, kept: Activations | None = None) -> Memory:
    """Of the run that `config` describes, in which evaluation takes so many images at a time, and a step keeps `kept` of an image.

    An estimate. Peaks above what was there before the first step, in GB, and the estimates in brackets: the small model on
    CIFAR-10, batch 128, 0.52 (0.62), 2,048, 5.75 (6.3), 8,192 in 64 micro-batches 0.96 (0.95), the same with RandAugment and
    mixup 1.2 (1.1); ViT-S/16 at 224 px, batch 32, 1.9 (2.4), in float32 3.1 (3.7); ViT-Ti/16, batch 512 in 64
    micro-batches, 1.4 (2.3), with RandAugment and mixup 3.7 (3.8); ViT-B/16, batch 8, 2.4 (2.9).
    """
    train, tuned = config.train, config.train.tuned
    ema, optimizer = train.ema > 0, config.optim.name
    images, again = train.batch_size // train.accumulate, config.run.checkpointing
    step = training_memory(config.model, images, optimizer, ema, bf16, tuned, kept, again)
    augmentation, pixels = batch_memory(config)
    return replace(
        step,
        saving=_WORKSPACE + saved_bytes(config.model, optimizer, ema, tuned),
        augmentation=augmentation,
        pixels=pixels,
        evaluation=evaluation_memory(config.model, config.eval.batch_size or evaluated_at_once, bf16),
    )
