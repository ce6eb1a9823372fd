"""Whose weights a file holds, by its keys and shapes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, model_config
from vitcli.errors import CheckpointError
from vitcli.weights.architecture import architecture, check_shapes
from vitcli.weights.keys import Shapes, find, strip_prefixes
from vitcli.weights.layouts import preprocessing_by_name
from vitcli.weights.sidecar import Sidecar

TINY = dataclasses.replace(model_config("mu/4", (16, 16), 3), gelu="erf")


def timm_model(shapes: Shapes, where: str) -> ModelConfig:
    """The architecture of a bare file with timm's names."""
    return architecture(find(shapes, where), Sidecar(), where).model


def test_prefixes_of_wrappers_are_taken_off_however_nested():
    names = ["head.bias", "module.head.weight", "_orig_mod.norm.bias", "module._orig_mod.module.pos_embed"]
    assert list(strip_prefixes(names).items()) == list(
        zip(names, ["head.bias", "head.weight", "norm.bias", "pos_embed"], strict=True)
    )
    assert strip_prefixes(["encoder.module.x"]) == {"encoder.module.x": "encoder.module.x"}


@pytest.mark.parametrize("name", ["ti/16", "s/32", "b/16", "l/32", "h/14", "mu/4", "m/8x16"])
@pytest.mark.parametrize("classes", [0, 1000])
def test_released_sizes_are_recognised_by_their_shapes(name, classes):
    patch = model_config(name).patch
    model = dataclasses.replace(model_config(name, (7 * patch[0], 7 * patch[1]), classes), gelu="erf")
    assert timm_model(model.shapes(), "w") == model


@settings(deadline=None, max_examples=60)
@given(
    heads=st.integers(1, 3),
    depth=st.integers(1, 3),
    mlp=st.integers(1, 300),
    patch=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    side=st.integers(1, 6),
    classes=st.integers(0, 20),
    class_token=st.booleans(),
    pre_logits=st.booleans(),
)
def test_any_vit_with_heads_of_64_is_recognised(heads, depth, mlp, patch, side, classes, class_token, pre_logits):
    model = ModelConfig(
        name="",
        width=64 * heads,
        depth=depth,
        heads=heads,
        mlp=mlp,
        patch=patch,
        img_size=(side * patch[0], side * patch[1]),
        classes=classes,
        pool="cls" if class_token else "mean",
        class_token=class_token,
        pre_logits=pre_logits,
    )
    found = timm_model(model.shapes(), "w")
    assert dataclasses.replace(found, name="") == model


def test_timm_s_gelu_is_assumed():
    assert timm_model(model_config("ti/16", classes=5).shapes(), "w").gelu == "erf"


def test_keys_that_are_missing_unexpected_or_of_another_shape_are_listed():
    shapes = dict(TINY.shapes())
    del shapes["norm.bias"], shapes["blocks.0.mlp.fc2.weight"]
    shapes["extra.weight"] = (3,)
    shapes["head.bias"] = (4,)
    with pytest.raises(CheckpointError) as caught:
        check_shapes(shapes, TINY, "here.pth")
    message = caught.value.message
    assert "here.pth" in message
    assert "missing: blocks.0.mlp.fc2.weight, norm.bias" in message
    assert "unexpected: extra.weight" in message
    assert "head.bias is (4,), not (3,)" in message


def test_of_many_keys_the_first_and_the_number_are_named():
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        check_shapes({}, TINY, "here.pth")


@pytest.mark.parametrize("gone", sorted(TINY.shapes()))
def test_no_key_may_be_missing(gone):
    """But for the head as a whole and the class token, which plain ViTs may lack."""
    shapes = {key: shape for key, shape in TINY.shapes().items() if key != gone}
    with pytest.raises(CheckpointError) as caught:
        timm_model(shapes, "w")
    if gone not in ("cls_token", "head.weight"):
        assert gone in caught.value.message


def test_an_unknown_layout_shows_some_of_its_keys():
    with pytest.raises(CheckpointError, match=r"unknown layout.*conv1\.weight"):
        timm_model({"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}, "resnet.pth")


@pytest.mark.parametrize(
    "extra",
    ["norm_pre.weight", "blocks.0.attn.q_norm.weight", "blocks.0.ls1.gamma", "fc_norm.weight", "blocks.3.norm1.weight"],
)
def test_other_families_are_refused_rather_than_loaded_in_part(extra):
    with pytest.raises(CheckpointError, match=r"\bw\b"):
        timm_model({**TINY.shapes(), extra: (32,)}, "w")


def test_positions_that_make_no_square_need_a_configuration():
    model = dataclasses.replace(TINY, img_size=(16, 24))
    with pytest.raises(CheckpointError, match="position rows"):
        timm_model(model.shapes(), "w")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("patch_embed.proj.weight", (32, 3, 0, 0)),
        ("patch_embed.proj.weight", (32, 3, 0, 4)),
        ("patch_embed.proj.weight", (32, 3)),
        ("patch_embed.proj.weight", ()),
        ("patch_embed.proj.weight", (0, 3, 4, 4)),
        ("pos_embed", (1, 0, 32)),
        ("pos_embed", (17,)),
        ("pos_embed", ()),
        ("blocks.0.mlp.fc1.weight", ()),
        ("head.weight", ()),
        ("head.weight", (0, 32)),
        ("blocks.0.attn.qkv.weight", ()),
    ],
)
def test_impossible_shapes_are_refused(key, shape):
    with pytest.raises(CheckpointError):
        timm_model({**TINY.shapes(), key: shape}, "w")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_shapes_that_were_tampered_with_are_refused(data):
    shapes = dict(TINY.shapes())
    for key in data.draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, max_size=4, unique=True)):
        shapes[key] = data.draw(st.lists(st.integers(0, 70), max_size=4).map(tuple))
    if shapes == TINY.shapes():
        return
    try:
        model = timm_model(shapes, "w")
    except CheckpointError:
        return
    assert model.shapes() == shapes


@pytest.mark.parametrize(
    ("name", "imagenet", "crop", "sure"),
    [
        ("deit_tiny_patch16_224", True, 0.9, True),
        ("deit_base_patch16_384", True, 1.0, True),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", False, 0.9, True),
        ("vit_base_patch16_384.augreg_in21k", False, 1.0, True),
        ("vit_base_patch16_224.orig_in21k", False, 0.9, True),
        ("vit_base_patch16_224.sam_in1k", False, 0.9, True),
        ("some_weights", True, 0.9, False),
    ],
)
def test_a_file_s_name_implies_its_preprocessing(name, imagenet, crop, sure):
    config, why = preprocessing_by_name(name)
    assert (config.mean, config.std) == ((IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.5,) * 3, (0.5,) * 3))
    assert config.crop == crop
    assert config.interpolation == "bicubic"
    assert ("guess" in why) == (not sure)
