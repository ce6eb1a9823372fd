"""The machine under a run: what is chosen, what is set, what is refused."""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import ABSENT_DEVICE, Result, run_vit, train_run
from vitcli import api
from vitcli.config import RunConfig, model_config
from vitcli.errors import Interrupted, ResourceError
from vitcli.machine import bf16_is_faster, keep_freed_memory, set_up
from vitcli.model.attention import Attention
from vitcli.model.vit import ViT
from vitcli.train.parts import machine_of
from vitcli.train.state import Saved


def test_the_attention_path_that_is_asked_for_is_everyone_s() -> None:
    machine = set_up(RunConfig(device="cpu", attention="recompute"))
    model = machine.place(ViT(model_config("mu/4", (8, 8), 3)))
    paths = [m.path for m in model.modules() if isinstance(m, Attention)]
    assert paths == ["recompute"] * model.config.depth
    assert machine.as_json(50)["attention"] == "recompute"
    assert set_up(RunConfig(device="cpu")).as_json(50)["attention"] == "plain"
    assert set_up(RunConfig(device="cpu")).as_json(5000)["attention"] == "recompute"


def test_compiling_without_a_compiler_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"C\+\+ compiler"):
        set_up(RunConfig(device="cpu", compile=True))


def test_recording_is_of_cuda() -> None:
    with pytest.raises(ResourceError, match="CUDA graphs"):
        set_up(RunConfig(device="cpu", replay=True))
    for compile_ in (None, False):
        machine = set_up(RunConfig(device="cpu", compile=compile_))
        assert (machine.compile, machine.replay) == (False, False), "a CPU has nothing to choose"


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(ResourceError, match=f"no {ABSENT_DEVICE} device"):
        set_up(RunConfig(device=ABSENT_DEVICE))  # type: ignore[arg-type]


@pytest.fixture
def tf32_switches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[str, bool]]:
    """What torch's two switches say; put back afterwards."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    torch.set_float32_matmul_precision("high")
    return lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_no_other_precision_leaves_tf32_on(precision: str, tf32_switches: Callable[[], tuple[str, bool]]) -> None:
    machine = set_up(RunConfig(device="cpu", precision=precision))  # type: ignore[arg-type]
    assert tf32_switches() == ("highest", False)
    assert not machine.tf32 and machine.precision == machine.as_json(50)["precision"] in ("fp32", "bf16")


def on_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"card {capability}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))


@pytest.mark.parametrize(
    ("asked", "capability", "expected"),
    [
        ("auto", (9, 0), "bf16"),
        ("auto", (7, 5), "fp32"),
        ("fp32", (9, 0), "fp32"),
        ("tf32", (8, 0), "tf32"),
        ("bf16", (7, 5), "bf16"),
    ],
)
def test_the_precision_of_a_card(
    monkeypatch: pytest.MonkeyPatch,
    tf32_switches: Callable[[], tuple[str, bool]],
    asked: str,
    capability: tuple[int, int],
    expected: str,
) -> None:
    on_cuda(monkeypatch, capability)
    machine = set_up(RunConfig(device="cuda", precision=asked))  # type: ignore[arg-type]
    assert machine.precision == expected and machine.bf16 == (expected == "bf16")
    assert tf32_switches() == (("high", True) if expected == "tf32" else ("highest", False))
    assert machine.as_json(50) | {"precision": expected, "units": f"card {capability}"} == machine.as_json(50)
    for saved in ("fp32", "bf16", *(["tf32"] if capability >= (8, 0) else [])):  # as a run's state has it
        resumed = machine.at(saved, 1)
        assert (resumed.precision, resumed.threads) == (saved, 1)
        assert tf32_switches() == (("high", True) if saved == "tf32" else ("highest", False))


@pytest.mark.parametrize("device", ["cpu", "an old card"])
def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    if device != "cpu":
        on_cuda(monkeypatch, (7, 5))
    with pytest.raises(ResourceError, match="no TF32") as caught:
        set_up(RunConfig(device="cpu" if device == "cpu" else "cuda", precision="tf32"))
    assert "fp32" in caught.value.hint
    here = set_up(RunConfig(device="cpu"))
    assert here.at("tf32", here.threads).precision == here.precision


WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Environment in which torch behaves as on a CPU without AVX-512."""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="narrows the instructions of an x86 CPU")
def test_row_55_bf16_works_without_units_for_it_and_a_resume_there_says_that_bits_differ(
    class_folders: Path, tmp_path: Path
) -> None:
    def command(steps: int, **environment: str) -> Result:
        return run_vit(
            "pretrain", "--data", class_folders, "--model", "mu/4", "--batch-size", 16, "--steps", steps, "--device", "cpu",
            "--precision", "bf16", "--set", "train.save_every_steps=2", "--set", "train.keep_state=true", "--out", "run", "--json",
            cwd=tmp_path, env=environment,
        )  # fmt: skip

    assert command(4, **WITHOUT_BF16).code == 0
    state = next((tmp_path / "run" / "state").glob("step-*4")) / "values.json"
    assert json.loads(state.read_text())["runtime"]["precision"] == "bf16"
    if not bf16_is_faster(torch.device("cpu")):
        pytest.skip("there are no units for bf16 here to resume without")
    shutil.rmtree(tmp_path / "run")
    interrupted = "import signal\nfrom vitcli.train import loop\nstep, calls = loop.train_step, 0\n" + (
        "def stop(*arguments):\n    global calls\n    calls += 1\n"
        "    if calls == 3: signal.raise_signal(signal.SIGTERM)\n    return step(*arguments)\nloop.train_step = stop\n"
        "from vitcli.cli.app import main\nmain()"
    )
    arguments = f"pretrain --data {class_folders} --model mu/4 --batch-size 16 --steps 6 --device cpu --precision bf16 --out run"
    done = subprocess.run([sys.executable, "-c", interrupted, *arguments.split()], cwd=tmp_path, capture_output=True)
    assert done.returncode == 75, done.stderr
    again = run_vit(*arguments.split(), "--json", cwd=tmp_path, env=WITHOUT_BF16)
    assert again.code == 0 and again.json["resumed_from"] == 3, again
    assert "will not be bit-equal" in again.err and "units" in again.err


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_unless_the_environment_says_how_malloc_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            called.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    keep_freed_memory()
    assert (-4, 0) in called
    called.clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    keep_freed_memory()
    assert called == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_large_tensors_cost_no_page_faults_once_their_places_are_found() -> None:
    code = """
import resource, torch
from vitcli.config import RunConfig
from vitcli.train.parts import machine_of
from vitcli.train.state import Saved
from vitcli.machine import bf16_is_faster, keep_freed_memory, set_up
set_up(RunConfig(device='cpu'))
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
        folder, _ = train_run(
            "pretrain", data=str(class_folders), out=str(tmp_path / name), run__attention=name, **values
        )
        weights.append(api.load(str(folder))[1].state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)


def test_row_55_a_run_that_goes_on_on_a_card_says_that_bits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of it as is to be had without one: what the state says of a CPU is not forced on the card."""
    on_cuda(monkeypatch, (9, 0))
    machine = set_up(RunConfig(device="cuda", precision="auto"))
    said: list[str] = []
    plan = SimpleNamespace(machine=machine, config=SimpleNamespace(model=SimpleNamespace(tokens=50)))
    then = {"device": "cpu", "precision": "fp32", "threads": 2, "attention": "plain"}
    saved = Saved(3, {}, {"runtime": then, "loader": {"step": 3}, "seconds": 1.0})
    resumed = machine_of(plan, saved, Path("run"), lambda event, text: said.append(text))  # type: ignore[arg-type]
    assert resumed.precision == "bf16"
    assert "device cpu → cuda" in said[0] and "will not be bit-equal" in said[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_row_55_a_run_of_the_cpu_goes_on_on_a_card(class_folders: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"model": "mu/4", "batch_size": 16, "precision": "fp32", "steps": 6}
    values |= {"data": str(class_folders), "out": str(tmp_path / "run")}

    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "step" and fields["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_run("pretrain", device="cpu", sinks=[stop], train__log_every_steps=1, **values)
    _, report = train_run("pretrain", device="cuda", **values)
    assert report["steps"] == 6 and any("will not be bit-equal" in text for text in report["warnings"])
