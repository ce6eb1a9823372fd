"""LAMB against the paper's algorithm in NumPy's double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.config import OptimConfig
from vitcli.train.lamb import EPSILON, Lamb
from vitcli.train.optim import Optimizer, Trained

SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)


def tensors(shapes: list[tuple[int, ...]], seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def length(array: np.ndarray) -> float:
    return float(np.sqrt((array**2).sum()))


class ByHand:
    """One weight."""

    def __init__(self, weight: np.ndarray, beta1: float, beta2: float, decay: float) -> None:
        self.weight, self.beta1, self.beta2, self.decay = weight, beta1, beta2, decay
        self.mean, self.square, self.count = np.zeros_like(weight), np.zeros_like(weight), 0

    def step(self, gradient: np.ndarray, lr: float) -> None:
        self.count += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient**2
        mean, square = self.mean / (1 - self.beta1**self.count), self.square / (1 - self.beta2**self.count)
        update = mean / (np.sqrt(square) + EPSILON) + self.decay * self.weight
        ratio = 1.0
        if self.decay and length(self.weight) > 0 and length(update) > 0:
            ratio = length(self.weight) / length(update)
        self.weight = self.weight - lr * ratio * update


@given(
    shapes=SHAPES,
    seed=st.integers(0, 99),
    decay=st.sampled_from([0.0, 0.05, 0.5]),
    beta1=st.floats(0, 0.95),
    beta2=st.floats(0.5, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_updates_are_the_papers(shapes, seed: int, decay: float, beta1: float, beta2: float) -> None:
    started = tensors(shapes, seed)
    started[0].zero_()  # as a new head is
    weights = [torch.nn.Parameter(tensor.clone()) for tensor in started]
    hand = [ByHand(tensor.double().numpy(), beta1, beta2, decay) for tensor in started]
    optimizer = Lamb([{"params": weights, "weight_decay": decay}], 0.1, (beta1, beta2))
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        for weight, other, gradient in zip(weights, hand, tensors(shapes, seed + 1 + step, 0.3), strict=True):
            weight.grad = gradient
            other.step(gradient.double().numpy(), 0.1 / (1 + step))
        optimizer.step()
    for weight, other in zip(weights, hand, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), other.weight, rtol=2e-3, atol=1e-5)


def test_a_weight_without_a_gradient_waits_and_counts_from_its_first() -> None:
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Lamb([{"params": [first, second], "weight_decay": 0.1}], 0.1, (0.9, 0.99))
    hand = [ByHand(np.ones(3), 0.9, 0.99, 0.1) for _ in range(2)]
    for step in range(4):
        gradient = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
        first.grad = gradient.clone()
        hand[0].step(gradient.double().numpy(), 0.1)
        if step >= 2:
            second.grad = gradient.clone()
            hand[1].step(gradient.double().numpy(), 0.1)
        optimizer.step()
        if step < 2:
            assert torch.equal(second, torch.ones(3))
    for weight, other in zip((first, second), hand, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), other.weight, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_decayed_step_has_the_weights_length_whatever_the_gradients(scale: float) -> None:
    weight, bias = torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(4))
    before = weight.detach().clone()
    items = [Trained("w", weight, 1, True), Trained("b", bias, 1, False)]
    optimizer = Optimizer(items, OptimConfig(name="lamb", lr=0.1, weight_decay=0.05), 1, False, False)
    for tensor in (weight, bias):
        tensor.grad = scale * torch.randn(tensor.shape)
    optimizer.step()
    assert float((weight.detach() - before).norm()) == pytest.approx(0.1 * float(before.norm()), rel=1e-4)
