"""`vit runs` and `vit compare`: what run folders tell, whatever state they are in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Vit, run_vit, train_run


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs, one copied and marked as killed, one that failed, one that is none."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model, steps in (("a", "mu/4", 4), ("b", "w24d1h2/4", 12), ("c", "mu/4", 2)):
        train_run(
            "pretrain",
            data=str(class_folders),
            out=str(folder / "runs" / name),
            model=model,
            steps=steps,
            batch_size=16,
        )
    for name, status in (("killed", "running"), ("failed", "failed")):
        shutil.copytree(folder / "runs" / "c", folder / "runs" / name)
        (folder / "runs" / name / "report.json").unlink()
        (folder / "runs" / name / "model.safetensors").unlink()
        said = {"status": status, "step": 1, "code": None, "time": "2020-01-01T00:00:00+0000"}
        (folder / "runs" / name / "state" / "status.json").write_text(json.dumps(said))
    (folder / "runs" / "notes").mkdir()
    (folder / "runs" / "odd").mkdir()
    (folder / "runs" / "odd" / "run.toml").write_text("[model\n")
    return folder


def test_runs_are_listed_newest_first_with_what_they_are(place: Path) -> None:
    done = run_vit("runs", "--json", cwd=place)
    assert done.code == 0, done.err
    rows = done.json["runs"]
    assert [row["run"] for row in rows][:3] != [] and {row["run"] for row in rows} == {
        f"runs/{name}" for name in ("a", "b", "c", "killed", "failed", "odd")
    }
    times = [row["time"] or "" for row in rows]
    assert times == sorted(times, reverse=True)
    by_name = {row["run"][5:]: row for row in rows}
    assert set(rows[0]) == {"run", "model", "data", "top1", "status", "time", "bytes"}
    assert [by_name[n]["status"] for n in ("a", "b", "killed", "failed", "odd")] == [
        "done",
        "done",
        "killed",
        "failed",
        "unknown",
    ]
    report = json.loads((place / "runs" / "b" / "report.json").read_text())
    assert by_name["b"]["top1"] == report["eval"]["top1"] and by_name["b"]["model"] == "ViT-w24d1h2/4"
    assert by_name["killed"]["top1"] is None
    assert by_name["a"]["bytes"] == sum(p.stat().st_size for p in (place / "runs" / "a").rglob("*") if p.is_file())
    text = run_vit("runs", cwd=place).out
    assert len(text.splitlines()) == 7 and "killed" in text and "2020-01-01 00:00" in text
    assert run_vit("runs", "nowhere", cwd=place).code == 4
    assert run_vit("runs", cwd=place / "runs").out == "no runs under runs\n"
    assert run_vit("runs", place / "runs" / "notes", "--json", cwd=place).json == {"runs": []}


def test_runs_side_by_side(place: Path) -> None:
    done = run_vit("compare", "--json", "--plot", "c.png", cwd=place)
    assert done.code == 0, done.err
    rows = done.json["runs"]
    assert {row["run"] for row in rows} == {"runs/a", "runs/b", "runs/c"}
    for row in rows:
        report = json.loads((place / row["run"] / "report.json").read_text())
        for key in ("train_flops", "images_seen", "seconds"):
            assert row[key] == report[key]
        assert row["top1"] == report["eval"]["top1"] and row["params"] > 1000
        others = [o for o in rows if o is not row]
        beaten = any(
            o["train_flops"] <= row["train_flops"] and o["top1"] >= row["top1"] and o != row
            and (o["train_flops"], o["top1"]) != (row["train_flops"], row["top1"])
            for o in others
        )  # fmt: skip
        assert row["on_front"] == (not beaten)
    assert np.asarray(Image.open(place / "c.png").convert("RGB")).std() > 10
    assert run_vit("compare", "--plot", "c.png", cwd=place).code == 2
    mixed = run_vit("compare", "runs/a", "runs/b/model.safetensors", "runs/killed", "--json", cwd=place)
    assert mixed.code == 0 and "runs/killed has no top-1" in mixed.err
    assert [row["run"] for row in mixed.json["runs"]] == ["runs/a", "runs/b/model.safetensors", "runs/killed"]
    assert mixed.json["runs"][1]["seconds"] is None and mixed.json["runs"][1]["train_flops"] > 0
    assert run_vit("compare", "runs/nothing", cwd=place).code == 4


def test_scores_of_other_images_are_said(place: Path, in_process: Vit) -> None:
    train_run("pretrain", data="digits", out="other", model="mu/4", steps=2, batch_size=16)
    done = in_process("compare", place / "runs" / "a", "other")
    assert done.code == 0 and "different images" in done.err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("report.json", '{"eval": {"top1": NaN}, "train_flops": Infinity, "seconds": "long"}'), ("report.json", '{"eval": [1]}'),
        ("report.json", '{"eval": {"top1": true}, "train_flops": "many"}'), ("run.toml", 'run = "x"\nmodel = 3'),
        ("state/status.json", '{"status": ["x"], "time": 3}'), ("report.json", "[]"), ("run.toml", "[model]\nwidth = -3"),
    ],
)  # fmt: skip
def test_a_damaged_folder_does_not_end_the_list(
    place: Path, tmp_path: Path, in_process: Vit, file: str, text: str
) -> None:
    shutil.copytree(place / "runs" / "a", "runs/good")
    shutil.copytree(place / "runs" / "b", "runs/bad")
    Path("runs/bad", file).write_text(text)
    for command in (
        ["runs"],
        ["runs", "--json"],
        ["compare", "runs/good", "runs/bad"],
        ["compare", "runs/good", "runs/bad", "--json"],
    ):
        done = in_process(*command)
        assert done.code == 0, (command, done.err)
        assert "good" in done.out and "nan" not in done.out.lower()
