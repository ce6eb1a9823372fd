"""train.tune: which weights move, what is saved and said, what it costs, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from conftest import run_vit
from processes import SLOW_STEPS, Processes, Started, assert_same_run, run, saved_steps
from vitcli import flops
from vitcli.config import ModelConfig, model_config
from vitcli.errors import UsageError
from vitcli.flops import training_flops
from vitcli.model.classifier import build
from vitcli.tuning import blocks_of, tuned_names


def product(into: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    """Operations of `baddbmm_`, which torch counts as none."""
    return 2 * math.prod(left) * right[-1]


MOVED = {
    "all": lambda name: True,
    "head": lambda name: name.startswith("head."),
    "bias": lambda name: name.endswith("bias") or name.startswith("head."),
    "proj": lambda name: ".attn.proj." in name or name.startswith("head."),
    "last:1": lambda name: name.startswith(("blocks.3.", "norm.", "fc_norm.", "head.")),
}
WAYS = ("all", "head", "bias", "proj", "last:1", "last:2")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    done = run_vit(
        "pretrain", "--data", "digits", "--model", "ViT-w32d4h2/4", "--steps", "5", "--out", "run", cwd=folder
    )
    assert done.code == 0, done.err
    return folder / "run"


def tune(parent: Path, data: Path, how: str, *options: str, steps: int = 6, out: str = "f") -> list[object]:
    return [
        "finetune", parent, "--data", data, "--steps", str(steps), "--batch-size", "24", "--out", out, "--json",
        "--set", f"train.tune={how}", "--set", "train.keep=finetuned", "--set", "optim.weight_decay=0.1",
        "--set", "train.keep_state=true", "--set", "optim.name=adamw", *options,
    ]  # fmt: skip


@pytest.mark.parametrize("how", MOVED)
def test_what_is_tuned_moves_and_nothing_else(parent: Path, class_folders: Path, tmp_path: Path, how: str) -> None:
    done = run_vit(*tune(parent, class_folders, how, "--lr", "1e-3"), cwd=tmp_path)
    assert done.code == 0, done.err
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "f" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        same = tensor.shape == before[name].shape and bool((tensor == before[name]).all())
        assert same != MOVED[how](name), name
    own = {
        key.rpartition("/")[0]
        for path in (tmp_path / "f" / "state").glob("step-*/optimizer.safetensors")
        for key in load_file(path)
    }
    assert own == {name for name in after if MOVED[how](name)}


@pytest.mark.parametrize("how", ["bias", "last:1"])
def test_what_is_saved_is_said(parent: Path, class_folders: Path, tmp_path: Path, how: str) -> None:
    plan = run_vit(*tune(parent, class_folders, how), "--dry-run", cwd=tmp_path)
    config = model_config("ViT-w32d4h2/4", (8, 8), 3)
    own = sum(math.prod(shape) for name, shape in config.shapes().items() if MOVED[how](name))
    assert plan.json["trained_params"] == own < plan.json["params"]
    assert f"tuned: {how}, {own:,} of {plan.json['params']:,} parameters" in plan.err
    assert f"take {12 * own / 1e6:.3g} MB in place of {12 * plan.json['params'] / 1e6:.3g}" in plan.err
    whole = run_vit(*tune(parent, class_folders, "all"), "--dry-run", cwd=tmp_path)
    assert "trained_params" not in whole.json and "tuned:" not in whole.err
    assert plan.json["train_flops"] < whole.json["train_flops"]
    assert plan.json["memory_bytes"] < whole.json["memory_bytes"]


@pytest.mark.parametrize("how", ["bias", "proj", "last:1"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(parent: Path, class_folders: Path, tmp_path: Path, how: str) -> None:
    settings = ("train.ema=0.9", "run.checkpointing=true", "train.save_every_steps=2", "model.drop_path=0.2")
    options = [item for setting in settings for item in ("--set", setting)] + ["--device", "cpu", "--precision", "fp32"]
    process = Started(tune(parent, class_folders, how, *options, steps=12, out="killed"), tmp_path, before=SLOW_STEPS)
    process.until(lambda: (saved_steps(tmp_path / "killed") or [0])[-1] >= 4)
    process.send(signal.SIGKILL)
    process.wait()
    resumed = run(tune(parent, class_folders, how, *options, steps=12, out="killed"), tmp_path)
    assert resumed.code == 0 and 4 <= resumed.json["resumed_from"] < 12, resumed.err
    assert run(tune(parent, class_folders, how, *options, steps=12, out="whole"), tmp_path).code == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(("how", "shard"), [("bias", False), ("proj", True), ("last:1", True)])
def test_processes_train_the_same_weights(
    parent: Path, class_folders: Path, tmp_path: Path, how: str, shard: bool
) -> None:
    options = ("--device", "cpu", "--precision", "fp32", "--set", f"scale.shard={str(shard).lower()}")
    for count, out in ((1, "one"), (2, "two")):
        words = [str(word) for word in tune(parent, class_folders, how, *options, out=out)]
        done = Processes(words, count, tmp_path).wait()
        assert [process.code for process in done] == [0] * count, done[0].err
    before, one, two = (
        load_file(folder / "model.safetensors") for folder in (parent, tmp_path / "one", tmp_path / "two")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3 if "qkv.bias" in name else 1e-4, rtol=0)
        assert MOVED[how](name) or bool((two[name] == before[name]).all()), name


@given(depth=st.integers(1, 12), last=st.integers(1, 12))
def test_the_last_blocks(depth: int, last: int) -> None:
    model = build(model_config(f"ViT-w8d{depth}h1/4").with_head(3, True))
    tuned = tuned_names([name for name, _ in model.named_parameters()], f"last:{last}")
    blocks = {int(name.split(".")[1]) for name in tuned if name.startswith("blocks.")}
    assert blocks == set(range(max(0, depth - last), depth))
    assert {"head.weight", "head.bias", "norm.weight", "norm.bias"} <= tuned
    assert not any(name.startswith(("patch_embed", "pos_embed", "cls_token")) for name in tuned)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ViT-w16d4h2/4", {"distilled": True, "layer_scale": 0.1}),
        ("ViT-w16d4h2/4", {"pool": "mean", "class_token": False, "norm": "after", "positions": "relative"}),
        ("ViT-w16d4h2/4", {"registers": 2, "prefix_positions": False, "norm_place": "post", "positions": "2d"}),
        ("R50+ViT-w192d2h3/16", {}),
        ("R50x1", {}),
    ],
)
def test_names_are_the_layers_of_the_model_and_counted_by_arithmetic(name: str, changes: dict[str, object]) -> None:
    config = dataclasses.replace(model_config(name, (64, 64), 5), **changes)
    with torch.device("meta"):
        model = build(config)
    parameters = dict(model.named_parameters())
    for how in WAYS:
        tuned = tuned_names(parameters, how)
        assert {name for name in parameters if name.startswith(model.head_names())} <= tuned
        assert flops.tuned_parameters(config, how) == sum(parameters[name].numel() for name in tuned)
        last = blocks_of(how)
        if last is not None and isinstance(config, ModelConfig):
            assert tuned == {name for name in parameters if model.layer_of(name) >= model.layers - last}
    assert tuned_names(parameters, "all") == parameters.keys()
    assert tuned_names(parameters, "head") == {name for name in parameters if name.startswith(model.head_names())}


def test_biases_are_what_is_called_so_wherever_they_are() -> None:
    names = ["patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.qkv.weight"]
    names += ["blocks.0.norm1.weight", "blocks.0.norm1.bias", "head.weight", "head.bias"]
    assert tuned_names(names, "bias") == {names[1], names[2], names[5], names[6], names[7]}
    assert tuned_names(names[:1] + names[3:5] + names[6:7], "bias") == {"head.weight"}


@pytest.mark.parametrize("how", ["some", "last", "last:0", "last:-1", "last:x", "heads", "", "last:99999"])
def test_other_words_are_refused(how: str) -> None:
    with pytest.raises(UsageError, match=r"train\.tune"):
        blocks_of(how)


@pytest.mark.parametrize("how", ["bias", "proj", "last:2", "last:6", "all"])
def test_operations_are_those_that_are_done(how: str) -> None:
    config = model_config("ViT-w64d6h4/4", (48, 48), 10)
    config = dataclasses.replace(config, pool="mean")  # of the class token alone, the last block computes one row
    model = build(config)
    model.initialise(0)
    model.use_attention("plain")
    tuned = tuned_names([name for name, _ in model.named_parameters()], how)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tuned)
    images = torch.randn(3, 3, *config.img_size)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: product}) as counter:
        model(images).sum().backward()
    assert counter.get_total_flops() == pytest.approx(training_flops(config, 3, how), rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "train.tune=last:5"], "4 blocks"),
        (["--set", "train.tune=proj", "--freeze", "backbone"], "leave one out"),
        (["--set", "train.tune=bias", "--objective", "mae"], "trains none"),
        (["--set", "train.tune=most"], "not one of"),
    ],
)
def test_what_does_not_fit_is_refused(parent: Path, tmp_path: Path, options: list[str], said: str) -> None:
    done = run_vit("finetune", parent, *options, "--dry-run", cwd=tmp_path)
    assert done.code == 2 and said in done.err, done.err


@pytest.mark.parametrize("how", ["bias", "proj", "last:1"])
def test_residual_networks_have_no_blocks(class_folders: Path, tmp_path: Path, how: str) -> None:
    net = ("--data", class_folders, "--model", "R50x0.25", "--img-size", "32", "--steps", "1")
    assert run_vit("pretrain", *net, "--out", "net", cwd=tmp_path).code == 0
    done = run_vit("finetune", "net", "--data", class_folders, "--set", f"train.tune={how}", "--dry-run", cwd=tmp_path)
    assert done.code == 2 and "has none" in done.err and "train.tune=head" in done.err
    head = ("--set", "train.tune=head", "--steps", "1", "--out", "head")
    assert run_vit("finetune", "net", "--data", class_folders, *head, cwd=tmp_path).code == 0


@pytest.mark.parametrize("how", ["bias", "proj", "last:1"])
def test_a_hybrid_is_tuned_above_its_network(class_folders: Path, tmp_path: Path, how: str) -> None:
    net = ("--data", class_folders, "--model", "R+ViT-w32d2h2/16", "--img-size", "32", "--steps", "1", "--quiet")
    assert run_vit("pretrain", *net, "--out", "net", cwd=tmp_path).code == 0
    done = run_vit(*tune(tmp_path / "net", class_folders, how, "--lr", "1e-2", steps=3), cwd=tmp_path)
    assert done.code == 0, done.err
    before, after = load_file(tmp_path / "net" / "model.safetensors"), load_file(tmp_path / "f" / "model.safetensors")
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved <= tuned_names(after, how) and any(name.startswith("blocks.1.attn.proj.") for name in moved)


def test_random_weights_are_trained_all(class_folders: Path, tmp_path: Path) -> None:
    done = run_vit("pretrain", "--data", class_folders, "--set", "train.tune=bias", "--steps", "1", cwd=tmp_path)
    assert done.code == 2 and "random" in done.err and "--init" in done.err
    assert json.dumps(list(tmp_path.iterdir()), default=str) == "[]"
