"""The ways to tell where a patch is: against the paper's words written out, at other sizes, and as plain tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.analysis.capture import reduce_attention
from vitcli.config import ModelConfig, model_config
from vitcli.errors import UsageError
from vitcli.model.attention import PATHS, Attention, attention_weights
from vitcli.model.positions import as_learned, position_table, resized_positions, sines_and_cosines
from vitcli.model.vit import ViT, init_mimetic, init_weights
from vitcli.train.optim import trained

KINDS = ["learned", "none", "2d", "relative", "sincos"]
TABLES = ["learned", "none", "2d", "sincos"]


def config_of(positions: str, size: tuple[int, int] = (8, 12), **changes: object) -> ModelConfig:
    base = replace(model_config("ViT-w24d2h3/4", size, 5), positions=positions)  # type: ignore[arg-type]
    return replace(base, **changes)  # type: ignore[arg-type]


def vit_of(config: ModelConfig, seed: int = 0) -> ViT:
    model = ViT(config)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images_of(size: tuple[int, int], n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


# --- tables --------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers_and_old_checkpoints_have_it() -> None:
    assert ModelConfig().positions == "learned"
    assert "pos_embed" in ModelConfig().shapes()
    assert "positions" in ModelConfig.fixed()


def test_two_dimensions_are_column_and_row_side_by_side() -> None:
    model = vit_of(config_of("2d"))
    table = model.positions((2, 3))
    assert table.shape == (1, 6, 24)
    for row in range(2):
        for column in range(3):
            expected = torch.cat([model.column_embed[0, column], model.row_embed[0, row]])
            assert torch.equal(table[0, 3 * row + column], expected)


def test_none_adds_nothing_and_sines_are_fixed() -> None:
    assert not vit_of(config_of("none")).positions((2, 3)).any()
    model = vit_of(config_of("sincos"))
    assert torch.equal(model.positions((2, 3))[0], sines_and_cosines((2, 3), 24))
    assert not [name for name in model.state_dict() if "pos" in name or "embed." in name.replace("patch_embed.", "")]


@pytest.mark.parametrize("kind", ["none", "2d", "sincos"])
@pytest.mark.parametrize("changes", [{}, {"pool": "mean", "class_token": False}, {"registers": 2}, {"distilled": True}])
def test_a_table_is_a_plain_vit_with_learned_positions(kind: str, changes: dict[str, object]) -> None:
    config = config_of(kind, **changes)
    model = vit_of(config)
    plain, tensors = as_learned(config, model.state_dict())
    assert (plain.positions, plain.prefix_rows) == ("learned", 0 if config.registers else config.prefix_tokens)
    other = ViT(plain).eval()
    other.load_state_dict(tensors)
    torch.testing.assert_close(other(images_of(config.img_size)), model(images_of(config.img_size)))


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("size", [(8, 12), (16, 12), (4, 20)])
def test_at_another_size_the_model_computes_what_the_resized_weights_do(kind: str, size: tuple[int, int]) -> None:
    config = config_of(kind)
    model = vit_of(config)
    new = replace(config, img_size=size)
    tensors = model.state_dict()
    other = ViT(new).eval()
    other.load_state_dict({**tensors, **ViT.resize(tensors, config, new)})
    with model.taking(size):
        torch.testing.assert_close(model(images_of(size)), other(images_of(size)))
    assert position_table(tensors, config, new.grid).shape == (
        1,
        new.position_rows - new.prefix_rows + config.prefix_rows,
        24,
    )


def test_one_axis_is_interpolated_by_itself() -> None:
    config = config_of("2d")
    tensors = vit_of(config).state_dict()
    wide = resized_positions(tensors, config, replace(config, img_size=(8, 24)))
    assert torch.equal(wide["row_embed"], tensors["row_embed"])
    assert wide["column_embed"].shape == (1, 6, 12)
    flat = torch.nn.functional.interpolate(
        tensors["column_embed"].permute(0, 2, 1).unsqueeze(-1), (6, 1), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(wide["column_embed"], flat.squeeze(-1).permute(0, 2, 1))


def test_the_mimetic_start_is_the_same_for_one_and_two_dimensions() -> None:
    one, two = (ViT(config_of(kind)) for kind in ("learned", "2d"))
    for model in (one, two):
        init_weights(model, 0)
        init_mimetic(model, 0)
    torch.testing.assert_close(two.positions((2, 3)), one.positions((2, 3))[:, 1:])
    for kind in ("none", "sincos", "relative"):
        model = ViT(config_of(kind))
        model.initialise(0, "mimetic")
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_odd_width_has_no_halves() -> None:
    with pytest.raises(UsageError, match="is odd"):
        replace(config_of("2d"), width=9, heads=3).check()


# --- relative ------------------------------------------------------------------------------------------------


def by_hand(model: Attention, x: torch.Tensor) -> torch.Tensor:
    """The paper's D.4, element by element."""
    q, k, v = model.project(x).unbind(0)
    assert model.offset_embed is not None
    batch, heads, tokens, dim = q.shape
    keys = model.offset_embed[0].view(-1, heads, dim)
    logits = torch.zeros(batch, heads, tokens, tokens)
    for query in range(tokens):
        for key in range(tokens):
            logits[:, :, query, key] = (q[:, :, query] * k[:, :, key]).sum(-1)
            if query >= model.prefix and key >= model.prefix:
                extra = keys[key - query + model.grid[0] - 1]
                logits[:, :, query, key] += (q[:, :, query] * extra).sum(-1)
    return model.proj(((logits / math.sqrt(dim)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@given(
    patches=st.integers(1, 7),
    prefix=st.integers(0, 2),
    heads=st.integers(1, 3),
    dim=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_relative_attention_is_the_papers_sum_of_two_products(
    patches: int, prefix: int, heads: int, dim: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = ModelConfig(width=heads * dim, heads=heads, patch=(1, 1), img_size=(patches, 1), positions="relative")
    model = Attention(replace(sizes, class_token=prefix > 0, distilled=prefix > 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, prefix + patches, heads * dim, generator=generator)
    expected = by_hand(model, x)
    for path in PATHS:
        model.path = path
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    for outputs in range(1, prefix + patches + 1):
        torch.testing.assert_close(model(x, outputs), expected[:, :outputs], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_every_offset_that_occurs_has_a_gradient_alike_by_every_path(path: str) -> None:
    model = vit_of(config_of("relative"))
    model.use_attention(path)  # type: ignore[arg-type]
    model(images_of((8, 12))).square().sum().backward()
    grad = model.blocks[0].attn.offset_embed.grad
    assert grad.shape == (1, 11, 24) and (grad.abs().sum(2) > 0).all()
    model.zero_grad()
    model.use_attention("plain")
    model(images_of((8, 12))).square().sum().backward()
    torch.testing.assert_close(grad, model.blocks[0].attn.offset_embed.grad, atol=1e-5, rtol=1e-3)


def test_relative_positions_are_captured_as_they_are_used() -> None:
    model = vit_of(config_of("relative"))
    found = {}
    reduce_attention(model, images_of((8, 12)), lambda layer, part, weights: found.setdefault(layer, weights.clone()))
    block = model.blocks[0]
    q, k, _ = block.attn.project(block.norm1(model.embed(images_of((8, 12))))).unbind(0)
    torch.testing.assert_close(found[1], attention_weights(q, k, block.attn.bias(q)))
    assert not torch.allclose(found[1], attention_weights(q, k))


def test_relative_positions_are_of_one_grid() -> None:
    config = config_of("relative")
    assert not config.takes_any_size
    model = vit_of(config)
    with pytest.raises(UsageError, match=r"counts patches of a grid of 2x3 .* nothing of one of 4x3"):
        ViT.resize(model.state_dict(), config, replace(config, img_size=(16, 12)))
    assert ViT.resize(model.state_dict(), config, replace(config, img_size=(16, 24), patch=(8, 8))).keys() == {
        "patch_embed.proj.weight"
    }
    with model.taking((16, 12)), pytest.raises(ValueError, match="12 patches, relative positions are of 6"):
        model(images_of((16, 12)))


@pytest.mark.parametrize("kind", KINDS)
def test_positions_do_not_decay_and_belong_to_no_matrix(kind: str) -> None:
    model = ViT(config_of(kind))
    places = {item.name: item for item in trained(model) if "embed" in item.name and "patch" not in item.name}
    assert places.keys() == {n for n in model.config.shapes() if n.split(".")[-1] in
                             ("pos_embed", "row_embed", "column_embed", "offset_embed")}  # fmt: skip
    assert not any(item.is_decayed for item in places.values())
    assert not places.keys() & model.matrices().keys()
    assert {item.layer for name, item in places.items() if not name.startswith("blocks.")} <= {0}
