"""Classification by the nearest training images, weighted by how near they are (Caron et al., 2021; facebookresearch/dino
eval_knn.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli.config import ProbeConfig
from vitcli.evaluate.features import Features

_TEMPERATURE, _AT_ONCE = 0.07, 1024

Embeddings = Float[np.ndarray[Any, Any], "images dim"]


def knn(train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]:
    """Top-1 for each number of neighbours asked for."""
    return {
        "results": [{"k": k, "top1": nearest(train, held_out, classes, k), "n": len(held_out)} for k in settings.k],
    }


def nearest(bank: Features, asked: Features, classes: int, k: int) -> float:
    """Top-1 of a vote of the `k` nearest by cosine, each counting exp(cosine / 0.07)."""
    known, k = unit(bank.values).T, min(k, len(bank))
    right = 0
    for start in range(0, len(asked), _AT_ONCE):
        part = asked.rows(np.arange(start, min(len(asked), start + _AT_ONCE)))
        cosine = unit(part.values) @ known
        near: NDArray[np.int64] = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosine, near, 1) - 1) / _TEMPERATURE)
        votes = np.stack([(weights * (bank.targets[near] == c)).sum(1) for c in range(classes)], axis=1)
        right += int((votes.argmax(1) == part.targets).sum())
    return right / len(asked)


def unit(values: Embeddings) -> Embeddings:
    """Embeddings of length one."""
    scaled: Embeddings = values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
    return scaled
