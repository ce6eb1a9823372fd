"""Counts by arithmetic against the published tables and against torch's own modules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.config import Config, ModelConfig, apply, model_config
from vitcli.flops import (
    backbone_parameters,
    macs,
    parameters,
    run_memory,
    training_flops,
    training_memory,
)
from vitcli.model.vit import ViT

# name: tokens, backbone parameters, with 1000 classes and GMAC at 224 px; side, tokens, parameters and GMAC larger
TABLE = {
    "Ti/16": (197, 5_524_416, 5_717_416, "1.254", 384, 577, 5_790_376, "4.682"),
    "S/32": (50, 22_493_952, 22_878_952, "1.143", 384, 145, 22_915_432, "3.443"),
    "S/16": (197, 21_665_664, 22_050_664, "4.599", 384, 577, 22_196_584, "15.490"),
    "B/32": (50, 87_455_232, 88_224_232, "4.409", 384, 145, 88_297_192, "13.044"),
    "B/16": (197, 85_798_656, 86_567_656, "17.564", 384, 577, 86_859_496, "55.484"),
    "B/8": (785, 85_807_872, 86_576_872, "78.148", 384, 2305, 87_744_232, "294.04"),
    "L/32": (50, 305_510_400, 306_535_400, "15.378", 384, 145, 306_632_680, "45.276"),
    "L/16": (197, 303_301_632, 304_326_632, "61.555", 384, 577, 304_715_752, "191.066"),
    "H/14": (257, 630_764_800, 632_045_800, "167.295", 518, 1370, 633_470_440, "1016.7"),
}


def printed(number: float, like: str) -> str:
    return f"{number:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_of_the_paper_s_models(name):
    tokens, backbone, with_head, gmac, *_ = TABLE[name]
    model = model_config(name, (224, 224), 1000)
    assert model.tokens == tokens
    assert backbone_parameters(model) == backbone
    assert parameters(dataclasses.replace(model, classes=0)) == backbone
    assert parameters(model) == with_head
    assert printed(macs(model) / 1e9, gmac) == gmac


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_at_the_larger_size(name):
    *_, side, tokens, with_head, gmac = TABLE[name]
    model = model_config(name, (side, side), 1000)
    assert model.tokens == tokens
    assert parameters(model) == with_head
    assert printed(macs(model) / 1e9, gmac) == gmac


def test_l16_at_512():
    model = model_config("L/16", (512, 512), 1000)
    assert parameters(model) == 305_174_504
    assert printed(macs(model) / 1e9, "361.99") == "361.99"


@pytest.mark.parametrize(
    ("name", "plain", "pre_logits"),
    [
        ("Ti/16", 9_740_115, None),
        ("S/16", 30_075_219, None),
        ("B/16", 102_595_923, 103_186_515),
        ("B/32", 104_252_499, None),
        ("L/16", 325_690_707, 326_740_307),
        ("L/32", 327_899_475, None),
        ("H/14", 658_745_683, 660_385_363),
    ],
)
def test_parameters_with_the_head_of_imagenet_21k(name, plain, pre_logits):
    model = model_config(name, (224, 224), 21_843)
    assert parameters(model) == plain
    if pre_logits is not None:
        assert parameters(dataclasses.replace(model, pre_logits=True)) == pre_logits


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops"),
    [("B/32", 7, 55), ("B/16", 7, 224), ("L/32", 7, 196), ("L/16", 7, 783), ("L/16", 14, 1567), ("H/14", 14, 4262)],
)
def test_training_flops_are_the_exaflops_of_table_6(name, epochs, exaflops):
    model = model_config(name, (224, 224), 18_291)
    assert training_flops(model, 303_000_000 * epochs) / 1e18 == pytest.approx(exaflops, rel=0.03)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.integers(1, 4))
    patch = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    class_token = draw(st.booleans())
    positions = draw(st.sampled_from(["learned", "none", "2d", "relative", "sincos"]))
    even = 2 if positions == "2d" else 1
    return ModelConfig(
        name="tiny",
        width=even * heads * draw(st.integers(1, 8)),
        depth=draw(st.integers(1, 4)),
        heads=heads,
        mlp=draw(st.integers(1, 40)),
        patch=patch,
        img_size=(patch[0] * draw(st.integers(1, 5)), patch[1] * draw(st.integers(1, 5))),
        classes=draw(st.integers(0, 12)),
        pool=draw(st.sampled_from(["cls", "mean"])) if class_token else "mean",
        class_token=class_token,
        pre_logits=draw(st.booleans()),
        positions=positions,
        norm_place=draw(st.sampled_from(["pre", "post"])),
    )


@settings(deadline=None, max_examples=40)
@given(config=models())
def test_parameters_are_those_of_the_built_model(config):
    with torch.device("meta"):
        model = ViT(config)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert parameters(config) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameters(config) == backbone_parameters(config) + config.cost().head_parameters
    assert shapes == config.shapes()


@settings(deadline=None, max_examples=15)
@given(config=models(), batch=st.integers(1, 3))
def test_macs_are_half_of_the_flops_that_torch_counts(config, batch):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, images = ViT(config).eval(), torch.empty(batch, 3, *config.img_size)
    with FlopCounterMode(display=False) as counter:
        tokens = model.encode(images)  # all of them: forward leaves out what the head does not read
        model.head(model.pre_logits(tokens[:, 0]))
    assert counter.get_total_flops() == 2 * batch * macs(config)


def test_training_costs_three_forward_passes_of_two_operations_a_mac():
    model = model_config("s/16", (224, 224), 10)
    assert training_flops(model, 7) == 6 * 7 * macs(model)
    assert training_flops(model, 0) == 0


def test_with_a_frozen_backbone_only_the_head_has_a_backward_pass():
    model = model_config("s/16", (224, 224), 10)
    assert training_flops(model, 3, tuned="head") == 3 * (2 * macs(model) + 4 * model.cost().head_macs)
    assert training_flops(model, 3, tuned="head") < training_flops(model, 3) / 2


def test_the_state_of_training_is_counted_exactly():
    model = model_config("ti/16", (64, 64), 10)
    n, head = parameters(model), 192 * 10 + 10

    def state(**changes: object) -> int:
        return training_memory(
            **({"model": model, "micro_batch": 8, "optimizer": "adamw", "ema": False, "bf16": False} | changes)
        ).state  # type: ignore[arg-type]

    assert state() == 4 * 4 * n  # weights, gradients and two moments
    assert state(optimizer="sgd") == 4 * 3 * n
    assert state(ema=True) - state() == 4 * n
    assert state(tuned="head") == 4 * (n + 3 * head)


def test_activations_grow_with_the_micro_batch():
    model = model_config("ti/16", (64, 64), 10)
    one = training_memory(model, 1, "adamw", False, False)
    eight = training_memory(model, 8, "adamw", False, False)
    assert eight.activations == 8 * one.activations
    assert eight.state == one.state
    assert eight.total == eight.state + eight.activations
    assert training_memory(model, 8, "adamw", False, True).activations < eight.activations


def test_blocks_that_are_computed_again_keep_their_inputs_and_the_memory_of_a_few():
    for depth in (1, 12, 24):
        model = dataclasses.replace(model_config("ti/16", (224, 224), 10), depth=depth)
        whole, again = (training_memory(model, 8, "adamw", False, True, checkpointing=on) for on in (False, True))
        assert whole.state == again.state
        block = (
            whole.activations
            - training_memory(dataclasses.replace(model, depth=depth - 1), 8, "adamw", False, True).activations
        )
        assert again.activations == pytest.approx(5 * block + 8 * depth * 4 * 197 * 192, rel=1e-3)
    config = apply(Config(model=model), {"run.checkpointing": True})
    assert run_memory(config, True, 64).activations < run_memory(Config(model=model), True, 64).activations / 3


def test_the_memory_of_a_run_is_that_of_its_fullest_moment():
    config = apply(
        Config(model=model_config("ti/16", (224, 224), 1000)), {"train.batch_size": 4096, "train.accumulate": 512}
    )
    memory = run_memory(config, True, 64)
    step = training_memory(config.model, 8, "adamw", False, True)
    assert (memory.state, memory.activations) == (step.state, step.activations)
    floats = 4096 * 3 * 224 * 224 * 4
    assert memory.pixels > floats, "the whole batch is augmented at once, however small its parts are"
    assert memory.augmentation > 3 * floats and memory.augmentation > memory.activations + memory.pixels
    assert memory.total == memory.state + memory.saving + memory.augmentation
    mixed = run_memory(apply(config, {"augment.mixup": 0.2}), True, 64)
    twice = run_memory(apply(config, {"augment.views": 2}), True, 64)
    assert mixed.pixels == twice.pixels > memory.pixels + 0.9 * floats
    measured = run_memory(
        apply(config, {"train.batch_size": 1, "train.accumulate": 1, "eval.batch_size": 4096}), True, 64
    )
    assert measured.evaluation == 64 * memory.evaluation and measured.total > measured.evaluation
    for smaller in ({"train.accumulate": 1024}, {"train.batch_size": 2048, "train.accumulate": 256}):
        assert run_memory(apply(config, smaller), True, 64).total <= memory.total
