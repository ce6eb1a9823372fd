"""The processes of a run beside the first one: they compute their share of each update, as the first one says.

What the first one decides by a clock, a signal or a score is told before each update, so that all take the same one; after it the
weights of all are the same, since the gradients that were added up are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitcli import world
from vitcli.config import Size
from vitcli.errors import Interrupted, UsageError
from vitcli.train import runfolder, state
from vitcli.train.objectives.table import objective_named
from vitcli.train.parts import Parts
from vitcli.train.plan import Plan, replan
from vitcli.train.runfolder import Place
from vitcli.train.runlog import Log
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
    """Those of the first process, to all."""
    world.share_out([*trainer.model.state_dict().values(), *trainer.objective.state_dict().values()])


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
            parts = _parts(plan, place.folder, said.step)
            said = world.told()
            if isinstance(said, Train):
                said = _train(parts, said.step, signals)
    return said


def _parts(plan: Plan, folder: Path, step: int | None) -> Parts:
    saved = None if step is None else state.newest(folder / "state")[0]
    assert saved is None or saved.step == step
    parts = Parts(plan, folder, Log(()), saved)
    if saved is not None:
        parts.trainer.restore(saved.groups)
    return parts


def _train(parts: Parts, step: int, signals: Signals) -> object:
    """Updates from `step` on, until something else is said, which is returned."""
    trainer = parts.trainer
    signals.is_training = True
    send_weights(trainer)
    batches = parts.loader.batches(step)
    with contextlib.closing(batches):
        while isinstance(said := world.told(), Step):
            if said.compiled and not trainer.machine.compile:
                trainer.compile()
            trainer.signal = signals.received or 0
            trainer.optimizer.set_factor(said.factor)
            batch = next(batches)
            batch = batch if tuple(batch.images.shape[2:]) == tuple(said.size) else batch.resized(said.size)
            with trainer.model.taking(said.size):
                train_step(trainer, batch, step)
            trainer.after_update(step, said.progress)
            step += 1
    return said
