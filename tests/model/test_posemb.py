"""Interpolated position embeddings against scipy, timm and a worked example."""

from __future__ import annotations

import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchvision_shim  # noqa: F401
from vitcli.model.posemb import METHODS, resize_position_embedding

GRIDS = [((14, 14), (24, 24)), ((7, 7), (12, 12)), ((24, 24), (14, 14)), ((14, 14), (6, 8)), ((3, 5), (7, 2))]


def table(grid: tuple[int, int], prefix: int = 1, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, prefix + grid[0] * grid[1], width, generator=generator)


@pytest.mark.parametrize(
    ("method", "first_row", "tolerance"),
    [
        ("paper", [0, 0.5, 1, 2.5, 4], 1e-6),
        ("bicubic", [-1.056, -0.788, 0.040, 1.948, 3.328], 6e-4),
        ("bicubic-antialias", [-0.8302, -0.5383, 0.2453, 2.2378, 3.4717], 6e-5),
    ],
)
def test_a_three_by_three_ramp_at_five_by_five(method, first_row, tolerance):
    """p(y, x) = 10 y + x²."""
    cells = torch.tensor([[10.0 * y + x * x for x in range(3)] for y in range(3)]).reshape(1, 9, 1)
    result = resize_position_embedding(cells, (3, 3), (5, 5), 0, method).reshape(5, 5)
    torch.testing.assert_close(result[0], torch.tensor(first_row), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("from_grid", "to_grid"), GRIDS)
def test_paper_is_scipy_zoom_of_order_one(from_grid, to_grid):
    old = table(from_grid)
    zoom = (to_grid[0] / from_grid[0], to_grid[1] / from_grid[1], 1)
    expected = scipy.ndimage.zoom(old[0, 1:].reshape(*from_grid, -1).numpy(), zoom, order=1)
    assert expected.shape[:2] == to_grid
    result = resize_position_embedding(old, from_grid, to_grid, 1, "paper")
    torch.testing.assert_close(result[0, 1:].reshape(*to_grid, -1), torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("from_grid", "to_grid"), GRIDS)
@pytest.mark.parametrize("antialias", [True, False])
def test_bicubic_is_timm_s(from_grid, to_grid, antialias):
    from timm.layers import resample_abs_pos_embed

    old = table(from_grid)
    expected = resample_abs_pos_embed(old, list(to_grid), list(from_grid), num_prefix_tokens=1, antialias=antialias)
    method = "bicubic-antialias" if antialias else "bicubic"
    result = resize_position_embedding(old, from_grid, to_grid, 1, method)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_bicubic_without_antialias_is_the_default():
    old = table((4, 4))
    assert torch.equal(
        resize_position_embedding(old, (4, 4), (6, 6), 1),
        resize_position_embedding(old, (4, 4), (6, 6), 1, "bicubic"),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_same_grid_gives_the_same_bits(method, prefix):
    old = table((5, 3), prefix)
    assert torch.equal(resize_position_embedding(old, (5, 3), (5, 3), prefix, method), old)


def test_a_grid_of_other_proportions_with_as_many_cells_is_interpolated():
    """timm leaves such a table as it is where the new grid is square; the cells would be in the wrong places."""
    old = table((2, 8), 0)
    result = resize_position_embedding(old, (2, 8), (4, 4), 0, "paper")
    assert result.shape == old.shape
    assert not torch.allclose(result, old)
    for row, old_row in ((0, 0), (3, 1)):  # corners stay in the corners
        for column, old_column in ((0, 0), (3, 7)):
            torch.testing.assert_close(result[0, row * 4 + column], old[0, old_row * 8 + old_column])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    new_rows=st.integers(1, 12),
    new_columns=st.integers(1, 12),
    prefix=st.integers(0, 2),
    method=st.sampled_from(METHODS),
)
def test_prefix_rows_are_kept_and_constants_stay(rows, columns, new_rows, new_columns, prefix, method):
    old = table((rows, columns), prefix)
    old[:, prefix:] = torch.arange(6.0)
    result = resize_position_embedding(old, (rows, columns), (new_rows, new_columns), prefix, method)
    assert result.shape == (1, prefix + new_rows * new_columns, 6)
    assert torch.equal(result[:, :prefix], old[:, :prefix])
    torch.testing.assert_close(result[:, prefix:], torch.arange(6.0).expand(1, new_rows * new_columns, 6))


def test_rows_and_columns_are_not_exchanged():
    """A table that varies by column only still does so on a grid that is not square."""
    old = torch.arange(5.0).repeat(3).reshape(1, 15, 1)
    result = resize_position_embedding(old, (3, 5), (4, 9), 0, "paper").reshape(4, 9)
    torch.testing.assert_close(result, torch.linspace(0, 4, 9).expand(4, 9))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_interpolated_in_float32_and_comes_back(method):
    old = table((4, 4)).bfloat16()
    result = resize_position_embedding(old, (4, 4), (7, 7), 1, method)
    expected = resize_position_embedding(old.float(), (4, 4), (7, 7), 1, method)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected.bfloat16())


@pytest.mark.parametrize(("from_grid", "to_grid"), [*GRIDS, ((8, 8), (1, 1)), ((1, 4), (5, 1))])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast", [False, True])
def test_as_matrix_products_it_has_the_same_values_and_gradients(method, from_grid, to_grid, autocast):
    weights = table(to_grid)
    found = []
    for deterministic in (False, True):
        old = table(from_grid).requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                result = resize_position_embedding(old, from_grid, to_grid, 1, method)
            (result * weights).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((result.detach(), old.grad))
    for plain, product in zip(*found, strict=True):
        torch.testing.assert_close(product, plain, rtol=1e-5, atol=1e-5)  # of float32, whose coordinates are rounded
