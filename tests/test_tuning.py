"""train.tune: which weights move, what is saved, what it costs, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from conftest import run_vit
from vitcli.config import model_config
from vitcli.errors import UsageError
from vitcli.flops import training_flops
from vitcli.model.classifier import build
from vitcli.tuning import blocks_of, is_tuned

MOVED = {
    "all": lambda name: True,
    "head": lambda name: name.startswith("head."),
    "bias": lambda name: name.endswith("bias") or name.startswith("head."),
    "proj": lambda name: ".attn.proj." in name or name.startswith("head."),
    "last:1": lambda name: name.startswith(("blocks.3.", "norm.", "fc_norm.", "head.")),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    done = run_vit(
        "pretrain", "--data", "digits", "--model", "ViT-w32d4h2/4", "--steps", "5", "--out", "run", cwd=folder
    )
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.parametrize("how", MOVED)
def test_what_is_tuned_moves_and_nothing_else(parent: Path, class_folders: Path, tmp_path: Path, how: str) -> None:
    done = run_vit(
        "finetune", parent, "--data", class_folders, "--steps", "6", "--batch-size", "24", "--out", "f", "--json",
        "--set", f"train.tune={how}", "--set", "train.keep=finetuned", "--set", "optim.weight_decay=0.1",
        "--set", "train.keep_state=true", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "f" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        same = tensor.shape == before[name].shape and bool((tensor == before[name]).all())
        is_key = how in ("all", "bias", "last:1") and name.endswith("qkv.bias")
        assert same != MOVED[how](name) or is_key or "norm" in name, name
    own = {
        key.rpartition("/")[0]
        for path in (tmp_path / "f" / "state").glob("step-*/optimizer.safetensors")
        for key in load_file(path)
    }
    assert own == {name for name in after if MOVED[how](name)}
    assert ("tuned (" in done.err) == (how != "all")


@given(depth=st.integers(1, 12), last=st.integers(1, 20))
def test_the_last_blocks(depth: int, last: int) -> None:
    model = build(model_config(f"ViT-w8d{depth}h1/4").with_head(3, True))
    tuned = {name for name, _ in model.named_parameters() if is_tuned(model, name, f"last:{last}")}
    blocks = {int(name.split(".")[1]) for name in tuned if name.startswith("blocks.")}
    assert blocks == set(range(max(0, depth - last), depth))
    assert any(name.startswith("head.") for name in tuned)
    assert any(name.startswith("patch_embed") for name in tuned) == (last > depth)


@pytest.mark.parametrize("how", ["some", "last", "last:0", "last:-1", "last:x", "heads", "", "last:99999"])
def test_other_words_are_refused(how: str) -> None:
    with pytest.raises(UsageError, match=r"train\.tune"):
        blocks_of(how)


@pytest.mark.parametrize("how", ["bias", "proj", "last:2", "head", "all"])
def test_operations_are_those_that_are_done(how: str) -> None:
    config = model_config("ViT-w64d6h4/4").with_head(10, True)
    model = build(config)
    model.initialise(0)
    model.use_attention("plain")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_tuned(model, name, how))
    images = torch.randn(3, 3, *config.img_size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    assert counter.get_total_flops() == pytest.approx(training_flops(config, 3, how), rel=0.06)


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
