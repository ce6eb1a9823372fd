"""How fast a model trains and infers on this machine, beside what the machine's matrix products reach."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitcli import flops
from vitcli.config import OBJECTIVE_SECTIONS, Architecture, BenchConfig, Config, Overrides, Size, apply, check
from vitcli.config_values import check_bounds
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.evaluate.inference import batch_size, logits_of
from vitcli.machine import Machine, Timing, peak_bandwidth, peak_flops, seconds_of, set_up, timing_of
from vitcli.model.classifier import Classifier, build
from vitcli.model.held import frozen
from vitcli.progress import Progress, silent
from vitcli.train.channels import suited_to_channels
from vitcli.train.execution import LAUNCH_BOUND, Execution
from vitcli.train.memory import needed
from vitcli.train.objectives.base import Objective
from vitcli.train.objectives.table import objective_named
from vitcli.train.step import Update, train_step
from vitcli.train.teacher import teacher, with_teacher
from vitcli.train.trainer import Trainer
from vitcli.weights.asked import section_of

TRAIN_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
_FEWEST = 3
_WARM_UP = {"cpu": 3, "mps": 3, "cuda": 12}
"""Turns until everything is chosen, compiled and recorded."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians over the repetitions; FLOPs are counted by flops.py, whatever the code really does."""

    model: str
    img_size: Size
    mode: str
    precision: str
    compile: bool
    replay: bool  # of a recorded update, as one CUDA graph
    batch_size: int
    images_per_second: float
    tflops: float  # counted FLOPs a second / 1e12
    share_of_peak: float  # of the peak of the same precision
    compile_seconds: float | None  # what the dearest of the first steps cost more than a later one
    launch_share: float | None  # of a step, until the host had launched it; None where the host computes it itself
    memory_share: float  # of the measured bandwidth, by the bytes that a step moves at least
    memory_bytes: int | None  # the most that tensors took on a GPU; None elsewhere
    bound: str  # launch, memory or arithmetic: what a faster step must begin with


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
    total = len(models) * len(bench.modes)
    peaks, bandwidth = [peak_flops(machine)], peak_bandwidth(machine)
    measured: list[tuple[Config, str, int, _Turns]] = []
    for model in models:
        for mode in bench.modes:
            progress("measuring", len(measured), total)
            batch = size or (
                TRAIN_BATCH[machine.device.type] if mode == "train" else batch_size(machine.device.type, model.breadth)
            )
            own = replace(config, model=model, train=replace(config.train, batch_size=batch))
            turns = _Turns.of(_Training(own, machine) if mode == "train" else _Inference(own, machine), bench.seconds)
            measured.append((own, mode, batch, turns))
            peaks.append(peak_flops(machine))
    peak = statistics.median(peaks)
    results = [_speed(own, mode, batch, turns, peak, bandwidth) for own, mode, batch, turns in measured]
    return {"results": [vars(r) for r in results], "peak_tflops": {machine.precision: peak / 1e12}}


def _speed(config: Config, mode: str, batch: int, turns: _Turns, peak: float, bandwidth: float) -> Speed:
    machine, seconds = turns.machine, turns.seconds
    trains = mode == "train"
    learned = objective_named(config.train.objective).training_flops(config, 1)
    rate = batch / seconds * (learned if trains else 2 * flops.macs(config.model))
    compiled, replayed = bool(machine.compile) and trains, bool(machine.replay) and trains
    launched = None if machine.device.type == "cpu" else turns.launch_share
    moved = _bytes_moved(config, machine, trains) / seconds / bandwidth
    bound = "memory" if moved > rate / peak else "arithmetic"
    return Speed(
        model=config.model.name,
        img_size=config.model.img_size,
        mode=mode,
        precision=machine.precision,
        compile=compiled,
        replay=replayed,
        batch_size=batch,
        images_per_second=batch / seconds,
        tflops=rate / 1e12,
        share_of_peak=rate / peak,
        compile_seconds=max(0.0, turns.dearest - seconds) if compiled else None,
        launch_share=launched,
        memory_share=moved,
        memory_bytes=turns.memory,
        bound="launch" if launched is not None and launched >= LAUNCH_BOUND and not replayed else bound,
    )


def _bytes_moved(config: Config, machine: Machine, trains: bool) -> int:
    """At least, by arithmetic: what is held of an image is written and read, in training with its gradient; weights, and with them what
    the optimizer keeps, are read and written once.
    """
    kept = objective_named(config.train.objective).activations(config).bytes(machine.bf16)
    if not trains:
        return 2 * config.train.batch_size * kept + 4 * flops.parameters(config.model)
    memory = needed(config, machine.device.type, machine.bf16)
    return 4 * config.train.batch_size * kept + 2 * memory.state


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
    if named:
        suited, _ = suited_to_channels(replace(config, model=named[0]), values, None)
        config = replace(suited, model=config.model)
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
    """A model with random weights, its objective and optimizer, as a function that trains it by one step, executed as in a run that is
    long enough for everything to pay.
    """
    execution, steps = _execution(config, machine), itertools.count()
    return lambda batch: execution(batch, next(steps))


def _execution(config: Config, machine: Machine) -> Execution:
    trained = Trainer(_initial(config), config, machine)
    trained.optimizer.set_factor(0.1)
    return Execution(trained, train_step, lambda: math.inf, lambda text: None)


def _initial(config: Config) -> Classifier:
    model = build(config.model)
    model.initialise(config.run.seed)
    return model


class _Training:
    """Updates on one batch, one a turn, executed as in a run that is long enough for everything to pay."""

    def __init__(self, config: Config, machine: Machine) -> None:
        images, labels = _images(config.model, config.train.batch_size, machine)
        self.batch = Batch((images,) * config.augment.views, labels, torch.arange(len(images)))
        self.execution, self.steps = _execution(config, machine), itertools.count()

    @property
    def machine(self) -> Machine:
        return self.execution.trainer.machine

    def turn(self) -> None:
        self.execution(self.batch, next(self.steps))


class _Inference:
    """Logits of one batch, one a turn."""

    def __init__(self, config: Config, machine: Machine) -> None:
        self.machine, self.model = machine, machine.place(_initial(config)).eval()
        self.images, _ = _images(config.model, config.train.batch_size, machine)
        self.kept = contextlib.ExitStack()  # what is made of the weights, for all turns
        with torch.inference_mode():
            self.kept.enter_context(frozen(self.model, machine.bf16))

    def turn(self) -> None:
        with torch.inference_mode():
            logits_of(self.model, self.images, self.machine.bf16, 1)


def _images(model: Architecture, batch: int, machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.standard_normal((batch, model.channels, *model.img_size), dtype=np.float32))
    labels = torch.from_numpy(draw.integers(max(1, model.classes), size=batch))
    return images.to(machine.device), labels.to(machine.device)


@dataclass(frozen=True)
class _Turns:
    """The dearest of the first turns, the median of those after them, the part of it that launching takes, the most memory that any
    took; and the machine as it was chosen to be.
    """

    dearest: float
    seconds: float
    launch_share: float
    memory: int | None
    machine: Machine

    @classmethod
    def of(cls, work: _Training | _Inference, seconds: float) -> _Turns:
        device, on_gpu = work.machine.device, work.machine.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        first = [seconds_of(work.turn, device) for _ in range(_WARM_UP[device.type])]
        timings: list[Timing] = []
        while len(timings) < _FEWEST or sum(t.done for t in timings) < seconds:
            timings.append(timing_of(work.turn, device))
        shares = [t.launch_share for t in timings]
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else None
        middle = statistics.median(t.done for t in timings)
        return cls(max(first), middle, statistics.median(shares), memory, work.machine)
