"""Recipes: functions from the facts of a run to a complete configuration.

`small` and `finetune` are ours; the others are published, and their docstrings name the table they restate.
A recipe decides everything; `--config`, `--set` and the options then replace single values.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from vitcli.config import (
    Architecture,
    AugmentConfig,
    Config,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Size,
    TrainConfig,
    apply,
    format_size,
    model_config,
)
from vitcli.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Facts:
    """What is known before a recipe decides."""

    command: str  # pretrain or finetune
    images: int  # for training
    classes: int
    size: Size  # of the images: the common one, or a typical one
    mirror: bool  # whether a mirror image keeps its class
    device: str
    model: str = ""  # asked for by name
    img_size: Size | None = None  # asked for
    parent: Architecture | None = None  # finetune: the checkpoint's model
    parent_eval: EvalConfig | None = None
    new_head: bool = True  # finetune: the classes are not the checkpoint's
    compute: float | None = None  # FLOPs of a matrix product that fit into the time budget, if there is one
    parent_seen: int | None = (
        None  # finetune: images on which the checkpoint was trained from random weights, if it was
    )
    epochs: float | None = None  # asked for, as the next two
    steps: int | None = None
    batch_size: int | None = None


def _model(facts: Facts, default: str, img_size: Size = (224, 224)) -> Architecture:
    """The model asked for, else the default, with the GELU of the published code; finetune keeps its parent's."""
    size = facts.img_size or img_size
    if facts.parent is not None:
        return replace(facts.parent.without_dropout(), img_size=size, classes=facts.classes)
    return model_config(facts.model or default, size, facts.classes).published()


def _vit(facts: Facts, recipe: str) -> ModelConfig:
    """The model of a recipe that is published for Vision Transformers alone. Raises UsageError for another one."""
    model = _model(facts, "ViT-B/16")
    if not isinstance(model, ModelConfig):
        raise UsageError(f"recipe {recipe} is of Vision Transformers, not of {model.name}", "leave --recipe out")
    return model


def _evaluation(facts: Facts) -> EvalConfig:
    """As the checkpoint's, where there is one; without mirrored views of images whose mirror image is of another class."""
    evaluation = facts.parent_eval or EvalConfig()
    return evaluation if facts.mirror else replace(evaluation, views=1)


def _is_tiny(facts: Facts) -> bool:
    return max(facts.size) <= 64


def _is_mild(facts: Facts) -> bool:
    """Whether images are too small to lose more than a little at the border: up to 16 px, and about as wide as high."""
    return max(facts.size) <= 16 and max(facts.size) < 1.5 * min(facts.size)


_LONG, _MOST_LONG = 2.0, 16.0
"""Longer over shorter side from which images are long, and the most that a model's image has."""


def is_long(size: Size) -> bool:
    """Whether an image is so long that a resized crop of it is mostly its central part, and its centre a third or less."""
    return max(size) >= _LONG * min(size)


def _is_shaped_like(size: Size, img_size: Size) -> bool:
    """Whether squashing images of `size` to `img_size` changes width over height by less than a half."""
    change = (size[1] / size[0]) / (img_size[1] / img_size[0])
    return 1 / 1.5 < change < 1.5


def _shaped(facts: Facts, img_size: Size, patch: Size) -> Size:
    """`img_size`, or for long images of another shape a size of their shape with about as many patches.

    DeiT-Ti's probe on strips of 128 x 512 px with a pet in one of four places (914 for training, 148 held out) has 0.236
    where the centre is cut out at 224 px, 0.122 where the strip is squashed to 224 px, and 0.473 at 112 x 448 px.
    """
    if facts.img_size or not is_long(facts.size) or _is_shaped_like(facts.size, img_size):
        return img_size
    shape = min(_MOST_LONG, max(1 / _MOST_LONG, facts.size[1] / facts.size[0]))
    area = img_size[0] * img_size[1]
    rows, columns = math.sqrt(area / shape) / patch[0], math.sqrt(area * shape) / patch[1]
    return max(1, round(rows)) * patch[0], max(1, round(columns)) * patch[1]


def _crop(facts: Facts, img_size: Size, tiny: bool) -> Literal["pad", "resized"]:
    """Shifts of small images and of long ones at a size of their shape, so that training sees their ends."""
    long = is_long(facts.size) and _is_shaped_like(facts.size, img_size)
    return "pad" if (tiny and not _is_mild(facts)) or long else "resized"


def evaluated_as_trained(config: Config, asked: Collection[str] = ()) -> Config:
    """`config` with evaluation showing what training showed, unless eval.resize or eval.crop are among the keys `asked`.

    The crops `none`, `pad` and `random` take the whole image, squashed to the model's size, so evaluation squashes it
    too and cuts nothing off. `resized` crops have the shape that they have in the image, as has the centre of one whose
    short side is resized. Small images of 16 x 48 px whose class only shows in their outer sixth had 0.79 where
    training saw the border and evaluation did not.
    """
    crops = config.augment.crop == "resized"
    wanted = {"eval.resize": "short"} if crops else {"eval.resize": "square", "eval.crop": 1.0}
    return apply(config, {key: value for key, value in wanted.items() if key not in asked})


# --- ours --------------------------------------------------------------------------------------------------


_LARGER = ((192, 6, 6), (192, 9, 6), (256, 9, 8), (256, 12, 8), (384, 12, 12))
"""Width, depth and heads that a long time budget pays for, each about one and a half times as dear as the one before."""
_EPOCHS_OF_LARGER, _IMAGES_A_WEIGHT = 15, 1 / 200
_TRAINING_PART = 0.4
"""Of the FLOPs of a matrix product in the same time, what the training of a small model does: 0.39 to 0.48 on three CPUs."""


def _weights(dimensions: tuple[int, int, int]) -> int:
    """Parameters of the blocks."""
    width, depth, _ = dimensions
    return 12 * width**2 * depth


def _products(model: Architecture) -> int:
    """Multiply-accumulates of an image; of a ViT those with the weights of its blocks, for which the part above was measured."""
    if isinstance(model, ModelConfig):
        return _weights((model.width, model.depth, model.heads)) * model.tokens
    return model.cost().macs


def _epochs_of(facts: Facts, products: int) -> float:
    """Passes over the data for which a time budget is enough; 0 without one."""
    return _TRAINING_PART * (facts.compute or 0) / (6 * products * facts.images)


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


def _small_model(facts: Facts) -> ModelConfig:
    """A size and patch that two cores train in minutes: about 8 x 8 patches, at the images' own size up to 64 px.

    With an accelerator, photographs get 224 px and the width and depth of ViT-S.
    """
    slow = facts.device == "cpu"
    side = max(facts.size)
    if facts.img_size:
        img_size = facts.img_size
    elif _is_tiny(facts):
        img_size = facts.size
    else:
        img_size = (min(side, 128),) * 2 if slow else (224, 224)
    side = max(img_size)
    patch = 16 if not slow and side > 64 else max(2, 2 ** round(math.log2(side / 8)))
    img_size = _shaped(facts, img_size, (patch, patch))
    if facts.img_size:
        divisors = [p for p in range(1, side + 1) if img_size[0] % p == 0 and img_size[1] % p == 0]
        patch = min(divisors, key=lambda p: (abs(p - patch), p))
    else:
        img_size = (max(patch, round(img_size[0] / patch) * patch), max(patch, round(img_size[1] / patch) * patch))
    width, depth, heads = (128, 6, 4) if slow or _is_tiny(facts) else (384, 12, 6)
    if facts.images < 10_000 and side <= 16:
        width, depth, heads = (64, 6, 2) if facts.images < 5000 else (96, 6, 3)
    tokens = (img_size[0] // patch) * (img_size[1] // patch)
    for larger in _LARGER:
        if _epochs_of(
            facts, _weights(larger) * tokens
        ) >= _EPOCHS_OF_LARGER and facts.images >= _IMAGES_A_WEIGHT * _weights(larger):
            width, depth, heads = larger
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

    Run on two AVX512-BF16 cores of 0.38 TFLOP/s, wall time from start to exit, mean ± standard deviation of seeds 0, 1, 2:
    `vit pretrain`, 45 s: top-1 0.984 ± 0.006 on the 359 held-out digits; `vit pretrain --data CIFAR10 --time-budget 5m`
    0.766 ± 0.008, `15m` 0.836 ± 0.006; `vit pretrain --data FASHION_MNIST --time-budget 10m` 0.919 ± 0.001 (seeds 1 and 2 as
    `--steps 2315`). Seed 0 alone: CIFAR-10, `--time-budget 108m --set run.threads=1` beside another process, in place
    of an hour on both, 0.882 (11,258 steps).
    """
    if facts.model:
        size = facts.img_size or (facts.size if _is_tiny(facts) else (224, 224))
        if not facts.img_size:
            patch = model_config(facts.model).multiple
            size = _shaped(facts, size, patch)
            size = (max(1, round(size[0] / patch[0])) * patch[0], max(1, round(size[1] / patch[1])) * patch[1])
        model = model_config(facts.model, size, facts.classes)
    else:
        model = _small_model(facts)
    tiny = _is_tiny(facts)
    epochs = float(round(min(40.0, 40 * (1500 / max(facts.images, 1)) ** 0.3)))
    mildly = _is_mild(facts)
    batch_size = _batch_size(facts, 128)
    images = _images_of(facts, model, epochs, batch_size)
    passes = images / max(facts.images, 1)
    return Config(
        run=RunConfig(recipe="small"),
        model=model,
        augment=AugmentConfig(
            crop=_crop(facts, model.img_size, tiny),
            scale=(0.8, 1.0) if mildly else (0.25, 1.0),
            flip=0.5 if facts.mirror else 0.0,
            mixup=0.2 if mildly else _mixup(passes),
            randaugment_layers=0 if mildly else _randaugment_layers(passes),
            ramp=0.0 if mildly else _ramp(passes),
        ),
        train=TrainConfig(
            batch_size=batch_size,
            epochs=epochs,
            init="mimetic",
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


_YOUNG = 0.02
"""Of all images, seen and to come, the part to come from which a checkpoint that was trained from random weights still
learns as it did."""
_LARGER_BY, _LOW_RES_OF_LARGER = 1.2, 0.8
"""Times a checkpoint's size above which images are evaluated whole, since they need no crop to be large, and those of a young
checkpoint grow again; the part of its run on smaller ones."""
_TUNING_LR, _PASSES_AT_FULL_RATE = 1e-4, 10
"""Of AdamW, and the passes over the images up to which it holds; more of them move weights no further."""


def finetune(facts: Facts) -> Config:
    """Moving trained weights to new images: AdamW with layer-wise decay, crop and flip, cosine, at a rate that is the lower the
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
    model = _model(replace(facts, parent=parent), "", _shaped(facts, parent.img_size, parent.multiple))
    tiny = max(parent.img_size) <= 64
    mildly = _is_mild(facts)
    evaluation = _evaluation(facts)
    larger = math.sqrt(math.prod(model.img_size) / math.prod(parent.img_size))
    if larger > _LARGER_BY:
        evaluation = replace(evaluation, crop=1.0)
    epochs = float(round(min(40.0, max(1.0, 20 * (1500 / max(facts.images, 1)) ** 0.3))))
    batch_size = _batch_size(facts, 64 if facts.new_head or facts.parent_seen is None else 128)
    to_come = _images_of(facts, model, epochs, batch_size)
    passes = to_come / max(facts.images, 1)
    tuning = OptimConfig(
        name="adamw",
        lr=max(1e-8, round(_TUNING_LR * _PASSES_AT_FULL_RATE / max(passes, _PASSES_AT_FULL_RATE), 8)),
        weight_decay=0.05,
        warmup=0.1,
        layer_decay=0.75,
        clip=1.0,
    )
    images = (facts.parent_seen or 0) + to_come
    rest = 0.0 if facts.parent_seen is None else to_come / images
    young = rest >= _YOUNG
    training = OptimConfig(
        name="muon",
        lr=round(_LR * rest, 6),
        muon_lr=round(_MUON_LR * rest, 5),
        weight_decay=_weight_decay(images, batch_size),
        schedule="linear",
        warmup=0.1,
        clip=1.0,
    )
    return Config(
        run=RunConfig(recipe="finetune"),
        model=model,
        augment=AugmentConfig(
            crop=_crop(facts, model.img_size, tiny),
            scale=(0.8, 1.0) if mildly else (0.25, 1.0),
            flip=0.5 if facts.mirror else 0.0,
            mixup=_mixup(passes) if young else 0.0,
            randaugment_layers=_randaugment_layers(passes) if young and not mildly else 0,
        ),
        train=TrainConfig(
            batch_size=batch_size,
            epochs=epochs,
            label_smoothing=0.0 if young and not facts.new_head else 0.1,
            low_res=_LOW_RES_OF_LARGER if young and larger > _LARGER_BY else 0.0,
            head="linear" if facts.new_head else "zero",
            dev=min(0.2, max(0.1, 100 / max(facts.images, 1))) if facts.new_head else 0.0,
        ),
        optim=training if young else tuning,
        eval=evaluation,
    )


# --- the paper's -------------------------------------------------------------------------------------------


def _paper_augment(facts: Facts) -> AugmentConfig:
    """Inception's crop, and mirroring where a mirror image keeps its class: the papers' data have no digits."""
    return AugmentConfig(crop="resized", scale=(0.05, 1.0), flip=0.5 if facts.mirror else 0.0)


_PAPER_EVAL = EvalConfig(crop=0.875)


def _paper(
    facts: Facts,
    recipe: str,
    epochs: float,
    lr: float,
    decay: str,
    weight_decay: float,
    dropout: float,
    clip: float = 0.0,
) -> Config:
    """A row of the paper's Table 3: batch 4096, 10,000 warm-up steps, 224 px, Adam (0.9, 0.999), tanh pre-logits."""
    model = replace(_vit(facts, recipe), pre_logits=True, dropout=dropout)
    return Config(
        run=RunConfig(recipe=recipe),
        model=model,
        augment=_paper_augment(facts),
        train=TrainConfig(batch_size=4096, epochs=epochs),
        optim=OptimConfig(
            name="adamw",
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=10_000,
            clip=clip,
            schedule="linear" if decay == "linear" else "cosine",
        ),
        eval=_PAPER_EVAL,
    )


def _paper_size(facts: Facts) -> str:
    """B, L or H, or the nearest of them, and the patch: the key of a row of Table 3."""
    name = _vit(facts, "paper-jft").name
    variant, patch = name.removeprefix("ViT-").split("/")
    return f"{variant if variant in 'BLH' else 'B'}/{patch}"


def paper_jft(facts: Facts) -> Config:
    """JFT-300M rows of Table 3 (Dosovitskiy et al., 2021): 7 epochs, 14 for H/14; L/16 was trained for 7 and for 14."""
    lr = {"B": 8e-4, "L": 4e-4 if _paper_size(facts) == "L/16" else 6e-4, "H": 3e-4}[_paper_size(facts)[0]]
    return _paper(facts, "paper-jft", 14.0 if _paper_size(facts)[0] == "H" else 7.0, lr, "linear", 0.1, 0.0)


def paper_i21k(facts: Facts) -> Config:
    """ImageNet-21k rows of Table 3 (Dosovitskiy et al., 2021): 90 epochs; L was trained for 30 and for 90."""
    return _paper(facts, "paper-i21k", 90.0, 1e-3, "linear", 0.03, 0.1)


def paper_i1k(facts: Facts) -> Config:
    """ImageNet row of Table 3 (Dosovitskiy et al., 2021): 300 epochs, cosine, gradients clipped at norm 1."""
    return _paper(facts, "paper-i1k", 300.0, 3e-3, "cosine", 0.3, 0.1, clip=1.0)


def paper_finetune(facts: Facts) -> Config:
    """Table 4 (Dosovitskiy et al., 2021): SGD with momentum 0.9, batch 512, cosine, no weight decay, clip 1, 384 px.

    Steps are the table's for data of that size: 20,000 (ImageNet), 10,000 (CIFAR), 500 (Pets, Flowers). The
    rate 0.01 is in every grid of the table; warm-up, which the paper does not give, is 500 or 100 steps
    (big_vision configs/transfer.py). Images are squashed to a square 8/7 as large and cropped at random,
    evaluation squashes only (BiT §3.3). A model trained on small images keeps its size, one with
    14-pixel patches is tuned at 518 px as in Table 2.
    """
    size: Size = (384, 384)
    if facts.parent is not None:
        size = (518, 518) if facts.parent.multiple == (14, 14) else size
        if max(facts.parent.img_size) < 128 or any(s % p for s, p in zip(size, facts.parent.multiple, strict=True)):
            size = facts.parent.img_size
    steps = 20_000 if facts.images >= 500_000 else 10_000 if facts.images >= 20_000 else 500
    return Config(
        run=RunConfig(recipe="paper-finetune"),
        model=_model(facts, "ViT-B/16", size).with_head(facts.classes, kept=False),
        augment=AugmentConfig(crop="random", flip=0.5 if facts.mirror else 0.0),
        train=TrainConfig(batch_size=512, steps=steps),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9, warmup_steps=500 if steps > 500 else 100, clip=1.0),
        eval=replace(_evaluation(facts), crop=1.0, resize="square", views=1),
    )


def augreg(facts: Facts) -> Config:
    """Steiner et al., 2022 (§3 and appendix B; big_vision configs/vit_i1k.py and vit_i21k.py): 300 epochs, batch 4096.

    Cosine, 10,000 warm-up steps, peak rate 1e-3, weight decay 0.1, clip 1, and RandAugment and Mixup by model:
    on data of ImageNet's size light1 for Ti, medium1 for S/32, medium2 for larger models; on
    ImageNet-21k's less. Sigmoid loss with the head's bias at -6.9 or -10.
    """
    large = facts.classes >= 10_000
    model = replace(_vit(facts, "augreg"), pre_logits=not large)
    if large:
        model = replace(model, pool="mean", class_token=False)
    light1, light2, medium1, medium2 = (2, 0.0, 0.0), (2, 10.0, 0.2), (2, 15.0, 0.2), (2, 15.0, 0.5)
    none = (0, 0.0, 0.0)
    size = model.name.removeprefix("ViT-").split("/")[0]
    if large:
        per_name = {"Ti/16": none, "S/32": none, "S/16": light1, "B/32": light2, "B/16": light2, "L/16": medium2}
        layers, magnitude, mixup = per_name.get(model.name.removeprefix("ViT-"), light2)
    else:
        layers, magnitude, mixup = light1 if size == "Ti" else medium1 if model.name == "ViT-S/32" else medium2
    return Config(
        run=RunConfig(recipe="augreg"),
        model=model,
        augment=replace(
            _paper_augment(facts),
            randaugment_layers=layers,
            randaugment_magnitude=magnitude,
            mixup=mixup,
        ),
        train=TrainConfig(batch_size=4096, epochs=300.0, loss="sigmoid", head_bias=-10.0 if large else -6.9),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.1, warmup_steps=10_000, clip=1.0),
        eval=_PAPER_EVAL,
    )


RECIPES: dict[str, Callable[[Facts], Config]] = {
    "small": small,
    "finetune": finetune,
    "paper-jft": paper_jft,
    "paper-i21k": paper_i21k,
    "paper-i1k": paper_i1k,
    "paper-finetune": paper_finetune,
    "augreg": augreg,
}
"""By the name that `--recipe` takes."""


def default_recipe(facts: Facts) -> str:
    """`finetune` or `small`. A published recipe is taken when it is asked for: its model and batch are those of the
    machines that it was published with.
    """
    return "finetune" if facts.command == "finetune" else "small"


_FEW_PHOTOGRAPHS, _FEW_OF_A_CLASS = 3000, 50
"""Images, of more than 64 px, or of a class, below which training from scratch is warned of."""
_WARMUP = 0.1
"""Part of a run that takes the place of a published warm-up that is longer than the run."""


def fitted_to_data(config: Config, facts: Facts, asked: Collection[str] = ()) -> tuple[Config, list[str]]:
    """(`config` with a warm-up that ends within the run, warnings of what does not suit the data).

    Raises UsageError where a batch or a warm-up that was asked for, by a key in `asked`, is larger than the data or the
    run. A batch that is the recipe's own is said: a published recipe keeps it.
    """
    warnings = [text for text in (_few(config, facts), _cut_off(config, facts, asked)) if text]
    batch = config.train.batch_size
    if batch > facts.images:
        own = configure(config.run.recipe, replace(facts, batch_size=None)).train.batch_size
        if "train.batch_size" in asked and batch != own:
            raise UsageError(
                f"train.batch_size = {batch:,} is more than the {facts.images:,} training images",
                f"at most --batch-size {2 ** int(math.log2(facts.images))}, or leave it out",
            )
        warnings.append(
            f"a batch of {batch:,} images, recipe {config.run.recipe}'s, holds every one of the {facts.images:,} training "
            f"images {batch / facts.images:.2g} times: --batch-size takes a smaller one"
        )
    epochs, steps, warmup = config.train.epochs, config.train.steps, config.optim.warmup_steps
    if epochs is not None:
        steps = max(1, round(epochs * facts.images / batch))
    if not warmup or (steps is not None and warmup < steps):
        return config, warnings
    length = "a time budget" if steps is None else f"{steps:,} steps"
    if "optim.warmup_steps" in asked:
        if steps is None:  # nobody knows yet
            return config, warnings
        raise UsageError(
            f"optim.warmup_steps = {warmup:,} takes all of a run of {length}",
            f"lengthen the run, or warm up for a part of it with --set optim.warmup_steps=0 --set optim.warmup={_WARMUP}",
        )
    warnings.append(
        f"warm-up: a tenth of the run in place of recipe {config.run.recipe}'s {warmup:,} steps, as it has {length}"
    )
    return apply(config, {"optim.warmup_steps": 0, "optim.warmup": _WARMUP}), warnings


def _few(config: Config, facts: Facts) -> str:
    """That trained weights would do better than random ones, where that is sure enough to be said."""
    photographs = not _is_tiny(facts) and facts.images < _FEW_PHOTOGRAPHS
    if not facts.classes:
        return ""
    each = facts.images / facts.classes
    if facts.command != "pretrain" or not (photographs or each < _FEW_OF_A_CLASS):
        return ""
    return (
        f"{facts.images:,} {'photographs' if photographs else 'images'}, {each:.3g} a class, are few to train from random "
        f"weights; trained ones need fewer: vit finetune WEIGHTS --data {shlex.quote(config.data.source)}"
    )


def _cut_off(config: Config, facts: Facts, asked: Collection[str]) -> str:
    """That long images are seen in part, and how they are seen whole."""
    if not is_long(facts.size) or config.augment.crop != "resized":
        return ""
    free = "leave --img-size out" if "model.img_size" in asked and config.run.recipe in ("small", "finetune") else ""
    shaped = format_size(_shaped(replace(facts, img_size=None), config.model.img_size, config.model.multiple))
    return (
        f"images of about {format_size(facts.size)} px are cropped to {format_size(config.model.img_size)} px: most crops, and "
        f"evaluation, show the centre alone; to see all of them {free or f'take --img-size {shaped} and augment.crop=pad'}"
    )


def configure(recipe: str, facts: Facts) -> Config:
    """The complete configuration of `recipe`. Raises UsageError for an unknown name or a model that does not fit."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe[:100]!r}", did_you_mean(recipe, RECIPES))
    if facts.command == "pretrain" and recipe in ("finetune", "paper-finetune"):
        raise UsageError(f"recipe {recipe!r} starts from trained weights", "use vit finetune CKPT, or another recipe")
    if facts.command == "finetune" and recipe not in ("finetune", "paper-finetune"):
        raise UsageError(
            f"recipe {recipe!r} starts from random weights", "use vit pretrain, or --recipe finetune or paper-finetune"
        )
    if facts.model and facts.parent is not None:
        raise UsageError("--model cannot change a trained model", "the checkpoint says what its model is")
    config = RECIPES[recipe](facts)
    config.model.check()
    return config
