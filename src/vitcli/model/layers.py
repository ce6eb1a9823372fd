"""Norms, activations and the MLP of a block, in each of the kinds that a configuration names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.model.linear import Linear


class RMSNorm(nn.RMSNorm):
    """In float32, and of the type that is given: torch computes a mixture of types in many steps, with a warning."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """A LayerNorm, or with `rms` x / √(mean x² + eps) times a weight (Zhang and Sennrich, 2019)."""
    return RMSNorm(width, eps) if kind == "rms" else nn.LayerNorm(width, eps)


class QuickGELU(nn.Module):
    """x·σ(1.702x), with which CLIP was trained (openai/CLIP clip/model.py)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """By its name in `model.gelu`."""
    if name == "quick":
        return QuickGELU()
    return nn.SiLU() if name == "silu" else nn.GELU(approximate="tanh" if name == "tanh" else "none")


class Mlp(nn.Module):
    """width → hidden → width, with dropout after the activation (google-research/vision_transformer models_vit.py).

    A `gated` one projects to twice the hidden channels: the activations of the first half times the second (Shazeer, 2020). A `norm`
    is of the hidden channels.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        act: str,
        *,
        dropout: float = 0.0,
        gated: bool = False,
        bias: bool = True,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = Linear(width, (1 + gated) * hidden, bias=bias)
        self.act = activation(act)
        self.drop = nn.Dropout(dropout)
        self.norm = norm or nn.Identity()
        self.fc2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        hidden = self.fc1(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        return self.fc2(self.norm(self.drop(hidden)))
