"""The machine under a command: device, precision, threads, memory that is kept, speed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from vitcli import host
from vitcli.config import RunConfig
from vitcli.config_values import check_bounds
from vitcli.errors import ResourceError
from vitcli.model.attention import AttentionPath, best_path
from vitcli.model.classifier import Classifier
from vitcli.model.linear import onednn_has_bf16

M = TypeVar("M", bound=Classifier)

Precision = Literal["fp32", "tf32", "bf16"]
"""`fp32` is exact; `tf32` rounds the factors of matrix products to 10 bits, on CUDA; `bf16` is autocast to bfloat16."""


@dataclass(frozen=True)
class Machine:
    """What decides bits besides the configuration."""

    device: torch.device
    bf16: bool
    threads: int
    attention: AttentionPath | None = field(default=None, kw_only=True)  # None: the fastest for device and length
    tf32: bool = field(default=False, kw_only=True)
    compile: bool | None = field(default=False, kw_only=True)  # None: where a run is long enough for it to pay
    replay: bool | None = field(default=False, kw_only=True)
    """Of a recorded update; None: where launching takes longer than computing."""

    @property
    def precision(self) -> Precision:
        return "bf16" if self.bf16 else "tf32" if self.tf32 else "fp32"

    @property
    def numbers(self) -> torch.device:
        """Where random numbers are made."""
        return host.numbers_of(self.device)

    def at(self, precision: str, threads: int, compile: bool | None = None, replay: bool | None = None) -> Machine:
        """The same machine set to another precision, number of threads, compilation and replay, as a saved run's. A precision that it lacks
        stays.
        """
        if precision not in ("fp32", "tf32", "bf16") or (precision == "tf32" and not _has_tf32(self.device)):
            precision = self.precision
        torch.set_num_threads(threads)
        _set_tf32(precision == "tf32")
        compile, replay = self.compile if compile is None else compile, self.replay if replay is None else replay
        return replace(
            self,
            bf16=precision == "bf16",
            tf32=precision == "tf32",
            threads=threads,
            compile=compile,
            replay=replay,
        )

    def as_json(self, tokens: int) -> dict[str, Any]:
        return {
            "device": self.device.type,
            "units": _units(self.device),
            "precision": self.precision,
            "threads": self.threads,
            "attention": self.attention or best_path(self.device.type, tokens),
            "compile": self.compile,
            "replay": self.replay,
            "torch": torch.__version__,
        }

    def seed(self, seed: int) -> None:
        """Set torch's own generators, of the CPU and of the device. torch.manual_seed does it for every kind of device, which takes
        a millisecond where there is none, since it writes down the stack for each.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def place(self, model: M) -> M:
        """`model` on the device, with the attention path that was asked for."""
        model.to(self.device)
        model.use_attention(self.attention)
        return model


def set_up(run: RunConfig) -> Machine:
    """Choose and set up the machine. Raises ResourceError for a device, a precision or a compiler that is not there,
    UsageError for a number of threads or a seed that no machine takes.
    """
    check_bounds("run", run)
    device = find_device(run.device)
    if run.replay and device.type != "cuda":
        raise ResourceError(f"run.replay records CUDA graphs, and this is {device.type}", "leave it out")
    if run.threads:
        torch.set_num_threads(run.threads)
    if device.type == "cpu":
        keep_freed_memory()
        if run.compile and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))):
            raise ResourceError("run.compile needs a C++ compiler, and there is none", "install g++, or leave it off")
    precision = _precision(run.precision, device)
    _set_tf32(precision == "tf32")
    attention: AttentionPath | None = None if run.attention == "auto" else run.attention
    if run.deterministic and device.type == "cuda" and attention is None:
        attention = "plain"  # fused kernels add in any order, and where they are only warned go on doing so
    # what is left open is chosen where there is something to choose, and not by a clock where equal runs must have equal bits
    left = None if device.type == "cuda" and not run.deterministic else False
    if run.deterministic:
        _be_deterministic()
    return Machine(
        device,
        precision == "bf16",
        torch.get_num_threads(),
        attention=attention,
        compile=left if run.compile is None else run.compile,
        tf32=precision == "tf32",
        replay=left if run.replay is None else run.replay,
    )


def _be_deterministic() -> None:
    """Kernels that add in the same order every time, where CUDA has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # some have no other kernel, and say so
    torch.backends.cudnn.benchmark = False


def _precision(asked: str, device: torch.device) -> Precision:
    """`auto` is bf16 on units made for it and fp32 elsewhere, never tf32: hardware that has TF32 has bf16 too, which is
    twice as fast. Raises ResourceError for TF32 where there is none.
    """
    if asked == "auto":
        return "bf16" if bf16_is_faster(device) else "fp32"
    if asked == "tf32" and not _has_tf32(device):
        raise ResourceError(
            f"--precision tf32: this {device.type} device has no TF32",
            "it is a precision of CUDA cards from Ampere on; take fp32 or bf16",
        )
    return "tf32" if asked == "tf32" else "bf16" if asked == "bf16" else "fp32"


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _set_tf32(allowed: bool) -> None:
    """Both switches, each time: torch leaves cuDNN's on by default, and a notebook may have turned either."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _units(device: torch.device) -> str:
    """What computes, as far as it decides bits: the instructions of a CPU, the name of a card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability() + (" with bf16" if bf16_is_faster(device) else "")
    return ""


_MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26), "M_MMAP_MAX": (-4, 0)}
"""Options of glibc's malloc (malloc.h): their numbers and values."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, for the next step, rather than give it back to the system.

    A step frees hundreds of megabytes that the next one asks for again, and each page then costs a fault: a
    forward pass of ViT-S/16 took up to 1.6 s where it takes 1.0 s without them. Peak memory is the same. Does nothing
    with other allocators, or where the environment sets malloc's own variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in _MALLOPT.values():
            library.mallopt(option, value)


def find_device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ResourceError(
            f"there is no {name} device on this machine", f"available: {there}; leave --device out to take the best"
        )
    return torch.device(name)


def bf16_is_faster(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on units made for them.

    Decided by the hardware, not by timing, so that equal commands give equal bits. On a CPU with AVX512-BF16
    such products are 4.6 times as fast as in float32, and a training step of the small model about twice.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return onednn_has_bf16() and _has_bf16_units()
    return False


def _has_bf16_units() -> bool:
    """AVX512-BF16 or AMX on x86; on other processors what oneDNN says is enough."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "flags" not in flags or "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass(frozen=True)
class Timing:
    """Seconds until the host had launched some work, and until the device had done it."""

    launched: float
    done: float

    @property
    def launch_share(self) -> float:
        return min(1.0, self.launched / max(self.done, 1e-9))


def timing_of(work: Callable[[], Any], device: torch.device) -> Timing:
    """Of `work` on a device that has nothing else to do."""
    started = time.perf_counter()
    work()
    launched = time.perf_counter() - started
    wait_for(device)
    return Timing(launched, time.perf_counter() - started)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """How long `work` takes, the device's share included."""
    return timing_of(work, device).done


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_flops(machine: Machine, side: int = 0) -> float:
    """FLOPs a second of a square matrix product in the run's precision: the best of five of 4096³, 8192³ on a GPU, or side³."""
    side = side or (8192 if machine.device.type == "cuda" else 4096)
    dtype = torch.bfloat16 if machine.bf16 else torch.float32
    a, b = (torch.randn(side, side, device=machine.device).to(dtype) for _ in range(2))
    seconds_of(lambda: a @ b, machine.device)
    return float(2 * side**3 / min(seconds_of(lambda: a @ b, machine.device) for _ in range(5)))


_COPIED = {"cpu": 2**28, "mps": 2**28, "cuda": 2**30}


def peak_bandwidth(machine: Machine) -> float:
    """Bytes a second, read and written, of copying what no cache holds: the best of five."""
    size = _COPIED[machine.device.type]
    source = torch.zeros(size, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), machine.device) for _ in range(6)]
    return 2 * size / min(times[1:])
