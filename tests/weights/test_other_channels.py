"""Checkpoints of other channels than three: the numbers of the code that they come from, and conversion only where its rule is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from google_files import google_arrays
from vitcli.classes import Class
from vitcli.config import EvalConfig, model_config
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.channels import convert_patch_embedding
from vitcli.model.vit import ViT, init_weights
from vitcli.weights import export
from vitcli.weights.asked import asked_checkpoint
from vitcli.weights.checkpoint import load, model_with, save
from vitcli.weights.describe import Description, describe
from vitcli.weights.theirs import format_of

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from weights.test_families import stirred  # noqa: E402

TOLERANCE = 2e-5  # of the logits' spread, float32
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
HF = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 32, "patch_size": 8}  # fmt: skip
KERNEL = "patch_embed.proj.weight"


def pixels(channels: int, side: int = 32) -> Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def assert_same(reference: Path, theirs: Tensor, images: Tensor) -> Description:
    description, tensors = load(str(reference))
    ours = model_with(description.model, tensors)(images)
    spread = float(theirs.max() - theirs.min())
    assert spread > 0.1, "numbers that hardly differ show nothing"
    assert float((ours - theirs).abs().max()) <= TOLERANCE * spread
    assert description.model.channels == images.shape[1] == len(description.eval.mean) == len(description.eval.std)
    return description


def of_timm(folder: Path, channels: int, said: int | None, **cfg: Any) -> nn.Module:
    torch.manual_seed(0)
    theirs = stirred(timm.models.VisionTransformer(**SMALL, in_chans=channels))
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    arguments = SMALL | ({} if said is None else {"in_chans": said})
    cfg = {"mean": [0.4] * channels, "std": [0.2] * channels} | cfg
    config = {"architecture": "vit_base_patch16_224", "num_classes": 5, "model_args": arguments, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return theirs


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_timm(tmp_path: Path, channels: int) -> None:
    theirs, images = of_timm(tmp_path, channels, channels), pixels(channels)
    assert assert_same(tmp_path, theirs(images).detach(), images).eval.mean == (0.4,) * channels


@pytest.mark.parametrize("channels", [1, 4])
def test_transformers(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(0)
    theirs = stirred(transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_channels=channels)))
    theirs.save_pretrained(tmp_path)
    images = pixels(channels)
    assert_same(tmp_path, theirs(images).logits.detach(), images)


def test_google_s_kernels_have_channels_before_filters(tmp_path: Path) -> None:
    arrays = google_arrays(linen=False, pre_logits=False)
    one = arrays["embedding/kernel"].sum(2, keepdims=True)
    arrays["Transformer/posembed_input/pos_embedding"] = arrays["Transformer/posembed_input/pos_embedding"][:, :5]
    np.savez(tmp_path / "three.npz", **arrays)
    np.savez(tmp_path / "one.npz", **(arrays | {"embedding/kernel": one}))
    three, gray = load(str(tmp_path / "three.npz")), pixels(1, 8)
    with torch.no_grad():
        theirs = model_with(three[0].model, three[1])(gray.expand(-1, 3, -1, -1))
    assert_same(tmp_path / "one.npz", theirs, gray)


@pytest.mark.parametrize("said", [1, 3])
def test_a_configuration_beside_that_says_other_channels_is_named(tmp_path: Path, said: int) -> None:
    of_timm(tmp_path, 4, said)
    with pytest.raises(CheckpointError, match=rf"channels = 4.*in_chans = {said}"):
        describe(tmp_path / "model.safetensors")
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_channels=2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_channels": said}))
    with pytest.raises(CheckpointError, match=rf"channels = 2.*num_channels = {said}"):
        describe(tmp_path / "model.safetensors")


def test_statistics_of_three_channels_are_averaged_for_others_and_that_is_said(tmp_path: Path) -> None:
    of_timm(tmp_path, 2, None, mean=[0.3, 0.5, 0.7], std=[0.1, 0.2, 0.3])
    found = describe(tmp_path / "model.safetensors")
    assert found.eval.mean == pytest.approx((0.5, 0.5)) and found.eval.std == pytest.approx((0.2, 0.2))
    assert any("mean 0.5 and deviation 0.2" in note for note in found.notes)


@pytest.mark.parametrize(("channels", "count"), [(2, 1), (2, 4), (3, 2), (3, 4)])
def test_other_numbers_of_statistics_are_an_error_that_names_them(tmp_path: Path, channels: int, count: int) -> None:
    of_timm(tmp_path, channels, None, std=[0.2] * count, mean=[0.5] * 3)
    with pytest.raises(CheckpointError, match=rf"std beside it has {count} numbers.*{channels} channels"):
        describe(tmp_path / "model.safetensors")


# --- writing -----------------------------------------------------------------------------------------------


def checkpoint(path: Path, channels: int, **changed: Any) -> Path:
    model = dataclasses.replace(model_config("ViT-w64d2h2/8", (32, 32), 2), channels=channels, **changed)
    vit = ViT(model)
    init_weights(vit, 0)
    statistics = [tuple(np.linspace(low, 0.6, channels).tolist()) for low in (0.4, 0.2)]
    classes = (Class("cat"), Class("dog"))
    path.parent.mkdir(parents=True, exist_ok=True)
    config = EvalConfig(mean=statistics[0], std=statistics[1])
    save(Description(path=path, model=model, classes=classes, eval=config), stirred(vit).state_dict())
    return path


@pytest.mark.parametrize("channels", [1, 4, 6])
@pytest.mark.parametrize("form", export.FORMATS)
def test_what_is_exported_reads_as_many_channels(tmp_path: Path, form: str, channels: int) -> None:
    path = checkpoint(tmp_path / "run" / "model.safetensors", channels)
    description, tensors = load(str(path))
    out = tmp_path / ("model.onnx" if form == "onnx" else "out")
    tree = export.export(description, tensors, out, form)
    assert tree["max_abs_difference"] < 1e-5
    assert tree["preprocessing"]["equal"] == (form == "onnx")
    if form == "onnx":
        return
    images = pixels(channels)
    with torch.no_grad():
        again = assert_same(out, model_with(description.model, tensors)(images), images)
    assert again.eval.mean == pytest.approx(description.eval.mean)
    key = {"timm": ("model_args", "in_chans"), "transformers": ("num_channels",)}[form]
    config = json.loads((out / "config.json").read_text())
    assert (config[key[0]][key[1]] if len(key) > 1 else config[key[0]]) == channels


@pytest.mark.parametrize("channels", [1, 5])
def test_a_run_folder_loads_in_timm(tmp_path: Path, channels: int) -> None:
    description, tensors = load(str(checkpoint(tmp_path / "model.safetensors", channels)))
    (tmp_path / "config.json").write_text(json.dumps(format_of(description, "timm").config(description)))
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(pixels(channels))
        torch.testing.assert_close(theirs, model_with(description.model, tensors)(pixels(channels)))


# --- conversion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("rule", ["mean", "repeat"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 4), (1, 3), (4, 3)])
def test_a_checkpoint_is_converted_by_the_rule_that_is_named(
    tmp_path: Path, old: int, new: int, rule: str, theirs: bool
) -> None:
    if theirs:
        of_timm(tmp_path, old, old)
    path = tmp_path / "model.safetensors" if theirs else checkpoint(tmp_path / "model.safetensors", old)
    before, weights = load(str(path))
    described, _, _ = asked_checkpoint(str(path), {"model.channels": new, "model.channels_from": rule}, ("model.",))
    after, converted = load(described)
    assert after.model == dataclasses.replace(before.model, channels=new, channels_from=rule)
    torch.testing.assert_close(converted[KERNEL], convert_patch_embedding(weights[KERNEL], new, rule))
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items() if name != KERNEL)
    mean = before.eval.mean
    wanted = [mean[c % old] for c in range(new)] if rule == "repeat" else [sum(mean) / old] * new
    assert after.eval.mean == pytest.approx(wanted)
    save(dataclasses.replace(after, path=tmp_path / "new.safetensors"), converted)
    again, kept = load(str(tmp_path / "new.safetensors"))
    assert again.model == after.model and torch.equal(kept[KERNEL], converted[KERNEL])


@pytest.mark.parametrize("theirs", [False, True])
def test_no_checkpoint_is_converted_without_a_rule(tmp_path: Path, theirs: bool) -> None:
    if theirs:
        of_timm(tmp_path, 3, 3)
    path = tmp_path / "model.safetensors" if theirs else checkpoint(tmp_path / "model.safetensors", 3)
    with pytest.raises(UsageError, match=r"model\.channels = 1") as caught:
        describe(path, {"model.channels": 1})
    assert "model.channels_from=mean or repeat" in caught.value.hint
    assert describe(path, {"model.channels": 3}).model.channels == 3
    assert describe(path, {"model.channels": 3, "model.channels_from": "mean"}).model.channels_from == ""


def test_a_converted_checkpoint_is_not_converted_back_unasked(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model.safetensors", 1, channels_from="mean")
    with pytest.raises(UsageError, match=r"model\.channels = 3"):
        describe(path, {"model.channels": 3})


def test_statistics_are_one_a_channel(tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path / "model.safetensors", 1))
    assert asked_checkpoint(path, {"eval.mean": (0.3,)}, ("eval.",))[0].eval.mean == (0.3,)
    with pytest.raises(UsageError, match=r"eval\.mean has 3 numbers"):
        asked_checkpoint(path, {"eval.mean": (0.5, 0.5, 0.5)}, ("eval.",))
