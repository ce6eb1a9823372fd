"""Muon against torch's own, one matrix at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcli.train.muon import Muon, orthogonalised


def parameters(shapes: list[tuple[int, int]], seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    decay=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_updates_are_torch_s_up_to_the_rounding_of_bfloat16(shapes, decay, seed):
    ours, theirs = parameters(shapes, seed), parameters(shapes, seed)
    groups = [{"params": ours, "weight_decay": decay}]
    optimizers = [Muon(groups, 0.02, 0.95), torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=decay)]
    for step in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed + step))
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, parameters(shapes, seed), strict=True):
        moved = (other - start).norm()
        assert (mine - other).norm() <= 0.03 * moved + 1e-6


def test_in_float32_the_rows_become_nearly_orthonormal():
    matrices = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_matrices_do_not_touch_each_other():
    matrices = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(1))
    whole = orthogonalised(matrices)
    for index in range(4):
        torch.testing.assert_close(whole[index], orthogonalised(matrices[index : index + 1])[0], rtol=1e-4, atol=1e-5)


def test_parts_of_a_parameter_are_matrices_of_their_own():
    (stacked,) = parameters([(24, 8)], 0)
    single = [torch.nn.Parameter(part.clone()) for part in stacked.detach().split(8)]
    stacked.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(3))
    for p, grad in zip(single, stacked.grad.split(8), strict=True):
        p.grad = grad.clone()
    Muon([{"params": [stacked], "parts": 3}], 0.1, 0.9, torch.float32).step()
    Muon([{"params": single}], 0.1, 0.9, torch.float32).step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in single]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 32), (32, 8)])
def test_a_gradient_of_zero_moves_nothing_and_no_gradient_is_left_alone(shape):
    still, untouched = parameters([shape, shape], 0)
    before = still.detach().clone()
    still.grad = torch.zeros(shape)
    Muon([{"params": [still, untouched]}], 0.1, 0.9).step()
    assert torch.equal(still.detach(), before)
    assert torch.equal(untouched.detach(), parameters([shape, shape], 0)[1].detach())
