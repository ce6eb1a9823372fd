"""What a run has while it is at work: its machine, images, tensors, clock and log; how that is saved and taken up again."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitcli import files
from vitcli.config import PseudoConfig, as_dict
from vitcli.data.cache import Images, open_images, working_view
from vitcli.data.joined import Drawn, Joined
from vitcli.data.loader import TrainLoader
from vitcli.data.split import Split
from vitcli.errors import CheckpointError, DivergedError, Interrupted
from vitcli.evaluate.inference import Inference
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier, build
from vitcli.progress import Progress
from vitcli.train import pseudo, runfolder, state
from vitcli.train.clock import Anchor, Clock
from vitcli.train.head import Start
from vitcli.train.memory import room_of
from vitcli.train.plan import Plan
from vitcli.train.runlog import Log, Metrics, read_lines
from vitcli.train.signals import Signals
from vitcli.train.step import DIVERGED_HINT
from vitcli.train.teacher import outputs_of
from vitcli.train.trainer import Trainer
from vitcli.weights.asked import loaded
from vitcli.weights.checkpoint import adapt, load, resized


@dataclass(eq=False)
class Reached:
    """Where a run stands. `used` are the seconds of earlier sessions."""

    step: int = 0
    used: float = 0.0
    resumed_from: int | None = None
    saved_at: float = 0.0
    saved_step: int = -1


class Session:
    """The parts of a run in one place, made in the order in which they need each other.

    `start` is the linear probe that a new head began as, where it did (selection.py); `unreadable` counts images that were left
    out, by split.
    """

    def __init__(self, plan: Plan, folder: Path, log: Log, signals: Signals) -> None:
        self.plan, self.folder, self.log, self.config, self.signals = plan, folder, log, plan.config, signals
        # what an earlier session left, and what a killed one broke
        saved, faults = state.newest(folder / "state")
        files.remove_leftovers(folder)
        for fault in faults:
            log("warning", text=fault)
        # the parts, each from the ones before it
        self.unreadable: dict[str, int] = {}
        self.machine = machine_of(plan, saved, folder, log)
        self.images = self._open_images()
        self.loader = self._loader()
        self.trainer = Trainer(self.initial_model(restored=saved is not None), self.config, self.machine)
        self.trainer.objective.begin(plan.classes)
        self.trainer.objective.counted(plan.classes, plan.class_counts)
        self.clock = Clock(plan.steps, self.config.train.time_budget, self._anchors())
        self.at = Reached()
        self.start: Start | None = None
        if saved is not None:
            self._restore(saved)
        # what it writes
        self.metrics = Metrics(folder / "metrics.jsonl", self.at.step)
        self.writer = state.Writer()
        runfolder.write_status(folder, "running", self.at.step)
        log("begin", folder=folder, config=as_dict(self.config), step=self.at.step, seconds=self.seconds())

    # --- parts ---

    def _open_images(self) -> Images | Joined:
        plan = self.plan
        assert plan.train is not None
        images = self._open(plan.train)
        return images if plan.unlabelled is None else Joined(images, self._open(plan.unlabelled))

    def _open(self, split: Split) -> Images:
        plan = self.plan
        view = working_view(plan.native, plan.uniform, self.config.model.img_size, self.config.augment)
        images = open_images(split, view, self.config.data, self.log.progress)
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
        if plan.unlabelled is None:
            assert isinstance(self.images, Images)
            return TrainLoader(self.images, plan.targets, config, self.machine.device, room=self._room())
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
        return TrainLoader(self.images, labels, config, self.machine.device, drawn, self._room())

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
        if plan.frozen:
            heads = model.head_names()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(heads))
        return model

    def inference(self, model: Classifier, progress: Progress | None = None) -> Inference:
        """A model as this run measures it; a signal ends what it is asked."""
        return Inference(model, self.config.eval, self.config.data, self.machine, progress or self.watch)

    def _anchors(self) -> list[Anchor]:
        path = self.folder / "state" / "clock.jsonl"
        if not self.config.train.time_budget or not path.exists():
            return []
        lines = read_lines(path)
        try:
            anchors = [Anchor(int(a["step"]), a["progress"], int(a["remaining"]), a["seconds"] + 0.0) for a in lines]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} is not what vit writes: {error}", "start anew with --resume never") from None
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))  # without a line that was cut off
        return anchors

    def _restore(self, saved: state.Saved) -> None:
        wrong = saved.unfinite()
        if wrong:
            raise CheckpointError(
                f"step {saved.step} in {self.folder} holds NaN or infinite numbers ({wrong})",
                "start anew with --resume never",
            )
        try:
            self.trainer.restore(saved.groups)
            if "probe" in saved.values:
                self.start = Start.of(saved.groups, saved.values)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the state of {self.folder} does not fit its configuration: {error}", "start anew with --resume never"
            ) from None
        used = max([saved.values["seconds"], *(a.seconds for a in self.clock.anchors)])
        self.at = Reached(self.loader.restore(saved.values["loader"]), used, saved.step, saved_step=saved.step)
        self.log("note", text=f"resumed at step {saved.step}")

    # --- while it runs ---

    def seconds(self) -> float:
        """Since the start of the command, with those of earlier sessions."""
        return self.at.used + time.monotonic() - self.plan.request.started

    def stop_if_signalled(self) -> None:
        """Raises Interrupted after a signal; `finish` then saves, if this step is not saved."""
        if self.signals.received and self.signals.is_training:
            name = signal.Signals(self.signals.received).name
            raise Interrupted(
                f"stopped by {name} at step {self.at.step}, saved in {self.folder}",
                "run the same command again to resume",
            )

    def watch(self, what: str, done: int, total: int) -> None:
        """The progress of an evaluation."""
        self.log.progress(what, done, total)
        self.stop_if_signalled()

    def quietly(self, what: str, done: int, total: int) -> None:
        """The progress of something short between two steps, which is not shown."""
        self.stop_if_signalled()

    def record(self, event: str, **fields: Any) -> None:
        """An event that is a line of metrics.jsonl as well."""
        delayed = self.metrics.add(fields)
        if delayed:
            self.log("warning", text=delayed)
        self.log(event, **fields)

    def measured(self, event: str, found: dict[str, Any]) -> None:
        """Record what was measured between two steps, under the event's own name."""
        step = self.at.step
        self.record(
            event,
            step=step,
            epoch=self.loader.epoch(step),
            images_seen=step * self.config.train.batch_size,
            seconds=self.seconds(),
            **{event: found},
        )

    # --- saving ---

    def save(self, status: str, code: int | None = None) -> None:
        """Begin to write this step, if it is not written yet, and `status` after it; training goes on meanwhile.

        Raises DivergedError where a number to be saved is not finite: then the step before it stays the newest.
        """
        if self.at.saved_step == self.at.step:
            return
        started = time.monotonic()
        self.writer.wait()
        saved, step = self.saved(), self.at.step
        wrong = saved.unfinite()
        if wrong:
            raise DivergedError(
                f"{wrong} holds NaN or infinite numbers after step {step}"
                + (f"; step {self.at.saved_step} is kept" if self.at.saved_step > 0 else ""),
                DIVERGED_HINT,
            )
        self.metrics.flush()
        copied = saved.copied()

        def write() -> None:
            state.save(self.folder / "state", copied)
            runfolder.write_status(self.folder, status, step, code)

        self.writer.begin(write)
        self.at.saved_step, self.at.saved_at = step, time.monotonic()
        self.log("saved", step=step, seconds=self.at.saved_at - started)

    def saved(self) -> state.Saved:
        """All that a resumed run needs."""
        groups = self.trainer.state()
        values: dict[str, Any] = {
            "loader": self.loader.state(self.at.step),
            "seconds": self.seconds(),
            "runtime": self.trainer.machine.as_json(self.config.model.tokens),
        }
        if self.start is not None:
            groups |= self.start.groups()
            values["probe"] = self.start.values()
        return state.Saved(self.at.step, groups, values)

    def keep_last_good_step(self) -> None:
        """Where nothing is saved yet, save the weights before the update that was not made, unless they are spoilt."""
        if self.at.saved_step < 0 < self.at.step:
            with contextlib.suppress(DivergedError):
                self.save("failed", DivergedError.code)
        self.writer.wait()


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
