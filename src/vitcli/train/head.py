"""A new head that starts as a linear probe of the frozen features.

Fine-tuning a network whose head is still random spoils its features before the head is of use (Kumar et al., 2022,
"Fine-Tuning can Distort Pretrained Features"), so the head is fitted first, and the whole is tuned from there.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitcli.data.split import Split
from vitcli.evaluate.features import MOST_IMAGES, Enough, Features, features_of
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.linear import Probe, linear_probe, refitted
from vitcli.model.classifier import Classifier
from vitcli.train.plan import Plan
from vitcli.weights.checkpoint import Tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """A linear probe of frozen features: `head` was fitted without the dev part, `whole` with it.

    `dev_right` says of each image of the dev part whether `head` is right on it, from the features that both were fitted
    to. Where `alone` is set, too little time is left for tuning, and the probe is the run's result.
    """

    head: Tensors
    whole: Tensors
    l2: float
    dev_top1: float | None
    images: int = 0  # that `head` was fitted on
    alone: bool = False
    dev_right: NDArray[np.bool_] | None = None

    def groups(self) -> dict[str, Tensors]:
        """For the state of a run."""
        groups = {"probe-head": self.head, "probe-whole": self.whole}
        if self.dev_right is not None:
            groups["probe-dev"] = {"right": torch.from_numpy(self.dev_right.astype(np.float32))}
        return groups

    def values(self) -> dict[str, Any]:
        return {"l2": self.l2, "dev_top1": self.dev_top1, "images": self.images, "alone": self.alone}

    @classmethod
    def of(cls, groups: dict[str, Tensors], values: dict[str, Any]) -> Start:
        """The inverse of `groups` and `values`. Raises KeyError."""
        right = groups["probe-dev"]["right"].numpy() > 0 if "probe-dev" in groups else None
        return cls(head=groups["probe-head"], whole=groups["probe-whole"], **values["probe"], dev_right=right)


class Pace:
    """Measures images a second, from the second batch on: the first is slower than the rest."""

    def __init__(self) -> None:
        self._began, self._first, self.rate = time.monotonic(), 0, 1.0
        self.is_steady = False

    def of(self, images: int) -> float:
        """The rate, once so many are done."""
        now = time.monotonic()
        self.rate = (images - self._first) / max(now - self._began, 1e-9)
        self.is_steady = self._first > 0
        if not self._first:
            self._began, self._first = now, images
        return self.rate


def fit_head(inference: Inference, plan: Plan, enough: Enough | None = None) -> Start:
    """Give the model the head of a linear probe of the training images, or of those that are `enough`.

    The features of every image are computed once: they serve the fit, the dev part and the last fit with it. Raises
    DataError.
    """
    model = inference.model
    assert plan.train is not None and model.heads

    def of(split: Split, limit: int, enough: Enough | None = None) -> Features:
        return features_of(inference, split, plan.outputs, most=limit, enough=enough)

    features = of(plan.train, MOST_IMAGES, enough)
    dev = None if plan.dev is None else of(plan.dev, len(plan.dev))
    probe = linear_probe(features, plan.config.model.classes, plan.config.data.balanced)
    with torch.no_grad():
        for layer in model.heads:
            layer.weight.copy_(probe.weight)
            layer.bias.copy_(probe.bias)
    head, right = _head(model, probe), None
    if dev is not None:
        right = probe.right_on(dev)
        probe = refitted(probe, features.and_(dev))
    top1 = None if right is None else float(right.mean())
    return Start(
        head=head, whole=_head(model, probe), l2=probe.l2, dev_top1=top1, images=len(features), dev_right=right
    )


def _head(model: Classifier, probe: Probe) -> Tensors:
    """The probe as every head of `model`: of a distilled one, both read what the probe was fitted to the mean of."""
    return {f"{n}{k}": v for n in model.head_names() for k, v in (("weight", probe.weight), ("bias", probe.bias))}


def halfway(one: Tensors, other: Tensors) -> Tensors:
    """The mean of two sets of weights (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models")."""
    return {name: torch.lerp(tensor, other[name].to(tensor), 0.5) for name, tensor in one.items()}


def better_beyond_noise(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether one classifier is right on more of the same images than another, by more than chance gives in 19 of 20 cases
    (McNemar, 1947: only the images on which the two differ count).
    """
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return wins - losses > 1.645 * math.sqrt(wins + losses)


def balanced(right: NDArray[np.bool_], targets: NDArray[np.int64]) -> float:
    """The mean over classes of the part of each that is right: what a classifier is worth where classes are unequal."""
    there, members = np.unique(targets, return_inverse=True)
    return float((np.bincount(members, weights=right) / np.bincount(members, minlength=len(there))).mean())
