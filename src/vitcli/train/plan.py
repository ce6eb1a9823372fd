"""The plan of a run: everything that it is, resolved and checked before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitcli import flops
from vitcli.classes import Class
from vitcli.config import Config, Overrides, Size, as_dict
from vitcli.data.identity import Record
from vitcli.data.split import NOTHING, Source, Split
from vitcli.data.stream import Stream
from vitcli.evaluate.sets import placed
from vitcli.machine import Machine, set_up
from vitcli.progress import Progress, silent
from vitcli.train import memory
from vitcli.train.estimate import NO_ESTIMATE, Estimate
from vitcli.train.objectives.table import objective_named
from vitcli.train.progressive import stages
from vitcli.train.teacher import described
from vitcli.weights.describe import Description


@dataclass(frozen=True)
class Request:
    """What was asked for: `overrides` are the configuration file's, --set's and the options' values together.

    `started` is when the time of a budget began, on the clock of time.monotonic.
    """

    command: Literal["pretrain", "finetune"]
    overrides: Overrides = field(default_factory=dict)
    init: str = ""  # finetune's CKPT
    dry_run: bool = False
    started: float = field(default_factory=time.monotonic)
    progress: Progress = silent  # of reading data that must be read to be parted


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    config: Config
    request: Request
    machine: Machine
    source: Source | None  # None: data `none`, or what a plan alone does not download
    train: Split | None
    held_out: Split | None  # what the run reports on
    dev: Split | None  # what it chooses by, kept back from training
    unlabelled: Split | None = None  # what a teacher labels
    native: Size
    uniform: bool
    classes: tuple[Class, ...]
    outputs: NDArray[np.int64]  # for each class of the data, the model's output
    parent: Description | None
    keep_head: bool
    images: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    estimate: Estimate = NO_ESTIMATE
    counts: tuple[tuple[str, int], ...] = ()  # splits and their images, where there is no source, or a stream
    stream: Stream | None = None  # in place of `train`
    record: Record = NOTHING  # the images that trained the parent and the runs before it

    @property
    def steps(self) -> int | None:
        """Updates of the whole run; None where a time budget decides."""
        train = self.config.train
        if train.epochs is not None:
            return max(1, round(train.epochs * self.images / train.batch_size))
        return train.steps

    @property
    def splits(self) -> list[Split]:
        """What the run reads: the training images, the unlabelled ones, the dev part, the held-out images."""
        parts = (self.train, self.unlabelled, self.dev, self.held_out)
        return list(dict.fromkeys(part for part in parts if part is not None))

    @property
    def fits_head(self) -> bool:
        """Whether a new head starts as a linear probe."""
        return (
            self.parent is not None
            and bool(self.classes)
            and not self.keep_head
            and self.config.train.head == "linear"
            and self.stream is None  # a probe looks at images before their turn
        )

    @property
    def targets(self) -> NDArray[np.int64] | NDArray[np.bool_] | None:
        """For each training image the model's output, or the set of them; None where the objective has no use for labels."""
        if self.train is None or not objective_named(self.config.train.objective).needs_labels:
            return None
        if self.train.sets is not None:
            return placed(self.train.sets, self.outputs, len(self.classes))
        return None if self.train.labels is None else self.outputs[self.train.labels]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """The training images of each of the model's classes."""
        targets = self.targets
        if targets is None:
            return np.zeros(len(self.classes), np.int64)
        return targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(self.classes))

    def train_flops(self, images_seen: int, share: Callable[[float], float] = lambda progress: progress) -> int:
        """Of training on so many images, and of labelling those that a teacher labels. `share` is the part of them that was seen
        up to a part of the run.
        """
        total, before = self._labelling_flops(), 0.0
        for until, size in stages(self.config.model, self.config.train.low_res):
            part = (share(until) if until < 1 else 1.0) - before
            model = replace(self.config.model, img_size=size)
            config = replace(self.config, model=model)
            total += objective_named(config.train.objective).training_flops(config, round(images_seen * part))
            before += part
        return total

    def _labelling_flops(self) -> int:
        if self.unlabelled is None:
            return 0
        teacher = described(self.config.train)
        return 2 * flops.macs(teacher.model) * teacher.eval.views * len(self.unlabelled)

    def memory(self) -> flops.Memory:
        return memory.needed(self.config, self.machine.device.type, self.machine.bf16)

    def as_json(self) -> dict[str, Any]:
        """The fields of --dry-run."""
        model, steps, tuned = self.config.model, self.steps, self.config.train.tuned
        seen = None if steps is None else steps * self.config.train.batch_size
        splits = [{"name": part.name, "rows": len(part)} for part in self.splits]
        if self.train is None:
            splits = [{"name": name, "rows": rows} for name, rows in self.counts]
        return {
            "model": model.name,
            "params": flops.parameters(model),
            **({"trained_params": flops.tuned_parameters(model, tuned)} if tuned != "all" else {}),
            "tokens": model.tokens,
            "macs": flops.macs(model),
            "steps": steps,
            "images_seen": seen,
            "train_flops": None if seen is None else self.train_flops(seen),
            "memory_bytes": self.memory().total,
            **(vars(self.estimate) if self.config.scale.bench else {}),
            "data": {"splits": splits, "classes": model.classes},
            "config": as_dict(self.config),
        }


def replan(plan: Plan, config: Config) -> Plan:
    """The same plan with another configuration, as a resumed run's file has it."""
    return replace(plan, config=config, machine=set_up(config.run))
