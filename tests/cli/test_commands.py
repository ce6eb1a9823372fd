"""The command line end to end, each command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ABSENT_DEVICE, Vit, draw_image, run_vit

QUICK = ("--model", "mu/4", "--steps", "6", "--batch-size", "16", "--seed", "0")


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a short run has finished."""
    place = tmp_path_factory.mktemp("trained")
    done = run_vit("pretrain", "--data", class_folders, *QUICK, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return place


def test_training_prints_the_path_of_the_checkpoint_and_nothing_else(
    vit: Vit, class_folders: Path, tmp_path: Path
) -> None:
    done = vit("pretrain", "--data", class_folders, *QUICK, fresh=True)
    assert done.code == 0, done.err
    assert done.out == "runs/ViT-mu-4-colours-1/model.safetensors\n"
    folder = tmp_path / "runs" / "ViT-mu-4-colours-1"
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "run.toml",
        "metrics.jsonl",
        "report.json",
        "curves.png",
        "report.html",
        "README.md",
        "state",
    }
    assert "run folder: runs/ViT-mu-4-colours-1" in done.err
    again = vit("pretrain", "--data", class_folders, *QUICK)
    assert again.out == "runs/ViT-mu-4-colours-2/model.safetensors\n"


def test_report_has_the_fields(trained: Path) -> None:
    report = json.loads((trained / "run" / "report.json").read_text())
    assert set(report) == {
        "checkpoint",
        "steps",
        "images_seen",
        "seconds",
        "images_per_second",
        "train_flops",
        "eval",
        "resumed_from",
        "warnings",
    }
    assert set(report["eval"]) == {"split", "top1", "top5", "loss", "ece", "n"}
    assert (report["steps"], report["images_seen"], report["resumed_from"]) == (6, 96, None)
    line = json.loads((trained / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line) == {"step", "epoch", "images_seen", "loss", "lr", "grad_norm", "images_per_second", "seconds"}
    status = json.loads((trained / "run" / "state" / "status.json").read_text())
    assert (status["status"], status["step"], status["code"]) == ("done", 6, 0)


def test_eval_needs_the_checkpoint_only_and_has_the_fields(trained: Path) -> None:
    done = run_vit("eval", "run", "--json", cwd=trained)
    tree = done.json
    assert set(tree) == {
        "split",
        "top1",
        "top5",
        "loss",
        "ece",
        "n",
        "seconds",
        "images_per_second",
        "classes",
        "balanced_top1",
    }
    assert (tree["split"], tree["n"], tree["top5"]) == ("test", 24, None)
    assert [c["name"] for c in tree["classes"]] == ["blue", "green", "red"]
    assert all(set(c) == {"name", "n", "top1"} and c["n"] == 8 for c in tree["classes"])
    text = run_vit("eval", "run", cwd=trained)
    assert "top-1" in text.out and "blue" in text.out


def test_dry_run_of_an_evaluation(trained: Path) -> None:
    tree = run_vit("eval", "run", "--dry-run", "--json", cwd=trained).json
    assert {k: tree[k] for k in ("model", "split", "n", "classes")} == {
        "model": "ViT-mu/4",
        "split": "test",
        "n": 24,
        "classes": 3,
    }


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_predictions_agree_with_scikit_learn(trained: Path, tmp_path: Path, ending: str) -> None:
    import pandas
    from sklearn.metrics import accuracy_score

    path = tmp_path / f"predictions.{ending}"
    tree = run_vit("eval", "run", "--json", "--predictions", path, cwd=trained).json
    read = {"parquet": pandas.read_parquet, "csv": pandas.read_csv, "jsonl": lambda p: pandas.read_json(p, lines=True)}[
        ending
    ]
    table = read(path)
    assert accuracy_score(table["target"], table["prediction"]) == pytest.approx(tree["top1"], abs=1e-12)
    assert (table["target"] == table["prediction"]).equals(table["correct"])
    assert len(table) == tree["n"] and Path(table["path"][0]).is_file()
    refused = run_vit("eval", "run", "--predictions", path, cwd=trained)
    assert refused.code == 2 and "exists" in refused.err and "--force" in refused.err
    assert run_vit("eval", "run", "--predictions", path, "--force", "--quiet", cwd=trained).code == 0


def test_evaluation_does_not_depend_on_the_batch_size(trained: Path) -> None:
    results = [
        run_vit("eval", "run", "--json", "--precision", "fp32", "--batch-size", n, cwd=trained).json
        for n in (1, 7, 64, 1000)
    ]
    for tree in results[1:]:
        assert tree["top1"] == results[0]["top1"]
        assert [c["top1"] for c in tree["classes"]] == [c["top1"] for c in results[0]["classes"]]
        assert tree["loss"] == pytest.approx(results[0]["loss"], abs=1e-5)
        assert tree["ece"] == pytest.approx(results[0]["ece"], abs=1e-5)


def test_classes_are_matched_by_name_whatever_their_order_and_case(
    trained: Path, class_folders: Path, tmp_path: Path
) -> None:
    original = run_vit("eval", "run", "--json", "--precision", "fp32", cwd=trained).json
    renamed = tmp_path / "renamed"
    for old, new in (("red", "a_RED"), ("green", "Green"), ("blue", "zBlue")):
        (renamed / "test").mkdir(parents=True, exist_ok=True)
        (renamed / "test" / new.replace("a_RED", "RED").replace("zBlue", "blue")).symlink_to(
            class_folders / "test" / old
        )
    moved = run_vit("eval", "run", "--json", "--precision", "fp32", "--data", renamed, cwd=trained).json
    assert moved["top1"] == original["top1"] and moved["classes"] == original["classes"]
    (renamed / "test" / "violet").symlink_to(class_folders / "test" / "red")
    unknown = run_vit("eval", "run", "--data", renamed, cwd=trained)
    assert unknown.code == 3 and "'violet'" in unknown.err


def test_an_unreadable_image_never_shrinks_the_denominator_silently(trained: Path, tmp_path: Path) -> None:
    for colour, name in enumerate(("red", "green", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            draw_image(colour, 2000 + index).save(tmp_path / "data" / name / f"{index}.png")
    bad = tmp_path / "data" / "green" / "2.png"
    bad.write_bytes(b"not an image")
    refused = run_vit("eval", "run", "--data", tmp_path / "data", "--json", cwd=trained)
    assert refused.code == 3 and "green/2.png" in refused.json["error"]["message"]
    skipped = run_vit(
        "eval", "run", "--data", tmp_path / "data", "--json", "--set", "data.on_bad_image=skip", cwd=trained
    )
    assert (skipped.json["n"], skipped.json["unreadable"]) == (11, 1) and "1 unreadable" in skipped.err


def test_dry_run_has_the_fields_and_writes_nothing(vit: Vit, class_folders: Path, tmp_path: Path) -> None:
    tree = vit(
        "pretrain",
        "--data",
        class_folders,
        "--model",
        "ti/4",
        "--img-size",
        "16",
        "--epochs",
        "2",
        "--dry-run",
        "--json",
    ).json
    assert set(tree) == {
        "model",
        "params",
        "tokens",
        "macs",
        "steps",
        "images_seen",
        "train_flops",
        "memory_bytes",
        "data",
        "config",
    }
    assert tree["model"] == "ViT-Ti/4" and tree["tokens"] == 17
    assert tree["data"] == {"splits": [{"name": "train", "rows": 72}, {"name": "test", "rows": 24}], "classes": 3}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "epochs", "exaflops"),
    [("B/32", 7, 55), ("B/16", 7, 224), ("L/32", 7, 196), ("L/16", 7, 783), ("L/16", 14, 1567), ("H/14", 14, 4262)],
)
def test_dry_run_gives_the_papers_figures(model: str, epochs: int, exaflops: float, tmp_path: Path) -> None:
    from vitcli.cli.app import run

    tree = _in_process(
        run,
        "pretrain",
        "--recipe",
        "paper-jft",
        "--model",
        model,
        "--epochs",
        str(epochs),
        "--data",
        "none",
        "--set",
        "data.images=303000000",
        "--set",
        "data.classes=18291",
        "--dry-run",
        "--json",
    )
    assert tree["train_flops"] / 1e18 == pytest.approx(exaflops, rel=0.03)
    assert tree["steps"] == round(303e6 * epochs / 4096)


def _in_process(run, *arguments: str):  # type: ignore[no-untyped-def]
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert run(list(arguments)) == 0
    return json.loads(out.getvalue())


def test_info_of_models_and_checkpoints(trained: Path) -> None:
    tree = run_vit("info", "vit-l/16", "--img-size", "384", "--json", cwd=trained).json
    assert (tree["model"], tree["params"], tree["tokens"], tree["img_size"]) == (
        "ViT-L/16",
        304_715_752,
        577,
        [384, 384],
    )
    assert tree["flops"] == 2 * tree["macs"] and tree["provenance"] is None
    tree = run_vit("info", "run", "--json", cwd=trained).json
    assert [c["name"] for c in tree["classes"]] == ["blue", "green", "red"]
    assert tree["provenance"]["steps"] == 6 and tree["provenance"]["recipe"] == "small"
    assert "trained" in run_vit("info", "run/model.safetensors", cwd=trained).out


def test_help_version_and_info_import_neither_torch_nor_datasets(trained: Path) -> None:
    script = (
        "import sys\nfrom vitcli.cli.app import run\ncode = run(sys.argv[1:])\n"
        "assert not {'torch', 'datasets', 'matplotlib', 'sklearn'} & set(sys.modules), sorted(set(sys.modules) & {'torch', 'datasets'})\nsys.exit(code)"
    )
    for arguments in (
        ["--help"],
        ["pretrain", "--help"],
        ["eval", "--help"],
        ["--version"],
        ["info", "B/16"],
        ["info", "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=trained, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "needle", "hint"),
    [
        (["pretrain", "--epoch", "3"], 2, "--epoch", "--epochs"),
        (["pretran"], 2, "pretran", "pretrain"),
        (["pretrain", "--set", "optim.lrr=1"], 2, "optim.lrr", "optim.lr"),
        (["pretrain", "--set", "optim.lr=fast"], 2, "fast", ""),
        (["pretrain", "--set", "optim.lr=-1"], 2, "optim.lr", ""),
        (["pretrain", "--model", "b16"], 2, "b16", "ViT-B/16"),
        (["pretrain", "--model", "x/16"], 2, "'x'", ""),
        (["pretrain", "--recipe", "smal"], 2, "smal", "small"),
        (["pretrain", "--epochs", "2", "--steps", "3"], 2, "one length", "--epochs"),
        (["pretrain", "--time-budget", "soon"], 2, "soon", "10m"),
        (["pretrain", "--batch-size", "2", "--set", "train.batch_size=4"], 2, "disagree", "one of them"),
        (["pretrain", "--data", "cifra10"], 3, "cifra10", "cifar10"),
        (["pretrain", "--data", "none"], 2, "none", "--dry-run"),
        (["pretrain", "--data", "user/nothing"], 3, "user/nothing", "HF_HUB_OFFLINE"),
        (["pretrain", "--config", "missing.toml"], 2, "missing.toml", "run.toml"),
        (["pretrain", "--device", ABSENT_DEVICE], 6, ABSENT_DEVICE, "cpu"),
        (["finetune"], 4, "no checkpoint", "vit pretrain"),
        (["finetune", "user/nothing", "--data", "digits"], 4, "user/nothing", "HF_HUB_OFFLINE"),
        (["eval", "missing.safetensors"], 4, "missing.safetensors", ""),
        (["eval", "--confidence"], 2, "--confidence", ""),
        (["info"], 4, "no finished run", "vit pretrain"),
    ],
)
def test_errors_name_the_thing_and_hint_at_the_way_out(
    vit: Vit, arguments: list[str], code: int, needle: str, hint: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    done = vit(*arguments, "--json")
    assert done.code == code, done.err
    lines = done.err.strip().splitlines()
    first = next(line for line in lines if line.startswith("error: "))
    assert needle in first
    assert lines[lines.index(first) + 1 :] == (
        [f"hint: {done.json['error']['hint']}"] if done.json["error"]["hint"] else []
    )
    assert hint in done.json["error"]["hint"]
    assert "Traceback" not in done.err
    error = done.json["error"]
    assert set(error) == {"code", "kind", "message", "hint"} and error["code"] == code and needle in error["message"]
    assert time.monotonic() - started < 20
    assert not (tmp_path / "runs").exists()


def test_a_bug_is_one_line_and_exit_1_unless_the_traceback_is_asked_for(trained: Path) -> None:
    script = (
        "import sys\nfrom vitcli import api\nfrom vitcli.cli.app import run\n"
        "def broken(*a, **k): raise ZeroDivisionError('oops')\napi.plan_evaluation = broken\nsys.exit(run(['eval', 'run']))"
    )
    for asked in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=trained,
            capture_output=True,
            text=True,
            env={**os.environ, "VIT_TRACEBACK": asked},
        )
        assert done.returncode == 1 and "a bug in vit: ZeroDivisionError: oops" in done.stderr
        assert ("Traceback" in done.stderr) == bool(asked)


def test_a_closed_pipe_is_quiet(trained: Path) -> None:
    script = f"set -o pipefail; {sys.executable} -m vitcli info run --json | head -c 5"
    done = subprocess.run(["bash", "-c", script], cwd=trained, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_python_m_and_no_color(trained: Path) -> None:
    done = run_vit("--version", cwd=trained)
    assert done.out.startswith("vit ") and done.code == 0
    done = run_vit("eval", "nothing", cwd=trained, env={"NO_COLOR": "1"})
    assert "\033" not in done.err


def test_quiet_says_nothing_but_the_result(vit: Vit, class_folders: Path) -> None:
    done = vit("pretrain", "--data", class_folders, *QUICK, "--quiet", "--json")
    assert done.json["steps"] == 6
    assert all(line.startswith("warning:") for line in done.err.splitlines())


def test_a_config_file_under_set_under_options(vit: Vit, class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[train]\nepochs = 9\nbatch_size = 8\n\n[optim]\nlr = 0.5\n")
    tree = vit(
        "pretrain",
        "--data",
        class_folders,
        "--config",
        "my.toml",
        "--set",
        "optim.lr=0.25",
        "--steps",
        "3",
        "--dry-run",
        "--json",
    ).json
    assert (tree["steps"], tree["config"]["train"]["batch_size"], tree["config"]["optim"]["lr"]) == (3, 8, 0.25)
    assert "epochs" not in tree["config"]["train"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_exits_75_and_the_same_command_goes_on(class_folders: Path, tmp_path: Path, number: int) -> None:
    command = [
        sys.executable,
        "-m",
        "vitcli",
        "pretrain",
        "--data",
        str(class_folders),
        "--model",
        "mu/4",
        "--steps",
        "60",
        "--batch-size",
        "16",
        "--set",
        "train.log_every_steps=1",
        "--json",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "ViT-mu-4-colours-1" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert json.loads(out)["error"]["kind"] == "interrupted"
    status = json.loads((metrics.parent / "state" / "status.json").read_text())
    assert status["status"] == "saved" and status["code"] == 75
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["resumed_from"] == status["step"]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["ViT-mu-4-colours-1"]


def test_a_time_budget_is_kept(vit: Vit, class_folders: Path) -> None:
    started = time.monotonic()
    done = vit("pretrain", "--data", class_folders, "--model", "mu/4", "--time-budget", "20s", "--json", fresh=True)
    assert done.code == 0, done.err
    assert 16 <= time.monotonic() - started <= 23
    assert done.json["steps"] > 50


def test_too_short_a_budget_is_refused_at_once(vit: Vit, class_folders: Path, tmp_path: Path) -> None:
    done = vit("pretrain", "--data", class_folders, "--time-budget", "1s")
    assert done.code == 2 and "leaves no time" in done.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_working_session_with_nothing_given(vit: Vit) -> None:
    """pretrain, finetune, eval, one after the other in an empty folder, shortened."""
    assert vit("pretrain", "--steps", "4").code == 0
    tuned = vit("finetune", "--img-size", "16", "--steps", "2")
    assert tuned.code == 0, tuned.err
    assert "newest" in vit("eval", "--json").err
    assert vit("eval", "--json").json["n"] == 359


@pytest.mark.parametrize("name", ["a" * 300, "9" * 5000, "b/" + "9" * 5000])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("pretrain --dry-run --data digits --model", 2),
        ("pretrain --dry-run --data", 3),
        ("finetune --dry-run --data digits", 4),
        ("pretrain --dry-run --data digits --init", 4),
        ("pretrain --config", 2),
        ("info", 4),
        ("predict ckpt.safetensors", 4),
        ("bench", 2),
        ("compare", 2),
        ("runs", 2),
        ("models", 2),
    ],
)
def test_a_name_longer_than_a_file_s_is_one_that_is_not_there(
    command: str, code: int, name: str, in_process: Vit
) -> None:
    done = in_process(*command.split(), name)
    assert done.code == code and "bug in vit" not in done.err and len(done.err) < 2 * len(name) + 1000, done.err
