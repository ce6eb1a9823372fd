"""Linear layers whose bfloat16 products on a CPU take the bias into the product."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """x weightᵀ + bias, under autocast in its dtype.

    In bfloat16 on a CPU, torch writes the bias into the result first and adds the product to it. oneDNN's own
    product with a bias and a weight in its blocked layout is 4 to 15 % faster at the sizes of a ViT, the
    reordering of the weight included (benchmarks/linear.py).
    """
    if _is_bf16_on_cpu(x):
        result: Tensor = _Blocked.apply(x, weight, bias)
        return result
    return F.linear(x, weight, bias)


def _is_bf16_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu" or not _HAS_ONEDNN or torch.compiler.is_compiling() or not x.numel():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def blocked(weight: Float[Tensor, "outputs inputs"]) -> Tensor:
    """`weight` in bfloat16 in the layout of oneDNN's products."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16))
    return packed


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def onednn_has_bf16() -> bool:
    """Whether oneDNN computes in bfloat16 on this CPU: with AVX-512, AMX or AVX-NE-CONVERT; others take torch's products."""
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# torch's own names for what torch.compile emits; a build without oneDNN, or a later torch, may not have them
_HAS_ONEDNN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    and onednn_has_bf16()
)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.to(torch.bfloat16)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, blocked(weight), None if bias is None else bias.detach().to(torch.bfloat16))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, blocked(weight.t()), None) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


class Linear(nn.Linear):
    """torch's nn.Linear, computed by `linear`."""

    packed: tuple[Tensor, Tensor | None] | None = None  # weight and bias as the product takes them, within `packed`

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.packed is not None and _is_bf16_on_cpu(x):
            return _product(x.to(torch.bfloat16), *self.packed)
        return linear(x, self.weight, self.added())

    def added(self) -> Float[Tensor, " outputs"] | None:
        """What is added to the product."""
        return self.bias


@contextlib.contextmanager
def packed(model: nn.Module, bf16: bool) -> Iterator[None]:
    """Within it, weights that do not change are cast and reordered once rather than for every batch.

    For inference in bfloat16 on a CPU; elsewhere it does nothing. No gradient reaches the weights.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    layers = [layer for layer in layers if bf16 and _HAS_ONEDNN and layer.weight.device.type == "cpu"]
    try:
        for layer in layers:
            bias = layer.added()
            layer.packed = (blocked(layer.weight), None if bias is None else bias.detach().to(torch.bfloat16))
        yield
    finally:
        for layer in layers:
            layer.packed = None
