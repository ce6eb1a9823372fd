"""What resume needs: weights, average, optimizer, position in the data and the clock, step by step on disk."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli import files
from vitcli.weights.checkpoint import Tensors, write_safetensors

KEPT_STEPS = 2
_STEP = re.compile(r"step-(\d{9})")


@dataclass(frozen=True, eq=False)
class Saved:
    """A step's tensors by group (`model`, `objective`, `average`, `optimizer`) and its plain values."""

    step: int
    groups: dict[str, Tensors]
    values: dict[str, Any]


def save(folder: Path, saved: Saved) -> None:
    """Write a step folder, verify it, move the pointer, delete what is older than the newest two. Raises ResourceError."""
    path = folder / f"step-{saved.step:09d}"
    size = sum(t.numel() * t.element_size() for group in saved.groups.values() for t in group.values())

    def fill(temporary: Path) -> None:
        for name, tensors in saved.groups.items():
            write_safetensors(temporary / f"{name}.safetensors", tensors)
        (temporary / "values.json").write_text(json.dumps(saved.values, allow_nan=False), encoding="utf-8")

    if not path.exists():
        files.write_folder(path, fill, size)
    files.write_text(folder / "latest", path.name + "\n")
    if not files.folder_fault(path):
        for old in _steps(folder)[:-KEPT_STEPS]:
            shutil.rmtree(old, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and _STEP.fullmatch(p.name))


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole step and what was wrong with newer ones, which are set aside."""
    faults = [f"ignored {p.name}, which a killed save left" for p in files.leftovers(folder)]
    for left in files.leftovers(folder):
        shutil.rmtree(left, ignore_errors=True)
    for path in reversed(_steps(folder)):
        fault = files.folder_fault(path)
        if fault:
            faults.append(f"{fault}; went back to an older step")
            path.rename(path.with_name(f"broken-{path.name}"))
            continue
        return _read(path), faults
    return None, faults


def _read(path: Path) -> Saved:
    from safetensors.torch import load_file

    match = _STEP.fullmatch(path.name)
    assert match is not None
    groups = {f.stem: load_file(f) for f in sorted(path.glob("*.safetensors"))}
    return Saved(int(match[1]), groups, json.loads((path / "values.json").read_text(encoding="utf-8")))
