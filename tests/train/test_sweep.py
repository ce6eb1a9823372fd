"""Sweeps: the grid, the choice by the dev part alone, going on after a stop."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Vit, train_run
from vitcli import api
from vitcli.errors import DivergedError, UsageError
from vitcli.train.plan import Request
from vitcli.train.selection import Selection
from vitcli.train.sweep import parse_grid, point_name

QUICK = ("--model", "mu/4", "--batch-size", "16", "--steps", "40", "--set", "optim.name=adamw")
GRID = ("--grid", "optim.lr=30,3e-3")


def test_a_grid_is_every_combination_in_order() -> None:
    points = parse_grid(["optim.lr=0.1,0.2", "model.depth=2,3"])
    assert points == [
        {"optim.lr": 0.1, "model.depth": 2},
        {"optim.lr": 0.1, "model.depth": 3},
        {"optim.lr": 0.2, "model.depth": 2},
        {"optim.lr": 0.2, "model.depth": 3},
    ]
    assert parse_grid(["augment.scale=0.1,1;0.5,1"]) == [{"augment.scale": (0.1, 1.0)}, {"augment.scale": (0.5, 1.0)}]
    assert parse_grid(["optim.lr=0.1,1e-1"]) == [{"optim.lr": 0.1}]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5, unique=True))
def test_numbers_come_back_and_their_folders_differ(values: list[float]) -> None:
    points = parse_grid(["optim.lr=" + ",".join(map(repr, values))])
    assert [p["optim.lr"] for p in points] == values
    assert len({point_name(p) for p in points}) == len(values)


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ([], "needs a grid"),
        (["optim.lr"], "no values"),
        (["optim.lr="], "no values"),
        (["optim.lrr=1"], "optim.lrr"),
        (["optim.lr=fast"], "not a number"),
        (["optim.lr=1", "optim.lr=2"], "twice"),
        (["optim.lr=-1"], "must be above 0"),
        (["run.seed=1,2"], "cannot take run.seed"),
        (["run.seed =1,2"], "cannot take run.seed"),
        (["train.dev=0.1,0.2"], "cannot take train.dev"),
        (["model.classes=2,3"], "cannot be set"),
    ],
)
def test_what_is_no_grid_is_a_usage_error(class_folders: Path, grid: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        api.plan_sweep(Request("pretrain", {"data.source": str(class_folders), "train.steps": 2}), grid)


def test_the_best_of_the_dev_part_is_trained_on_everything(class_folders: Path, vit: Vit, tmp_path: Path) -> None:
    done = vit("sweep", "--data", class_folders, *QUICK, *GRID, "--seeds", "2", "--out", "swept", "--json")
    assert done.code == 0, done.err
    tree = done.json
    assert set(tree) == {"grid", "best", "top1_mean", "top1_std", "seeds", "runs"}
    assert [row["set"] for row in tree["grid"]] == [{"optim.lr": 30}, {"optim.lr": 3e-3}]
    assert tree["best"] == {"optim.lr": 3e-3} and tree["seeds"] == [0, 1]
    tops = [run["top1"] for run in tree["runs"]]
    mean = sum(tops) / 2
    assert tree["top1_mean"] == pytest.approx(mean)
    assert tree["top1_std"] == pytest.approx(math.sqrt(sum((t - mean) ** 2 for t in tops)))
    folder = tmp_path / "swept"
    assert (folder / "grid.png").read_bytes()[:4] == b"\x89PNG"
    for run in folder.glob("grid/02-*"):
        report = json.loads((run / "report.json").read_text())
        assert (report["eval"]["split"], report["eval"]["n"]) == ("dev", 7)
    for run in tree["runs"]:
        report = json.loads((tmp_path / run["checkpoint"]).with_name("report.json").read_text())
        assert (report["eval"]["split"], report["eval"]["n"], report["eval"]["top1"]) == ("test", 24, run["top1"])
    again = vit("sweep", "--data", class_folders, *QUICK, *GRID, "--seeds", "2", "--out", "swept", "--json")
    assert again.json == tree and "training" not in again.err
    other = vit("sweep", "--data", class_folders, *QUICK, "--grid", "optim.lr=1", "--out", "swept")
    assert other.code == 2 and "holds something else" in other.err


def test_a_point_that_diverges_is_no_end(class_folders: Path, tmp_path: Path) -> None:
    values = {"data.source": str(class_folders), "model.name": "mu/4", "train.batch_size": 16, "train.steps": 30}
    values |= {"optim.name": "sgd", "optim.clip": 0.0, "optim.momentum": 0.0}
    planned = api.plan_sweep(Request("pretrain", values), ["optim.lr=1e30,0.01"], 1)
    report = api.sweep(planned, str(tmp_path / "some"))[1]
    assert report["grid"][0]["dev_top1"] is None and report["best"] == {"optim.lr": 0.01}
    with pytest.raises(DivergedError, match="every point"):
        api.sweep(api.plan_sweep(Request("pretrain", values), ["optim.lr=1e30"], 1), str(tmp_path / "all"))


def test_a_stopped_sweep_goes_on_where_it_stood(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {
        "data.source": str(class_folders),
        "model.name": "mu/4",
        "train.batch_size": 16,
        "train.steps": 4,
    }
    planned = api.plan_sweep(Request("pretrain", values), ["optim.lr=1e-4,1e-3"], 1)

    class Stop(Exception):
        pass

    said: list[str] = []

    def until_the_second(text: str) -> None:
        said.append(text)
        if text.startswith("grid 2"):
            raise Stop

    with pytest.raises(Stop):
        api.sweep(planned, say=until_the_second)
    steps: list[int] = []
    folder, report = api.sweep(planned, sinks=[lambda event, fields: steps.append(event == "step")])
    assert folder.name == "sweep-ViT-mu-4-colours-1", "of the data their last name"
    assert said[0] == f"sweep folder: {folder}" and len(list((tmp_path / "runs").iterdir())) == 1
    assert sum(steps) == 8  # of the four steps of two runs: the second point and the seed
    assert len(report["grid"]) == 2


def test_finetune_from_a_checkpoint_and_a_dry_run(class_folders: Path, vit: Vit, tmp_path: Path) -> None:
    assert vit("pretrain", "--data", class_folders, *QUICK, "--out", "base").code == 0
    done = vit("sweep", "base", "--data", class_folders, "--steps", "2", *GRID, "--dry-run", "--json")
    assert done.code == 0, done.err
    tree = done.json
    assert (tree["runs"], tree["steps"], tree["config"]["run"]["command"]) == (5, 2, "finetune")
    named = vit("sweep", "finetune", "base", "--data", class_folders, "--steps", "2", *GRID, "--dry-run", "--json")
    assert named.json == tree
    assert not (tmp_path / "runs").exists()
    refused = vit("sweep", "pretrain", "base", *GRID)
    assert refused.code == 2 and "too many arguments" in refused.err


def test_points_of_a_new_head_are_scored_as_the_final_runs_will_be(class_folders: Path, tmp_path: Path) -> None:
    """The choice between probe and tuned weights is by the dev part, so it would favour what it is then scored by."""
    base = tmp_path / "base"
    train_run("pretrain", data=str(class_folders), out=str(base), model="mu/4", steps=5, batch_size=16)
    others = tmp_path / "others"
    shutil.copytree(class_folders, others)
    for folder in list(others.glob("*/*")):
        folder.rename(folder.with_name(f"dark {folder.name}"))
    values = {"data.source": str(others), "train.batch_size": 16, "train.steps": 12, "optim.clip": 0.0}
    values |= {"optim.name": "adamw", "optim.schedule": "constant"}
    planned = api.plan_sweep(Request("finetune", values, str(base)), ["optim.lr=1e-5,1"], 1)
    folder, report = api.sweep(planned, str(tmp_path / "swept"))
    assert report["best"] == {"optim.lr": 1e-5} and report["top1_mean"] > 0.8
    assert report["grid"][1]["dev_top1"] < 0.7, "what that rate leaves of the network, not the probe"
    first, ruined = (json.loads(path.read_text())["selection"] for path in sorted(folder.glob("grid/*/report.json")))
    assert (first["kept"], ruined["kept"], ruined["choice"]) == ("average", "average", "probe")
    final = json.loads((folder / "seed-0" / "report.json").read_text())
    assert final["selection"] == {"kept": first["choice"]}


def test_the_final_runs_keep_what_the_best_point_chose(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no dev part: without the point's choice they would give away the mean, whatever it is worth."""
    base = tmp_path / "base"
    train_run("pretrain", data=str(class_folders), out=str(base), model="mu/4", steps=5, batch_size=16)
    others = tmp_path / "others"
    shutil.copytree(class_folders, others)
    for folder in list(others.glob("*/*")):
        folder.rename(folder.with_name(f"dark {folder.name}"))
    monkeypatch.setattr(Selection, "_chosen", staticmethod(lambda right: ("finetuned", "finetuned")))
    values = {"data.source": str(others), "train.batch_size": 16, "train.steps": 5}
    planned = api.plan_sweep(Request("finetune", values, str(base)), ["optim.lr=1e-4,1e-3"], 1)
    folder, _ = api.sweep(planned, str(tmp_path / "swept"))
    final = json.loads((folder / "seed-0" / "report.json").read_text())
    assert (
        final["selection"] == {"kept": "finetuned"} and 'keep = "finetuned"' in (folder / "seed-0/run.toml").read_text()
    )


def test_a_time_budget_is_that_of_each_run(class_folders: Path, tmp_path: Path) -> None:
    values = {"data.source": str(class_folders), "model.name": "mu/4", "train.batch_size": 16, "train.time_budget": 6.0}
    folder, report = api.sweep(
        api.plan_sweep(Request("pretrain", values), ["optim.lr=1e-3,3e-3"], 1), str(tmp_path / "swept")
    )
    runs = [
        json.loads(path.read_text()) for path in (*folder.glob("grid/*/report.json"), *folder.glob("seed*/report.json"))
    ]
    assert len(runs) == 3 and all(run["seconds"] < 8 and run["steps"] > 5 for run in runs)
    assert report["top1_mean"] is not None
