"""What the benchmarks share: timm beside a CPU torch, alternating runs, rows of JSON."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def import_timm() -> Any:
    """timm, which imports torchvision, which needs a shim beside a CPU build of torch."""
    importlib.import_module("torchvision_shim")
    return importlib.import_module("timm")


_RUN = "import sys, runpy; sys.path.insert(0, {tests!r}); import torchvision_shim; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run_timm_train(script: str, *arguments: str) -> str:
    """timm's train.py, at `script`, in a process of its own, as its command line would. Returns all that it printed."""
    program = _RUN.format(tests=str(Path(__file__).parents[1] / "tests"))
    command = [sys.executable, "-c", program, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(works: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each, all of them run in turn in every round, so that a slow minute slows all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for index in range(rounds + warm_up):
        for name, work in works.items():
            taken = seconds(work)
            if index >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def show(**row: Any) -> None:
    """A row on stdout, numbers rounded to four digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return value

    print(json.dumps(rounded(row)), flush=True)
