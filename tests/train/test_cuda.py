"""Updates on a real GPU: recorded as CUDA graphs, refused, from a state; skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_execution import OPTIMIZERS, SIDE, batch_of, config_of, weights_of

from vitcli.config import Config, EvalConfig
from vitcli.data.augment import Augmenter
from vitcli.data.batch import Batch
from vitcli.data.upload import Upload
from vitcli.machine import Machine
from vitcli.model.classifier import build
from vitcli.train.execution import Execution, Recorder, Replay
from vitcli.train.objectives.table import OBJECTIVES
from vitcli.train.step import Update, train_step
from vitcli.train.trainer import Trainer
from waits import Refusing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


def trainer_of(config: Config, **machine: Any) -> Trainer:
    model = build(config.model)
    model.initialise(0)
    for head in model.heads:
        torch.nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return Trainer(model, config, Machine(GPU, False, 1, attention="plain", **machine))


def replay_of(trainer: Trainer) -> Callable[[Batch, int], Update]:
    recorder = Recorder()
    return Replay(trainer, recorder.record, recorder.aside)


def near(one: Trainer, other: Trainer) -> None:
    """Kernels that add in any order differ in the last bits; so does what an update makes of them."""
    mine, theirs = weights_of(one), weights_of(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        if name.startswith(("model/", "average/")) and name.endswith("weight"):
            assert float((mine[name] - theirs[name]).norm()) <= 5e-3 * float(theirs[name].norm()) + 1e-6, name


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"distill"}))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cuda_graph_of_an_update_is_the_update(objective: str, optimizer: str) -> None:
    labelled = OBJECTIVES[objective].needs_labels
    config = config_of(
        objective, optimizer, optim__lr=1e-3, augment__mixup=0.4 * labelled, train__accumulate=2, train__ema=0.9
    )
    launched, replayed = trainer_of(config), trainer_of(config)
    replay = replay_of(replayed)
    for step in range(9):
        side = 8 if step in (4, 5, 6) and objective != "masked-patch" else SIDE
        batch, losses = batch_of(config, step, side).to(GPU), []
        if step == 8:
            batch.views[0][0] = float("nan")
        for trainer, make in ((launched, train_step), (replayed, lambda _, *rest: replay(*rest))):
            trainer.optimizer.set_factor(1 - step / 12)
            with trainer.model.taking((side, side)):
                losses.append(float(make(trainer, batch, step).loss))
            trainer.after_update(step, step / 12)
        if step < 8:
            assert losses[0] == pytest.approx(losses[1], rel=1e-3), step
        near(replayed, launched)
    for trainer in (launched, replayed):
        failure = trainer.watch.failure()
        assert failure is not None and failure.step == 8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_state_goes_on(optimizer: str) -> None:
    """Each tensor of it lies where the fused kernels look for it."""
    config = config_of(optimizer=optimizer, optim__lr=1e-3)
    whole, second = trainer_of(config), trainer_of(config)
    replay: Callable[[Batch, int], Update] | None = None
    for step in range(8):
        if step == 3:
            second.restore(copy.deepcopy(whole.state()))
            replay = replay_of(second)
        batch = batch_of(config, step).to(GPU)
        whole.optimizer.set_factor(0.7)
        train_step(whole, batch, step)
        if replay is not None:
            second.optimizer.set_factor(0.7)
            replay(batch, step)
    near(second, whole)


def test_an_execution_records_what_it_chose_and_says_so() -> None:
    config = config_of(augment__mixup=0.4, optim__lr=1e-3)
    launched, trainer = trainer_of(config), trainer_of(config, compile=False, replay=None)
    heard: list[str] = []
    execution = Execution(trainer, train_step, lambda: 0.0, heard.append)
    for step in range(16):
        batch = batch_of(config, step).to(GPU)
        for one, make in ((launched, train_step), (trainer, lambda _, *rest: execution(*rest))):
            one.optimizer.set_factor(0.5)
            make(one, batch, step)
    assert len(heard) == 1 and "CUDA graph" in heard[0], heard
    assert isinstance(execution.replay, Replay) and len(execution.replay._recorded) == 1
    near(trainer, launched)
    execution.close()


def test_images_are_augmented_on_the_card_without_a_wait_and_as_on_a_cpu() -> None:
    config = replace(
        config_of().augment, crop="pad", randaugment_layers=2, erase=0.5, jitter=(0.4, 0.3, 0.2, 0.1), jitter_p=0.8
    )
    augmenter, random = Augmenter(config, EvalConfig(), (32, 32), 0), np.random.default_rng(0)
    arrays = (
        random.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8),
        np.full((64, 2), 32, np.int32),
        np.arange(64) // 9,
        np.arange(64),
    )
    upload = Upload(GPU)
    on_card = upload.receive(upload.send(arrays))
    augmenter(*on_card)
    with Refusing():
        found = augmenter(*on_card)
    expected = augmenter(*map(torch.from_numpy, arrays))
    near_enough = (found.cpu() - expected).abs() < 1e-3
    assert float(near_enough.float().mean()) > 0.999
