"""Several processes against one: the same batches, the same curve, the same weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import run_vit
from processes import Processes
from vitcli.train.memory import micro_batches
from vitcli.world import World

SETTINGS = {
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.lr": 0.05,
    "augment.mixup": 0.4,
    "augment.cutmix": 1.0,
    "augment.erase": 0.25,
    "model.drop_path": 0.2,
    "train.ema": 0.9,
    "train.log_every_steps": 1,
    "train.eval_every_seconds": 0,
}


def command(data: Path | str, out: str, steps: int = 20, **more: Any) -> list[str]:
    values = SETTINGS | {key.replace("__", "."): value for key, value in more.items()}
    batch_size = str(values.pop("train.batch_size", 24))
    options = [
        "pretrain",
        "--data",
        str(data),
        "--model",
        "mu/4",
        "--batch-size",
        batch_size,
        "--steps",
        str(steps),
        "--out",
        out,
    ]
    options += ["--device", "cpu", "--precision", "fp32", "--json"]
    return options + [item for key, value in values.items() for item in ("--set", f"{key}={value}")]


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_same(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    assert curve(other) == pytest.approx(curve(one), rel=1e-5, abs=1e-5)
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < tolerance


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"train__accumulate": 4, "augment__repeats": 2},
        {"train__objective": "mae"},
        {"train__batch_size": 2},  # a share and its partners are as many images as the batch
        {"train__objective": "masked-patch", "train__low_res": 0.5},
    ],
)
def test_two_processes_are_one(class_folders: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    if "train__objective" in more:
        more = more | {"augment__mixup": 0.0, "augment__cutmix": 0.0}
    done = run_vit(*command(class_folders, "one", **more), cwd=tmp_path)
    assert done.code == 0, done.err
    first, second = Processes(command(class_folders, "two", **more), 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (second.out, second.err) == ("", ""), "the first one speaks for both"
    assert_same(tmp_path / "one", tmp_path / "two")
    told = json.loads(first.out)
    assert told["images_seen"] == done.json["images_seen"]
    if told["eval"] is not None:
        assert told["eval"]["n"] == done.json["eval"]["n"]
    again = Processes(command(class_folders, "two", **more), 2, tmp_path).wait()
    assert [p.code for p in again] == [0, 0] and json.loads(again[0].out) == told, "a finished run is found by both"


def test_a_new_head_and_adamw(class_folders: Path, tmp_path: Path) -> None:
    """Fine-tuning begins with a linear probe, which the first process fits."""
    assert run_vit(*command(class_folders, "parent", 4), cwd=tmp_path).code == 0
    for count, out in ((1, "one"), (2, "two")):
        arguments = command("digits", out, 6, optim__name="adamw", optim__lr=1e-4, train__keep="finetuned")
        arguments[:1] = ["finetune", "parent"]
        place = arguments.index("--model")
        del arguments[place : place + 2]
        done = Processes(arguments, count, tmp_path).wait()
        assert [p.code for p in done] == [0] * count, done[0].err
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5, abs=1e-5)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    for name in a:  # the gradient of a key's bias is rounding, of which Adam makes steps
        torch.testing.assert_close(a[name], b[name], atol=1e-3 if "qkv.bias" in name else 1e-4, rtol=0)


def test_row_09_one_signal_stops_all_and_row_06_other_numbers_go_on(class_folders: Path, tmp_path: Path) -> None:
    whole = run_vit(*command(class_folders, "whole", 40), cwd=tmp_path)
    assert whole.code == 0, whole.err
    for count in (1, 3):
        out = f"on-{count}"
        started = Processes(command(class_folders, out, 40), 2, tmp_path)
        started.until_step(tmp_path / out, 3)
        started.all[1].send(signal.SIGTERM)
        first, second = started.wait()
        assert (first.code, second.code) == (75, 75), first.err + second.err
        status = json.loads((tmp_path / out / "state" / "status.json").read_text())
        assert (status["status"], status["code"]) == ("saved", 75) and 3 <= status["step"] < 40
        done = Processes(command(class_folders, out, 40), count, tmp_path).wait()
        assert [p.code for p in done] == [0] * count, done[0].err
        assert json.loads(done[0].out)["resumed_from"] == status["step"]
        assert_same(tmp_path / "whole", tmp_path / out)


def test_row_28_one_that_is_killed_ends_the_others(class_folders: Path, tmp_path: Path) -> None:
    started = Processes(command(class_folders, "run", 4000), 2, tmp_path)
    started.until_step(tmp_path / "run", 3)
    started.all[1].send(signal.SIGKILL)
    first, _ = started.wait()
    assert first.code == 6 and "another process of this run has ended" in first.err and "Traceback" not in first.err


@pytest.mark.parametrize(
    ("arguments", "count", "said"),
    [
        (["pretrain", "--batch-size", "25"], 2, "--batch-size 24 can"),
        (["pretrain", "--objective", "visreg", "--batch-size", "24"], 2, "compares the images"),
    ],
)
def test_what_cannot_be_shared_is_refused(arguments: list[str], count: int, said: str, tmp_path: Path) -> None:
    done = Processes([*arguments, "--steps", "2"], count, tmp_path).wait()
    assert [p.code for p in done] == [2] * count and said in done[0].err
    assert not list(tmp_path.iterdir())


def test_row_29_the_first_one_decides_where_the_run_is(class_folders: Path, tmp_path: Path) -> None:
    arguments = command(class_folders, "gone", 2)
    place = arguments.index("--out")
    del arguments[place : place + 2]
    first, second = Processes(arguments, 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (made,) = (tmp_path / "runs").iterdir()
    assert (made / "report.json").exists()


def test_other_commands_are_the_first_process_s(tmp_path: Path) -> None:
    first, second = Processes(["info", "ti/16", "--json"], 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0) and json.loads(first.out)["params"] > 5e6
    assert (second.out, second.err) == ("", "")


def test_a_command_that_trains_and_is_not_shared_has_whole_batches(class_folders: Path, tmp_path: Path) -> None:
    sweep = ["sweep", "--data", str(class_folders), "--set", "model.name=mu/4", "--steps", "2", "--batch-size", "5"]
    sweep += ["--grid", "optim.lr=1e-3", "--seeds", "1", "--json"]
    alone = run_vit(*sweep, "--out", "alone", cwd=tmp_path)
    assert alone.code == 0, alone.err
    first, second = Processes([*sweep, "--out", "two"], 2, tmp_path).wait()
    assert (first.code, second.code) == (0, 0), first.err
    assert [run["top1"] for run in json.loads(first.out)["runs"]] == [run["top1"] for run in alone.json["runs"]]


def test_a_launcher_that_says_nonsense(tmp_path: Path) -> None:
    for env in (
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1"},
    ):
        assert run_vit("pretrain", "--steps", "2", cwd=tmp_path, env=env).code == 2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_shares_are_all_of_the_batch(size: int) -> None:
    shares = [World(size, rank, 0).share(24) for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(24))


@pytest.mark.parametrize(("own", "whole", "accumulate", "parts"), [(24, 0, 1, 1), (24, 0, 4, 4), (12, 24, 4, 2), (8, 24, 4, 2), (6, 24, 4, 1), (5, 10, 5, 5)])  # fmt: skip
def test_micro_batches_are_no_larger_than_one_process_s(own: int, whole: int, accumulate: int, parts: int) -> None:
    assert micro_batches(own, whole, accumulate) == parts
