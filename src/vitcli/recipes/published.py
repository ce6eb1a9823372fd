"""Published recipes; each docstring names the table that it restates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from vitcli.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    AugmentConfig,
    Config,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Size,
    TrainConfig,
)
from vitcli.recipes.facts import Facts, evaluation_for, model_for, vit_for


def _paper_augment(facts: Facts) -> AugmentConfig:
    """Inception's crop, and mirroring where a mirror image keeps its class: the papers' data have no digits."""
    return AugmentConfig(crop="resized", scale=(0.05, 1.0), flip=0.5 if facts.mirror else 0.0)


_PAPER_EVAL = EvalConfig(crop=0.875)
_MANY_CLASSES_BIAS = -10.0
"""Of a head for ImageNet-21k with a sigmoid loss: no class is likely at first (big_vision configs/vit_i21k.py)."""


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
    model = model_for(facts, "ViT-B/16")
    if isinstance(model, ModelConfig):
        model = replace(model, pre_logits=True, dropout=dropout)
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


_JFT_RATES = {
    "R50+ViT-L/32": 2e-4, "R50+ViT-L/16": 4e-4, "R50+ViT-B": 8e-4, "ViT-H": 3e-4, "ViT-L/16": 4e-4, "ViT-L": 6e-4,
    "R152x": 6e-4, "R200x": 6e-4, "R101x": 8e-4, "R50x": 1e-3,
}  # fmt: skip
"""Base rates of Table 3 by what a model's name begins with. R200x3, which has no row, takes that of R152."""


def paper_jft(facts: Facts) -> Config:
    """JFT-300M rows of Table 3 (Dosovitskiy et al., 2021), ResNets and hybrids among them: 7 epochs, 14 for H/14 and R200x3; L/16
    and its hybrid were trained for 7 and for 14, R152x2, too.

    A model without a row has the rate of ViT-B.
    """
    name = model_for(facts, "ViT-B/16").name
    lr = next((rate for begins, rate in _JFT_RATES.items() if name.startswith(begins)), 8e-4)
    return _paper(facts, "paper-jft", 14.0 if name.startswith(("ViT-H", "R200x3")) else 7.0, lr, "linear", 0.1, 0.0)


def paper_i21k(facts: Facts) -> Config:
    """ImageNet-21k rows of Table 3 (Dosovitskiy et al., 2021): 90 epochs; L was trained for 30 and for 90.

    The paper does not name the loss. It is the sigmoid one with the head's bias at -10, as its authors' later code has it for this
    data (big_vision configs/vit_i21k.py).
    """
    vit_for(facts, "paper-i21k")
    config = _paper(facts, "paper-i21k", 90.0, 1e-3, "linear", 0.03, 0.1)
    return replace(config, train=replace(config.train, loss="sigmoid", head_bias=_MANY_CLASSES_BIAS))


def paper_i1k(facts: Facts) -> Config:
    """ImageNet row of Table 3 (Dosovitskiy et al., 2021): 300 epochs, cosine, gradients clipped at norm 1."""
    vit_for(facts, "paper-i1k")
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
        model=model_for(facts, "ViT-B/16", size).with_head(facts.classes, kept=False),
        augment=AugmentConfig(crop="random", flip=0.5 if facts.mirror else 0.0),
        train=TrainConfig(batch_size=512, steps=steps),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9, warmup_steps=500 if steps > 500 else 100, clip=1.0),
        eval=replace(evaluation_for(facts), crop=1.0, resize="square", views=1),
    )


def bit_hyperrule(facts: Facts) -> Config:
    """BiT-HyperRule (Kolesnikov et al., 2020, §3.3): SGD with momentum 0.9, batch 512, rate 0.003, no weight decay.

    500 steps below 20,000 images, 10,000 below 500,000, else 20,000; Mixup of 0.1 from 20,000 images on. Images below 96 x 96
    px are squashed to 160 and cropped to 128, others to 448 and 384 px, of the largest models to 512 and 480. The rate
    falls to a tenth at 40, 60 and 80 % of the shortest schedule and 30, 60 and 90 % of the others, after a warm-up of 100
    or 500 steps (google-research/big_transfer bit_hyperrule.py; the paper has 30, 60 and 90 % for all).

    A checkpoint of images below 96 x 96 px keeps its size. Evaluation squashes to the whole size.
    """
    small = facts.images < 20_000
    large = facts.parent is not None and facts.parent.cost().parameters > 5e8
    tiny = facts.size[0] * facts.size[1] < 96**2
    size: Size = (128, 128) if tiny else (480, 480) if large else (384, 384)
    if facts.parent is not None:
        own = facts.parent.img_size
        if own[0] * own[1] < 96**2 or any(s % p for s, p in zip(size, facts.parent.multiple, strict=True)):
            size = own
    return Config(
        run=RunConfig(recipe="bit-hyperrule"),
        model=model_for(facts, "R50x1", size).with_head(facts.classes, kept=False),
        augment=AugmentConfig(
            crop="random",
            margin=160 / 128 if tiny else 512 / 480 if large else 448 / 384,
            flip=0.5 if facts.mirror else 0.0,
            mixup=0.0 if small else 0.1,
        ),
        train=TrainConfig(batch_size=512, steps=500 if small else 10_000 if facts.images < 500_000 else 20_000),
        optim=OptimConfig(
            name="sgd",
            lr=0.003,
            momentum=0.9,
            warmup_steps=100 if small else 500,
            schedule="step",
            milestones=(0.4, 0.6, 0.8) if small else (0.3, 0.6, 0.9),
        ),
        eval=replace(evaluation_for(facts), crop=1.0, resize="square", views=1),
    )


def augreg(facts: Facts) -> Config:
    """Steiner et al., 2022 (§3 and appendix B; big_vision configs/vit_i1k.py and vit_i21k.py): 300 epochs, batch 4096.

    Cosine, 10,000 warm-up steps, peak rate 1e-3, weight decay 0.1, clip 1, and RandAugment and Mixup by model:
    on data of ImageNet's size light1 for Ti, medium1 for S/32, medium2 for larger models; on
    ImageNet-21k's less. Sigmoid loss with the head's bias at -6.9 or -10.
    """
    large = facts.classes >= 10_000
    model = replace(vit_for(facts, "augreg"), pre_logits=not large)
    if large:
        model = replace(model, pool="mean", class_token=False)
    light1, light2, medium1, medium2 = (2, 0.0, 0.0), (2, 10.0, 0.2), (2, 15.0, 0.2), (2, 15.0, 0.5)
    none = (0, 0.0, 0.0)
    short = model.name.rpartition("ViT-")[2]
    size = short.split("/")[0]
    if large:
        per_name = {"Ti/16": none, "S/32": none, "S/16": light1, "B/32": light2, "B/16": light2, "L/16": medium2}
        layers, magnitude, mixup = per_name.get(short, light2)
    else:
        layers, magnitude, mixup = light1 if size == "Ti" else medium1 if short == "S/32" else medium2
    return Config(
        run=RunConfig(recipe="augreg"),
        model=model,
        augment=replace(
            _paper_augment(facts),
            randaugment_layers=layers,
            randaugment_magnitude=magnitude,
            mixup=mixup,
        ),
        train=TrainConfig(
            batch_size=4096, epochs=300.0, loss="sigmoid", head_bias=_MANY_CLASSES_BIAS if large else -6.9
        ),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.1, warmup_steps=10_000, clip=1.0),
        eval=_PAPER_EVAL,
    )


# --- DeiT --------------------------------------------------------------------------------------------------


def _deit_schedule(
    facts: Facts, name: Literal["adamw", "lamb"], batch: int, lr: float, weight_decay: float
) -> OptimConfig:
    """Five epochs of warm-up and a cosine to 1e-5 (facebookresearch/deit main.py)."""
    warmup = round(5 * facts.images / (facts.batch_size or batch))
    return OptimConfig(
        name=name, lr=lr, weight_decay=weight_decay, warmup_steps=max(1, warmup), final_lr=min(1.0, 1e-5 / lr)
    )


def deit(facts: Facts) -> Config:
    """Table 9 of Touvron et al., 2021 ("Training data-efficient image transformers"; facebookresearch/deit main.py), alike for
    Ti, S and B: AdamW, batch 1024, rate 5e-4 for each 512 images of a batch, 300 epochs, repeated augmentation.

    Theirs differs in what vit has no part for: their `rand-m9-mstd0.5-inc1` is timm's RandAugment, fifteen operations that get
    stronger with the magnitude, each left out half the time, the magnitude drawn around 9; here it is two layers of big_vision's
    sixteen, always applied, of magnitude 9. Crops are bilinear, not bicubic, and ten epochs at the last rate do not follow.
    """
    batch = 1024
    lr = 5e-4 * (facts.batch_size or batch) / 512
    return Config(
        run=RunConfig(recipe="deit"),
        model=replace(vit_for(facts, "deit"), gelu="erf", drop_path=0.1),
        augment=AugmentConfig(
            crop="resized",
            flip=0.5 if facts.mirror else 0.0,
            randaugment_layers=2,
            randaugment_magnitude=9.0,
            mixup=0.8,
            cutmix=1.0,
            erase=0.25,
            repeats=3,
        ),
        train=TrainConfig(batch_size=batch, epochs=300.0, label_smoothing=0.1, ema=0.99996),
        optim=_deit_schedule(facts, "adamw", batch, lr, 0.05),
        eval=EvalConfig(crop=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


@dataclass(frozen=True)
class _Row:
    """A command of DeiT-III's README."""

    size: int
    epochs: float
    lr: float
    drop_path: float


_DEIT3 = {
    "S": _Row(224, 800.0, 4e-3, 0.05),
    "B": _Row(192, 800.0, 3e-3, 0.2),
    "L": _Row(192, 800.0, 3e-3, 0.45),
    "H": _Row(160, 800.0, 3e-3, 0.6),
}
_DEIT3_21K = {
    "S": _Row(224, 240.0, 1e-3, 0.05),
    "B": _Row(224, 240.0, 1e-3, 0.1),
    "L": _Row(224, 240.0, 1e-3, 0.3),
    "H": _Row(128, 90.0, 1e-3, 0.5),
}


def deit3(facts: Facts) -> Config:
    """Touvron et al., 2022 ("DeiT III: Revenge of the ViT"; facebookresearch/deit README_revenge.md): LAMB, batch 2048, 800
    epochs, ThreeAugment, both labels of a mixed image in a binary cross-entropy; on data of ImageNet-21k's size 240 epochs with
    softmax, cutmix alone and no repeats.

    Rate, drop path and image size are those of S, B, L or H, whichever is as wide as the model or nearest. The size is cut down
    to whole patches, as their convolution does: 154 px for H/14 at 160. Gradients are clipped at norm 1, as apex's FusedLAMB
    does by itself. Their simple random crop resizes the short side and pads by 4 pixels; here the whole image is squashed and
    shifted by up to 4. Fine-tuning at 224 px, which follows for B, L and H, is not a part of it.
    """
    large = facts.classes >= 10_000
    model = vit_for(facts, "deit3")
    rows = _DEIT3_21K if large else _DEIT3
    row = rows[min(rows, key=lambda name: abs(VARIANTS[name][0] - model.width))]
    mixing: dict[str, Any] = {"mixup": 0.0, "cutmix": 1.0} if large else {"mixup": 0.8, "cutmix": 1.0, "repeats": 3}
    batch = 2048
    return Config(
        run=RunConfig(recipe="deit3"),
        model=_deit3_model(model, facts, row),
        augment=AugmentConfig(
            crop="pad" if large else "resized",
            pad=4 / row.size,
            flip=0.5 if facts.mirror else 0.0,
            three=True,
            jitter=(0.3, 0.3, 0.3, 0.0),
            **mixing,
        ),
        train=TrainConfig(
            batch_size=batch,
            epochs=row.epochs,
            loss="softmax" if large else "bce",
            label_smoothing=0.1 if large else 0.0,
        ),
        optim=replace(_deit_schedule(facts, "lamb", batch, row.lr, 0.02 if large else 0.05), clip=1.0),
        eval=EvalConfig(crop=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


def _deit3_model(model: ModelConfig, facts: Facts, row: _Row) -> ModelConfig:
    """LayerScale, one drop path rate for all blocks, no position of the class token (facebookresearch/deit models_v2.py)."""
    if facts.img_size is None:
        rows, columns = (max(patch, row.size - row.size % patch) for patch in model.patch)
        model = replace(model, img_size=(rows, columns))
    return replace(
        model,
        gelu="erf",
        layer_scale=1e-4,
        drop_path=row.drop_path,
        drop_path_rule="constant",
        prefix_positions=False,
    )
