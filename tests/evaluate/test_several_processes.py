"""Evaluation and prediction by several processes: the same numbers as by one, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import run_vit
from processes import Processes


def timeless(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in ("seconds", "images_per_second")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = run_vit("pretrain", "--data", "digits", "--model", "mu/4", "--steps", "30", "--out", "run", cwd=folder)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.parametrize(("count", "images"), [(2, 5), (3, 41), (2, 64), (3, 1)])
def test_evaluation_is_the_same_for_any_number_of_processes(
    trained: Path, tmp_path: Path, count: int, images: int
) -> None:
    rng = np.random.default_rng(images)
    for index in range(images):
        place = tmp_path / "data" / str(index % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(place / f"{index}.png")
    options = ["eval", str(trained), "--data", "data", "--batch-size", "8", "--json", "--split", "all"]
    alone = run_vit(*options, "--predictions", "alone.csv", cwd=tmp_path)
    assert alone.code == 0, alone.err
    first, *others = Processes([*options, "--predictions", "shared.csv"], count, tmp_path).wait()
    assert first.code == 0, first.err
    assert [(p.code, p.out, p.err) for p in others] == [(0, "", "")] * (count - 1)
    assert timeless(json.loads(first.out)) == timeless(alone.json)
    assert json.loads(first.out)["n"] == images
    assert (tmp_path / "shared.csv").read_text() == (tmp_path / "alone.csv").read_text()


def test_several_sizes_and_a_temperature(trained: Path, tmp_path: Path) -> None:
    sizes = ["eval", str(trained), "--img-size", "8,12", "--batch-size", "50", "--json"]
    alone = run_vit(*sizes, cwd=tmp_path)
    first, second = Processes(sizes, 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    rows = [timeless(row) for row in json.loads(first.out)["results"]]
    assert rows == [timeless(row) for row in alone.json["results"]]
    first, second = Processes(["eval", str(trained), "--calibrate", "c.safetensors", "--json"], 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert json.loads(first.out)["calibration"]["fitted_on"] and (tmp_path / "c.safetensors").exists()


def test_an_image_that_one_process_cannot_read_ends_all_with_its_name(trained: Path, tmp_path: Path) -> None:
    for index in range(20):
        place = tmp_path / "data" / str(index % 10) / f"{index:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(place)
    (tmp_path / "data" / "9" / "19.png").write_bytes(b"no image")  # in the last batch, which the second process has
    options = ["eval", str(trained), "--data", "data", "--batch-size", "10", "--split", "all", "--json"]
    first, second = Processes(options, 2, tmp_path).wait()
    assert (first.code, second.code) == (3, 3)
    assert "19.png" in first.err


def test_prediction_is_the_same_for_any_number_of_processes(trained: Path, tmp_path: Path) -> None:
    for index in range(23):
        Image.fromarray(np.full((8, 8), 10 * index, np.uint8)).save(tmp_path / f"{index:02d}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    options = ["predict", str(trained), *sorted(p.name for p in tmp_path.glob("*.png")), "--batch-size", "4"]
    alone = run_vit(*options, "--json", cwd=tmp_path)
    for count in (2, 3):
        first, *others = Processes([*options, "--json"], count, tmp_path).wait()
        assert (first.code, first.out) == (3, alone.out), first.err
        assert [(p.code, p.out) for p in others] == [(0, "")] * (count - 1)
    written = run_vit(*options, "--out", "alone.csv", cwd=tmp_path)
    first, second = Processes([*options, "--out", "shared.csv"], 2, tmp_path).wait()
    assert (written.code, first.code, second.code) == (3, 3, 0), first.err
    assert (tmp_path / "shared.csv").read_text() == (tmp_path / "alone.csv").read_text()


def test_a_launcher_of_a_dry_run_shows_one_plan(trained: Path, tmp_path: Path) -> None:
    first, second = Processes(["eval", str(trained), "--dry-run", "--json"], 2, tmp_path).wait()
    assert json.loads(first.out)["n"] and (second.code, second.out, second.err) == (0, "", "")
