"""Trackers are read back by their own readers, and hold what metrics.jsonl holds, whatever happened to the run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import run_vit, train_run
from vitcli import api
from vitcli.errors import UsageError
from vitcli.train import trackers
from vitcli.train.runlog import read_lines

pytest.importorskip("tensorboard", reason="the trackers extra is not installed")
pytest.importorskip("wandb", reason="the trackers extra is not installed")

Series = dict[str, list[tuple[int, float]]]
SETTINGS: dict[str, Any] = {
    "model": "mu/4", "batch_size": 8, "steps": 6, "device": "cpu", "precision": "fp32", "train__log_every_steps": 1,
    "train__eval_every_steps": 3, "train__save_every_steps": 3,
}  # fmt: skip


def expected(folder: Path) -> Series:
    """What metrics.jsonl says, by the names of the trackers."""
    found: Series = defaultdict(list)
    for line in read_lines(folder / "metrics.jsonl"):
        part = "eval" if "eval" in line else "monitor" if "monitor" in line else "train"
        for name, value in (line if part == "train" else line[part]).items():
            if isinstance(value, int | float) and name != "step":
                found[f"{part}/{name}"].append((line["step"], value))
    return found


def read_tensorboard(folder: Path) -> tuple[Series, dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}, texts


def records(path: Path) -> list[Any]:
    """wandb's records of a file that holds them as LevelDB's log does: 32 KiB blocks of parts behind a header of 7 bytes each."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def read_wandb(folder: Path) -> tuple[Series, dict[str, Any], dict[str, Any]]:
    """The series, the configuration and the summary of the one offline run."""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    series: Series = defaultdict(list)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in records(path):
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary["/".join([*item.nested_key, *([item.key] if item.key else [])])] = json.loads(item.value_json)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                series[name].append((record.history.step.num, json.loads(item.value_json)))
    return series, config, summary


def check(folder: Path) -> None:
    """Both trackers against the file."""
    lines = expected(folder)
    board, texts = read_tensorboard(folder)
    assert {n: [(s, np.float32(v)) for s, v in rows] for n, rows in lines.items()} == board
    assert 'name = "ViT-mu/4"' in texts["run.toml/text_summary"]
    ours, config, summary = read_wandb(folder)
    assert ours == lines
    assert config["train"]["batch_size"] == 8
    report = json.loads((folder / "report.json").read_text())
    assert '"top1"' in texts["report/text_summary"]
    assert summary["report"]["eval"]["top1"] == report["eval"]["top1"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_trackers_hold_what_metrics_jsonl_holds(class_folders: Path, tmp_path: Path) -> None:
    done = run_vit(
        "pretrain", "--data", class_folders, "--model", "mu/4", "--batch-size", 8, "--steps", 6, "--out", "run",
        "--set", "train.log_every_steps=1", "--set", "train.eval_every_steps=3",
        "--tracker", "tensorboard", "--tracker", "wandb", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1 and "wandb:" not in done.err and "Warning" not in done.err
    names = expected(tmp_path / "run")
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "eval/top1"} <= names.keys()
    assert [step for step, _ in names["train/loss"]] == [1, 2, 3, 4, 5, 6]
    check(tmp_path / "run")


CUT_AT_STEP_5 = """
import os, sys
from vitcli.cli import app
from vitcli.train import loop

log_step = loop.Loop._log_step


def cut(self, update, rate):
    log_step(self, update, rate)
    if self.session.at.step == 5:
        self.session.writer.wait()
        os._exit(9)


loop.Loop._log_step = cut
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("first", [("--tracker", "tensorboard,wandb"), ()])
def test_a_resumed_run_has_every_step_once(class_folders: Path, tmp_path: Path, first: tuple[str, ...]) -> None:
    """The process is gone after step 5, of which 3 is saved, as after kill -9; trackers may be asked for only then."""
    command = [
        "pretrain", "--data", str(class_folders), "--model", "mu/4", "--batch-size", "8", "--steps", "6", "--out", "run",
        "--set", "train.log_every_steps=1", "--set", "train.eval_every_steps=3", "--set", "train.save_every_steps=3",
    ]  # fmt: skip
    killed = subprocess.run(
        [sys.executable, "-c", CUT_AT_STEP_5, *command, *first], cwd=tmp_path, capture_output=True, check=False
    )
    assert killed.returncode == 9, killed.stderr
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 5
    done = run_vit(*command, "--json", "--tracker", "tensorboard", "--tracker", "wandb", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["resumed_from"] == 3
    assert [step for step, _ in expected(tmp_path / "run")["train/loss"]] == [1, 2, 3, 4, 5, 6]
    check(tmp_path / "run")


@pytest.mark.parametrize("how", ["raises", "hangs", "raises at the end", "hangs at the end"])
def test_a_broken_tracker_is_one_warning(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    release = threading.Event()

    class Broken(trackers.TensorBoard):
        patience = 0.5

        def fail(self) -> None:
            if how.startswith("raises"):
                raise ConnectionError("the tracker is gone")
            release.wait()

        def add(self, step: int, seconds: float, values: trackers.Scalars) -> None:
            super().add(step, seconds, values)
            if step == 2 and not how.endswith("end"):
                self.fail()

        def close(self) -> None:
            super().close()
            if how.endswith("end"):
                self.fail()

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Broken)
    heard: list[str] = []
    folder, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), trackers=["tensorboard"],
        sinks=[lambda event, fields: heard.append(fields["text"] if event == "warning" else event)], **SETTINGS,
    )  # fmt: skip
    release.set()
    assert report["steps"] == 6 and api.runfolder.status(folder)["status"] == "done"
    stopped = [text for text in heard if "a log stopped" in text]
    assert len(stopped) == 1 and ("the tracker is gone" in stopped[0] or "no answer for 0.5 s" in stopped[0])


@pytest.mark.parametrize(("name", "said"), [("mlflow", "unknown"), ("wandb", "not installed")])
def test_what_is_unknown_or_missing_is_refused_before_any_work(
    in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    done = in_process("pretrain", "--tracker", name)
    assert done.code == 2 and said in done.err and not (tmp_path / "runs").exists()
    with pytest.raises(UsageError) as caught:
        trackers.trackers([name])
    assert ("vitcli[trackers]" in caught.value.hint) == (name == "wandb")


def test_nobody_who_is_not_logged_in_is_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for asked in ("online", None):
        monkeypatch.setenv("WANDB_MODE", asked) if asked else monkeypatch.delenv("WANDB_MODE")
        assert trackers._mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert trackers._mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert trackers._mode() == "disabled"
