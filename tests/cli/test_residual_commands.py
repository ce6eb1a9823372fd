"""BiT networks and hybrids through the commands: every one that takes a model takes them, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Vit, draw_image, run_vit

NAMES = {"bit": "R1-2x0.25", "hybrid": "R1-1+ViT-w64d1h1/8"}
SHORT = ["--data", "digits", "--img-size", "16", "--batch-size", "32", "--set", "run.threads=1"]


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    result = run_vit("pretrain", "--model", NAMES[request.param], *SHORT, "--steps", "200", "--out", "run", cwd=folder)
    assert result.code == 0, result.err
    return request.param, folder


def test_they_learn_and_are_measured(trained, vit: Vit):
    family, folder = trained
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["eval"]["top1"] > 0.4
    result = vit("eval", "run", "--json", cwd=folder)
    assert result.json["top1"] == pytest.approx(report["eval"]["top1"], abs=1e-9)
    draw_image(0, 0, size=20).save(folder / "image.png")
    result = vit("predict", "run", "image.png", "--json", cwd=folder)
    assert result.code == 0, result.err
    result = vit("probe", "run", "--json", cwd=folder)
    assert result.json["results"][0]["top1"] > 0.6
    info = vit("info", "run", "--json", cwd=folder).json
    assert info["model"] == NAMES[family] and info["layout"] == "vit"
    card = (folder / "run" / "README.md").read_text()
    assert {"bit": "BiT residual network", "hybrid": "hybrid of a ResNet"}[family] in card


def test_they_are_fine_tuned_at_another_size(trained, vit: Vit):
    _, folder = trained
    result = vit(
        "finetune",
        "run",
        "--data",
        "digits",
        "--img-size",
        "24",
        "--steps",
        "3",
        "--out",
        "larger",
        "--json",
        cwd=folder,
    )
    assert result.code == 0, result.err
    assert vit("info", "larger", "--json", cwd=folder).json["img_size"] == [24, 24]


def test_what_looks_inside(trained, vit: Vit):
    family, folder = trained
    result = vit("filters", "run", "--json", "--plot", "filters.png", cwd=folder)
    assert result.code == 0 and result.json["patch_size"] == {"bit": [3, 3], "hybrid": [7, 7]}[family]
    assert (folder / "filters.png").stat().st_size > 1000
    for command in (["attn-distance", "run", "--json"], ["posemb-similarity", "run", "--json"],
                    ["resize-posemb", "run", "resized.safetensors", "--img-size", "32", "--json"]):  # fmt: skip
        result = vit(*command, cwd=folder)
        if family == "hybrid":
            assert result.code == 0, result.err
        else:
            assert result.code == 4
            assert "neither attention nor patches" in result.json["error"]["message"]


def test_objectives_that_need_patches_of_the_image_are_refused(trained, vit: Vit):
    family, folder = trained
    for objective in ("mae", "masked-patch"):
        result = vit("pretrain", "--model", NAMES[family], *SHORT, "--steps", "3", "--objective", objective, cwd=folder)
        assert result.code == 2 and "patches" in result.err
    result = vit(
        "pretrain",
        "--model",
        NAMES[family],
        *SHORT,
        "--steps",
        "2",
        "--objective",
        "visreg",
        "--out",
        "seen",
        cwd=folder,
    )
    assert result.code == 0, result.err


def test_bench_and_dry_run(trained, vit: Vit):
    family, folder = trained
    result = vit("bench", NAMES[family], "--img-size", "16", "--set", "bench.seconds=0.2", "--json", cwd=folder)
    assert [row["model"] for row in result.json["results"]] == [NAMES[family]] * 2
    result = vit("pretrain", "--model", NAMES[family], *SHORT, "--steps", "3", "--dry-run", "--json", cwd=folder)
    info = vit("info", NAMES[family], "--img-size", "16", "--classes", "10", "--json").json
    assert result.json["params"] == vit("info", "run", "--json", cwd=folder).json["params"]
    assert info["params"] > 0 and result.json["train_flops"] > 0


@pytest.mark.parametrize("family", NAMES)
def test_killed_and_run_again_is_bit_equal(family, tmp_path, vit: Vit):
    command = ["pretrain", "--model", NAMES[family], *SHORT, "--steps", "16", "--set", "train.save_every_steps=2"]
    assert vit(*command, "--out", "whole", cwd=tmp_path).code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcli", *command, "--out", "killed"], cwd=tmp_path, env=dict(os.environ),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    state = tmp_path / "killed" / "state"
    for _ in range(3000):
        if any(int(path.name.rpartition("-")[2] or 0) >= 4 for path in state.glob("step-*") if path.name[-1].isdigit()):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "report.json").exists(), "it was not interrupted"
    again = vit(*command, "--out", "killed", "--json", cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.json["resumed_from"]
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("family", NAMES)
def test_a_batch_in_parts_is_the_batch(family, tmp_path, vit: Vit):
    command = [
        "pretrain",
        "--model",
        NAMES[family],
        *SHORT,
        "--batch-size",
        "64",
        "--steps",
        "1",
        "--precision",
        "fp32",
    ]
    for name, parts in (("whole", 1), ("parts", 4)):
        result = vit(
            *command, "--set", f"train.accumulate={parts}", "--set", "optim.name=sgd", "--out", name, cwd=tmp_path
        )
        assert result.code == 0, result.err
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-5, atol=1e-5, msg=key)
