"""Exactness of training: what may not change a run, and what goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import train_run
from vitcli import api, runs
from vitcli.config import ModelConfig
from vitcli.errors import CheckpointError, DataError, DivergedError, Interrupted, ResourceError, UsageError
from vitcli.flops import parameters
from vitcli.train import runfolder
from vitcli.train.plan import Request
from vitcli.weights.describe import describe

TESTS = Path(__file__).parents[1]

SMALL: dict[str, Any] = {
    "model": "mu/4",
    "batch_size": 16,
    "steps": 20,
    "device": "cpu",  # the bits of its weights are compared
    "precision": "fp32",
    "optim__name": "adamw",
    "model__depth": 3,
    "augment__mixup": 0.4,
    "augment__cutmix": 1.0,
    "augment__randaugment_layers": 1,
    "augment__erase": 0.25,
    "model__drop_path": 0.3,
}


def train(folders: Path, out: Path, **values: Any) -> tuple[Path, dict[str, Any]]:
    return train_run("pretrain", data=str(folders), out=str(out), **SMALL | values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(a: Path, b: Path) -> None:
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def reference(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(class_folders, tmp_path_factory.mktemp("reference") / "run")[0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_run_is_bit_equal_whatever_the_workers(
    class_folders: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    assert_equal(reference, train(class_folders, tmp_path / "run", data__workers=workers)[0])


def test_another_seed_is_another_run(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    other = weights(train(class_folders, tmp_path / "run", seed=1)[0])
    assert not torch.equal(other["head.weight"], weights(reference)["head.weight"])


def test_micro_batches_change_nothing_but_rounding(class_folders: Path, tmp_path: Path) -> None:
    sgd = {"optim__name": "sgd", "optim__lr": 0.05, "batch_size": 64}
    whole = weights(train(class_folders, tmp_path / "whole", **sgd)[0])
    parts = weights(train(class_folders, tmp_path / "parts", **sgd, train__accumulate=4)[0])
    start = weights(train(class_folders, tmp_path / "start", **sgd | {"steps": 1})[0])
    assert max(float((whole[k] - parts[k]).abs().max()) for k in whole) < 1e-5
    assert max(float((whole[k] - start[k]).abs().max()) for k in whole) > 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd", "muon"])
def test_a_killed_run_goes_on_bit_for_bit(class_folders: Path, tmp_path: Path, optimizer: str) -> None:
    values = {"optim__name": optimizer, "train__ema": 0.9, "train__log_every_steps": 1, "steps": 30}
    alone = train(class_folders, tmp_path / "alone", **values)[0]
    out = tmp_path / "killed"
    script = (
        "import json, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(TESTS)!r}); from conftest import train_run\n"
        "train_run('pretrain', data=sys.argv[1], out=sys.argv[2], **json.loads(sys.argv[3]))"
    )
    asked = json.dumps(SMALL | values | {"train__save_every_steps": 4})
    for until in (6, 15):  # two interruptions, one of them between two saves
        process = subprocess.Popen([sys.executable, "-c", script, str(class_folders), str(out), asked])
        deadline = time.monotonic() + 120
        while len(_lines(out)) < until and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the kill came too late"
    report = train(class_folders, out, **values, train__save_every_steps=4)[1]
    assert report["resumed_from"] and report["resumed_from"] >= 4
    assert_equal(alone, out)
    timing = ("seconds", "images_per_second")

    def content(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k not in timing} for line in _lines(folder)]

    assert content(alone) == content(out)


@pytest.mark.parametrize("positions", ["none", "2d", "relative", "sincos"])
def test_positions_of_every_kind_are_trained_resumed_and_moved(
    class_folders: Path, tmp_path: Path, positions: str
) -> None:
    values = {"model__positions": positions, "steps": 6, "train__save_every_steps": 3}
    alone = train(class_folders, tmp_path / "alone", **values)[0]

    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(class_folders, tmp_path / "run", **values, train__log_every_steps=1, sinks=[stop])
    assert train(class_folders, tmp_path / "run", **values)[1]["resumed_from"]
    assert_equal(alone, tmp_path / "run")
    described = describe(alone / "model.safetensors").vit
    assert described.positions == positions
    assert {k: tuple(t.shape) for k, t in weights(alone).items()} == described.shapes()
    assert not (alone / "config.json").exists()  # by which other tools would take it for a plain ViT
    moved = {"init": str(alone), "data": str(class_folders), "steps": 2, "batch_size": 4, "device": "cpu"}
    with pytest.raises(UsageError, match=r"model\.positions cannot be changed"):
        train_run("finetune", **moved, model__positions="learned")
    if positions == "relative":
        with pytest.raises(UsageError, match=r"model\.positions = relative counts patches"):
            train_run("finetune", **moved, img_size=24)
        with pytest.raises(UsageError, match="images of one size alone"):
            train(class_folders, tmp_path / "low", **values, train__low_res=0.5)
        return
    tuned, _ = train_run("finetune", **moved, img_size=24, out=str(tmp_path / "tuned"))
    assert describe(tuned / "model.safetensors").vit.grid == (6, 6)
    train(class_folders, tmp_path / "low", **values, train__low_res=0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["plain", "recompute", "fused"])
def test_blocks_that_are_computed_again_give_the_same_bits(
    class_folders: Path, tmp_path: Path, precision: str, attention: str
) -> None:
    """With DropPath and dropout, in micro-batches, and where only the second half of a run does it."""
    values = {
        "model__dropout": 0.2, "train__accumulate": 2, "steps": 6, "precision": precision, "run__attention": attention,
        "train__save_every_steps": 3, "train__log_every_steps": 1,
    }  # fmt: skip
    kept = train(class_folders, tmp_path / "kept", **values)[0]
    assert_equal(kept, train(class_folders, tmp_path / "again", **values, run__checkpointing=True)[0])

    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(class_folders, tmp_path / "half", **values, sinks=[stop])
    train(class_folders, tmp_path / "half", **values, run__checkpointing=True)
    assert_equal(kept, tmp_path / "half")


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def test_a_signal_finishes_the_step_and_saves(class_folders: Path, tmp_path: Path, reference: Path) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="SIGTERM"):
        train_run("pretrain", data=str(class_folders), out=str(out), sinks=[stop], **SMALL)
    assert runs.status(out)["status"] == "saved" and runs.status(out)["code"] == 75
    report = train(class_folders, out)[1]
    assert report["resumed_from"] == runs.status(out)["step"] - 10 == 10
    assert_equal(reference, out)


def test_a_finished_run_is_not_done_again(class_folders: Path, tmp_path: Path) -> None:
    _, first = train(class_folders, tmp_path / "run", steps=4)
    changed = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    _, second = train(class_folders, tmp_path / "run", steps=4, data__workers=0, train__accumulate=2)
    assert second == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == changed


def test_another_configuration_in_the_same_folder_is_refused_with_the_differences(
    class_folders: Path, tmp_path: Path
) -> None:
    train(class_folders, tmp_path / "run", steps=4)
    with pytest.raises(UsageError, match=r"optim\.lr: .* there, 0\.5 now"):
        train(class_folders, tmp_path / "run", steps=4, optim__lr=0.5)
    beside, _ = train(class_folders, tmp_path / "run", steps=4, optim__lr=0.5, resume="never")
    assert beside.name == "run-2"


def test_a_run_repeats_from_its_own_file(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    from vitcli.config import read_toml

    plan = api.plan(Request("pretrain", read_toml(reference / "run.toml")))
    folder, _ = api.run(plan, str(tmp_path / "again"))
    assert_equal(reference, folder)


def test_two_processes_cannot_write_into_one_folder(class_folders: Path, tmp_path: Path) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run("pretrain", data=str(class_folders), out=str(out), sinks=[stop], **SMALL)
    with runfolder.lock(out), pytest.raises(UsageError, match=rf"in use by process {os.getpid()} on "):
        train(class_folders, out)


def test_a_loss_that_is_not_a_number_stops_without_an_update(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"at step \d+ \(samples") as raised:
        train(
            class_folders,
            tmp_path / "run",
            optim__lr=1e30,
            optim__name="sgd",
            optim__clip=0.0,
            train__save_every_steps=1,
        )
    assert raised.value.code == 5
    assert runs.status(tmp_path / "run")["status"] == "failed"
    step = sorted((tmp_path / "run" / "state").glob("step-*"))[-1]
    assert (
        all(torch.isfinite(t).all() for t in load_file(step / "model.safetensors").values())
        or len(list(step.parent.glob("step-*"))) == 2
    )


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(class_folders: Path) -> None:
    with pytest.raises(ResourceError):
        train(class_folders, Path("/proc/vit-run"))


def test_too_little_space_is_found_before_the_first_step(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitcli import files

    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match="1,000 bytes free"):
        train(class_folders, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    from conftest import draw_image

    (tmp_path / "flat").mkdir()
    for index in range(4):
        draw_image(0, index).save(tmp_path / "flat" / f"{index}.png")
    with pytest.raises(DataError, match="no labels"):
        train(tmp_path / "flat", tmp_path / "run")


def test_an_unreadable_image_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    from conftest import draw_image

    for split, count in (("train", 12), ("test", 4)):
        for colour, name in enumerate(("red", "green")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                draw_image(colour, index).save(tmp_path / "data" / split / name / f"{index}.png")
    bad = tmp_path / "data" / "train" / "red" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError, match=r"red/3\.png"):
        train(tmp_path / "data", tmp_path / "run", steps=2)
    assert not (tmp_path / "run").exists()
    _, report = train(tmp_path / "data", tmp_path / "run", steps=2, data__on_bad_image="skip")
    assert any("1 unreadable training image" in warning for warning in report["warnings"])


def test_damaged_state_falls_back_to_the_older_step(class_folders: Path, tmp_path: Path, reference: Path) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 10:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run("pretrain", data=str(class_folders), out=str(out), sinks=[stop], train__save_every_steps=3, **SMALL)
    newest = sorted((out / "state").glob("step-*"))[-1]
    file = newest / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    _, report = train(class_folders, out)
    assert report["resumed_from"] == 9
    assert any("sha256" in warning for warning in report["warnings"])
    assert_equal(reference, out)


def test_a_log_that_fails_is_one_warning(class_folders: Path, tmp_path: Path) -> None:
    def broken(event: str, fields: dict[str, Any]) -> None:
        if event == "step":
            raise RuntimeError("the tracker is gone")

    _, report = train_run(
        "pretrain", data=str(class_folders), out=str(tmp_path / "run"), sinks=[broken], **SMALL | {"steps": 3}
    )
    assert sum("the tracker is gone" in w for w in report["warnings"]) == 1


def test_finetune_freezes_the_backbone(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    folder, report = train_run(
        "finetune", data=str(class_folders), init=str(reference), out=str(tmp_path / "run"), steps=3, freeze="backbone"
    )
    before, after = weights(reference), weights(folder)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"head.weight", "head.bias"}
    full = 6 * api.plan(_request(class_folders, reference)).as_json()["macs"] * report["images_seen"]
    assert report["train_flops"] < 0.5 * full


def _request(folders: Path, init: Path) -> Any:
    return Request("finetune", {"data.source": str(folders)}, str(init))


def test_finetune_at_another_size_interpolates_and_keeps_the_head(
    class_folders: Path, reference: Path, tmp_path: Path
) -> None:
    folder, _ = train_run(
        "finetune",
        data=str(class_folders),
        init=str(reference),
        out=str(tmp_path / "run"),
        steps=1,
        img_size="20x24",
        optim__lr=1e-12,
    )
    assert weights(folder)["pos_embed"].shape[1] == 5 * 6 + 1
    assert torch.allclose(weights(folder)["head.weight"], weights(reference)["head.weight"], atol=1e-6)
    assert api.evaluate(str(folder))["n"] == 24


def test_finetune_refuses_what_the_checkpoint_decides(class_folders: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.depth cannot be changed"):
        train_run("finetune", data=str(class_folders), init=str(reference), out=str(tmp_path / "run"), model__depth=5)
    with pytest.raises(UsageError, match="not a multiple of the patch size"):
        train_run("finetune", data=str(class_folders), init=str(reference), out=str(tmp_path / "run"), img_size=13)
    with pytest.raises(CheckpointError):
        train_run("finetune", data=str(class_folders), init=str(tmp_path / "none.safetensors"))


def test_evaluation_during_training_is_logged_and_changes_nothing(
    class_folders: Path, reference: Path, tmp_path: Path
) -> None:
    folder, _ = train(class_folders, tmp_path / "run", train__eval_every_steps=6)
    assert [line["step"] for line in _lines(folder) if "eval" in line] == [6, 12, 18, 20]
    assert_equal(reference, folder)


def test_held_out_images_are_looked_at_as_time_goes_by_and_change_nothing(
    class_folders: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = train(class_folders, tmp_path / "seldom", train__eval_every_seconds=1000)
    assert [line["step"] for line in _lines(folder) if "eval" in line] == [20]
    monkeypatch.setattr("vitcli.train.scoring._GLANCE_PART", 0)
    folder, _ = train(class_folders, tmp_path / "often", train__eval_every_seconds=1e-9)
    assert [line["step"] for line in _lines(folder) if "eval" in line] == [*range(1, 20), 20]
    assert_equal(reference, folder)
    folder, _ = train(class_folders, tmp_path / "never", train__eval_every_seconds=0)
    assert [line["step"] for line in _lines(folder) if "eval" in line] == [20]


def test_a_look_at_held_out_images_takes_a_twentieth_of_the_time(class_folders: Path, tmp_path: Path) -> None:
    folder, _ = train(class_folders, tmp_path / "run", train__eval_every_seconds=1e-9)
    looks = [line for line in _lines(folder) if "eval" in line][:-1]
    assert len(looks) <= 2, "an evaluation costs as much as some steps, and there are twenty of them"


def test_a_finished_run_keeps_one_copy_of_its_weights(class_folders: Path, tmp_path: Path) -> None:
    folder, report = train(class_folders, tmp_path / "run", train__save_every_steps=5)
    assert {p.name for p in (folder / "state").iterdir()} == {"identity.json", "status.json", "lock"}
    assert train(class_folders, folder, train__save_every_steps=5)[1] == report, "it is known to be finished"
    kept, _ = train(class_folders, tmp_path / "kept", train__keep_state=True)
    assert list((kept / "state").glob("step-*"))
    blob = bytearray((folder / "model.safetensors").read_bytes())
    blob[-1] ^= 8
    (folder / "model.safetensors").write_bytes(blob)
    again, anew = train(class_folders, folder, train__save_every_steps=5)
    assert anew["resumed_from"] is None and anew["steps"] == 20
    assert_equal(kept, again)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_any_dimensions_is_trained_and_goes_on(class_folders: Path, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 5))
    dimensions = {
        "heads": heads,
        "width": heads * int(random.integers(1, 9)),
        "mlp": int(random.integers(1, 70)),
        "depth": int(random.integers(1, 5)),
    }
    values = {f"model__{name}": value for name, value in dimensions.items()} | {
        "steps": 2,
        "augment__randaugment_layers": 0,
    }
    folder, _ = train(class_folders, tmp_path / "run", **values)
    described = describe(folder / "model.safetensors").model
    assert isinstance(described, ModelConfig)
    assert {name: getattr(described, name) for name in dimensions} == dimensions
    assert parameters(described) == sum(t.numel() for t in weights(folder).values())
    assert weights(folder).keys() == described.shapes().keys()
    narrow, _ = train_run(
        "finetune", init=str(folder), data=str(class_folders), out=str(tmp_path / "tuned"), steps=1, batch_size=4,
        device="cpu",
    )  # fmt: skip
    assert describe(narrow / "model.safetensors").model.spelled() == described.spelled()


def test_balanced_sampling_and_fraction(class_folders: Path, tmp_path: Path) -> None:
    _, report = train(class_folders, tmp_path / "run", data__balanced=True, data__fraction=0.5, steps=3)
    assert report["images_seen"] == 48


def test_a_time_budget_that_is_used_up_is_no_end_of_a_run_that_goes_on(class_folders: Path, tmp_path: Path) -> None:
    """Starting anew takes longer than what was left of the budget."""

    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    values = {
        "data.source": str(class_folders),
        "model.name": "mu/4",
        "train.batch_size": 16,
        "train.time_budget": 60.0,
    }
    out = str(tmp_path / "run")
    with pytest.raises(Interrupted):
        api.run(api.plan(Request("pretrain", values)), out, sinks=[stop])
    report = api.run(api.plan(Request("pretrain", values, started=time.monotonic() - 59.5)), out)[1]
    assert report["resumed_from"] == 10 and report["steps"] < 100 and report["eval"]["n"] == 24


def test_a_checkpoint_is_measured_again_as_its_run_measured_it(class_folders: Path, tmp_path: Path) -> None:
    folder, report = train(class_folders, tmp_path / "run", eval__views=2)
    once, again = (
        api.evaluate(str(folder), device="cpu", precision="fp32", overrides=o) for o in ({"eval.views": 1}, {})
    )
    assert again["loss"] == pytest.approx(report["eval"]["loss"], abs=1e-6) and once["loss"] != again["loss"]
