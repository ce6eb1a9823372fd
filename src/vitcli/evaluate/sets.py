"""A model over images that show several classes each, or none: every class judged by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.data.split import Split
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.metrics import ranked


def average_precision(scores: Float[np.ndarray, " images"], shown: Bool[np.ndarray, " images"]) -> float | None:
    """The mean over the images of a class of the precision at their scores, equal scores taken together: the area below the steps
    of recall, not interpolated. None where no image is of the class.
    """
    if not shown.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(shown[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    gained = np.diff(right[last], prepend=0)
    return float((gained * right[last] / (last + 1)).sum() / right[-1])


class SetTally:
    """Average precision of every class, how often the best class is one of an image's, and the sigmoid loss. The scores of all images
    are kept, since a rank needs them.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.logits: list[Tensor] = []
        self.shown: list[Tensor] = []

    def add(self, logits: Float[Tensor, "batch classes"], shown: Bool[Tensor, "batch classes"]) -> None:
        self.logits.append(logits.detach().float().cpu())
        self.shown.append(shown.cpu())

    def merge(self, other: SetTally) -> None:
        self.logits += other.logits
        self.shown += other.shown

    def whole(self) -> tuple[Tensor, Tensor]:
        if not self.logits:
            return torch.zeros(0, self.classes), torch.zeros(0, self.classes, dtype=torch.bool)
        return torch.cat(self.logits), torch.cat(self.shown)

    def per_class(self) -> list[float | None]:
        logits, shown = (tensor.numpy() for tensor in self.whole())
        return [average_precision(logits[:, c], shown[:, c]) for c in range(self.classes)]

    def result(self) -> dict[str, Any]:
        """`map`, the mean over classes that have images; `top1` and `top5`, the images of which the best class, or one of the five best, is
        theirs; `loss`, the binary cross-entropies of all classes in nats, a mean over images; `ece` is None. None without images.
        """
        logits, shown = self.whole()
        precisions = [value for value in self.per_class() if value is not None]
        n = len(logits)
        if not n:
            return {"top1": None, "top5": None, "loss": None, "ece": None, "n": 0, "map": None}
        hits = shown.gather(1, ranked(logits, 5))
        loss = F.binary_cross_entropy_with_logits(logits.double(), shown.double(), reduction="sum")
        return {
            "top1": float(hits[:, 0].double().mean()),
            "top5": float(hits.any(1).double().mean()) if self.classes >= 5 else None,
            "loss": float(loss) / n,
            "ece": None,
            "n": n,
            "map": sum(precisions) / len(precisions) if precisions else None,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class SetEvaluation:
    """`metrics` has the fields of the command line."""

    metrics: dict[str, Any]
    tally: SetTally
    unreadable: int


def placed(sets: NDArray[np.bool_], outputs: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """Sets of the data's classes as sets of the model's."""
    result = np.zeros((len(sets), classes), bool)
    there = np.flatnonzero(outputs >= 0)
    result[:, outputs[there]] = sets[:, there]
    return result


def evaluate_sets(inference: Inference, split: Split, outputs: NDArray[np.int64]) -> SetEvaluation:
    """Measure a model on a split whose labels are sets. `outputs` maps the data's classes to the model's. Raises DataError."""
    assert split.sets is not None
    images, tally = inference.open(split), SetTally(inference.classes)
    shown = torch.from_numpy(placed(split.sets, outputs, inference.classes))
    started = time.monotonic()
    with inference.running():
        for here, logits in inference.each(images, images.valid, "logits"):
            tally.add(logits, shown[torch.from_numpy(here)])
    seconds = time.monotonic() - started
    timing = {"seconds": seconds, "images_per_second": len(images.valid) / seconds if seconds else 0.0}
    return SetEvaluation(
        metrics={"split": split.name, **tally.result(), **timing}, tally=tally, unreadable=len(images.bad)
    )
