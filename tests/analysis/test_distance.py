"""Mean attention distance on attention that is known, against a loop, and what must hold of any."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitcli.analysis.attention import AttentionDistance, patch_distances, uniform_distance
from vitcli.config import ModelConfig

SMALL = ModelConfig(width=12, depth=2, heads=3, mlp=24, patch=(16, 16), img_size=(64, 96))


def distances(config: ModelConfig, *layers: Tensor, **options: Any) -> np.ndarray:
    """The table of weights given a layer each."""
    found = AttentionDistance(replace(config, depth=len(layers)), torch.device("cpu"), **options)
    for layer, weights in enumerate(layers, start=1):
        found(layer, slice(0, len(weights)), weights)
    return found.result()


def on_patches(config: ModelConfig, patches: Tensor, to_prefix: float = 0.0) -> Tensor:
    """Weights [1, heads, tokens, tokens] whose patches attend to patches so, and to prefix tokens with `to_prefix` in all."""
    prefix, tokens = config.prefix_tokens, config.tokens
    to_prefix = to_prefix if prefix else 0.0
    weights = torch.zeros(1, config.heads, tokens, tokens)
    weights[:, :, :prefix] = 1 / tokens
    if prefix:
        weights[:, :, prefix:, :prefix] = to_prefix / prefix
    weights[:, :, prefix:, prefix:] = (1 - to_prefix) * patches
    return weights


def in_a_loop(
    weights: np.ndarray, config: ModelConfig, include_prefix: bool = False, renormalise: bool = True
) -> np.ndarray:
    """[heads], by the definition, in float64, one query and one key after the other."""
    prefix, (_, columns) = config.prefix_tokens, config.grid

    def place(token: int) -> tuple[float, float]:
        row, column = divmod(token - prefix, columns)
        return row * config.patch[0], column * config.patch[1]

    counted = range(0 if include_prefix else prefix, config.tokens)
    images, heads = weights.shape[:2]
    result = np.zeros(heads)
    for image in range(images):
        for head in range(heads):
            for query in counted:
                row = weights[image, head, query].astype(np.float64)
                mass = sum(row[key] for key in counted) if renormalise else 1.0
                for key in counted:
                    if query >= prefix and key >= prefix:
                        result[head] += row[key] / mass * math.dist(place(query), place(key))
    return result / (images * len(counted))


KINDS = {
    "class token": {},
    "patches alone": {"class_token": False, "pool": "mean"},
    "distillation token": {"distilled": True},
    "registers": {"registers": 4},
    "patches of 14": {"patch": (14, 14), "img_size": (56, 56)},
    "patches that are no square": {"patch": (8, 16), "img_size": (64, 48)},
    "one row": {"img_size": (16, 96)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_attention_is_the_mean_distance_of_two_patches(kind: str) -> None:
    config = replace(SMALL, **KINDS[kind])
    rows, columns = config.grid
    places = [(r * config.patch[0], c * config.patch[1]) for r in range(rows) for c in range(columns)]
    expected = sum(math.dist(a, b) for a in places for b in places) / len(places) ** 2
    assert uniform_distance(config.grid, config.patch) == pytest.approx(expected, rel=1e-12)
    uniform = torch.full((len(places), len(places)), 1 / len(places))
    for to_prefix in (0.0, 0.4):
        table = distances(config, on_patches(config, uniform, to_prefix))
        assert table == pytest.approx(np.full((1, 3), expected), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_to_oneself_is_at_distance_0(kind: str) -> None:
    config = replace(SMALL, **KINDS[kind])
    patches = config.grid[0] * config.grid[1]
    assert (distances(config, on_patches(config, torch.eye(patches), 0.3)) == 0).all()


@pytest.mark.parametrize("down", [0, 1, 2])
@pytest.mark.parametrize("across", [0, 1, 3])
@pytest.mark.parametrize("kind", ["class token", "registers", "patches that are no square"])
def test_one_hot_attention_to_an_offset_gives_the_offset(kind: str, down: int, across: int) -> None:
    """Every patch attends to one so many rows and columns away: the grid is taken in pairs of patches."""
    config = replace(SMALL, **KINDS[kind])
    config = replace(config, img_size=(4 * config.patch[0], 6 * config.patch[1]))
    rows, columns = config.grid
    row, column = (places.flatten() for places in np.indices(config.grid))
    to_row = row if not down else np.where(row // down % 2, row - down, row + down)
    to_column = column if not across else np.where(column // across % 2, column - across, column + across)
    assert to_row.max() < rows and to_column.max() < columns
    one_hot = torch.zeros(rows * columns, rows * columns)
    one_hot[torch.arange(rows * columns), torch.from_numpy(to_row * columns + to_column)] = 1
    expected = math.hypot(down * config.patch[0], across * config.patch[1])
    assert distances(config, on_patches(config, one_hot, 0.2)) == pytest.approx(np.full((1, 3), expected), rel=1e-6)


def drawn(config: ModelConfig, images: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, config.heads, config.tokens, config.tokens, generator=generator)
    return logits.softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("include_prefix", [False, True])
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_loop_over_queries_and_keys_agrees(kind: str, include_prefix: bool, renormalise: bool) -> None:
    config = replace(SMALL, **KINDS[kind])
    weights = drawn(config, 2, seed=1)
    options = {"include_prefix": include_prefix, "renormalise": renormalise}
    expected = in_a_loop(weights.numpy(), config, **options)
    assert distances(config, weights, **options)[0] == pytest.approx(expected, abs=1e-4)


def test_without_renormalising_what_goes_to_prefix_tokens_counts_as_distance_0() -> None:
    uniform = torch.full((24, 24), 1 / 24)
    weights = on_patches(SMALL, uniform, to_prefix=0.25)
    full = uniform_distance(SMALL.grid, SMALL.patch)
    assert distances(SMALL, weights, renormalise=False) == pytest.approx(np.full((1, 3), 0.75 * full), rel=1e-5)
    included = distances(SMALL, weights, include_prefix=True)
    assert included == pytest.approx(np.full((1, 3), 0.75 * full * 24 / 25), rel=1e-5)


def test_a_row_that_gives_patches_nothing_is_a_number() -> None:
    weights = torch.zeros(1, 3, SMALL.tokens, SMALL.tokens)
    weights[..., 0] = 1
    assert (distances(SMALL, weights) == 0).all()


def test_images_are_averaged_however_they_come() -> None:
    weights = drawn(SMALL, 5, seed=3)
    whole = distances(SMALL, weights)
    parts = AttentionDistance(replace(SMALL, depth=1), torch.device("cpu"))
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        parts(1, part, weights[part])
    assert parts.images == 5
    assert parts.result() == pytest.approx(whole, rel=1e-6)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    registers=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_what_holds_of_any_attention(grid, patch, registers, seed) -> None:
    size = (grid[0] * patch[0], grid[1] * patch[1])
    config = replace(SMALL, patch=patch, img_size=size, registers=registers)
    weights = drawn(config, 1, seed)
    table = distances(config, weights)
    diagonal = math.hypot((grid[0] - 1) * patch[0], (grid[1] - 1) * patch[1])
    assert (table >= 0).all() and (table <= diagonal * (1 + 1e-5)).all()
    assert (distances(config, weights, renormalise=False) <= table * (1 + 1e-5) + 1e-6).all()
    prefix = config.prefix_tokens
    mirrored = weights.clone()
    block = mirrored[:, :, prefix:, prefix:]
    block.copy_(block.flip(2, 3))  # the image turned by half a turn: distances are the same
    assert distances(config, mirrored) == pytest.approx(table, rel=1e-4, abs=1e-5)
    larger = replace(config, patch=(3 * patch[0], 3 * patch[1]), img_size=(3 * size[0], 3 * size[1]))
    assert distances(larger, weights) == pytest.approx(3 * table, rel=1e-4, abs=1e-5)


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 32), st.integers(1, 32)))
def test_distances_of_patches_are_a_metric(grid: tuple[int, int], patch: tuple[int, int]) -> None:
    table = patch_distances(grid, patch)
    assert torch.equal(table, table.T) and (table.diagonal() == 0).all()
    assert (table[:, None, :] <= table[:, :, None] + table[None, :, :] + 1e-9).all()
    assert float(table.mean()) == pytest.approx(uniform_distance(grid, patch), rel=1e-9, abs=1e-12)
