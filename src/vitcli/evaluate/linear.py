"""Linear probes: a softmax classifier on frozen features (Alain and Bengio, 2017), its strength chosen within the training images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from vitcli.data.split import by_class
from vitcli.errors import DataError
from vitcli.evaluate.features import Features

L2 = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
"""Strengths of the penalty that are tried, from strong to weak."""
_FOLDS, _ONE_FOLD_ABOVE = 5, 5_000
_MORE_TRIES = 2  # weaker penalties that are tried after the best one
_ONE_THREAD_BELOW = 1e8
"""Multiplications of a pass below which one thread is used: 914 images, 192 features, 37 classes take 5 s with one, and 100 s
with two beside another process, since BLAS threads wait by spinning."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A head, and how it was found: `top1` is its cross-validated accuracy with the penalty `l2`."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"]
    l2: float
    top1: float
    balanced: bool
    tried: tuple[dict[str, float], ...]

    def right_on(self, features: Features) -> NDArray[np.bool_]:
        """Which of these images it classifies rightly."""
        logits = features.values @ self.weight.double().numpy().T + self.bias.double().numpy()
        return np.asarray(logits.argmax(1) == features.targets)

    def top1_on(self, features: Features) -> float:
        """Part of these images that it classifies rightly."""
        return float(self.right_on(features).mean())


def linear_probe(features: Features, classes: int, balanced: bool = False) -> Probe:
    """Softmax regression on standardised features: mean cross-entropy + l2/2 · ‖W‖², L-BFGS. The bias is free.

    The penalty is the one with the best cross-validated top-1, of equals the strongest: five folds, or a fifth held out
    where there are more than 5,000 images. The head is then fitted on all of them. `balanced` weighs every class alike,
    in the loss and in the score. Raises DataError for a single class.
    """
    if len(np.unique(features.targets)) < 2:
        raise DataError("the images for the linear probe are all of one class", "a classifier needs two")
    fold = np.empty(len(features), np.int64)
    fold[by_class(features.targets, "folds")] = np.arange(len(features)) % _FOLDS
    tested = range(1 if len(features) > _ONE_FOLD_ABOVE else min(_FOLDS, len(features)))
    tried: list[dict[str, float]] = []
    fits = [_Fit(features.rows(fold != f), classes, balanced) for f in tested]
    seen = np.concatenate([features.targets[fold == f] for f in tested])
    weights = (1 / np.bincount(seen, minlength=classes).clip(1))[seen] if balanced else np.ones(len(seen))
    for l2 in L2:
        right = [fit(l2).right(features.rows(fold == f)) for f, fit in zip(tested, fits, strict=True)]
        tried.append({"l2": l2, "top1": float(np.average(np.concatenate(right), weights=weights))})
        best = max(tried, key=lambda row: row["top1"])
        if len(tried) - tried.index(best) > _MORE_TRIES:
            break
    head = _Fit(features, classes, balanced)(best["l2"]).head()
    return Probe(*head, best["l2"], best["top1"], balanced, tuple(tried))


def refitted(probe: Probe, features: Features) -> Probe:
    """The same penalty on other features."""
    head = _Fit(features, len(probe.bias), probe.balanced)(probe.l2).head()
    return replace(probe, weight=head[0], bias=head[1])


class _Fit:
    """Fits of one set of features, each starting from the one before."""

    def __init__(self, features: Features, classes: int, balanced: bool) -> None:
        from sklearn.linear_model import LogisticRegression

        self.classes, self.features = classes, features
        self.mean = features.values.mean(0)
        self.scale = features.values.std(0) + 1e-5
        self.standard = (features.values - self.mean) / self.scale
        self.regression = LogisticRegression(
            max_iter=200, tol=1e-4, warm_start=True, class_weight="balanced" if balanced else None
        )

    def __call__(self, l2: float) -> _Fit:
        if len(np.unique(self.features.targets)) > 1:
            # of two classes sklearn fits the difference w of both rows: W = ±w/2 has half of its square
            two = len(np.unique(self.features.targets)) == 2
            self.regression.C = (2 if two else 1) / (l2 * len(self.features))
            one = self.standard.size * self.classes < _ONE_THREAD_BELOW
            with warnings.catch_warnings(), threadpool_limits(1 if one else None):
                warnings.simplefilter("ignore")  # 200 iterations are near enough, whatever the gradient still is
                self.regression.fit(self.standard, self.features.targets)
        return self

    def head(self) -> tuple[Tensor, Tensor]:
        """Weights and biases for features as they are. A class without images is never predicted."""
        coefficients, intercepts = self.regression.coef_, self.regression.intercept_
        if len(coefficients) == 1:  # of two classes sklearn gives the difference
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        coefficients = coefficients / self.scale
        intercepts = intercepts - coefficients @ self.mean
        weight = np.zeros((self.classes, coefficients.shape[1]))
        bias = np.full(self.classes, intercepts.min() - 10.0)
        weight[self.regression.classes_], bias[self.regression.classes_] = coefficients, intercepts
        return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()

    def right(self, features: Features) -> NDArray[np.bool_]:
        """Whether each image is classified rightly."""
        if len(np.unique(self.features.targets)) < 2:
            return np.full(len(features), self.features.targets[0]) == features.targets
        standard = (features.values - self.mean) / self.scale
        return np.asarray(self.regression.predict(standard) == features.targets)
