"""Runs on images of one and of six channels, from their first step to what other tools read of them."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Vit
from processes import SLOW_STEPS, Started, saved_steps
from vitcli.classes import Class
from vitcli.config import AugmentConfig, Config, EvalConfig, ModelConfig, TrainConfig, model_config
from vitcli.data.augment import Augmenter
from vitcli.errors import UsageError
from vitcli.model.classifier import build
from vitcli.train.channels import suited_to_channels
from vitcli.train.objectives.distill import Distill
from vitcli.weights.checkpoint import load, save
from vitcli.weights.describe import Description, describe

SMALL = ("--model", "ViT-w32d2h2/4", "--img-size", 16, "--batch-size", 16, "--device", "cpu", "--precision", "fp32")
COLOURS = AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1), randaugment_layers=2, solarize=0.1, blur=0.5, erase=0.25)


def write_gray(path: Path, level: int, draw: np.random.Generator) -> None:
    Image.fromarray(np.clip(draw.normal(level, 25, (16, 16)), 0, 255).astype(np.uint8)).save(path.with_suffix(".png"))


def write_six(path: Path, level: int, draw: np.random.Generator) -> None:
    """What tells the classes apart is in the last channel alone."""
    pixels = draw.normal(128, 25, (16, 20, 6))
    pixels[..., 5] += level - 128
    np.save(path.with_suffix(".npy"), np.clip(pixels, 0, 255).astype(np.uint8))


def write_folder(folder: Path, write: Callable[[Path, int, np.random.Generator], None]) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name, level in (("dark", 60), ("light", 200)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                write(folder / split / name / str(index), level, draw)
    return folder


@pytest.mark.parametrize(("channels", "write"), [(1, write_gray), (6, write_six)])
def test_a_run_from_its_first_step_to_its_export(
    tmp_path: Path, vit: Vit, channels: int, write: Callable[[Path, int, np.random.Generator], None]
) -> None:
    data = write_folder(tmp_path / "data", write)
    asked = ("pretrain", "--data", data, *SMALL, "--set", f"model.channels={channels}", "--set", "augment.mixup=0.1")
    asked = (*asked, "--set", "augment.erase=0.2", "--set", "optim.lr=0.003")
    whole = vit(*asked, "--steps", 30, "--out", "run")
    assert whole.code == 0, whole.err
    found = describe(tmp_path / "run" / "model.safetensors")
    assert found.model.channels == channels and found.eval.mean == found.eval.std == (0.5,) * channels
    assert json.loads((tmp_path / "run" / "report.json").read_text())["eval"]["top1"] == 1.0
    # a run that was killed goes on to the same weights
    again = (*asked, "--steps", 30, "--out", "again", "--set", "train.save_every_steps=5")
    started = Started((*again, "--set", "train.log_every_steps=1"), tmp_path, before=SLOW_STEPS)
    started.until(saved_steps, tmp_path / "again")
    started.send(signal.SIGKILL)
    started.wait()
    gone_on = vit(*again, "--set", "train.log_every_steps=1")
    assert gone_on.code == 0, gone_on.err
    assert json.loads((tmp_path / "again" / "report.json").read_text())["resumed_from"] >= 5
    first, second = (load(str(tmp_path / name))[1] for name in ("run", "again"))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    # measured, asked, looked into, and exported
    assert vit("eval", "run", "--data", data, "--json").json["top1"] == 1.0
    image = next((data / "test" / "light").iterdir())
    named = vit("predict", "run", image, "--json").json
    assert named["topk"][0]["label"] == "light"
    assert vit("attn-rollout", "run", image, "--out", "looked").code == 0
    with Image.open(tmp_path / "looked" / f"{image.stem}-rollout.png") as overlay:
        assert overlay.mode == "RGB"
    assert vit("filters", "run", "--plot", "filters.png").code == 0
    assert f"{channels} channel" in vit("info", "run").out
    pytest.importorskip("onnxruntime")
    assert vit("export", "run", "model.onnx", "--format", "onnx").code == 0


def test_a_checkpoint_of_three_channels_is_tuned_for_one_where_a_rule_is_named(tmp_path: Path, vit: Vit) -> None:
    data = write_folder(tmp_path / "data", write_gray)
    assert vit("pretrain", "--data", data, *SMALL, "--steps", 20, "--out", "run").code == 0
    wanted = ("--set", "model.channels=1")
    refused = vit("finetune", "run", "--data", data, "--steps", 4, *wanted)
    assert refused.code == 2 and "model.channels_from=mean or repeat" in refused.err
    rule = (*wanted, "--set", "model.channels_from=mean")
    exact = ("eval", "run", "--data", data, "--json", "--device", "cpu", "--precision", "fp32")
    gray, coloured = (vit(*exact, *asked).json for asked in (rule, ()))
    assert gray["loss"] == pytest.approx(coloured["loss"], abs=1e-5), "equal channels have the same product"
    assert vit("finetune", "run", "--data", data, "--steps", 4, "--device", "cpu", *rule, "--out", "gray").code == 0
    found = describe(tmp_path / "gray" / "model.safetensors")
    assert found.model.channels == 1 and len(found.eval.mean) == 1
    assert vit("finetune", "--config", "gray/run.toml", "--dry-run").code == 0


@pytest.mark.parametrize("objective", ["mae", "masked-patch"])
def test_images_of_two_channels_are_learned_from_without_labels(tmp_path: Path, vit: Vit, objective: str) -> None:
    data = write_folder(tmp_path / "data", write_gray)
    asked = ("pretrain", "--data", data, *SMALL, "--steps", 3, "--objective", objective, "--set", "model.channels=2")
    if objective == "masked-patch":
        refused = vit(*asked)
        assert refused.code == 2 and "masked-patch.target=pixels" in refused.err
        asked = (*asked, "--set", "masked-patch.target=pixels")
    done = vit(*asked, "--out", "run")
    assert done.code == 0, done.err
    assert load(str(tmp_path / "run"))[1]["patch_embed.proj.weight"].shape == (32, 2, 4, 4)


# --- what is chosen for them -------------------------------------------------------------------------------


def config(channels: int, augment: AugmentConfig = COLOURS, **changed: object) -> Config:
    return Config(model=ModelConfig(channels=channels, **changed), augment=augment)  # type: ignore[arg-type]


def test_the_recipe_s_augmentation_of_colours_is_left_out_and_said() -> None:
    found, said = suited_to_channels(config(4), {}, None)
    assert found.augment == AugmentConfig(blur=0.5, erase=0.25)
    assert found.eval.mean == found.eval.std == (0.5,) * 4
    assert "augment.jitter, augment.solarize, augment.randaugment_layers" in said[0]
    assert suited_to_channels(config(3), {}, None) == (config(3), [])


@pytest.mark.parametrize("name", ["jitter", "solarize", "randaugment_layers"])
def test_augmentation_of_colours_that_is_asked_for_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"augment\.{name} works on red, green and blue"):
        suited_to_channels(config(1), {f"augment.{name}": getattr(COLOURS, name)}, None)


def test_a_teacher_takes_the_channels_that_its_student_takes(tmp_path: Path) -> None:
    model = dataclasses.replace(model_config("ViT-w32d2h2/8", (16, 16), 2), channels=1)
    seen, path = EvalConfig(mean=(0.5,), std=(0.5,)), tmp_path / "teacher.safetensors"
    save(Description(path=path, model=model, classes=(Class("a"), Class("b")), eval=seen), build(model).state_dict())
    taught = dataclasses.replace(config(4), train=TrainConfig(teacher=str(path)))
    with pytest.raises(UsageError, match=r"takes model\.channels = 1, not 4"):
        Distill.check(taught)
    Distill.check(dataclasses.replace(taught, model=ModelConfig(channels=1)))


def test_statistics_are_those_asked_for_else_the_checkpoint_s() -> None:
    before = EvalConfig(mean=(0.1, 0.2), std=(0.3, 0.4))
    assert suited_to_channels(config(2), {}, before)[0].eval.mean == (0.1, 0.2)
    asked = dataclasses.replace(config(2), eval=EvalConfig(mean=(0.7, 0.8)))
    found = suited_to_channels(asked, {"eval.mean": (0.7, 0.8)}, before)[0].eval
    assert found.mean == (0.7, 0.8) and found.std == (0.3, 0.4)


def test_a_rule_without_trained_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="converts trained weights"):
        suited_to_channels(config(1, channels_from="mean"), {}, None)


@pytest.mark.parametrize("side", [16, 160])
def test_channels_are_cropped_blurred_and_erased_alike(side: int) -> None:
    """Two equal channels of six stay equal but for the noise of an erased box; both ways of cropping are taken."""
    augment = AugmentConfig(blur=1.0, crop="resized")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 6, 40, 40), np.uint8))
    pixels[:, 5] = pixels[:, 0]
    sizes, numbers = torch.full((4, 2), 40), torch.arange(4)
    for erase in (0.0, 1.0):
        seen = EvalConfig(mean=(0.5,) * 6, std=(0.5,) * 6)
        augmenter = Augmenter(dataclasses.replace(augment, erase=erase), seen, (side, side), seed=0)
        images = augmenter(pixels, sizes, numbers, numbers)
        assert images.shape == (4, 6, side, side)
        same = (images[:, 0] == images[:, 5]).flatten(1).all(1)
        assert same.all() if erase == 0 else not same.any()
