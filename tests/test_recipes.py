"""Published recipes against the rows of their tables; every recipe against whatever data it may meet."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import train_run
from vitcli import api
from vitcli.config import Config, EvalConfig, ModelConfig, apply, check, model_config
from vitcli.errors import UsageError
from vitcli.flops import training_flops
from vitcli.recipes.facts import Facts
from vitcli.recipes.table import RECIPES, TUNING, configure, default_recipe, evaluated_as_trained, fitted_to_data
from vitcli.train import memory
from vitcli.weights.document import seen_since_random

IMAGENET, IMAGENET_21K, JFT = (1_281_167, 1000), (14_200_000, 21_843), (303_000_000, 18_291)


def facts(command: str = "pretrain", data: tuple[int, int] = IMAGENET, **changes: Any) -> Facts:
    return Facts(
        **(
            {
                "command": command,
                "images": data[0],
                "classes": data[1],
                "size": (400, 500),
                "mirror": True,
                "device": "cuda",
            }
            | changes
        )
    )


def row(recipe: str, name: str, data: tuple[int, int]) -> dict[str, Any]:
    """A configuration in the columns of the paper's Table 3."""
    config = configure(recipe, facts(data=data, model=name))
    assert config.model.name == f"ViT-{name}"
    assert config.model.classes == data[1]
    assert config.run.recipe == recipe
    return {
        "epochs": config.train.epochs,
        "lr": config.optim.lr,
        "decay": config.optim.schedule,
        "weight_decay": config.optim.weight_decay,
        "dropout": config.model.dropout,
        "clip": config.optim.clip,
    }


def columns(
    epochs: float, lr: float, decay: str, weight_decay: float, dropout: float, clip: float = 0.0
) -> dict[str, Any]:
    return {"epochs": epochs, "lr": lr, "decay": decay, "weight_decay": weight_decay, "dropout": dropout, "clip": clip}


@pytest.mark.parametrize(
    ("name", "epochs", "lr"),
    [("B/16", 7, 8e-4), ("B/32", 7, 8e-4), ("L/32", 7, 6e-4), ("L/16", 7, 4e-4), ("H/14", 14, 3e-4)],
)
def test_table_3_jft(name, epochs, lr):
    assert row("paper-jft", name, JFT) == columns(epochs, lr, "linear", 0.1, 0.0)


@pytest.mark.parametrize("name", ["B/16", "B/32", "L/16", "L/32"])
def test_table_3_imagenet_21k(name):
    assert row("paper-i21k", name, IMAGENET_21K) == columns(90, 1e-3, "linear", 0.03, 0.1)
    train = configure("paper-i21k", facts(model=name)).train
    assert (train.loss, train.head_bias) == ("sigmoid", -10.0)  # big_vision configs/vit_i21k.py


@pytest.mark.parametrize("name", ["B/16", "B/32", "L/16", "L/32", "H/14"])
def test_table_3_imagenet(name):
    assert row("paper-i1k", name, IMAGENET) == columns(300, 3e-3, "cosine", 0.3, 0.1, clip=1.0)


@pytest.mark.parametrize("recipe", ["paper-jft", "paper-i21k", "paper-i1k"])
def test_the_caption_of_table_3(recipe):
    """Batch 4096, 10,000 steps of warm-up, 224 px, Adam with (0.9, 0.999), a tanh layer before the head."""
    config = configure(recipe, facts(model="B/16"))
    assert config.train.batch_size == 4096
    assert config.optim.warmup_steps == 10_000
    assert config.optim.name == "adamw"
    assert config.optim.betas == (0.9, 0.999)
    assert config.model.img_size == (224, 224)
    assert (config.model.pre_logits, config.model.pool, config.model.class_token) == (True, "cls", True)
    assert config.augment.mixup == config.augment.cutmix == config.augment.randaugment_layers == 0
    assert config.train.ema == 0
    assert (config.eval.mean, config.eval.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("name", ["B/16", "L/16", "L/32"])
@pytest.mark.parametrize(
    ("data", "steps", "warmup"),
    [
        (IMAGENET, 20_000, 500),
        ((50_000, 10), 10_000, 500),
        ((50_000, 100), 10_000, 500),
        ((3680, 37), 500, 100),
        ((2040, 102), 500, 100),
    ],
    ids=["imagenet", "cifar-10", "cifar-100", "pets", "flowers"],
)
def test_table_4_fine_tuning(name, data, steps, warmup):
    parent = dataclasses.replace(model_config(name, classes=21_843), pre_logits=True, dropout=0.1)
    config = configure("paper-finetune", facts("finetune", data, parent=parent))
    assert config.train.steps == steps
    assert config.train.epochs is None
    assert config.train.batch_size == 512
    assert config.optim.name == "sgd"
    assert config.optim.momentum == 0.9
    assert config.optim.weight_decay == 0
    assert config.optim.clip == 1
    assert config.optim.schedule == "cosine"
    assert config.optim.lr in (0.003, 0.01, 0.03)
    assert config.optim.warmup_steps == warmup
    assert config.model.img_size == (384, 384)
    assert config.model.pre_logits is False
    assert config.model.classes == data[1]
    assert config.eval.resize == "square"
    assert config.eval.crop == 1.0
    assert config.augment.crop == "random"


def test_h14_is_fine_tuned_at_518():
    config = configure("paper-finetune", facts("finetune", parent=model_config("H/14")))
    assert config.model.img_size == (518, 518)


def test_fine_tuning_keeps_the_parent_s_pixel_statistics():
    seen = EvalConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.9)
    for recipe in ("finetune", "paper-finetune"):
        config = configure(recipe, facts("finetune", parent=model_config("B/16"), parent_eval=seen))
        assert (config.eval.mean, config.eval.std) == (seen.mean, seen.std)


@pytest.mark.parametrize(
    ("name", "layers", "magnitude", "mixup"),
    [
        ("Ti/16", 2, 0, 0),
        ("S/32", 2, 15, 0.2),
        ("S/16", 2, 15, 0.5),
        ("B/32", 2, 15, 0.5),
        ("B/16", 2, 15, 0.5),
        ("L/16", 2, 15, 0.5),
    ],
)
def test_augreg_on_imagenet(name, layers, magnitude, mixup):
    config = configure("augreg", facts(model=name))
    augment = config.augment
    assert (augment.randaugment_layers, augment.randaugment_magnitude, augment.mixup) == (layers, magnitude, mixup)
    assert config.train.head_bias == -6.9
    assert (config.model.pool, config.model.class_token, config.model.pre_logits) == ("cls", True, True)


@pytest.mark.parametrize(
    ("name", "layers", "magnitude", "mixup"),
    [
        ("Ti/16", 0, None, 0),
        ("S/32", 0, None, 0),
        ("S/16", 2, 0, 0),
        ("B/32", 2, 10, 0.2),
        ("B/16", 2, 10, 0.2),
        ("L/16", 2, 15, 0.5),
    ],
)
def test_augreg_on_imagenet_21k(name, layers, magnitude, mixup):
    config = configure("augreg", facts(data=IMAGENET_21K, model=name))
    augment = config.augment
    assert (augment.randaugment_layers, augment.mixup) == (layers, mixup)
    if magnitude is not None:
        assert augment.randaugment_magnitude == magnitude
    assert config.train.head_bias == -10
    assert (config.model.pool, config.model.class_token, config.model.pre_logits) == ("mean", False, False)


@pytest.mark.parametrize("data", [IMAGENET, IMAGENET_21K])
@pytest.mark.parametrize("name", ["B/16", "L/16", "L/32", "H/14"])
def test_augreg_for_all(name, data):
    config = configure("augreg", facts(data=data, model=name))
    assert config.train.epochs == 300
    assert config.train.batch_size == 4096
    assert config.train.loss == "sigmoid"
    assert config.optim.lr == 1e-3
    assert config.optim.weight_decay == 0.1
    assert config.optim.warmup_steps == 10_000
    assert config.optim.schedule == "cosine"
    assert config.optim.clip == 1
    assert config.model.img_size == (224, 224)


IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["Ti/16", "S/16", "B/16"])
def test_deit_table_9(name):
    config = configure("deit", facts(model=name))
    train, optim, augment, model = config.train, config.optim, config.augment, config.model
    assert (train.epochs, train.batch_size, train.loss) == (300, 1024, "softmax")
    assert (optim.name, optim.lr, optim.schedule, optim.weight_decay) == ("adamw", 1e-3, "cosine", 0.05)
    assert optim.betas == (0.9, 0.999)
    assert optim.lr * optim.final_lr == pytest.approx(1e-5)
    assert optim.warmup_steps == round(5 * IMAGENET[0] / 1024)
    assert (train.label_smoothing, train.ema, optim.clip) == (0.1, 0.99996, 0)
    assert (model.dropout, model.drop_path, model.drop_path_rule) == (0, 0.1, "linear")
    assert (augment.repeats, augment.mixup, augment.cutmix, augment.erase) == (3, 0.8, 1.0, 0.25)
    assert (augment.randaugment_layers, augment.randaugment_magnitude) == (2, 9)
    assert (augment.crop, augment.scale, augment.flip) == ("resized", (0.08, 1.0), 0.5)
    assert augment.jitter == (0, 0, 0, 0) and not augment.three
    assert (model.img_size, model.gelu, model.pool, model.layer_scale) == ((224, 224), "erf", "cls", 0)
    assert (config.eval.crop, config.eval.interpolation) == (0.875, "bicubic")
    assert (config.eval.mean, config.eval.std) == IMAGENET_STATISTICS


@pytest.mark.parametrize("batch", [256, 512, 4096])
def test_deit_s_rate_and_warm_up_follow_the_batch(batch):
    config = configure("deit", facts(batch_size=batch))
    assert config.optim.lr == pytest.approx(5e-4 * batch / 512)
    assert config.optim.lr * config.optim.final_lr == pytest.approx(1e-5)
    assert config.optim.warmup_steps == round(5 * IMAGENET[0] / batch)


DEIT3 = [
    (IMAGENET, "S/16", 224, 800, 4e-3, 0.05),
    (IMAGENET, "B/16", 192, 800, 3e-3, 0.2),
    (IMAGENET, "L/16", 192, 800, 3e-3, 0.45),
    (IMAGENET, "H/14", 154, 800, 3e-3, 0.6),  # the whole patches of 160
    (IMAGENET, "Ti/16", 224, 800, 4e-3, 0.05),  # as S, the nearest with a row
    (IMAGENET, "M/16", 224, 800, 4e-3, 0.05),
    (IMAGENET_21K, "S/16", 224, 240, 1e-3, 0.05),
    (IMAGENET_21K, "B/16", 224, 240, 1e-3, 0.1),
    (IMAGENET_21K, "L/16", 224, 240, 1e-3, 0.3),
    (IMAGENET_21K, "H/14", 126, 90, 1e-3, 0.5),  # of 128
]


@pytest.mark.parametrize(("data", "name", "size", "epochs", "lr", "drop_path"), DEIT3)
def test_deit3_commands(data, name, size, epochs, lr, drop_path):
    config = configure("deit3", facts(data=data, model=name))
    large = data == IMAGENET_21K
    train, optim, augment, model = config.train, config.optim, config.augment, config.model
    assert (model.name, model.img_size) == (f"ViT-{name}", (size, size))
    assert (train.epochs, train.batch_size, train.ema) == (epochs, 2048, 0)
    assert (optim.name, optim.lr, optim.schedule, optim.clip) == ("lamb", lr, "cosine", 1)
    assert optim.weight_decay == (0.02 if large else 0.05)
    assert optim.lr * optim.final_lr == pytest.approx(1e-5)
    assert optim.warmup_steps == round(5 * data[0] / 2048)
    assert (model.drop_path, model.drop_path_rule, model.dropout) == (drop_path, "constant", 0)
    assert (model.layer_scale, model.prefix_positions, model.gelu, model.pool) == (1e-4, False, "erf", "cls")
    assert (train.loss, train.label_smoothing) == (("softmax", 0.1) if large else ("bce", 0))
    assert (augment.mixup, augment.cutmix, augment.repeats) == ((0, 1, 1) if large else (0.8, 1, 3))
    assert (augment.three, augment.jitter, augment.erase) == (True, (0.3, 0.3, 0.3, 0), 0)
    assert (augment.gray, augment.blur, augment.solarize, augment.randaugment_layers) == (0, 0, 0, 0)
    if large:
        assert augment.crop == "pad" and augment.pad * (size if name != "H/14" else 128) == pytest.approx(4)
    else:
        assert (augment.crop, augment.scale) == ("resized", (0.08, 1.0))
    assert (config.eval.crop, config.eval.interpolation) == (1.0, "bicubic")
    assert (config.eval.mean, config.eval.std) == IMAGENET_STATISTICS


@pytest.mark.parametrize("recipe", ["deit", "deit3"])
def test_deit_fits_other_data_too(recipe):
    for known in (
        facts(data=(1437, 10), size=(8, 8), mirror=False, model="ti/4", img_size=(8, 8)),
        facts(model="b/32"),
    ):
        config = configure(recipe, known)
        check(config)
        fitted_to_data(config, known)
        assert config.augment.flip == (0.5 if known.mirror else 0)
    assert configure(recipe, facts(img_size=(384, 384))).model.img_size == (384, 384)
    assert recipe in RECIPES


@pytest.mark.parametrize("recipe", ["small", "finetune"])
def test_epochs_shrink_as_the_data_grows(recipe):
    parent = {"parent": model_config("s/4", (32, 32))} if recipe == "finetune" else {}
    epochs = []
    for images in (100, 1_437, 50_000, 1_000_000):
        known = facts("finetune" if parent else "pretrain", (images, 10), size=(32, 32), device="cpu", **parent)
        epochs.append(configure(recipe, known).train.epochs)
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] >= epochs[1] > epochs[2] >= epochs[3] >= 1


def test_small_takes_the_images_at_their_own_size_up_to_64_pixels():
    config = configure("small", facts(data=(50_000, 10), size=(32, 32), device="cpu"))
    assert config.model.img_size == (32, 32)
    assert config.model.grid == (8, 8)
    assert configure("small", facts(size=(300, 500), device="cuda")).model.img_size == (224, 224)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("paper-ftinetune", "paper-finetune"), ("agreg", "augreg"), ("paper-i1", "paper-i1k"), ("SMALL", "small")],
)
def test_an_unknown_recipe_names_the_nearest(wrong, right):
    with pytest.raises(UsageError) as caught:
        configure(wrong, facts())
    assert wrong in caught.value.message
    assert right in caught.value.hint


def test_recipes_belong_to_their_command():
    with pytest.raises(UsageError, match="trained weights"):
        configure("paper-finetune", facts("pretrain"))
    with pytest.raises(UsageError, match="random weights"):
        configure("paper-i1k", facts("finetune", parent=model_config("B/16")))


def test_a_trained_model_cannot_become_another():
    with pytest.raises(UsageError, match="--model"):
        configure("finetune", facts("finetune", parent=model_config("B/16"), model="L/16"))


def test_an_image_size_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="multiple of the patch size"):
        configure("paper-i1k", facts(model="B/16", img_size=(225, 225)))


def test_the_default_recipe_follows_the_command():
    assert default_recipe(facts("finetune", parent=model_config("B/16"))) == "finetune"
    for images in (10, 200_000, 200_001, 15_000_000):
        assert default_recipe(facts(data=(images, 10))) == "small"


GIB = 2**30
MACHINES = {
    "images": st.integers(1, 15_000_000) | st.integers(1, 300),
    "classes": st.integers(2, 21_000),
    "size": st.tuples(st.integers(8, 1024), st.integers(8, 1024)) | st.integers(8, 1024).map(lambda n: (n, n)),
    "mirror": st.booleans(),
    "device": st.sampled_from(["cpu", "cuda", "mps"]),
}
BUDGETS = st.none() | st.floats(60, 30 * 86400)
SPEEDS = {"cpu": 2e11, "mps": 5e12, "cuda": 6e14}
"""FLOPs a second of a matrix product, by device: two cores, a laptop's GPU, an H100."""


def planned(known: Facts, room: float, bf16: bool = True) -> Config:
    """The default configuration as `train.plan.make_plan` makes it, of facts and a machine's memory."""
    config = evaluated_as_trained(configure(default_recipe(known), known))
    config, warnings = fitted_to_data(check(config), known)
    assert not any("warm-up" in text or "a batch" in text for text in warnings), "defaults need no mending"
    return check(memory.fitted(config, known.device, bf16, memory.RECIPE_PART * room))


def can_start(config: Config, known: Facts, room: float, bf16: bool) -> None:
    memory.check(config, known.device, bf16, memory.Room(int(room), int(memory.RECIPE_PART * room)))
    assert 1 <= config.train.batch_size <= known.images
    steps = config.train.epochs * known.images / config.train.batch_size
    assert max(1, round(steps)) >= 1
    assert config.optim.warmup < 1 and config.optim.warmup_steps < max(1, steps)
    assert config.train.batch_size % config.train.accumulate == 0


@settings(deadline=None, max_examples=300)
@given(
    known=st.fixed_dictionaries(MACHINES), budget=BUDGETS, gib=st.sampled_from([4, 8, 24, 80, 1024]), bf16=st.booleans()
)
def test_the_default_of_pretrain_can_start_on_any_machine(known, budget, gib, bf16):
    compute = None if budget is None else budget * SPEEDS[known["device"]]
    known = Facts(command="pretrain", compute=compute, **known)
    can_start(planned(known, gib * GIB, bf16), known, gib * GIB, bf16)


@settings(deadline=None, max_examples=200)
@given(
    known=st.fixed_dictionaries(MACHINES),
    budget=BUDGETS,
    gib=st.sampled_from([4, 8, 24, 80]),
    bf16=st.booleans(),
    name=st.sampled_from(["ti/16", "s/16", "s/32", "s/4", "mu/1"]),
    side=st.sampled_from([32, 224, 384]),
    seen=st.none() | st.integers(1, 10**9),
    new_head=st.booleans(),
)
def test_the_default_of_finetune_can_start_on_any_machine(known, budget, gib, bf16, name, side, seen, new_head):
    parent = model_config(name, (side, side) if name != "mu/1" else (32, 32), 7)
    if parent.tokens > 800:
        parent = dataclasses.replace(parent, img_size=(32, 32))
    compute = None if budget is None else budget * SPEEDS[known["device"]]
    known = Facts(command="finetune", parent=parent, parent_seen=seen, new_head=new_head, compute=compute, **known)
    can_start(planned(known, gib * GIB, bf16), known, gib * GIB, bf16)


def cost(known: Facts) -> float:
    config = configure(default_recipe(known), known)
    return training_flops(config.model, round(config.train.epochs * known.images))


@settings(deadline=None, max_examples=200)
@given(known=st.fixed_dictionaries(MACHINES))
def test_one_image_more_is_no_cliff(known):
    known = Facts(command="pretrain", **known)
    more = dataclasses.replace(known, images=known.images + 1)
    ratio = cost(more) / cost(known) * known.images / more.images
    assert 0.45 < ratio < 2.2, "a model or a number of epochs changes by a step"


def test_no_number_of_images_is_a_cliff():
    for size, device in itertools.product(((8, 8), (32, 32), (300, 500)), ("cpu", "cuda")):
        edges = [n + d for n in (1_438, 5_000, 10_000, 50_000, 200_000, 320_000, 1_281_167) for d in (0, 1)]
        costs = [cost(facts(data=(n, 10), size=size, device=device)) for n in edges]
        assert all(1 / 2.2 < b / a < 2.2 for a, b in zip(costs[::2], costs[1::2], strict=True))


def test_a_batch_larger_than_the_data_is_refused_where_it_was_asked_for_and_said_where_it_is_published():
    many = facts(data=(1_000, 10), size=(32, 32), batch_size=1_001)
    with pytest.raises(UsageError, match="1,001 is more than the 1,000") as caught:
        fitted_to_data(configure("small", many), many, {"train.batch_size": 1_001})
    assert "--batch-size 512" in caught.value.hint
    paper = facts(data=(1_000, 10), steps=20_000)
    config, warnings = fitted_to_data(configure("paper-i1k", paper), paper, {"train.batch_size": 4096})
    assert config.train.batch_size == 4096 and any("recipe paper-i1k's" in text for text in warnings)


def test_a_published_warm_up_that_is_longer_than_the_run_becomes_a_tenth_of_it():
    for length in ({"epochs": 300.0}, {"steps": 10_000}, {"time_budget": 60.0}):
        known = facts(data=(20_000, 10))
        config = apply(configure("paper-i1k", known), {f"train.{k}": v for k, v in length.items()})
        shortened, warnings = fitted_to_data(config, known)
        assert (shortened.optim.warmup_steps, shortened.optim.warmup) == (0, 0.1)
        assert any("in place of recipe paper-i1k's 10,000" in text for text in warnings)
        again, silent = fitted_to_data(shortened, known, {"optim.warmup_steps": 0, "optim.warmup": 0.1})
        assert again == shortened and not any("warm-up" in text for text in silent)
    whole = facts()
    assert fitted_to_data(configure("paper-i1k", whole), whole)[0].optim.warmup_steps == 10_000
    asked = apply(configure("small", whole), {"train.steps": 100, "optim.warmup_steps": 100})
    with pytest.raises(UsageError, match=r"optim\.warmup_steps = 100 takes all"):
        fitted_to_data(asked, whole, {"optim.warmup_steps": 100})


@pytest.mark.parametrize(
    ("data", "size", "said"),
    [
        ((85, 3), (300, 400), True),
        ((2_999, 5), (300, 400), True),
        ((3_000, 5), (300, 400), False),
        ((1_438, 10), (8, 8), False),
        ((499, 10), (32, 32), True),
        ((50_000, 10), (32, 32), False),
    ],
)
def test_few_images_from_random_weights_are_warned_of_with_the_command_that_needs_fewer(data, size, said):
    known = facts(data=data, size=size, device="cpu")
    config = apply(configure("small", known), {"data.source": "photos"})
    warnings = fitted_to_data(config, known)[1]
    assert any("vit finetune WEIGHTS --data photos" in text for text in warnings) == said
    parent = facts("finetune", data, size=size, device="cpu", parent=model_config("ti/16"))
    assert not fitted_to_data(configure("finetune", parent), parent)[1]


def test_long_images_get_a_size_of_their_shape():
    parent = {"parent": model_config("ti/16")}
    strips = facts("finetune", (900, 37), size=(128, 512), **parent)
    config = configure("finetune", strips)
    assert (config.model.img_size, config.augment.crop) == ((112, 448), "pad")
    assert not fitted_to_data(config, strips)[1]
    square = configure("finetune", facts("finetune", (900, 37), size=(300, 500), **parent))
    assert (square.model.img_size, square.augment.crop) == ((224, 224), "resized")
    asked = facts("finetune", (900, 37), size=(128, 512), img_size=(224, 224), **parent)
    (warning,) = fitted_to_data(configure("finetune", asked), asked, {"model.img_size": (224, 224)})[1]
    assert "centre alone" in warning and "leave --img-size out" in warning
    own = configure("finetune", dataclasses.replace(asked, img_size=(112, 448)))
    assert own.augment.crop == "pad" and own.eval.crop == 1.0
    tall = configure("small", facts(data=(5_000, 5), size=(1000, 250), device="cpu"))
    assert (tall.model.img_size, tall.augment.crop) == ((256, 64), "pad")
    paper = facts(data=(1_281_167, 1_000), size=(128, 512))
    (warning,) = fitted_to_data(configure("paper-i1k", paper), paper)[1]
    assert "--img-size 112x448" in warning


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - TUNING))
def test_no_recipe_mirrors_where_a_mirror_image_is_another_class(recipe):
    assert configure(recipe, facts(mirror=False)).augment.flip == 0
    assert configure(recipe, facts()).augment.flip == 0.5


PRETRAIN = sorted(set(RECIPES) - TUNING)
SIDES = st.integers(4, 600)
NAMES = ["", "ti/16", "s/32", "b/16", "l/32", "h/14", "s/4", "ti/2", "mu/1", "m/8x16"]
COMMON = {
    "images": st.integers(10, 2_000_000),
    "classes": st.integers(2, 30_000),
    "size": st.tuples(SIDES, SIDES),
    "mirror": st.booleans(),
    "device": st.sampled_from(["cpu", "cuda", "mps"]),
}


@settings(deadline=None, max_examples=300)
@given(recipe=st.sampled_from(PRETRAIN), known=st.fixed_dictionaries(COMMON), model=st.sampled_from(NAMES))
def test_every_recipe_gives_a_configuration_that_passes_the_checks(recipe, known, model):
    config = check(configure(recipe, Facts(command="pretrain", model=model, **known)))
    assert config.model.classes == known["classes"]
    assert config.run.recipe == recipe
    if recipe == "small":
        assert config.train.batch_size <= max(8, known["images"])
        assert config.model.tokens <= 4096 or model


@settings(deadline=None, max_examples=200)
@given(known=st.fixed_dictionaries(COMMON), asked=st.tuples(SIDES, SIDES))
def test_small_finds_a_patch_for_any_size_asked_for(known, asked):
    config = check(configure("small", Facts(command="pretrain", img_size=asked, **known)))
    assert config.model.img_size == asked


@settings(deadline=None, max_examples=200)
@given(
    recipe=st.sampled_from(sorted(TUNING)),
    known=st.fixed_dictionaries(COMMON),
    name=st.sampled_from(["ti/16", "s/32", "b/16", "h/14", "s/4", "mu/1", "m/8x16"]),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    pooled=st.booleans(),
)
def test_fine_tuning_recipes_pass_the_checks_for_any_parent(recipe, known, name, grid, pooled):
    parent = model_config(name, classes=7)
    size = (grid[0] * parent.patch[0], grid[1] * parent.patch[1])
    parent = dataclasses.replace(parent, img_size=size, pool="mean" if pooled else "cls", class_token=not pooled)
    config = check(configure(recipe, Facts(command="finetune", parent=parent, **known)))
    assert isinstance(config.model, ModelConfig)
    same = ("width", "depth", "heads", "mlp", "patch", "pool", "class_token", "gelu")
    assert [getattr(config.model, f) for f in same] == [getattr(parent, f) for f in same]
    assert config.model.classes == known["classes"]


def test_small_takes_a_larger_model_where_the_time_budget_pays_for_it():
    """Sizes never shrink as the budget or the data grows, and without a budget nothing is measured."""
    cifar = {"data": (50_000, 10), "size": (32, 32), "device": "cpu"}
    minute = 60 * 6.5e11  # two cores with bf16
    names = [configure("small", facts(**cifar, compute=n * minute)).model for n in (5, 15, 60, 300)]
    assert [(m.width, m.depth) for m in names] == [(128, 6), (128, 6), (192, 6), (256, 12)]
    assert [m.depth for m in names] == sorted(m.depth for m in names)
    assert configure("small", facts(**cifar)).model == names[0]
    few = facts(data=(1_000, 5), size=(32, 32), device="cpu", compute=300 * minute)
    assert configure("small", few).model == dataclasses.replace(names[0], classes=5)
    named = configure("small", facts(**cifar, compute=300 * minute, model="ti/4")).model
    assert named.name == "ViT-Ti/4"


def test_small_spends_as_much_on_small_images_however_long_the_run_is():
    cifar = {"data": (50_000, 10), "size": (32, 32), "device": "cpu"}
    minute = 60 * 3.8e11
    parts = [configure("small", facts(**cifar, compute=n * minute)).train.low_res for n in (1.5, 5, 15, 60)]
    assert parts[0] == 0.45 and parts == sorted(parts, reverse=True)
    assert 0.1 < parts[1] < 0.25
    assert parts[1] / parts[2] == pytest.approx(3, rel=0.02), "three times the time, a third of the part"
    assert configure("small", facts(data=(1_438, 10), size=(8, 8), device="cpu")).train.low_res == 0
    assert 0 < configure("small", facts(**cifar)).train.low_res < 0.05, "by epochs where there is no budget"


def test_small_augments_by_the_passes_that_fit():
    minute = 60 * 3.8e11
    few = {"data": (1_000, 5), "size": (32, 32), "device": "cpu"}
    short, long = (configure("small", facts(**few, compute=n * minute)).augment for n in (0.2, 15))
    assert (short.mixup, short.randaugment_layers) == (0, 0) and (long.mixup, long.randaugment_layers) == (0.2, 2)
    many = few | {"data": (50_000, 10)}
    assert configure("small", facts(**many, compute=15 * minute)).augment.mixup == 0
    hour = configure("small", facts(**many, compute=60 * minute)).augment
    assert (hour.mixup, hour.randaugment_layers) == (0.2, 0)


def test_small_on_a_gpu_sees_images_often_and_strengthens_what_is_against_remembering_them():
    cifar = {"data": (50_000, 10), "size": (32, 32), "device": "cuda"}
    second = 7.7e14
    short, long = (configure("small", facts(**cifar, compute=n * 60 * second)) for n in (3, 10))
    for config in (short, long):
        assert config.model.cost().parameters <= 10_000_000 and config.model.width // config.model.heads == 64
        assert (config.train.batch_size, config.augment.cutmix, config.augment.randaugment_layers) == (512, 1.0, 2)
        assert config.model.drop_path > 0 and config.train.ema > 0 and config.eval.views == 2
    assert short.model.tokens == 64 and short.train.low_res == 0
    assert long.model.tokens == 256 and long.train.low_res == 0.6, "a quarter of the patches first"
    slow = configure("small", facts(**cifar, compute=60 * second / 20))
    assert slow.augment.cutmix == 0 and slow.model.drop_path == 0, "few passes"
    by_epochs = configure("small", facts(**cifar))
    assert by_epochs.train.epochs == 5 * configure("small", facts(**cifar | {"device": "cpu"})).train.epochs
    digits = configure("small", facts(data=(1_438, 10), size=(8, 8), device="cuda"))
    assert digits == configure("small", facts(data=(1_438, 10), size=(8, 8), device="cpu"))


def test_finetune_goes_on_training_what_has_seen_little():
    parent = {"parent": model_config("ti/4", (32, 32)), "new_head": False}
    young = configure("finetune", facts("finetune", (50_000, 10), **parent, parent_seen=100_000))
    assert young.optim.name == "muon" and young.train.label_smoothing == 0
    budgets = [
        facts("finetune", (50_000, 10), **parent, device="cpu", parent_seen=500_000, compute=n * 60 * 3.8e11)
        for n in (5, 60, 600)
    ]
    rates = [configure("finetune", budget).optim.muon_lr for budget in budgets]
    assert rates == sorted(rates) and rates[0] < 0.004 and 0.015 < rates[-1] < 0.02, "where one long schedule would be"
    for known in ({"parent_seen": 50_000_000}, {"parent_seen": None}, {"parent_seen": 50_000_000, "new_head": True}):
        grown = configure("finetune", facts("finetune", (50_000, 10), **(parent | known)))
        assert grown.optim.name == "adamw" and grown.optim.lr == 1e-4


def test_finetune_of_a_young_checkpoint_to_few_images_of_new_classes_augments_by_the_passes_that_fit():
    known = {"parent": model_config("ti/4", (32, 32)), "parent_seen": 200_000, "size": (32, 32), "device": "cpu"}
    budgets = [facts("finetune", (1_000, 5), **known, compute=n * 60 * 3.8e11) for n in (2, 20, 200)]
    young = [configure("finetune", budget) for budget in budgets]
    strengths = [(c.augment.mixup, c.augment.randaugment_layers) for c in young]
    assert strengths == [(0, 0), (0.2, 0), (0.2, 2)]
    assert {c.optim.name for c in young} == {"muon"} and {c.train.head for c in young} == {"linear"}
    trained = known | {"parent_seen": None, "compute": 1e15}
    grown = configure("finetune", facts("finetune", (1_000, 5), **trained)).augment
    assert (grown.mixup, grown.randaugment_layers) == (0, 0), "trained weights are tuned gently"


def test_many_passes_tune_trained_weights_at_a_lower_rate():
    parent = {"parent": model_config("ti/16")}
    rates = [
        configure("finetune", facts("finetune", (900, 17), epochs=epochs, **parent)).optim.lr
        for epochs in (1.0, 10.0, 20.0, 40.0)
    ]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 2.5e-5])
    by_steps = configure("finetune", facts("finetune", (1_000, 17), steps=1_000, batch_size=20, **parent))
    assert by_steps.optim.lr == pytest.approx(5e-5), "20 passes"


@pytest.mark.parametrize(
    ("how", "times", "decay"),
    [("all", 1, 1.0), ("head", 1, 1.0), ("last:2", 5, 0.75), ("proj", 10, 1.0), ("bias", 30, 1.0)],
)
def test_few_weights_are_tuned_at_a_higher_rate(how, times, decay):
    known = facts("finetune", (900, 17), parent=model_config("ti/16"), epochs=10.0)
    optim = configure("finetune", dataclasses.replace(known, tune=how)).optim
    assert (optim.lr, optim.layer_decay) == (pytest.approx(times * 1e-4), decay)
    longer = configure("finetune", dataclasses.replace(known, tune=how, epochs=20.0)).optim
    assert longer.lr == pytest.approx(times * 5e-5)


def test_images_grow_again_where_a_young_checkpoint_goes_to_a_higher_resolution():
    parent = {"parent": model_config("ti/4", (32, 32)), "new_head": False}
    young = parent | {"parent_seen": 100_000}
    assert configure("finetune", facts("finetune", (50_000, 10), **young, img_size=(48, 48))).train.low_res == 0.8
    for same in (young, young | {"img_size": (32, 32)}, parent | {"img_size": (48, 48)}):
        assert configure("finetune", facts("finetune", (50_000, 10), **same)).train.low_res == 0


def test_finetune_starts_new_classes_from_a_probe_and_draws_images_as_they_come():
    parent = {"parent": model_config("ti/16")}
    new = configure("finetune", facts("finetune", (914, 37), **parent))
    assert new.train.head == "linear" and not new.data.balanced and 0.1 <= new.train.dev <= 0.2
    kept = configure("finetune", facts("finetune", (914, 37), **parent, new_head=False))
    assert kept.train.head == "zero" and kept.train.dev == 0 and not kept.data.balanced


def test_finetune_at_a_higher_resolution_looks_at_the_whole_image():
    seen = EvalConfig(crop=0.9, interpolation="bicubic")
    parent = {"parent": model_config("ti/16"), "parent_eval": seen}
    assert configure("finetune", facts("finetune", **parent, img_size=(384, 384))).eval.crop == 1.0
    assert configure("finetune", facts("finetune", **parent)).eval == seen


def test_a_length_that_is_asked_for_counts_as_one_that_fits():
    cifar = {"data": (50_000, 10), "size": (32, 32), "device": "cpu"}
    few = configure("small", facts(**cifar, steps=200))
    assert (few.train.low_res, few.optim.weight_decay) == (0.45, 0.5)
    assert configure("small", facts(**cifar, epochs=200 * 128 / 50_000)) == few
    many = configure("small", facts(**cifar, epochs=30.0))
    assert many.augment.mixup == 0.2 and many.train.low_res < 0.02
    assert configure("small", facts(**cifar, steps=200, batch_size=1024)).train.batch_size == 1024
    assert configure("small", facts(**cifar, steps=200, batch_size=1024)).train.low_res < 0.1
    parent = {"parent": model_config("ti/4", (32, 32)), "new_head": False, "parent_seen": 500_000}
    rates = [configure("finetune", facts("finetune", (50_000, 10), **parent, epochs=e)).optim.muon_lr for e in (1, 30)]
    assert rates[0] < 0.004 < 0.01 < rates[1]


def test_mirrored_views_go_along_where_a_mirror_image_keeps_its_class():
    parent = {"parent": model_config("ti/16"), "parent_eval": EvalConfig(views=2)}
    assert configure("finetune", facts("finetune", **parent)).eval.views == 2
    assert configure("finetune", facts("finetune", **parent, mirror=False)).eval.views == 1
    assert configure("paper-finetune", facts("finetune", **parent)).eval.views == 1


@pytest.mark.parametrize("crop", ["none", "pad", "random", "resized"])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_evaluation_shows_what_the_crop_showed(command, crop):
    parent = {"parent": model_config("ti/16"), "parent_eval": EvalConfig(crop=0.9, resize="square")}
    known = facts(command, (900, 5), **(parent if command == "finetune" else {}))
    config = apply(configure(default_recipe(known), known), {"augment.crop": crop})
    shown = evaluated_as_trained(config).eval
    assert shown.resize == ("short" if crop == "resized" else "square")
    assert shown.crop == (config.eval.crop if crop == "resized" else 1.0)
    wanted = apply(config, {"eval.resize": "short", "eval.crop": 0.8})
    kept = evaluated_as_trained(wanted, {"eval.resize": "short", "eval.crop": 0.8}).eval
    assert (kept.resize, kept.crop) == ("short", 0.8)


@pytest.mark.parametrize(
    ("size", "crop"),
    [((8, 8), "resized"), ((8, 16), "pad"), ((16, 48), "pad"), ((32, 32), "pad"), ((300, 500), "resized")],
)
def test_small_images_are_seen_to_their_border(size, crop):
    assert configure("small", facts(data=(5_000, 5), size=size, device="cpu")).augment.crop == crop
    grown = facts("finetune", (5_000, 5), size=size, device="cpu", parent=model_config("ti/4", (32, 32)))
    assert configure("finetune", grown).augment.crop == ("resized" if size == (8, 8) else "pad"), "by the parent's size"


@pytest.mark.parametrize("img_size", [None, (16, 16)])
def test_a_cue_at_the_edge_of_wide_images_is_learned(tmp_path, img_size):
    """Dark or light in the outer sixth of one side of 16 x 40 to 16 x 56 px, noise elsewhere."""
    random = np.random.default_rng(0)
    for split, name, light, count in itertools.product(("train", "test"), ("dark", "light"), (1, -1), (40,)):
        folder = tmp_path / "wide" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            width = int(random.integers(40, 57))
            image = random.normal(128, 30, (16, width, 3))
            image[:, : width // 6] += 80 if name == "light" else -80
            Image.fromarray(np.clip(image[:, ::light], 0, 255).astype(np.uint8)).save(folder / f"{light}-{index}.png")
    values = {"img_size": img_size} if img_size else {}
    report = train_run(
        "pretrain", data=str(tmp_path / "wide"), out=str(tmp_path / "run"), steps=60, batch_size=16, **values
    )[1]
    assert report["eval"]["top1"] > 0.97


def test_images_seen_since_random_weights_add_up_over_the_chain():
    first = {"command": "pretrain", "images_seen": 1000, "data": {"id": "a"}}
    tuned = {"command": "finetune", "images_seen": 200, "parent": {"path": "p", "sha256": "0", "data": None}}
    assert seen_since_random(first) == 1000
    assert seen_since_random(tuned) is None, "written before runs named their ancestors"
    assert seen_since_random({**tuned, "ancestry": [first]}) == 1200
    assert seen_since_random({**tuned, "ancestry": [{**tuned, "images_seen": 50}, first]}) == 1250
    assert seen_since_random({**tuned, "ancestry": [{"command": "finetune", "images_seen": 5}]}) is None
    for damaged in ({}, {**first, "images_seen": "many"}, {**first, "images_seen": -1}, {**first, "ancestry": "none"}):
        assert seen_since_random(damaged) is None
    assert seen_since_random({**tuned, "ancestry": [3]}) is None


def test_a_second_fine_tuning_goes_on_as_the_first_run_was_trained(class_folders, tmp_path):
    quick = {"data": str(class_folders), "steps": 3, "batch_size": 16, "device": "cpu"}
    last = train_run("pretrain", out=str(tmp_path / "0"), model="mu/4", **quick)[0]
    for number in (1, 2, 3):
        planned = api.plan(api.Request("finetune", {"data.source": str(class_folders), "train.steps": 3}, str(last)))
        assert planned.config.optim.name == "muon", f"fine-tuning number {number}"
        last = train_run("finetune", init=str(last), out=str(tmp_path / str(number)), **quick)[0]


# --- ResNets and hybrids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epochs", "lr"),
    [
        ("R50x1", 7, 1e-3), ("R50x2", 7, 1e-3), ("R101x1", 7, 8e-4), ("R152x1", 7, 6e-4), ("R152x2", 7, 6e-4), ("R200x3", 14, 6e-4),
        ("R50+ViT-B/16", 7, 8e-4), ("R50+ViT-B/32", 7, 8e-4), ("R50+ViT-L/32", 7, 2e-4), ("R50+ViT-L/16", 7, 4e-4),
    ],
)  # fmt: skip
def test_rows_of_table_3_of_resnets_and_hybrids(name, epochs, lr):
    config = check(configure("paper-jft", facts(data=JFT, model=name)))
    assert (config.model.name, config.train.epochs, config.optim.lr) == (name, epochs, lr)
    assert (config.optim.weight_decay, config.optim.schedule, config.optim.warmup_steps) == (0.1, "linear", 10_000)


@pytest.mark.parametrize(
    ("images", "steps", "warmup", "milestones", "mixup"),
    [
        (19_999, 500, 100, (0.4, 0.6, 0.8), 0.0), (20_000, 10_000, 500, (0.3, 0.6, 0.9), 0.1),
        (499_999, 10_000, 500, (0.3, 0.6, 0.9), 0.1), (500_000, 20_000, 500, (0.3, 0.6, 0.9), 0.1),
    ],
)  # fmt: skip
def test_the_hyper_rule_of_bit_by_the_size_of_the_data(images, steps, warmup, milestones, mixup):
    parent = model_config("R50x1", (224, 224), 21_843)
    config = check(configure("bit-hyperrule", facts("finetune", (images, 10), parent=parent)))
    optim, train, augment = config.optim, config.train, config.augment
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.003, 0.9, 0.0)
    assert (train.batch_size, train.steps, optim.warmup_steps, optim.milestones) == (512, steps, warmup, milestones)
    assert (augment.mixup, augment.crop, config.eval.resize, config.eval.crop) == (mixup, "random", "square", 1.0)


@pytest.mark.parametrize(
    ("name", "size", "img_size", "before"),
    [
        ("R50x1", (32, 32), 128, 160), ("R50x1", (95, 95), 128, 160), ("R50x1", (96, 96), 384, 448), ("R152x4", (300, 300), 480, 512),
        ("R50+ViT-B/16", (300, 300), 384, 448),
    ],
)  # fmt: skip
def test_the_hyper_rule_of_bit_by_the_size_of_the_images(name, size, img_size, before):
    parent = model_config(name, (224, 224), 1000)
    config = configure("bit-hyperrule", facts("finetune", (5000, 10), parent=parent, size=size))
    assert config.model.img_size == (img_size, img_size)
    assert round(img_size * config.augment.margin) == before


def test_a_network_of_small_images_keeps_its_size_and_its_root():
    assert configure("small", facts(data=(1000, 10), model="R26x0.25", size=(32, 32))).model.root == "small"
    assert configure("small", facts(data=(1000, 10), model="R26x0.25", size=(65, 32))).model.root == "large"
    parent = dataclasses.replace(model_config("R26x0.25", (32, 32), 10), root="small")
    assert configure("bit-hyperrule", facts("finetune", (1000, 10), parent=parent, size=(32, 32))).model == parent


@pytest.mark.parametrize("recipe", ["augreg", "deit", "deit3"])
def test_recipes_of_vision_transformers_alone_say_so(recipe):
    with pytest.raises(UsageError, match="Vision Transformers"):
        configure(recipe, facts(model="R50x1"))
