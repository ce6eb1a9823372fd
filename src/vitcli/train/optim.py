"""One optimizer interface over several, one schedule for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vitcli.config import OptimConfig
from vitcli.train.muon import Muon

_UNDECAYED = ("pos_embed", "cls_token", "dist_token", "reg_token")


def layer_of(name: str, depth: int) -> int:
    """0 for patches, class token and positions, i + 1 for block i, depth + 1 for what follows (MAE util/lr_decay.py)."""
    if name.startswith((*_UNDECAYED, "patch_embed")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Kernels alone, head and patch embedding included (big_vision's default): not biases, norms, tokens, positions."""
    return parameter.ndim >= 2 and not name.endswith(_UNDECAYED)


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
        for group in self.param_groups:
            decayed = [p for p in group["params"] if p.grad is not None]
            if group["decoupled_decay"] and decayed:
                torch._foreach_mul_(decayed, 1 - group["lr"] * group["decoupled_decay"])
        super().step()


class Optimizer:
    """AdamW, SGD with momentum, or Muon for the blocks' matrices with AdamW for the rest, with layer-wise rates.

    All decay alike, decoupled: a matrix shrinks by its rate times `optim.weight_decay` of itself in every update.
    `bf16` orthogonalises in bfloat16, which takes four times as long as float32 where the hardware has no units for it.
    """

    def __init__(
        self,
        named: Iterator[tuple[str, nn.Parameter]],
        config: OptimConfig,
        depth: int,
        fused: bool = True,
        bf16: bool = True,
    ) -> None:
        self.config = config
        groups: dict[tuple[bool, bool, int, int], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                muon = config.name == "muon" and parameter.ndim == 2 and name.startswith("blocks.")
                parts = 3 if muon and name.endswith("attn.qkv.weight") else 1  # q, k and v are matrices of their own
                key = (muon, is_decayed(name, parameter), layer_of(name, depth), parts)
                groups.setdefault(key, []).append((name, parameter))
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for (muon, decayed, layer, parts), members in sorted(groups.items(), key=lambda item: item[0]):
            rate = config.layer_decay ** (depth + 1 - layer)
            group = {
                "params": [p for _, p in members],
                "names": [n for n, _ in members],
                "base_lr": rate * (config.muon_lr if muon else config.lr),
                "weight_decay": config.weight_decay if decayed else 0.0,
                "parts": parts,
            }
            (matrices if muon else others).append(group)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            dtype = torch.bfloat16 if bf16 else torch.float32
            self.parts.append(Muon(matrices, config.muon_lr, config.muon_momentum, dtype))
        if others and config.name == "sgd":
            for group in others:
                group["decoupled_decay"] = group.pop("weight_decay")
            self.parts.append(SGD(others, lr=config.lr, momentum=config.momentum, fused=fused))
        elif others:
            self.parts.append(torch.optim.AdamW(others, lr=config.lr, betas=config.betas, fused=fused))
        self.parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def set_factor(self, factor: float) -> None:
        """Set every rate to its base times `factor`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["base_lr"] * factor

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def clip(self, limit: float) -> Tensor:
        """The gradient's global norm; above `limit` (0: none) the gradient is scaled down to it."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and counters by `parameter/what`."""
        found = {}
        for part in self.parts:
            for group in part.param_groups:
                for name, parameter in zip(group["names"], group["params"], strict=True):
                    for what, value in part.state.get(parameter, {}).items():
                        if value is not None:
                            found[f"{name}/{what}"] = torch.as_tensor(value)
        return found

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
                        what: value.to("cpu" if what == "step" and not beside else parameter.device, copy=True)
                        for what, value in by_name[name].items()
                    }


class Average:
    """The exponential moving average of the weights (Polyak averaging, paper §4.1), slower in the first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """θ̄ ← d·θ̄ + (1 - d)·θ with d = min(decay, (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)
