"""How fast a model trains and infers on this machine, beside what the machine's matrix products reach."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitcli import flops
from vitcli.config import OBJECTIVE_SECTIONS, Architecture, BenchConfig, Config, Overrides, apply, check
from vitcli.config_values import check_bounds
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.evaluate.inference import batch_size, logits_of
from vitcli.machine import Machine, peak_flops, seconds_of, set_up
from vitcli.model.classifier import Classifier, build
from vitcli.model.held import frozen
from vitcli.progress import Progress, silent
from vitcli.train.objectives.base import Objective
from vitcli.train.objectives.table import objective_named
from vitcli.train.step import Update, train_step
from vitcli.train.teacher import teacher, with_teacher
from vitcli.train.trainer import Trainer
from vitcli.weights.asked import section_of

TRAIN_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
_WARM_UP, _FEWEST = 2, 3


@dataclass(frozen=True, kw_only=True)
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
    models: list[Architecture],
    config: Config,
    bench: BenchConfig,
    machine: Machine,
    *,
    size: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The fields of `vit bench --json`. `size` images at a time, or what suits device and model.

    The peak is the median of what is measured before, between and after, since the speed of a shared machine drifts.
    """
    precision = machine.precision
    total = len(models) * len(bench.modes)
    peaks = [peak_flops(machine)]
    measured: list[tuple[Architecture, str, int, float, float]] = []
    for model in models:
        for mode in bench.modes:
            progress("measuring", len(measured), total)
            batch = size or (
                TRAIN_BATCH[machine.device.type] if mode == "train" else batch_size(machine.device.type, model.breadth)
            )
            work = _training if mode == "train" else _inference
            first, seconds = _median_seconds(work(replace(config, model=model), machine, batch), bench.seconds, machine)
            measured.append((model, mode, batch, first, seconds))
            peaks.append(peak_flops(machine))
    results, peak = [], statistics.median(peaks)
    for model, done, batch, first, seconds in measured:
        learned = objective_named(config.train.objective).training_flops(replace(config, model=model), 1)
        rate = batch / seconds * (learned if done == "train" else 2 * flops.macs(model))
        compiled = bool(machine.compile) and done == "train"
        results.append(
            Speed(
                model=model.name, mode=done, precision=precision, compile=compiled, batch_size=batch, images_per_second=batch / seconds, tflops=rate / 1e12, share_of_peak=rate / peak,
                compile_seconds=max(0.0, first - seconds) if compiled else None,
            )
        )  # fmt: skip
    return {"results": [vars(r) for r in results], "peak_tflops": {precision: peak / 1e12}}


def bench_asked(models: Sequence[Architecture], overrides: Overrides, progress: Progress = silent) -> dict[str, Any]:
    """Speed of `models` on this machine: the fields of `vit bench --json`.

    Raises UsageError where an override concerns neither the speed of a step nor `bench`.
    """
    fitting = ("bench.", "run.", "train.", "model.", "optim.", "augment.views", "data.classes", *OBJECTIVE_SECTIONS)
    wrong = next((key for key in overrides if not key.startswith(fitting)), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} does not concern a benchmark", f"bench takes --set {', '.join(f + '…' for f in fitting[:5])}"
        )
    settings = BenchConfig(**section_of(overrides, "bench"))  # type: ignore[arg-type]
    check_bounds("bench", settings)
    if not settings.modes:
        raise UsageError("nothing to measure", "bench.modes is train, infer or both")
    values = {key: value for key, value in overrides.items() if not key.startswith(("bench.", "data."))}
    config = apply(Config(), {"train.steps": 1} | {k: v for k, v in values.items() if not k.startswith("model.")})
    objective = objective_named(config.train.objective)
    views = objective.checked_views(config, overrides.get("augment.views"))
    config = with_teacher(replace(config, augment=replace(config.augment, views=views)), None)
    asked = {k: v for k, v in values.items() if k.startswith("model.")}
    named = [_learning(apply(replace(config, model=model), asked), objective) for model in models]
    for model in named:
        check(replace(config, model=model))
        objective.check(replace(config, model=model))
    size = overrides.get("train.batch_size", 0)
    return bench(named, config, settings, set_up(config.run), size=size, progress=progress)


def _learning(config: Config, objective: type[Objective]) -> Architecture:
    """The model with the outputs that it has under this objective: none without labels, its teacher's where it has one."""
    if not objective.needs_labels:
        return config.model.with_head(0, kept=False)
    if not config.train.teacher:
        return config.model
    return config.model.with_head(teacher(config.train.teacher).model.classes, kept=True)


def trainer(config: Config, machine: Machine) -> Callable[[Batch], Update]:
    """A model with random weights, its objective and optimizer, as a function that trains it by one step."""
    trained = Trainer(_initial(config), config, machine)
    trained.optimizer.set_factor(0.1)
    steps = itertools.count()
    return lambda batch: train_step(trained, batch, next(steps))


def _initial(config: Config) -> Classifier:
    model = build(config.model)
    model.initialise(config.run.seed)
    return model


def _training(config: Config, machine: Machine, batch: int) -> Iterator[None]:
    """Training steps on one batch, one a turn."""
    step = trainer(replace(config, train=replace(config.train, batch_size=batch)), machine)
    images, labels = _images(config.model, batch, machine)
    data = Batch((images,) * config.augment.views, labels, torch.arange(batch))
    while True:
        step(data)
        yield


def _inference(config: Config, machine: Machine, batch: int) -> Iterator[None]:
    model = machine.place(_initial(config)).eval()
    images, _ = _images(config.model, batch, machine)
    with torch.inference_mode(), frozen(model, machine.bf16):
        while True:
            logits_of(model, images, machine.bf16, 1)
            yield


def _images(model: Architecture, batch: int, machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
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
