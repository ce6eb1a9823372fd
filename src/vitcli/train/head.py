"""A new head that starts as a linear probe of the frozen features.

Fine-tuning a network whose head is still random spoils its features before the head is of use (Kumar et al., 2022,
"Fine-Tuning can Distort Pretrained Features"), so the head is fitted first, and the whole is tuned from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitcli.data.cache import Progress
from vitcli.data.split import Split
from vitcli.evaluate.probe import MOST_IMAGES, Features, Probe, features_of, linear_probe, refitted
from vitcli.model.vit import ViT
from vitcli.train.plan import Plan
from vitcli.train.runtime import Runtime
from vitcli.weights.checkpoint import Tensors


@dataclass(frozen=True, eq=False)
class Start:
    """A linear probe: `head` was fitted without the dev part, on which its top-1 is `dev_top1`, `whole` with it."""

    head: Tensors
    whole: Tensors
    l2: float
    dev_top1: float | None

    def groups(self) -> dict[str, Tensors]:
        """For the state of a run."""
        return {"probe-head": self.head, "probe-whole": self.whole}

    def values(self) -> dict[str, Any]:
        return {"l2": self.l2, "dev_top1": self.dev_top1}

    @classmethod
    def of(cls, groups: dict[str, Tensors], values: dict[str, Any]) -> Start:
        """The inverse of `groups` and `values`. Raises KeyError."""
        return cls(groups["probe-head"], groups["probe-whole"], **values["probe"])


def fit_head(model: ViT, plan: Plan, runtime: Runtime, progress: Progress, most: int = MOST_IMAGES) -> Start:
    """Give `model` the head of a linear probe of at most `most` training images. Raises DataError."""
    assert plan.train is not None and model.heads

    def of(split: Split, limit: int) -> Features:
        return features_of(
            model, split, plan.outputs, plan.config.eval, plan.config.data,
            device=runtime.device, bf16=runtime.bf16, most=limit, progress=progress,
        )  # fmt: skip

    features = of(plan.train, most)
    probe = linear_probe(features, plan.config.model.classes, plan.config.data.balanced)
    with torch.no_grad():
        for layer in model.heads:
            layer.weight.copy_(probe.weight)
            layer.bias.copy_(probe.bias)
    head, dev_top1 = _head(model, probe), None
    if plan.dev is not None:
        dev = of(plan.dev, len(plan.dev))
        dev_top1 = probe.top1_on(dev)
        probe = refitted(probe, features.and_(dev))
    return Start(head, _head(model, probe), probe.l2, dev_top1)


def _head(model: ViT, probe: Probe) -> Tensors:
    """The probe as every head of `model`: of a distilled one, both read what the probe was fitted to the mean of."""
    names = ["head", "head_dist"][: len(model.heads)]
    return {f"{n}.{k}": v for n in names for k, v in (("weight", probe.weight), ("bias", probe.bias))}


def halfway(one: Tensors, other: Tensors) -> Tensors:
    """The mean of two sets of weights (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models")."""
    return {name: torch.lerp(tensor, other[name].to(tensor), 0.5) for name, tensor in one.items()}


def better_beyond_noise(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether one classifier is right on more of the same images than another, by more than chance gives in 19 of 20 cases
    (McNemar, 1947: only the images on which the two differ count).
    """
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return wins - losses > 1.645 * math.sqrt(wins + losses)
