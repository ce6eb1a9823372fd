"""Run folders as they are found: how a run stands, and which is the newest; without torch."""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcli.config import Architecture, from_dict
from vitcli.errors import CheckpointError, UsageError

RUNS = Path("runs")
WEIGHTS = "model.safetensors"


def status(folder: Path) -> dict[str, Any]:
    """`state/status.json`; empty where there is none."""
    return _table(folder / "state" / "status.json")


def killed(folder: Path) -> str:
    """Where a run says that it is running and no process is at work on it, what ended it, in words; else empty."""
    if status(folder).get("status") != "running" or is_held(folder):
        return ""
    return ended(folder)


def ended(folder: Path) -> str:
    """What is to be said of a run that was killed."""
    step = _last_step(folder)
    return (
        f"the run in {folder} was killed {f'after step {step}' if step else 'before its first step'} without a word: "
        "by kill -9, by a crash, or by the system for want of memory, where --set train.accumulate=… helps"
    )


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run folder, or may be. Writes nothing."""
    try:
        import fcntl

        with (folder / "state" / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True


def newest_finished() -> Path:
    """The checkpoint of the newest finished run under ./runs. Raises CheckpointError."""
    done = [p for p in RUNS.glob("*") if status(p).get("status") == "done" and (p / WEIGHTS).is_file()]
    if not done:
        raise CheckpointError(
            "no checkpoint given, and no finished run under ./runs", "name a checkpoint, or train one with vit pretrain"
        )
    return max(done, key=lambda p: (p / WEIGHTS).stat().st_mtime_ns) / WEIGHTS


def _last_step(folder: Path) -> int:
    """The last step that was logged."""
    with contextlib.suppress(OSError):
        for line in reversed((folder / "metrics.jsonl").read_bytes().splitlines()):
            with contextlib.suppress(ValueError, RecursionError, AttributeError):
                step = json.loads(line).get("step")
                if isinstance(step, int):
                    return step
    return 0


def _table(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


# --- a list of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """A run folder, as far as its files tell: `status` is running, saved, done or failed, or killed where nobody is at work on it."""

    folder: Path
    status: str
    time: str  # of the status, in UTC
    model: Architecture | None
    data: str
    report: dict[str, Any] = field(repr=False)

    @property
    def top1(self) -> float | None:
        return number(self.scores.get("top1"))

    @property
    def scores(self) -> dict[str, Any]:
        """The report's `eval`."""
        found = self.report.get("eval")
        return found if isinstance(found, dict) else {}

    def as_json(self) -> dict[str, Any]:
        """A row of `vit runs --json`."""
        return {
            "run": str(self.folder),
            "model": self.model.name if self.model else None,
            "data": self.data or None,
            "top1": self.top1,
            "status": self.status,
            "time": self.time or None,
            "bytes": sum(size for size in map(_size, self.folder.rglob("*"))),
        }


def number(value: Any) -> float | None:
    """A finite number; None for anything else that a file may hold."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_one else None


def is_run(folder: Path) -> bool:
    return (folder / "state" / "status.json").is_file() or (folder / "run.toml").is_file()


def read_run(folder: Path) -> Run:
    """What a run folder tells; what cannot be read of it is left out."""
    said, values = status(folder), settings(folder)
    model = None
    with contextlib.suppress(UsageError, TypeError, ValueError):
        model = from_dict("model", values["model"]) if isinstance(values.get("model"), dict) else None
    data = values.get("data", {})
    stands = said.get("status") if isinstance(said.get("status"), str) else ""
    stands = stands or ("done" if (folder / "report.json").is_file() else "unknown")
    return Run(
        folder=folder,
        status="killed" if killed(folder) else stands,
        time=str(said.get("time", "")),
        model=model,
        data=str(data.get("source", "")) if isinstance(data, dict) else "",
        report=_table(folder / "report.json"),
    )


def newest_first(folders: Iterable[Path]) -> list[Run]:
    """The runs among these folders."""
    return sorted(
        (read_run(f) for f in folders if is_run(f)), key=lambda run: (run.time, str(run.folder)), reverse=True
    )


def settings(folder: Path) -> dict[str, Any]:
    """`run.toml`; empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return tomllib.loads((folder / "run.toml").read_text(encoding="utf-8", errors="surrogateescape"))
    return {}


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return 0
