"""Runs of every objective through the command line: killed and resumed, in micro-batches, one after the other."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Vit, draw_image, train_run
from processes import SLOW_STEPS, Started, assert_same_run, metrics, run, saved_steps
from vitcli.train.runlog import read_lines

LABEL_FREE = ("masked-patch", "mae", "visreg")
EVERY = (*LABEL_FREE, "distill", "unlabelled")
MEANS = ("masked-patch", "mae", "distill", "unlabelled")
"""Those whose loss is a mean over images."""


@pytest.fixture(scope="module")
def teacher(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path_factory.mktemp("taught") / "run"), model="ViT-w16d2h2/4",
        steps=40, batch_size=16, device="cpu", precision="fp32", model__img_size=(12, 12), optim__name="adamw",
        run__threads=1, data__workers=0, train__low_res=0.0,
    )  # fmt: skip
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New images without labels."""
    folder = tmp_path_factory.mktemp("pool") / "images"
    folder.mkdir()
    for index in range(40):
        draw_image(index % 3, 5000 + index).save(folder / f"{index:03}.png")
    return folder


def command(
    kind: str, data: Path, teacher: Path, pool: Path, *more: object, batch: int = 8, steps: int = 12, out: str = "run"
) -> list[object]:
    """A run of a tiny model that uses what could differ: crops, mixing, DropPath, the average of the weights."""
    values = {
        "model.drop_path": 0.2,
        "augment.crop": "resized",
        "augment.mixup": 0.4 if kind in ("distill", "unlabelled") else 0,
        "train.ema": 0.9,
        "train.log_every_steps": 1,
        "train.keep_state": "true",
        "train.eval_every_seconds": 0,
        "train.low_res": 0.4,
        "run.threads": 1,
        "data.workers": 0,
        "optim.name": "adamw",
    }
    own: dict[str, list[object]] = {
        "distill": ["--objective", "distill", "--teacher", teacher],
        "unlabelled": ["--unlabelled", pool, "--teacher", teacher, "--set", "pseudo.images=20"],
        "visreg": ["--objective", "visreg", "--set", "visreg.slices=64"],
    }
    size = ["--model", "ViT-w16d2h2/3", "--img-size", "12", "--batch-size", batch, "--steps", steps]
    return [
        "pretrain", "--data", data, *own.get(kind, ["--objective", kind]), *size, "--device", "cpu", "--precision", "fp32",
        *(f"--set={key}={value}" for key, value in values.items()), "--out", out, "--json", *more,
    ]  # fmt: skip


# --- killed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_a_run_that_is_killed_goes_on_bit_for_bit(
    kind: str, class_folders: Path, teacher: Path, pool: Path, tmp_path: Path
) -> None:
    def words(out: str) -> list[object]:
        return command(kind, class_folders, teacher, pool, "--set=train.save_every_steps=2", out=out)

    process = Started(words("killed"), tmp_path, before=SLOW_STEPS)
    process.until(lambda: (saved_steps(tmp_path / "killed") or [0])[-1] >= 4)
    process.send(signal.SIGKILL)
    process.wait()
    resumed = run(words("killed"), tmp_path)
    assert resumed.code == 0 and 4 <= resumed.json["resumed_from"] < 12, resumed.err
    whole = run(words("whole"), tmp_path)
    assert whole.code == 0 and whole.json["resumed_from"] is None, whole.err
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert resumed.json["train_flops"] == whole.json["train_flops"] and resumed.json["eval"] == whole.json["eval"]
    assert any("monitor" in line for line in metrics(tmp_path / "whole")) == (kind in LABEL_FREE)
    if kind == "unlabelled":
        one, other = (load_file(tmp_path / name / "pseudo_labels.safetensors") for name in ("killed", "whole"))
        assert torch.equal(one["probabilities"], other["probabilities"])


# --- micro-batches -----------------------------------------------------------------------------------------


def in_parts(kind: str, data: Path, teacher: Path, pool: Path, in_process: Vit, parts: int) -> dict[str, torch.Tensor]:
    """The weights after three steps, the objective's own among them."""
    more = (f"--set=train.accumulate={parts}", "--set=optim.name=sgd", "--set=optim.lr=0.05", "--set=train.low_res=0")
    done = in_process(*command(kind, data, teacher, pool, *more, batch=64, steps=3, out=f"run-{parts}"))
    assert done.code == 0, done.err
    (step,) = sorted(Path(f"run-{parts}", "state").glob("step-*"))[-1:]
    groups = [load_file(file) for file in (step / "model.safetensors", step / "objective.safetensors") if file.exists()]
    return {f"{index}/{name}": tensor for index, group in enumerate(groups) for name, tensor in group.items()}


@pytest.mark.parametrize("kind", MEANS)
def test_micro_batches_change_nothing_where_the_loss_is_a_mean_over_images(
    kind: str, class_folders: Path, teacher: Path, pool: Path, in_process: Vit
) -> None:
    one, four = (in_parts(kind, class_folders, teacher, pool, in_process, parts) for parts in (1, 4))
    assert one.keys() == four.keys() and any(key.startswith("1/") for key in one) == (kind in LABEL_FREE)
    assert max(float((one[key] - four[key]).abs().max()) for key in one) <= 1e-5
    lines = [read_lines(Path(f"run-{parts}", "metrics.jsonl")) for parts in (1, 4)]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        numbers = {k for k in a if isinstance(a[k], float) and k not in ("seconds", "images_per_second")}
        assert {k: a[k] for k in numbers} == pytest.approx({k: b[k] for k in numbers}, rel=1e-3, abs=1e-5)


def test_micro_batches_of_images_that_are_compared_are_warned_of(
    class_folders: Path, teacher: Path, pool: Path, in_process: Vit
) -> None:
    for parts in (1, 4):
        words = command("visreg", class_folders, teacher, pool, batch=64, steps=2, out=f"run-{parts}")
        done = in_process(*words, f"--set=train.accumulate={parts}")
        assert done.code == 0, done.err
        said = [text for text in done.json["warnings"] if "micro-batches" in text]
        assert len(said) == (parts > 1)
        assert not said or ("visreg" in said[0] and "16" in said[0])


# --- reports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low_res"), [("masked-patch", 0), ("mae", 1), ("visreg", 0), ("distill", 1), ("unlabelled", 1)]
)
def test_the_plan_says_what_the_report_counts(
    kind: str, low_res: int, class_folders: Path, teacher: Path, pool: Path, in_process: Vit
) -> None:
    """Operations of decoder, views and teacher in both; no scores where nothing was learned from labels. Of 25 steps images grow
    after the ninth, so that no step is counted in part.
    """
    words = command(kind, class_folders, teacher, pool, f"--set=train.low_res={low_res}", batch=16, steps=25)
    plan = in_process(*words, "--dry-run")
    assert plan.code == 0 and not Path("run").exists(), plan.err
    done = in_process(*words)
    assert done.code == 0, done.err
    report = json.loads(Path("run", "report.json").read_text())
    assert done.json == report and report["train_flops"] == plan.json["train_flops"] > 0
    assert report["images_seen"] == plan.json["images_seen"] == 400
    assert (report["eval"] is None) == (kind in LABEL_FREE)
    assert Path("run", "reconstructions.png").exists() == (kind == "mae")
    assert (plan.json["data"]["classes"] == 0) == (kind in LABEL_FREE)
    section = {"unlabelled": "pseudo"}.get(kind, kind)
    assert plan.json["config"][section] and f"[{section}]" in Path("run", "run.toml").read_text()
    assert [part["name"] for part in plan.json["data"]["splits"]][:1] == ["train"]
    again = in_process("pretrain", "--config", "run/run.toml", "--out", "again", "--json")
    assert again.code == 0, again.err
    one, other = (load_file(Path(name, "model.safetensors")) for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one), "run.toml repeats the run"


# --- one after the other -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LABEL_FREE)
def test_what_was_trained_goes_on_without_labels_and_is_fine_tuned_again(
    kind: str, class_folders: Path, teacher: Path, in_process: Vit
) -> None:
    """A classifier, whose head is left out, then an objective without labels, then a new head."""
    short: list[object] = [
        "--data",
        class_folders,
        "--batch-size",
        16,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--json",
    ]
    short += ["--set", "run.threads=1", "--set", "data.workers=0", "--set", "train.log_every_steps=1"]
    words = ("pretrain", "--init", teacher, "--objective", kind, "--set", "optim.lr=0.0001", *short)
    further = in_process(*words, "--steps", "1", "--out", "further")
    assert further.code == 0, further.err
    assert "head left out" in further.err and further.json["eval"] is None
    before, after = load_file(teacher), load_file("further/model.safetensors")
    assert before.keys() - after.keys() == {"head.weight", "head.bias"} and not after.keys() - before.keys()
    moved = max(float((before[name] - after[name]).abs().max()) for name in after)
    assert 0 < moved < 0.01, "it began with the teacher's weights"
    scores = in_process("eval", "further", "--data", class_folders, "--json")
    assert scores.code == 4, "it has no head"
    other = in_process(*words, "--steps", "1", "--out", "other", "--set", "model.width=32")
    assert other.code == 2 and "model.width cannot be changed" in other.err
    tuned = in_process("finetune", "further", *short, "--steps", "6", "--out", "tuned")
    assert tuned.code == 0 and tuned.json["eval"]["n"] == 24, tuned.err
    assert tuned.json["eval"]["top1"] > 0.6
    scores = in_process("eval", "tuned", "--precision", "fp32", "--json")
    assert scores.code == 0 and scores.json["top1"] == tuned.json["eval"]["top1"]
    info = in_process("info", "tuned", "--json").json
    assert [step.get("objective") for step in info["provenance"]["ancestry"]] == [kind, None]
