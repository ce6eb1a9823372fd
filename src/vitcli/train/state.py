"""What resume needs: weights, average, optimizer, position in the data and the clock, step by step on disk."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitcli import __version__, files
from vitcli.errors import CheckpointError
from vitcli.train import sharding
from vitcli.weights.checkpoint import Tensors, write_safetensors

KEPT_STEPS = 2
FORMAT = 1
"""Raised whenever what a step folder holds changes its meaning."""
_STEP = re.compile(r"step-(\d{9,})")
_BROKEN = "broken-"
_PARTS = "parts-"


@dataclass(frozen=True, eq=False)
class Saved:
    """A step's tensors by group (trainer.py's, and the probe's of head.py) and its plain values."""

    step: int
    groups: dict[str, Tensors]
    values: dict[str, Any]
    parts: Path | None = None
    """Where the tensors of the trainer lie that are not in `groups`, in parts (sharding.py)."""

    def copied(self) -> Saved:
        """The same in memory of its own, so that training may go on while it is written."""
        groups = {
            name: {k: t.detach().to("cpu", copy=True) for k, t in tensors.items()}
            for name, tensors in self.groups.items()
        }
        return replace(self, groups=groups)

    def unfinite(self) -> str:
        """The first tensor that holds NaN or infinite numbers; empty if none does."""
        for group, tensors in self.groups.items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(sharding.local(tensor)).all():
                    return f"{group} {name}"
        return ""


# --- writing -----------------------------------------------------------------------------------------------


def save(folder: Path, saved: Saved) -> None:
    """Write a step folder, move the pointer, delete what is older than the newest two. Raises ResourceError.

    Nothing is deleted before the two that stay have been read again and have their sha256.
    """
    path = folder / f"step-{saved.step:09d}"
    size = sum(t.numel() * t.element_size() for group in saved.groups.values() for t in group.values())

    def fill(temporary: Path) -> None:
        for name, tensors in saved.groups.items():
            write_safetensors(temporary / f"{name}.safetensors", tensors)
        (temporary / "values.json").write_text(
            json.dumps({"format": FORMAT, "vit": __version__} | saved.values, allow_nan=False), encoding="utf-8"
        )
        if saved.parts is not None:
            for file in saved.parts.iterdir():
                file.rename(temporary / file.name)
            saved.parts.rmdir()

    if not path.exists():
        files.write_folder(path, fill, size)
    files.write_text(folder / "latest", path.name + "\n")
    _retire(folder)


def parts_folder(folder: Path, step: int) -> Path:
    """Where the processes write their parts of a step, before they are its own; `newest` deletes what a killed save left there."""
    return folder / f"{_PARTS}{step:09d}"


def _retire(folder: Path) -> None:
    """Delete all but the newest two whole steps; where there are not two, nothing."""
    steps = _steps(folder)
    if len(steps) <= KEPT_STEPS and not any(folder.glob(f"{_BROKEN}*")):
        return
    whole = 0
    for path in reversed(steps):
        if whole == KEPT_STEPS:
            files.remove_folder(path)
        elif not files.folder_fault(path):
            whole += 1
    if whole == KEPT_STEPS:
        for path in folder.glob(f"{_BROKEN}*"):
            files.remove_folder(path)


class Writer:
    """Writes steps on a thread of its own, one at a time, while training goes on.

    An error of a write is raised where the writer is next asked; until then the step before it is the newest.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Start `work`, after what was begun before. Raises its error."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again where the writer is next asked
                self._error = error

        thread = threading.Thread(target=run, name="vit-save")
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # the system gives no thread
            work()

    def check(self) -> None:
        """Raise the error of a write that has ended; does not wait for one that has not."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written. Raises the error of the write."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error


# --- reading -----------------------------------------------------------------------------------------------


def discard(folder: Path) -> None:
    """Delete all that a finished run will not be resumed from; that it is finished, and how it was configured, stays."""
    (folder / "latest").unlink(missing_ok=True)
    for path in (*_steps(folder), *folder.glob(f"{_BROKEN}*")):
        files.remove_folder(path)
    (folder / "clock.jsonl").unlink(missing_ok=True)


def steps(folder: Path) -> list[int]:
    """The steps that are saved, whole or not, in order."""
    return [_number(path) for path in _steps(folder)]


def _steps(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if p.is_dir() and _STEP.fullmatch(p.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole step, and what was wrong with newer ones, which are set aside under another name.

    Raises CheckpointError where there are steps and none is whole; then nothing is touched.
    """
    names = files.remove_leftovers(folder)
    for left in folder.glob(f"{_PARTS}*"):
        files.remove_folder(left)
        names.append(left.name)
    faults = [f"ignored {name}, which a killed save left" for name in names]
    broken: list[tuple[Path, str]] = []
    for path in reversed(_steps(folder)):
        fault = files.folder_fault(path)
        if fault:
            broken.append((path, fault))
            continue
        saved = _read(path)
        for newer, why in broken:
            _set_aside(newer)
            faults.append(f"{why}; went back to step {saved.step}")
        return saved, faults
    if broken:
        raise CheckpointError(
            f"no saved step of {folder.parent} is whole: {broken[0][1]}",
            "start anew beside it with --resume never, or restore the folder from a copy",
        )
    return None, faults


def named(folder: Path, step: int) -> Saved:
    """This step, for a process that only reads: the one that writes may be at work, perhaps on another machine, so that nothing is
    removed or set aside, and what is newest may be another one by now. Raises CheckpointError where it is not whole.
    """
    path = folder / f"step-{step:09d}"
    fault = files.folder_fault(path)
    if fault:
        raise CheckpointError(fault, "all machines have to see the same run folder; the same command goes on from it")
    return _read(path)


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{_BROKEN}{number}-{path.name}")).exists():
        number += 1
    path.rename(aside)


def _read(path: Path) -> Saved:
    """A step whose files are as they were written. Raises CheckpointError where they are not what this vit writes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        groups = {f.stem: load_file(f) for f in sorted(path.glob("*.safetensors"))}
        values = json.loads((path / "values.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("values.json is not a table")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the saved step {path}: {str(error)[:200]}", "start anew with --resume never"
        ) from None
    written, by = values.pop("format", 1), values.pop("vit", "an older version")
    if written != FORMAT:
        raise CheckpointError(
            f"the saved step {path} was written by vit {by!s:.20} in format {written!s:.20}, and vit {__version__} reads {FORMAT}",
            "go on with that version, or start anew beside it with --resume never",
        )
    return Saved(_number(path), groups, values, path if (path / sharding.METADATA).exists() else None)
