"""Which outputs of a model count, and for what: a part of its classes, or classes made of several of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.classes import Class, match
from vitcli.errors import UsageError, did_you_mean
from vitcli.plain import read_plain

_LARGEST = 4 << 20


@dataclass(frozen=True, eq=False)
class Outputs:
    """`classes` are those that are told apart; `places` says of each output of the model which of them it stands for, or -1.

    The probability of a class is the sum of its outputs', of all that count: sets such as ImageNet-R and ImageNet-A are scored among
    their own 200 classes (Hendrycks et al., 2021; hendrycks/imagenet-r eval.py).
    """

    classes: tuple[Class, ...]
    places: NDArray[np.int64]

    @cached_property
    def _counted(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.places >= 0))

    def logits(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
        """The logarithm of the sum over each class's outputs of exp(logit)."""
        counted = self._counted.to(logits.device)
        taken = logits[:, counted]
        places = torch.from_numpy(self.places).to(logits.device)[counted].expand_as(taken)
        size = (len(logits), len(self.classes))
        most = torch.full(size, -torch.inf, dtype=taken.dtype, device=taken.device).scatter_reduce(
            1, places, taken, "amax"
        )
        if len(counted) == len(self.classes):
            return most
        return most + torch.zeros_like(most).scatter_add(1, places, (taken - most.gather(1, places)).exp()).log()


def asked_outputs(asked: str, known: Sequence[Class], data: Sequence[Class]) -> Outputs:
    """`data` counts the classes that the data have. A text file names those that count, one a line, or after a tab the class that an
    output stands for; JSON is a list of such names, or an object from outputs to classes.

    Raises UsageError for a file that is neither, or a name that no output has.
    """
    if asked == "data":
        found = {index for index in match(data, known) if index is not None}
        return _part(sorted(found), known)
    named = _read(Path(asked))
    if not named:
        raise UsageError(f"--classes {asked} names no class", "write a name a line")
    found_in = match([Class(output) for output, _ in named], known)
    wrong = next((output for (output, _), index in zip(named, found_in, strict=True) if index is None), None)
    if wrong is not None:
        raise UsageError(
            f"--classes {asked}: no output of the checkpoint is called {wrong[:200]!r}",
            did_you_mean(wrong, [name for c in known for name in (c.name, c.id) if name]),
        )
    indices = [index for index in found_in if index is not None]
    twice = next((named[i][0] for i, index in enumerate(indices) if index in indices[:i]), None)
    if twice is not None:
        raise UsageError(f"--classes {asked} names the output {twice!r} twice", "an output stands for one class")
    if all(target is None for _, target in named):
        return _part(sorted(indices), known)
    targets = list(dict.fromkeys(target or output for output, target in named))
    places = np.full(len(known), -1, np.int64)
    for index, (output, target) in zip(indices, named, strict=True):
        places[index] = targets.index(target or output)
    return Outputs(tuple(map(Class, targets)), places)


def _part(indices: Sequence[int], known: Sequence[Class]) -> Outputs:
    places = np.full(len(known), -1, np.int64)
    places[list(indices)] = np.arange(len(indices))
    return Outputs(tuple(known[index] for index in indices), places)


def _read(path: Path) -> list[tuple[str, str | None]]:
    """Outputs by name, and the class that each stands for where that is another."""
    try:
        text = read_plain(path, _LARGEST).decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            return _of_json(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot read --classes {path}: {str(error)[:200]}",
            "it takes data, a text file with a name a line, or JSON: a list of names, or an object from outputs to classes",
        ) from None
    lines = [line.strip().split("\t") for line in text.splitlines() if line.strip()]
    return [(line[0].strip(), line[1].strip() if len(line) > 1 and line[1].strip() else None) for line in lines]


def _of_json(tree: Any) -> list[tuple[str, str | None]]:
    items: list[tuple[Any, Any]] = list(tree.items()) if isinstance(tree, dict) else [(name, None) for name in tree]
    if not all(isinstance(name, str) and (target is None or isinstance(target, str)) for name, target in items):
        raise ValueError("names are text")
    return items
