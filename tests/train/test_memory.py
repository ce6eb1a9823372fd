"""Memory of the machine and its control groups; runs that do not fit are refused before they start, with what does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from conftest import Vit
from vitcli import api
from vitcli.config import Config, apply, model_config
from vitcli.errors import ResourceError
from vitcli.train import memory
from vitcli.train.memory import Room, check, fitted, needed
from vitcli.train.plan import Request

LARGE = apply(Config(model=model_config("b/16", (224, 224), 1000)), {"train.batch_size": 512, "train.epochs": 1.0})


def write(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in values.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_machine_s_memory_is_found() -> None:
    room = memory.room_of(torch.device("cpu"))
    assert room is not None and 0 < room.free <= room.total


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_s_limit_counts_wherever_it_lies_above_the_process(tmp_path: Path, version: int) -> None:
    groups = tmp_path / "cgroup" / ("memory" if version == 1 else "")
    names = ("limit_in_bytes", "usage_in_bytes", "total_") if version == 1 else ("max", "current", "")

    def limit(folder: Path, total: object, used: int, cached: int) -> None:
        stat = f"anon 5\n{names[2]}inactive_file {cached}\n{names[2]}active_file 1"
        write(folder, **{f"memory__{names[0]}": total, f"memory__{names[1]}": used, "memory__stat": stat})

    limit(groups / "pod", 1000, 700, 100)
    limit(groups / "pod" / "task", "max" if version == 2 else 2**63 - 4096, 10, 0)
    own = tmp_path / "own"
    own.write_text("4:cpu:/x\n3:memory:/pod/task\n" if version == 1 else "0::/pod/task\n")
    rooms = list(memory._control_groups(tmp_path / "cgroup", own))
    assert Room(1000, 401) in rooms and min(room.total for room in rooms) == 1000
    assert list(memory._control_groups(tmp_path / "cgroup", tmp_path / "missing")) == []


def test_micro_batches_are_those_that_fit_and_divide_the_batch() -> None:
    device, room = "cuda", 12e9
    smaller = fitted(LARGE, device, True, room)
    assert needed(LARGE, device, True).total > room >= needed(smaller, device, True).total
    assert smaller.train.batch_size % smaller.train.accumulate == 0
    one_less = [n for n in range(1, smaller.train.accumulate) if 512 % n == 0]
    assert all(needed(apply(smaller, {"train.accumulate": n}), device, True).total > room for n in one_less), (
        "no more parts than needed"
    )
    assert fitted(LARGE, device, True, 1e15) == LARGE


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    def way_out(config: Config, gigabytes: float) -> str:
        with pytest.raises(ResourceError, match="GB of memory") as caught:
            check(config, "cpu", False, Room(int(1e12), int(gigabytes * 1e9)))
        return caught.value.hint

    assert re.search(r"--set train\.accumulate=\d+.*: the result is the same", way_out(LARGE, 20))
    huge = apply(LARGE, {"train.batch_size": 2**17})
    hint = way_out(huge, 20)
    changes = dict(re.findall(r"(--batch-size|train\.accumulate)[ =](\d+)", hint))
    fits = apply(huge, {"train.batch_size": int(changes["--batch-size"])})
    check(apply(fits, {"train.accumulate": int(changes["train.accumulate"])}), "cpu", False, Room(int(1e12), int(20e9)))
    assert way_out(LARGE, 1) == "take a smaller --model or --img-size"
    one = apply(LARGE, {"train.batch_size": 1, "train.accumulate": 1, "model.depth": 100, "eval.batch_size": 1})
    less = apply(one, {"run.checkpointing": True})
    room = (
        needed(one, "cpu", False).total + needed(less, "cpu", False).total
    ) / 2e9  # too little for an image whose blocks keep all
    assert re.search(r"--set run\.checkpointing=true: the result is the same", way_out(one, room))
    check(less, "cpu", False, Room(int(1e12), int(room * 1e9)))
    check(LARGE, "cpu", False, Room(int(1e13), int(1e13)))


def test_a_run_that_cannot_fit_ends_before_it_starts(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "room_of", lambda device: Room(4 * 10**9, 10**9))
    values = {"data.source": str(class_folders), "train.steps": 1, "train.batch_size": 64, "model.name": "l/16"}
    for dry_run in (False, True):
        with pytest.raises(ResourceError, match="needs about"):
            api.plan(Request("pretrain", values | {"model.img_size": (224, 224)}, dry_run=dry_run))
    ours = api.plan(Request("pretrain", {"data.source": str(class_folders), "model.name": "ti/16", "train.steps": 1}))
    assert ours.memory().total <= 2 * 10**9, "a recipe's own batch is parted"
    paper = {"data.source": "none", "data.images": 1_281_167, "data.classes": 1000, "run.recipe": "paper-i1k"}
    planned = api.plan(Request("pretrain", paper, dry_run=True))
    assert planned.config.train.batch_size == 4096 and any("GB of memory" in text for text in planned.warnings)


def test_a_hundred_thousand_images_at_a_time_are_refused(vit: Vit, class_folders: Path) -> None:
    done = vit("pretrain", "--data", class_folders, "--batch-size", "100000", "--steps", "1")
    assert done.code == 2 and "--batch-size 64" in done.err
    named = ("--set", "data.images=1000000", "--set", "data.classes=10", "--dry-run")
    assert vit("pretrain", "--data", "none", "--batch-size", "100000", *named).code == 0
