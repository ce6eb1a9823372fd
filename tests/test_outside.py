"""An objective, a family, a metric, a probe, a layout, a log sink and a command, each added without a line changed in src.

What is added (tests/outside) is registered in processes of their own, so that no other test sees it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import Result, train_run
from processes import Started, run
from vitcli.train.runlog import read_lines

TESTS = Path(__file__).parent
TINY = ("--batch-size", "16", "--set", "run.threads=1", "--set", "data.workers=0", "--set", "train.log_every_steps=1")
SMALL_VIT = ("--model", "ViT-w16d2h2/4", "--img-size", "12", "--set", "model.drop_path=0.2")
GUESS = ("--objective", "guess", "--set", "guess.hidden=8", "--set", "train.ema=0.5", "--set", "train.accumulate=2")


ADDED = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    "from outside import family, measures, objective\nfamily.add(); measures.add(); objective.add()\n"
)


def vit(*arguments: object, cwd: Path, before: str = "") -> Result:
    return run(arguments, cwd, before=ADDED + before)


def done(*arguments: object, cwd: Path, before: str = "") -> Any:
    """The JSON of a command that must succeed."""
    result = vit(*arguments, "--json", cwd=cwd, before=before)
    assert result.code == 0, result.err
    return result.json


@pytest.fixture(scope="module")
def unlabelled(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images in one folder."""
    folder = tmp_path_factory.mktemp("flat") / "images"
    folder.mkdir()
    for path in sorted((class_folders / "train").glob("*/*.png")):
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    return folder


# --- an objective ------------------------------------------------------------------------------------------


def guess(data: Path, out: str, *more: object) -> tuple[object, ...]:
    return (
        "pretrain",
        "--data",
        data,
        "--steps",
        12,
        *TINY,
        *SMALL_VIT,
        *GUESS,
        "--set",
        "train.keep_state=true",
        "--out",
        out,
        *more,
    )


@pytest.fixture(scope="module")
def guessed(unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guess")
    report = done(*guess(unlabelled, "run"), cwd=folder)
    assert report["eval"] is None and report["steps"] == 12
    return folder / "run"


def test_an_objective_learns_from_a_folder_without_labels(guessed: Path, unlabelled: Path, tmp_path: Path) -> None:
    lines = [line for line in read_lines(guessed / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 12 and all(line["spread"] > 0 and 0 <= line["hidden"] <= 1 for line in lines)
    assert min(line["loss"] for line in lines) < lines[0]["loss"]
    assert "[guess]\nhidden = 8\n" in (guessed / "run.toml").read_text()
    weights = load_file(guessed / "model.safetensors")
    assert not any(name.startswith(("head", "objective", "teacher")) for name in weights)
    plan = done(*guess(unlabelled, "plan", "--dry-run"), cwd=tmp_path)
    assert plan["data"]["classes"] == 0 and plan["config"]["guess"]["hidden"] == 8
    report = json.loads((guessed / "report.json").read_text())
    assert plan["train_flops"] == report["train_flops"], "decoder and teacher counted"
    again = done(*guess(unlabelled, str(guessed)), cwd=tmp_path)
    assert again == report, "the same command again finds it finished"
    other = vit(*guess(unlabelled, str(guessed), "--set", "guess.mask=0.5"), cwd=tmp_path)
    assert other.code == 2 and "guess.mask" in other.err, "its settings are compared"


def test_the_state_of_an_objective_is_saved_under_names_of_its_own(guessed: Path) -> None:
    (step,) = sorted((guessed / "state").glob("step-*"))[-1:]
    model, objective = (load_file(step / f"{name}.safetensors") for name in ("model", "objective"))
    optimizer = load_file(step / "optimizer.safetensors")
    assert "blocks.0.weight" in objective and "centre" in objective and "teacher.pos_embed" in objective
    moments = {key.rpartition("/")[0] for key in optimizer}
    trained = {f"objective.{name}" for name in objective if name.startswith(("blocks.", "unused"))}
    assert moments == set(model) | trained, "each parameter has its moments, and the teacher none"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_an_objective_that_is_killed_is_resumed_bit_for_bit(
    guessed: Path, unlabelled: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    slow = (
        "import time\nfrom vitcli.train import loop\nstep = loop.train_step\n"
        "def slowly(*arguments):\n    time.sleep(0.1)\n    return step(*arguments)\nloop.train_step = slowly"
    )
    command = guess(unlabelled, "run", "--set", "train.save_every_steps=2")
    process = Started(command, tmp_path, before=ADDED + slow)
    process.until((tmp_path / "run" / "state" / "step-000000006").exists)
    process.send(ending)
    process.wait()
    report = done(*command, cwd=tmp_path)
    assert 6 <= report["resumed_from"] < 12
    for name in ("model.safetensors", "state/step-000000012/objective.safetensors"):
        one, other = load_file(guessed / name), load_file(tmp_path / "run" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (tmp_path / "run", guessed))
    assert [line.get("spread") for line in ours] == [line.get("spread") for line in theirs]


def test_what_an_objective_learned_is_fine_tuned(guessed: Path, class_folders: Path, tmp_path: Path) -> None:
    report = done("finetune", guessed, "--data", class_folders, "--steps", 4, *TINY, "--out", "run", cwd=tmp_path)
    assert report["eval"]["n"] == 24
    assert vit("eval", guessed, "--data", class_folders, cwd=tmp_path).code == 4, "it has no head"
    probed = done("probe", guessed, "--data", class_folders, cwd=tmp_path)
    assert probed["results"][0]["top1"] > 0.5


def test_metrics_of_an_objective_are_means_over_micro_batches(unlabelled: Path, tmp_path: Path) -> None:
    hidden = []
    for parts in (1, 4):
        more = ("--steps", "1", "--set", f"train.accumulate={parts}", "--set", "model.drop_path=0")
        words = [w for w in guess(unlabelled, f"run{parts}") if w not in ("train.accumulate=2",)]
        words = [w for w, after in zip(words, [*words[1:], ""], strict=True) if w != "--set" or "=" in str(after)]
        done(*words, *more, cwd=tmp_path)
        lines = read_lines(tmp_path / f"run{parts}" / "metrics.jsonl")
        (line,) = (line for line in lines if "loss" in line)
        hidden.append(line["hidden"])
    assert hidden[0] == pytest.approx(hidden[1], abs=1e-6) and 0 < hidden[0] < 1


def test_an_objective_without_labels_asks_for_none_and_says_what_cannot_be(unlabelled: Path, tmp_path: Path) -> None:
    classify = vit("pretrain", "--data", unlabelled, "--steps", 2, cwd=tmp_path)
    assert classify.code == 3 and "has no labels" in classify.err
    for words, named in (
        (("--set", "data.balanced=true"), "data.balanced"),
        (("--set", "augment.views=1"), "learns from 2 views"),
        (("--set", "guess.hidden=0"), "must be"),
        (("--set", "guess.hiden=3"), "guess.hidden"),
    ):
        refused = vit(*guess(unlabelled, "run"), *words, cwd=tmp_path)
        assert refused.code == 2 and named in refused.err, refused.err
    swept = vit("sweep", *guess(unlabelled, "sw"), "--grid", "optim.lr=0.1,0.2", cwd=tmp_path)
    assert swept.code == 2 and "a sweep compares top-1" in swept.err
    unknown = vit("pretrain", "--objective", "gues", "--data", unlabelled, cwd=tmp_path)
    assert unknown.code == 2 and "guess" in unknown.err


# --- a family ----------------------------------------------------------------------------------------------


def test_a_family_trains_resumes_fine_tunes_evaluates_saves_and_is_shown(class_folders: Path, tmp_path: Path) -> None:
    command = (
        "pretrain",
        "--data",
        class_folders,
        "--model",
        "mlp-24",
        "--steps",
        60,
        *TINY,
        "--set",
        "optim.name=adamw",
    )
    plan = done(*command, "--dry-run", cwd=tmp_path)
    parameters = 24 * (3 * 12 * 12 + 1) + 25 * 3
    assert (plan["model"], plan["params"], plan["config"]["model"]["family"]) == ("MLP-24", parameters, "mlp")
    stopped = vit(
        *command, "--out", "run", cwd=tmp_path,
        before="from vitcli.train import loop\nimport signal\nstep, calls = loop.train_step, [0]\n"
        "def stop(*a):\n    calls[0] += 1\n    if calls[0] == 9: signal.raise_signal(signal.SIGTERM)\n    return step(*a)\n"
        "loop.train_step = stop",
    )  # fmt: skip
    assert stopped.code == 75, stopped.err
    report = done(*command, "--out", "run", cwd=tmp_path)
    whole = done(*command, "--out", "whole", cwd=tmp_path)
    assert report["resumed_from"] == 9 and report["eval"] == whole["eval"] and report["eval"]["top1"] > 0.9
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert done("eval", "run", cwd=tmp_path)["top1"] == report["eval"]["top1"]
    rows = vit("predict", "run", class_folders / "test" / "red", "--json", cwd=tmp_path).out.splitlines()
    assert sum(json.loads(row)["label"] == "red" for row in rows) >= 6
    info = done("info", "run", cwd=tmp_path)
    assert (info["model"], info["params"], info["tokens"]) == ("MLP-24", parameters, 1)
    assert done("info", "mlp-7", "--img-size", 8, cwd=tmp_path)["params"] == 7 * 193 + 8 * 1000
    tuned = done(
        "finetune",
        "run",
        "--data",
        class_folders,
        "--img-size",
        16,
        "--steps",
        6,
        *TINY,
        "--out",
        "tuned",
        cwd=tmp_path,
    )
    assert tuned["eval"]["top1"] > 0.9, "the head is kept, and the weights resized"
    assert done("bench", "mlp-8", "--img-size", 8, "--set", "bench.seconds=0.1", cwd=tmp_path)["results"]


def test_what_a_family_has_not_is_an_error_that_says_so(class_folders: Path, tmp_path: Path) -> None:
    command = ("pretrain", "--data", class_folders, "--model", "mlp-8", "--steps", 2, *TINY, "--out", "run")
    refused = vit(*command, "--set", "train.low_res=0.5", cwd=tmp_path)
    assert refused.code == 2 and "one size alone" in refused.err
    refused = vit(*command, "--set", "model.depth=3", cwd=tmp_path)
    assert refused.code == 2 and "model.depth does not concern" in refused.err
    assert done(*command, cwd=tmp_path)["steps"] == 2
    for inside, why in (("attn-distance", "no Vision Transformer"), ("posemb-similarity", "no Vision Transformer"),
                        ("filters", "no filters of pixels")):  # fmt: skip
        refused = vit(inside, "run", cwd=tmp_path)
        assert refused.code == 4 and why in refused.err, refused.err
    refused = vit("export", "run", "out", "--format", "timm", cwd=tmp_path)
    assert refused.code == 4 and "no models of the family mlp" in refused.err
    unregistered = subprocess.run(
        [sys.executable, "-m", "vitcli", "info", "run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert unregistered.returncode == 4 and "unknown family" in unregistered.stderr
    changed = vit("finetune", "run", "--data", class_folders, "--steps", 1, "--set", "model.hidden=9", cwd=tmp_path)
    assert changed.code == 2 and "model.hidden cannot be changed" in changed.err


# --- measures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "run"
    report = done(
        "pretrain", "--data", class_folders, "--steps", 5, *TINY, *SMALL_VIT, "--set", "model.pool=cls", "--out", folder,
        cwd=folder.parent,
    )  # fmt: skip
    assert 0 < report["eval"]["brier"] < 2
    return folder


def test_a_metric_stands_in_every_report(trained: Path, tmp_path: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    measured = done("eval", trained, cwd=tmp_path)
    assert measured["brier"] == pytest.approx(report["eval"]["brier"], rel=1e-6)
    assert "| brier |" in (trained / "README.md").read_text()
    assert done("info", trained, cwd=tmp_path)["scores"]["brier"] == report["eval"]["brier"]
    assert read_lines(trained / "metrics.jsonl")[-1]["eval"]["brier"] == report["eval"]["brier"]


def test_a_probe_is_a_method(trained: Path, tmp_path: Path) -> None:
    tree = done("probe", trained, "--method", "nearest-mean", cwd=tmp_path)
    assert tree["method"] == "nearest-mean" and tree["results"][0]["n"] == 24 and tree["results"][0]["top1"] > 0.5
    assert "nearest-mean" in vit("probe", trained, "--method", "nearest-mean", cwd=tmp_path).out
    assert vit("probe", trained, "--method", "nearest", cwd=tmp_path).code == 2


def test_a_layout_is_a_table(trained: Path, class_folders: Path, tmp_path: Path) -> None:
    names = {
        "patch_embed.proj": "PATCH", "pos_embed": "POSITIONS", "cls_token": "CLASS", "blocks.": "LAYER", "norm1": "NORM1",
        "attn.qkv": "QKV", "attn.proj": "OUT", "norm2": "NORM2", "mlp.fc1": "UP", "mlp.fc2": "DOWN", "norm.": "NORM.",
        "head.": "HEAD.",
    }  # fmt: skip
    theirs = {}
    for name, tensor in load_file(trained / "model.safetensors").items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        theirs[name] = tensor
    save_file(theirs, tmp_path / "theirs.safetensors")
    (tmp_path / "names.txt").write_text("blue\ngreen\nred\n")
    settings = [
        f"--set=eval.{k}" for k in ("mean=0.5,0.5,0.5", "std=0.5,0.5,0.5", "resize=square", "crop=1", "views=2")
    ]
    words = ("--data", class_folders, "--set", "model.heads=2", "--set", "model.gelu=tanh")
    ours = done("eval", trained, "--precision", "fp32", *settings, cwd=tmp_path)
    other = done(
        "eval", "theirs.safetensors", *words, "--labels", "names.txt", "--precision", "fp32", *settings, cwd=tmp_path
    )
    assert done("info", "theirs.safetensors", cwd=tmp_path)["layout"] == "UPPER"
    assert other["loss"] == pytest.approx(ours["loss"], abs=1e-5)


def test_a_command_is_a_function(tmp_path: Path) -> None:
    assert done("count", "seven", cwd=tmp_path) == {"letters": 5}
    assert "Count the letters" in vit("--help", cwd=tmp_path).out


def test_a_sink_hears_a_run(class_folders: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), model="mu/4", steps=3, batch_size=16,
        train__log_every_steps=1, sinks=[lambda event, fields: heard.append((event, fields))],
    )  # fmt: skip
    assert [fields["step"] for event, fields in heard if event == "step"] == [1, 2, 3]
    assert {"note", "eval", "saved"} <= {event for event, _ in heard}
