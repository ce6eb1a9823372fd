"""Run folders as they are found: how a run stands, and which is the newest; without torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError

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
