"""What a run measures of itself, and how much of a time budget that takes."""

from __future__ import annotations

import time
from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.data.cache import Images
from vitcli.data.split import Split
from vitcli.errors import UsageError
from vitcli.evaluate.evaluator import Evaluation, evaluate
from vitcli.evaluate.sets import SetEvaluation
from vitcli.plots import as_shown
from vitcli.progress import Progress, silent
from vitcli.text import last_names
from vitcli.train.objectives.base import Objective
from vitcli.train.page import MOST_MISTAKES, Mistake, Shown
from vitcli.train.session import Session

EXIT_SECONDS, EXIT_SECONDS_OF_A_CARD = 2.5, 6.0
"""What pictures, the report and the interpreter's end take after the evaluation, kept back from a time budget; with a card it is more
(docs/gpu.md)."""
_EVALUATION_MARGIN = 1.1
"""Times its measured length that an evaluation is given: one of 10,000 images at 48 px took 25 s in place of 23."""
_TIMED_IMAGES = 512
_GLANCE_PART = 20
"""Of the time between two evaluations, the part of the time that one may take: a twentieth."""
_SHOWN = 8


class Scoring:
    """`reserve` are the seconds of a time budget that are kept back for the end."""

    def __init__(self, session: Session) -> None:
        self.session, self.plan, self.config = session, session.plan, session.config
        self.exit_seconds = EXIT_SECONDS if session.machine.device.type == "cpu" else EXIT_SECONDS_OF_A_CARD
        self.reserve = self.exit_seconds
        self.glanced_at, self.glance_seconds = time.monotonic(), 0.0
        self.last: Evaluation | SetEvaluation | None = None

    @property
    def held_out(self) -> Split | None:
        """What the run reports on, if it is labelled."""
        part = self.plan.held_out
        return part if part is not None and len(part) and part.is_labelled else None

    @property
    def chooses_by(self) -> Split | None:
        """The dev part, where the choice of weights is open."""
        return self.plan.dev if self.plan.fits_head and self.config.train.keep == "auto" else None

    def evaluation(self, split: Split) -> Evaluation:
        """The weights that the run leaves, as a classifier."""
        with self.session.trainer.averaged() as model:
            found = evaluate(self.session.inference(model), split, self.plan.outputs)
        self.session.left_out(split, found.unreadable)
        return found

    def scores(self, split: Split, progress: Progress | None = None) -> dict[str, Any] | None:
        """The weights that the run leaves, as their objective measures them."""
        with self.session.trainer.averaged() as model:
            inference = self.session.inference(model, progress)
            return self.session.trainer.objective.scores(inference, split, self.plan.outputs)

    def shown(self) -> Shown:
        """What the run shows beside its scores."""
        return Shown(self.pictures(), self.last, self.mistakes())

    def mistakes(self) -> list[Mistake]:
        """The images of the last evaluation that are taken for another class, those with the greatest loss first, as the model sees them."""
        found, part = self.last, self.held_out
        if not isinstance(found, Evaluation) or part is None:
            return []
        wrong = np.flatnonzero(found.top[:, 0] != found.targets)
        worst = wrong[np.argsort(-found.losses[wrong], kind="stable")][:MOST_MISTAKES]
        view = self.session.inference(self.session.trainer.model, silent).view
        images = Images(
            split=part, view=view, config=self.config.data, valid=found.positions, bad=[], cached=None
        )  # so few are decoded anew, into no cache
        pixels = as_shown(images.read(found.positions[worst])[0].transpose(0, 2, 3, 1)) if len(worst) else ()
        return [
            Mistake(
                image,
                last_names(part.path_of(int(found.positions[i]))),
                int(found.targets[i]),
                int(found.top[i, 0]),
                float(found.scores[i, 0]),
            )
            for image, i in zip(pixels, worst.tolist(), strict=True)
        ]

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """What the objective shows of a few images, held out where there are any."""
        part = self.plan.held_out if self.plan.held_out is not None and len(self.plan.held_out) else self.plan.train
        objective = self.session.trainer.objective
        if part is None or type(objective).pictures is Objective.pictures:
            return {}
        with self.session.trainer.averaged() as model:
            inference = self.session.inference(model, silent)
            images = inference.open(part.subset(np.unique(np.linspace(0, len(part) - 1, _SHOWN).astype(np.int64))))
            found: dict[str, NDArray[np.uint8]] = {}
            with inference.running():
                for _, pixels in inference.batches(images, images.valid):
                    found = found or objective.eval().pictures(model, pixels)
        return found

    def evaluate(self) -> dict[str, Any] | None:
        """The report's scores, which are a line of metrics.jsonl as well."""
        session, part = self.session, self.held_out
        started = time.monotonic()
        scores = self.scores(part) if part is not None else None
        self.glanced_at = time.monotonic()
        self.glance_seconds = self.glanced_at - started
        if scores is None or part is None:
            return None
        unreadable, self.last = scores.pop("unreadable", 0), scores.pop("evaluation", None)
        if unreadable:
            session.unreadable[part.name] = unreadable
            session.log("warning", text=f"{unreadable} unreadable images are left out of the evaluation")
        session.measured("eval", scores)
        return scores

    def glance_is_due(self) -> bool:
        """Whether it is time to see how the run does on held-out images, between two steps; never more than a twentieth of the time.

        What the first one takes is what training on as many images took.
        """
        least, at, part = self.config.train.eval_every_seconds, self.session.at, self.held_out
        waited = time.monotonic() - self.glanced_at
        if not least or waited < least or part is None or not at.step or self.config.train.report_on != "held-out":
            return False
        cost = self.glance_seconds
        if not cost:
            trained = max(1, at.step - (at.resumed_from or 0)) * self.config.train.batch_size
            cost = len(part) * waited / trained
        return waited >= _GLANCE_PART * cost

    # --- with a time budget ---

    def measure(self) -> None:
        """Keep back what the evaluation at the end takes, measured on some of its images."""
        sample, session = self.held_out or self.plan.dev, self.session
        if self.config.train.time_budget is None or session.clock.finished(session.at.step) or sample is None:
            return
        sample = sample.subset(np.arange(min(_TIMED_IMAGES, len(sample))))
        first = sample.subset(np.arange(min(64, len(sample))))
        self.scores(first, silent)  # slower than the rest
        started = time.monotonic()
        self.scores(sample, silent)
        self.reserve = self.needed_at_the_end(len(sample) / (time.monotonic() - started))
        if session.at.resumed_from is None:
            self.check_time(self.reserve)

    def check_time(self, to_come: float) -> None:
        """Raises UsageError where the budget is over before `to_come` seconds are."""
        budget, needed = self.config.train.time_budget, self.session.seconds() + to_come
        if budget is not None and needed > budget:
            raise UsageError(
                f"--time-budget {budget:g}s leaves no time to train: start and evaluation take {needed:.0f} s",
                "give more time",
            )

    def needed_at_the_end(self, rate: float, selects: bool = True) -> float:
        """Seconds: the held-out images once, the dev part for each candidate but the probe, which is scored before that."""
        none: Sized = ()
        images = len(self.held_out or none) + MOST_MISTAKES + (2 * len(self.chooses_by or none) if selects else 0)
        return self.exit_seconds + _EVALUATION_MARGIN * images / rate
