"""Classification by the nearest training images, weighted by how near they are (Caron et al., 2021; facebookresearch/dino
eval_knn.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli.config import ProbeConfig
from vitcli.errors import DataError
from vitcli.evaluate.features import Features

_TEMPERATURE, _AT_ONCE = 0.07, 1024

Embeddings = Float[np.ndarray[Any, Any], "images dim"]


def knn(train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]:
    """Top-1 for each number of neighbours asked for; numbers that there are not are `left_out`. Raises DataError where that is all."""
    fitting = [k for k in settings.k if k <= len(train)]
    if not fitting:
        raise DataError(
            f"there are {len(train)} training images, fewer than {min(settings.k)} neighbours",
            "ask for fewer with --set probe.k=…",
        )
    rows = []
    for k in fitting:
        right = voted(train, held_out.values, classes, k, settings.weights) == held_out.targets
        rows.append({"k": k, "top1": float(right.mean()), "n": len(held_out)})
    return {"results": rows, "weights": settings.weights, "left_out": [k for k in settings.k if k > len(train)]}


def nearest(bank: Features, asked: Features, classes: int, k: int) -> float:
    """Top-1 of a vote of the `k` nearest by cosine, each counting exp(cosine / 0.07)."""
    return float((voted(bank, asked.values, classes, k) == asked.targets).mean())


def voted(bank: Features, asked: Embeddings, classes: int, k: int, weights: str = "softmax") -> NDArray[np.int64]:
    """The class that the `k` nearest by cosine vote for, of equals the first: each counts exp(cosine / 0.07), one (`uniform`), or
    one over its distance 1 - cosine (`distance`; those at no distance count alone, as in scikit-learn).
    """
    known, k = unit(bank.values).T, min(k, len(bank))
    found = []
    for start in range(0, len(asked), _AT_ONCE):
        cosine = unit(asked[start : start + _AT_ONCE]) @ known
        near: NDArray[np.int64] = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        counts = _counts(np.take_along_axis(cosine, near, 1), weights)
        place = np.arange(len(near))[:, None] * classes + bank.targets[near]
        votes = np.bincount(place.ravel(), counts.ravel(), minlength=len(near) * classes)
        found.append(votes.reshape(-1, classes).argmax(1))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _counts(cosine: NDArray[np.float64], weights: str) -> NDArray[np.float64]:
    if weights == "softmax":
        return np.exp((cosine - 1) / _TEMPERATURE)
    if weights == "uniform":
        return np.ones_like(cosine)
    distance = (1 - cosine).clip(0)
    same = distance <= 0
    with np.errstate(divide="ignore"):
        return np.where(same.any(1, keepdims=True), same.astype(float), 1 / distance)


def unit(values: Embeddings) -> Embeddings:
    """Embeddings of length one."""
    scaled: Embeddings = values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
    return scaled
