"""Similarity of position embeddings and principal filters against scikit-learn's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from vitcli import api
from vitcli.analysis.posemb import position_similarity, principal_filters
from vitcli.config import EvalConfig, model_config
from vitcli.errors import CheckpointError
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import save
from vitcli.weights.describe import Description


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", ["learned", "2d", "sincos", "none", "relative", "bias"])
def test_positions_of_every_kind_are_compared_or_said_to_be_none(tmp_path: Path, positions: str) -> None:
    config = replace(model_config("ViT-w24d1h3/4", (8, 12), 3), positions=positions)
    model = ViT(config)
    init_weights(model, 0)
    save(Description(path=tmp_path / "m.safetensors", model=config, classes=(), eval=EvalConfig()), model.state_dict())
    if positions in ("none", "relative", "bias"):
        with pytest.raises(CheckpointError, match=f"no positions to its patches: .*model.positions = {positions}"):
            api.position_similarity(str(tmp_path / "m.safetensors"))
        return
    _, found, _ = api.position_similarity(str(tmp_path / "m.safetensors"))
    table = model.positions(config.grid)[0, config.prefix_rows :].detach().numpy()
    np.testing.assert_allclose(found, cosine_similarity(table), atol=1e-6)
    _, larger, _ = api.position_similarity(str(tmp_path / "m.safetensors"), (16, 12))
    assert larger.shape == (12, 12)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_similarity_is_scikit_learn_s_without_the_rows_of_prefix_tokens(prefix: int) -> None:
    table = drawn(1, prefix + 12, 8)
    np.testing.assert_allclose(
        position_similarity(table, prefix), cosine_similarity(table[0, prefix:].double().numpy()), atol=1e-12
    )


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**31))
def test_a_similarity_is_symmetric_and_between_minus_1_and_1(rows: int, width: int, seed: int) -> None:
    found = position_similarity(drawn(1, rows, width, seed=seed), 0)
    assert found.shape == (rows, rows)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-12)
    assert abs(found).max() <= 1


def test_rows_of_zeros_are_like_no_other() -> None:
    table = drawn(1, 3, 4)
    table[0, 1] = 0
    found = position_similarity(table, 0)
    assert (found[1] == 0).all() and (found[:, 1] == 0).all() and np.isfinite(found).all()


@pytest.mark.parametrize(("width", "patch"), [(192, (4, 4)), (20, (4, 6)), (7, (16, 16))])
def test_filters_are_scikit_learn_s_principal_components(width: int, patch: tuple[int, int]) -> None:
    kernel = drawn(width, 3, *patch) * torch.linspace(3, 0.1, 3 * patch[0] * patch[1]).view(3, *patch)
    most = min(28, width, 3 * patch[0] * patch[1])
    found = principal_filters(kernel, 28)
    theirs = PCA(n_components=most, svd_solver="full").fit(kernel.double().flatten(1).numpy())
    np.testing.assert_allclose(found.explained_variance, theirs.explained_variance_ratio_, atol=1e-9)
    assert found.components.shape == (most, *patch, 3)
    flat = found.components.transpose(0, 3, 1, 2).reshape(most, -1)
    seen = min(most, width - 1)  # of so many samples one direction has no variance
    same = abs((flat[:seen] * theirs.components_[:seen]).sum(1))
    np.testing.assert_allclose(same, 1, atol=1e-6)


def test_a_component_s_sign_is_fixed() -> None:
    kernel = drawn(30, 3, 4, 4)
    found, mirrored = principal_filters(kernel, 5), principal_filters(-kernel, 5)
    np.testing.assert_allclose(found.components, mirrored.components, atol=1e-9)
    assert (found.components.reshape(5, -1).max(1) == abs(found.components).reshape(5, -1).max(1)).all()


def test_filters_that_are_all_the_same_have_no_variance() -> None:
    found = principal_filters(torch.ones(6, 3, 2, 2), 28)
    assert (found.explained_variance == 0).all() and np.isfinite(found.components).all()
