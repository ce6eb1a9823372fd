"""Rows 13 to 18: damaged, wrong and hostile weights, and numbers that are none."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vitcli
from conftest import Result
from processes import SLOW_STEPS, Started, assert_same_run, flip_bit, has_logged, pretrain, run, saved_steps
from vitcli import files, runs

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def reference(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps left alone, with the steps 10 and 12 in its state."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(pretrain(class_folders), folder)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def vit(in_process: Command) -> Command:
    return in_process


def refused(done: Result, *words: str) -> str:
    """The message of an error of the kind `checkpoint`, which has all of `words`."""
    assert done.code == 4, done
    error = done.json["error"]
    assert error["kind"] == "checkpoint" and error["hint"], error
    assert all(word in error["message"] for word in words), error["message"]
    assert "Traceback" not in done.err
    return str(error["message"])


# --- 13: a flipped bit -------------------------------------------------------------------------------------------


def interrupted(data: Path, folder: Path) -> list[int]:
    """A run that was killed with two steps saved, or three where an old one was about to be deleted."""
    process = Started(pretrain(data), folder, before=SLOW_STEPS)
    process.until(has_logged, folder / "run", 7)
    process.send(9)
    assert process.wait().code == -9
    steps = saved_steps(folder / "run")
    assert len(steps) in (2, 3)
    return steps


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "average.safetensors",
        "values.json",
        files.MANIFEST,
    ],
)
def test_row_13_a_flipped_bit_in_the_state_is_found_and_the_older_step_taken(
    class_folders: Path, reference: Path, tmp_path: Path, name: str
) -> None:
    *_, older, newer = interrupted(class_folders, tmp_path)
    file = tmp_path / "run" / "state" / f"step-{newer:09d}" / name
    flip_bit(file, file.stat().st_size // 2)
    done = run(pretrain(class_folders), tmp_path)
    assert done.code == 0, done.err
    assert done.json["resumed_from"] == older
    warning = next(w for w in done.json["warnings"] if f"went back to step {older}" in w)
    assert f"step-{newer:09d}" in warning and "sha256" in warning + "sha256" * (name == files.MANIFEST)
    assert "warning:" in done.err
    assert_same_run(reference, tmp_path / "run")


def test_row_13_where_no_step_is_whole_nothing_is_begun_anew_unasked(class_folders: Path, tmp_path: Path) -> None:
    steps = interrupted(class_folders, tmp_path)
    for step in steps:
        flip_bit(tmp_path / "run" / "state" / f"step-{step:09d}" / "model.safetensors", -1)
    for _ in range(2):  # and the second time it is no different
        done = run(pretrain(class_folders), tmp_path)
        refused(done, "no saved step", "sha256")
        assert "--resume never" in done.json["error"]["hint"]
    beside = run(pretrain(class_folders, "--resume", "never"), tmp_path)
    assert beside.code == 0 and (tmp_path / "run-2").is_dir()


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_row_13_a_flipped_bit_in_a_named_checkpoint_is_refused(
    reference: Path, tmp_path: Path, vit: Command, place: float
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(reference / "model.safetensors", path)
    assert vit("eval", path, "--json").code == 0
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    flip_bit(path, head + round(place * (path.stat().st_size - head - 1)))
    for command in ("eval", "finetune"):
        refused(vit(command, path, "--json"), "model.safetensors", "sha256")


def test_row_13_a_flipped_bit_in_a_named_step_is_refused(reference: Path, tmp_path: Path, vit: Command) -> None:
    step = shutil.copytree(max((reference / "state").glob("step-*")), tmp_path / "step")
    data = ("--data", vit_data(reference), "--json")
    labels = tmp_path / "labels.txt"
    labels.write_text("blue\ngreen\nred\n")
    whole = vit("eval", step / "model.safetensors", *data, "--labels", labels)
    assert whole.code == 0, whole.err
    flip_bit(step / "model.safetensors", -1)
    refused(vit("eval", step / "model.safetensors", *data, "--labels", labels), "sha256")


def vit_data(run_folder: Path) -> str:
    from vitcli.weights.describe import describe

    return str(describe(run_folder / "model.safetensors").provenance["data"]["id"])


def test_row_13_a_finished_run_whose_checkpoint_is_damaged_is_ended_again(
    class_folders: Path, reference: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    flip_bit(tmp_path / "run" / "model.safetensors", -1)
    done = run(pretrain(class_folders), tmp_path)
    assert done.code == 0 and done.json["resumed_from"] == 12, done.err
    assert_same_run(reference, tmp_path / "run")


# --- 14: what is no checkpoint -----------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 344391832\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404: Not Found</title></head></html>\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_row_14_what_was_downloaded_instead_is_said(tmp_path: Path, vit: Command, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    for content, what in ((POINTER, "git-LFS pointer"), (PAGE, "web page"), (b"", "empty file")):
        path.write_bytes(content)
        refused(vit("eval", path, "--json"), str(path), what)
        refused(vit("info", path, "--json"), str(path), what)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_row_14_a_file_that_was_cut_off_is_refused_at_any_length(
    reference: Path, tmp_path: Path, vit: Command, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    weights = load_file(reference / "model.safetensors")
    if suffix == ".safetensors":
        shutil.copy(reference / "model.safetensors", path)
    elif suffix == ".npz":
        np.savez(path, **{k: t.numpy() for k, t in weights.items()})
    else:
        torch.save(weights, path)
    content = path.read_bytes()
    for kept in (1, 7, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        message = refused(vit("eval", path, "--json"), str(path))
        if suffix == ".safetensors":
            assert "cut off" in message


# --- 15: hostile pickles -----------------------------------------------------------------------------------------


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["zip", "legacy", "inside"])
def test_row_15_a_malicious_pickle_is_refused_and_not_run(
    reference: Path, tmp_path: Path, vit: Command, form: str
) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "owned"
    if form == "inside":
        weights: dict[str, Any] = load_file(reference / "model.safetensors")
        torch.save(weights | {"head.bias": _Attack(target)}, path)
    else:
        torch.save({"model": _Attack(target)}, path, _use_new_zipfile_serialization=form == "zip")
    torch.load(path, weights_only=False)
    assert target.exists(), "the attack would have worked"
    target.unlink()
    for command in (("eval",), ("finetune",), ("info",)):
        message = refused(vit(*command, path, "--json"), str(path))
        assert "more than weights" in message or "table of weights" in message
        assert not target.exists()


def test_row_15_nothing_is_ever_loaded_with_a_pickle_that_may_run_code() -> None:
    for file in Path(vitcli.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|pickle\.loads?\(|joblib|dill", text), (
            file
        )
        for call in re.finditer(r"torch\.load\(([^\n]*)", text):
            assert "weights_only=True" in call[1], file


# --- 16: keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_row_16_prefixes_of_wrappers_are_stripped(reference: Path, tmp_path: Path, vit: Command, prefix: str) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("blue\ngreen\nred\n")
    measured = []
    for name, before in (("bare", ""), ("wrapped", prefix)):
        path = tmp_path / f"{name}.safetensors"
        save_file({f"{before}{k}": t for k, t in load_file(reference / "model.safetensors").items()}, path)
        done = vit("eval", path, "--data", vit_data(reference), "--labels", labels, "--json")
        assert done.code == 0, done.err
        measured.append(done.json["loss"])
    assert measured[0] == measured[1]


@pytest.mark.parametrize("own", [True, False])
def test_row_16_missing_and_unexpected_keys_are_refused_by_name(
    reference: Path, tmp_path: Path, vit: Command, own: bool
) -> None:
    from vitcli.weights.checkpoint import write_safetensors
    from vitcli.weights.describe import describe

    weights = load_file(reference / "model.safetensors")
    document = describe(reference / "model.safetensors").document() if own else None
    changes: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any]]] = [
        ("blocks.1.mlp.fc1.weight", lambda w: w.pop("blocks.1.mlp.fc1.weight")),
        ("blocks.1.mlp.gate.weight", lambda w: w.update({"blocks.1.mlp.gate.weight": torch.zeros(3)})),
        ("head.weight", lambda w: w.update({"head.weight": torch.zeros(3, 7)})),
    ]
    for key, change in changes:
        changed = dict(weights)
        change(changed)
        write_safetensors(tmp_path / "changed.safetensors", changed, document)
        refused(vit("eval", tmp_path / "changed.safetensors", "--data", "digits", "--json"), key)


# --- 17: loss and gradient that are no numbers -------------------------------------------------------------------


def test_row_17_a_loss_that_is_no_number_stops_with_step_and_samples(class_folders: Path, tmp_path: Path) -> None:
    command = pretrain(
        class_folders, "--set", "optim.name=sgd", "--set", "optim.lr=1e30", "--set", "optim.clip=0",
        "--set", "optim.warmup=0", "--set", "train.save_every_steps=1",
    )  # fmt: skip
    done = run(command, tmp_path)
    assert done.code == 5, done.err
    message = done.json["error"]["message"]
    assert "step" in message and ("samples" in message or "holds NaN or infinite" in message)
    assert runs.status(tmp_path / "run")["code"] == 5
    for step in (tmp_path / "run" / "state").glob("step-*"):
        for file in step.glob("*.safetensors"):
            assert all(torch.isfinite(t).all() for t in load_file(file).values()), file
    assert not (tmp_path / "run" / "model.safetensors").exists()


SPOILT_GRADIENT = """
import torch
from vitcli.train import optim
clip = optim.Optimizer.clip
calls = 0
def spoil(self, limit):
    global calls
    calls += 1
    if calls == 6:
        self.parameters[3].grad.view(-1)[2] = float('{value}')
    return clip(self, limit)
optim.Optimizer.clip = spoil
"""
"""One element of one gradient, as a bit that flips in the memory of a GPU leaves it."""


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_row_17_a_gradient_that_is_no_number_updates_nothing_and_the_last_good_step_goes_on(
    class_folders: Path, tmp_path: Path, value: str, optimizer: str
) -> None:
    settings = ("--set", f"optim.name={optimizer}", "--set", "train.save_every_steps=0", "--set", "optim.clip=1")
    assert run(pretrain(class_folders, *settings, out="alone"), tmp_path).code == 0
    done = run(pretrain(class_folders, *settings), tmp_path, before=SPOILT_GRADIENT.format(value=value))
    assert done.code == 5, done.err
    message = done.json["error"]["message"]
    assert re.search(r"the loss is \d[\d.]* and the gradient's norm (nan|inf) at step 6 \(samples \d+, \d+", message)
    assert "step 5 is kept" in message and "optim" in done.json["error"]["hint"]
    assert saved_steps(tmp_path / "run") == [5]
    again = run(pretrain(class_folders, *settings), tmp_path)
    assert again.code == 0 and again.json["resumed_from"] == 5
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_row_17_weights_that_become_infinite_are_never_saved(class_folders: Path, tmp_path: Path) -> None:
    """The last update of a run has no loss after it that would show."""
    spoilt = (
        "from vitcli.train import loop\nstep = loop.train_step\ncalls = 0\n"
        "def spoil(trainer, *rest):\n    global calls\n    calls += 1\n    done = step(trainer, *rest)\n"
        "    if calls == 12: trainer.model.head.bias.data[1] = float('inf')\n    return done\nloop.train_step = spoil"
    )
    done = run(pretrain(class_folders), tmp_path, before=spoilt)
    assert done.code == 5 and "head.bias" in done.json["error"]["message"], done.err
    assert saved_steps(tmp_path / "run") == [8, 10] and not (tmp_path / "run" / "model.safetensors").exists()


# --- 18: weights that are no numbers -----------------------------------------------------------------------------


@pytest.fixture
def spoilt(reference: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of vit's own, with its digest, in which one number is none."""
    from vitcli.weights.checkpoint import write_safetensors
    from vitcli.weights.describe import describe

    weights = load_file(reference / "model.safetensors")
    weights["blocks.1.attn.qkv.weight"][5, 7] = math.nan
    path = tmp_path / "spoilt.safetensors"
    write_safetensors(path, weights, describe(reference / "model.safetensors").document())
    yield path


def test_row_18_a_checkpoint_with_nan_is_refused_not_zeroed(
    spoilt: Path, tmp_path: Path, vit: Command, class_folders: Path
) -> None:
    for command in (
        ["eval"],
        ["finetune", "--steps", "1", "--out", "tuned"],
        ["predict", class_folders / "test" / "red"],
    ):
        done = vit(command[0], spoilt, *command[1:], "--json")
        refused(done, "blocks.1.attn.qkv.weight", "NaN")
    assert not (tmp_path / "tuned").exists()


def test_row_18_a_state_with_nan_is_not_gone_on_with(class_folders: Path, tmp_path: Path) -> None:
    """Written by something that did not look, manifest and all."""
    *_, newer = interrupted(class_folders, tmp_path)
    step = tmp_path / "run" / "state" / f"step-{newer:09d}"
    groups = {f.stem: load_file(f) for f in step.glob("*.safetensors")}
    values = (step / "values.json").read_text()
    next(t for t in groups["optimizer"].values() if t.ndim)[0] = math.inf
    shutil.rmtree(step)

    def fill(folder: Path) -> None:
        for name, tensors in groups.items():
            save_file(tensors, folder / f"{name}.safetensors")
        (folder / "values.json").write_text(values)

    files.write_folder(step, fill)
    refused(run(pretrain(class_folders), tmp_path), "holds NaN or infinite", "optimizer")
