"""LAMB (You et al., 2020, "Large Batch Optimization for Deep Learning", algorithm 2), all parameters of a group at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""Of the paper and of NVIDIA/apex; DeiT-III's script hands apex 1e-8."""


class Lamb(torch.optim.Optimizer):
    """Adam's direction with bias correction, and the decay beside it, at the length of the weights themselves:
    θ ← θ - lr · (|θ| / |u|) · u with u = m̂ / (√v̂ + ε) + decay · θ.

    As in NVIDIA/apex apex/optimizers/fused_lamb.py without NVLAMB: what does not decay has the factor one, as have weights or
    directions of length zero. apex also scales gradients down to a global norm of 1, which is optim.clip here.
    """

    found_inf: Tensor | None = None
    """As torch's gradient scaler sets it for fused optimizers: where it holds 1, nothing changes."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], capturable: bool = False
    ) -> None:
        """With `capturable` counters lie beside the weights, and nothing is asked of them."""
        defaults = {"lr": lr, "betas": betas, "weight_decay": 0.0, "capturable": capturable}
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        done = 1.0 if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = self._directions(weights, group["betas"], group["capturable"])
            if group["weight_decay"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                torch._foreach_mul_(updates, _ratios(weights, updates))
            if isinstance(group["lr"], Tensor):
                torch._foreach_mul_(updates, group["lr"] * done)
                torch._foreach_sub_(weights, updates)
            else:
                torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _directions(self, weights: list[Tensor], betas: tuple[float, float], capturable: bool) -> list[Tensor]:
        """Adam's, of new tensors; the averages take the gradients in."""
        beta1, beta2 = betas
        for p in weights:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device if capturable else "cpu"),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        gradients = [p.grad for p in weights if p.grad is not None]
        steps, means, squares = ([self.state[p][what] for p in weights] for what in ("step", "exp_avg", "exp_avg_sq"))
        if self.found_inf is None:
            torch._foreach_add_(steps, 1)
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        else:  # an average that takes itself in stays as it is
            torch._foreach_add_(steps, [1 - self.found_inf] * len(steps))
            for mean, square, gradient in zip(means, squares, gradients, strict=True):
                mean.lerp_(torch.where(self.found_inf > 0, mean, gradient), 1 - beta1)
                square.lerp_(torch.where(self.found_inf > 0, square, gradient.square()), 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        # an update that was refused before any was made has nothing to correct
        counts = torch.stack(steps).clamp(min=1).double()
        torch._foreach_div_(roots, list((1 - beta2**counts).sqrt().unbind()))
        torch._foreach_add_(roots, EPSILON)
        updates = torch._foreach_div(means, list((1 - beta1**counts).unbind()))
        torch._foreach_div_(updates, roots)
        return list(updates)


def _ratios(weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """|θ| / |u| of each, one where either is zero."""
    lengths, steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
    ratios = torch.where((lengths > 0) & (steps > 0), lengths / steps, 1.0)
    return list(ratios.unbind())
