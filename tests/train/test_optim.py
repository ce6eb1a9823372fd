from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitcli.config import OptimConfig, model_config
from vitcli.model.vit import ViT, init_weights
from vitcli.train.muon import Muon
from vitcli.train.optim import Average, Optimizer, is_decayed, layer_of, lr_factor


def small_vit() -> ViT:
    model = ViT(replace(model_config("mu/4", (8, 8), 3), depth=2))
    init_weights(model, 0)
    return model


def with_gradients(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_cosine_and_linear_follow_the_published_formulas() -> None:
    total, warm = 1000, 100
    for step in (0, 50, 99, 100, 400, 999):
        p = max(0.0, (step - warm) / (total - warm))
        rise = min(1.0, (step + 1) / warm)
        cosine = lr_factor(OptimConfig(schedule="cosine", warmup_steps=warm), step, step / total, total)
        linear = lr_factor(OptimConfig(schedule="linear", warmup_steps=warm), step, step / total, total)
        assert cosine == pytest.approx(rise * 0.5 * (1 + math.cos(math.pi * p)))
        assert linear == pytest.approx(rise * (1 - p))


def test_step_schedule_divides_by_ten_at_each_milestone() -> None:
    config = OptimConfig(schedule="step", milestones=(0.3, 0.6, 0.9))
    factors = [lr_factor(config, 0, progress, 100) for progress in (0.29, 0.31, 0.61, 0.95)]
    assert factors == pytest.approx([1, 0.1, 0.01, 0.001])


@given(st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant", "step"]), st.floats(0, 1), st.integers(0, 200))
def test_factor_stays_between_zero_and_one(progress: float, schedule: str, warmup: float, warmup_steps: int) -> None:
    config = OptimConfig(schedule=schedule, warmup=warmup, warmup_steps=warmup_steps)  # type: ignore[arg-type]
    factor = lr_factor(config, int(progress * 100), progress, 100)
    assert 0 <= factor <= 1 + 1e-9


def test_first_update_of_a_warm_up_is_above_zero() -> None:
    assert lr_factor(OptimConfig(warmup_steps=10), 0, 0.0, 100) == pytest.approx(0.1)
    assert lr_factor(OptimConfig(warmup=0.1), 0, 0.0, 100) > 0


def test_layers_are_numbered_as_in_mae() -> None:
    depth = 12
    assert [layer_of(n, depth) for n in ("cls_token", "pos_embed", "patch_embed.proj.weight")] == [0, 0, 0]
    assert layer_of("blocks.0.attn.qkv.weight", depth) == 1
    assert layer_of("blocks.11.mlp.fc2.bias", depth) == 12
    assert layer_of("norm.weight", depth) == layer_of("head.bias", depth) == 13


def test_only_kernels_decay() -> None:
    decayed = {name for name, p in small_vit().named_parameters() if is_decayed(name, p)}
    assert "head.weight" in decayed and "patch_embed.proj.weight" in decayed and "blocks.1.attn.qkv.weight" in decayed
    assert not any(n.endswith("bias") or "norm" in n or n in ("cls_token", "pos_embed") for n in decayed)


def test_layer_decay_scales_each_rate() -> None:
    model = small_vit()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(lr=1.0, layer_decay=0.5), 2)
    optimizer.set_factor(1.0)
    rates = {name: group["lr"] for part in optimizer.parts for group in part.param_groups for name in group["names"]}
    assert rates["pos_embed"] == 0.125
    assert rates["blocks.0.norm1.weight"] == 0.25
    assert rates["blocks.1.norm1.weight"] == 0.5
    assert rates["head.weight"] == 1.0


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = small_vit()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(name="muon"), 2)
    muon = next(part for part in optimizer.parts if isinstance(part, Muon))
    names = {name for group in muon.param_groups for name in group["names"]}
    assert names == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    everything = [name for part in optimizer.parts for group in part.param_groups for name in group["names"]]
    assert sorted(everything) == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_restored_state_goes_on_bit_for_bit(name: str) -> None:
    config = OptimConfig(name=name, lr=1e-2)  # type: ignore[arg-type]
    one, two = small_vit(), small_vit()
    first, second = Optimizer(one.named_parameters(), config, 2), Optimizer(two.named_parameters(), config, 2)
    for model, optimizer in ((one, first), (two, second)):
        with_gradients(model, 1)
        optimizer.step()
    fresh = Optimizer(two.named_parameters(), config, 2)
    fresh.restore({key: value.clone() for key, value in second.state().items()})
    for model, optimizer in ((one, first), (two, fresh)):
        with_gradients(model, 2)
        optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_clipping_is_by_the_global_norm() -> None:
    model = small_vit()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(), 2)
    with_gradients(model)
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = optimizer.clip(1.0)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-5)
    assert float(after.norm()) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(after, before / before.norm(), atol=1e-6)


def test_sgd_is_plain_momentum_without_decay() -> None:
    model = small_vit()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(name="sgd", lr=0.1), 2)
    optimizer.set_factor(1.0)
    start = model.head.weight.detach().clone()
    velocity = torch.zeros_like(start)
    for seed in range(3):
        with_gradients(model, seed)
        velocity = 0.9 * velocity + model.head.weight.grad
        start = start - 0.1 * velocity
        optimizer.step()
    assert torch.allclose(model.head.weight, start, atol=1e-6)


def test_average_follows_its_formula() -> None:
    model = small_vit()
    average = Average(model, 0.9)
    expected = model.head.bias.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.head.bias.fill_(float(step))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(average.weights["head.bias"], expected, atol=1e-5)
