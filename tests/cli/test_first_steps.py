"""What made newcomers stop: each is a test."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Vit, draw_image, run_vit
from vitcli import api
from vitcli.cli.console import score_text
from vitcli.text import last_names


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("first")
    done = run_vit("pretrain", "--data", class_folders, "--model", "mu/4", "--steps", "6", "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def on_a_terminal(*arguments: object, cwd: Path) -> str:
    """What a terminal shows of stdout and stderr together, colours and all."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "vitcli", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 65536):
            found += part
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return found.decode()


def test_lines_and_a_bar_do_not_run_into_each_other(trained: Path, class_folders: Path) -> None:
    shown = on_a_terminal("predict", "run", class_folders / "test" / "red", cwd=trained)
    before, _, rows = shown.partition(str(class_folders))
    assert before.endswith(("\n", "\r", "\x1b[2K", "\x1b[?25h")), repr(before[-80:])
    assert "starting" not in rows and rows.count("red") >= 8


def test_what_a_shell_did_before_it_became_the_command_is_not_its_time(tmp_path: Path) -> None:
    """bash hands its process over to the last command of a line."""
    command = f"sleep 12 && exec {sys.executable} -m vitcli pretrain --model mu/4 --time-budget 12s --json --quiet"
    started = time.monotonic()
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 20 < time.monotonic() - started < 30


def test_images_left_out_of_the_part_to_choose_by_are_said(trained: Path, tmp_path: Path) -> None:
    for colour, name in ((3, "yellow"), (4, "violet")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(40):
            draw_image(colour, index).save(tmp_path / "data" / name / f"{index:03}.png")
    base = ("finetune", trained / "run", "--data", "data", "--steps", "2", "--batch-size", "8", "--json")
    plan = run_vit(*base, "--dry-run", cwd=tmp_path)
    assert re.search(r"images: \d+ to train on, \d+ to choose weights by, \d+ to measure", plan.err), plan.err
    values = {"data.source": str(tmp_path / "data"), "train.steps": 2, "train.batch_size": 8}
    dev = api.plan(api.Request("finetune", values, str(trained / "run"))).dev
    assert dev is not None
    Path(dev.path_of(0)).write_bytes(b"\x89PNG\r\n\x1a\n no more")
    done = run_vit(*base, "--set", "data.on_bad_image=skip", cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"warning: 1 unreadable images of the dev part are left out", done.err), done.err
    assert any("dev part" in text for text in done.json["warnings"])


@pytest.mark.parametrize("command", ["finetune run --data {}", "predict run {}", "data {}"])
def test_a_folder_of_pictures_that_are_not_read_says_so(trained: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    for name in ("a", "b"):
        (tmp_path / "phone" / name).mkdir(parents=True)
        (tmp_path / "phone" / name / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    done = run_vit(*command.format("phone").split(), cwd=tmp_path)
    assert done.code == 3 and "2 .heic" in done.err + done.out and "JPEG or PNG" in done.err + done.out, done


def test_a_sheet_of_nothing_is_not_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    done = run_vit("predict", trained / "run", "a.png", "--sheet", "s.png", cwd=tmp_path)
    assert done.code == 3 and not (tmp_path / "s.png").exists() and "wrote" not in done.err


def test_names_with_blanks_and_names_nearby(in_process: Vit, tmp_path: Path) -> None:
    draw_image(0, 0).save(tmp_path / "My Dog.png")
    (tmp_path / "My Photos").mkdir()
    done = in_process("finetune", "deit_tiny_patch16_224", "--data", "My", "Photos")
    assert done.code == 2 and "stands in quotes: 'My Photos'" in done.err
    done = in_process("pretrain", "--data", "My Photo", "--dry-run")
    assert done.code == 3 and "did you mean My Photos?" in done.err
    done = in_process("pretrain", "--data", "cifar", "--dry-run")
    assert done.code == 3 and "did you mean cifar10" in done.err


def test_a_score_on_few_images_has_its_interval() -> None:
    few = score_text({"top1": 22 / 26, "n": 26, "split": "test"})
    assert few == "top-1 84.62 % on 26 images of test, 95 % interval 66 to 94 %"
    assert score_text({"top1": 1.0, "n": 10, "split": "test"}).endswith("72 to 100 %")
    assert score_text({"top1": 0.9, "n": 10_000, "split": "test"}) == "top-1 90.00 % on 10,000 images of test"


@pytest.mark.parametrize(
    ("path", "shown"),
    [("a/b/c.png", "b/c.png"), ("c.png", "c.png"), ("/c.png", "c.png"), ("s3://x/y/z.jpg", "y/z.jpg"), ("a\\b\\c.png", "b/c.png"), ("../c.png", "c.png"), ("/", "/")],
)  # fmt: skip
def test_files_are_told_apart_by_their_folders(path: str, shown: str) -> None:
    assert last_names(path) == shown


def test_mistakes_in_the_report_have_names(trained: Path, class_folders: Path) -> None:
    page = (trained / "run" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<figcaption>(red|green|blue)/\d{3}\.png: (red|green|blue)<br>", page)
