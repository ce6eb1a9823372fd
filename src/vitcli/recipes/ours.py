"""Recipes of ours, measured on small machines: `small` from random weights, `finetune` from trained ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vitcli.config import (
    Architecture,
    AugmentConfig,
    Config,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    model_config,
)
from vitcli.recipes.facts import Facts, crop, evaluation_for, is_mild, is_tiny, model_for, shaped
from vitcli.tuning import blocks_of

_LARGER = ((192, 6, 6), (192, 9, 6), (256, 9, 8), (256, 12, 8), (384, 12, 12))
"""Width, depth and heads that a long time budget pays for, each about one and a half times as dear as the one before."""

_EPOCHS_OF_LARGER, _IMAGES_A_WEIGHT = 15, 1 / 200

_TRAINING_PART, _TRAINING_PART_ON_GPU = 0.4, 0.14
"""Of the FLOPs of a matrix product in the same time, what the training of a small model does: 0.39 to 0.48 on three CPUs; on an H100 a
model of width 256 and 64 tokens in batches of 512, each update one CUDA graph.
"""


@dataclass(frozen=True, kw_only=True)
class _OnGpu:
    """What is different on a GPU: there a launch is dear and arithmetic cheap, so that batches are large and images are seen often,
    and what limits a run is what is remembered.

    The sizes are those of a model that had 0.925 on CIFAR-10 after 115 passes on an H100, 0.999 on its training images: hence
    more augmentation. The recipe itself: CIFAR-10 in three minutes on an H200, seed 0, 0.936 (docs/gpu.md).
    """

    larger: tuple[tuple[int, int, int], ...] = ((192, 6, 3), (192, 9, 3), (256, 9, 4))
    epochs_of_larger: int = 60
    batch_size: int = 512
    more_epochs: int = 5
    most_epochs: float = 200.0
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    ema: float = 0.999
    many_tokens: int = 100
    low_res: float = 0.6
    """Part of a run with more tokens than these that sees smaller images: a quarter of the tokens teach the beginning as well."""
    many_passes: int = 30
    randaugment: tuple[tuple[int, int], ...] = ((60, 2), (30, 1))
    """Passes from which on there are so many operations of it."""


_GPU = _OnGpu()


def _weights(dimensions: tuple[int, int, int]) -> int:
    """Parameters of the blocks."""
    width, depth, _ = dimensions
    return 12 * width**2 * depth


def _products(model: Architecture) -> int:
    """Multiply-accumulates of an image; of a ViT those with the weights of its blocks, for which the part above was measured."""
    if isinstance(model, ModelConfig) and model.reads_pixels:
        return _weights((model.width, model.depth, model.heads)) * model.tokens
    return model.cost().macs


def _epochs_of(facts: Facts, products: int) -> float:
    """Passes over the data for which a time budget is enough; 0 without one."""
    part = _TRAINING_PART_ON_GPU if facts.device == "cuda" else _TRAINING_PART
    return part * (facts.compute or 0) / (6 * products * facts.images)


def _images_of(facts: Facts, model: Architecture, epochs: float, batch_size: int) -> float:
    """Images that a run sees: those that fit into the time budget, those asked for, or those of `epochs`."""
    if facts.steps:
        return facts.steps * batch_size
    fitting = _epochs_of(facts, _products(model))
    return facts.images * (fitting or facts.epochs or epochs)


_LOW_RES_IMAGES, _MOST_LOW_RES = 18_000, 0.45
"""What a run spends on smaller images, in the time of so many whole ones, and at most which part of it."""


def _low_res(images: float) -> float:
    """The part of a run on smaller images: they teach the beginning quickly, and no more than that however long it is."""
    return round(min(_MOST_LOW_RES, _LOW_RES_IMAGES / max(1.0, images)), 3)


_LR, _MUON_LR = 2e-3, 0.02
"""Of AdamW and of Muon where training starts from random weights."""

_MEMORY, _MOST_DECAY = 0.4, 0.5
"""Part of a run's updates that weights remember, 1 / (rate · decay) of them, and the largest decay."""


def _weight_decay(images: float, batch_size: int) -> float:
    """The decay with which weights remember the same part of a run, however long it is (Wang and Aitchison, 2024, "How to
    set AdamW's weight decay as you scale model and dataset size").
    """
    updates = max(1.0, images / batch_size)
    return round(min(_MOST_DECAY, 1 / (_MUON_LR * _MEMORY * updates)), 3)


_MANY_PASSES = 15
"""Over the data: until then what is learned limits a run, from then on what is remembered."""


def _ramp(passes: float) -> float:
    """Epochs over which crops and shifts grow: what a short run has not seen yet need not be distorted."""
    return 5.0 if passes >= _MANY_PASSES else 15.0


def _mixup(passes: float) -> float:
    return 0.2 if passes >= _MANY_PASSES else 0.0


def _randaugment_layers(passes: float) -> int:
    """For data that is seen so often that images must be distorted too."""
    return 2 if passes >= 120 else 0


def _trains_on_gpu(facts: Facts) -> bool:
    """Whether small images are trained on from random weights on a GPU, and not so small that they are digits."""
    return facts.device == "cuda" and facts.parent is None and is_tiny(facts) and not is_mild(facts)


def _small_model(facts: Facts) -> ModelConfig:
    """A size and patch that two cores train in minutes: about 8 x 8 patches, at the images' own size up to 64 px.

    With an accelerator, photographs get 224 px and the width and depth of ViT-S.
    """
    slow = facts.device == "cpu"
    side = max(facts.size)
    if facts.img_size:
        img_size = facts.img_size
    elif is_tiny(facts):
        img_size = facts.size
    else:
        img_size = (min(side, 128),) * 2 if slow else (224, 224)
    side = max(img_size)
    patch = 16 if not slow and side > 64 else max(2, 2 ** round(math.log2(side / 8)))
    img_size = shaped(facts, img_size, (patch, patch))
    if facts.img_size:
        divisors = [p for p in range(1, side + 1) if img_size[0] % p == 0 and img_size[1] % p == 0]
        patch = min(divisors, key=lambda p: (abs(p - patch), p))
    else:
        img_size = (max(patch, round(img_size[0] / patch) * patch), max(patch, round(img_size[1] / patch) * patch))
    width, depth, heads = (128, 6, 4) if slow or is_tiny(facts) else (384, 12, 6)
    if facts.images < 10_000 and side <= 16:
        width, depth, heads = (64, 6, 2) if facts.images < 5000 else (96, 6, 3)
    tokens = (img_size[0] // patch) * (img_size[1] // patch)
    often = _trains_on_gpu(facts)
    enough = _GPU.epochs_of_larger if often else _EPOCHS_OF_LARGER
    for larger in _GPU.larger if often else _LARGER:
        if _epochs_of(facts, _weights(larger) * tokens) >= enough and facts.images >= _IMAGES_A_WEIGHT * _weights(
            larger
        ):
            width, depth, heads = larger
    if often and patch > 2 and patch % 2 == 0 and not facts.img_size:
        # four times the patches of half the side, where there is time to see the images as often
        if _epochs_of(facts, _weights((width, depth, heads)) * 4 * tokens) >= enough:
            patch //= 2
    model = ModelConfig(
        name="",
        width=width,
        depth=depth,
        heads=heads,
        mlp=4 * width,
        patch=(patch, patch),
        img_size=img_size,
        classes=facts.classes,
        pool="mean",
        class_token=False,
    )
    return replace(model, name=model.spelled())


def _named_model(facts: Facts) -> Architecture:
    """The model asked for, at the images' own size where they are small."""
    size = facts.img_size or (facts.size if is_tiny(facts) else (224, 224))
    if not facts.img_size:
        patch = model_config(facts.model).multiple
        size = shaped(facts, size, patch)
        size = (max(1, round(size[0] / patch[0])) * patch[0], max(1, round(size[1] / patch[1])) * patch[1])
    return model_config(facts.model, size, facts.classes).suited_to(size)


def _batch_size(facts: Facts, largest: int) -> int:
    """The one asked for, else a power of two of at least 8 that leaves about twenty updates an epoch."""
    few = min(8, 2 ** int(math.log2(max(facts.images, 2) / 2)))  # of sixteen images not all are left for training
    return facts.batch_size or max(few, min(largest, 2 ** int(math.log2(max(facts.images, 20) / 20))))


def small(facts: Facts) -> Config:
    """Training from scratch on small data in minutes.

    A mean-pooled ViT of 1.2 M parameters unless a model is named (0.3 M for a few thousand images of up to 16
    px), Muon for the matrices of the blocks and AdamW for the rest, linear decay to zero. Images of up to 16 px
    are cropped mildly and mixed, of up to 64 px shifted, larger ones cropped and resized; all are mirrored where
    that keeps the class. Epochs shrink as the data grows: 40 for the 1,438 training images of `digits`, 14 for
    the 50,000 of CIFAR-10.

    Images twice as long as wide or more get a size of their shape, and are shifted.

    The first part of a run with images above 16 px trains at half and three quarters of their size. Crops and shifts grow
    with the passes over them; in a run of 15 passes or more images are mixed, from 120 passes on RandAugment distorts them too.

    On a GPU images above 16 px and up to 64 px are seen five times as often, in batches of up to 512, by a model with heads of 64; a time
    budget that is enough for 60 passes takes patches of half the side. From 30 passes on there are DropPath, boxes of other
    images, RandAugment, smoothed labels and the average of the weights.

    Run on two AVX512-BF16 cores of 0.38 TFLOP/s, wall time from start to exit, mean ± standard deviation of seeds 0, 1, 2:
    `vit pretrain`, 45 s: top-1 0.984 ± 0.006 on the 359 held-out digits; `vit pretrain --data CIFAR10 --time-budget 5m`
    0.766 ± 0.008, `15m` 0.836 ± 0.006; `vit pretrain --data FASHION_MNIST --time-budget 10m` 0.919 ± 0.001 (seeds 1 and 2 as
    `--steps 2315`). Seed 0 alone: CIFAR-10, `--time-budget 108m --set run.threads=1` beside another process, in place
    of an hour on both, 0.882 (11,258 steps).
    """
    model = _named_model(facts) if facts.model else _small_model(facts)
    tiny = is_tiny(facts)
    epochs = float(round(min(40.0, 40 * (1500 / max(facts.images, 1)) ** 0.3)))
    mildly = is_mild(facts)
    often = _trains_on_gpu(facts)
    if often:
        epochs = min(_GPU.most_epochs, _GPU.more_epochs * epochs)
    batch_size = _batch_size(facts, _GPU.batch_size if often else 128)
    images = _images_of(facts, model, epochs, batch_size)
    passes = images / max(facts.images, 1)
    config = Config(
        run=RunConfig(recipe="small"),
        model=model,
        augment=AugmentConfig(
            crop=crop(facts, model.img_size, tiny),
            scale=(0.8, 1.0) if mildly else (0.25, 1.0),
            flip=0.5 if facts.mirror else 0.0,
            mixup=0.2 if mildly else _mixup(passes),
            randaugment_layers=0 if mildly else _randaugment_layers(passes),
            ramp=0.0 if mildly else _ramp(passes),
        ),
        train=TrainConfig(
            batch_size=batch_size,
            epochs=epochs,
            init="mimetic" if model.has_attention else "paper",
            low_res=0.0 if mildly else _low_res(images),
        ),
        optim=OptimConfig(
            name="muon",
            lr=_LR,
            muon_lr=_MUON_LR,
            muon_momentum=0.95 if mildly else 0.9,
            weight_decay=_MOST_DECAY if mildly else _weight_decay(images, batch_size),
            schedule="linear",
            warmup=0.05,
            clip=1.0,
        ),
        eval=EvalConfig(crop=1.0 if tiny else 0.9, views=2 if facts.mirror else 1),
    )
    return _strengthened(config, passes) if often and passes >= _GPU.many_passes else config


def _strengthened(config: Config, passes: float) -> Config:
    """Against remembering images that are seen often: DropPath, boxes of other images, RandAugment, smoothed labels; and the average
    of the weights. A model of many patches begins with fewer.
    """
    model = config.model
    if isinstance(model, ModelConfig) and model.reads_pixels:
        model = replace(model, drop_path=_GPU.drop_path)
    layers = next(layers for least, layers in _GPU.randaugment if passes >= least)
    few_tokens = _GPU.low_res if model.breadth > _GPU.many_tokens else 0.0  # each size is compiled anew
    return replace(
        config,
        model=model,
        augment=replace(config.augment, cutmix=1.0, randaugment_layers=layers),
        train=replace(config.train, label_smoothing=_GPU.label_smoothing, ema=_GPU.ema, low_res=few_tokens),
    )


_LEAST_TO_COME = 0.02
"""Of all images, seen and to come, the part to come from which a checkpoint that was trained from random weights still
learns as it did."""

_LARGE_IMAGES = 256
"""Pixels of a side above which a batch's own pixels begin to fill a small machine's memory."""
_LARGER_BY, _LOW_RES_OF_LARGER = 1.2, 0.8
"""Times a checkpoint's size above which images are evaluated whole, since they need no crop to be large, and those of continued
pre-training grow again; the part of its run on smaller ones."""

_TUNING_LR, _PASSES_AT_FULL_RATE = 1e-4, 10
"""Of AdamW, and the passes over the images up to which it holds; more of them move weights no further."""
_UNLABELLED = 0.1
"""Times that rate, where what is learned has no labels to hold features in place: DeiT-Ti's probe on pets lost five images of 148 in five
passes of masked autoencoding at the full one."""


_FEW = {"bias": 30.0, "proj": 10.0}
"""Times that rate where these alone are trained (train.tune): few weights have further to go (docs/log.md)."""
_LAST = 5.0
"""The same of the last blocks, with layer-wise decay."""


def _tuning(passes: float, labelled: bool, tune: str) -> OptimConfig:
    """Of trained weights: the rate is the lower the more passes over the images it makes above ten."""
    times = _LAST if blocks_of(tune) else _FEW.get(tune, 1.0)
    rate = times * _TUNING_LR * _PASSES_AT_FULL_RATE / max(passes, _PASSES_AT_FULL_RATE)
    return OptimConfig(
        name="adamw",
        lr=max(1e-8, round(rate * (1 if labelled else _UNLABELLED), 8)),
        objective_lr=None if labelled else _LR,
        weight_decay=0.05,
        warmup=0.1,
        layer_decay=0.75 if blocks_of(tune) else 1.0,
        clip=1.0,
    )


def _continued(rest: float, images: float, batch_size: int) -> OptimConfig:
    """Continued pre-training: the last part `rest` of a schedule over all `images`."""
    return OptimConfig(
        name="muon",
        lr=round(_LR * rest, 6),
        muon_lr=round(_MUON_LR * rest, 5),
        weight_decay=_weight_decay(images, batch_size),
        schedule="linear",
        warmup=0.1,
        clip=1.0,
    )


def finetune(facts: Facts) -> Config:
    """Moving trained weights to new images: AdamW with one rate for all layers, crop and flip, cosine, at a rate that is the lower the
    more passes over the images it makes above ten.

    A checkpoint trained from random weights on less than fifty times the images to come goes on as it was trained, with
    Muon, at the rate and the decay of a schedule that falls from its start over all images, those seen and those to come:
    what it needs is more training, and a higher rate would first undo what it has. At a higher resolution most of that
    is done at half and three quarters of the new size, where the same time shows it more images. It mixes images in a
    run of 15 passes over them or more, and distorts them from 120 on, as `small` does.

    New classes start from the linear probe of all images, which is the result where a time budget leaves no more than a few
    steps (train/loop.py). Classes of unequal size are drawn as they come; data.balanced draws every class equally often.

    Run on the same cores, seed 0: the five-minute checkpoint of `small` on CIFAR-10 (0.768), `vit finetune CKPT --data CIFAR10
    --img-size 48 --time-budget 5m`, 0.796. DeiT-Ti, `vit finetune
    deit_tiny_patch16_224.safetensors --data pets --time-budget 10m`, 0.865; `9m --set data.balanced=true`, 0.899, as
    every class has four of those 148 test images; with it `--img-size 384 --time-budget 20m` had 0.892.
    """
    parent = facts.parent or _small_model(facts)
    model = model_for(replace(facts, parent=parent), "", shaped(facts, parent.img_size, parent.multiple))
    tiny = max(parent.img_size) <= 64
    mildly = is_mild(facts)
    evaluation = evaluation_for(facts)
    larger = math.sqrt(math.prod(model.img_size) / math.prod(parent.img_size))
    if larger > _LARGER_BY:
        evaluation = replace(evaluation, crop=1.0)
    epochs = float(round(min(40.0, max(1.0, 20 * (1500 / max(facts.images, 1)) ** 0.3))))
    large = max(model.img_size) > _LARGE_IMAGES
    batch_size = _batch_size(facts, 64 if facts.new_head or facts.parent_seen is None or large else 128)
    to_come = _images_of(facts, model, epochs, batch_size)
    passes = to_come / max(facts.images, 1)
    images = (facts.parent_seen or 0) + to_come
    rest = 0.0 if facts.parent_seen is None else to_come / images
    continues = rest >= _LEAST_TO_COME
    return Config(
        run=RunConfig(recipe="finetune"),
        model=model,
        augment=AugmentConfig(
            crop=crop(facts, model.img_size, tiny),
            scale=(0.8, 1.0) if mildly else (0.25, 1.0),
            flip=0.5 if facts.mirror else 0.0,
            mixup=_mixup(passes) if continues else 0.0,
            randaugment_layers=_randaugment_layers(passes) if continues and not mildly else 0,
        ),
        train=TrainConfig(
            batch_size=batch_size,
            epochs=epochs,
            label_smoothing=0.0 if continues and not facts.new_head else 0.1,
            low_res=_LOW_RES_OF_LARGER if continues and larger > _LARGER_BY else 0.0,
            head="linear" if facts.new_head else "zero",
            dev=min(0.2, max(0.1, 100 / max(facts.images, 1))) if facts.new_head else 0.0,
        ),
        optim=_continued(rest, images, batch_size) if continues else _tuning(passes, bool(facts.classes), facts.tune),
        eval=evaluation,
    )
