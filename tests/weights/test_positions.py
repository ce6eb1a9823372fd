"""Positions at another image size: as the code of each family resamples them, or as --set model.posemb says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Vit
from vitcli.config import EvalConfig, model_config
from vitcli.errors import UsageError
from vitcli.model.posemb import METHODS, resize_position_embedding
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import load, model_with, resized, save
from vitcli.weights.describe import Description, describe

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

HF = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
LARGER = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))


def stirred(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@torch.no_grad()
def differences(path: Path, theirs: torch.Tensor, features: bool = False) -> dict[str, float]:
    """How far the logits at 56 px are from another tool's, by method, part of their spread."""
    description, tensors = load(str(path))
    found = {}
    for method in ("", *METHODS):
        larger, fitting = resized(description, tensors, (56, 56), method)
        model = model_with(larger.model, fitting)
        ours = model.features(LARGER) if features else model(LARGER)
        found[method] = float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))
    return found


def assert_only(found: dict[str, float], method: str) -> None:
    assert found[""] == found[method] < 1e-5
    assert all(value > 1e-4 for key, value in found.items() if key not in ("", method)), found


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_transformers(tmp_path, registers):
    torch.manual_seed(0)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**HF, num_register_tokens=registers)
        theirs = stirred(transformers.Dinov2WithRegistersForImageClassification(config))
    else:
        theirs = stirred(transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**HF)))
    theirs.save_pretrained(tmp_path)
    found = differences(tmp_path, theirs(LARGER).logits.detach())
    assert_only(found, "bicubic-antialias" if registers else "bicubic")


def test_vit_of_transformers(tmp_path):
    torch.manual_seed(0)
    theirs = stirred(transformers.ViTForImageClassification(transformers.ViTConfig(**HF, intermediate_size=96)))
    theirs.save_pretrained(tmp_path)
    assert_only(differences(tmp_path, theirs(LARGER, interpolate_pos_encoding=True).logits.detach()), "bicubic")


def test_registers_of_timm(tmp_path):
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 5}
    theirs = stirred(
        timm.models.VisionTransformer(**arguments, reg_tokens=4, no_embed_class=True, dynamic_img_size=True)
    )
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    assert_only(differences(tmp_path, theirs(LARGER).detach()), "bicubic-antialias")


def test_dinov2_as_facebook_wrote_it(tmp_path):
    """vision_transformer.py, interpolate_pos_encoding: its hub loads with an offset of 0.1, and with registers without."""
    theirs = timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=56, num_classes=0)
    torch.save(dict(theirs.state_dict()) | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14.pth")
    description, tensors = load(str(tmp_path / "dinov2_vits14.pth"))
    assert description.model.posemb == "bicubic-offset"
    _, fitting = resized(description, tensors, (98, 84))
    patches = tensors["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        patches, scale_factor=((98 // 14 + 0.1) / 4, (84 // 14 + 0.1) / 4), mode="bicubic", antialias=False
    )
    torch.testing.assert_close(fitting["pos_embed"][:, 1:], wanted.permute(0, 2, 3, 1).reshape(1, 42, -1))
    assert torch.equal(fitting["pos_embed"][:, :1], tensors["pos_embed"][:, :1])


def test_an_offset_never_changes_the_grid():
    for old in range(1, 40):
        table = torch.zeros(1, old * old, 1)
        for new in range(1, 40):
            found = resize_position_embedding(table, (old, old), (new, 41 - new), 0, "bicubic-offset")
            assert found.shape == (1, new * (41 - new), 1)


# --- the choice --------------------------------------------------------------------------------------------


def written(path: Path, **changes: Any) -> Path:
    model = dataclasses.replace(model_config("mu/4", (16, 16), 10), **changes)
    vit = ViT(model)
    init_weights(vit, 0)
    generator = torch.Generator().manual_seed(0)
    tensors = {n: t + 0.5 * torch.randn(t.shape, generator=generator) for n, t in vit.state_dict().items()}
    save(Description(path=path, model=model, classes=(), eval=EvalConfig()), tensors)
    return path


def test_a_checkpoint_of_an_older_version_has_no_such_key(tmp_path):
    """Its positions are resized as before."""
    path = written(tmp_path / "w.safetensors")
    document = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"][
        "vit"
    ]
    tree = json.loads(document)
    del tree["model"]["posemb"]
    from vitcli.weights.describe import described
    from vitcli.weights.header import read_header

    assert described(read_header(path), tree).model.posemb == "auto"
    description, tensors = load(str(path))
    _, plain = resized(description, tensors, (32, 32))
    _, bicubic = resized(description, tensors, (32, 32), "bicubic")
    assert torch.equal(plain["pos_embed"], bicubic["pos_embed"])


def test_the_model_resizes_in_its_own_way_in_every_pass():
    for method in METHODS:
        model = ViT(dataclasses.replace(model_config("mu/4", (16, 16), 10), posemb=method))  # type: ignore[arg-type]
        init_weights(model, 0)
        images = torch.zeros(1, 3, 24, 32)
        wanted = resize_position_embedding(model.pos_embed, (4, 4), (6, 8), 1, method)
        with torch.no_grad():
            model.patch_embed.proj.bias.zero_()
            found = model.embed(images)
        torch.testing.assert_close(found[:, 1:], wanted[:, 1:], rtol=0, atol=1e-6)


def test_what_is_no_method_is_a_usage_error(tmp_path):
    from vitcli.config import parse_set

    with pytest.raises(UsageError, match=r"model\.posemb"):
        parse_set(["model.posemb=nearest"])


def test_commands_resize_as_they_are_told(vit: Vit, tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors", registers=2, posemb="bicubic-antialias")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(10))))
    losses = {}
    for method in ("", *METHODS):
        asked = ("--set", f"model.posemb={method}") if method else ()
        done = vit("eval", path, "--data", "digits", "--labels", "labels.txt", "--img-size", "32", "--precision", "fp32",
                   *asked, "--json")  # fmt: skip
        assert done.code == 0, done.err
        losses[method] = done.json["loss"]
    assert losses[""] == losses["bicubic-antialias"] and len(set(losses.values())) == len(METHODS)
    assert (
        vit("resize-posemb", path, "a.safetensors", "--img-size", "32", "--json").json["method"] == "bicubic-antialias"
    )
    other = vit("resize-posemb", path, "b.safetensors", "--img-size", "32", "--method", "paper", "--json")
    assert other.json["method"] == "paper"
    chosen = vit("resize-posemb", path, "c.safetensors", "--img-size", "32", "--set", "model.posemb=paper", "--json")
    assert chosen.json["method"] == "paper" and describe(tmp_path / "c.safetensors").model.posemb == "paper"
    tables = [load(str(tmp_path / f"{n}.safetensors"))[1]["pos_embed"] for n in "abc"]
    assert torch.equal(tables[1], tables[2]) and not torch.equal(tables[0], tables[1])
