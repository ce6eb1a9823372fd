"""Attention against torch's own, and the attention weights as a function of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcli.model.attention import PLAIN_TOKENS_ON_CPU, Attention, attend, attention_weights, uses_plain


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
@given(**SHAPES)
def test_attend_is_scaled_dot_product_attention_and_the_weights_times_v(batch, heads, tokens, dim, seed):
    q, k, v = qkv(batch, heads, tokens, dim, seed)
    result = attend(q, k, v)
    torch.testing.assert_close(result, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result, attention_weights(q, k) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [PLAIN_TOKENS_ON_CPU, PLAIN_TOKENS_ON_CPU + 1])
def test_both_sides_of_the_length_at_which_the_path_changes_agree(tokens):
    assert uses_plain("cpu", tokens) == (tokens <= PLAIN_TOKENS_ON_CPU)
    q, k, v = qkv(1, 2, tokens, 16)
    torch.testing.assert_close(attend(q, k, v), attention_weights(q, k) @ v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_accelerators_use_the_fused_kernel():
    assert not uses_plain("cuda", 50)
    assert not uses_plain("mps", 50)


def test_gradients_of_both_paths_agree():
    grads = []
    for function in (attend, F.scaled_dot_product_attention):
        parts = [t.requires_grad_() for t in qkv(2, 3, 17, 8)]
        (function(*parts) ** 2).sum().backward()
        grads.append([t.grad for t in parts])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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
    ours, theirs = Attention(24, 3), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_projections_come_in_the_order_q_k_v_and_heads_are_contiguous():
    module, x = Attention(12, 3), torch.randn(2, 5, 12)
    projected = module.project(x)
    flat = module.qkv(x)
    assert projected.shape == (3, 2, 3, 5, 4)
    for part in range(3):
        for head in range(3):
            start = part * 12 + head * 4
            torch.testing.assert_close(projected[part, :, head], flat[..., start : start + 4])


def test_tokens_are_treated_alike_whatever_their_order():
    torch.manual_seed(1)
    module, x, order = Attention(16, 4), torch.randn(1, 9, 16), torch.randperm(9)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=1e-4, atol=1e-5)
