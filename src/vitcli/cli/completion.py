"""What a shell offers for the values of options and arguments: each function takes what was typed of one.

Nothing here imports torch, as a shell waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

_WEIGHTS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar")


def of(*values: str) -> Callable[[str], list[str]]:
    """Some values that are known."""
    return lambda incomplete: _starting(incomplete, values)


def checkpoints(incomplete: str) -> list[str]:
    """Finished runs, files, and once something is typed the names of trained weights."""
    from vitcli.families.pretrained import table
    from vitcli.runs import WEIGHTS

    runs = [str(path.parent) for path in sorted(Path("runs").glob(f"*/{WEIGHTS}"))]
    names = [name for row in table() for name in (row.name, row.id)] if incomplete else []
    return _starting(incomplete, [*runs, *names]) or _files(incomplete, _WEIGHTS)


def models(incomplete: str) -> list[str]:
    """Sizes with their usual patches, and timm's names."""
    from vitcli.families.pretrained import table

    sizes = [(size, patch) for size in ("Ti", "S", "B", "L", "H") for patch in (4, 8, 14, 16, 32)]
    spelled = [f"ViT-{size}/{patch}" for size, patch in sizes] + [f"{size.lower()}/{patch}" for size, patch in sizes]
    names = [row.name.partition(".")[0] for row in table()]
    return _starting(incomplete, [*spelled, *(name for name in names if "/" not in name)])


def pretrained(incomplete: str) -> list[str]:
    from vitcli.families.pretrained import table

    return _starting(incomplete, [row.name for row in table()])


def data(incomplete: str) -> list[str]:
    """The embedded data, presets, folders and files."""
    from vitcli.data.presets import PRESETS

    return [*_starting(incomplete, ["digits", *PRESETS]), *_files(incomplete)]


def keys(incomplete: str) -> list[str]:
    """Configuration keys; behind the equals sign the values of one that has few."""
    from vitcli import config

    name, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{key}=" for key in _starting(incomplete, config.known_keys())]
    return [f"{name}={choice}" for choice in _starting(value, config.choices(name))]


def recipes(incomplete: str) -> list[str]:
    from vitcli.recipes.table import RECIPES

    return _starting(incomplete, RECIPES)


def _starting(incomplete: str, values: Iterable[str]) -> list[str]:
    """In their own order, each once."""
    return [value for value in dict.fromkeys(values) if value.startswith(incomplete)]


def _files(incomplete: str, endings: tuple[str, ...] = ("",)) -> list[str]:
    """Folders, and files that end so."""
    folder, name = os.path.split(incomplete)
    try:
        found = sorted(os.scandir(Path(folder or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    fitting = [entry for entry in found if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    shown = [entry for entry in fitting if entry.is_dir() or entry.name.endswith(endings)]
    return [os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "") for entry in shown]  # noqa: PTH118 (as typed)
