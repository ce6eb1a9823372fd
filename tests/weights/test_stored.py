"""Files of weights of every format: opened by name and shape alone, and when they are broken, refused with a reason."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from google_files import google_arrays
from vitcli.config import model_config
from vitcli.errors import CheckpointError
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import Lazy, load
from vitcli.weights.describe import open_checkpoint
from vitcli.weights.stored import open_weights

MUTATIONS = 2_000


def state() -> dict[str, torch.Tensor]:
    model = ViT(model_config("mu/4", (8, 8), 3))
    init_weights(model, 0)
    return model.state_dict()


def small_arrays() -> dict[str, np.ndarray]:
    arrays = google_arrays(linen=False, pre_logits=True)
    arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 10, 12), np.float32)
    return arrays


def files(folder: Path) -> dict[str, bytes]:
    """One of each format, tiny."""
    safetensors.torch.save_file(state(), folder / "w.safetensors")
    torch.save({"model": state()}, folder / "w.pth")
    torch.save(state(), folder / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "w.npz", **small_arrays())
    np.savez_compressed(folder / "packed.npz", **small_arrays())
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "old.pth", "w.npz", "packed.npz"])
def test_names_and_shapes_are_known_before_any_array_is_read(tmp_path, name):
    files(tmp_path)
    weights = open_weights(tmp_path / name)
    for key, shape in weights.shapes.items():
        assert tuple(weights.read(key).shape) == shape
    opened = open_checkpoint(tmp_path / name)
    lazy = Lazy(opened)
    assert len(lazy) == len(list(lazy)) == len(load(str(tmp_path / name))[1])
    assert "head.weight" in lazy and "stray" not in lazy
    with pytest.raises(KeyError):
        lazy["stray"]


class Runs:
    """What a malicious pickle does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


@pytest.mark.parametrize("place", ["a weight among others", "as a weight", "a bare pickle"])
def test_code_in_a_pickle_is_refused_and_named(tmp_path, place):
    path = tmp_path / "w.pth"
    if place == "a bare pickle":
        path.write_bytes(pickle.dumps(Runs(), protocol=2))
    else:
        torch.save(
            {"model": state() | {"norm.bias": Runs()}} if place == "a weight among others" else {"a": Runs()}, path
        )
    with pytest.raises(CheckpointError, match=r"more than weights.*exec"):
        open_weights(path)


def test_object_arrays_in_an_archive_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **small_arrays(), evil=np.array([Runs()], object))
    with pytest.raises(CheckpointError, match="evil"):
        open_weights(tmp_path / "w.npz")


def test_an_archive_whose_arrays_are_cut_short_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros((4, 4), np.float32))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", buffer.getvalue()[:-8])
    with pytest.raises(CheckpointError, match="embedding/kernel"):
        open_weights(tmp_path / "w.npz")


def test_an_index_of_shards_names_files_of_its_folder_alone(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../w.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        open_weights(tmp_path / "model.safetensors.index.json")


def test_an_index_of_shards_that_lists_what_none_has(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists b"):
        open_weights(tmp_path / "model.safetensors.index.json")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, bytes replaced, a part cut out, doubled or filled, most often near the start, where the structure is."""
    changed = bytearray(data)
    reach = len(changed) if chance.random() < 0.5 else min(len(changed), 4096)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(max(1, reach))
        at = len(changed) - 1 - at if chance.random() < 0.3 else at
        kind = chance.randrange(5)
        if not changed:
            break
        at = max(0, min(at, len(changed) - 1))
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 64)]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randrange(1, 64)]
        else:
            changed = changed[: at + 1]
    return bytes(changed)


def test_mutated_files_load_or_are_refused_with_a_reason(tmp_path):
    """In process: no other exception, nothing run. Half of what a config.json says is mutated as well."""
    import transformers  # noqa: F401 (its import would otherwise be timed with the first file)

    originals, chance = files(tmp_path), random.Random(0)
    config = json.dumps({"architecture": "vit", "model_args": {"num_heads": 2, "img_size": [8, 8]},
                         "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}}).encode()  # fmt: skip
    folder = tmp_path / "mutated"
    folder.mkdir()
    loaded = refused = 0
    for index in range(MUTATIONS):
        name = sorted(originals)[index % len(originals)]
        path = folder / ("model.safetensors" if name == "w.safetensors" else name)
        path.write_bytes(mutated(originals[name], chance))
        (folder / "config.json").write_bytes(mutated(config, chance) if index % 2 else config)
        try:
            load(str(path))
            loaded += 1
        except CheckpointError as error:
            assert error.message and str(folder) in error.message
            refused += 1
        path.unlink()
    assert loaded > 20 and refused > 500, (loaded, refused)
