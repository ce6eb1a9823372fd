"""timm's and transformers' names, from a stand-in of the hub that serves files under them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import run_vit
from hub_server import serve
from vitcli.families.pretrained import find, table
from vitcli.families.table import model_config, named, size_said

pytest.importorskip("torchvision_shim", reason="timm and transformers import torchvision").import_torchvision()

DEIT = "timm/deit_tiny_patch16_224.fb_in1k"


def saved(folder: Path, name: str, size: int = 32) -> Path:
    """timm's model of a name, at a small size, as timm lays a folder of the hub out."""
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(name.partition(".")[0], img_size=size, num_classes=10)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    said = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "input_size": [3, size, size],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    beside = {"architecture": name.partition(".")[0], "num_classes": 10, "pretrained_cfg": said}
    (folder / "config.json").write_text(json.dumps(beside), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import ViTConfig, ViTForImageClassification

    place = tmp_path_factory.mktemp("hub")
    vit = place / "vit"
    config = ViTConfig(
        hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768, image_size=32, num_labels=10
    )
    ViTForImageClassification(config).save_pretrained(vit)
    swin = place / "swin"
    swin.mkdir()
    (swin / "config.json").write_text('{"model_type": "swin"}', encoding="utf-8")
    (swin / "model.safetensors").write_bytes(b"\0" * 1000)
    deit = saved(place / "deit", "deit_tiny_patch16_224")
    return {DEIT: deit, "google/vit-base-patch16-224": vit, "someone/mine": swin, "facebook/dinov2-small": vit}


def test_weights_by_their_names(models: dict[str, Path], tmp_path: Path) -> None:
    with serve(models, gated=("facebook/dinov2-small",)) as hub:
        env = hub.env(tmp_path / "home")
        for name in ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", DEIT, "timm/deit_tiny_patch16_224"):
            done = run_vit(
                "finetune",
                name,
                "--data",
                "digits",
                "--img-size",
                "32",
                "--steps",
                "1",
                "--dry-run",
                env=env,
                cwd=tmp_path,
            )
            assert done.code == 0, done.err
            assert f"weights: {DEIT} at revision " in done.err and "licence apache-2.0" in done.err
        assert len(hub.asked(f"GET .*{DEIT}.*safetensors")) == 1  # downloaded once
        done = run_vit("info", "google/vit-base-patch16-224", "--json", env=env, cwd=tmp_path)
        assert done.code == 0, done.err
        assert json.loads(done.out)["params"] < 2 * 10**6
        listed = run_vit("models", "deit_tiny_patch16", "--json", env=env, cwd=tmp_path)
        assert [row["cached"] for row in json.loads(listed.out)["models"]] == [True]


def test_another_family_is_refused_before_anything_large_is_downloaded(models: dict[str, Path], tmp_path: Path) -> None:
    with serve(models) as hub:
        env = hub.env(tmp_path / "home")
        done = run_vit("info", "timm/swin_tiny_patch4_window7_224.ms_in1k", env=env, cwd=tmp_path)
        assert done.code == 4 and "swin" in done.err and not hub.requests
        done = run_vit("info", "someone/mine", env=env, cwd=tmp_path)
        assert done.code == 4 and "swin" in done.err
        assert not hub.asked("safetensors")


def test_gated_weights_say_how_to_log_in(models: dict[str, Path], tmp_path: Path) -> None:
    with serve(models, gated=("facebook/dinov2-small",)) as hub:
        done = run_vit(
            "eval", "facebook/dinov2-small", "--data", "digits", env=hub.env(tmp_path / "home", token=""), cwd=tmp_path
        )
    assert done.code == 4 and "hf auth login" in done.err


def test_offline_is_said_at_once(tmp_path: Path) -> None:
    done = run_vit(
        "finetune",
        "deit_tiny_patch16_224",
        "--data",
        "digits",
        env={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.code == 4 and "HF_HUB_OFFLINE" in done.err


def test_as_an_architecture(tmp_path: Path) -> None:
    for row in table():
        model = model_config(row.id, row.img_size, row.classes)
        assert model.cost().parameters == row.params, row.id
        assert model == named(row.spelled).__class__(**vars(model))
    assert size_said("vit_small_patch16_384") == (384, 384)
    assert size_said("ViT-S/16") is None and find("ViT-S/16") is None
    done = run_vit(
        "pretrain", "--model", "vit_small_patch8_64", "--data", "digits", "--dry-run", "--json", cwd=tmp_path
    )
    config = json.loads(done.out)["config"]["model"]
    assert (config["name"], config["img_size"]) == ("ViT-S/8", [64, 64])
