"""Patch embeddings for images of other channels: what equal channels give stays, and timm's rule is the same where it has one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitcli.model.channels import convert_patch_embedding

COUNTS = st.integers(1, 8)


def kernel(channels: int, seed: int = 0) -> Tensor:
    return torch.randn(5, channels, 4, 3, generator=torch.Generator().manual_seed(seed))


def products(filters: Tensor, picture: Tensor) -> Tensor:
    """With an image that shows `picture` in every channel."""
    return (filters * picture).sum((1, 2, 3))


@given(old=COUNTS, new=COUNTS, rule=st.sampled_from(["mean", "repeat"]), seed=st.integers(0, 1000))
def test_an_image_whose_channels_are_equal_has_the_same_product(old: int, new: int, rule: str, seed: int) -> None:
    before, picture = kernel(old, seed), kernel(1, seed + 1)[0, 0]
    after = convert_patch_embedding(before, new, rule)
    assert after.shape == (5, new, 4, 3) and after.dtype == before.dtype
    if rule == "mean" or new >= old:
        torch.testing.assert_close(products(after, picture), products(before, picture), rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(after, before[:, :new] * old / new)


@given(old=COUNTS, new=COUNTS, seed=st.integers(0, 1000))
def test_a_channel_keeps_its_filter_or_shares_the_mean(old: int, new: int, seed: int) -> None:
    before = kernel(old, seed)
    repeated, mean = (convert_patch_embedding(before, new, rule) for rule in ("repeat", "mean"))
    for channel in range(new):
        own, part = before[:, channel % old], repeated[:, channel]
        torch.testing.assert_close(part / part.norm(), own / own.norm())
        shared = before[:, channel] if old == new else before.mean(1) * old / new
        torch.testing.assert_close(mean[:, channel], shared)


def test_as_many_channels_are_the_same_array() -> None:
    before = kernel(3)
    assert convert_patch_embedding(before, 3, "mean") is before


@pytest.mark.parametrize(("channels", "rule"), [(1, "mean"), (6, "repeat"), (9, "repeat")])
def test_the_rules_are_timm_s_where_it_has_them(channels: int, rule: str) -> None:
    pytest.importorskip("torchvision_shim", reason="timm imports torchvision")
    adapt = pytest.importorskip("timm").models.adapt_input_conv
    torch.testing.assert_close(convert_patch_embedding(kernel(3), channels, rule), adapt(channels, kernel(3)))
