"""The linear probe that a new head begins as, and which of the weights a run leaves: the probe's, the tuned ones, or their mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.data.split import Split
from vitcli.train.head import Pace, balanced, better_beyond_noise, fit_head, halfway
from vitcli.train.scoring import Scoring
from vitcli.weights.checkpoint import Tensors

_PROBE_WORK_A_SECOND = 1.3e6
"""Products of images, features and classes a second that choosing and fitting a linear probe works off: pets, 914 x 192 x
37, takes 5 s with its nine penalties and five folds."""
_STEP_OVER_PASS = 4.0
"""Times as long as an image's features that a step takes for each of its images."""
_FEWEST_STEPS = 30
"""Updates below which tuning moves trained weights too little to be told from chance."""


class Selection:
    """Of a run that makes a new head; of another one it does nothing."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring, self.session = scoring, scoring.session
        self.plan, self.config = scoring.plan, scoring.config

    def fit_head(self) -> None:
        """Fit it on all images, with a time budget on as many as leave time to evaluate, and decide whether tuning pays.

        Features come first, since no other use of the time is worth as much; they also tell how fast images are.
        """
        budget, pace, last = self.config.train.time_budget, Pace(), 0

        def enough(images: int) -> bool:
            nonlocal last
            rate, batch, last = pace.of(images), images - last, images
            if budget is None or not pace.is_steady or images < 10 * len(self.plan.classes):
                return False
            fits = images * self.config.model.features * len(self.plan.classes) / _PROBE_WORK_A_SECOND
            at_the_end = self.scoring.needed_at_the_end(rate, selects=False)
            if self.session.seconds() + (batch + len(self.plan.dev or ())) / rate + fits + at_the_end < budget:
                return False
            self.scoring.check_time(at_the_end)
            return True

        start = fit_head(self.session.inference(self.session.trainer.model), self.plan, enough)
        if start.dev_right is not None and self.plan.dev is not None:
            self.session.left_out(self.plan.dev, len(self.plan.dev) - len(start.dev_right))
        steps = math.inf
        if budget is not None:
            self.scoring.reserve = self.scoring.needed_at_the_end(pace.rate)
            left = budget - self.session.seconds() - self.scoring.reserve
            steps = max(0.0, left * pace.rate / (_STEP_OVER_PASS * self.config.train.batch_size))
        alone = steps < _FEWEST_STEPS or self.config.train.keep == "probe"
        self.session.start = replace(start, alone=alone)
        on = "" if start.dev_top1 is None else f", top-1 {start.dev_top1:.4f} on the dev part"
        self.session.log("note", text=f"head: a linear probe of {start.images:,} images with l2 {start.l2:g}{on}")
        if alone and self.config.train.keep != "probe":
            self.session.log(
                "note", text=f"the linear probe is kept: the time budget has room for about {steps:.0f} more steps"
            )

    def select(self) -> dict[str, Any] | None:
        """The mean of the tuned weights and the probe's, or either of the two where there is a dev part to say beyond noise
        that it is better. Where there is none, it is decided beforehand.

        The mean lies between the two in what it forgot and what it learned, and a small dev part that scored three
        candidates alike would often take a worse one. Where it chose, what the run leaves has the probe that was fitted on it too.
        Where the run reports on the dev part, as the points of a sweep do, it leaves tuned weights, fitted without that
        part, and `choice` says what a run on all images is to keep.
        """
        start, dev = self.session.start, self.scoring.chooses_by
        if start is None:
            return None
        tuned = {name: tensor.clone() for name, tensor in self.session.trainer.weights().items()}
        frozen = self.session.initial_model().state_dict()

        def candidates(head: Tensors) -> dict[str, Tensors]:
            probe = {**frozen, **head}
            return {"finetuned": tuned, "average": halfway(tuned, probe), "probe": probe}

        reports = self.config.train.report_on == "dev"
        if start.alone or dev is None:
            kept = "probe" if start.alone else self._kept_without_dev()
            self.session.trainer.settle(candidates(start.head if reports else start.whole)[kept])
            scored = {"n": len(dev), "dev_top1": {"probe": start.dev_top1}} if start.alone and dev is not None else {}
            return {"kept": kept, **({"choice": kept} if reports else {}), **scored}
        measured = candidates(start.head)
        right, targets = self._compared(dev, measured)
        kept, choice = self._chosen(right)
        self.session.trainer.settle(measured[kept] if reports else candidates(start.whole)[choice])
        top1 = {name: float(correct.mean()) for name, correct in right.items()}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in top1.items())
        if choice == "probe":
            self.session.log(
                "warning", text=f"the linear probe is kept, since tuning made it worse; top-1 on the dev part: {scores}"
            )
        else:
            self.session.log("note", text=f"kept: {choice}; top-1 on the dev part: {scores}")
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
        assert self.session.start is not None
        right, targets = {}, np.zeros(0, np.int64)
        for name, tensors in measured.items():
            if name == "probe" and self.session.start.dev_right is not None:
                right[name] = self.session.start.dev_right
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
        self.session.trainer.settle(weights)
        evaluation = self.scoring.evaluation(split)
        return evaluation.top[:, 0] == evaluation.targets, evaluation.targets
