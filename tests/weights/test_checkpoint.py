"""Checkpoints: written whole, read back exactly, found, described, refused where they are damaged or unsafe."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcli.classes import Class
from vitcli.config import IMAGENET_MEAN, IMAGENET_STD, EvalConfig, ModelConfig, model_config
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.posemb import resize_position_embedding
from vitcli.model.vit import ViT, init_weights
from vitcli.weights import checkpoint
from vitcli.weights.describe import Description, describe
from vitcli.weights.header import read_header
from vitcli.weights.locate import locate

MODEL = model_config("mu/4", (16, 24), 3)
CLASSES = (Class("tench", "n01440764"), Class("Schnäuzer"), Class("老虎"))
SEEN = EvalConfig(crop=0.875, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def weights(model: ModelConfig = MODEL, seed: int = 0) -> dict[str, Tensor]:
    vit = ViT(model)
    init_weights(vit, seed)
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in vit.state_dict().items()}


def described(path: Path, model: ModelConfig = MODEL, **changes: Any) -> Description:
    provenance, scores = {"data": {"id": "digits"}, "steps": 7}, {"top1": 0.5, "split": "test"}
    return dataclasses.replace(
        Description(path=path, model=model, classes=CLASSES, eval=SEEN, provenance=provenance, scores=scores), **changes
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save(described(path), weights())
    return path


def plain(path: Path, model: ModelConfig = MODEL, **changes: Any) -> Path:
    """Somebody else's file: weights and no description."""
    safetensors.torch.save_file(weights(model) | changes, path, metadata={"format": "pt"})
    return path


SQUARE = model_config("mu/4", (16, 16), 3)


def refused(reference: object, said: str = "") -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(str(reference))
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- round trips -------------------------------------------------------------------------------------------


def test_weights_and_description_come_back(saved):
    description, tensors = checkpoint.load(str(saved))
    assert_equal(tensors, weights())
    wanted = described(saved)
    for field in ("path", "model", "classes", "eval", "provenance", "scores"):
        assert getattr(description, field) == getattr(wanted, field)
    assert description.notes == ()
    assert description.sha256 == checkpoint.tensor_digest(saved)
    assert describe(saved).document() == description.document()


def test_the_document_of_the_header(saved):
    document = read_header(saved).document()
    assert read_header(saved).metadata["format"] == "pt"
    assert document["classes"] == [{"name": "tench", "id": "n01440764"}, {"name": "Schnäuzer"}, {"name": "老虎"}]
    assert document["preprocessing"]["size"] == [16, 24]
    assert document["preprocessing"]["mean"] == list(IMAGENET_MEAN)
    assert document["model"]["patch"] == [4, 4]
    assert document["version"]
    assert len(document["sha256"]) == 64


def test_the_safetensors_library_reads_the_file(saved):
    assert_equal(safetensors.torch.load_file(saved), weights())


def test_the_model_gives_the_same_logits_after_the_round_trip(saved):
    model = ViT(MODEL).eval()
    model.load_state_dict(weights())
    description, tensors = checkpoint.load(str(saved))
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(checkpoint.model_with(description.model, tensors)(images), model(images))


@pytest.mark.parametrize(
    "model",
    [
        dataclasses.replace(MODEL, class_token=False, pool="mean"),
        dataclasses.replace(MODEL, pre_logits=True, gelu="erf", dropout=0.1, drop_path=0.2),
        dataclasses.replace(MODEL, patch=(8, 4)),
    ],
)
def test_every_kind_of_model_comes_back(tmp_path, model):
    path = tmp_path / "w.safetensors"
    checkpoint.save(described(path, model), weights(model))
    description, tensors = checkpoint.load(str(path))
    assert description.model == model
    assert_equal(tensors, weights(model))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_tensors_of_any_type_and_shape_are_plain_safetensors(data, tmp_path_factory):
    dtypes = [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ]
    shapes = st.lists(st.integers(0, 3), max_size=3)
    drawn = data.draw(
        st.dictionaries(st.text("abé.", min_size=1, max_size=4), st.tuples(st.sampled_from(dtypes), shapes), max_size=5)
    )
    tensors = {name: (5 * torch.rand(shape)).to(dtype) for name, (dtype, shape) in drawn.items()}
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    checkpoint.write_safetensors(path, tensors, {"a": 1})
    found = safetensors.torch.load_file(path)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert_equal(found, tensors)
    assert read_header(path).document() == {"a": 1, "sha256": checkpoint.tensor_digest(path)}


def test_views_are_written_as_they_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"transposed": base.T, "strided": base[:, ::2], "part": base[1:]}
    checkpoint.write_safetensors(tmp_path / "v.safetensors", tensors)
    assert_equal(safetensors.torch.load_file(tmp_path / "v.safetensors"), tensors)


def test_half_precision_is_read_as_float32(tmp_path):
    tensors = {name: tensor.half() for name, tensor in weights(SQUARE).items()}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    _, found = checkpoint.load(str(tmp_path / "w.safetensors"))
    assert_equal(found, {name: tensor.float() for name, tensor in tensors.items()})


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_mode_honours_the_umask(tmp_path, umask, mode):
    path, before = tmp_path / "w.safetensors", os.umask(umask)
    try:
        checkpoint.save(described(path), weights())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_saving_leaves_one_file_and_replaces_the_old(saved):
    checkpoint.save(described(saved), weights(seed=1))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert_equal(checkpoint.load(str(saved))[1], weights(seed=1))


def test_the_same_weights_make_the_same_bytes(saved, tmp_path):
    other = tmp_path / "other.safetensors"
    checkpoint.save(described(other), dict(reversed(weights().items())))
    assert other.read_bytes() == saved.read_bytes()


# --- damage ------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_wherever_it_is(saved):
    whole, start = saved.read_bytes(), read_header(saved).data_start
    chance = random.Random(0)
    for place in [start, len(whole) - 1, *(chance.randrange(start, len(whole)) for _ in range(20))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        saved.write_bytes(damaged)
        assert "sha256" in refused(saved, "is damaged").message
    saved.write_bytes(whole)
    checkpoint.load(str(saved))


def test_a_file_that_was_cut_off_is_refused_at_any_length(saved):
    whole = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(10, len(whole), len(whole) // 60), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        refused(saved, str(saved))
        with pytest.raises(CheckpointError):
            describe(saved)


OTHER_FILES = {
    "git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22884312\n",
    "web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "empty file": b"",
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz"])
@pytest.mark.parametrize("what", OTHER_FILES)
def test_what_was_downloaded_instead_is_said(tmp_path, suffix, what):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(OTHER_FILES[what])
    refused(path, what)


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_a_changed_header_is_read_or_refused(data, tmp_path_factory):
    """Bytes of the header replaced, deleted or inserted: a description, or CheckpointError, nothing else."""
    path = tmp_path_factory.mktemp("m") / "w.safetensors"
    checkpoint.save(described(path), weights())
    whole, start = path.read_bytes(), read_header(path).data_start
    text = bytearray(whole[8:start])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        kind = data.draw(st.sampled_from(["replace", "digit", "delete", "insert"]))
        if kind == "delete":
            del text[at : at + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            text[at:at] = data.draw(st.binary(min_size=1, max_size=6))
        else:
            text[at] = data.draw(st.sampled_from(b"0123456789") if kind == "digit" else st.integers(0, 255))
        if not text:
            break
    path.write_bytes(len(text).to_bytes(8, "little") + bytes(text) + whole[start:])
    try:
        checkpoint.load(str(path))
    except CheckpointError as error:
        assert error.message


ANYTHING = [None, True, 0, -1, 3, 10**400, 0.5, 1e999, "", "b/16", "cls", [], [1], [0, 0], [1, 1], [None], {}, {"a": 1}]
FIELDS = [
    (place, key)
    for place, table in {"": described(Path("w")).document(), "model": None, "preprocessing": None}.items()
    for key in (table or described(Path("w")).document()[place])
]


@pytest.mark.parametrize(("place", "key"), FIELDS, ids=[".".join(filter(None, field)) for field in FIELDS])
def test_a_field_of_the_description_may_be_anything_and_is_read_or_refused(tmp_path, place, key):
    """What is read can be built."""
    path = tmp_path / "w.safetensors"
    checkpoint.write_safetensors(path, weights())
    header, whole = read_header(path), path.read_bytes()
    entries = {k: v for k, v in json.loads(whole[8 : header.data_start]).items() if k != "__metadata__"}
    for value in ANYTHING:
        document = json.loads(json.dumps(described(path).document()))
        (document[place] if place else document)[key] = value
        text = json.dumps({"__metadata__": {"format": "pt", "vit": json.dumps(document)}} | entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[header.data_start :])
        try:
            description, tensors = checkpoint.load(str(path))
            checkpoint.model_with(description.model, tensors)
        except CheckpointError as error:
            assert error.message


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from vitcli.errors import CheckpointError
from vitcli.weights.describe import describe
try:
    describe(Path(sys.argv[1]))
except CheckpointError as error:
    print(error.message)
"""


def describe_with_a_gigabyte(path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


def test_a_block_of_an_absurd_number_is_refused_without_counting_up_to_it(tmp_path):
    path = plain(tmp_path / "w.safetensors", SQUARE, **{"blocks.99999999.norm1.weight": torch.ones(32)})
    assert str(path) in describe_with_a_gigabyte(path)


def test_an_absurd_depth_in_a_description_is_refused_without_counting_up_to_it(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.save(described(path, dataclasses.replace(MODEL, depth=99_999_999)), weights())
    assert str(path) in describe_with_a_gigabyte(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value, suffix):
    path, tensors = tmp_path / f"w{suffix}", weights(SQUARE)
    tensors["blocks.0.mlp.fc1.weight"][3, 4] = value
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    refused(path, "blocks.0.mlp.fc1.weight")


def test_own_weights_that_are_no_numbers_are_refused(tmp_path):
    path, tensors = tmp_path / "w.safetensors", weights()
    tensors["norm.bias"][0] = float("nan")
    checkpoint.save(described(path), tensors)
    refused(path, "norm.bias")


def test_missing_and_unexpected_keys_are_listed(tmp_path):
    tensors = weights(SQUARE)
    del tensors["blocks.0.norm2.bias"]
    safetensors.torch.save_file(tensors | {"stray.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    message = refused(tmp_path / "w.safetensors").message
    assert "missing: blocks.0.norm2.bias" in message
    assert "unexpected: stray.weight" in message


def test_own_files_with_keys_missing_are_refused(tmp_path):
    tensors = weights()
    del tensors["norm.weight"]
    checkpoint.save(described(tmp_path / "w.safetensors"), tensors)
    refused(tmp_path / "w.safetensors", "missing: norm.weight")


def test_more_or_fewer_names_than_outputs_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.save(described(path, classes=CLASSES[:2]), weights())
    refused(path, "2 classes for 3 outputs")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix, suffix):
    path, tensors = tmp_path / f"w{suffix}", {prefix + name: tensor for name, tensor in weights(SQUARE).items()}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    assert_equal(checkpoint.load(str(path))[1], weights(SQUARE))


def test_two_keys_that_are_one_without_their_prefix_are_refused(tmp_path):
    """Neither may silently win."""
    path = plain(tmp_path / "w.safetensors", SQUARE, **{"module.norm.weight": torch.full((32,), 9.0)})
    refused(path, "norm.weight")


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 3},
        {"class_token": False, "pool": "cls"},
        {"img_size": (17, 24)},
        {"dropout": 2.0},
    ],
    ids=lambda c: ", ".join(c),
)
def test_a_description_of_an_impossible_model_is_a_checkpoint_error(tmp_path, changes):
    path, model = tmp_path / "w.safetensors", dataclasses.replace(MODEL, **changes)
    tensors = weights()
    if not model.class_token:
        del tensors["cls_token"]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:].clone()
    checkpoint.save(described(path, model), tensors)
    with pytest.raises(CheckpointError):
        description, found = checkpoint.load(str(path))
        checkpoint.model_with(description.model, found)


def test_weights_whose_heads_cannot_be_told_are_not_a_usage_error(tmp_path):
    """A width of 200 has no heads of 64."""
    model = ModelConfig(name="", width=200, depth=1, heads=5, mlp=400, patch=(4, 4), img_size=(8, 8), classes=3)
    path = plain(tmp_path / "w.safetensors", model)
    try:
        description, tensors = checkpoint.load(str(path))
        checkpoint.model_with(description.model, tensors)
    except CheckpointError as error:
        assert "head" in error.message


# --- PyTorch files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_pytorch_files_alone_or_under_a_key(tmp_path, wrapper, legacy):
    tree: Any = weights(SQUARE)
    if wrapper:
        tree = {wrapper: tree, "epoch": 3, "optimizer": {"lr": [0.1]}}
    torch.save(tree, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    description, tensors = checkpoint.load(str(tmp_path / "w.pth"))
    assert_equal(tensors, weights(SQUARE))
    assert description.model == dataclasses.replace(SQUARE, gelu="erf")


class Creates:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
@pytest.mark.parametrize("how", ["torch.save", "torch.save, old", "pickle 2", "pickle 4", "among weights"])
def test_a_malicious_pickle_that_weights_need_is_refused_and_not_run(tmp_path, suffix, how):
    path, trap = tmp_path / f"w{suffix}", tmp_path / "created"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Creates(trap), int(how[-1])))
    else:
        tree = {"model": weights(SQUARE) | {"head.bias": Creates(trap)}} if how == "among weights" else Creates(trap)
        torch.save(tree, path, _use_new_zipfile_serialization="old" not in how)
    error = refused(path, str(path))
    assert "code" in error.message and "mkdir" in error.message
    assert not trap.exists()
    with pytest.raises(CheckpointError):
        describe(path)
    assert not trap.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_beside_the_weights_is_passed_over_and_not_run(tmp_path, legacy):
    trap = tmp_path / "created"
    torch.save(
        {"model": weights(SQUARE), "extra": Creates(trap)},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    description, tensors = checkpoint.load(str(tmp_path / "w.pth"))
    assert_equal(tensors, weights(SQUARE))
    assert not trap.exists()
    assert ("extra", "dropped") in [(row.key, row.fate) for row in description.report]


@pytest.mark.parametrize("wrapper", ["", "model", "ema"])
def test_a_whole_pickled_module_is_refused_by_its_name(tmp_path, wrapper):
    model = ViT(SQUARE)
    torch.save({wrapper: model, "optimizer": {"state": {0: torch.ones(3)}}} if wrapper else model, tmp_path / "w.pth")
    error = refused(tmp_path / "w.pth", "a whole pickled model (vitcli.model.vit.ViT)")
    assert "state_dict()" in error.hint


@pytest.mark.parametrize("tree", [{}, {"epoch": 3}, [1, 2], {"model": {}}, {"a": torch.ones(1), "b": "text"}], ids=str)
def test_a_pytorch_file_without_a_table_of_weights_is_refused(tmp_path, tree):
    torch.save(tree, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "w.pth")


def test_a_pytorch_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(weights(SQUARE), path)
    whole = path.read_bytes()
    for length in [1, 3, 60, 1000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, str(path))


def test_numpy_archives_of_something_else_are_refused_with_what_is_read(tmp_path):
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.zeros((2, 2))})
    error = refused(tmp_path / "w.npz", "embedding/kernel")
    assert "Google" in error.hint


# --- finding -----------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_weights(saved):
    (saved.parent / "state").mkdir()
    assert locate(str(saved.parent)) == saved
    assert locate(str(saved)) == saved


def test_an_unfinished_run_folder_says_so(tmp_path):
    (tmp_path / "run" / "state").mkdir(parents=True)
    error = refused(tmp_path / "run", "unfinished")
    assert "run the same command again" in error.hint


def test_a_folder_without_weights(tmp_path):
    assert "unfinished" not in refused(tmp_path, str(tmp_path)).message


@pytest.mark.parametrize(
    "name", ["absent.safetensors", "absent.pth", "absent.npz", "runs/absent.safetensors", "absent", "", "\0"]
)
def test_a_missing_path_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name:
        refused(name)
    else:
        refused(tmp_path / "absent.safetensors", "absent")


@pytest.mark.parametrize(
    "name", ["a" * 5000, "~nobody-has-this-name/model.safetensors"], ids=["5,000 letters", "no such home"]
)
def test_a_path_that_cannot_be_looked_up_is_refused(name):
    refused(name)


def test_a_hub_id_offline_and_not_in_the_cache_is_refused_at_once():
    started = time.monotonic()
    error = refused("nobody-has/this-model", "nobody-has/this-model")
    assert time.monotonic() - started < 10
    assert "HF_HUB_OFFLINE" in error.hint


COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A home with user/name in the hub's layout, as timm exports a model."""
    repository = tmp_path / "home" / "hub" / "models--user--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    timm_folder(repository / "made")
    for name in ("model.safetensors", "config.json"):
        (repository / "made" / name).rename(repository / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return tmp_path / "home"


def run_python(code: str, *arguments: object, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


def test_a_hub_id_is_read_from_the_cache(hub):
    code = (
        "import json, sys\n"
        "from vitcli.errors import CheckpointError\n"
        "from vitcli.weights.describe import describe\nfrom vitcli.weights.locate import locate\n"
        "for reference in ('user/name', 'user/name@main', 'user/name@' + 'a' * 40):\n"
        "    found = describe(locate(reference))\n"
        "    print(found.path, found.eval.crop, found.model.classes, [c.name for c in found.classes])\n"
        "try:\n"
        "    locate('user/name@other')\n"
        "except CheckpointError as error:\n"
        "    print('refused', error.message.count('user/name@other') > 0)\n"
    )
    path = hub / "hub" / "models--user--name" / "snapshots" / COMMIT / "model.safetensors"
    line = f"{path} 0.95 3 ['ant', 'bee', 'cat']"
    output = run_python(code, HF_HOME=str(hub), HF_HUB_CACHE=str(hub / "hub"), HF_HUB_OFFLINE="1")
    assert output.splitlines() == [line] * 3 + ["refused True"]


def test_describing_safetensors_does_not_import_torch(saved, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from vitcli.weights.describe import describe\nfrom vitcli.weights.locate import locate\n"
        "for name in sys.argv[1:]:\n"
        "    print(describe(locate(name)).model.name)\n"
        "print([m for m in ('torch', 'datasets', 'safetensors', 'numpy') if m in sys.modules])\n"
    )
    other = plain(tmp_path / "plain.safetensors", SQUARE)
    assert run_python(code, saved, other).splitlines() == ["ViT-mu/4", "ViT-mu/4", "[]"]


# --- other people's weights --------------------------------------------------------------------------------


def timm_folder(folder: Path, model: ModelConfig = SQUARE, **changes: Any) -> Path:
    """What timm's save_for_hf writes."""
    folder.mkdir(parents=True, exist_ok=True)
    plain(folder / "model.safetensors", model)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"num_heads": model.heads},
        "num_classes": model.classes,
        "num_features": model.width,
        "global_pool": "token",
        "pretrained_cfg": {
            "input_size": [3, *model.img_size],
            "interpolation": "bilinear",
            "crop_pct": 0.95,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": model.classes,
        },
        "label_names": ["ant", "bee", "cat"],
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_folder_that_timm_wrote_is_described_by_its_configuration(tmp_path):
    description, tensors = checkpoint.load(str(timm_folder(tmp_path)))
    assert description.eval.mean == (0.1, 0.2, 0.3)
    assert description.eval.std == (0.4, 0.5, 0.6)
    assert description.eval.crop == 0.95
    assert description.eval.interpolation == "bilinear"
    assert [c.name for c in description.classes] == ["ant", "bee", "cat"]
    assert description.model == dataclasses.replace(SQUARE, gelu="erf")
    assert description.notes == ()
    assert_equal(tensors, weights(SQUARE))


def test_labels_of_another_number_are_left_out(tmp_path):
    assert describe(locate(str(timm_folder(tmp_path, label_names=["one"])))).classes == ()


BROKEN = [
    "",
    "[]",
    "null",
    '{"pretrained_cfg": 3}',
    '{"label_names": [1, 2, 3]}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_an_unreadable_configuration_beside_the_weights_leaves_a_guess_that_is_said(tmp_path, text):
    folder = timm_folder(tmp_path / "deit_tiny_patch16_224")
    (folder / "config.json").write_text(text)
    description = describe(locate(str(folder)))
    assert description.eval.mean == IMAGENET_MEAN
    assert "DeiT" in description.notes[0]


@pytest.mark.parametrize(
    "cfg",
    [
        {"mean": [0.5]},
        {"std": "abc"},
        {"mean": [0.5, 0.5, "x"]},
        {"interpolation": "nearest-exact"},
        {"std": [0, 0, 0]},
    ],
    ids=str,
)
def test_preprocessing_that_makes_no_sense_is_not_taken_over(tmp_path, cfg):
    """A guess or an error, but not numbers that fail or divide by zero later."""
    folder = timm_folder(tmp_path, pretrained_cfg=cfg)
    try:
        config = describe(locate(str(folder))).eval
    except CheckpointError:
        return
    assert len(config.mean) == len(config.std) == 3
    assert all(isinstance(v, (int, float)) for v in (*config.mean, *config.std))
    assert min(config.std) > 0
    assert config.interpolation in ("bilinear", "bicubic")


@pytest.mark.parametrize("beside", ["", "{}", '{"architecture": "vit_tiny_patch16_224", "num_classes": 0}'])
@pytest.mark.parametrize("name", ["model", "vit_tiny"])
def test_weights_without_a_head_are_described(tmp_path, name, beside):
    model = dataclasses.replace(SQUARE, classes=0)
    path = plain(tmp_path / f"{name}.safetensors", model)
    if beside:
        (tmp_path / "config.json").write_text(beside)
    description, tensors = checkpoint.load(str(path))
    assert description.classes == ()
    assert description.model.classes == 0
    assert checkpoint.model_with(description.model, tensors)(torch.zeros(1, 3, 16, 16)).shape == (1, 32)


def test_the_preprocessing_of_the_released_deit_follows_from_its_name(deit_weights):
    description, tensors = checkpoint.load(str(deit_weights))
    assert description.model == dataclasses.replace(model_config("ti/16", classes=1000), gelu="erf")
    assert (description.eval.mean, description.eval.std, description.eval.crop) == (IMAGENET_MEAN, IMAGENET_STD, 0.9)
    assert description.eval.interpolation == "bicubic"
    assert "DeiT" in description.notes[0]
    assert description.classes == ()
    assert sum(t.numel() for t in tensors.values()) == 5_717_416


def test_the_classes_of_bare_weights_can_be_named(tmp_path):
    description = describe(plain(tmp_path / "w.safetensors", SQUARE))
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\n")
    assert [c.name for c in description.labelled(str(labels)).classes] == ["ant", "bee", "cat"]
    labels.write_text("ant\nbee\n")
    with pytest.raises(CheckpointError, match="names 2 classes"):
        description.labelled(str(labels))


# --- another size, another head ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["paper", "bicubic", "bicubic-antialias"])
def test_resizing_changes_the_position_embedding_and_nothing_else(saved, method):
    description, tensors = checkpoint.load(str(saved))
    larger, resized = checkpoint.resized(description, tensors, (32, 28), method)
    assert larger.model == dataclasses.replace(MODEL, img_size=(32, 28))
    expected = resize_position_embedding(tensors["pos_embed"], (4, 6), (8, 7), 1, method)
    assert_equal(resized, tensors | {"pos_embed": expected})
    assert tensors["pos_embed"].shape == (1, 25, 32)  # the old are left alone
    model = checkpoint.model_with(larger.model, resized)
    assert model(torch.zeros(1, 3, 32, 28)).shape == (1, 3)


def test_the_same_size_changes_nothing(saved):
    description, tensors = checkpoint.load(str(saved))
    same, unchanged = checkpoint.resized(description, tensors, (16, 24))
    assert same.model == description.model
    assert_equal(unchanged, tensors)


def test_a_size_that_the_patch_does_not_divide_is_a_usage_error(saved):
    description, tensors = checkpoint.load(str(saved))
    with pytest.raises(UsageError, match="multiple of the patch size"):
        checkpoint.resized(description, tensors, (30, 24))


def test_a_kept_head_keeps_every_weight():
    model = dataclasses.replace(MODEL, pre_logits=True)
    tensors = weights(model)
    assert_equal(dict(checkpoint.adapt(tensors, model, True, 0).state_dict()), tensors)


@pytest.mark.parametrize("pre_logits", [True, False])
def test_a_new_head_is_zero_and_the_tanh_layer_goes(pre_logits):
    tensors = weights(dataclasses.replace(MODEL, pre_logits=pre_logits))
    vit = checkpoint.adapt(tensors, dataclasses.replace(MODEL, classes=7), False, 0, head_bias=-2.0)
    state = dict(vit.state_dict())
    assert state["head.weight"].shape == (7, 32)
    assert not state["head.weight"].any()
    assert (state["head.bias"] == -2).all()
    kept = {name: t for name, t in tensors.items() if not name.startswith(("head.", "pre_logits."))}
    assert_equal({name: t for name, t in state.items() if not name.startswith("head.")}, kept)


def test_a_new_head_of_the_same_shape_does_not_take_over_the_old():
    vit = checkpoint.adapt(weights(), MODEL, False, 0)
    assert not vit.head.weight.any()


def test_a_new_head_for_weights_that_had_none():
    vit = checkpoint.adapt(weights(dataclasses.replace(MODEL, classes=0)), MODEL, False, 0)
    assert vit.head.weight.shape == (3, 32)


def test_resized_weights_are_adapted(saved):
    description, tensors = checkpoint.load(str(saved))
    larger, resized = checkpoint.resized(description, tensors, (32, 32))
    vit = checkpoint.adapt(resized, dataclasses.replace(larger.model, classes=5), False, 0)
    assert torch.equal(vit.pos_embed.detach(), resized["pos_embed"])
    assert vit(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
