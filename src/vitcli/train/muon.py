"""Muon (Jordan et al., 2024), all matrices of a shape at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPS = 1e-7


def orthogonalised(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """About U Vᵀ of each U S Vᵀ: singular values between 0.7 and 1.2, by five quintic Newton-Schulz steps.

    The coefficients are those of github.com/KellerJordan/Muon. Rows must not outnumber columns.
    """
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=_EPS).view(-1, 1, 1)
    for _ in range(_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's rule, with Nesterov momentum and decoupled decay.

    torch's own orthogonalises one matrix after the other, which for a small model is a quarter of a training step. A
    parameter may be several matrices on top of each other, as q, k and v are: `parts` of its group says how many. `dtype` is
    that of the orthogonalisation.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.dtype = dtype
        super().__init__(list(groups), {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        by_shape: dict[tuple[int, int], list[tuple[Tensor, float, Tensor]]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum_buffer"], group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                columns = math.prod(p.shape[1:])  # a convolution's filters are rows
                parts = p.view(group["parts"], -1, columns), update.view(group["parts"], -1, columns)
                rows = parts[0].shape[1]
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                wide = [t if rows <= columns else t.transpose(1, 2) for t in parts]
                by_shape.setdefault((min(rows, columns), max(rows, columns)), []).append((wide[0], rate, wide[1]))
        for members in by_shape.values():
            updates = orthogonalised(torch.cat([update.to(self.dtype) for _, _, update in members]))
            for (weights, rate, _), update in zip(members, updates.split([len(m[0]) for m in members]), strict=True):
                weights.add_(update, alpha=-rate)
