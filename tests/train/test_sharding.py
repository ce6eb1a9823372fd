"""Weights in parts, one a process: the curve and the weights of one process, saved steps that any number of processes goes on with."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_following import assert_same, command, curve

from conftest import run_vit
from processes import Processes

SHARDED = {"scale__shard": True}


@pytest.mark.parametrize(
    "more",
    [
        {"train__monitor": 2},
        {"train__accumulate": 4, "run__checkpointing": True, "optim__clip": 0.5},
        {"train__objective": "mae", "augment__mixup": 0.0, "augment__cutmix": 0.0},
    ],
)
def test_parts_are_the_whole(class_folders: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    done = run_vit(*command(class_folders, "one", **more), cwd=tmp_path)
    assert done.code == 0, done.err
    first, second = Processes(command(class_folders, "two", **more, **SHARDED), 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-4)
    told = json.loads(first.out)
    if told["eval"] is not None:
        assert told["eval"]["n"] == done.json["eval"]["n"] and told["eval"]["top1"] == done.json["eval"]["top1"]


def test_a_new_head_and_adamw_in_parts(class_folders: Path, tmp_path: Path) -> None:
    assert run_vit(*command(class_folders, "parent", 4), cwd=tmp_path).code == 0
    for count, out in ((1, "one"), (3, "three")):
        arguments = command("digits", out, 6, optim__name="adamw", optim__lr=1e-4, train__keep="finetuned", **SHARDED)
        arguments[:1] = ["finetune", "parent"]
        place = arguments.index("--model")
        del arguments[place : place + 2]
        done = Processes(arguments, count, tmp_path).wait()
        assert [p.code for p in done] == [0] * count, done[0].err
    assert curve(tmp_path / "three") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-5)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "three"))
    for name in a:  # the gradient of a key's bias is rounding, of which Adam makes steps
        torch.testing.assert_close(a[name], b[name], atol=1e-3 if "qkv.bias" in name else 1e-4, rtol=0)


@pytest.mark.parametrize(
    ("count", "shard"),
    [(3, True), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((1, True), (2, True), (2, False)))],
)
def test_saved_in_parts_goes_on_in_any_number_of_them_or_whole(
    class_folders: Path, tmp_path: Path, count: int, shard: bool
) -> None:
    adamw = {"optim__name": "adamw", "optim__lr": 1e-4}
    whole = run_vit(*command(class_folders, "whole", 30, **adamw), cwd=tmp_path)
    assert whole.code == 0, whole.err
    out = f"on-{count}-{shard}"
    started = Processes(command(class_folders, out, 30, **adamw, **SHARDED), 2, tmp_path)
    started.until_step(tmp_path / out, 4)
    started.all[1].send(signal.SIGTERM)
    first, second = started.wait()
    assert (first.code, second.code) == (75, 75), first.err + second.err
    status = json.loads((tmp_path / out / "state" / "status.json").read_text())
    names = {path.name for path in (tmp_path / out / "state" / f"step-{status['step']:09d}").iterdir()}
    assert {".metadata", "__0_0.distcp", "__1_0.distcp", "values.json"} <= names
    goes_on = command(class_folders, out, 30, **adamw, scale__shard=shard)
    done = Processes(goes_on, count, tmp_path).wait()
    assert [p.code for p in done] == [0] * count, done[0].err
    assert json.loads(done[0].out)["resumed_from"] == status["step"]
    assert curve(tmp_path / out) == pytest.approx(curve(tmp_path / "whole"), rel=1e-5, abs=1e-5)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", out))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-3 if "qkv.bias" in name else 1e-4, rtol=0)


def test_saved_whole_goes_on_in_parts(class_folders: Path, tmp_path: Path) -> None:
    assert run_vit(*command(class_folders, "whole", 30), cwd=tmp_path).code == 0
    started = Processes(command(class_folders, "run", 30), 1, tmp_path)
    started.until_step(tmp_path / "run", 4)
    started.all[0].send(signal.SIGTERM)
    assert started.wait()[0].code == 75
    done = Processes(command(class_folders, "run", 30, **SHARDED), 2, tmp_path).wait()
    assert [p.code for p in done] == [0, 0], done[0].err
    assert_same(tmp_path / "whole", tmp_path / "run", tolerance=1e-4)


def test_a_step_whose_parts_are_damaged_is_set_aside(class_folders: Path, tmp_path: Path) -> None:
    arguments = command(class_folders, "run", 100, **SHARDED, train__save_every_steps=2)
    started = Processes(arguments, 2, tmp_path)
    started.until_step(tmp_path / "run", 8)
    started.all[0].send(signal.SIGTERM)
    assert [p.code for p in started.wait()] == [75, 75]
    steps = sorted((tmp_path / "run" / "state").glob("step-*"))
    part = steps[-1] / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-100] + b"\0" * 100)
    first, second = Processes(arguments, 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err
    assert f"went back to step {int(steps[-2].name[5:])}" in first.err
    assert json.loads(first.out)["resumed_from"] == int(steps[-2].name[5:])


@pytest.mark.parametrize(
    ("more", "said"), [({"optim__name": "muon"}, "optim.name=adamw"), ({"optim__name": "lamb"}, "optim.name=adamw")]
)
def test_what_cannot_be_in_parts_is_refused_before_anything_is_written(
    class_folders: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    done = Processes(command(class_folders, "run", 4, **SHARDED, **more), 2, tmp_path).wait()
    assert [p.code for p in done] == [2, 2] and said in done[0].err
    assert not (tmp_path / "run").exists()


def test_row_28_one_that_is_killed_ends_the_others_that_have_parts(class_folders: Path, tmp_path: Path) -> None:
    started = Processes(command(class_folders, "run", 4000, **SHARDED, train__save_every_steps=20), 2, tmp_path)
    started.until_step(tmp_path / "run", 30)
    started.all[1].send(signal.SIGKILL)
    first, _ = started.wait()
    assert first.code == 6 and "Traceback" not in first.err, first.err
