"""The machine under a run: what is chosen, what is set, what is refused."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcli import api
from vitcli.config import RunConfig, model_config
from vitcli.errors import ResourceError
from vitcli.model.attention import Attention
from vitcli.model.vit import ViT
from vitcli.train import runtime


def test_the_attention_path_that_is_asked_for_is_everyone_s() -> None:
    machine = runtime.start(RunConfig(attention="recompute"))
    model = machine.place(ViT(model_config("mu/4", (8, 8), 3)))
    paths = [m.path for m in model.modules() if isinstance(m, Attention)]
    assert paths == ["recompute"] * model.config.depth
    assert machine.as_json(50)["attention"] == "recompute"
    assert runtime.start(RunConfig()).as_json(50)["attention"] == "plain"
    assert runtime.start(RunConfig()).as_json(5000)["attention"] == "recompute"


def test_compiling_without_a_compiler_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"C\+\+ compiler"):
        runtime.start(RunConfig(compile=True))


def test_a_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ResourceError, match="no cuda device"):
        runtime.start(RunConfig(device="cuda"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_unless_the_environment_says_how_malloc_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            called.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    runtime.keep_freed_memory()
    assert (-4, 0) in called
    called.clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    runtime.keep_freed_memory()
    assert called == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_large_tensors_cost_no_page_faults_once_their_places_are_found() -> None:
    code = """
import resource, torch
from vitcli.config import RunConfig
from vitcli.train import runtime
runtime.start(RunConfig())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(10_000_000) for _ in range(3)]
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [faults() for _ in range(8)]
print(found[0], found[-1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, later = map(int, done.stdout.split())
    assert later < first / 20 or first < 100  # with huge pages there are few to begin with


@pytest.mark.parametrize("path", ["plain", "recompute", "fused"])
def test_a_run_trains_by_each_attention_path_to_the_same_weights_up_to_rounding(
    class_folders: Path, tmp_path: Path, path: str
) -> None:
    values: dict[str, Any] = {"model": "mu/4", "steps": 4, "batch_size": 16, "precision": "fp32", "optim__name": "sgd"}
    weights = []
    for name in ("auto", path):
        folder, _ = api.train(
            "pretrain", data=str(class_folders), out=str(tmp_path / name), run__attention=name, **values
        )
        weights.append(api.load(str(folder))[1].state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)
