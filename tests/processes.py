"""Real runs in processes of their own, to be killed; and what must be equal however often they were."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conftest import Result
from vitcli import files
from vitcli.train.runlog import read_lines

PATIENCE = float(os.environ.get("VIT_TEST_PATIENCE", "240"))
"""Seconds for anything to happen; only a hang takes so long."""
TIMING = ("seconds", "images_per_second")


class Zygote:
    """The process that forks the others (zygote.py); made when it is first needed."""

    process: subprocess.Popen[str] | None = None
    env: Mapping[str, str] = {}
    """What it was started in: what libraries read of it as they are imported is settled."""

    @classmethod
    def fits(cls, env: Mapping[str, str]) -> bool:
        """Whether a process that it forks is as one that is started in `env`."""
        own = cls.env if cls.process is not None else os.environ
        differ = {name for name in {*own, *env} if own.get(name) != env.get(name)}
        return all(name == "PYTEST_CURRENT_TEST" or (name.startswith("VIT_") and name in env) for name in differ)

    @classmethod
    def ask(cls, order: dict[str, Any]) -> Any:
        if cls.process is None or cls.process.poll() is not None:
            script = Path(__file__).with_name("zygote.py")
            cls.process = subprocess.Popen(
                [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            cls.env = dict(os.environ)
            atexit.register(cls.end, cls.process)
        assert cls.process.stdin is not None and cls.process.stdout is not None
        cls.process.stdin.write(json.dumps(order) + "\n")
        cls.process.stdin.flush()
        return json.loads(cls.process.stdout.readline())

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()


class Started:
    """A `vit` at work."""

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        before: str = "",
        env: dict[str, str] | None = None,
        out: str = "",
        err: str = "",
        stdin: str = "",
    ) -> None:
        """`before` is Python that the process runs first, to inject a fault; `out` and `err` take its output, `stdin` is a file."""
        if not (out and err):
            number = sum(1 for _ in cwd.glob(".*.log"))
            (cwd / f".{number}.log").touch()
        self.out, self.err = Path(out or cwd / f".{number}.out"), Path(err or cwd / f".{number}.err")
        self.pid: int = Zygote.ask(
            {
                "start": {
                    "arguments": [str(a) for a in arguments],
                    "cwd": str(cwd),
                    "before": before,
                    "env": env or {},
                    "out": str(self.out),
                    "err": str(self.err),
                    "stdin": stdin,
                }
            }
        )
        self.code: int | None = None

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def is_over(self) -> bool:
        if self.code is None:
            self.code = Zygote.ask({"poll": self.pid})
        return self.code is not None

    def until(self, condition: Callable[..., object], *arguments: object) -> None:
        """Wait until `condition(*arguments)`; it must come to that before the process ends."""
        deadline = time.monotonic() + PATIENCE
        while not condition(*arguments):
            assert not self.is_over(), f"ended with {self.code} before that: {self.said()}"
            assert time.monotonic() < deadline, f"it never came to that: {self.said()}"
            time.sleep(0.002)

    def wait(self, timeout: float = PATIENCE) -> Result:
        """The end, and what was written in UTF-8."""
        code, out = self.ended(timeout)
        return Result(code, out.decode(), self.said())

    def ended(self, timeout: float = PATIENCE) -> tuple[int, bytes]:
        """The end. A process that does not come to one is killed, and the test fails."""
        deadline = time.monotonic() + timeout
        while not self.is_over():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise AssertionError(f"no end within {timeout:g} s: {self.said()}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code, self.out.read_bytes() if self.out.exists() else b""

    def said(self) -> str:
        return self.err.read_text() if self.err.exists() else ""


def run(arguments: Sequence[object], cwd: Path, **keywords: Any) -> Result:
    return Started(arguments, cwd, **keywords).wait()


def pretrain(data: Path | str, *more: object, steps: int = 12, out: str = "run") -> list[object]:
    """A run of a tiny model that uses all that could differ: mixup, erasing, DropPath, the average of the weights."""
    values = {
        "model.depth": 2,
        "model.drop_path": 0.2,
        "augment.mixup": 0.4,
        "augment.cutmix": 1.0,
        "augment.erase": 0.25,
        "train.ema": 0.9,
        "train.log_every_steps": 1,
        "train.save_every_steps": 2,
        "train.keep_state": "true",
        "train.eval_every_seconds": 0,
        "optim.name": "adamw",
    }
    options = ["--model", "mu/4", "--batch-size", "8", "--steps", steps, "--out", out, "--json"]
    options += ["--device", "cpu", "--precision", "fp32"]  # its bits are compared
    settings = [item for key, value in values.items() for item in ("--set", f"{key}={value}")]
    return ["pretrain", "--data", data, *options, *settings, *more]


SLOW_STEPS = "import time\nfrom vitcli.train import loop\nstep = loop.train_step\n" + (
    "def slow(*arguments):\n    time.sleep(0.05)\n    return step(*arguments)\nloop.train_step = slow\n"
)
"""Steps long enough for a test to act between two of them."""


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl."""
    return max((line["step"] for line in read_lines(folder / "metrics.jsonl")), default=0)


def has_logged(folder: Path, step: int) -> bool:
    return last_step(folder) >= step


def saved_steps(folder: Path) -> list[int]:
    """Steps in state/ that are whole, by their manifests."""
    found = [p for p in (folder / "state").glob("step-*") if not files.folder_fault(p)]
    return sorted(int(p.name.removeprefix("step-")) for p in found)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines without what depends on time."""
    return [{k: v for k, v in line.items() if k not in TIMING} for line in read_lines(folder / "metrics.jsonl")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint, and the newest step's weights, optimizer state and average."""
    newest = max((folder / "state").glob("step-*"))
    found = {f"checkpoint/{k}": t for k, t in load_file(folder / "model.safetensors").items()}
    for file in sorted(newest.glob("*.safetensors")):
        found |= {f"{file.stem}/{k}": t for k, t in load_file(file).items()}
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer state and average bit for bit, and every line of metrics.jsonl but for its timing."""
    a, b = tensors(one), tensors(other)
    assert (
        a.keys() == b.keys() and any(k.startswith("optimizer/") for k in a) and any(k.startswith("average/") for k in a)
    )
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert different == []
    assert metrics(one) == metrics(other)


def flip_bit(path: Path, position: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


class Processes:
    """As many as torchrun would start, without it: each with its exit code and its own output."""

    def __init__(self, arguments: list[str], count: int, cwd: Path, **env: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **env}
        self._place = tempfile.TemporaryDirectory()
        self.all = [
            Started(
                arguments,
                cwd,
                env={**os.environ, **said, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                out=str(Path(self._place.name, f"{rank}.out")),
                err=str(Path(self._place.name, f"{rank}.err")),
            )
            for rank in range(count)
        ]

    def wait(self) -> list[Result]:
        found = [process.wait() for process in self.all]
        self._place.cleanup()
        return found

    def until_step(self, folder: Path, lines: int) -> None:
        """Wait until the run has written so many lines of metrics."""
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + PATIENCE
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= lines):
            assert time.monotonic() < deadline and not any(p.is_over() for p in self.all)
            time.sleep(0.005)
