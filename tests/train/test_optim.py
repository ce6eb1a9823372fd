from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitcli.config import OptimConfig, model_config
from vitcli.model.vit import ViT, init_weights
from vitcli.train.muon import Muon
from vitcli.train.optim import Average, Optimizer, lr_factor, trained
from waits import fake_cuda


def small_vit() -> ViT:
    model = ViT(replace(model_config("mu/4", (8, 8), 3), depth=2))
    init_weights(model, 0)
    return model


def optimizer_of(model: ViT, config: OptimConfig, bf16: bool = True) -> Optimizer:
    return Optimizer(trained(model), config, model.layers, True, bf16)


def decayed_of(model: ViT) -> set[str]:
    return {item.name for item in trained(model) if item.is_decayed}


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
    layer_of = ViT(model_config("ti/16")).layer_of
    assert [layer_of(n) for n in ("cls_token", "pos_embed", "patch_embed.proj.weight")] == [0, 0, 0]
    assert layer_of("blocks.0.attn.qkv.weight") == 1
    assert layer_of("blocks.11.mlp.fc2.bias") == 12
    assert layer_of("norm.weight") == layer_of("head.bias") == 13


def test_only_kernels_decay() -> None:
    decayed = decayed_of(small_vit())
    assert "head.weight" in decayed and "patch_embed.proj.weight" in decayed and "blocks.1.attn.qkv.weight" in decayed
    assert not any(n.endswith("bias") or "norm" in n or n in ("cls_token", "pos_embed") for n in decayed)


def test_layer_decay_scales_each_rate() -> None:
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig(lr=1.0, layer_decay=0.5))
    optimizer.set_factor(1.0)
    rates = {name: group["lr"] for part in optimizer.parts for group in part.param_groups for name in group["names"]}
    assert rates["pos_embed"] == 0.125
    assert rates["blocks.0.norm1.weight"] == 0.25
    assert rates["blocks.1.norm1.weight"] == 0.5
    assert rates["head.weight"] == 1.0


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig(name="muon"))
    muon = next(part for part in optimizer.parts if isinstance(part, Muon))
    names = {name for group in muon.param_groups for name in group["names"]}
    assert names == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    everything = [name for part in optimizer.parts for group in part.param_groups for name in group["names"]]
    assert sorted(everything) == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "momentum"), [("adamw", 0.9), ("lamb", 0.9), ("sgd", 0.9), ("sgd", 0.0), ("muon", 0.9)]
)
def test_restored_state_goes_on_bit_for_bit(name: str, momentum: float) -> None:
    config = OptimConfig(name=name, lr=1e-2, momentum=momentum, weight_decay=0.1)  # type: ignore[arg-type]
    one, two = small_vit(), small_vit()
    first, second = optimizer_of(one, config), optimizer_of(two, config)
    for model, optimizer in ((one, first), (two, second)):
        with_gradients(model, 1)
        optimizer.step()
    fresh = optimizer_of(two, config)
    fresh.restore({key: value.clone() for key, value in second.state().items()})
    for model, optimizer in ((one, first), (two, fresh)):
        with_gradients(model, 2)
        optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def on_cuda(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the model's shapes that claim to be on a GPU: enough for an optimizer, and no GPU is needed."""
    return [(name, nn.Parameter(torch.empty(p.shape, device="cuda"))) for name, p in model.named_parameters()]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "muon"])
def test_all_of_the_restored_state_is_where_a_step_looks_for_it(name: str, fused: bool) -> None:
    """On a GPU fused AdamW refuses a counter on the CPU, so every resume would fail."""
    shapes = small_vit()
    with fake_cuda():
        named = on_cuda(shapes)
        optimizer = Optimizer(
            [replace(item, parameter=fake) for item, (_, fake) in zip(trained(shapes), named, strict=True)],
            OptimConfig(name=name, weight_decay=0.1),
            shapes.layers,
            fused,
            True,
        )  # type: ignore[arg-type]

        def update() -> None:
            optimizer.zero_grad()
            for _, parameter in named:
                parameter.grad = torch.empty_like(parameter)
            assert optimizer.clip(1.0).device.type == "cuda"
            optimizer.step()

        update()
        state = optimizer.state()
        assert len(state) >= len(named)
        devices = {key: value.device for key, value in state.items()}
        optimizer.restore({key: torch.ones_like(value, device="cpu") for key, value in state.items()})
        assert {key: value.device for key, value in optimizer.state().items()} == devices
        update()


def test_a_restored_state_is_a_copy() -> None:
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig())
    with_gradients(model)
    optimizer.step()
    saved = {key: value.clone() for key, value in optimizer.state().items()}
    kept = {key: value.clone() for key, value in saved.items()}
    optimizer.restore(saved)
    optimizer.step()
    assert all(torch.equal(saved[key], kept[key]) for key in saved)


def test_clipping_is_by_the_global_norm() -> None:
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig())
    with_gradients(model)
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = optimizer.clip(1.0)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-5)
    assert float(after.norm()) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(after, before / before.norm(), atol=1e-6)


def test_sgd_is_plain_momentum_without_decay() -> None:
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig(name="sgd", lr=0.1))
    optimizer.set_factor(1.0)
    start = model.head.weight.detach().clone()
    velocity = torch.zeros_like(start)
    for seed in range(3):
        with_gradients(model, seed)
        velocity = 0.9 * velocity + model.head.weight.grad
        start = start - 0.1 * velocity
        optimizer.step()
    assert torch.allclose(model.head.weight, start, atol=1e-6)


def test_sgd_decays_apart_from_its_momentum() -> None:
    """By hand, in double precision: the decay is the rate's part of the weight, and no velocity ever holds it."""
    model = small_vit()
    optimizer = optimizer_of(model, OptimConfig(name="sgd", lr=0.1, weight_decay=0.3, layer_decay=0.5))
    rates = {"head.weight": 0.1, "blocks.0.mlp.fc1.weight": 0.025}
    hand = {name: (p.detach().double(), torch.zeros(p.shape).double()) for name, p in model.named_parameters()}
    for step, factor in enumerate((1.0, 0.5, 0.25)):
        optimizer.set_factor(factor)
        with_gradients(model, step)
        for name, p in model.named_parameters():
            weight, velocity = hand[name]
            velocity = 0.9 * velocity + p.grad.double()
            rate = factor * rates.get(name, 0.1 * 0.5 ** (3 - model.layer_of(name)))
            decay = 0.3 if name in decayed_of(model) else 0.0
            hand[name] = (weight * (1 - rate * decay) - rate * velocity, velocity)
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p.double(), hand[name][0], atol=1e-5), name


@given(
    name=st.sampled_from(["adamw", "sgd", "muon"]),
    decay=st.floats(0, 1),
    layer_decay=st.sampled_from([1.0, 0.5]),
    factor=st.floats(0.01, 1),
)
@settings(max_examples=20, deadline=None)
def test_every_optimizer_decays_by_one_rule(name: str, decay: float, layer_decay: float, factor: float) -> None:
    """With gradients of zero, for several updates: θ ← θ·(1 - rate·decay), layer by layer."""
    model = small_vit()
    config = OptimConfig(name=name, lr=0.1, muon_lr=0.1, weight_decay=decay, layer_decay=layer_decay)  # type: ignore[arg-type]
    optimizer = optimizer_of(model, config, bf16=False)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer.set_factor(factor)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for key, p in model.named_parameters():
        rate = 0.1 * factor * layer_decay ** (3 - model.layer_of(key))
        shrunk = (1 - rate * decay) ** 3 if key in decayed_of(model) else 1.0
        assert torch.allclose(p, before[key] * shrunk, rtol=1e-5, atol=1e-7), key


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
