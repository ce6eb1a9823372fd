"""A run's tensors: the model, its objective, the optimizer, the weights' average. No files, no log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from vitcli.config import Config
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier
from vitcli.train.objectives.base import Objective
from vitcli.train.objectives.table import objective_named
from vitcli.train.optim import Average, Optimizer, trained
from vitcli.train.watch import Watch
from vitcli.weights.checkpoint import Tensors


class Trainer:
    """`model` is placed on the machine. All that a resumed run needs of it is in `state`."""

    def __init__(self, model: Classifier, config: Config, machine: Machine) -> None:
        self.config, self.machine = config, machine
        self.model = machine.place(model)
        self.model.use_checkpointing(config.run.checkpointing)
        self.objective: Objective = objective_named(config.train.objective)(self.model, config).to(machine.device)
        self.optimizer = Optimizer(
            trained(self.model, self.objective),
            config.optim,
            self.model.layers,
            fused=machine.device.type != "mps",
            bf16=machine.bf16,
        )
        self.average = Average(self.model, config.train.ema) if config.train.ema else None
        self.watch = Watch(machine.device)
        self.signal = 0
        """The signal that this process was sent, 0 for none; and, after an update, the sum of those of all processes."""
        self.signals: torch.Tensor | None = None

    def gradients(self) -> list[torch.Tensor]:
        """Of the update to come, in the same order in every process."""
        parameters = [*self.model.parameters(), *self.objective.parameters()]
        return [p.grad for p in parameters if p.grad is not None]

    def compile(self) -> None:
        """Compile the forward and the backward pass, the loss included."""
        torch.compiler.reset()  # of other runs of this process, whose graphs count against torch's limit
        self.objective.compile(dynamic=False)

    def do_not_compile(self) -> None:
        """Take it back."""
        self.objective._compiled_call_impl = None
        self.machine = replace(self.machine, compile=False)

    @torch.no_grad()
    def after_update(self, step: int, progress: float) -> None:
        """The average and the objective follow the model."""
        if self.average is not None:
            self.average.update(self.model, step, self.watch.admitted)
        self.objective.after_update(self.model, step, progress)

    # --- weights ---

    def weights(self) -> Tensors:
        """Those that the run leaves: the average, where there is one."""
        return self.average.weights if self.average is not None else dict(self.model.state_dict())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Classifier]:
        """The model with the weights that the run leaves."""
        if self.average is None:
            yield self.model
            return
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    def settle(self, weights: Tensors) -> None:
        """Make these the run's weights, when training is over."""
        self.average = None
        self.model.load_state_dict(weights)

    # --- state ---

    def state(self) -> dict[str, Tensors]:
        """By group: `model`, `optimizer`, `objective` and `average` where there are any."""
        groups: dict[str, Tensors] = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state()}
        if self.objective.state_dict():
            groups["objective"] = dict(self.objective.state_dict())
        if self.average is not None:
            groups["average"] = self.average.weights
        return groups

    def restore(self, groups: dict[str, Tensors]) -> None:
        """The inverse of `state`. Raises KeyError, RuntimeError or TypeError where they do not fit."""
        self.model.load_state_dict(groups["model"])
        self.objective.load_state_dict(groups.get("objective", {}))
        self.optimizer.restore(groups.get("optimizer", {}))
        if self.average is not None:
            self.average.restore(groups["average"])
