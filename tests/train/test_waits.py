"""A training step asks nothing of its device: neither of this CPU nor of a GPU that is only claimed to be there."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vitcli.config import AugmentConfig, Config, EvalConfig, apply, model_config
from vitcli.data.augment import Augmenter, mixed
from vitcli.data.batch import Batch
from vitcli.machine import Machine
from vitcli.model.classifier import build
from vitcli.recipes.facts import Facts
from vitcli.recipes.table import RECIPES, TUNING
from vitcli.train.objectives.table import OBJECTIVES
from vitcli.train.step import train_step
from vitcli.train.trainer import Trainer
from waits import Refusing, fake_cuda

N, SIDE = 8, 16
EVERYTHING = AugmentConfig(
    crop="resized", ramp=2.0, jitter=(0.4, 0.3, 0.2, 0.1), jitter_p=0.8, gray=0.3, blur=0.5, solarize=0.3,
    randaugment_layers=2, erase=0.5, mixup=0.4, cutmix=1.0,
)  # fmt: skip


def settings_of(recipe: str) -> Config:
    """The recipe for small images of three classes, its model as small as they are."""
    trained = recipe in TUNING
    facts = Facts(
        command="finetune" if trained else "pretrain", images=1000, classes=3, size=(SIDE, SIDE), mirror=True, device="cuda"
    )  # fmt: skip
    small = model_config("mu/4", (SIDE, SIDE), 3)
    config = RECIPES[recipe](replace(facts, parent=small) if trained else facts)
    model = replace(small, depth=2, dropout=0.1, drop_path=getattr(config.model, "drop_path", 0.0))
    return replace(config, model=model, train=replace(config.train, batch_size=N, accumulate=2))


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """This CPU, or a GPU that is only claimed to be there."""
    return fake_cuda() if device == "cuda" else contextlib.nullcontext()


def pixels(device: str) -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    made = [
        torch.from_numpy(random.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8)),
        torch.full((N, 2), SIDE),
        torch.arange(N) // 3,
        torch.arange(N),
    ]
    return [torch.empty(t.shape, dtype=t.dtype, device=device) if device == "cuda" else t for t in made]


def batch_of(config: Config, device: str, augmenter: Augmenter) -> Batch:
    """Augmented and mixed as the loader does it."""
    inputs = pixels(device)
    views = tuple(augmenter(*inputs, view) for view in range(config.augment.views))
    labels = torch.arange(N, device=device) % 3
    steps = torch.arange(3, 4, device=device)
    return mixed(Batch(views, labels, torch.arange(N)), config.augment, 0, steps)[0]


def trainer_of(config: Config, device: str) -> Trainer:
    with torch.device(device):
        model = build(config.model)
        if device == "cpu":
            model.initialise(0)
        return Trainer(model, config, Machine(torch.device(device), False, 1))


def step_twice(config: Config, device: str) -> None:
    """Once to make what is made once, then under the eyes of the mode."""
    trainer, augmenter = (
        trainer_of(config, device),
        Augmenter(config.augment, EvalConfig(), config.model.img_size, 0),
    )
    trainer.optimizer.set_factor(0.5)
    train_step(trainer, batch_of(config, device, augmenter), 0)
    trainer.after_update(0, 0.0)
    with Refusing():
        trainer.optimizer.set_factor(0.4)
        update = train_step(trainer, batch_of(config, device, augmenter), 1)
        trainer.after_update(1, 0.1)
    assert update.loss.device.type == update.grad_norm.device.type == device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_step_of_every_recipe_asks_nothing_of_the_device(recipe: str, device: str) -> None:
    config = settings_of(recipe)
    with on(device):
        step_twice(config, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"distill"}))
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "lamb"])
def test_nor_does_any_objective_with_any_optimizer(objective: str, optimizer: str, device: str) -> None:
    model = replace(model_config("mu/4", (SIDE, SIDE), 3), depth=2, drop_path=0.3, positions="sincos")
    labelled = OBJECTIVES[objective].needs_labels
    augment = EVERYTHING if labelled else replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    config = apply(
        Config(model=model if labelled else model.with_head(0, kept=False), augment=augment),
        {
            "train.objective": objective,
            "train.batch_size": N,
            "train.ema": 0.9,
            "optim.name": optimizer,
            "optim.weight_decay": 0.1,
            "optim.clip": 1.0,
        },
    )
    config = replace(config, augment=replace(augment, views=OBJECTIVES[objective].views))
    with on(device):
        step_twice(config, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("crop", ["none", "pad", "random", "resized"])
@pytest.mark.parametrize("three", [False, True])
def test_nor_does_augmentation(crop: Any, three: bool, device: str) -> None:
    config = replace(EVERYTHING, crop=crop, three=three)

    with on(device):
        augmenter = Augmenter(config, EvalConfig(), (SIDE, SIDE), 0)
        augmenter(*pixels(device))
        inputs = pixels(device)
        with Refusing():
            augmenter(*inputs)


def test_the_mode_refuses_what_waits() -> None:
    numbers = torch.arange(4.0)
    for ask in (
        lambda: float(numbers[0]),
        lambda: numbers.nonzero(),
        lambda: numbers[numbers > 1],
        lambda: bool(numbers.any()),
    ):
        with pytest.raises(AssertionError, match="waits"), Refusing():
            ask()
    with fake_cuda(), pytest.raises(AssertionError, match="copies"), Refusing():
        torch.zeros(3).to("cuda")
