"""One optimizer interface over several, one schedule for all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitcli import host
from vitcli.config import OptimConfig
from vitcli.model.classifier import Classifier
from vitcli.train import sharding
from vitcli.train.lamb import Lamb
from vitcli.train.muon import Muon
from vitcli.train.objectives.base import Objective

_NOTHING = "nothing"
"""What stands in a state for a parameter of which the optimizer remembers nothing."""
OWN = "objective."
"""What the names of an objective's parameters begin with, so that none is a parameter's of the model."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A parameter, and what decides its rate: `matrices` are those that it holds for Muon, 0 where Muon does not take it."""

    name: str
    parameter: nn.Parameter
    layer: int
    is_decayed: bool
    matrices: int = 0


def trained(model: Classifier, objective: Objective | None = None) -> list[Trained]:
    """The parameters of a run that are trained. Kernels alone decay, head and patch embedding included (big_vision's default):
    not biases, norms, tokens, positions. What an objective owns has the rate of the head.
    """
    undecayed, matrices = model.undecayed(), model.matrices()
    found = [
        Trained(name, p, model.layer_of(name), p.ndim >= 2 and name not in undecayed, matrices.get(name, 0))
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    if objective is not None:
        found += [
            Trained(OWN + name, p, model.layers, p.ndim >= 2 and name not in objective.undecayed())
            for name, p in objective.named_parameters()
            if p.requires_grad
        ]
    return found


def lr_factor(config: OptimConfig, step: int, progress: float, total: float) -> float:
    """The schedule: a part of the base rate for update `step` (from 0), `progress` in 0..1 of `total` updates.

    Warm-up is linear and its first update is above zero; the decay runs over what remains after it.
    """
    warm = min(1.0, config.warmup_steps / max(total, 1.0)) if config.warmup_steps else config.warmup
    rising = (
        min(1.0, (step + 1) / config.warmup_steps)
        if config.warmup_steps
        else min(1.0, progress / warm + 1 / max(total * warm, 1))
        if warm
        else 1.0
    )
    p = min(1.0, max(0.0, (progress - warm) / (1 - warm))) if warm < 1 else 0.0
    if config.schedule == "cosine":
        falling = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * p))
    elif config.schedule == "linear":
        falling = config.final_lr + (1 - config.final_lr) * (1 - p)
    elif config.schedule == "step":
        falling = 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    else:
        falling = 1.0
    return rising * falling


class SGD(torch.optim.SGD):
    """SGD with momentum and decoupled weight decay (Loshchilov and Hutter, 2019, "Decoupled Weight Decay Regularization",
    algorithm 1): v ← μ·v + g, θ ← θ·(1 - lr·decay) - lr·v.

    torch's own adds the decay to the gradient, where momentum multiplies it by 1 / (1 - μ), ten times at 0.9. The decay is
    `decoupled_decay` of a group, so that torch's stays zero.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        found_inf = getattr(self, "found_inf", None)
        done: Any = 1.0 if found_inf is None else 1 - found_inf
        for group in self.param_groups:
            decayed = [p for p in group["params"] if p.grad is not None]
            if group["decoupled_decay"] and decayed:
                torch._foreach_mul_(decayed, 1 - group["lr"] * group["decoupled_decay"] * done)
        super().step()


class Optimizer:
    """AdamW, LAMB, SGD with momentum, or Muon for the blocks' matrices with AdamW for the rest, with layer-wise rates.

    All but LAMB decay alike, decoupled: a matrix shrinks by its rate times `optim.weight_decay` of itself in every update.
    `bf16` orthogonalises in bfloat16, which takes four times as long as float32 where the hardware has no units for it.

    Of a parameter in parts (sharding.py) it updates the part of this process.

    On a device that the host does not wait for, rates are tensors beside the parameters, and an update that is not to be
    made is left out by the kernels, which all read the same flag.
    """

    def __init__(
        self, parameters: Iterable[Trained], config: OptimConfig, layers: int, fused: bool, bf16: bool
    ) -> None:
        self.config = config
        self.parameters: list[nn.Parameter] = []
        self._parted: dict[nn.Parameter, nn.Parameter] = {}
        groups: dict[tuple[bool, bool, int, int, bool], list[Trained]] = {}
        for item in parameters:
            muon = config.name == "muon" and item.matrices > 0
            own = item.name.startswith(OWN)
            key = (muon, item.is_decayed, item.layer, item.matrices if muon else 1, own)
            groups.setdefault(key, []).append(item)
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for (muon, decayed, layer, parts, own), members in sorted(groups.items(), key=lambda pair: pair[0]):
            rate = config.layer_decay ** (layers - layer)
            lr = (config.objective_lr if own else None) or config.lr
            group = {
                "params": [self._own(item.parameter) for item in members],
                "names": [item.name for item in members],
                "base_lr": rate * (config.muon_lr if muon else lr),
                "weight_decay": config.weight_decay if decayed else 0.0,
                "parts": parts,
            }
            (matrices if muon else others).append(group)
        every = [p for group in matrices + others for p in group["params"]]
        self.is_deferred = fused and bool(every) and not host.can_read(every[0])
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            dtype = torch.bfloat16 if bf16 else torch.float32
            self.parts.append(Muon(matrices, config.muon_lr, config.muon_momentum, dtype))
        if others and config.name == "sgd":
            for group in others:
                group["decoupled_decay"] = group.pop("weight_decay")
            self.parts.append(SGD(others, lr=config.lr, momentum=config.momentum, fused=fused))
        elif others and config.name == "lamb":
            self.parts.append(Lamb(others, config.lr, config.betas, self.is_deferred))
        elif others:
            capturable = self.is_deferred
            adamw = torch.optim.AdamW(others, lr=config.lr, betas=config.betas, fused=fused, capturable=capturable)
            adamw._warned_capturable_if_run_uncaptured = True  # not every update is recorded
            self.parts.append(adamw)
        self.groups: list[dict[str, Any]] = [group for part in self.parts for group in part.param_groups]
        if self.is_deferred:
            device = every[0].device
            self._base = host.constants([group["base_lr"] for group in self.groups], device)
            self._factor, self._rates = torch.ones((), device=device), self._base.clone()
            for target, now in zip(self.groups, self._rates.unbind(), strict=True):
                target["lr"] = now

    def _own(self, parameter: nn.Parameter) -> nn.Parameter:
        """What is updated of it, in the same memory."""
        self.parameters.append(parameter)
        if not sharding.is_parted(parameter):
            return parameter
        own = nn.Parameter(sharding.local(parameter.detach()))
        self._parted[own] = parameter
        return own

    def set_factor(self, factor: float) -> None:
        """Set every rate to its base times `factor`."""
        if self.is_deferred:
            self._factor.fill_(factor)
            return
        for group in self.groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, admitted: Bool[Tensor, ""] | None = None) -> None:
        """Update the parameters, unless `admitted` is false."""
        if admitted is not None and not self.is_deferred and not host.read(admitted):
            return
        if self.is_deferred:
            torch.mul(self._base, self._factor, out=self._rates)
        for own, parameter in self._parted.items():
            own.grad = None if parameter.grad is None else sharding.local(parameter.grad)
        refused = (~admitted).float() if admitted is not None and self.is_deferred else None
        for part in self.parts:
            part.found_inf = refused  # type: ignore[attr-defined]
            part.step()

    def zero_grad(self) -> None:
        for parameter in (*self.parameters, *self._parted):
            parameter.grad = None

    def clip(self, limit: float) -> Tensor:
        """The gradient's global norm; above `limit` (0: none) the gradient is scaled down to it."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = sharding.whole(torch.nn.utils.get_total_norm(gradients))
        if limit:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and counters by `parameter/what`."""
        found = {}
        for part in self.parts:
            for group in part.param_groups:
                for name, parameter in zip(group["names"], group["params"], strict=True):
                    kept = {what: value for what, value in part.state.get(parameter, {}).items() if value is not None}
                    for what, value in kept.items():
                        found[f"{name}/{what}"] = self._whole(parameter, torch.as_tensor(value))
                    if not kept:  # no gradient has reached it yet
                        found[f"{name}/{_NOTHING}"] = torch.zeros(0)
        return found

    def _whole(self, own: nn.Parameter, kept: Tensor) -> Tensor:
        """What is kept of a parameter, as part of what the processes keep together."""
        parameter = self._parted.get(own)
        return kept if parameter is None or kept.shape != own.shape else sharding.part_of(parameter, kept)

    def restore(self, saved: dict[str, Tensor]) -> None:
        """The inverse of `state`, each tensor where a step looks for it: beside its parameter, but for the counter of a
        kernel that is not fused, which torch keeps on the CPU. Raises KeyError where a parameter's state is missing.
        """
        by_name: dict[str, dict[str, Any]] = {}
        for key, value in saved.items():
            name, _, what = key.rpartition("/")
            by_name.setdefault(name, {})[what] = value
        for part in self.parts:
            for group in part.param_groups:
                beside = bool(group.get("fused") or group.get("capturable"))
                if isinstance(part, SGD) and not group["momentum"]:
                    continue  # it remembers nothing
                for name, parameter in zip(group["names"], group["params"], strict=True):
                    part.state[parameter] = {
                        what: sharding.local(value).to(
                            "cpu" if what == "step" and not beside else parameter.device, copy=True
                        )
                        for what, value in by_name[name].items()
                        if what != _NOTHING
                    }


class Average:
    """The exponential moving average of the weights (Polyak averaging, paper §4.1), slower in the first steps.

    `weights` are a whole state of the model: buffers are the model's own, of the last update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._learned = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, admitted: Float[Tensor, ""] | None = None) -> None:
        """θ̄ ← d·θ̄ + (1 - d)·θ with d = min(decay, (1 + step) / (10 + step)), where `admitted` is 1; 0 leaves it as it is."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        now = model.state_dict()
        own, new = ([tensors[name] for name in tensors if name in self._learned] for tensors in (self.weights, now))
        if admitted is None or host.can_read(admitted):
            torch._foreach_lerp_(own, new, share)
        else:
            steps = torch._foreach_sub(new, own)
            torch._foreach_mul_(steps, admitted * share)
            torch._foreach_add_(own, steps)
        for name, tensor in now.items():
            if name not in self._learned:
                self.weights[name].copy_(tensor)

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError where they are not a state of this model."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
