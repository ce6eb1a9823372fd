"""What a run has while it is at work: its machine, images, tensors, clock and log; how that is saved and taken up again."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitcli import files, host, world
from vitcli.config import as_dict
from vitcli.data.split import Split
from vitcli.errors import CheckpointError, DivergedError, Interrupted
from vitcli.evaluate.inference import Inference
from vitcli.model.classifier import Classifier
from vitcli.progress import Progress
from vitcli.train import runfolder, state
from vitcli.train.clock import Anchor, Clock
from vitcli.train.following import Begin, share_measuring
from vitcli.train.head import Start
from vitcli.train.parts import Parts
from vitcli.train.plan import Plan
from vitcli.train.runlog import Log, Metrics, read_lines
from vitcli.train.sharding import Keep
from vitcli.train.signals import Signals
from vitcli.train.step import DIVERGED_HINT


@dataclass(eq=False)
class Reached:
    """Where a run stands. `used` are the seconds of earlier sessions."""

    step: int = 0
    used: float = 0.0
    resumed_from: int | None = None
    saved_at: float = 0.0
    saved_step: int = -1


class Session(Parts):
    """The parts of a run in one place, and what it writes.

    `start` is the linear probe that a new head began as, where it did (selection.py).
    """

    def __init__(self, plan: Plan, folder: Path, log: Log, signals: Signals) -> None:
        self.signals = signals
        # what an earlier session left, and what a killed one broke
        saved, faults = state.newest(folder / "state")
        files.remove_leftovers(folder)
        for fault in faults:
            log("warning", text=fault)
        super().__init__(plan, folder, log, saved)
        world.told(Begin(None if saved is None else saved.step))
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

    def inference(self, model: Classifier, progress: Progress | None = None) -> Inference:
        """A model as this run measures it; a signal ends what it is asked."""
        team = partial(share_measuring, self.plan) if world.world().is_shared else None
        return Inference(model, self.config.eval, self.config.data, self.machine, progress or self.watch, team=team)

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
            self.take_up(saved)
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
        received = self.signals.received and signal.Signals(self.signals.received).name
        if self.signals.is_training and (received or self._others_signalled()):
            name = received or "a signal to another of its processes"
            raise Interrupted(
                f"stopped by {name} at step {self.at.step}, saved in {self.folder}",
                "run the same command again to resume",
            )

    def _others_signalled(self) -> bool:
        """Whether another process was sent a signal before the last update; asked where nothing waits for it, or now and then."""
        signals = self.trainer.signals
        return signals is not None and (host.can_read(signals) or self.at.step % 10 == 0) and bool(host.read(signals))

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

    def left_out(self, split: Split, count: int) -> None:
        """Say, once a split, that so many of its images cannot be read."""
        name = "the dev part" if split is self.plan.dev else split.name
        if count and name not in self.unreadable:
            self.unreadable[name] = count
            self.log("warning", text=f"{count} unreadable images of {name} are left out")

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
        copied, written = self._copied(saved)

        def write() -> None:
            written()
            state.save(self.folder / "state", copied)
            runfolder.write_status(self.folder, status, step, code)

        self.writer.begin(write)
        self.at.saved_step, self.at.saved_at = step, time.monotonic()
        self.log("saved", step=step, seconds=self.at.saved_at - started)

    def _copied(self, saved: state.Saved) -> tuple[state.Saved, Callable[[], None]]:
        """The step in memory of its own, and what waits for parts of it that are being written."""
        if not self.trainer.is_sharded:
            return saved.copied(), lambda: None
        parts = state.parts_folder(self.folder / "state", saved.step)
        world.told(Keep(parts))
        written = self.trainer.keep(parts)
        own = {name: group for name, group in saved.groups.items() if name not in self.trainer.state()}
        return replace(saved, groups=own, parts=parts).copied(), written

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
