"""Watching for numbers that are no longer finite, without waiting for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitcli import host
from vitcli.randomness import Step


@dataclass(frozen=True)
class Failure:
    """The update that was not made."""

    step: int  # updates before it
    loss: float
    grad_norm: float


class Watch:
    """Refuses the first update whose loss or gradient is not finite, and each after it: the weights stay as they were before it until
    somebody looks.
    """

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.long, device=device)
        self._numbers = torch.zeros(2, device=device)
        self.admitted = torch.ones((), device=device)
        """1 where the last update was made, else 0."""

    @torch.no_grad()
    def admits(self, step: Step, loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the update `step`, from 0, is to be made."""
        numbers = torch.stack([loss.detach().float(), norm.detach().float()])
        finite, fresh = torch.isfinite(numbers).all(), self._step < 0
        first = ~finite & fresh
        self._step.copy_(torch.where(first, host.tensor(step, self._step.device), self._step))
        self._numbers.copy_(torch.where(first, numbers, self._numbers))
        admitted = finite & fresh
        self.admitted.copy_(admitted)
        return admitted

    def failure(self) -> Failure | None:
        """Waits for the device."""
        step = int(self._step)
        return None if step < 0 else Failure(step, *self._numbers.tolist())
