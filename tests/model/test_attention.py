"""Attention against torch's own, and the attention weights as a function of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcli.config import ModelConfig
from vitcli.model import attention
from vitcli.model.attention import PATHS, PLAIN_TOKENS_ON_CPU, Attention, attend, attention_weights, best_path


def qkv(batch: int, heads: int, tokens: int, dim: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, heads, tokens, dim, generator=generator) for _ in range(3)]


SHAPES = {
    "batch": st.integers(1, 3),
    "heads": st.integers(1, 4),
    "tokens": st.integers(1, 33),
    "dim": st.integers(1, 24),
    "seed": st.integers(0, 2**31),
}


@settings(deadline=None, max_examples=50)
@given(**SHAPES, scale=st.floats(0, 50))
def test_each_row_of_weights_is_a_distribution(batch, heads, tokens, dim, seed, scale):
    q, k, _ = qkv(batch, heads, tokens, dim, seed, scale)
    weights = attention_weights(q, k)
    assert weights.shape == (batch, heads, tokens, tokens)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, heads, tokens), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(**SHAPES, path=st.sampled_from([None, *PATHS]))
def test_attend_is_scaled_dot_product_attention_and_the_weights_times_v(batch, heads, tokens, dim, seed, path):
    q, k, v = qkv(batch, heads, tokens, dim, seed)
    result = attend(torch.stack([q, k, v]), path)
    torch.testing.assert_close(result, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result, attention_weights(q, k) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [PLAIN_TOKENS_ON_CPU, PLAIN_TOKENS_ON_CPU + 1])
def test_both_sides_of_the_length_at_which_the_path_changes_agree(tokens):
    assert best_path("cpu", tokens) == ("plain" if tokens <= PLAIN_TOKENS_ON_CPU else "recompute")
    q, k, v = qkv(1, 2, tokens, 16)
    result = attend(torch.stack([q, k, v]))
    torch.testing.assert_close(result, attention_weights(q, k) @ v, rtol=1e-4, atol=1e-5)


def test_accelerators_use_the_fused_kernel():
    assert best_path("cuda", 50) == best_path("mps", 5000) == "fused"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_gradients_are_those_of_torch_s_own(path, contiguous, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_BYTES", 2 * 3 * 17 * 17 * 4)  # two images at a time, the last alone
    stacked = torch.stack(qkv(5, 3, 17, 8))
    if not contiguous:
        stacked = stacked.permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    grads = []
    for function in (lambda t: attend(t, path), lambda t: F.scaled_dot_product_attention(*t.unbind(0))):
        leaf = stacked.clone().requires_grad_()
        function(leaf).pow(2).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_gradients_pass_a_numerical_check():
    stacked = torch.stack(qkv(2, 2, 4, 3)).double().requires_grad_()
    for path in ("plain", "recompute"):
        assert torch.autograd.gradcheck(lambda t, path=path: attend(t, path), (stacked,))


def test_what_stands_in_fresh_memory_does_not_reach_the_result():
    stacked = torch.stack(qkv(4, 3, 33, 16)).requires_grad_()
    expected = torch.autograd.grad(attend(stacked).sum(), stacked)[0]
    for _ in range(3):
        poison = [torch.full((3, 4, 3, 33, 16), torch.nan) for _ in range(4)]
        del poison
        torch.testing.assert_close(torch.autograd.grad(attend(stacked).sum(), stacked)[0], expected, rtol=0, atol=0)


def test_recompute_keeps_less_for_the_backward_pass():
    kept = {}
    for path in ("plain", "recompute"):
        sizes = []
        leaf = torch.stack(qkv(2, 2, 64, 8)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            attend(leaf, path)
        kept[path] = sum(sizes)
    assert kept["plain"] - kept["recompute"] == 2 * 2 * 64 * 64


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_first_outputs_alone_are_those_of_all(outputs):
    torch.manual_seed(0)
    module, x = Attention(ModelConfig(width=24, heads=3)), torch.randn(2, 9, 24, requires_grad=True)
    whole, part = module(x)[:, :outputs], module(x, outputs)
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(whole.pow(2).sum(), [x, *module.parameters()])
    found = torch.autograd.grad(part.pow(2).sum(), [x, *module.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_weights_are_softmax_of_the_scaled_products_by_hand():
    q, k, _ = qkv(1, 1, 3, 4)
    logits = torch.tensor([[float(sum(q[0, 0, i] * k[0, 0, j])) / 2 for j in range(3)] for i in range(3)])
    by_hand = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(attention_weights(q, k)[0, 0], by_hand, rtol=1e-5, atol=1e-6)


def test_queries_and_keys_may_differ_in_number():
    q, k, _ = qkv(2, 2, 9, 8)
    assert attention_weights(q[:, :, :1], k).shape == (2, 2, 1, 9)


def test_weights_do_not_overflow():
    q, k, _ = qkv(1, 2, 8, 16, scale=1e4)
    assert torch.isfinite(attention_weights(q, k)).all()


def test_the_module_equals_torch_multi_head_attention():
    torch.manual_seed(0)
    ours, theirs = Attention(ModelConfig(width=24, heads=3)), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_projections_come_in_the_order_q_k_v_and_heads_are_contiguous():
    module, x = Attention(ModelConfig(width=12, heads=3)), torch.randn(2, 5, 12)
    projected = module.project(x)
    flat = module.qkv(x)
    assert projected.shape == (3, 2, 3, 5, 4)
    for part in range(3):
        for head in range(3):
            start = part * 12 + head * 4
            torch.testing.assert_close(projected[part, :, head], flat[..., start : start + 4])


def test_tokens_are_treated_alike_whatever_their_order():
    torch.manual_seed(1)
    module, x, order = Attention(ModelConfig(width=16, heads=4)), torch.randn(1, 9, 16), torch.randperm(9)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=1e-4, atol=1e-5)
