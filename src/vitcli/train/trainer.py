"""A run's tensors: the model, its objective, the optimizer, the weights' average. No files, no log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vitcli import world
from vitcli.config import Config
from vitcli.data.batch import Batch
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier
from vitcli.train import sharding
from vitcli.train.objectives.base import Loss, Noise, Objective
from vitcli.train.objectives.table import objective_named
from vitcli.train.optim import OWN, Average, Optimizer, trained
from vitcli.train.sharding import Whole
from vitcli.train.watch import Watch
from vitcli.weights.checkpoint import Tensors

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


class Trainer:
    """`model` is placed on the machine. All that a resumed run needs of it is in `state`."""

    def __init__(self, model: Classifier, config: Config, machine: Machine) -> None:
        self.config, self.machine = config, machine
        self.model = machine.place(model)
        self.model.use_checkpointing(config.run.checkpointing)
        self.objective: Objective = objective_named(config.train.objective)(self.model, config).to(machine.device)
        self.whole: Whole | None = None
        self.replicated: DistributedDataParallel | None = None
        self._beside: list[torch.nn.Parameter] = []
        """Parameters of which `replicated` knows nothing, since they had no gradient at first."""
        self._replicates = False
        self._plain: tuple[Classifier, Objective] = self.model, self.objective
        """Ordinary ones, for what is no update; where the weights are in parts they lie in the host's memory meanwhile."""
        self._arrange()
        self.watch = Watch(machine.device)
        self.signal = 0
        """The signal that this process was sent, 0 for none; and, after an update, the sum of those of all processes."""
        self.signals: torch.Tensor | None = None

    def _arrange(self) -> None:
        """The optimizer and the average of the model as it is."""
        config, machine = self.config, self.machine
        self.optimizer = Optimizer(
            trained(self.model, self.objective),
            config.optim,
            self.model.layers,
            fused=machine.device.type != "mps",
            bf16=machine.bf16,
        )
        self.average = Average(self.model, config.train.ema) if config.train.ema else None

    @property
    def is_sharded(self) -> bool:
        """Whether this process has parts alone."""
        return self.whole is not None

    def shard(self) -> None:
        """Keep parts from here on, where the run asks for it and there are several processes. Raises UsageError."""
        if self.is_sharded or not sharding.is_asked(self.config):
            return
        sharding.check(self.config, self.model)
        groups = self.state()
        self.whole = Whole(self.model, self.objective, self.machine)
        for module in self._plain:
            module.cpu()
        self.model, self.objective = self.whole.model, self.whole.objective
        self._arrange()
        self.restore(groups)

    def share(self) -> None:
        """With the other processes, if there are any, from here on: parts of the weights, or gradients."""
        self.shard()
        self._replicates = world.world().is_shared and not self.is_sharded and sharding.can_replicate(self.model)

    def after_backward(self) -> None:
        """Once the gradients of all processes are together: leave it to the engine the next time."""
        if self._replicates and self.replicated is None:
            self.replicated, self._beside = sharding.replicated(self.model, self.objective)

    @property
    def adds_up(self) -> bool:
        """Whether an engine brings the gradients of the processes together, as their mean."""
        return self.is_sharded or self.replicated is not None

    def unshard(self) -> None:
        """Whole tensors again, and those that the run leaves, in the first process; the others have none then. No update is to come."""
        self.replicated, self._replicates = None, False
        if not self.is_sharded:
            return
        current, average = self._gathered(averaged=False), None
        if self.average is not None:
            average = self._gathered(averaged=True)
        self.whole = None
        self.model, self.objective = self._plain
        for module in self._plain:
            module.to(self.machine.device)
        self.model.load_state_dict(current)
        self.average = Average(self.model, self.config.train.ema) if average is not None else None
        if self.average is not None and average is not None:
            self.average.restore(average)

    def _gathered(self, averaged: bool) -> Tensors:
        """In the first process, which tells the others."""
        world.told(sharding.Gather(averaged))
        return self.gather(averaged)

    def gather(self, averaged: bool) -> Tensors:
        """Whole tensors of what the run leaves, or of the model as it is trained, in the first process: all call this at once."""
        return sharding.gathered(self.weights() if averaged else self.model.state_dict())

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """Of a micro-batch, with what was drawn for it."""
        engine = self.whole or self.replicated
        found: Loss = self.objective(self.model, batch, noise) if engine is None else Loss(*engine(batch, noise))
        return found

    def adding_up(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around a micro-batch's passes: of copies, gradients are brought together in the last one."""
        return contextlib.nullcontext() if last or self.replicated is None else self.replicated.no_sync()

    def gradients(self) -> list[torch.Tensor]:
        """That are to be added up over the processes, in the same order in each, where no engine does it."""
        parameters = self._beside if self.adds_up else [*self.model.parameters(), *self.objective.parameters()]
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
        if self.is_sharded:
            with self._ordinary(averaged=True) as model:
                yield model
            return
        if self.average is None:
            yield self.model
            return
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    @contextlib.contextmanager
    def current(self) -> Iterator[Classifier]:
        """The model as it is trained."""
        if self.is_sharded:
            with self._ordinary(averaged=False) as model:
                yield model
            return
        yield self.model

    @contextlib.contextmanager
    def _ordinary(self, averaged: bool) -> Iterator[Classifier]:
        model, _ = self._plain
        model.load_state_dict(self._gathered(averaged))
        with sharding.on(self.machine.device, [model]):
            yield model

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

    def keep(self, folder: Path) -> Callable[[], None]:
        """Begin to write this process's parts; all call this at once. What is returned waits until all are written."""
        assert self.whole is not None
        return sharding.save(folder, self.state(), self.whole.saves)

    def restore(self, groups: dict[str, Tensors]) -> None:
        """The inverse of `state`. Raises KeyError, RuntimeError or TypeError where they do not fit."""
        if self.is_sharded:
            groups = {group: self._parted(group, tensors) for group, tensors in groups.items()}
        self.model.load_state_dict(groups["model"])
        self.objective.load_state_dict(groups.get("objective", {}))
        self.optimizer.restore(groups.get("optimizer", {}))
        if self.average is not None:
            self.average.restore(groups["average"])

    def restore_from(self, folder: Path) -> None:
        """As `restore`, of a step that was saved in parts. Raises CheckpointError, too."""
        self.restore(sharding.load(folder, self._like if self.is_sharded else lambda group, name: None))

    def _parted(self, group: str, tensors: Tensors) -> Tensors:
        found = {}
        for name, tensor in tensors.items():
            like = self._like(group, name)
            found[name] = tensor if like is None else sharding.parted_as(like, tensor)
        return found

    def _like(self, group: str, name: str) -> torch.Tensor | None:
        """The tensor in parts whose shape one of a saved step has, if it has one's."""
        if group == "objective":
            return self.objective.state_dict().get(name)
        own = self.model.state_dict()
        if group != "optimizer":
            return own.get(name)
        parameter = name.rpartition("/")[0]
        return own.get(parameter, self.objective.state_dict().get(parameter.removeprefix(OWN)))
