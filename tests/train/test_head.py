"""A new head that starts as a linear probe, and the choice between it and the fine-tuned model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from conftest import draw_image, train_run
from vitcli import api
from vitcli.api import load
from vitcli.config import RunConfig
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.features import Features, features_of
from vitcli.evaluate.inference import Inference
from vitcli.machine import set_up
from vitcli.train import scoring, selection
from vitcli.train.head import balanced, better_beyond_noise

TESTS = Path(__file__).parents[1]

QUICK: dict[str, Any] = {"batch_size": 16, "steps": 6, "device": "cpu", "precision": "fp32"}
KEPT: dict[str, Any] = {"train__keep_state": True}


@pytest.fixture(scope="module")
def other_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes that the checkpoint does not know."""
    root = tmp_path_factory.mktemp("others") / "others"
    for split, count, offset in (("train", 30, 0), ("test", 10, 1000)):
        for colour, name in ((3, "yellow"), (4, "violet")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw_image(colour, offset + index, noise=90).save(folder / f"{index:03}.png")
    return root


@pytest.fixture(scope="module")
def parent(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "run"
    return train_run("pretrain", data=str(class_folders), out=str(folder), model="mu/4", **QUICK)[0]


def tune(parent: Path, data: Path, out: Path, **values: Any) -> tuple[Path, dict[str, Any]]:
    return train_run("finetune", init=str(parent), data=str(data), out=str(out), **QUICK | values)


def test_training_starts_from_the_probe(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    sinks = [lambda event, fields: notes.append(fields.get("text", ""))]
    folder, report = tune(parent, other_folders, tmp_path / "run", optim__lr=1e-9, optim__muon_lr=1e-9, sinks=sinks)
    assert any(note.startswith("head: a linear probe of 48 images with l2") for note in notes)
    assert report["eval"]["top1"] > 0.9  # six steps at no rate to speak of: it is the probe that knows the classes
    zero = tune(parent, other_folders, tmp_path / "zero", optim__lr=1e-9, optim__muon_lr=1e-9, train__head="zero")[1]
    assert zero["eval"]["loss"] == pytest.approx(0.6931, abs=1e-3) and "selection" not in zero
    own, theirs = load_file(folder / "model.safetensors"), load_file(parent / "model.safetensors")
    torch.testing.assert_close(own["blocks.0.mlp.fc1.weight"], theirs["blocks.0.mlp.fc1.weight"])


def test_the_probe_is_kept_where_tuning_spoils_it(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    folder, report = tune(
        parent, other_folders, tmp_path / "run", optim__name="adamw", optim__lr=1.0, optim__clip=0.0, steps=12
    )
    selection = report["selection"]
    assert selection["kept"] == "probe" and selection["n"] == 12
    assert selection["dev_top1"]["probe"] > max(selection["dev_top1"][k] for k in ("average", "finetuned"))
    assert any("the linear probe is kept" in text for text in report["warnings"])
    own, theirs = load_file(folder / "model.safetensors"), load_file(parent / "model.safetensors")
    assert all(torch.equal(own[k], theirs[k]) for k in theirs if not k.startswith("head."))
    assert report["eval"]["top1"] > 0.9
    assert api.evaluate(str(folder), device="cpu")["top1"] == report["eval"]["top1"]


def test_the_mean_is_that_of_the_tuned_weights_and_the_probe_of_all_training_images(
    parent: Path, other_folders: Path, tmp_path: Path
) -> None:
    folder, report = tune(parent, other_folders, tmp_path / "run", optim__lr=1e-4, train__dev=0.2, **KEPT)
    assert report["selection"]["kept"] == "average"
    step = folder / "state" / "step-000000006"
    tuned, before = load_file(step / "model.safetensors"), load_file(parent / "model.safetensors")
    without_dev, whole = (load_file(step / f"probe-{part}.safetensors") for part in ("head", "whole"))
    assert not torch.equal(without_dev["head.weight"], whole["head.weight"])
    given = load_file(folder / "model.safetensors")
    assert given.keys() == tuned.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, (tuned[name] + {**before, **whole}[name]) / 2)


def test_better_beyond_noise_counts_only_the_images_on_which_two_differ() -> None:
    def right(*parts: tuple[int, bool]) -> NDArray[np.bool_]:
        return np.concatenate([np.full(n, value) for n, value in parts])

    one = right((9, True), (5, False), (86, True))
    other = right((9, False), (5, True), (86, True))
    assert not better_beyond_noise(one, other), "95 against 91 of 100, 9 images won and 5 lost: chance does that"
    assert better_beyond_noise(right((9, True), (1, False), (90, True)), right((9, False), (1, True), (90, True)))
    assert not better_beyond_noise(one, one) and not better_beyond_noise(other, one)
    assert better_beyond_noise(right((3, True)), right((3, False)))


def test_the_dev_part_is_not_trained_on(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    planned = api.plan(
        api.Request("finetune", {"data.source": str(other_folders), "train.steps": 1, "train.dev": 0.2}, str(parent))
    )
    assert planned.train is not None and planned.dev is not None
    assert (len(planned.train), len(planned.dev)) == (48, 12)
    assert not set(planned.train.rows) & set(planned.dev.rows)
    splits = planned.as_json()["data"]["splits"]
    assert splits == [{"name": "train", "rows": 48}, {"name": "dev", "rows": 12}, {"name": "test", "rows": 20}]


def test_a_run_can_report_on_the_dev_part(class_folders: Path, tmp_path: Path) -> None:
    values = {"train__dev": 0.25, "train__report_on": "dev", "model": "mu/4", **QUICK}
    report = train_run("pretrain", data=str(class_folders), out=str(tmp_path / "run"), **values)[1]
    assert (report["eval"]["split"], report["eval"]["n"]) == ("dev", 18)
    with pytest.raises(UsageError, match="needs a dev part"):
        train_run("pretrain", data=str(class_folders), train__report_on="dev", out=str(tmp_path / "b"), **QUICK)
    with pytest.raises(DataError, match="cannot be parted"):
        train_run("pretrain", data=str(class_folders), train__dev=0.001, out=str(tmp_path / "c"), **QUICK)


def test_a_kept_head_is_not_fitted_anew(parent: Path, class_folders: Path, tmp_path: Path) -> None:
    report = tune(parent, class_folders, tmp_path / "run")[1]
    assert "selection" not in report


def test_a_killed_run_remembers_the_probe(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    values = {"steps": 40, "optim__lr": 1e-3}
    alone, report = tune(parent, other_folders, tmp_path / "alone", **values)
    script = (
        "import sys, json\n"
        f"sys.path.insert(0, {str(TESTS)!r}); from conftest import train_run\n"
        "train_run('finetune', init=sys.argv[1], data=sys.argv[2], out=sys.argv[3], train__save_every_steps=5, "
        "train__log_every_steps=1, **json.loads(sys.argv[4]))"
    )
    folder = tmp_path / "killed"
    arguments = [str(parent), str(other_folders), str(folder), json.dumps(QUICK | values)]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "state" / "step-000000010").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = tune(parent, other_folders, folder, **values)[1]
    assert again["resumed_from"] is not None and again["resumed_from"] >= 10
    assert again["selection"] == report["selection"]
    one, two = load_file(alone / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_two_images_are_enough_where_nothing_can_be_kept_back(parent: Path, tmp_path: Path) -> None:
    for colour, name in ((3, "yellow"), (4, "violet")):
        (tmp_path / "two" / "train" / name).mkdir(parents=True)
        draw_image(colour, 1).save(tmp_path / "two" / "train" / name / "0.png")
    report = tune(parent, tmp_path / "two", tmp_path / "run", steps=2, batch_size=2)[1]
    assert report["steps"] == 2 and report["selection"] == {"kept": "finetuned"}
    with pytest.raises(DataError, match="cannot be parted"):
        tune(parent, tmp_path / "two", tmp_path / "other", steps=2, batch_size=2, train__dev=0.5)
    with pytest.raises(DataError, match="cannot be parted"):
        tune(parent, tmp_path / "two", tmp_path / "third", steps=2, batch_size=2, train__report_on="dev")


def test_without_a_dev_part_weights_are_kept_by_how_they_are_tuned(
    parent: Path, other_folders: Path, tmp_path: Path
) -> None:
    theirs, name = load_file(parent / "model.safetensors"), "blocks.0.mlp.fc1.weight"
    for optimizer, kept in (("muon", "finetuned"), ("adamw", "average")):
        values = {"train__dev": 0.0, "optim__lr": 1e-3, "optim__name": optimizer} | KEPT
        folder, report = tune(parent, other_folders, tmp_path / optimizer, **values)
        saved = load_file(next(folder.glob("state/step-*/model.safetensors")))
        own = load_file(folder / "model.safetensors")
        assert not torch.allclose(saved[name], theirs[name], atol=1e-4)
        expected = saved[name] if kept == "finetuned" else (saved[name] + theirs[name]) / 2
        torch.testing.assert_close(own[name], expected)
        assert report["selection"] == {"kept": kept}


def backbone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}


def test_what_is_kept_can_be_decided_beforehand(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    theirs = backbone(load_file(parent / "model.safetensors"))
    folder, report = tune(parent, other_folders, tmp_path / "tuned", train__keep="finetuned", optim__lr=1e-3, **KEPT)
    assert report["selection"] == {"kept": "finetuned"}
    saved, own = (
        load_file(f) for f in (next(folder.glob("state/step-*/model.safetensors")), folder / "model.safetensors")
    )
    assert all(torch.equal(saved[name], own[name]) for name in own)
    folder, report = tune(parent, other_folders, tmp_path / "probe", train__keep="probe")
    assert (report["steps"], report["images_seen"], report["train_flops"]) == (0, 0, 0), "there is nothing to tune"
    own = load_file(folder / "model.safetensors")
    assert all(torch.equal(own[name], theirs[name]) for name in theirs) and report["eval"]["top1"] > 0.9
    assert api.evaluate(str(folder), device="cpu")["top1"] == report["eval"]["top1"]
    again = tune(parent, other_folders, folder, train__keep="probe")[1]
    assert again == report


def test_a_budget_too_short_to_tune_gives_the_probe_of_all_training_images(
    parent: Path, other_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_FEWEST_STEPS", 10**9)
    notes: list[str] = []
    sinks = [lambda event, fields: notes.append(fields.get("text", ""))]
    values = {"steps": None, "train__time_budget": 60.0, "sinks": sinks} | KEPT
    folder, report = tune(parent, other_folders, tmp_path / "run", **values)
    assert report["steps"] == 0 and report["seconds"] < 40, "what is not needed is not used up"
    assert report["selection"]["kept"] == "probe" and report["selection"]["dev_top1"].keys() == {"probe"}
    assert any("the linear probe is kept: the time budget has room for about" in note for note in notes)
    probed = api.probe(str(parent), str(other_folders), device="cpu", precision="fp32")
    assert report["eval"]["top1"] >= probed["results"][0]["top1"] - 0.05
    state = folder / "state" / "step-000000000"
    own, whole = load_file(folder / "model.safetensors"), load_file(state / "probe-whole.safetensors")
    assert torch.equal(own["head.weight"], whole["head.weight"])


def test_a_budget_too_short_for_all_images_fits_the_probe_to_some(
    parent: Path, other_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_PROBE_WORK_A_SECOND", 1e-3)  # fits that would take hours
    monkeypatch.setattr(selection, "_FEWEST_STEPS", 10**9)
    notes: list[str] = []
    sinks = [lambda event, fields: notes.append(fields.get("text", ""))]
    values = {"steps": None, "train__time_budget": 60.0, "eval__batch_size": 4, "sinks": sinks}
    report = tune(parent, other_folders, tmp_path / "run", **values)[1]
    assert any("a linear probe of 20 images" in note for note in notes), "ten a class at least"
    assert report["eval"]["top1"] > 0.8
    monkeypatch.setattr(scoring, "EXIT_SECONDS", 1000.0)
    with pytest.raises(UsageError, match="leaves no time"):
        tune(parent, other_folders, tmp_path / "none", **values)


def test_a_probe_of_some_images_is_one_of_a_sample(parent: Path, other_folders: Path) -> None:
    model = load(str(parent))[1]
    planned = api.plan(api.Request("finetune", {"data.source": str(other_folders), "train.steps": 1}, str(parent)))
    assert planned.train is not None

    def of(enough: Any) -> Features:
        assert planned.train is not None
        one_at_a_time = replace(planned.config.eval, batch_size=4)
        machine = set_up(RunConfig(device="cpu", precision="fp32"))
        inference = Inference(model, one_at_a_time, planned.config.data, machine)
        return features_of(inference, planned.train, planned.outputs, enough=enough)

    whole, some = of(None), of(lambda images: images >= 20)
    assert len(some) == 20 and set(np.unique(some.targets)) == {0, 1}
    assert np.array_equal(of(lambda images: False).values, whole.values), "in the order of the split"
    rows = {row.tobytes(): target for row, target in zip(whole.values, whole.targets, strict=True)}
    assert all(rows[row.tobytes()] == target for row, target in zip(some.values, some.targets, strict=True))


def test_the_dev_part_s_features_are_not_computed_again_for_the_probe(
    parent: Path, other_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tune(parent, other_folders, tmp_path / "once", train__dev=0.2)[1]["selection"]
    original = selection.fit_head
    monkeypatch.setattr(selection, "fit_head", lambda *a, **k: replace(original(*a, **k), dev_right=None))
    twice = tune(parent, other_folders, tmp_path / "twice", train__dev=0.2)[1]["selection"]
    assert once == twice and once["dev_balanced_top1"].keys() == once["dev_top1"].keys()


def test_top1_of_unequal_classes_can_weigh_them_alike() -> None:
    right, targets = np.array([True] * 8 + [True, False]), np.array([0] * 8 + [5, 5])
    assert balanced(right, targets) == 0.75 and right.mean() == 0.9


def test_mirrored_views_count_for_the_probe_too(parent: Path, other_folders: Path, tmp_path: Path) -> None:
    values = {"eval__views": 2, "train__keep": "probe", "train__dev": 0.2}
    folder, report = tune(parent, other_folders, tmp_path / "run", **values)
    assert api.evaluate(str(folder), device="cpu")["top1"] == report["eval"]["top1"] > 0.9
