"""What a run without labels tells of itself while it learns: whether its embeddings collapse, and what a probe makes of them.

Of training images alone: half of a sample of them is what k-NN and a linear probe learn from, where they have labels, the
other half what these are measured on. Nothing of it reaches the weights.
"""

from __future__ import annotations

import time

import numpy as np

from vitcli.data.split import Split, stratified
from vitcli.evaluate.features import Features, embeddings_of
from vitcli.evaluate.nearest import Embeddings, nearest, unit
from vitcli.randomness import permutation
from vitcli.train.session import Session

_LEAST, _MOST = 64, 1000
"""Images that a look takes."""
_SHARE = 0.02
"""Of a run that looking may take: of its images, an evaluation being a third of a step; of its time, where a budget decides how many
those are, and a look waits that would take more.
"""
_NEIGHBOURS = 20
_RIDGE = 0.1
"""Penalty of the linear probe, for standardised features and a mean over images."""
_LEAST_RANK, _LEAST_SPREAD, _FEW = 2.0, 1e-3, 16
"""Of embeddings that say something, and the images from which these can be told. One class needs no more than a direction, so a rank
of two is little for any data; a mean that all share makes a spread small, so that only a vanishing one says much.
"""
_YOUNG = 0.2
"""Part of a run up to which embeddings may still be of one piece, as those of random weights nearly are."""


class Monitor:
    """Looks `train.monitor` times in a run, at equal parts of it."""

    def __init__(self, session: Session) -> None:
        self.session, self.times = session, session.config.train.monitor
        self.looked = self._place(max(0, session.at.step - 1))
        self.warned = False
        self.spent = 0.0

    def _place(self, step: int) -> int:
        return int(self.session.clock.progress(step) * self.times)

    def look_if_due(self) -> bool:
        """Record what there is to see, where it is time. Returns whether it was."""
        place = self._place(self.session.at.step)
        session, split = self.session, self.session.plan.train
        if place <= self.looked or split is None:
            return False
        if session.plan.steps is None and self.spent > _SHARE * session.seconds():
            return False
        self.looked, started = place, time.monotonic()
        seen = self._measured(_sample(split, self._images()))
        self.spent += time.monotonic() - started
        if not seen:
            return False
        session.measured("monitor", seen)
        self._warn(seen)
        return True

    def _images(self) -> int:
        steps = self.session.plan.steps
        if steps is None:
            return _MOST
        fitting = 3 * _SHARE * steps * self.session.config.train.batch_size / max(1, self.times)
        return round(max(_LEAST, min(_MOST, fitting)))

    def _measured(self, split: Split) -> dict[str, float]:
        with self.session.trainer.current() as model:
            values, positions = embeddings_of(self.session.inference(model, self.session.quietly), split)
        if not np.isfinite(values).all():  # the next step says so
            return {}
        seen = {"rank": effective_rank(values), "spread": spread(values)}
        if split.labels is None or len(np.unique(split.labels)) < 2:
            return seen
        labels = np.unique(split.labels, return_inverse=True)[1][positions]
        half = np.zeros(len(values), bool)
        half[permutation(0, "monitor", 0, len(values))[: len(values) // 2]] = True
        bank, asked = Features(values[half], labels[half]), Features(values[~half], labels[~half])
        classes = int(labels.max()) + 1
        return seen | {"knn": nearest(bank, asked, classes, _NEIGHBOURS), "linear": ridge(bank, asked, classes)}

    def _warn(self, seen: dict[str, float]) -> None:
        few = len(self.session.images) < _FEW
        early = self.session.clock.progress(self.session.at.step) < _YOUNG
        if self.warned or early or few or (seen["rank"] >= _LEAST_RANK and seen["spread"] >= _LEAST_SPREAD):
            return
        self.warned = True
        self.session.log(
            "warning",
            text=f"embeddings have collapsed: of {seen['rank']:.1f} effective dimensions, spread {seen['spread']:.2g} of 1; "
            "lower --set optim.lr=…, or take a larger --batch-size",
        )


def _sample(split: Split, most: int) -> Split:
    """The same images at every look, every class its share."""
    if len(split) <= most:
        return split
    if split.labels is not None:
        return split.subset(stratified(split.labels, most, "monitor"))
    return split.subset(np.sort(permutation(0, "monitor-images", 0, len(split))[:most]))


def effective_rank(values: Embeddings) -> float:
    """exp of the entropy of the singular values, as parts of their sum (Roy and Vetterli, 2007; RankMe, Garrido et al., 2023),
    of centred embeddings, whose mean would be a direction of its own.
    """
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    total = singular.sum()
    if not total:
        return 0.0
    parts = singular[singular > 0] / total
    return float(np.exp(-(parts * np.log(parts)).sum()))


def spread(values: Embeddings) -> float:
    """Standard deviation of a number of an embedding of length √dim: 1 where directions are uniform, 0 where all are the same."""
    return float(np.sqrt(values.shape[1]) * unit(values).std(0).mean())


def ridge(bank: Features, asked: Features, classes: int) -> float:
    """Top-1 of least squares on standardised features, targets one for the class and zero elsewhere."""
    mean, scale = bank.values.mean(0), bank.values.std(0) + 1e-6
    x = (bank.values - mean) / scale
    y = np.eye(classes)[bank.targets]
    gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - y.mean(0)) / len(x))
    scores = (asked.values - mean) / scale @ weights + y.mean(0)
    return float((scores.argmax(1) == asked.targets).mean())
