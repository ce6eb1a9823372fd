"""Every family of today through the commands: each one that takes a model takes it, at another grid as well, or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")

from conftest import Vit, draw_image
from vitcli.train import loop
from vitcli.weights.asked import loaded
from weights.test_today import assert_same, logits, of_timm, of_transformers, pixels


@dataclass(frozen=True)
class Family:
    """What a checkpoint is made of, where its places are, and what its fine-tuned classifier is exported for."""

    make: Callable[[Path], nn.Module] | None
    places: str = "table"  # rotations: nothing is to be resized; bias: of attention, which is
    exported: tuple[str, ...] = ("timm",)


def tiny(name: str, *places: str, exported: tuple[str, ...] = ("timm",)) -> Family:
    return Family(lambda folder: of_timm(folder, name, img_size=(32, 32), patch_size=8), *places, exported=exported)


def saved(name: str, *places: str, exported: tuple[str, ...] = ("timm",)) -> Family:
    return Family(lambda folder: of_transformers(folder, name), *places, exported=exported)


FAMILIES = {
    "CLIP": tiny("vit_base_patch16_clip_quickgelu_224"),
    "CLIP, transformers": saved("clip"),
    "DINOv3": tiny("vit_small_patch16_dinov3", "rotations"),
    "DINOv3, transformers": saved("dinov3", "rotations"),
    "SigLIP": tiny("vit_base_patch16_siglip_224", exported=("timm", "onnx")),
    "DINOv2 g": tiny("vit_giant_patch14_dinov2", exported=("timm", "transformers")),
    "EVA02": tiny("eva02_base_patch14_448"),
    "EVA02-CLIP": tiny("eva02_base_patch16_clip_224"),
    "PE core": tiny("vit_pe_core_base_patch16_224"),
    "PE spatial": tiny("vit_pe_spatial_tiny_patch16_512"),
    "BEiT": tiny("beit_base_patch16_224", "bias", exported=("timm", "transformers", "onnx")),
    "BEiT, transformers": saved("beit", "bias"),
    "AIMv2": tiny("aimv2_large_patch14_224"),
    "rope-vit": tiny("vit_base_patch16_rope_mixed_224", "rotations"),
    "sbb": tiny("vit_mediumd_patch16_rope_reg1_gap_256", "rotations"),
    "ViT-5": Family(None, exported=()),
}
SHORT = ["--batch-size", "8", "--set", "run.threads=1"]
VIT_5 = ["rope=index", "rope_registers=100", "registers=4", "qk_norm=rms", "norm_kind=rms"]
SMALL = ["--model", "ViT-w96d2h3/8", "--img-size", "32"]


def as_options(section: str, values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", f"{section}.{value}")]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with three classes of 40-pixel images: 6 and 3 of each."""
    root = tmp_path_factory.mktemp("colours")
    for split, numbers in (("train", range(6)), ("test", range(100, 103))):
        for colour, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                draw_image(colour, number, 40).save(root / split / name / f"{number}.png")
    return root


def made(family: Family, vit: Callable[..., Any], colours: Path) -> None:
    """The checkpoint at ./given."""
    if family.make is None:
        done(
            vit(
                "pretrain",
                *SMALL,
                *as_options("model", VIT_5),
                "--data",
                colours,
                "--steps",
                1,
                *SHORT,
                "--out",
                "given",
            )
        )
    else:
        family.make(Path("given"))


def done(result: Any) -> Any:
    assert result.code == 0, result.err
    return result


@pytest.mark.parametrize("name", FAMILIES)
def test_every_command(name: str, in_process: Vit, colours: Path) -> None:
    family, vit, image = FAMILIES[name], in_process, colours / "test" / "red" / "100.png"
    made(family, vit, colours)
    assert done(vit("info", "given", "--json")).json["layout"]
    assert done(vit("probe", "given", "--data", colours, "--json")).json["results"]
    size = [] if set(family.exported) & {"transformers", "onnx"} else ["--img-size", "48x32"]
    done(vit("finetune", "given", "--data", colours, "--steps", 1, *SHORT, *size, "--out", "tuned"))
    info = done(vit("info", "tuned", "--json")).json
    assert info["img_size"] == ([48, 32] if size else [32, 32])

    scores = done(vit("eval", "tuned", "--json")).json
    assert scores["top1"] == json.loads(Path("tuned/report.json").read_text())["eval"]["top1"]
    assert done(vit("predict", "tuned", image, "--json")).json
    distances = done(vit("attn-distance", "tuned", "--images", 3, "--json")).json["layers"]
    assert all(0 < head < 64 for layer in distances for head in layer["heads"])
    done(vit("attn-rollout", "tuned", image, "--out", "seen"))
    assert len(done(vit("filters", "tuned", "--json")).json["explained_variance"]) > 4
    check_positions(family, vit)
    check_exports(family, vit)


def check_positions(family: Family, vit: Vit) -> None:
    compared = vit("posemb-similarity", "tuned", "--json")
    resized = vit("resize-posemb", "tuned", "resized.safetensors", "--img-size", "64x48", "--json")
    if family.places == "rotations":
        assert resized.code == 2
        assert "rotations" in resized.json["error"]["message"] and "multiple of 8" in resized.json["error"]["hint"]
    else:
        assert done(resized).json["to_grid"] == [8, 6]
        assert done(vit("info", "resized.safetensors", "--json")).json["img_size"] == [64, 48]
    if family.places == "table":
        assert len(done(compared).json["similarity"]) in (16, 24)
    else:
        assert compared.code == 4
        assert {"rotations": "rotations", "bias": "in its attention"}[family.places] in compared.json["error"][
            "message"
        ]
    done(vit("resize-posemb", "tuned", "coarser.safetensors", "--img-size", "96x64", "--patch-size", 16))


def check_exports(family: Family, vit: Vit) -> None:
    size = done(vit("info", "tuned", "--json")).json["img_size"]
    ours = logits("tuned", pixels(*size))[1]
    for form in ("timm", "transformers", "onnx"):
        if form == "onnx" and form not in family.exported:
            continue  # it takes seconds, and has all
        out = f"for_{form}" if form != "onnx" else "tuned.onnx"
        result = vit("export", "tuned", out, "--format", form, "--json")
        if form not in family.exported:
            assert result.code == 4 and not Path(out).exists()
            hint = result.json["error"]["hint"]
            assert ("timm" in hint) == ("timm" in family.exported) and "onnx" in hint
            continue
        assert done(result).json["max_abs_difference"] < 1e-4
        if form != "onnx":
            assert_same(logits(out, pixels(*size))[1], ours)


LARGER = [(48, 48), (24, 40)]


@pytest.mark.parametrize("name", [
    "vit_base_patch16_clip_quickgelu_224", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224",
    "vit_giant_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "eva02_base_patch16_clip_224", "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_tiny_patch16_512", "beit3_base_patch16_224", "aimv2_large_patch14_224", "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_ape_224", "vit_base_patch16_rope_mixed_224", "vit_mediumd_patch16_rope_reg1_gap_256",
])  # fmt: skip
def test_another_grid_is_as_in_timm(tmp_path: Path, name: str) -> None:
    theirs = of_timm(tmp_path, name, img_size=(32, 32), patch_size=8)
    size = LARGER[len(name) % 2]
    _, ours = loaded(str(tmp_path), size)
    theirs.set_input_size(img_size=size)
    with torch.no_grad():
        assert_same(ours(pixels(*size)), theirs(pixels(*size)))


@pytest.mark.parametrize("size", LARGER)
@pytest.mark.parametrize("name", ["beit", "beit, absolute", "dinov3", "clip", "siglip"])
def test_another_grid_is_as_in_transformers(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    theirs = of_transformers(tmp_path, name)
    _, ours = loaded(str(tmp_path), size)
    interpolated = {} if name == "dinov3" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        found = theirs(pixel_values=pixels(*size), **interpolated)
        assert_same(ours(pixels(*size)), found.logits if "beit" in name else found.pooler_output)


@pytest.mark.parametrize("name", ["rope-vit", "BEiT"])
def test_a_run_goes_on_and_computes_blocks_again_bit_for_bit(
    name: str, in_process: Vit, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DropPath and an average of weights."""
    FAMILIES[name].make(Path("given"))  # type: ignore[misc]
    values = ["--set", "train.ema=0.9", "--set", "model.drop_path=0.4", "--set", "train.save_every_steps=2", *SHORT]
    command = ["finetune", "given", "--data", colours, "--steps", 4, "--device", "cpu", *values]
    done(in_process(*command, "--out", "whole"))
    done(in_process(*command, "--set", "run.checkpointing=true", "--out", "again"))
    step, taken = loop.Loop._step, []

    def until(self: loop.Loop, batch: Any) -> Any:
        if len(taken) == 3:
            raise RuntimeError("out of luck")
        taken.append(batch)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_step", until)
        assert in_process(*command, "--out", "stopped").code == 1
    assert done(in_process(*command, "--out", "stopped", "--json")).json["resumed_from"] == 2
    whole = load_file("whole/model.safetensors")
    for folder in ("again", "stopped"):
        other = load_file(f"{folder}/model.safetensors")
        assert whole.keys() == other.keys() and all(torch.equal(whole[key], other[key]) for key in whole)


KINDS = {
    "rotations": ["rope=centred", "rope_layout=half", "positions=none"],
    "learned rotations": ["rope=mixed", "positions=none"],
    "turned registers": VIT_5,
    "bias": ["positions=bias", "qkv_bias=qv"],
    "learned query": ["pool=map", "class_token=false"],
}


@pytest.mark.parametrize("objective", ["mae", "masked-patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_hidden(kind: str, objective: str, in_process: Vit, colours: Path) -> None:
    command = ["pretrain", *SMALL, *as_options("model", KINDS[kind]), "--data", colours, "--steps", 1, *SHORT]
    result = in_process(*command, "--objective", objective, "--precision", "bf16", "--out", "hidden", "--json")
    if (kind, objective) == ("bias", "mae"):
        assert result.code == 2 and "model.positions = bias" in result.json["error"]["message"]
        return
    done(result)
    if objective == "mae":
        done(in_process("finetune", "hidden", "--data", colours, "--steps", 1, *SHORT, "--out", "tuned"))
