"""Attention rollout against the definition in numpy, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitcli.analysis.attention import Rollout
from vitcli.config import ModelConfig

SMALL = ModelConfig(width=12, depth=3, heads=3, mlp=24, patch=(8, 8), img_size=(16, 24))

KINDS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "patches alone": {"class_token": False, "pool": "mean"},
    "class token and mean": {"pool": "cls+mean"},
    "distillation token": {"distilled": True},
    "registers": {"registers": 4},
}


def drawn(config: ModelConfig, images: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, config.heads, config.tokens, config.tokens)
    return [(2 * torch.randn(shape, generator=generator)).softmax(-1) for _ in range(config.depth)]


def rolled(config: ModelConfig, layers: list[Tensor], discard: float = 0.0) -> Rollout:
    rollout = Rollout(config, len(layers[0]), torch.device("cpu"), discard)
    for layer, weights in enumerate(layers, start=1):
        rollout(layer, slice(0, 1), weights[:1])
        rollout(layer, slice(1, len(weights)), weights[1:])
    return rollout


def by_definition(config: ModelConfig, layers: list[Tensor], image: int, discard: float = 0.0) -> np.ndarray:
    product = np.eye(config.tokens)
    for weights in layers:
        mean = weights[image].double().numpy().mean(0)
        cut = np.sort(mean, axis=None)[int(discard * mean.size)] if discard else 0.0
        mean = np.where(mean < cut, 0.0, mean)
        mixed = mean + np.eye(config.tokens) if not discard else 0.5 * mean + 0.5 * np.eye(config.tokens)
        product = (mixed / mixed.sum(1, keepdims=True)) @ product
    return product


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discard", [0.0, 0.6])
def test_it_is_the_definition(kind: str, discard: float) -> None:
    config = replace(SMALL, **KINDS[kind])
    layers = drawn(config)
    found, prefix = rolled(config, layers, discard), config.prefix_tokens
    for image in range(2):
        product = by_definition(config, layers, image, discard)
        np.testing.assert_allclose(found.product[image].numpy(), product, atol=1e-6)
        read = {
            "class token": product[0],
            "mean": product[prefix:].mean(0),
            "patches alone": product.mean(0),
            "class token and mean": (product[0] + product[prefix:].mean(0)) / 2,
            "distillation token": product[:2].mean(0),
            "registers": product[0],
        }[kind]
        last = found.layers()[-1, image]
        assert last.shape == (2, 3)
        np.testing.assert_allclose(last.flatten(), read[prefix:], atol=1e-6)


def test_attention_to_oneself_leaves_everything_where_it_is() -> None:
    config = replace(SMALL, class_token=False, pool="mean")
    one = torch.eye(config.tokens).expand(1, config.heads, -1, -1)
    assert torch.equal(rolled(config, [one] * 3).product[0], torch.eye(config.tokens))


def test_uniform_attention_by_its_closed_form() -> None:
    """((I + J/n) / 2)^L = 2^-L I + (1 - 2^-L) J/n, J the matrix of ones."""
    n = SMALL.tokens
    uniform = torch.full((1, SMALL.heads, n, n), 1 / n)
    found = rolled(SMALL, [uniform] * 3).product[0]
    torch.testing.assert_close(found, torch.eye(n) / 8 + torch.full((n, n), 7 / 8 / n))


def test_layers_are_the_rollout_up_to_each() -> None:
    layers = drawn(SMALL)
    found = rolled(SMALL, layers).layers()
    assert found.shape == (3, 2, 2, 3)
    for depth in (1, 2, 3):
        shorter = rolled(replace(SMALL, depth=depth), layers[:depth]).layers()
        np.testing.assert_array_equal(shorter[-1], found[depth - 1])


def test_discarding_counts_weights_and_not_values() -> None:
    """Of equal weights exactly the part asked for goes."""
    n = SMALL.tokens
    uniform = torch.full((1, SMALL.heads, n, n), 1 / n)
    rollout = Rollout(replace(SMALL, depth=1), 1, torch.device("cpu"), discard=0.5)
    rollout(1, slice(0, 1), uniform)
    off_diagonal = rollout.product[0] * (1 - torch.eye(n))
    zeros = int((off_diagonal == 0).sum()) - n
    assert abs(zeros - n * n // 2) <= n


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 0.9, 0.99]), st.sampled_from(sorted(KINDS)))
def test_rows_are_distributions(seed: int, discard: float, kind: str) -> None:
    config = replace(SMALL, **KINDS[kind])
    found = rolled(config, drawn(config, 2, seed), discard)
    assert (found.product >= 0).all()
    torch.testing.assert_close(found.product.sum(2), torch.ones(2, config.tokens), rtol=0, atol=1e-5)
    assert (found.layers().sum((2, 3)) <= 1 + 1e-5).all()
