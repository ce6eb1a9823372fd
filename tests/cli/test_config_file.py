"""A run's run.toml repeats the run, from any folder, by the command that its model card prints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Result, draw_image, run_vit

QUICK = ("--batch-size", 16, "--steps", 4, "--device", "cpu", "--precision", "fp32", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, a pre-trained run and one fine-tuned from it, all named by relative paths; and elsewhere/."""
    place = tmp_path_factory.mktemp("place")
    for colour, name in enumerate(("red", "green", "blue")):
        (place / "data" / name).mkdir(parents=True)
        for index in range(24):
            draw_image(colour, index).save(place / "data" / name / f"{index:02}.png")
    done = run_vit("pretrain", "--data", "digits", "--model", "mu/4", *QUICK, "--out", "first", cwd=place)
    assert done.code == 0, done.err
    done = run_vit("finetune", "first", "--data", "data", *QUICK, "--out", "second", cwd=place)
    assert done.code == 0, done.err
    (place / "elsewhere").mkdir()
    return place


def printed_command(run: Path) -> list[str]:
    """What the model card says repeats the run, without `vit`."""
    (command,) = re.findall(r"`vit ((?:pretrain|finetune) --config run\.toml)`", (run / "README.md").read_text())
    return str(command).split()


def repeat(run: Path, cwd: Path, *more: object) -> Result:
    command = [str(run / "run.toml") if word == "run.toml" else word for word in printed_command(run)]
    return run_vit(*command, "--quiet", *more, cwd=cwd)


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_command_of_the_model_card_repeats_the_run_from_anywhere(place: Path, name: str) -> None:
    done = repeat(place / name, place / "elsewhere", "--out", f"again-{name}")
    assert done.code == 0, done.err
    theirs = load_file(place / name / "model.safetensors")
    ours = load_file(place / "elsewhere" / f"again-{name}" / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert (place / "elsewhere" / f"again-{name}" / "run.toml").read_text() == (place / name / "run.toml").read_text()


@pytest.mark.parametrize("name", ["first", "second"])
def test_in_the_run_s_own_folder_as_printed(place: Path, name: str) -> None:
    done = run_vit(*printed_command(place / name), "--dry-run", "--json", cwd=place / name)
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["first", "second"])
def test_into_the_same_folder_it_is_the_finished_run(place: Path, name: str) -> None:
    before = (place / name / "model.safetensors").stat().st_mtime_ns
    done = repeat(place / name, place / "elsewhere", "--out", place / name)
    assert done.code == 0 and "model.safetensors" in done.out, done
    assert (place / name / "model.safetensors").stat().st_mtime_ns == before


def test_what_the_file_says_gives_way_to_the_command_line(place: Path) -> None:
    other = repeat(place / "second", place / "elsewhere", "--dry-run", "--json", "--steps", 7, "--seed", 3)
    assert other.code == 0 and other.json["steps"] == 7 and other.json["config"]["run"]["seed"] == 3
    start = place / "again" / "model.safetensors"
    start.parent.mkdir()
    start.write_bytes((place / "first" / "model.safetensors").read_bytes())
    named = run_vit(
        "finetune", start, "--config", place / "second" / "run.toml", "--dry-run", "--json", cwd=place / "elsewhere"
    )
    assert named.code == 0 and named.json["config"]["run"]["init"] == str(start.resolve())


def test_paths_in_the_file_are_whole(place: Path) -> None:
    tree = tomllib.loads((place / "second" / "run.toml").read_text())
    assert tree["data"]["source"] == str((place / "data").resolve())
    assert tree["run"]["init"] == str((place / "first" / "model.safetensors").resolve())


def test_another_model_in_the_file_is_refused(place: Path, tmp_path: Path) -> None:
    text = (place / "second" / "run.toml").read_text().replace('name = "ViT-mu/4"', 'name = "ViT-Ti/4"')
    (tmp_path / "other.toml").write_text(text)
    done = run_vit("finetune", "--config", tmp_path / "other.toml", "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 2 and "trained model" in done.json["error"]["message"], done


def test_a_file_of_the_other_command_is_refused(place: Path) -> None:
    done = run_vit("pretrain", "--config", place / "second" / "run.toml", "--json", cwd=place / "elsewhere")
    assert done.code == 2 and "vit finetune" in done.json["error"]["message"]
