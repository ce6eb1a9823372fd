"""Learning classes from labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli.classes import Class, match
from vitcli.config import Config
from vitcli.config_values import shown
from vitcli.data.batch import Batch, one_hot
from vitcli.data.split import Split
from vitcli.errors import UsageError
from vitcli.evaluate.evaluator import Evaluation, evaluate
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.sets import SetEvaluation, evaluate_sets
from vitcli.model.classifier import Classifier
from vitcli.plain import read_plain
from vitcli.train.objectives.base import Loss, Noise, Objective


class Classify(Objective):
    """Softmax cross-entropy, the sigmoid loss summed over classes (big_vision utils.sigmoid_xent), or its mean over them with
    both labels of a mixed image counting in full (`bce`: facebookresearch/deit engine.py, as DeiT-III is trained).

    The first two are linear in the targets, so a mixed image's loss is the weighted sum of two, and smoothing ε puts
    1 - ε + ε/K on the label and ε/K elsewhere. With class weights each class's part of an image's target counts as much as the class
    does, as torch has it, and of sigmoid losses each class's own loss; over the labelled training images their mean is one.
    """

    unit = "nats"
    takes_distributions = True
    takes_sets = True
    class_weights: Tensor | None

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.kind, self.smoothing, self.asked = (
            config.train.loss,
            config.train.label_smoothing,
            config.train.class_weights,
        )
        self.register_buffer("class_weights", torch.ones(model.config.classes) if self.asked else None)

    def counted(self, classes: Sequence[Class], images: NDArray[np.int64]) -> None:
        if self.class_weights is not None:
            found = weights_of(self.asked, classes, images)
            self.class_weights.copy_(torch.from_numpy(found))

    def told(self, classes: Sequence[Class]) -> dict[str, Any]:
        if self.class_weights is None:
            return {}
        weights = zip(classes, self.class_weights.tolist(), strict=True)
        return {"class_weights": [c.as_json() | {"weight": weight} for c, weight in weights]}

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        return Loss(self.loss_of(model(batch.images, noise.keep).float(), batch))

    def loss_of(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        """Of logits of a batch's images, mixed or not, with labels, sets of them or a teacher's distributions."""
        if batch.targets is not None:
            return self.of_targets(logits, batch.targets)
        assert batch.labels is not None
        if self.kind == "bce":
            return self._binary(logits, _present(batch, logits)).mean()
        loss = self.of(logits, batch.labels)
        if batch.partner_labels is not None:
            loss = batch.weight * loss + (1 - batch.weight) * self.of(logits, batch.partner_labels)
        return loss

    def of_targets(
        self, logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """With a distribution for each image, smoothed already where it is a label, or with the set of its classes."""
        if self.kind == "softmax":
            if self.class_weights is None:
                return F.cross_entropy(logits, targets)
            return -(targets * self.class_weights * logits.log_softmax(1)).sum(1).mean()
        if self.kind == "bce":
            return self._binary(logits, (targets > 0).float()).mean()
        if self.class_weights is not None:
            return self._binary(logits, targets).sum(1).mean()
        return (F.softplus(logits).sum(1) - (targets * logits).sum(1)).mean()

    def of(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        if self.kind == "softmax" and self.class_weights is not None:
            return F.cross_entropy(
                logits, labels, self.class_weights, reduction="none", label_smoothing=self.smoothing
            ).mean()
        if self.kind == "softmax":
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if self.class_weights is not None:
            smooth = one_hot(labels, logits.shape[1]) * (1 - self.smoothing) + self.smoothing / logits.shape[1]
            return self._binary(logits, smooth).sum(1).mean()
        picked = logits.gather(1, labels[:, None]).squeeze(1)
        target = (1 - self.smoothing) * picked + self.smoothing * logits.mean(1)
        return (F.softplus(logits).sum(1) - target).mean()

    def _binary(
        self, logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, "batch classes"]:
        """The cross-entropy of each class by itself."""
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return each if self.class_weights is None else each * self.class_weights

    def scores(self, inference: Inference, split: Split, outputs: NDArray[np.int64]) -> dict[str, Any]:
        """What every metric measures (evaluate/metrics.py), or of sets evaluate/sets.py; with class weights `balanced_top1`, too."""
        if split.sets is not None:
            found: Evaluation | SetEvaluation = evaluate_sets(inference, split, outputs)
            metrics = found.metrics
        else:
            found = evaluation = evaluate(inference, split, outputs)
            metrics = evaluation.metrics | ({"balanced_top1": evaluation.tally.balanced()} if self.asked else {})
        timing = ("seconds", "images_per_second")
        measured = {name: value for name, value in metrics.items() if name not in timing}
        return measured | {"evaluation": found} | ({"unreadable": found.unreadable} if found.unreadable else {})

    @classmethod
    def check_classes(cls, config: Config, classes: Sequence[Class], images: NDArray[np.int64]) -> None:
        if config.train.class_weights:
            weights_of(config.train.class_weights, classes, images)


BALANCED = "balanced"
_LARGEST = 4 << 20


def weights_of(asked: str, classes: Sequence[Class], images: NDArray[np.int64]) -> NDArray[np.float32]:
    """The weight of each class, its mean over the training images one: `balanced` is one over the images that it has. Raises UsageError
    for a file that does not name each class once.
    """
    if asked == BALANCED:
        weights = 1 / np.maximum(images, 1)
    else:
        named = read_weights(Path(asked))
        found = match([Class(name) for name in named], classes)
        values = dict(zip(found, named.values(), strict=True))
        missing = next((c.name for i, c in enumerate(classes) if i not in values), None)
        wrong = next((name for name, i in zip(named, found, strict=True) if i is None), None)
        if missing is not None or wrong is not None or len(values) < len(named):
            fault = (
                f"has no weight for {missing!r}" if missing is not None else f"names {wrong!r}, no class of the data"
            )
            raise UsageError(f"train.class_weights: {shown(asked)} {fault}", "it gives each class one weight")
        weights = np.array([values[i] for i in range(len(classes))])
    total = float((weights * images).sum())
    return (weights * (images.sum() / total if total > 0 else 1.0)).astype(np.float32)


def read_weights(path: Path) -> dict[str, float]:
    """Weights by class: a JSON object, or lines of a name, a tab and a number. Raises UsageError."""
    try:
        text = read_plain(path, _LARGEST).decode("utf-8-sig")
        if text.lstrip()[:1] == "{":
            pairs = json.loads(text, object_pairs_hook=list)
        else:
            lines = (line.rpartition("\t") for line in text.splitlines() if line.strip())
            pairs = [(name.strip(), float(number)) for name, _, number in lines]
        if any(isinstance(number, (bool, str, list)) for _, number in pairs):
            raise ValueError("weights are numbers")
        found = {str(name): float(number) for name, number in pairs}
        if not found or not all(0 < number < 1e9 for number in found.values()) or len(found) < len(pairs):
            raise ValueError("weights are positive numbers, one a class")
        return found
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"train.class_weights: cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or str(error)[:200]}",
            "balanced, or a file: a JSON object, or a class, a tab and its weight a line",
        ) from None


def _present(batch: Batch, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """1 for each label of which an image has a part, else 0."""
    assert batch.labels is not None
    own = one_hot(batch.labels, logits.shape[1])
    if batch.partner_labels is None:
        return own
    partner = one_hot(batch.partner_labels, logits.shape[1])
    return torch.maximum(own * (batch.weight > 0), partner * (batch.weight < 1))
