"""What layers compute of their weights alone, computed once for all passes between two updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitcli.model.linear import packed


class Held(nn.Module):
    """A layer whose passes take something made of its weight, such as the standardised one."""

    weight: nn.Parameter
    made: Tensor | None = None
    """Within `held`, what `make` made."""

    def make(self) -> Tensor:
        """What passes take, differentiable by the weight."""
        raise NotImplementedError

    def taken(self) -> Tensor:
        """Held, or made anew."""
        return self.make() if self.made is None else self.made


@contextlib.contextmanager
def frozen(model: nn.Module, bf16: bool) -> Iterator[None]:
    """Within it no weight changes: what is made of them is made once, and they are cast and reordered once."""
    with held(model), packed(model, bf16):
        yield


@contextlib.contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Within it the weights do not change, and what is made of them is made once however many passes there are. Where gradients
    are on they are added up for what was made, and reach the weights at its end.
    """
    layers = [module for module in model.modules() if isinstance(module, Held)]
    sources: list[Tensor] = []
    try:
        for layer in layers:
            made = layer.make()
            layer.made = made.detach().requires_grad_(made.requires_grad)
            sources.append(made)
        yield
        pairs = [(made, layer.made.grad) for made, layer in zip(sources, layers, strict=True) if layer.made is not None]
        reached = [(made, gradient) for made, gradient in pairs if gradient is not None]
        if reached:
            torch.autograd.backward([made for made, _ in reached], [gradient for _, gradient in reached])
    finally:
        for layer in layers:
            layer.made = None
