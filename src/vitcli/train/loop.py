"""A run from its plan to its report, told from top to bottom."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files, flops, runs
from vitcli.data.augment import Batch
from vitcli.data.cache import Images, open_images, working_view
from vitcli.data.loader import TrainLoader
from vitcli.data.split import Split
from vitcli.errors import (
    CheckpointError,
    DivergedError,
    Interrupted,
    ResourceError,
    Stopped,
    UsageError,
    VitError,
    is_out_of_memory,
)
from vitcli.evaluate.evaluator import Evaluation, evaluate
from vitcli.machine import Machine, peak_flops
from vitcli.model.vit import ViT, init_mimetic, init_weights
from vitcli.progress import Progress, silent
from vitcli.runs import WEIGHTS
from vitcli.train import artifacts, runfolder, state
from vitcli.train.clock import Anchor, Clock
from vitcli.train.growth import size_at, slower
from vitcli.train.head import Pace, Start, balanced, better_beyond_noise, fit_head, halfway
from vitcli.train.objectives import Classify
from vitcli.train.optim import Average, Optimizer, lr_factor
from vitcli.train.plan import Plan, replan
from vitcli.train.runfolder import Place
from vitcli.train.runlog import Log, Metrics, read_lines
from vitcli.train.signals import Signals
from vitcli.train.step import DIVERGED_HINT, Update, train_step
from vitcli.weights.checkpoint import HEADS, Tensors, adapt, load, resized

Report = dict[str, Any]

EXIT_SECONDS = 2.5
"""What pictures, the report and the interpreter's end take after the evaluation, kept back from a time budget."""
_EVALUATION_MARGIN = 1.1
"""Times its measured length that an evaluation is given: one of 10,000 images at 48 px took 25 s in place of 23."""
_TIMED_IMAGES = 512
_PROBE_WORK_A_SECOND = 1.3e6
"""Products of images, features and classes a second that choosing and fitting a linear probe works off: pets, 914 x 192 x
37, takes 5 s with its nine penalties and five folds."""
_STEP_OVER_PASS = 4.0
"""Times as long as an image's features that a step takes for each of its images."""
_FEWEST_STEPS = 30
"""Updates below which tuning moves trained weights too little to be told from chance."""


def train(plan: Plan, place: Place, log: Log) -> tuple[Path, Report]:
    """Train, or go on training, in `place`. Returns the run folder and the report.

    Raises Interrupted after a signal, with the state saved, and any VitError of what went wrong.
    """
    if place.how == "finished":
        log("note", text=f"{place.folder} is finished already")
        return place.folder, json.loads((place.folder / "report.json").read_text(encoding="utf-8"))
    is_new, made = place.how == "new", [p for p in (place.folder, *place.folder.parents) if not p.exists()]
    if not is_new:
        plan = replan(plan, runfolder.continued(plan, place.folder))
        log("note", text=f"going on with the unfinished run {place.folder}")
    with (
        contextlib.closing(log),
        runfolder.lock(place.folder),
        Signals() as signals,
        _status_of(place.folder, is_new, made),
    ):
        if runs.status(place.folder).get("status") == "running":
            log("note", text=runs.ended(place.folder))
        if is_new:
            for name in files.remove_leftovers(place.folder / "state"):
                log("warning", text=f"ignored {name}, which a killed start left")
            runfolder.create(place.folder, plan)
        _preflight(plan, place.folder)
        return place.folder, _Run(plan, place.folder, log, signals).finish()


@contextlib.contextmanager
def _status_of(folder: Path, is_new: bool, made: Sequence[Path]) -> Iterator[None]:
    """Write how the run ended; what a new run that never came to a first step made is removed.

    A signal before the first step of a run that goes on is an interruption like any other: its state is there.
    """
    try:
        yield
    except (Stopped, KeyboardInterrupt, Exception) as error:
        saved = state.steps(folder / "state")
        if isinstance(error, Stopped) and saved:
            runfolder.write_status(folder, "saved", saved[-1], Interrupted.code)
            raise Interrupted(
                f"stopped by {error} before a new step; step {saved[-1]} is saved in {folder}",
                "run the same command again to go on",
            ) from None
        if is_new and not saved and not (folder / "metrics.jsonl").exists():
            _undo(folder, made)
        elif isinstance(error, Exception) and not isinstance(error, Interrupted):
            code = error.code if isinstance(error, VitError) else VitError.code
            with contextlib.suppress(ResourceError):
                runfolder.write_status(folder, "failed", runs.status(folder).get("step", 0), code)
        raise


_BEFORE_THE_FIRST_STEP = ("run.toml", "state/identity.json", "state/status.json", "state/clock.jsonl", "state/lock")
"""What a run writes before its first step."""


def _undo(folder: Path, made: Sequence[Path]) -> None:
    """Remove by name what a run without a step made, and the folders that it `made`, innermost first, where they are empty then:
    whatever else is there is not its own.
    """
    for place in (folder, folder / "state"):
        files.remove_leftovers(place)
    with contextlib.suppress(OSError):
        for name in _BEFORE_THE_FIRST_STEP:
            (folder / name).unlink(missing_ok=True)
        (folder / "state").rmdir()
        for empty in made:
            empty.rmdir()


def _preflight(plan: Plan, folder: Path) -> None:
    """Raises ResourceError where the disk has no room for what a run needs at its fullest: two saved steps, the one
    that is being written, and the checkpoint.
    """
    config = plan.config
    step = flops.saved_bytes(config.model, config.optim.name, config.train.ema > 0, plan.frozen)
    there = sum(f.stat().st_size for f in (folder / "state").glob("step-*/*"))
    needed, free = (state.KEPT_STEPS + 1) * step + 4 * flops.parameters(config.model) - there, files.free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"{folder} has {free:,} bytes free; saved steps of {step:,} bytes and the checkpoint need {needed:,}",
            "free some space, or choose another folder with --out",
        )


@dataclass(eq=False)
class _Progress:
    """Where a run stands. `used` are the seconds of earlier sessions."""

    step: int = 0
    used: float = 0.0
    resumed_from: int | None = None
    saved_at: float = 0.0
    saved_step: int = -1


class _Run:
    """The parts of a run in one place, made in the order in which they need each other."""

    def __init__(self, plan: Plan, folder: Path, log: Log, signals: Signals) -> None:
        self.plan, self.folder, self.log, self.config, self.signals = plan, folder, log, plan.config, signals
        saved, faults = state.newest(folder / "state")
        files.remove_leftovers(folder)
        for fault in faults:
            log("warning", text=fault)
        self.machine = self._machine(saved)
        self.images = self._open_images()
        assert plan.train is not None and plan.train.labels is not None
        outputs = plan.outputs[plan.train.labels]
        self.loader = TrainLoader(self.images, outputs, self.config, self.machine.device)
        self.model = self.machine.place(self._model(saved is not None))
        self.objective = Classify(self.config.train).to(self.machine.device)
        named = (item for part in (self.model, self.objective) for item in part.named_parameters())
        self.optimizer = Optimizer(
            named, self.config.optim, self.config.model.depth, self.machine.device.type != "mps", self.machine.bf16
        )
        self.average = Average(self.model, self.config.train.ema) if self.config.train.ema else None
        self.clock = Clock(plan.steps, self.config.train.time_budget, self._anchors())
        self.at = _Progress()
        self.start: Start | None = None
        if saved is not None:
            self._restore(saved)
        self.metrics = Metrics(folder / "metrics.jsonl", self.at.step)
        self.writer = state.Writer()
        self.reserve = EXIT_SECONDS
        runfolder.write_status(folder, "running", self.at.step)

    # --- parts ---

    def _machine(self, saved: state.Saved | None) -> Machine:
        """The plan's machine, with the precision and threads of the state, since they change bits."""
        machine = self.plan.machine
        if saved is None:
            return machine
        then = self._known(saved)
        if then["device"] == machine.device.type:
            machine = machine.at(then["precision"], then["threads"])
        now = machine.as_json(self.config.model.tokens)
        changed = [f"{k} {then[k]} → {now[k]}" for k in now if then.get(k, now[k]) != now[k]]
        if changed:
            self.log(
                "warning", text=f"resumed on another machine ({', '.join(changed)}): the result will not be bit-equal"
            )
        return machine

    def _known(self, saved: state.Saved) -> dict[str, Any]:
        """The machine of a saved step. Raises CheckpointError where the step lacks what every vit writes."""
        try:
            then = saved.values["runtime"]
            position, seconds = saved.values["loader"]["step"], saved.values["seconds"]
            if (
                position == saved.step
                and seconds >= 0
                and then["threads"] > 0
                and {"device", "precision"} <= then.keys()
            ):
                return dict(then)
            raise ValueError(f"position {position}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"step {saved.step} in {self.folder} is not one that this vit reads: {error}",
                "start anew with --resume never",
            ) from None

    def _open_images(self) -> Images:
        plan = self.plan
        assert plan.train is not None
        view = working_view(plan.native, plan.uniform, self.config.model.img_size, self.config.augment)
        images = open_images(plan.train, view, self.config.data, self.log.progress)
        self.unreadable: dict[str, int] = {}  # images left out, by split
        if images.bad:
            self.unreadable[plan.train.name] = len(images.bad)
            position, reason = images.bad[0]
            self.log(
                "warning",
                text=f"{len(images.bad)} unreadable training images are skipped, the first is "
                f"{plan.train.describe(position)}: {reason}",
            )
        return images

    def _model(self, restored: bool) -> ViT:
        plan, config = self.plan, self.config
        if plan.parent is None or restored:
            model = ViT(config.model)
            init_weights(model, config.run.seed, config.train.head_bias)
            if config.train.init == "mimetic":
                init_mimetic(model, config.run.seed)
        else:
            description, tensors = load(plan.parent)
            _, fitting = resized(description, tensors, config.model.img_size)
            model = adapt(fitting, config.model, plan.keep_head, config.run.seed, config.train.head_bias)
        if plan.frozen:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(HEADS))
        return model

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
            self.model.load_state_dict(saved.groups["model"])
            self.objective.load_state_dict(saved.groups.get("objective", {}))
            self.optimizer.restore(saved.groups.get("optimizer", {}))
            if self.average is not None:
                self.average.weights = {k: v.to(self.machine.device) for k, v in saved.groups["average"].items()}
            if "probe" in saved.values:
                self.start = Start.of(saved.groups, saved.values)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the state of {self.folder} does not fit its configuration: {error}", "start anew with --resume never"
            ) from None
        used = max([saved.values["seconds"], *(a.seconds for a in self.clock.anchors)])
        self.at = _Progress(self.loader.restore(saved.values["loader"]), used, saved.step, saved_step=saved.step)
        self.log("note", text=f"resumed at step {saved.step}")

    # --- running ---

    def finish(self) -> Report:
        """Train to the end, evaluate, write what the run leaves. What was being saved is saved, whatever happens."""
        try:
            return self._finish()
        except Interrupted:
            self._save("saved", Interrupted.code)
            self.writer.wait()
            runfolder.write_status(self.folder, "saved", self.at.step, Interrupted.code)
            raise
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise ResourceError(
                    f"out of memory on {self.machine.device} at step {self.at.step}",
                    "evaluate fewer images at a time with --set eval.batch_size=…, or train a smaller --model",
                ) from None
            raise
        finally:
            with contextlib.suppress(Exception):  # where there is one already, it is the error to be shown
                self.writer.wait()

    def _finish(self) -> Report:
        if self.plan.fits_head and self.at.resumed_from is None:
            self._fit_head()
        else:
            self._measure_evaluation()
        if self.start is None or not self.start.alone:
            self._train()
        self._save("running")
        selection = self._select()
        scores = self._evaluate()
        self.writer.wait()
        return self._write(scores, selection)

    def _stop_if_signalled(self) -> None:
        """Raises Interrupted after a signal; `finish` then saves, if this step is not saved."""
        if self.signals.received and self.signals.is_training:
            name = signal.Signals(self.signals.received).name
            raise Interrupted(
                f"stopped by {name} at step {self.at.step}, saved in {self.folder}",
                "run the same command again to go on",
            )

    def _watch(self, what: str, done: int, total: int) -> None:
        """The progress of an evaluation."""
        self.log.progress(what, done, total)
        self._stop_if_signalled()

    def _write(self, scores: dict[str, Any] | None, selection: dict[str, Any] | None) -> Report:
        seconds = self._seconds()
        images_seen = self.at.step * self.config.train.batch_size
        self.metrics.flush()
        lines = read_lines(self.folder / "metrics.jsonl")
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        report: Report = {
            "checkpoint": str(self.folder / WEIGHTS),
            "steps": self.at.step,
            "images_seen": images_seen,
            "seconds": seconds,
            "images_per_second": statistics.median_low(rates) if rates else 0.0,
            "train_flops": self.plan.train_flops(images_seen, self._seen_until),
            "eval": scores,
            "resumed_from": self.at.resumed_from,
            "warnings": self.log.warnings,
        }
        if self.unreadable:
            report["unreadable"] = self.unreadable
        if selection is not None:
            report["selection"] = selection
        artifacts.write(self.plan, self.folder, self._weights(), report, lines)
        runfolder.write_status(self.folder, "done", self.at.step, 0)
        return report

    def _seconds(self) -> float:
        return self.at.used + time.monotonic() - self.plan.request.started

    def _train(self) -> None:
        self.at.saved_at = time.monotonic()
        self.signals.is_training = True
        self._begin_clock()
        since, then = self.at.step, time.monotonic()
        batches = self.loader.batches(self.at.step)
        with contextlib.closing(batches):
            while not self.clock.finished(self.at.step):
                if self._evaluation_is_due():
                    self._evaluate()
                    since, then = self.at.step, time.monotonic()
                update = self._step(next(batches))
                step, every = self.at.step, self.config.train.log_every_steps
                if self.clock.is_due(step, self._seconds()):
                    anchor = self.clock.estimate(step, self._seconds(), self.reserve)
                    files.append_line(self.folder / "state" / "clock.jsonl", anchor.as_json())
                if step % every == 0 or step == 1 or self.clock.finished(step):
                    now = time.monotonic()
                    rate = (step - since) * self.config.train.batch_size / max(now - then, 1e-9)
                    since, then = step, now
                    self._log_step(update, rate)
                self._stop_if_signalled()
                if self.images.damage and self.images.damage not in self.log.warnings:
                    self.log("warning", text=self.images.damage)
                if self._save_is_due():
                    self._save("running")
                self.writer.check()

    def _begin_clock(self) -> None:
        """With a time budget: measure from here. No step is faster than its matrix products at the machine's peak."""
        if self.clock.budget is None:
            return
        config = self.config
        model = replace(
            config.model, img_size=size_at(config.model, config.train.low_res, self.clock.progress(self.at.step))
        )
        operations = flops.training_flops(model, config.train.batch_size, self.plan.frozen)
        anchor = self.clock.begin(
            self.at.step, self._seconds(), self.reserve, operations / peak_flops(self.machine, side=1024)
        )
        if anchor is not None:
            files.append_line(self.folder / "state" / "clock.jsonl", anchor.as_json())

    def _evaluation_is_due(self) -> bool:
        """Between two steps. A run that goes on does it once more at the step where it begins."""
        every, step = self.config.train.eval_every_steps, self.at.step
        return every > 0 and step > 0 and step % every == 0

    def _step(self, batch: Any) -> Update:
        step, total = self.at.step, self.clock.total(self.at.step)
        self.factor = lr_factor(self.config.optim, step, self.clock.progress(step), total)
        self.optimizer.set_factor(self.factor)
        batch = self._at_its_size(batch)
        try:
            update = train_step(self.model, self.objective, self.optimizer, batch, self.config, step, self.machine)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory() from None
            raise
        except DivergedError as error:
            self._keep_last_good_step()
            kept = f"; step {self.at.saved_step} is kept" if self.at.saved_step > 0 else ""
            raise DivergedError(error.message + kept, error.hint) from None
        self.at.step = step + 1
        if self.average is not None:
            self.average.update(self.model, step)
        return update

    def _at_its_size(self, batch: Batch) -> Batch:
        """At a smaller size in the first part of the run (train.low_res); where images grow, steps get slower."""
        model, low_res, step = self.config.model, self.config.train.low_res, self.at.step
        if not low_res:
            return batch
        size = size_at(model, low_res, self.clock.progress(step))
        before = size_at(model, low_res, self.clock.progress(max(0, step - 1)))
        if size != before:
            anchor = self.clock.change_speed(step, self._seconds(), slower(model, before, size))
            if anchor is not None:
                files.append_line(self.folder / "state" / "clock.jsonl", anchor.as_json())
        self.model.also_takes = size
        return batch if size == model.img_size else batch.resized(size)

    def _seen_until(self, progress: float) -> float:
        """The part of the steps so far that were done before a part `progress` of the run."""
        return bisect_left(range(self.at.step), progress, key=self.clock.progress) / max(1, self.at.step)

    def _keep_last_good_step(self) -> None:
        """Where nothing is saved yet, save the weights before the update that was not made, unless they are spoilt."""
        if self.at.saved_step < 0 < self.at.step:
            with contextlib.suppress(DivergedError):
                self._save("failed", DivergedError.code)
        self.writer.wait()

    def _out_of_memory(self) -> ResourceError:
        """With the number of micro-batches that needs less than half of the memory, as far as arithmetic tells."""
        train = self.config.train

        def activations(accumulate: int) -> int:
            changed = replace(self.config, train=replace(train, accumulate=accumulate))
            return replace(self.plan, config=changed).memory().activations

        fitting = [
            n
            for n in range(train.accumulate + 1, train.batch_size + 1)
            if train.batch_size % n == 0 and 2 * activations(n) <= activations(train.accumulate)
        ]
        images = train.batch_size // train.accumulate
        return ResourceError(
            f"out of memory on {self.machine.device} with {images} image{'s' * (images > 1)} at a time",
            f"run again with --set train.accumulate={fitting[0]}: the result is the same"
            if fitting
            else "take a smaller --model or --img-size, or --set run.attention=recompute",
        )

    def _log_step(self, update: Update, rate: float) -> None:
        step = self.at.step
        self._record(
            "step",
            step=step,
            epoch=self.loader.epoch(step),
            images_seen=step * self.config.train.batch_size,
            loss=update.loss,
            lr=self.config.optim.lr * self.factor,
            grad_norm=update.grad_norm,
            images_per_second=rate,
            seconds=self._seconds(),
            total=self.clock.total(step),
            **update.metrics,
        )

    def _record(self, event: str, **fields: Any) -> None:
        """An event that is a line of metrics.jsonl as well."""
        delayed = self.metrics.add(fields)
        if delayed:
            self.log("warning", text=delayed)
        self.log(event, **fields)

    def _save_is_due(self) -> bool:
        every, seconds = self.config.train.save_every_steps, self.config.train.save_every_seconds
        return (every > 0 and self.at.step % every == 0) or (
            seconds > 0 and time.monotonic() - self.at.saved_at >= seconds
        )

    def _save(self, status: str, code: int | None = None) -> None:
        """Begin to write this step, if it is not written yet, and `status` after it; training goes on meanwhile.

        Raises DivergedError where a number to be saved is not finite: then the step before it stays the newest.
        """
        if self.at.saved_step == self.at.step:
            return
        started = time.monotonic()
        self.writer.wait()
        saved, step = self._state(), self.at.step
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

    def _state(self) -> state.Saved:
        groups: dict[str, Tensors] = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state()}
        if self.objective.state_dict():
            groups["objective"] = dict(self.objective.state_dict())
        if self.average is not None:
            groups["average"] = self.average.weights
        values: dict[str, Any] = {
            "loader": self.loader.state(self.at.step),
            "seconds": self._seconds(),
            "runtime": self.machine.as_json(self.config.model.tokens),
        }
        if self.start is not None:
            groups |= self.start.groups()
            values["probe"] = self.start.values()
        return state.Saved(self.at.step, groups, values)

    # --- measuring ---

    def _weights(self) -> Tensors:
        return self.average.weights if self.average is not None else dict(self.model.state_dict())

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[ViT]:
        """The model with the weights that the run gives away."""
        if self.average is None:
            yield self.model
            return
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    def _score(self, split: Split, progress: Progress | None = None) -> Evaluation:
        """The weights that the run gives away, on a split."""
        with self._averaged() as model:
            return evaluate(
                model,
                split,
                self.plan.outputs,
                self.config.eval,
                self.config.data,
                device=self.machine.device,
                bf16=self.machine.bf16,
                progress=progress or self._watch,
            )

    @property
    def _held_out(self) -> Split | None:
        """What the run reports on, if it is labelled."""
        part = self.plan.held_out
        return part if part is not None and len(part) and part.labels is not None else None

    def _evaluate(self) -> dict[str, Any] | None:
        if self._held_out is None:
            return None
        result = self._score(self._held_out)
        scores = {k: result.metrics[k] for k in ("split", "top1", "top5", "loss", "ece", "n")}
        if result.unreadable:
            self.unreadable[self._held_out.name] = result.unreadable
            self.log("warning", text=f"{result.unreadable} unreadable images are left out of the evaluation")
        self._record(
            "eval",
            step=self.at.step,
            epoch=self.loader.epoch(self.at.step),
            images_seen=self.at.step * self.config.train.batch_size,
            seconds=self._seconds(),
            eval=scores,
        )
        return scores

    def _measure_evaluation(self) -> None:
        """With a time budget: keep back what the evaluation at the end takes, measured on some of its images."""
        sample = self._held_out or self.plan.dev
        if self.config.train.time_budget is None or self.clock.finished(self.at.step) or sample is None:
            return
        sample = sample.subset(np.arange(min(_TIMED_IMAGES, len(sample))))
        first = sample.subset(np.arange(min(64, len(sample))))
        self._score(first, silent)  # slower than the rest
        started = time.monotonic()
        self._score(sample, silent)
        self.reserve = self._needed_at_the_end(len(sample) / (time.monotonic() - started))
        if self.at.resumed_from is None:
            self._check_time(self.reserve)

    def _check_time(self, to_come: float) -> None:
        """Raises UsageError where the budget is over before `to_come` seconds are."""
        budget, needed = self.config.train.time_budget, self._seconds() + to_come
        if budget is not None and needed > budget:
            raise UsageError(
                f"--time-budget {budget:g}s leaves no time to train: start and evaluation take {needed:.0f} s",
                "give more time",
            )

    def _needed_at_the_end(self, rate: float, selects: bool = True) -> float:
        """Seconds: the held-out images once, the dev part for each candidate but the probe, which is scored before that."""
        images = len(self._held_out or ()) + (2 * len(self._chooses_by or ()) if selects else 0)
        return EXIT_SECONDS + _EVALUATION_MARGIN * images / rate

    # --- the linear probe that a new head starts from ---

    def _fit_head(self) -> None:
        """Fit it on all images, with a time budget on as many as leave time to evaluate, and decide whether tuning pays.

        Features come first, since no other use of the time is worth as much; they also tell how fast images are.
        """
        budget, pace, last = self.config.train.time_budget, Pace(), 0

        def enough(images: int) -> bool:
            nonlocal last
            rate, batch, last = pace.of(images), images - last, images
            if budget is None or not pace.is_steady or images < 10 * len(self.plan.classes):
                return False
            fits = images * self.config.model.head_inputs * len(self.plan.classes) / _PROBE_WORK_A_SECOND
            at_the_end = self._needed_at_the_end(rate, selects=False)
            if self._seconds() + (batch + len(self.plan.dev or ())) / rate + fits + at_the_end < budget:
                return False
            self._check_time(at_the_end)
            return True

        start = fit_head(self.model, self.plan, self.machine, self._watch, enough)
        steps = math.inf
        if budget is not None:
            self.reserve = self._needed_at_the_end(pace.rate)
            left = budget - self._seconds() - self.reserve
            steps = max(0.0, left * pace.rate / (_STEP_OVER_PASS * self.config.train.batch_size))
        alone = steps < _FEWEST_STEPS or self.config.train.keep == "probe"
        self.start = replace(start, alone=alone)
        on = "" if start.dev_top1 is None else f", top-1 {start.dev_top1:.4f} on the dev part"
        self.log("note", text=f"head: a linear probe of {start.images:,} images with l2 {start.l2:g}{on}")
        if alone and self.config.train.keep != "probe":
            self.log(
                "note", text=f"the linear probe is kept: the time budget has room for about {steps:.0f} more steps"
            )

    @property
    def _chooses_by(self) -> Split | None:
        """The dev part, where the choice of weights is open."""
        return self.plan.dev if self.plan.fits_head and self.config.train.keep == "auto" else None

    def _select(self) -> dict[str, Any] | None:
        """The mean of the tuned weights and the probe's, or either of the two where there is a dev part to say beyond noise
        that it is better. Where there is none, it is decided beforehand.

        The mean lies between the two in what it forgot and what it learned, and a small dev part that scored three
        candidates alike would often take a worse one. Where it chose, what is given away has the probe that was fitted on it too.
        Where the run reports on the dev part, as the points of a sweep do, it gives away tuned weights, fitted without that
        part, and `choice` says what a run on all images is to keep.
        """
        start, dev = self.start, self._chooses_by
        if start is None:
            return None
        tuned = {name: tensor.clone() for name, tensor in self._weights().items()}
        self.average = None
        frozen = self._model(restored=False).state_dict()

        def candidates(head: Tensors) -> dict[str, Tensors]:
            probe = {**frozen, **head}
            return {"finetuned": tuned, "average": halfway(tuned, probe), "probe": probe}

        reports = self.config.train.report_on == "dev"
        if start.alone or dev is None:
            kept = "probe" if start.alone else self._kept_without_dev()
            self.model.load_state_dict(candidates(start.head if reports else start.whole)[kept])
            scored = {"n": len(dev), "dev_top1": {"probe": start.dev_top1}} if start.alone and dev is not None else {}
            return {"kept": kept, **({"choice": kept} if reports else {}), **scored}
        measured = candidates(start.head)
        right, targets = self._compared(dev, measured)
        kept, choice = self._chosen(right)
        self.model.load_state_dict(measured[kept] if reports else candidates(start.whole)[choice])
        top1 = {name: float(correct.mean()) for name, correct in right.items()}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in top1.items())
        if choice == "probe":
            self.log(
                "warning", text=f"the linear probe is kept, since tuning made it worse; top-1 on the dev part: {scores}"
            )
        else:
            self.log("note", text=f"kept: {choice}; top-1 on the dev part: {scores}")
        return {
            "kept": kept if reports else choice,
            **({"choice": choice} if reports else {}),
            "n": len(dev),
            "dev_top1": top1,
            "dev_balanced_top1": {name: balanced(correct, targets) for name, correct in right.items()},
        }

    def _kept_without_dev(self) -> str:
        """What train.keep names, else what is best as a rule: of weights that go on training, with Muon, the tuned ones, since
        what they knew before is worth little yet; of trained ones the mean.

        300 steps of `small` on five classes of CIFAR-10, then 300 on the others, top-1 on a dev part: with 25,000 images
        tuned 0.862, mean 0.835, probe 0.762; with 5,000 0.854, 0.806, 0.770; with 1,000 0.80, 0.76, 0.64. DeiT-Ti on five
        images of each of ten classes, 60 steps, 300 held out: 0.727, 0.727, 0.703.
        """
        keep = self.config.train.keep
        if keep != "auto":
            return keep
        return "finetuned" if self.config.optim.name == "muon" else "average"

    def _compared(
        self, dev: Split, measured: dict[str, Tensors]
    ) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.int64]]:
        """(which images each candidate classifies rightly, the classes of the images)."""
        assert self.start is not None
        right, targets = {}, np.zeros(0, np.int64)
        for name, tensors in measured.items():
            if name == "probe" and self.start.dev_right is not None:
                right[name] = self.start.dev_right
            else:
                right[name], targets = self._right_on(dev, tensors)
        return right, targets

    @staticmethod
    def _chosen(right: dict[str, NDArray[np.bool_]]) -> tuple[str, str]:
        """(the better one of the mean and the tuned weights, the best of all three), the mean unless beyond noise."""
        kept = "finetuned" if better_beyond_noise(right["finetuned"], right["average"]) else "average"
        return kept, "probe" if better_beyond_noise(right["probe"], right[kept]) else kept

    def _right_on(self, split: Split, weights: Tensors) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which images these weights classify rightly, and their classes."""
        self.model.load_state_dict(weights)
        evaluation = self._score(split)
        return evaluation.top[:, 0] == evaluation.targets, evaluation.targets
