"""Whether a model is as often right as it says: reliability, and the temperature that mends it (Guo et al., 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitcli.data.split import by_class
from vitcli.evaluate.metrics import ECE_BINS, Tally

_COLDEST, _HOTTEST = 0.05, 20.0
_HALVINGS = 60
_MOST_LOGITS = 2**28
"""Of images that a temperature is fitted on and measured on: a gigabyte."""


def is_at_a_bound(temperature: float) -> bool:
    """Whether a better temperature may lie outside of what is tried: of images that are all right, or all wrong, it does."""
    return not 1.01 * _COLDEST < temperature < 0.99 * _HOTTEST


def most_images(classes: int) -> int:
    """Images whose logits are kept."""
    return max(2, _MOST_LOGITS // classes)


def reliability(tally: Tally) -> list[dict[str, Any]]:
    """A row a bin of equal width: its bounds `low` and `high`, how many images were predicted with such a `confidence`, their mean
    confidence and top-1, None where there are none.
    """
    rows = []
    for index, (n, right, sum_) in enumerate(zip(tally.bin_n, tally.bin_correct, tally.bin_confidence, strict=True)):
        there = (
            {"confidence": float(sum_) / int(n), "top1": int(right) / int(n)}
            if n
            else {"confidence": None, "top1": None}
        )
        rows.append({"low": index / ECE_BINS, "high": (index + 1) / ECE_BINS, "n": int(n)} | there)
    return rows


def fitted_temperature(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """What logits are divided by for the least cross-entropy, within 0.05 and 20.

    The loss is convex in 1 / temperature, where its slope is halved between bounds until it is known to 15 digits.
    """
    logits = logits.double()
    picked = logits.gather(1, labels[:, None]).squeeze(1).mean()
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = ((logits * middle).softmax(1) * logits).sum(1).mean()
        low, high = (middle, high) if expected <= picked else (low, middle)
    return 2 / (low + high)


def calibrated(
    logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], before: float = 1.0
) -> tuple[dict[str, Any], Tally, Tally]:
    """A temperature fitted on half of two images or more and measured on the others: its fields, and what was counted of the others
    before and after. `before` is the temperature that the logits were divided by already.
    """
    order = by_class(labels.numpy(), "temperature")
    fit, rest = torch.from_numpy(np.sort(order[::2])), torch.from_numpy(np.sort(order[1::2]))
    temperature = fitted_temperature(logits[fit].double() * before, labels[fit])
    tallies = []
    for divisor in (1.0, temperature / before):
        tally = Tally(logits.shape[1])
        tally.add(logits[rest] / divisor, labels[rest])
        tallies.append(tally)
    old, new = (tally.result() for tally in tallies)
    fields = {
        "temperature": temperature,
        "fitted_on": len(fit),
        "n": len(rest),
        "loss": new["loss"],
        "ece": new["ece"],
        "loss_before": old["loss"],
        "ece_before": old["ece"],
    }
    return fields, tallies[0], tallies[1]
