"""How fast a model trains and infers on this machine, beside what the machine's matrix products reach."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitcli import flops
from vitcli.config import BenchConfig, Config, ModelConfig
from vitcli.data.augment import Batch
from vitcli.evaluate.evaluator import batch_size, logits_of
from vitcli.machine import Machine, peak_flops, seconds_of
from vitcli.model.linear import packed
from vitcli.model.vit import ViT, init_weights
from vitcli.progress import Progress, silent
from vitcli.train.objectives import Classify
from vitcli.train.optim import Optimizer
from vitcli.train.step import Update, train_step

TRAIN_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
_WARM_UP, _FEWEST = 2, 3


@dataclass(frozen=True)
class Speed:
    """Medians over the repetitions; FLOPs are counted by flops.py, whatever the code really does."""

    model: str
    mode: str
    precision: str
    compile: bool
    batch_size: int
    images_per_second: float
    tflops: float  # counted FLOPs a second / 1e12
    share_of_peak: float  # of the peak of the same precision
    compile_seconds: float | None  # what the first step cost more than a later one, with run.compile


def bench(
    models: list[ModelConfig],
    config: Config,
    bench: BenchConfig,
    machine: Machine,
    size: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The fields of `vit bench --json`. `size` images at a time, or what suits device and model.

    The peak is the median of what is measured before, between and after, since the speed of a shared machine drifts.
    """
    precision = machine.precision
    total = len(models) * len(bench.modes)
    peaks = [peak_flops(machine)]
    measured: list[tuple[ModelConfig, str, int, float, float]] = []
    for model in models:
        for mode in bench.modes:
            progress("measuring", len(measured), total)
            batch = size or (
                TRAIN_BATCH[machine.device.type] if mode == "train" else batch_size(machine.device.type, model.tokens)
            )
            work = _training if mode == "train" else _inference
            first, seconds = _median_seconds(work(replace(config, model=model), machine, batch), bench.seconds, machine)
            measured.append((model, mode, batch, first, seconds))
            peaks.append(peak_flops(machine))
    results, peak = [], statistics.median(peaks)
    for model, done, batch, first, seconds in measured:
        rate = batch / seconds * (flops.training_flops(model, 1) if done == "train" else 2 * flops.macs(model))
        compiled = machine.compile and done == "train"
        results.append(
            Speed(
                model.name, done, precision, compiled, batch, batch / seconds, rate / 1e12, rate / peak,
                max(0.0, first - seconds) if compiled else None,
            )
        )  # fmt: skip
    return {"results": [vars(r) for r in results], "peak_tflops": {precision: peak / 1e12}}


def trainer(config: Config, machine: Machine) -> Callable[[Batch], Update]:
    """A model with random weights, its objective and optimizer, as a function that trains it by one step."""
    model = ViT(config.model)
    init_weights(model, config.run.seed)
    model = machine.place(model)
    objective = Classify(config.train)
    optimizer = Optimizer(
        model.named_parameters(), config.optim, config.model.depth, machine.device.type != "mps", machine.bf16
    )
    optimizer.set_factor(0.1)
    steps = itertools.count()
    return lambda batch: train_step(model, objective, optimizer, batch, config, next(steps), machine)


def _training(config: Config, machine: Machine, batch: int) -> Iterator[None]:
    """Training steps on one batch, one a turn."""
    step = trainer(replace(config, train=replace(config.train, batch_size=batch)), machine)
    images, labels = _images(config.model, batch, machine)
    data = Batch((images,), labels, torch.arange(batch))
    while True:
        step(data)
        yield


def _inference(config: Config, machine: Machine, batch: int) -> Iterator[None]:
    model = ViT(config.model)
    init_weights(model, config.run.seed)
    model = replace(machine, compile=False).place(model).eval()
    images, _ = _images(config.model, batch, machine)
    with torch.inference_mode(), packed(model, machine.bf16):
        while True:
            logits_of(model, images, machine.bf16, 1)
            yield


def _images(model: ModelConfig, batch: int, machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.standard_normal((batch, 3, *model.img_size), dtype=np.float32))
    labels = torch.from_numpy(draw.integers(max(1, model.classes), size=batch))
    return images.to(machine.device), labels.to(machine.device)


def _median_seconds(turns: Iterator[None], seconds: float, machine: Machine) -> tuple[float, float]:
    """(the first turn, the median of those after the warm-up), each in seconds."""
    first = seconds_of(lambda: next(turns), machine.device)
    for _ in range(_WARM_UP):
        seconds_of(lambda: next(turns), machine.device)
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < seconds:
        times.append(seconds_of(lambda: next(turns), machine.device))
    return first, statistics.median(times)
