"""The paper's few-shot accuracy: least squares from frozen features to -1 and 1 (§4.1, "Metrics"; big_vision
evaluators/fewshot_lsr.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli.config import ProbeConfig
from vitcli.errors import DataError
from vitcli.evaluate.features import Features

DRAWS = 3
_CONSTANT, _EPS = 100.0, 1e-5
"""big_vision's. The constant feature is the bias, so large that the penalty hardly touches it."""


def fewshot(train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]:
    """Top-1 with so many training images of each class, mean and standard deviation of three `draws`; numbers that a class does not
    have are `left_out`. Raises DataError where that is all of them.
    """
    counts = np.bincount(train.targets, minlength=classes)
    least = int(counts.min())
    fitting = [shots for shots in settings.shots if shots <= least]
    if not fitting:
        raise DataError(
            f"class number {int(counts.argmin())} has {least} training images, fewer than {min(settings.shots)} shots",
            "ask for fewer with --set probe.shots=…, or add images" if least else "every class needs a training image",
        )
    rows = []
    for shots in fitting:
        scores = [
            float((predicted(train.rows(support), held_out.values, classes, settings.l2) == held_out.targets).mean())
            for support in (drawn(train.targets, classes, shots, draw) for draw in range(DRAWS))
        ]
        row = {"shots": shots, "top1": float(np.mean(scores)), "std": float(np.std(scores)), "n": len(held_out)}
        rows.append(row | {"draws": scores})
    return {"results": rows, "l2": settings.l2, "left_out": [shots for shots in settings.shots if shots > least]}


def drawn(targets: NDArray[np.int64], classes: int, shots: int, draw: int) -> NDArray[np.int64]:
    """The first `shots` of each class, class by class, each shuffled by one generator of the seed `draw`: fewer lie within more."""
    random = np.random.default_rng(draw)
    return np.concatenate([random.permutation(np.flatnonzero(targets == c))[:shots] for c in range(classes)])


def predicted(
    support: Features, values: Float[np.ndarray[Any, Any], "images dim"], classes: int, l2: float
) -> NDArray[np.int64]:
    """The class of each image by least squares on `support`, with the penalty `l2` on all weights."""
    mean, scale = support.values.mean(0), support.values.std(0) + _EPS

    def prepared(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.pad((rows - mean) / scale, ((0, 0), (0, 1)), constant_values=_CONSTANT)

    x, y = prepared(support.values), 2 * np.eye(classes)[support.targets] - 1
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
    found: NDArray[np.int64] = (prepared(values) @ weights).argmax(1)
    return found
