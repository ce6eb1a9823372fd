"""The parts of a run, as each of its processes has them: its machine, images, batches and tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitcli.config import PseudoConfig
from vitcli.data.cache import Images, open_images, working_view
from vitcli.data.decode import View
from vitcli.data.joined import Drawn, Joined
from vitcli.data.loader import StreamLoader, TrainLoader
from vitcli.data.split import Split
from vitcli.data.stream_images import StreamImages
from vitcli.errors import CheckpointError
from vitcli.evaluate.inference import Inference
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier, build
from vitcli.train import pseudo, sharding, state
from vitcli.train.memory import room_of
from vitcli.train.objectives.table import objective_named
from vitcli.train.plan import Plan
from vitcli.train.runlog import Log
from vitcli.train.teacher import outputs_of
from vitcli.train.trainer import Trainer
from vitcli.tuning import tuned_names
from vitcli.weights.asked import loaded
from vitcli.weights.checkpoint import adapt, load, resized
from vitcli.world import world


class Parts:
    """Made in the order in which they need each other. `saved` is the step at which the run is taken up again; `unreadable` counts images
    that were left out, by split.
    """

    def __init__(self, plan: Plan, folder: Path, log: Log, saved: state.Saved | None) -> None:
        self.plan, self.folder, self.log, self.config = plan, folder, log, plan.config
        self.unreadable: dict[str, int] = {}
        self.machine = machine_of(plan, saved, folder, log)
        if world().is_shared:  # what is sent between processes is not recorded
            self.machine = replace(self.machine, replay=False)
        if sharding.is_asked(self.config):
            self.machine = replace(self.machine, compile=False)
        self.images = self._open_images()
        self.loader = self._loader()
        self.trainer = Trainer(self.initial_model(restored=saved is not None), self.config, self.machine)
        self.trainer.objective.begin(plan.classes)
        self.trainer.objective.counted(plan.classes, plan.class_counts)

    def take_up(self, saved: state.Saved) -> None:
        """The tensors of a saved step; all processes call this at once. Raises KeyError, RuntimeError, TypeError or CheckpointError where
        they do not fit.
        """
        self.trainer.shard()
        if saved.parts is None:
            self.trainer.restore(saved.groups)
        else:
            self.trainer.restore_from(saved.parts)

    def _open_images(self) -> Images | Joined | StreamImages:
        plan = self.plan
        if plan.stream is not None:
            return StreamImages(plan.stream, self._view(), self.config.data)
        assert plan.train is not None
        images = self._open(plan.train)
        return images if plan.unlabelled is None else Joined(images, self._open(plan.unlabelled))

    def _view(self) -> View:
        plan, model = self.plan, self.config.model
        return working_view(plan.native, plan.uniform, model.img_size, self.config.augment, model.channels)

    def _open(self, split: Split) -> Images:
        plan = self.plan
        images = open_images(split, self._view(), self.config.data, self.log.progress)
        if images.bad:
            self.unreadable[split.name] = len(images.bad)
            position, reason = images.bad[0]
            self.log(
                "warning",
                text=f"{len(images.bad)} unreadable {'training' if split is plan.train else split.name} images are skipped, the first is "
                f"{split.describe(position)}: {reason}",
            )
        return images

    def _loader(self) -> TrainLoader:
        """Of the training images, with those that a teacher labels first."""
        plan, config = self.plan, self.config
        if isinstance(self.images, StreamImages):
            labelled = objective_named(config.train.objective).needs_labels
            return StreamLoader(self.images, config, self.machine.device, labelled, world=world())
        if plan.unlabelled is None:
            assert isinstance(self.images, Images)
            return TrainLoader(self.images, plan.targets, config, self.machine.device, room=self._room(), world=world())
        assert isinstance(self.images, Joined) and plan.targets is not None
        settings: PseudoConfig = config.settings_of("pseudo")
        described, model = loaded(config.train.teacher)
        teacher = Inference(model.to(self.machine.device), described.eval, config.data, self.machine, self.log.progress)
        outputs = outputs_of(described.classes, plan.classes).numpy()
        said = pseudo.labelled(teacher, outputs, plan.unlabelled, self.folder / pseudo.FILE)
        pseudo_labels = pseudo.chosen(said, settings, config.run.seed)
        self.log("note", text=str(pseudo_labels))
        own, start = self.images.first.valid, len(self.images.first.split)
        readable = np.isin(pseudo_labels.places, self.images.second.valid)
        places, copies = pseudo_labels.places[readable], pseudo_labels.copies[readable]
        drawn = Drawn(
            np.concatenate([own, start + places]),
            np.concatenate([np.zeros(len(own), np.int64), copies]),
            start,
            pseudo.targets_of(pseudo_labels, settings),
        )
        labels = np.concatenate([plan.targets, pseudo_labels.labels])
        return TrainLoader(self.images, labels, config, self.machine.device, drawn, self._room(), world=world())

    def _room(self) -> int:
        """Bytes of a GPU's memory for the images: what it says is free, less twice what training is estimated to need."""
        room = room_of(self.machine.device) if self.machine.device.type == "cuda" else None
        return 0 if room is None else max(0, room.free - 2 * self.plan.memory().total)

    def initial_model(self, restored: bool = False) -> Classifier:
        """The model as a run begins: random, or the weights that it starts from. One that is `restored` is overwritten by the saved step."""
        plan, config = self.plan, self.config
        if plan.parent is None or restored:
            model = build(config.model)
            model.initialise(config.run.seed, config.train.init, config.train.head_bias)
        else:
            description, tensors = load(plan.parent)
            _, fitting = resized(description, tensors, config.model.img_size)
            model = adapt(fitting, config.model, plan.keep_head, config.run.seed, config.train.head_bias)
        own = tuned_names([name for name, _ in model.named_parameters()], config.train.tuned)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in own)
        return model


def machine_of(plan: Plan, saved: state.Saved | None, folder: Path, log: Log) -> Machine:
    """The plan's machine, with the precision and threads of the state, since they change bits."""
    machine = plan.machine
    if saved is None:
        return machine
    then = _known(saved, folder)
    if then["device"] == machine.device.type:
        asked = plan.config.run  # what a run is told stands above what it chose before
        machine = machine.at(
            then["precision"],
            then["threads"],
            then.get("compile") if asked.compile is None else None,
            then.get("replay") if asked.replay is None else None,
        )
    now = machine.as_json(plan.config.model.tokens)
    changed = [f"{k} {then[k]} → {now[k]}" for k in now if then.get(k, now[k]) != now[k]]
    if changed:
        log("warning", text=f"resumed on another machine ({', '.join(changed)}): the result will not be bit-equal")
    return machine


def _known(saved: state.Saved, folder: Path) -> dict[str, Any]:
    """The machine of a saved step. Raises CheckpointError where the step lacks what every vit writes."""
    try:
        then = saved.values["runtime"]
        position, seconds = saved.values["loader"]["step"], saved.values["seconds"]
        if position == saved.step and seconds >= 0 and then["threads"] > 0 and {"device", "precision"} <= then.keys():
            return dict(then)
        raise ValueError(f"position {position}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"step {saved.step} in {folder} is not one that this vit reads: {error}",
            "start anew with --resume never",
        ) from None
