"""The loop of a run: from its session to its report, told from top to bottom."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import torch

from vitcli import files, host, world
from vitcli.data.batch import Batch
from vitcli.errors import DataError, DivergedError, Interrupted, ResourceError, VitError, is_out_of_memory
from vitcli.machine import peak_flops
from vitcli.runs import WEIGHTS
from vitcli.train import artifacts, runfolder, state
from vitcli.train.clock import Anchor
from vitcli.train.execution import Execution
from vitcli.train.following import Step, Train, everywhere_replaced, send_weights
from vitcli.train.monitor import Monitor
from vitcli.train.optim import lr_factor
from vitcli.train.page import Shown
from vitcli.train.progressive import size_at, slower
from vitcli.train.runlog import read_lines
from vitcli.train.scoring import Scoring
from vitcli.train.selection import Selection
from vitcli.train.session import Session
from vitcli.train.step import DIVERGED_HINT, Update, train_step

Report = dict[str, Any]

_LINES = 20
"""Steps are logged as often as makes about so many lines until then, up to train.log_every_steps apart."""
_LOOK_EVERY = 10
"""Steps after which a device that the host does not wait for is asked whether its numbers are still finite."""
_TOLD_EVERY_SECONDS = 0.5
"""Between two words of how far training is, where no step is logged."""


class Loop:
    """Steps, and what happens between them."""

    def __init__(self, session: Session) -> None:
        self.session, self.plan, self.config = session, session.plan, session.config
        self.scoring = Scoring(session)
        self.selection = Selection(self.scoring)
        self.told_at, self.told_retries = 0.0, 0

    def finish(self) -> Report:
        """Train to the end, evaluate, write what the run leaves. What was being saved is saved, whatever happens."""
        session = self.session
        try:
            return self._finish()
        except Interrupted:
            self._check()
            session.save("saved", Interrupted.code)
            session.writer.wait()
            runfolder.write_status(session.folder, "saved", session.at.step, Interrupted.code)
            raise
        except DataError as error:  # of images that can no longer be read: what was learnt is not lost
            with contextlib.suppress(VitError):
                self._check()
                if session.at.step > 0:
                    session.save("failed", error.code)
            raise
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise ResourceError(
                    f"out of memory on {session.machine.device} at step {session.at.step}",
                    "evaluate fewer images at a time with --set eval.batch_size=…, or train a smaller --model",
                ) from None
            raise
        finally:
            with contextlib.suppress(Exception):  # where there is one already, it is the error to be shown
                session.writer.wait()

    def _finish(self) -> Report:
        # a new head begins as a linear probe; other runs only measure how long their evaluation takes
        if self.plan.fits_head and self.session.at.resumed_from is None:
            self.selection.fit_head()
        else:
            self.scoring.measure()
        # the steps, unless the probe is the result
        if self.session.start is None or not self.session.start.alone:
            self._train()
        self.session.save("running")
        self.session.trainer.unshard()
        replaced, stream = everywhere_replaced(self.session), self.plan.stream
        if replaced and stream is not None:
            self.session.unreadable[stream.name] = len(replaced)
        # the final weights, their scores, and what people and other tools read
        selection = self.selection.select()
        scores = self.scoring.evaluate()
        self.session.writer.wait()
        return self._write(scores, selection)

    def _train(self) -> None:
        session, clock, at = self.session, self.session.clock, self.session.at
        at.saved_at = time.monotonic()
        session.signals.is_training = True
        self._begin_clock()
        self.execution = Execution(
            session.trainer,
            lambda *arguments: train_step(*arguments),
            self._seconds_to_come,
            lambda text: session.log("note", text=text),
        )
        world.told(Train(at.step))
        send_weights(session.trainer)
        monitor = None if session.trainer.objective.needs_labels else Monitor(session)
        since, then = at.step, time.monotonic()
        batches = session.loader.batches(at.step)
        with contextlib.closing(batches):
            while not clock.finished(at.step):
                # between two steps: an evaluation, whose time is not the steps'
                if self._evaluation_is_due():
                    self._check()
                    self.scoring.evaluate()
                    since, then = at.step, time.monotonic()
                if monitor is not None and monitor.look_if_due():
                    since, then = at.step, time.monotonic()
                update = self._step(next(batches))
                # how far the run is, of which the next learning rate follows
                if self.execution.settling:
                    clock.forget(at.step, session.seconds())
                elif clock.is_due(at.step, session.seconds()):
                    self._check()
                    self._keep(clock.estimate(at.step, session.seconds(), self.scoring.reserve))
                if self._line_is_due():
                    self._check()  # and all steps so far are done, not only launched
                    now = time.monotonic()
                    rate = (at.step - since) * self.config.train.batch_size / max(now - then, 1e-9)
                    since, then = at.step, now
                    self._log_step(update, rate)
                    self.told_at = now
                elif time.monotonic() - self.told_at >= _TOLD_EVERY_SECONDS:
                    self.told_at = time.monotonic()
                    session.log.progress("training", at.step, clock.total(at.step))
                # what came from outside, and what is to be kept
                if at.step % _LOOK_EVERY == 0:
                    self._check()
                session.stop_if_signalled()
                self._tell_of_retries()
                if session.images.damage and session.images.damage not in session.log.warnings:
                    session.log("warning", text=session.images.damage)
                if self._save_is_due():
                    self._check()
                    session.save("running")
                session.writer.check()
        self._check()
        self.execution.close()
        if monitor is not None:
            monitor.look_if_due()

    # --- time ---

    def _seconds_to_come(self) -> float:
        """Of training, by the speed of the steps so far."""
        session, step = self.session, self.session.at.step
        if session.clock.budget is not None:
            return max(0.0, session.clock.budget - session.seconds() - self.scoring.reserve)
        return (session.clock.total(step) - step) * self.execution.timing.done

    def _begin_clock(self) -> None:
        """With a time budget: measure from here. No step is faster than its matrix products at the machine's peak."""
        session, config = self.session, self.config
        if session.clock.budget is None:
            return
        progress = session.clock.progress(session.at.step)
        model = replace(config.model, img_size=size_at(config.model, config.train.low_res, progress))
        objective = session.trainer.objective
        operations = objective.training_flops(replace(config, model=model), config.train.batch_size)
        least = operations / peak_flops(session.machine, side=1024)
        self._keep(session.clock.begin(session.at.step, session.seconds(), self.scoring.reserve, least))

    def _keep(self, anchor: Anchor | None) -> None:
        """A resumed run takes the same steps by it."""
        if anchor is not None:
            files.append_line(self.session.folder / "state" / "clock.jsonl", anchor.as_json())

    def _evaluation_is_due(self) -> bool:
        """Between two steps. A run that is resumed does it once more at the step where it begins."""
        every, step = self.config.train.eval_every_steps, self.session.at.step
        return (every > 0 and step > 0 and step % every == 0) or self.scoring.glance_is_due()

    def _line_is_due(self) -> bool:
        """Of metrics.jsonl. The first steps have more of them, so that a short run has a curve, too."""
        step = self.session.at.step
        every = min(self.config.train.log_every_steps, max(1, step // _LINES))
        return step % every == 0 or step == 1 or self.session.clock.finished(step)

    def _save_is_due(self) -> bool:
        every, seconds = self.config.train.save_every_steps, self.config.train.save_every_seconds
        at = self.session.at
        return (every > 0 and at.step % every == 0) or (seconds > 0 and time.monotonic() - at.saved_at >= seconds)

    # --- a step ---

    def _step(self, batch: Batch) -> Update:
        session, trainer, step = self.session, self.session.trainer, self.session.at.step
        progress = session.clock.progress(step)
        self.factor = lr_factor(self.config.optim, step, progress, session.clock.total(step))
        trainer.optimizer.set_factor(self.factor)
        batch = self._at_its_size(batch)
        height, width = batch.images.shape[2:]
        size = (int(height), int(width))
        try:
            with trainer.model.taking(size):
                world.told(Step(self.factor, progress, size, bool(trainer.machine.compile)))
                update = self.execution(batch, step)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory() from None
            raise
        if host.can_read(trainer.watch.admitted):
            self._check()
        session.at.step = step + 1
        trainer.after_update(step, progress)
        return update

    def _check(self) -> None:
        """Raises DivergedError where an update was refused, with the weights before it; waits for the device."""
        session = self.session
        if host.read(session.trainer.watch.admitted):
            return
        failure = session.trainer.watch.failure()
        assert failure is not None
        session.at.step = failure.step
        ids = ", ".join(str(i) for i in session.loader.ids(failure.step)[:8].tolist())
        session.keep_last_good_step()
        kept = f"; step {session.at.saved_step} is kept" if session.at.saved_step > 0 else ""
        raise DivergedError(
            f"the loss is {failure.loss} and the gradient's norm {failure.grad_norm} at step {failure.step + 1} (samples {ids} …){kept}",
            DIVERGED_HINT,
        )

    def _at_its_size(self, batch: Batch) -> Batch:
        """At a smaller size in the first part of the run (train.low_res); where images grow, steps get slower."""
        session, model, low_res = self.session, self.config.model, self.config.train.low_res
        if not low_res:
            return batch
        step, clock = session.at.step, session.clock
        size = size_at(model, low_res, clock.progress(step))
        before = size_at(model, low_res, clock.progress(max(0, step - 1)))
        if size != before:
            self._keep(clock.change_speed(step, session.seconds(), slower(model, before, size)))
        return batch if size == model.img_size else batch.resized(size)

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
            f"out of memory on {self.session.machine.device} with {images} image{'s' * (images > 1)} at a time",
            f"run again with --set train.accumulate={fitting[0]}: the result is the same"
            if fitting
            else "take a smaller --model or --img-size, or --set run.attention=recompute",
        )

    # --- what is told ---

    def _tell_of_retries(self) -> None:
        """Of reads from elsewhere that had to be tried again, whenever they are twice as many as before."""
        retries = self.session.loader.told().get("read_retries", 0)
        if retries >= max(1, 2 * self.told_retries):
            self.told_retries = retries
            self.session.log("note", text=f"stream: {retries:,} reads tried again so far")

    def _log_step(self, update: Update, rate: float) -> None:
        session = self.session
        step = session.at.step
        loss, norm, *metrics = torch.stack([update.loss.float(), update.grad_norm, *update.metrics.values()]).tolist()
        session.record(
            "step",
            step=step,
            epoch=session.loader.epoch(step),
            images_seen=step * self.config.train.batch_size,
            loss=loss,
            lr=self.config.optim.lr * self.factor,
            grad_norm=norm,
            images_per_second=rate,
            seconds=session.seconds(),
            total=session.clock.total(step),
            **session.loader.told(),
            metrics={
                name: number if math.isfinite(number) else None
                for name, number in zip(update.metrics, metrics, strict=True)
            },
        )

    def _write(self, scores: dict[str, Any] | None, selection: dict[str, Any] | None) -> Report:
        session, at = self.session, self.session.at
        seconds = session.seconds()
        images_seen = at.step * self.config.train.batch_size
        session.metrics.flush()
        lines = read_lines(session.folder / "metrics.jsonl")
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        report: Report = {
            "checkpoint": str(session.folder / WEIGHTS),
            "steps": at.step,
            "images_seen": images_seen,
            "seconds": seconds,
            "images_per_second": statistics.median_low(rates) if rates else 0.0,
            "train_flops": self.plan.train_flops(images_seen, self._seen_until),
            "eval": scores,
            "resumed_from": at.resumed_from,
            "warnings": session.log.warnings,
        }
        if session.unreadable:
            report["unreadable"] = session.unreadable
        report.update(session.trainer.objective.told(self.plan.classes))
        if selection is not None:
            report["selection"] = selection
        shown = artifacts.contained("its pictures", session.log, self.scoring.shown) or Shown(
            evaluation=self.scoring.last
        )
        artifacts.write(self.plan, session.folder, session.trainer.weights(), report, lines, shown, session.log)
        runfolder.write_status(session.folder, "done", at.step, 0)
        if not self.config.train.keep_state:
            state.discard(session.folder / "state")
        session.log("report", report=report)
        return report

    def _seen_until(self, progress: float) -> float:
        """The part of the steps so far that were done before a part `progress` of the run."""
        step, clock = self.session.at.step, self.session.clock
        return bisect_left(range(step), progress, key=clock.progress) / max(1, step)
