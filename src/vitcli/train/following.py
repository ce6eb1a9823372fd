"""The processes of a run beside the first one: they compute their share of each update, as the first one says.

What the first one decides by a clock, a signal or a score is told before each update, so that all take the same one; after it the
weights of all are the same, since the gradients that were added up are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli import world
from vitcli.config import EvalConfig, Size
from vitcli.data.cache import Images
from vitcli.data.stream_images import StreamImages
from vitcli.errors import Interrupted, UsageError, VitError
from vitcli.evaluate.inference import Ask, Inference, alike
from vitcli.model.classifier import Classifier, build
from vitcli.train import runfolder, state
from vitcli.train.objectives.table import objective_named
from vitcli.train.parts import Parts
from vitcli.train.plan import Plan, replan
from vitcli.train.runfolder import Place
from vitcli.train.runlog import Log
from vitcli.train.sharding import Gather, Keep
from vitcli.train.signals import Signals
from vitcli.train.step import train_step
from vitcli.train.trainer import Trainer


@dataclass(frozen=True)
class Begin:
    """The parts of the first process are there; `step` is the saved one that it took up, None for none."""

    step: int | None


@dataclass(frozen=True)
class Train:
    """From here on updates come: the first process's weights are sent. `step` is the first one."""

    step: int


@dataclass(frozen=True)
class Step:
    """One update, by a part of the learning rate and of the run, of images of a size; whether it is compiled."""

    factor: float
    progress: float
    size: Size
    compiled: bool


@dataclass(frozen=True, eq=False)
class Measure:
    """What is asked of images, the rows `positions` of a table's `rows`: the first process's weights are sent. `table` is a split of the data."""

    table: str
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    ask: Ask
    preprocessing: EvalConfig


@dataclass(frozen=True)
class Replaced:
    """The rows of a stream are wanted that each process could not read."""


@dataclass(frozen=True)
class End:
    """The run is over, with this exit code."""

    code: int = 0
    said: str = ""


@contextlib.contextmanager
def together(plan: Plan) -> Iterator[bool]:
    """Meet the other processes of a run, if there are any; whether this is the first one. The others are told of its end, unless an error
    came where they wait for something else: then its connections break, and they end as well.

    Raises UsageError for a batch that cannot be shared, ResourceError where the others do not come.
    """
    here, size = world.launched(), plan.config.train.batch_size
    if not here.is_shared:
        yield True
        return
    if size % here.size:
        near = max(1, round(size / here.size)) * here.size
        raise UsageError(
            f"train.batch_size = {size} cannot be shared by {here.size} processes",
            f"--batch-size {near} can; it is of all processes together",
        )
    if not objective_named(plan.config.train.objective).is_mean_over_images:
        raise UsageError(
            f"--objective {plan.config.train.objective} compares the images of a batch, which processes do not share",
            "start it with one process",
        )
    world.join(plan.machine.device)
    try:
        yield here.is_first
        if here.is_first:
            world.told(End())
    except Interrupted as error:
        if here.is_first:
            world.told(End(error.code, error.message))
        raise
    finally:
        world.leave()


def send_weights(trainer: Trainer) -> None:
    """Those of the first process, to all; and from here on gradients, or parts of the weights, are shared."""
    if trainer.is_sharded:
        return
    world.share_out([*trainer.model.state_dict().values(), *trainer.objective.state_dict().values()])
    trainer.share()


def share_measuring(plan: Plan, inference: Inference, images: Images, positions: NDArray[np.int64], ask: Ask) -> None:
    """Tell the other processes of a run what they are to compute with the first one (inference.py's Team)."""
    assert plan.source is not None
    split = images.split
    table = next(name for name, part in plan.source.splits.items() if part.table is split.table)
    world.told(Measure(table, split.rows, positions, ask, inference.preprocessing))
    world.share_out(inference.model.state_dict().values())


def everywhere_replaced(parts: Parts) -> set[int]:
    """The rows of a stream that could not be read, of all processes, as the first one asks; the others answer by the same."""
    if not isinstance(parts.images, StreamImages):
        return set()
    if world.world().is_first:
        world.told(Replaced())
    images = parts.images
    return set().union(*world.each_does(lambda: set(images.replaced)))


def follow(plan: Plan) -> Path:
    """Be one of the other processes until the run ends. Returns its folder. Raises Interrupted as the first process does, ResourceError
    where that one is gone, and what goes wrong here.
    """
    place = said = world.told()
    if isinstance(place, Place):
        said = world.told() if place.how == "finished" else _followed(plan, place)
    assert isinstance(said, End), said
    if said.code == Interrupted.code:
        raise Interrupted(said.said, "run the same command again to resume")
    return place.folder if isinstance(place, Place) else Path()


def _followed(plan: Plan, place: Place) -> object:
    """Do as is said, up to what is said last."""
    if place.how != "new":
        plan = replan(plan, runfolder.continued(plan, place.folder))
    with Signals() as signals:
        said = world.told()
        if isinstance(said, Begin):
            follower = _Follower(plan, _parts(plan, place.folder, said.step), signals)
            said = follower.hear()
            if isinstance(said, Train):
                said = follower.train(said.step)
    return said


def _parts(plan: Plan, folder: Path, step: int | None) -> Parts:
    saved = None if step is None else state.named(folder / "state", step)
    parts = Parts(plan, folder, Log(()), saved)
    if saved is not None:
        parts.take_up(saved)
    return parts


class _Follower:
    def __init__(self, plan: Plan, parts: Parts, signals: Signals) -> None:
        self.plan, self.parts, self.signals = plan, parts, signals
        self._written: Callable[[], None] = lambda: None
        """Waits until the step that was saved last is written."""

    def hear(self) -> object:
        """What is said next, apart from what is to be measured, brought together or saved, which is done."""
        while isinstance(said := world.told(), (Measure, Gather, Keep, Replaced)):
            if isinstance(said, Measure):
                self._measure(said)
            elif isinstance(said, Gather):
                self.parts.trainer.gather(said.averaged)
            elif isinstance(said, Replaced):
                everywhere_replaced(self.parts)
            else:
                self._written()
                self._written = self.parts.trainer.keep(said.folder)
        if isinstance(said, End):
            self._written()
        return said

    @cached_property
    def _measured(self) -> Classifier:
        """A model for the weights that are measured, which may be others than those that are trained."""
        return build(self.parts.config.model).to(self.parts.machine.device)

    def _measure(self, said: Measure) -> None:
        assert self.plan.source is not None
        world.share_out(self._measured.state_dict().values())
        parts = self.parts
        inference = Inference(self._measured, said.preprocessing, parts.config.data, parts.machine, team=alike)
        split = replace(self.plan.source.splits[said.table], rows=said.rows, labels=None, sets=None)
        images = Images(
            split=split, view=inference.view, config=inference.data, valid=said.positions, bad=[], cached=None
        )
        with contextlib.suppress(VitError), inference.running():  # which is raised in the first process, too
            for _ in inference.each(images, said.positions, said.ask):
                pass

    def train(self, step: int) -> object:
        """Updates from `step` on, until something else is said, which is returned."""
        trainer = self.parts.trainer
        self.signals.is_training = True
        send_weights(trainer)
        batches = self.parts.loader.batches(step)
        with contextlib.closing(batches):
            while isinstance(said := self.hear(), Step):
                if said.compiled and not trainer.machine.compile:
                    trainer.compile()
                trainer.signal = self.signals.received or 0
                trainer.optimizer.set_factor(said.factor)
                batch = next(batches)
                batch = batch if tuple(batch.images.shape[2:]) == tuple(said.size) else batch.resized(said.size)
                with trainer.model.taking(said.size):
                    train_step(trainer, batch, step)
                trainer.after_update(step, said.progress)
                step += 1
        return said
