"""The weights that are captured are those of the model's own forward pass, and no more of them exist than said."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitcli.analysis import capture
from vitcli.analysis.capture import reduce_attention
from vitcli.config import ModelConfig
from vitcli.model.attention import Attention, attention_weights
from vitcli.model.linear import packed
from vitcli.model.vit import ViT, init_weights

SMALL = ModelConfig(width=24, depth=3, heads=3, mlp=48, patch=(8, 8), img_size=(24, 40), classes=4)

KINDS = {
    "class token": {},
    "relative positions, norms after the sums": {"positions": "relative", "norm_place": "post"},
    "patches alone, norm after the mean": {"class_token": False, "pool": "mean", "norm": "after"},
    "distillation token": {"distilled": True},
    "registers and layer scale": {"registers": 3, "layer_scale": 0.5},
    "one layer": {"depth": 1},
    "dropout, which is off": {"dropout": 0.5, "drop_path": 0.5},
}


def made(config: ModelConfig) -> ViT:
    model = ViT(config)
    init_weights(model, 0)
    with torch.no_grad():  # away from the symmetric start, so that heads and layers differ
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pixels(config: ModelConfig, batch: int = 5) -> Tensor:
    return torch.randn(batch, 3, *config.img_size, generator=torch.Generator().manual_seed(2))


def captured(model: ViT, images: Tensor, bf16: bool = False) -> list[Tensor]:
    layers: list[dict[int, Tensor]] = [{} for _ in model.blocks]

    def keep(layer: int, part: slice, weights: Tensor) -> None:
        assert weights.dtype == torch.float32
        for index, image in zip(range(part.start, part.stop), weights, strict=True):
            assert index not in layers[layer - 1]
            layers[layer - 1][index] = image.clone()

    reduce_attention(model, images, keep, bf16)
    return [torch.stack([found[index] for index in range(len(images))]) for found in layers]


@torch.inference_mode()
def of_the_forward_pass(model: ViT, images: Tensor) -> list[Tensor]:
    """From what enters each attention while the model itself runs."""
    inputs: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    parts = [(block.attn, *block.attn.project(x)) for block, x in zip(model.blocks, inputs, strict=True)]
    return [attention_weights(q, k, attention.bias(q)) for attention, q, k, _ in parts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [1, 2, 100])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_weights_are_those_of_the_model_s_own_forward_pass(kind, micro_batch, heads, monkeypatch) -> None:
    config = replace(SMALL, **KINDS[kind])
    matrix = 4 * config.tokens**2
    monkeypatch.setitem(capture.MICRO_BYTES, "cpu", micro_batch * config.heads * matrix)
    monkeypatch.setitem(capture._HEADS_BYTES, "cpu", heads * min(5, micro_batch) * matrix)
    model, images = made(config), pixels(config)
    for ours, theirs in zip(captured(model, images), of_the_forward_pass(model, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:3]), rtol=0, atol=1e-5)


def test_in_bf16_they_are_close_and_packed_weights_are_used() -> None:
    model, images = made(SMALL), pixels(SMALL)
    exact = captured(model, images)
    with packed(model, True):
        rounded = captured(model, images, bf16=True)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert 0 < float((ours - theirs).abs().max()) < 0.05


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 24\)"):
        reduce_attention(made(SMALL), torch.zeros(1, 3, 40, 24), lambda *_: None)


def test_memory_holds_one_layer_s_attention_of_one_micro_batch(monkeypatch) -> None:
    """Counted among all tensors alive, whenever a layer is handed over."""
    config = replace(SMALL, depth=4)
    matrix = 4 * config.tokens**2
    monkeypatch.setitem(capture.MICRO_BYTES, "cpu", 2 * config.heads * matrix)
    monkeypatch.setitem(capture._HEADS_BYTES, "cpu", 2 * matrix)
    model, images = made(config), pixels(config, 7)
    most, calls = 0, 0

    def alive() -> dict[int, int]:
        """Bytes of the storages of all tensors of the shape of attention."""
        return {
            thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
            for thing in gc.get_objects()
            if type(thing) is Tensor and thing.shape[-2:] == (config.tokens, config.tokens)
        }

    gc.collect()
    before = alive()  # of other tests in this process

    def count(layer: int, part: slice, weights: Tensor) -> None:
        nonlocal most, calls
        calls += 1
        most = max(most, sum(size for place, size in alive().items() if place not in before))

    reduce_attention(model, images, count)
    assert calls == 4 * 4
    assert most == 2 * config.heads * matrix


def test_the_model_is_as_it_was() -> None:
    model, images = made(SMALL), pixels(SMALL)
    with torch.inference_mode():
        before = model(images)
        reduce_attention(model, images, lambda *_: None)
        assert torch.equal(model(images), before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
