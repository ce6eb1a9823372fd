"""Muon (Jordan et al., 2024), all matrices of a shape at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


@dataclass(frozen=True, eq=False)
class _Stack:
    """The matrices of one shape, with their momentum as one tensor, of which the state of each parameter is a view."""

    parameters: list[tuple[nn.Parameter, dict[str, Any]]]  # with their groups
    momentum: Float[Tensor, "matrices rows columns"]

    @property
    def counts(self) -> list[int]:
        return [group["parts"] for _, group in self.parameters]


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's rule, with Nesterov momentum and decoupled decay.

    torch's own orthogonalises one matrix after the other, which for a small model is a quarter of a training step. A
    parameter may be several matrices on top of each other, as q, k and v are: `parts` of its group says how many. `dtype` is
    that of the orthogonalisation. A group's `lr` is a number, or a tensor beside the parameters. Where `found_inf` is set,
    as torch's gradient scaler sets it for fused optimizers, and holds 1, nothing changes.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.dtype = dtype
        self._stacks: list[_Stack] = []
        super().__init__(list(groups), {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        done = 1.0 if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            decayed = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"] and decayed:
                torch._foreach_mul_(decayed, 1 - group["lr"] * group["weight_decay"] * done)
        # the direction of each matrix; those that are higher than wide are turned, so that few batches take all
        by_shape: dict[tuple[int, int], list[tuple[_Stack, bool, Tensor]]] = {}
        for stack in self._stacked():
            momentum = self.param_groups[0]["momentum"]
            rows, columns = stack.momentum.shape[1:]
            gradients = torch.cat([_matrices(p.grad, group) for p, group in stack.parameters if p.grad is not None])
            if self.found_inf is not None:
                gradients = torch.where(self.found_inf > 0, stack.momentum, gradients)
            stack.momentum.lerp_(gradients, 1 - momentum)
            directions = gradients.lerp_(stack.momentum, momentum)
            tall = rows > columns
            turned = directions.transpose(1, 2) if tall else directions
            by_shape.setdefault((min(rows, columns), max(rows, columns)), []).append((stack, tall, turned))
        for members in by_shape.values():
            updates = orthogonalised(torch.cat([turned.to(self.dtype) for _, _, turned in members]))
            for (stack, tall, _), own in zip(members, updates.split([len(m[2]) for m in members]), strict=True):
                self._apply(stack, own.transpose(1, 2) if tall else own, done)

    def _apply(self, stack: _Stack, updates: Float[Tensor, "matrices rows columns"], done: Tensor | float) -> None:
        rows, columns = updates.shape[1:]
        scale = math.sqrt(max(1.0, rows / columns))
        for (p, group), update in zip(stack.parameters, updates.split(stack.counts), strict=True):
            rate = group["lr"] * scale
            weights = _matrices(p, group)
            if isinstance(rate, Tensor):
                weights.addcmul_(update.to(p.dtype), rate * done, value=-1)
            else:
                weights.add_(update, alpha=-rate)

    def _stacked(self) -> list[_Stack]:
        """Of the parameters that have gradients; made anew where these are others than before, or their state is."""
        kept = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        own = {id(p) for stack in self._stacks for p, _ in stack.parameters}
        if own != {id(p) for p, _ in kept} or any(not self._is_whole(stack) for stack in self._stacks):
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, dict[str, Any]]]] = {}
            for p, group in kept:
                by_shape.setdefault(tuple(_matrices(p, group).shape[1:]), []).append((p, group))
            self._stacks = [self._stack(members) for members in by_shape.values()]
        return self._stacks

    def _is_whole(self, stack: _Stack) -> bool:
        first, _ = stack.parameters[0]
        mine: Tensor | None = self.state[first].get("momentum_buffer")
        return mine is not None and mine._base is stack.momentum

    def _stack(self, members: list[tuple[nn.Parameter, dict[str, Any]]]) -> _Stack:
        found = [self.state[p].get("momentum_buffer", torch.zeros_like(p)) for p, _ in members]
        stack = _Stack(members, torch.cat([_matrices(b, g) for b, (_, g) in zip(found, members, strict=True)]))
        for (p, _), part in zip(members, stack.momentum.split(stack.counts), strict=True):
            self.state[p]["momentum_buffer"] = part.view(p.shape)
        return stack


def _matrices(tensor: Tensor, group: dict[str, Any]) -> Float[Tensor, "parts rows columns"]:
    """A view of a parameter, or what belongs to it; a convolution's filters are rows."""
    return tensor.view(group["parts"], -1, math.prod(tensor.shape[1:]))
