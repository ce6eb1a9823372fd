"""Linear probes: a linear classifier on frozen features (Alain and Bengio, 2017), its kind and strength chosen within the training
images.

Two kinds are fitted, both on standardised features:

| solver    | what it is                                                                                              |
|-----------|---------------------------------------------------------------------------------------------------------|
| `closed`  | regularised linear discriminant (Friedman, 1989): classes share one covariance, to which `l2` is added   |
| `softmax` | mean cross-entropy + l2/2 · ‖W‖², the bias free, minimised by L-BFGS from the weights of the penalty before |

The first is one eigendecomposition for all penalties. The second starts in its coordinates, in which the loss curves alike in
every direction, so that a dozen steps are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.data.split import folds_of
from vitcli.errors import DataError
from vitcli.evaluate.features import Features

Solver = Literal["closed", "softmax"]
SOLVERS: tuple[Solver, ...] = ("closed", "softmax")

L2 = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
"""Strengths of the penalty that are tried, from strong to weak."""
_FOLDS, _ONE_FOLD_ABOVE = 5, 5_000
_MIDDLE = 4  # of L2, where the search for the softmax's penalty begins
_CURVATURE = 0.15  # in which L-BFGS needs the fewest steps, of 0.05 to 0.5
_SMALL = 1e8
"""Multiplications of a covariance below which double precision costs nothing that is felt."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """A head, and how it was found: `top1` is its cross-validated accuracy with the penalty `l2`."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"]
    l2: float
    top1: float
    balanced: bool
    tried: tuple[dict[str, float | str], ...]
    solver: Solver = "softmax"

    def logits(self, features: Features) -> NDArray[np.float64]:
        """`[images, classes]`."""
        return np.asarray(features.values @ self.weight.double().numpy().T + self.bias.double().numpy())

    def right_on(self, features: Features) -> NDArray[np.bool_]:
        """Which of these images it classifies rightly."""
        return np.asarray(self.logits(features).argmax(1) == features.targets)

    def top1_on(self, features: Features) -> float:
        """Part of these images that it classifies rightly."""
        return float(self.right_on(features).mean())


def linear_probe(
    features: Features, classes: int, balanced: bool = False, solvers: tuple[Solver, ...] = ("softmax",)
) -> Probe:
    """The classifier of these solvers and of all penalties with the best cross-validated top-1, of equals the first and strongest,
    fitted on all images.

    Five folds, or a fifth held out where there are more than 5,000 images. `balanced` weighs every class alike, in the fit and in
    the score. Raises DataError for a single class.
    """
    if len(np.unique(features.targets)) < 2:
        raise DataError("the images for the linear probe are all of one class", "a classifier needs two")
    fold = folds_of(features.targets, _FOLDS, "folds")
    tested = range(1 if len(features) > _ONE_FOLD_ABOVE else min(_FOLDS, len(features)))
    standard = _Standard(features)
    spaces, whole = _folds(standard, [fold == f for f in tested], balanced)
    held = [
        (space, standard.values[fold == f], features.targets[fold == f])
        for f, space in zip(tested, spaces, strict=True)
    ]
    seen = np.concatenate([targets for _, _, targets in held])
    weights = (1 / np.bincount(seen, minlength=classes).clip(1))[seen] if balanced else np.ones(len(seen))
    tried: list[dict[str, float | str]] = []
    for solver in solvers:
        scores: dict[float, float] = {}
        others = max((float(row["top1"]) for row in tried), default=0.0)
        while (l2 := _next(solver, scores, others - 1.5 / len(seen) ** 0.5)) is not None:
            right = np.concatenate([s.predicted(s.fit(solver, l2), values) == targets for s, values, targets in held])
            scores[l2] = float(np.average(right, weights=weights))
        tried += [{"solver": solver, "l2": l2, "top1": scores[l2]} for l2 in sorted(scores, reverse=True)]
    best = max(tried, key=lambda row: row["top1"])
    found: Solver = "closed" if best["solver"] == "closed" else "softmax"
    if np.array_equal(spaces[0].present, whole.present):
        whole.last = spaces[0].last
    head = standard.head(*whole.fit(found, float(best["l2"]), precise=True), classes)
    return Probe(
        weight=head[0],
        bias=head[1],
        l2=float(best["l2"]),
        top1=float(best["top1"]),
        balanced=balanced,
        tried=tuple(tried),
        solver=found,
    )


def _folds(standard: _Standard, held: list[NDArray[np.bool_]], balanced: bool) -> tuple[list[_Space], _Space]:
    """The images that are not held, for each fold, and all. The products that covariances are made of add up, so each image's are
    computed once; where classes weigh alike, their weights differ from fold to fold.
    """
    everything = np.ones(len(standard.targets), bool)
    if balanced:
        return [_Space(standard, ~rows, balanced) for rows in held], _Space(standard, everything, balanced)
    pieces = [*held, ~np.logical_or.reduce(held)]
    products = [_product(standard.values[rows]) for rows in pieces]
    total = torch.stack(products).sum(0)
    folds = zip(held, products, strict=False)
    return [_Space(standard, ~rows, False, total - own) for rows, own in folds], _Space(
        standard, everything, False, total
    )


def _product(values: Float[Tensor, "images dim"]) -> Float[Tensor, "dim dim"]:
    return (values.T @ values).double()


def _next(solver: Solver, scores: Mapping[float, float], least: float) -> float | None:
    """The penalty to try next: every one where that costs nothing, else from the middle on until the best has worse neighbours. A
    solver whose first score is below `least` is beaten beyond chance.
    """
    if solver == "closed":
        return next((l2 for l2 in L2 if l2 not in scores), None)
    if not scores:
        return L2[_MIDDLE]
    best = L2.index(max(sorted(scores, reverse=True), key=scores.__getitem__))
    near = L2[max(0, best - 1) : best + 2] if scores[L2[_MIDDLE]] >= least else ()
    return next((l2 for l2 in near if l2 not in scores), None)


def refitted(probe: Probe, features: Features) -> Probe:
    """The same solver and penalty on other features."""
    standard = _Standard(features)
    space = _Space(standard, np.ones(len(features), bool), probe.balanced)
    weight, bias = standard.head(*space.fit(probe.solver, probe.l2, precise=True), len(probe.bias))
    return replace(probe, weight=weight, bias=bias)


class _Standard:
    """Features with mean zero and variance one, in the precision that they are worked on with."""

    def __init__(self, features: Features) -> None:
        values = torch.from_numpy(features.values)
        values = values if values.numel() * values.shape[1] < _SMALL else values.float()
        self.targets = features.targets
        self.mean, self.scale = values.mean(0), values.std(0, correction=0) + 1e-5
        self.values = (values - self.mean).div_(self.scale)

    def head(self, rows: Rows, present: NDArray[np.int64], classes: int) -> tuple[Tensor, Tensor]:
        """Weights and biases for features as they are, of all classes; one without images is never predicted."""
        weight = rows[:, :-1] / self.scale
        bias = rows[:, -1] - weight @ self.mean.double()
        all_weight = torch.zeros(classes, weight.shape[1])
        all_bias = torch.full((classes,), float(bias.min()) - 10.0)
        all_weight[present], all_bias[present] = weight.float(), bias.float()
        return all_weight, all_bias


Rows = Float[Tensor, "classes inputs"]
"""A weight for each coordinate of the space, and the bias last."""


class _Space:
    """Classifiers of some of the standardised images: `rows`, whose values times themselves are `product`."""

    def __init__(
        self, standard: _Standard, rows: NDArray[np.bool_], balanced: bool, product: Tensor | None = None
    ) -> None:
        self.present, labels = np.unique(standard.targets[rows], return_inverse=True)
        self.labels, self.n = torch.from_numpy(labels), len(labels)
        self.standard = standard.values if rows.all() else standard.values[torch.from_numpy(rows)]
        counts = torch.bincount(self.labels).double()
        self.share = torch.full_like(counts, 1 / len(counts)) if balanced else counts / self.n
        self.weights = (self.share / counts)[self.labels].to(self.standard)
        sums = torch.zeros(len(counts), self.standard.shape[1], dtype=self.standard.dtype)
        self.means = sums.index_add_(0, self.labels, self.standard).double() / counts[:, None]
        if product is None:
            self.covariance = _product(self.standard * self.weights[:, None].sqrt())
        else:
            self.covariance = product / self.n
        self.last: Rows | None = None

    def fit(self, solver: Solver, l2: float, precise: bool = False) -> tuple[Rows, NDArray[np.int64]]:
        """Weights on standardised features and the bias, a row for each class that is there, and these classes."""
        return (self._closed(l2) if solver == "closed" else self._softmax(l2, precise)), self.present

    def predicted(
        self, fitted: tuple[Rows, NDArray[np.int64]], values: Float[Tensor, "images dim"]
    ) -> NDArray[np.int64]:
        """The class of each of these standardised features."""
        rows, present = fitted[0].to(values), fitted[1]
        return np.asarray(present[torch.addmm(rows[:, -1], values, rows[:, :-1].T).argmax(1).numpy()])

    @cached_property
    def _within(self) -> tuple[Tensor, Tensor]:
        """Variances and axes of the covariance within classes."""
        between = (self.means.T * self.share) @ self.means
        variance, axes = torch.linalg.eigh(self.covariance - between)
        return variance.clamp_min(0), axes

    @cached_property
    def _whitened(self) -> tuple[Tensor, Tensor, Tensor]:
        """The points in coordinates without correlation and of variance one, the variances before, and their axes."""
        variance, axes = torch.linalg.eigh(self.covariance)
        variance = variance.clamp_min(1e-7 * float(variance[-1]) + 1e-12)
        return self.standard @ (axes / variance.sqrt()).to(self.standard), variance, axes

    def _closed(self, l2: float) -> Rows:
        variance, axes = self._within
        weight = (self.means @ axes / (variance + l2)) @ axes.T
        bias = self.share.log() - (weight * self.means).sum(1) / 2
        return torch.cat([weight, bias[:, None]], 1)

    def _softmax(self, l2: float, precise: bool) -> Rows:
        points, variance, axes = self._whitened
        penalty = torch.cat([l2 / variance, torch.zeros(1, dtype=torch.float64)]).to(points)
        if self.last is None:
            start = torch.zeros(len(self.present), len(penalty), dtype=points.dtype)
            start[:, -1] = self.share.log().to(start)
        else:
            start = torch.cat([self.last[:, :-1] @ (axes * variance.sqrt()), self.last[:, -1:]], 1).to(points)
        # the curvature of the mean cross-entropy in whitened coordinates lies between p (1 - p) and a half
        found = _minimised(
            lambda rows: self._loss(points, rows, penalty),
            start,
            1 / (_CURVATURE + penalty),
            tolerance=(1e-11 if points.dtype == torch.float64 else 1e-5) if precise else 1e-4,
            most=500 if precise else 20,
        )
        whitener = axes / variance.sqrt()
        self.last = torch.cat([found[:, :-1].double() @ whitener.T, found[:, -1:].double()], 1)
        return self.last

    def _loss(
        self, points: Float[Tensor, "images dim"], rows: Rows, penalty: Float[Tensor, " inputs"]
    ) -> tuple[float, Rows]:
        """The loss and its gradient."""
        logs = torch.addmm(rows[:, -1], points, rows[:, :-1].T).log_softmax(1)
        picked = logs.gather(1, self.labels[:, None]).squeeze(1)
        loss = -(picked * self.weights).sum() + (penalty * rows.square()).sum() / 2
        away = logs.exp_()
        away[torch.arange(self.n), self.labels] -= 1
        away *= self.weights[:, None]
        gradient = torch.cat([away.T @ points, away.sum(0)[:, None]], 1)
        return float(loss), gradient + penalty * rows


_MEMORY = 8


def _minimised(
    loss: Callable[[Rows], tuple[float, Rows]],
    start: Rows,
    inverse: Float[Tensor, " inputs"],
    tolerance: float,
    most: int,
) -> Rows:
    """L-BFGS (Nocedal, 1980) from `start`, its first guess of the inverse curvature diagonal, with halved steps (Armijo).

    Ends where a step lowers the loss by less than a part `tolerance`, or after `most` steps.
    """
    rows = start
    value, gradient = loss(rows)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(most):
        direction = gradient.clone()
        used = []
        for moved, turned, product in reversed(pairs):
            used.append(float((moved * direction).sum()) / product)
            direction -= used[-1] * turned
        direction *= inverse
        for (moved, turned, product), factor in zip(pairs, reversed(used), strict=True):
            direction += moved * (factor - float((turned * direction).sum()) / product)
        slope, step = float((gradient * direction).sum()), 1.0
        while True:
            there = rows - step * direction
            next_value, next_gradient = loss(there)
            if next_value <= value - 1e-4 * step * slope or step < 1e-6:
                break
            step /= 2
        if next_value > value:
            break
        moved, turned = there - rows, next_gradient - gradient
        product = float((moved * turned).sum())
        pairs = [*pairs, (moved, turned, product)][-_MEMORY:] if product > 0 else pairs
        is_done = value - next_value <= tolerance * abs(next_value)
        rows, value, gradient = there, next_value, next_gradient
        if is_done:
            break
    return rows
