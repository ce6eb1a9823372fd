"""BiT networks and hybrids: timm's logits with its weights, standardised weights by hand, one standardising for several passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.config import model_config
from vitcli.families.bit import BiTConfig
from vitcli.model.classifier import Classifier, build
from vitcli.model.held import Held, held
from vitcli.model.resnet import StdConv, same_padded, standardised
from vitcli.train.muon import Muon

TOLERANCE = 2e-5  # of the logits' spread, float32


def stirred(module: nn.Module, by: float = 0.05) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module


def small(name: str = "R1-2x0.5", size: tuple[int, int] = (32, 32), classes: int = 5, **values: Any) -> Classifier:
    model = build(replace(model_config(name, size, classes), **values))
    model.initialise(0)
    stirred(model)
    return model


def pixels(*size: int, images: int = 2) -> Tensor:
    return torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(2))


# --- timm --------------------------------------------------------------------------------------------------

TIMM = {
    # timm's name, its arguments, vit's name, sizes of images
    "R50x1": ("resnetv2_50x1_bit", {}, [(64, 64), (65, 97)]),
    "R50x2": ("resnetv2_50x1_bit", {"stem_chs": 128, "channels": [512, 1024, 2048, 4096]}, [(48, 48)]),
    "R101x1": ("resnetv2_101x1_bit", {}, [(40, 72)]),
    "R26+ViT-S/32": ("vit_small_r26_s32_224", {}, [(64, 64), (96, 160)]),
    "R+ViT-Ti/16": ("vit_tiny_r_s16_p8_224", {}, [(64, 64), (32, 96)]),
    "R50+ViT-w192d2h3/16": (
        "vit_base_r50_s16_224",
        {"embed_dim": 192, "depth": 2, "num_heads": 3},
        [(64, 64), (48, 80)],
    ),
    "R50+ViT-w192d2h3/32": ("vit_large_r50_s32_224", {"embed_dim": 192, "depth": 2, "num_heads": 3}, [(64, 96)]),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_logits_in_training_and_evaluation(name):
    pytest.importorskip("torchvision_shim", reason="timm imports torchvision")
    timm = pytest.importorskip("timm")
    architecture, arguments, sizes = TIMM[name]
    for size in sizes:
        model = model_config(name, size, 5)
        own = {"weight_eps": 1e-8}
        if not isinstance(model, BiTConfig):
            arguments = arguments | {"img_size": size}
            own |= {"weight_eps_to": "variance", "group_eps": 1e-5}
        torch.manual_seed(0)
        theirs = stirred(timm.create_model(architecture, num_classes=5, **arguments), 0.02)
        ours = build(replace(model, **own))
        ours.load_state_dict(
            {ours_of(key): tensor.reshape(shape_of(ours, key)) for key, tensor in theirs.state_dict().items()}
        )
        for training in (True, False):
            theirs.train(training), ours.train(training)
            assert_same(theirs, ours, pixels(*size), TOLERANCE if name not in ("R50x2", "R101x1") else None)


@torch.no_grad()
def assert_same(theirs: nn.Module, ours: nn.Module, images: Tensor, tolerance: float | None) -> None:
    """In float64 to rounding; in float32 to `tolerance`, where timm's own error is well below it."""
    for dtype, allowed in ((torch.float32, tolerance), (torch.float64, 1e-10)):
        if allowed is not None:
            wanted, found = theirs.to(dtype)(images.to(dtype)), ours.to(dtype)(images.to(dtype))
            spread = float(wanted.max() - wanted.min())
            assert spread > 0.1
            assert float((wanted - found).abs().max()) <= allowed * spread
    theirs.float(), ours.float()


def ours_of(key: str) -> str:
    key = key.replace("head.fc.", "head.")
    for part in ("conv", "norm"):  # timm's root without stages
        key = key.replace(f"patch_embed.backbone.{part}.", f"patch_embed.backbone.stem.{part}.")
    return key


def shape_of(model: Classifier, key: str) -> tuple[int, ...]:
    return model.config.shapes()[ours_of(key)]


# --- standardising -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_deviation", [False, True])
@pytest.mark.parametrize("eps", [1e-10, 1e-5, 1e-2])
def test_standardised_weights_by_hand(eps, to_deviation):
    weight = 0.1 * torch.randn(7, 3, 3, 3, dtype=torch.float64)
    flat = weight.numpy().reshape(7, -1)
    centred = flat - flat.mean(1, keepdims=True)
    variance = (centred**2).mean(1, keepdims=True)
    wanted = centred / ((np.sqrt(variance) + eps) if to_deviation else np.sqrt(variance + eps))
    np.testing.assert_allclose(
        standardised(weight, eps, to_deviation).numpy().reshape(7, -1), wanted, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("to_deviation", [False, True])
def test_a_filter_that_is_constant_has_no_infinite_slope(to_deviation):
    weight = torch.ones(2, 3, 1, 1, requires_grad=True)
    standardised(weight, 1e-5, to_deviation).sum().backward()
    assert weight.grad is not None and bool(torch.isfinite(weight.grad).all())


@pytest.mark.parametrize("side", [7, 8, 9, 10])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1)])
def test_padding_as_tensorflow_s_same(side, kernel, stride):
    """`SAME`: ⌈side / stride⌉ results, the odd zero at the end."""
    results = -(-side // stride)
    whole = max(0, (results - 1) * stride + kernel - side)
    before = whole // 2
    row = torch.arange(1.0, side + 1).expand(1, 1, side, side)
    padded = same_padded(row, kernel, stride)
    assert padded.shape[3] == side + whole
    assert float(padded[0, 0, before, before]) == 1 and (before == 0 or float(padded[0, 0, before, before - 1]) == 0)


# --- one standardising for several passes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["R1-2x0.5", "R1-1+ViT-w64d1h2/8"])
def test_micro_batches_of_one_standardising_have_the_gradients_of_the_batch(name):
    images = pixels(32, 32, images=8)
    model = small(name).double()
    targets = torch.arange(8) % 5
    F.cross_entropy(model(images.double()), targets).backward()
    whole = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    with held(model):
        for rows in (slice(0, 4), slice(4, 8)):
            (F.cross_entropy(model(images[rows].double()), targets[rows]) / 2).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[key], rtol=1e-9, atol=1e-12, msg=key)
    assert all(layer.made is None for layer in model.modules() if isinstance(layer, Held))


def test_weights_are_standardised_once_within_and_anew_after(monkeypatch):
    made = []
    make = StdConv.make
    monkeypatch.setattr(StdConv, "make", lambda layer: made.append(layer) or make(layer))
    model = small()
    layers = sum(isinstance(layer, StdConv) for layer in model.modules())
    with held(model):
        model(pixels(32, 32)), model(pixels(32, 32))
    assert len(made) == layers
    with torch.no_grad():
        before = model(pixels(32, 32))
        for parameter in model.parameters():
            parameter.mul_(1.5)
        after = model(pixels(32, 32))
    assert not torch.equal(before, after)


def test_what_is_held_is_dropped_after_an_error():
    model = small()
    with pytest.raises(ZeroDivisionError), held(model):
        raise ZeroDivisionError
    assert all(layer.made is None for layer in model.modules() if isinstance(layer, Held))


def test_without_gradients_nothing_is_kept_for_them():
    model = small()
    with torch.inference_mode(), held(model):
        assert not model(pixels(32, 32)).requires_grad


# --- the rest ----------------------------------------------------------------------------------------------


def test_a_new_hybrid_s_units_pass_their_input_on():
    model = build(model_config("R1-2+ViT-w64d1h2/8", (32, 32), 3))
    model.initialise(0)
    norms = [p for name, p in model.named_parameters() if name.endswith("norm3.weight")]
    assert len(norms) == 3 and not any(bool(p.any()) for p in norms)


def test_layers_for_layer_wise_rates():
    model = small("R1-2x0.5")
    assert model.layers == 3
    assert model.layer_of("stem.conv.weight") == 0
    assert model.layer_of("stages.0.blocks.0.conv1.weight") == 1
    assert model.layer_of("stages.1.blocks.1.norm1.bias") == 2
    assert {model.layer_of(name) for name in ("norm.weight", "head.weight", "head.bias")} == {3}


def test_muon_takes_a_filter_as_a_row():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    flat = nn.Parameter(weight.detach().flatten(1).clone())
    weight.grad = torch.randn(4, 3, 3, 3)
    flat.grad = weight.grad.flatten(1).clone()
    for parameter in (weight, flat):
        Muon([{"params": [parameter]}], 0.1, 0.9, torch.float32).step()
    torch.testing.assert_close(weight.detach().flatten(1), flat.detach())


def test_images_of_any_size_are_taken():
    model = small(size=(33, 47))
    assert model(pixels(33, 47)).shape == (2, 5)
    with model.taking((20, 21)):
        assert model(pixels(20, 21)).shape == (2, 5)
    with pytest.raises(ValueError, match="the model takes"):
        model(pixels(20, 21))
