"""Rows 10 to 12, and the disk of row 34: what is full, too small or read-only. Real small disks, which need root."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import mounted_disk
from processes import (
    SLOW_STEPS,
    Started,
    assert_same_run,
    has_logged,
    last_step,
    metrics,
    pretrain,
    run,
    saved_steps,
)
from vitcli import files, runs

WIDE = ("--set", "model.width=128", "--set", "model.heads=4", "--set", "model.mlp=512", "--set", "model.depth=4")
"""12.7 MB a saved step: three of them and the checkpoint fit on 64 MB."""
WIDER = ("--set", "model.width=256", "--set", "model.heads=4", "--set", "model.mlp=1024", "--set", "model.depth=4")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    with mounted_disk(tmp_path / "disk", "64m") as folder:
        yield folder


def fill(disk: Path, left: int) -> Path:
    """A file that leaves `left` bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, files.free_bytes(disk) - left)
    assert files.free_bytes(disk) <= left
    return filler


def test_row_10_the_disk_fills_up_during_a_save(class_folders: Path, tmp_path: Path, disk: Path) -> None:
    command = pretrain(class_folders, *WIDE, "--set", "train.save_every_steps=4", out="disk/run")
    alone = pretrain(class_folders, *WIDE, out="alone")
    assert run(alone, tmp_path).code == 0
    process = Started(command, tmp_path, before=SLOW_STEPS)
    process.until(lambda: saved_steps(disk / "run") == [4])
    filler = fill(disk, 9_000_000)
    full = process.wait()
    assert full.code == 6, full.err
    message = full.json["error"]["message"]
    assert "no space left" in message and "bytes are needed" in message and "are free" in message
    assert saved_steps(disk / "run") == [4] and files.leftovers(disk / "run" / "state") == []
    assert runs.status(disk / "run")["code"] == 6
    again = run(command, tmp_path)
    assert again.code == 6 and "bytes free" in again.json["error"]["message"], "before the first step, this time"
    filler.unlink()
    done = run(command, tmp_path)
    assert done.code == 0 and done.json["resumed_from"] == 4
    assert_same_run(tmp_path / "alone", disk / "run")


def test_row_10_a_full_disk_leaves_no_half_of_what_a_command_writes(
    class_folders: Path, tmp_path: Path, disk: Path
) -> None:
    assert run(pretrain(class_folders), tmp_path).code == 0
    fill(disk, 0)
    for option in (["--predictions", "disk/p.csv"], ["--predictions", "disk/p.parquet"], ["--confusion", "disk/c.png"]):
        full = run(["eval", "run", *option, "--json"], tmp_path)
        assert full.code == 6, full.err
        assert option[1] in full.json["error"]["message"]
        assert sorted(p.name for p in disk.iterdir()) == ["filler"]


def read_only(disk: Path, flag: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{flag}", str(disk)], check=True)


def test_row_11_an_output_folder_that_is_read_only(class_folders: Path, tmp_path: Path, disk: Path) -> None:
    command = pretrain(class_folders, out="disk/run")
    read_only(disk, "ro")
    refused = run(command, tmp_path)
    assert refused.code == 6 and "cannot write" in refused.json["error"]["message"], refused.err
    assert "disk/run" in refused.json["error"]["message"] and "--out" in refused.json["error"]["hint"]
    read_only(disk, "rw")
    process = Started(command, tmp_path, before=SLOW_STEPS)
    process.until(has_logged, disk / "run", 5)
    process.send(9)
    process.wait()
    read_only(disk, "ro")
    refused = run(command, tmp_path)
    assert refused.code == 6 and last_step(disk / "run") < 12, "a run that goes on is not begun either"
    read_only(disk, "rw")
    assert run(command, tmp_path).json["resumed_from"]


def test_row_12_less_space_than_the_saved_steps_need(class_folders: Path, tmp_path: Path, disk: Path) -> None:
    refused = run(pretrain(class_folders, *WIDER, out="disk/run"), tmp_path)
    assert refused.code == 6, refused.err
    assert re.search(r"67,[\d,]+ bytes free; .* need 165,[\d,]+$", refused.json["error"]["message"])
    assert list(disk.iterdir()) == [], "before the first step, and nothing is left behind"
    fill(disk, 30_000_000)  # two steps and the checkpoint would fit, but not the one that is being written as well
    assert run(pretrain(class_folders, *WIDE, out="disk/run"), tmp_path).code == 6


def test_row_12_a_run_that_goes_on_needs_no_space_for_what_it_has(
    class_folders: Path, tmp_path: Path, disk: Path
) -> None:
    command = pretrain(class_folders, *WIDE, out="disk/run")
    process = Started(command, tmp_path, before=SLOW_STEPS)
    process.until(lambda: saved_steps(disk / "run") == [2, 4])
    process.send(9)
    process.wait()
    fill(disk, 20_000_000)
    assert run(command, tmp_path).code == 0


def test_row_34_lines_of_metrics_wait_for_room(class_folders: Path, tmp_path: Path, disk: Path) -> None:
    """Between two saves a full disk stops nothing and loses no line."""
    steps = 60  # whose lines take several pages, and a disk gives out whole ones
    command = pretrain(class_folders, "--set", "train.save_every_steps=0", out="disk/run", steps=steps)
    assert run(pretrain(class_folders, out="alone", steps=steps), tmp_path).code == 0
    process = Started(command, tmp_path, before=SLOW_STEPS)
    process.until(has_logged, disk / "run", 3)
    filler = fill(disk, 0)
    process.until(lambda: "has to wait" in process.said())
    filler.unlink()
    done = process.wait()
    assert done.code == 0, done.err
    assert done.err.count("has to wait") == 1 and "No space left" in done.err
    assert metrics(disk / "run") == metrics(tmp_path / "alone")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_row_34_a_full_disk_under_the_log(class_folders: Path, tmp_path: Path, disk: Path, stream: str) -> None:
    """The result that cannot be delivered is 6; notes that cannot be written are not missed."""
    fill(disk, 0)
    (disk / "log").touch()
    process = Started(pretrain(class_folders), tmp_path, **{stream[3:]: str(disk / "log")})
    done = process.wait()
    assert (disk / "log").stat().st_size == 0
    assert "Traceback" not in done.err
    assert runs.status(tmp_path / "run")["status"] == "done"
    if stream == "stderr":
        assert done.code == 0 and done.json["steps"] == 12
    else:
        assert done.code == 6 and "stdout" in done.err and "No space left" in done.err
