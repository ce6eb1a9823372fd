"""Sums over images, divided once at the end, so that neither batch size nor padding moves a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

ECE_BINS = 15


class Metric(Protocol):
    """A number of a model on labelled images, from sums that batches and processes add to."""

    def add(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> None:
        """Count a batch."""

    def merge(self, other: Self) -> None:
        """Count what another one counted, of other images."""

    def result(self) -> dict[str, Any]:
        """Fields of the JSON, with names of their own; None where there was no image."""


def ranked(logits: Float[Tensor, "batch classes"], k: int) -> Int[Tensor, "batch k"]:
    """The `k` classes with the greatest logits, best first; of equal ones the first classes come first, wherever this is computed."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]


class Tally:
    """Top-1, top-5, loss, calibration error and per-class counts of logits against labels.

    Counts are integers and sums float64. Of equal logits the first class is predicted. The loss is the softmax cross-entropy in nats; ECE is the expected
    calibration error over 15 bins of equal width (Guo et al., 2017).
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.n = self.correct = self.correct5 = 0
        self.loss = 0.0
        self.bin_n = np.zeros(ECE_BINS, np.int64)
        self.bin_correct = np.zeros(ECE_BINS, np.int64)
        self.bin_confidence = np.zeros(ECE_BINS, np.float64)
        self.class_n = np.zeros(classes, np.int64)
        self.class_correct = np.zeros(classes, np.int64)

    def add(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> None:
        logits, labels = logits.detach().cpu().double(), labels.cpu()
        logs = logits.log_softmax(1)
        best = ranked(logits, 5)
        right = best[:, 0] == labels
        confidence = logs.gather(1, best[:, :1]).squeeze(1)
        self.n += len(labels)
        self.correct += int(right.sum())
        if self.classes >= 5:
            self.correct5 += int((best == labels[:, None]).any(1).sum())
        self.loss -= float(logs.gather(1, labels[:, None]).sum())
        probability = confidence.exp()
        bins = torch.clamp((probability * ECE_BINS).ceil().long() - 1, 0, ECE_BINS - 1).numpy()
        np.add.at(self.bin_n, bins, 1)
        np.add.at(self.bin_correct, bins, right.numpy())
        np.add.at(self.bin_confidence, bins, probability.numpy())
        np.add.at(self.class_n, labels.numpy(), 1)
        np.add.at(self.class_correct, labels.numpy(), right.numpy())

    def merge(self, other: Tally) -> None:
        for name in ("n", "correct", "correct5", "loss"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("bin_n", "bin_correct", "bin_confidence", "class_n", "class_correct"):
            getattr(self, name)[:] += getattr(other, name)

    def result(self) -> dict[str, Any]:
        """`top1`, `top5` (None under five classes), `loss`, `ece`, `n`; None where there was no image."""
        if self.n == 0:
            return {"top1": None, "top5": None, "loss": None, "ece": None, "n": 0}
        return {
            "top1": self.correct / self.n,
            "top5": self.correct5 / self.n if self.classes >= 5 else None,
            "loss": self.loss / self.n,
            "ece": float(np.abs(self.bin_correct - self.bin_confidence).sum() / self.n),
            "n": self.n,
        }

    def per_class(self) -> list[float | None]:
        return [int(c) / int(n) if n else None for c, n in zip(self.class_correct, self.class_n, strict=True)]

    def balanced(self) -> float | None:
        """Mean of the classes' top-1, of those that have images."""
        seen = [value for value in self.per_class() if value is not None]
        return sum(seen) / len(seen) if seen else None


def confusion(targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes that occur as either, and how often each of them, a row, was taken for each, a column."""
    present, places = np.unique(np.concatenate([targets, predicted]), return_inverse=True)
    true, taken = np.split(places, 2)
    counts = np.bincount(true * len(present) + taken, minlength=len(present) ** 2)
    return present, counts.reshape(len(present), len(present))


METRICS: dict[str, Callable[[int], Metric]] = {"classification": Tally}
"""Each made anew, for a number of classes, for every evaluation; what they give stands in every report of one."""
