"""Files as training scripts write them: the weights are found whatever is wrapped around them, and nothing is lost in silence."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import pathlib
import random
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcli.config import model_config
from vitcli.errors import CheckpointError
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import load
from vitcli.weights.describe import describe
from vitcli.weights.locate import locate
from vitcli.weights.stored import open_weights

MODEL = dataclasses.replace(model_config("mu/4", (16, 16), 3), gelu="erf")


def state(seed: int = 0) -> dict[str, Tensor]:
    vit = ViT(MODEL)
    init_weights(vit, seed)
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in vit.state_dict().items()}


def under(prefix: str, table: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in table.items()}


def assert_holds(path: Path | str, table: dict[str, Tensor]) -> Any:
    description, tensors = load(str(path))
    assert tensors.keys() == table.keys()
    assert [name for name in table if not torch.equal(tensors[name], table[name])] == []
    return description


def dropped(description: Any) -> list[str]:
    return [row.key for row in description.report if row.fate == "dropped"]


class Kind(enum.Enum):
    A = 1


class Config(dict):  # type: ignore[type-arg]
    """A script's own class."""


ARGUMENTS = argparse.Namespace(lr=0.1, model="resnet50", path=pathlib.PosixPath("/x"), kind=Kind.A, nested=Config(a=1))
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"params": [0]}]}

FILES: dict[str, Any] = {
    "timm": {"state_dict": state(), "args": ARGUMENTS, "arch": "vit", "epoch": 3, "optimizer": OPTIMIZER, "metric": 88.1},
    "torchvision": {"model": state(), "args": ARGUMENTS, "epoch": 3, "lr_scheduler": {"last_epoch": 3}},
    "lightning": {"state_dict": under("model.", state()), "hyper_parameters": vars(ARGUMENTS), "callbacks": {Kind.A: 1}},
    "net": {"state_dict": under("net.", state())},
    "module.model": {"state_dict": under("module.model.", state())},
    "compiled in DDP": {"model": under("module._orig_mod.", state())},
    "compiled blocks": {key.replace("blocks.0.", "blocks.0._orig_mod."): t for key, t in state().items()},
    "FSDP": {"model": {k.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): t for k, t in state().items()}},
    "EMA alone": {"state_dict_ema": state()},
    "net_key": {"net": state(), "acc": 0.9},
    "numpy scalars": {"state_dict": state(), "best": np.float64(0.5), "at": np.int64(3), "rng": np.arange(5)},
    "defaultdict": {"state_dict": state(), "x": collections.defaultdict(list), "c": collections.Counter("ab")},
    "a dictionary's subclass": {"state_dict": Config(state())},
    "parameters": {"params": {k: torch.nn.Parameter(t) for k, t in state().items()}},
    "deep": {"checkpoint": {"trainer": {"agent": [{"weights": under("encoder.vit.", state())}]}}},
    "a list": [state(), 3],
    "DINO": {"student": under("module.backbone.", state(1)), "teacher": under("backbone.", state())},
    "two prefixes": {"state_dict": under("student.", state(1)) | under("teacher.backbone.", state())},
    "EMA": {"state_dict": state(1), "state_dict_ema": state(), "epoch": 1},
    "torchvision's EMA": {"model": state(1), "model_ema": under("module.", state()) | {"n_averaged": torch.tensor(7)}},
    "Lightning's EMA": {"state_dict": under("model.", state(1)) | under("ema_model.module.", state())},
    "I-JEPA": {"encoder": under("module.", state(1)), "target_encoder": under("module.", state()), "opt": OPTIMIZER},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_found(tmp_path, name, legacy):
    path = tmp_path / "w.pth"
    torch.save(FILES[name], path, _use_new_zipfile_serialization=not legacy)
    description = assert_holds(path, state())
    several = "student" in str(FILES[name]) or ("EMA" in name and name != "EMA alone") or name == "I-JEPA"
    assert any("the average over training" in note for note in description.notes) == several


WORDS = [
    "model",
    "net",
    "module",
    "state_dict",
    "model_state",
    "network",
    "weights",
    "params",
    "backbone",
    "encoder",
    "core",
]


@settings(max_examples=40)
@given(
    wrappers=st.lists(st.sampled_from(WORDS), max_size=3),
    prefix=st.lists(st.sampled_from(WORDS), max_size=3),
    beside=st.lists(st.sampled_from(["epoch", "args", "optimizer", "loss", "history"]), unique=True),
    legacy=st.booleans(),
)
def test_any_wrappers_and_prefixes(wrappers, prefix, beside, legacy, tmp_path_factory):
    table: Any = under("".join(f"{word}." for word in prefix), state())
    others = {"epoch": 3, "args": ARGUMENTS, "optimizer": OPTIMIZER, "loss": torch.tensor(0.3), "history": [1.0] * 50}
    for word in wrappers:
        table = {word: table} | {key: others[key] for key in beside}
    path = tmp_path_factory.mktemp("t") / "w.ckpt"
    torch.save(table, path, _use_new_zipfile_serialization=not legacy)
    description = assert_holds(path, state())
    assert set(beside) <= set(".".join(dropped(description)).split(".")) or not wrappers


def test_what_stands_beside_the_weights_is_dropped_by_name(tmp_path):
    flat = state() | {
        "criterion.weight": torch.ones(3),
        "loss": torch.tensor(0.3),
        "temperature": torch.ones(1),
        "train_acc.total": torch.tensor(3),
    }
    torch.save({**flat, "epoch": 3, "note": "x"}, tmp_path / "w.pth")
    description = assert_holds(tmp_path / "w.pth", state())
    assert set(dropped(description)) == {
        "criterion.weight", "loss", "temperature", "train_acc.total", "epoch", "note",
    }  # fmt: skip
    assert any("left out criterion.weight" in note for note in description.notes)


def test_keys_outside_the_prefix_are_dropped_by_name(tmp_path):
    table = under("backbone.", {k: t for k, t in state().items() if not k.startswith("head.")})
    torch.save({"state_dict": table | {"head.weight": torch.ones(7, 32), "neck.x": torch.ones(3)}}, tmp_path / "w.pth")
    description, _ = load(str(tmp_path / "w.pth"))
    assert description.model.classes == 0 and dropped(description) == ["head.weight", "neck.x"]
    assert any("left out head.weight, neck.x" in note for note in description.notes)


@pytest.mark.parametrize("stray", ["blocks.0.attn.q_norm.weight", "norm_pre.weight", "something.weight"])
def test_a_part_of_the_model_is_never_dropped(tmp_path, stray):
    torch.save({"model": state() | {stray: torch.ones(32)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=stray):
        describe(tmp_path / "w.pth")


def test_safetensors_with_a_prefix_and_what_is_outside(tmp_path):
    table = under("model.vit.", state()) | {"model.text.weight": torch.ones(3)}
    safetensors.torch.save_file(table, tmp_path / "w.safetensors")
    assert dropped(assert_holds(tmp_path / "w.safetensors", state())) == ["model.text.weight"]


# --- folders -----------------------------------------------------------------------------------------------


def test_the_folder_of_timm_s_script(tmp_path):
    folder = tmp_path / "20260101-vit"
    folder.mkdir()
    (folder / "summary.csv").write_text("epoch,top1\n")
    (folder / "args.yaml").write_text(
        "aa: rand-m9\nimg_size: 16\ncrop_pct: 0.95\ngp: null\nmean:\n- 0.1\n- 0.2\n- 0.3\nstd:\n- 0.4\n- 0.5\n- 0.6\n"
        "model: vit_tiny_patch16_224\nmodel_kwargs:\n  num_heads: 4\n  embed_dim: 32\nopt: adamw\n"
    )
    names = ["checkpoint-9.pth.tar", "checkpoint-10.pth.tar", "last.pth.tar", "model_best.pth.tar"]
    for seed, name in enumerate(names, start=1):
        torch.save({"state_dict": state(seed), "args": ARGUMENTS, "epoch": seed}, folder / name)
        assert locate(str(folder)).name == name
    description = assert_holds(folder, state(4))
    assert description.model.heads == 4 and description.eval.mean == (0.1, 0.2, 0.3) and description.eval.crop == 0.95
    assert any("model_best.pth.tar: one of 4 checkpoints" in note for note in description.notes)


def test_shards_of_torch_save(tmp_path):
    table, index = state(), {}
    for number, keys in enumerate((list(table)[::2], list(table)[1::2])):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: table[key] for key in keys}, tmp_path / name)
        index |= dict.fromkeys(keys, name)
    import json

    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_holds(tmp_path, state())
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="no shard"):
        describe(locate(str(tmp_path)))


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage_strides_and_types(tmp_path, legacy):
    table = state()
    flat = torch.cat([t.flatten() for t in table.values()])
    views, start = {}, 0
    for key, tensor in table.items():
        views[key] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    views["head.weight"] = table["head.weight"].t().contiguous().t()
    torch.save(views, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_holds(tmp_path / "w.pth", table)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(tmp_path, dtype, legacy):
    table = {key: tensor.to(dtype) for key, tensor in state().items()}
    torch.save(table, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_holds(tmp_path / "w.pth", {key: tensor.float() for key, tensor in table.items()})


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_quantised_numbers_are_refused(tmp_path, dtype, ending):
    path, table = tmp_path / f"w.{ending}", state()
    table["blocks.0.mlp.fc1.weight"] = table["blocks.0.mlp.fc1.weight"].to(dtype)
    torch.save(table, path) if ending == "pth" else safetensors.torch.save_file(table, path)
    with pytest.raises(CheckpointError, match=r"fc1\.weight holds numbers of type"):
        describe(path)


@pytest.mark.filterwarnings("ignore")  # quantised tensors are on their way out of torch
def test_a_tensor_subclass_among_the_weights_is_refused_and_beside_them_passed_over(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(128, 32), 0.1, 0, torch.qint8)
    torch.save({"model": state() | {"blocks.0.mlp.fc1.weight": quantised}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="_rebuild_qtensor"):
        describe(tmp_path / "w.pth")
    torch.save({"model": state(), "calibration": quantised}, tmp_path / "v.pth")
    assert_holds(tmp_path / "v.pth", state())


def test_a_compressed_archive(tmp_path):
    torch.save({"model": state()}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as source,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    assert_holds(tmp_path / "packed.pth", state())


def test_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"model": state()}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_holds(tmp_path / "w.pth", state())


def test_a_flipped_bit_of_the_numbers_is_found(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": state()}, path)
    whole, chance = path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as archive:
        places = [e.header_offset + 200 for e in archive.infolist() if "/data/" in e.filename and e.file_size > 1000]
    for place in chance.sample(places, 4):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="checksum"):
            load(str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, legacy):
    path = tmp_path / "w.pth"
    torch.save({"model": state(), "args": ARGUMENTS}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in [0, 1, 2, 10, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load(str(path))


# --- bombs -------------------------------------------------------------------------------------------------


def test_row_43_an_archive_whose_tree_unpacks_to_gigabytes(tmp_path):
    torch.save({"model": state()}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("w/data.pkl", bytes(200 << 20))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="unpacks to"):
        describe(tmp_path / "bomb.pth")
    assert time.monotonic() - started < 2


def test_row_43_an_archive_of_very_many_entries(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(CheckpointError, match="entries"):
        open_weights(tmp_path / "w.npz")


def test_row_43_a_header_of_very_many_tensors(tmp_path):
    names = ",".join(f'"t{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(200_000))
    head = f"{{{names}}}".encode()
    (tmp_path / "w.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="arrays and objects"):
        describe(tmp_path / "w.safetensors")
    assert time.monotonic() - started < 8


def test_row_43_one_number_repeated_over_terabytes(tmp_path):
    table = state() | {"blocks.0.mlp.fc1.weight": torch.ones(1).expand(1 << 20, 1 << 20)}
    torch.save(table, tmp_path / "w.pth")
    with pytest.raises(CheckpointError):
        load(str(tmp_path / "w.pth"))
