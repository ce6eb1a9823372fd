"""The JSON document in the header of a checkpoint of vit's own: whether each field is of its kind.

A header can be anybody's. What is read here is believed afterwards, printed, and copied into the headers of other checkpoints.
What is in `model` and `preprocessing` is checked as the same keys of a configuration are (config.py).
"""

from __future__ import annotations

import itertools
from typing import Any

from vitcli.config import EvalConfig, Size

_DATA = dict.fromkeys(("id", "name", "revision", "identity", "train_split", "held_out"), "text")
_RUN: dict[str, Any] = {
    "command": "text",
    "data": _DATA,
    "recipe": "text",
    "seed": "count",
    "steps": "count",
    "images_seen": "count",
    "train_flops": "count",
    "path": "text",
    "sha256": "text",
    "parent": {"path": "text", "sha256": "text", "data?": _DATA},
    "resized_from": {"path": "text", "sha256": "text", "grid": ["count"], "method": "text"},
}
_FORM: dict[str, Any] = {
    "version": "text",
    "sha256": "text",
    "model": {},
    "preprocessing": {"size": ["count"]},
    "provenance": _RUN | {"ancestry": [_RUN]},
    "scores": {"split": "text", "n": "count"} | dict.fromkeys(("top1?", "top5?", "loss?", "ece?"), "number"),
    "trained_images": {"images": "count", "complete": "flag", "unknown": ["text"], "digests": "text"},
}
"""A table of fields, all of which may be missing; a list of things of one form; or a kind. A key with ? may be null.
What is not listed may be anything, and classes are read by classes.py."""


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in tree.items()}


def preprocessing(size: Size, config: EvalConfig) -> dict[str, Any]:
    return {
        "size": list(size),
        "crop": config.crop,
        "resize": config.resize,
        "interpolation": config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
        "views": config.views,
        **({"temperature": config.temperature} if config.temperature != 1 else {}),
        **({"scores": config.scores} if config.scores != "softmax" else {}),
    }


_REQUIRED = ("model", "classes", "preprocessing")
_MAX_DEPTH = 20
_LARGEST = 1e300


def check_document(document: dict[str, Any]) -> None:
    """Raises ValueError that names the first field that is missing or of the wrong kind."""
    missing = next((key for key in _REQUIRED if key not in document), None)
    if missing is not None:
        raise ValueError(f"it lacks {missing}")
    _check(document, _FORM, "")
    _check_numbers(document)


def _check(value: Any, form: Any, name: str) -> None:
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no table")
        for entry, inner in form.items():
            key = entry.removesuffix("?")
            if key in value and not (value[key] is None and key != entry):
                _check(value[key], inner, f"{name}.{key}" if name else key)
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for index, item in enumerate(value):
            _check(item, form[0], f"{name}[{index}]")
    elif not _IS[form](value):
        raise ValueError(f"{name} is no {form}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_IS = {
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "number": _is_number,
    "count": lambda value: _is_number(value) and value >= 0,
}


def _check_numbers(document: dict[str, Any]) -> None:
    """Raises ValueError for a number that is none, or that no float holds, and for what is nested out of reason."""
    nodes: list[tuple[str, int, dict[str, Any] | list[Any]]] = [("", 0, document)]
    while nodes:
        name, depth, node = nodes.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"{name} is nested more than {_MAX_DEPTH} deep")
        for key, value in node.items() if isinstance(node, dict) else zip(itertools.repeat(""), node, strict=False):
            if isinstance(value, (dict, list)):
                nodes.append((f"{name}.{key[:80]}".strip("."), depth + 1, value))
            elif isinstance(value, (int, float)) and not -_LARGEST < value < _LARGEST:
                raise ValueError(f"{name}.{key[:80]}".strip(".") + " is no number")


def seen_since_random(provenance: dict[str, Any]) -> int | None:
    """Images on which a checkpoint was trained, from random weights on, by its own run and those before it; None where the
    chain does not begin with a run from random weights, or does not say.
    """
    before = provenance.get("ancestry") or []
    runs = [provenance, *before] if isinstance(before, list) else []
    if not all(isinstance(run, dict) for run in runs) or not runs or runs[-1].get("command") != "pretrain":
        return None
    seen = [run.get("images_seen") for run in runs]
    return sum(seen) if all(isinstance(n, int) and n >= 0 for n in seen) else None
