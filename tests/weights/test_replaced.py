"""Row 56: a checkpoint is replaced, moved, deleted, cut off or overwritten between its description and its weights, or
while these are read. The one that was opened is measured, or nothing is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from vitcli import api
from vitcli.classes import Class
from vitcli.config import EvalConfig, model_config
from vitcli.errors import CheckpointError
from vitcli.evaluate.report import summary
from vitcli.model.vit import ViT, init_weights
from vitcli.weights import checkpoint, held
from vitcli.weights.describe import Description, describe

MODEL = model_config("mu/4", (8, 8), 10)
DIGITS = [str(digit) for digit in range(10)]


def weights(seed: int) -> dict[str, Tensor]:
    model = ViT(MODEL)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}


def own(path: Path, seed: int, names: list[str] = DIGITS) -> Path:
    """Of vit's own, with a digest."""
    provenance = {"data": {"id": "digits"}}
    checkpoint.save(
        Description(
            path=path,
            model=MODEL,
            classes=tuple(map(Class, names)),
            eval=EvalConfig(),
            provenance=provenance,
            scores={"top1": seed / 10},
        ),
        weights(seed),
    )
    return path


def foreign(path: Path, seed: int, names: list[str] = DIGITS) -> Path:
    """Somebody else's, in the format of its name."""
    if path.suffix == ".npz":
        from test_stored import small_arrays

        arrays = small_arrays()
        np.savez(path, **{key: array + seed for key, array in arrays.items()})
    elif path.suffix == ".pth":
        torch.save(weights(seed), path)
    elif path.suffix == ".bin":
        torch.save(weights(seed), path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".json":
        shard = path.with_name("one.safetensors")
        safetensors.torch.save_file(weights(seed), shard)
        path.write_text(json.dumps({"weight_map": dict.fromkeys(weights(seed), shard.name)}))
    else:
        safetensors.torch.save_file(weights(seed), path)
    return path


def file_of(path: Path) -> Path:
    """Where the arrays are."""
    return path.with_name("one.safetensors") if path.suffix == ".json" else path


KINDS: dict[str, tuple[Callable[..., Path], str]] = {
    "own": (own, "w.safetensors"),
    "safetensors": (foreign, "w.safetensors"),
    "shards": (foreign, "w.safetensors.index.json"),
    "npz": (foreign, "w.npz"),
    "pth": (foreign, "w.pth"),
    "legacy": (foreign, "w.bin"),
}


def replace(path: Path, other: Path) -> None:
    other.replace(path)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def move(path: Path, other: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def cut_off(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path, other: Path) -> None:
    """As cp does: the same file with other contents."""
    shutil.copyfile(other, path)


GONE = (replace, delete, move)
SPOILT = (cut_off, empty, overwrite)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [*GONE, *SPOILT], ids=lambda change: change.__name__)
def test_row_56_between_description_and_weights(tmp_path, kind, change):
    write, name = KINDS[kind]
    path = write(tmp_path / name, 1)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / name, 2, DIGITS[::-1])
    _, before = checkpoint.load(str(path))
    found = describe(path)
    change(file_of(path), file_of(other))
    if change in GONE:
        _, after = checkpoint.load(found)
        assert all(torch.equal(after[key], before[key]) for key in before)
    else:
        with pytest.raises(CheckpointError, match="changed while it was read") as caught:
            checkpoint.load(found)
        assert str(file_of(path)) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [*GONE, *SPOILT], ids=lambda change: change.__name__)
def test_row_56_between_one_array_and_the_next(tmp_path, monkeypatch, kind, change):
    write, name = KINDS[kind]
    path = write(tmp_path / name, 1)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / name, 2, DIGITS[::-1])
    _, before = checkpoint.load(str(path))
    found = describe(path)
    read, count = checkpoint.Lazy._array, 0

    def array(self: checkpoint.Lazy, part: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == 5:
            change(file_of(path), file_of(other))
        return read(self, part)

    monkeypatch.setattr(checkpoint.Lazy, "_array", array)
    if change in GONE:
        _, after = checkpoint.load(found)
        assert all(torch.equal(after[key], before[key]) for key in before)
    else:
        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.load(found)
    assert count >= 5


def test_row_56_the_scores_are_those_of_the_file_that_was_opened(tmp_path):
    """The other one has the same shapes and other names of classes."""
    path = own(tmp_path / "w.safetensors", 1)
    expected = api.evaluate(str(path), device="cpu", precision="fp32")
    planned = api.plan_evaluation(str(path), device="cpu", precision="fp32")
    own(tmp_path / "other.safetensors", 2, DIGITS[::-1]).replace(path)
    assert summary(planned.measure(), planned.classes)["loss"] == expected["loss"]
    other = api.evaluate(str(path), device="cpu", precision="fp32")
    assert other["loss"] != expected["loss"]


def test_row_56_a_description_that_was_given_another_path_is_of_the_file_there(tmp_path):
    import dataclasses

    found = describe(own(tmp_path / "w.safetensors", 1))
    other = own(tmp_path / "other.safetensors", 2)
    _, tensors = checkpoint.load(dataclasses.replace(found, path=other))
    assert torch.equal(tensors["head.weight"], weights(2)["head.weight"])


def test_row_56_files_are_closed(tmp_path):
    path = own(tmp_path / "w.safetensors", 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        checkpoint.load(describe(path))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


CHANGED_UNDER = """
import sys
from vitcli.cli import app
from vitcli.evaluate import subject
whole = subject.loaded
def load(*arguments, **keywords):
    print('now', flush=True)
    sys.stdin.readline()
    return whole(*arguments, **keywords)
subject.loaded = load
sys.exit(app.run(['eval', sys.argv[1], '--json', '--device', 'cpu']))
"""


@pytest.mark.parametrize("change", [*GONE, *SPOILT], ids=lambda change: change.__name__)
def test_row_56_a_whole_evaluation(tmp_path, change):
    """Another process does it once the plan is made."""
    path = own(tmp_path / "w.safetensors", 1)
    other = own(tmp_path / "other.safetensors", 2, DIGITS[::-1])
    process = subprocess.Popen(
        [sys.executable, "-c", CHANGED_UNDER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "now\n"
    expected = api.evaluate(str(path), device="cpu")
    change(path, other)
    out, err = process.communicate("\n", timeout=120)
    if change in GONE:
        assert process.returncode == 0, err
        assert json.loads(out)["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    else:
        assert process.returncode == 4 and "changed while it was read" in json.loads(out)["error"]["message"], err


READS = """
import sys
from pathlib import Path
from vitcli.errors import CheckpointError
from vitcli.evaluate.report import summary
from vitcli.weights import checkpoint
print('ready', flush=True)
counts = [0, 0]
while counts[0] + counts[1] < 150:
    try:
        checkpoint.load(sys.argv[1])
        counts[0] += 1
    except CheckpointError:
        counts[1] += 1
print(*counts)
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz"])
def test_row_56_a_file_that_is_cut_off_again_and_again_kills_nobody(tmp_path, suffix):
    """A file mapped into memory would: SIGBUS."""
    path = foreign(tmp_path / f"w{suffix}", 1)
    whole = path.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-c", READS, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    done = threading.Event()

    def spoil() -> None:
        while not done.is_set():
            os.truncate(path, len(whole) // 3)
            path.write_bytes(whole)
            done.wait(0.003)

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        out, err = process.communicate(timeout=120)
    finally:
        done.set()
        thread.join()
    assert process.returncode == 0, (signal.Signals(-process.returncode) if process.returncode < 0 else "", err)
    assert sum(map(int, out.split())) == 150


def test_row_56_nothing_is_mapped_into_memory():
    for file in Path(held.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in ("memmap", "mmap", "safe_open", "from_file(")), file
