"""Linear layers against torch's own, in both precisions, with packed weights and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vitcli.model import linear as module
from vitcli.model.linear import Linear, linear, packed


def of(inputs: int, outputs: int, rows: tuple[int, ...], seed: int) -> tuple[torch.Tensor, Linear]:
    torch.manual_seed(seed)
    return torch.randn(*rows, inputs), Linear(inputs, outputs)


def bf16(run):  # type: ignore[no-untyped-def]
    with torch.autocast("cpu", torch.bfloat16):
        return run()


@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_bf16_differs_from_fp32_by_no_more_than_torch_s_bf16_does(inputs, outputs, rows, seed):
    x, layer = of(inputs, outputs, tuple(rows), seed)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    ours, theirs = bf16(lambda: layer(x)), bf16(lambda: F.linear(x, layer.weight, layer.bias))
    assert ours.dtype == torch.bfloat16
    assert ours.shape == theirs.shape
    assert (ours - exact).abs().max() <= 1.01 * (theirs - exact).abs().max() + 0.008 * exact.abs().max()


def test_fp32_is_torch_s_own():
    x, layer = of(24, 40, (2, 3), 0)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with packed(layer, bf16=True):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_gradients_in_bf16_are_torch_s():
    x, layer = of(48, 32, (4, 7), 1)
    x.requires_grad_()
    wanted = [x, layer.weight, layer.bias]
    gradients = []
    for run in (lambda: linear(*wanted), lambda: F.linear(*wanted)):
        gradients.append(torch.autograd.grad(bf16(run).float().pow(2).sum(), wanted))
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def test_only_the_gradients_that_are_needed_are_computed():
    x, layer = of(8, 8, (2,), 0)
    layer.weight.requires_grad_(False)
    bf16(lambda: layer(x)).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is None
    assert layer.bias.grad is not None


def test_packed_weights_give_the_same_bits_and_are_gone_afterwards():
    x, layer = of(64, 96, (3, 5), 2)
    before = bf16(lambda: layer(x))
    with torch.inference_mode(), packed(torch.nn.Sequential(layer), bf16=True):
        assert layer.packed is not None
        assert torch.equal(bf16(lambda: layer(x)), before)
    assert layer.packed is None
    with torch.no_grad():
        layer.weight.mul_(2)
    assert not torch.equal(bf16(lambda: layer(x)), before)


def test_packed_is_undone_after_an_error_and_does_nothing_in_fp32():
    _, layer = of(8, 8, (2,), 0)
    with packed(layer, bf16=False):
        assert layer.packed is None
    with pytest.raises(ZeroDivisionError), packed(layer, bf16=True):
        raise ZeroDivisionError
    assert layer.packed is None


def test_without_onednn_torch_s_own_product_is_taken(monkeypatch):
    x, layer = of(16, 16, (2,), 0)
    monkeypatch.setattr(module, "_HAS_ONEDNN", False)
    with packed(layer, bf16=True):
        assert torch.equal(bf16(lambda: layer(x)), bf16(lambda: F.linear(x, layer.weight, layer.bias)))


def test_no_rows_are_no_error():
    x, layer = of(16, 8, (0, 3), 0)
    assert bf16(lambda: layer(x)).shape == (0, 3, 8)
