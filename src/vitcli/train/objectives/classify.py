"""Learning classes from labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import Config
from vitcli.data.batch import Batch
from vitcli.data.split import Split
from vitcli.evaluate.evaluator import evaluate
from vitcli.evaluate.inference import Inference
from vitcli.model.classifier import Classifier
from vitcli.train.objectives.base import Loss, Noise, Objective


class Classify(Objective):
    """Softmax cross-entropy, the sigmoid loss summed over classes (big_vision utils.sigmoid_xent), or its mean over them with
    both labels of a mixed image counting in full (`bce`: facebookresearch/deit engine.py, as DeiT-III is trained).

    The first two are linear in the targets, so a mixed image's loss is the weighted sum of two, and smoothing ε puts
    1 - ε + ε/K on the label and ε/K elsewhere.
    """

    unit = "nats"
    takes_distributions = True

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.kind, self.smoothing = config.train.loss, config.train.label_smoothing

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        return Loss(self.loss_of(model(batch.images, noise.keep).float(), batch))

    def loss_of(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        """Of logits of a batch's images, mixed or not, with labels or a teacher's distributions."""
        if batch.targets is not None:
            return self.of_targets(logits, batch.targets)
        assert batch.labels is not None
        if self.kind == "bce":
            return F.binary_cross_entropy_with_logits(logits, _present(batch, logits))
        loss = self.of(logits, batch.labels)
        if batch.partner_labels is not None:
            loss = batch.weight * loss + (1 - batch.weight) * self.of(logits, batch.partner_labels)
        return loss

    def of_targets(
        self, logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """With a distribution for each image, smoothed already where it is a label."""
        if self.kind == "softmax":
            return F.cross_entropy(logits, targets)
        return (F.softplus(logits).sum(1) - (targets * logits).sum(1)).mean()

    def of(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        if self.kind == "softmax":
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        picked = logits.gather(1, labels[:, None]).squeeze(1)
        target = (1 - self.smoothing) * picked + self.smoothing * logits.mean(1)
        return (F.softplus(logits).sum(1) - target).mean()

    def scores(self, inference: Inference, split: Split, outputs: NDArray[np.int64]) -> dict[str, Any]:
        """What every metric measures (evaluate/metrics.py)."""
        evaluation = evaluate(inference, split, outputs)
        timing = ("seconds", "images_per_second")
        measured = {name: value for name, value in evaluation.metrics.items() if name not in timing}
        return measured | ({"unreadable": evaluation.unreadable} if evaluation.unreadable else {})


def _present(batch: Batch, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """1 for each label of which an image has a part, else 0."""
    assert batch.labels is not None
    targets = torch.zeros_like(logits)
    for labels, weight in ((batch.labels, batch.weight), (batch.partner_labels, 1 - batch.weight)):
        if labels is not None and weight > 0:
            targets.scatter_(1, labels[:, None], 1.0)
    return targets
