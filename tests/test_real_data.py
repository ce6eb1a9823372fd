"""Real photographs and real trained weights, end to end, against timm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import torchvision_shim  # noqa: F401
from conftest import run_vit
from vitcli.classes import imagenet_1k


@pytest.fixture(scope="module")
def timm_predictions(shared_data: Path, deit_weights: Path) -> dict[str, int]:
    """The class that timm predicts for each photograph, by path, with its own preprocessing of the model."""
    import timm
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    model.load_state_dict(load_file(deit_weights))
    transform = create_transform(**resolve_data_config({}, model=model))
    found = {}
    with torch.inference_mode():
        for path in sorted((shared_data / "photos").rglob("*.jpg")):
            image = transform(Image.open(path).convert("RGB"))
            found[str(path.resolve())] = int(model(image[None]).argmax())
    return found


def test_deit_on_photographs_is_timms_result(
    shared_data: Path, deit_weights: Path, timm_predictions: dict[str, int], tmp_path: Path
) -> None:
    done = run_vit("eval", deit_weights, "--labels", "imagenet-1k", "--data", shared_data / "photos", "--json", "--precision", "fp32",
                   "--predictions", "p.jsonl", cwd=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    tree = done.json
    synsets = [c.id for c in imagenet_1k()]
    right = sum(synsets[i] == Path(path).parent.name for path, i in timm_predictions.items())
    assert tree["n"] == len(timm_predictions) and len(tree["classes"]) == 1000
    assert abs(tree["top1"] * tree["n"] - right) <= 1
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    same = sum(row["prediction_index"] == timm_predictions[row["path"]] for row in rows)
    assert same >= len(rows) - 1
    assert all(row["target_id"] == Path(row["path"]).parent.name for row in rows)
    fast = run_vit(
        "eval", deit_weights, "--labels", "imagenet-1k", "--data", shared_data / "photos", "--json", cwd=tmp_path
    ).json
    assert abs(fast["top1"] - tree["top1"]) * tree["n"] <= 1.5


def test_a_checkpoint_without_class_names_asks_for_them(shared_data: Path, deit_weights: Path, tmp_path: Path) -> None:
    done = run_vit("eval", deit_weights, "--data", shared_data / "photos", cwd=tmp_path)
    assert done.code == 4 and "--labels imagenet-1k" in done.err


@pytest.mark.parametrize("size", ["224", "384", "96x128"])
def test_deit_is_fine_tuned_on_pets_at_any_size(
    shared_data: Path, deit_weights: Path, tmp_path: Path, size: str
) -> None:
    tuned = run_vit("finetune", deit_weights, "--data", shared_data / "pets", "--img-size", size, "--steps", "2", "--batch-size", "4",
                    "--set", "data.fraction=0.05", "--out", "run", cwd=tmp_path)  # fmt: skip
    assert tuned.code == 0, tuned.err
    done = run_vit("eval", "run", "--data", shared_data / "pets", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["n"] == 148 and len(done.json["classes"]) == 37


def test_a_linear_probe_on_real_features_learns(shared_data: Path, deit_weights: Path, tmp_path: Path) -> None:
    """Frozen DeiT features and a new head: far above the 1/37 of chance after an epoch."""
    tuned = run_vit("finetune", deit_weights, "--data", shared_data / "pets", "--freeze", "backbone", "--epochs", "1",
                    "--set", "optim.lr=0.01", "--json", cwd=tmp_path)  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert tuned.json["eval"]["top1"] > 0.5


def test_cifar10_parquet_is_read_as_the_hub_has_it(shared_data: Path) -> None:
    from vitcli.config import DataConfig
    from vitcli.data.decode import open_rgb
    from vitcli.data.sources import open_source

    source = open_source(DataConfig(source=str(shared_data / "cifar10")))
    assert (len(source.train()), len(source.held_out()), source.held_out_split) == (50_000, 10_000, "test")
    assert [c.name for c in source.classes][:3] == ["airplane", "automobile", "bird"]
    test = source.held_out()
    assert test.labels is not None and np.bincount(test.labels).tolist() == [1000] * 10
    pixels = np.stack([np.asarray(open_rgb(blob or b"", 89)[0]) for blob, _ in test.blobs(np.arange(500))])
    assert pixels.shape == (500, 32, 32, 3)
    assert abs(pixels.mean() / 255 - 0.4734) < 0.02


@pytest.mark.slow
def test_a_sweep_finds_the_rate_that_is_best_on_the_test_images(shared_data: Path, tmp_path: Path) -> None:
    """The dev part alone picks, of rates a factor of eight apart, the one that a run for each finds on the test part."""
    from datasets import load_dataset

    (tmp_path / "some").mkdir()
    for split, images in (("train", 2_000), ("test", 2_000)):
        rows = load_dataset("parquet", data_files=str(shared_data / f"cifar10/{split}.parquet"), split="train")
        rows.shuffle(seed=0).select(range(images)).to_parquet(tmp_path / "some" / f"{split}.parquet")
    common = ["--data", tmp_path / "some", "--epochs", "4", "--json"]
    rates = [0.0003, 0.0025, 0.02, 0.16]
    top1 = {}
    for rate in rates:
        run = run_vit("pretrain", *common, "--set", f"optim.muon_lr={rate}", "--out", f"run-{rate}", cwd=tmp_path)
        top1[rate] = run.json["eval"]["top1"]
    grid = ",".join(map(str, rates))
    swept = run_vit("sweep", "pretrain", *common, "--grid", f"optim.muon_lr={grid}", "--seeds", "1", cwd=tmp_path)
    assert swept.code == 0, swept.err
    assert swept.json["best"]["optim.muon_lr"] == max(rates, key=top1.__getitem__), (top1, swept.json)
