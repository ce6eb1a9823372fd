"""What a model's head reads of images, as numbers to fit classifiers on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli.data.split import Split, stratified
from vitcli.evaluate.inference import Inference
from vitcli.randomness import permutation

MOST_IMAGES = 20_000
"""Images that a probe is fitted on; a larger set is thinned, class by class."""

Enough = Callable[[int], bool]
"""Whether so many images are enough."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the head reads of each image, beside the output that stands for its class."""

    values: Float[np.ndarray[Any, Any], "images dim"]
    targets: Int[np.ndarray[Any, Any], " images"]

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, chosen: NDArray[Any]) -> Features:
        return Features(self.values[chosen], self.targets[chosen])

    def and_(self, others: Features) -> Features:
        return Features(np.concatenate([self.values, others.values]), np.concatenate([self.targets, others.targets]))


def thinned(split: Split, most: int) -> Split:
    """At most `most` images of a labelled split, of every class its share."""
    assert split.labels is not None
    return split if len(split) <= most else split.subset(stratified(split.labels, most, "probe"))


def features_of(
    inference: Inference,
    split: Split,
    outputs: NDArray[np.int64],
    *,
    most: int = MOST_IMAGES,
    enough: Enough | None = None,
) -> Features:
    """The features of at most `most` images of a labelled split, as evaluation sees them.

    `enough` is asked after every batch whether to stop: images come in a shuffled order then, so that those that were
    seen are a sample of all. Raises DataError.
    """
    split = thinned(split, most)
    values, positions = embeddings_of(inference, split, enough)
    assert split.labels is not None
    return Features(values, outputs[split.labels[positions]])


def embeddings_of(
    inference: Inference, split: Split, enough: Enough | None = None
) -> tuple[Float[np.ndarray[Any, Any], "images dim"], NDArray[np.int64]]:
    """(what the head reads of the images that can be read, their positions in the split). Raises DataError."""
    images = inference.open(split)
    order = images.valid if enough is None else images.valid[permutation(0, "probe", 0, len(images.valid))]
    values: list[Tensor] = []
    seen: list[NDArray[np.int64]] = []
    with inference.running(), contextlib.closing(inference.each(images, order, "features", "features")) as found:
        for here, features in found:
            values.append(features)
            seen.append(here)
            if enough is not None and enough(sum(map(len, seen))):
                break
    positions = np.concatenate(seen)
    back = np.argsort(positions)
    return torch.cat(values).double().numpy()[back], positions[back]
