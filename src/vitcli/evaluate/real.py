"""ImageNet's reassessed labels: every class that an image shows (Beyer et al., 2020, "Are we done with ImageNet?"; paper §4.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.classes import Class, imagenet_1k, match
from vitcli.data.split import Split
from vitcli.errors import DataError
from vitcli.plain import read_plain

_LARGEST = 64 << 20
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
_MOST_STRANGE = 0.5
"""Part of the images whose own label their list lacks, from which on the rows are likely not in the file's order; of ImageNet's
validation set it is a tenth."""


@dataclass(frozen=True, eq=False)
class RealLabels:
    """`lists` holds, for each image of the split, the classes that it shows by the model's numbers; none: it is not counted."""

    lists: Sequence[frozenset[int]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def score(self, positions: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, Any]:
        """`real`, the part of the images whose prediction is one of their labels, and `real_n`, those that have any."""
        shown = [(self.lists[p], int(c)) for p, c in zip(positions.tolist(), predicted, strict=True) if self.lists[p]]
        right = sum(c in labels for labels, c in shown)
        return {"real": right / len(shown) if shown else None, "real_n": len(shown)}


def read_real(path: Path) -> list[list[int]]:
    """A list of classes for each image, as google-research/reassessed-imagenet's real.json has them. Raises DataError."""
    try:
        tree = json.loads(read_plain(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read --real {path}: {str(error)[:200]}", _HINT) from None
    if not isinstance(tree, list):
        raise DataError(f"--real {path} is no list", _HINT)
    for row, labels in enumerate(tree):
        if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
            raise DataError(f"--real {path}: row {row} is {str(labels)[:80]}, no list of classes", _HINT)
    return tree


_HINT = "it is JSON, a list of the classes of each image, such as [[65], [795, 970], []]"


def real_labels(
    path: Path, split: Split, outputs: NDArray[np.int64], known: Sequence[Class], places: NDArray[np.int64]
) -> RealLabels:
    """The reassessed labels of a split's images. `outputs` maps the data's classes to those that count; `places` is what each output of
    the checkpoint, with the classes `known`, counts as.

    A row is found by the ILSVRC number in its file's name, else by its place in the table. The file's numbers are ImageNet's
    classes where all of the checkpoint's are, else the checkpoint's outputs. Raises DataError.
    """
    labels = read_real(path)
    rows, how = _rows(path, split, len(labels))
    most = max((max(item, default=-1) for item in labels), default=-1)
    found = match(imagenet_1k(), known)
    is_imagenet = len({index for index in found if index is not None}) == len(known)
    meant = np.array([-1 if i is None else i for i in found] if is_imagenet else range(len(known)), np.int64)
    if most >= len(meant):
        whose = "ImageNet has 1,000" if is_imagenet else f"the checkpoint has {len(meant):,}"
        raise DataError(f"--real {path} has the class {most}, and {whose}", _HINT)
    counted = np.where(meant >= 0, places[meant], -1)
    lists = [frozenset(int(counted[label]) for label in labels[row]) for row in rows.tolist()]
    numbers = "ImageNet's classes" if is_imagenet else "the checkpoint's outputs"
    notes = [f"--real: images are found by {how}, numbers are {numbers}"]
    without = sum(bool(item) and item == {-1} for item in lists)
    if without:
        notes.append(
            f"--real: {without:,} images show only classes that the checkpoint is not asked for: they count as wrong"
        )
    assert split.labels is not None
    return RealLabels(lists, tuple(notes), _warnings(lists, outputs[split.labels]))


def _warnings(lists: Sequence[frozenset[int]], targets: NDArray[np.int64]) -> tuple[str, ...]:
    """One where the images' own labels are seldom among their reassessed ones."""
    pairs = [(item, int(target)) for item, target in zip(lists, targets, strict=True) if item]
    strange = sum(target not in item for item, target in pairs)
    if not pairs or strange / len(pairs) <= _MOST_STRANGE:
        return ()
    text = f"--real: the label of {strange:,} of {len(pairs):,} images is not among its reassessed ones"
    return (f"{text}: are the images in the order of the file?",)


def _rows(path: Path, split: Split, count: int) -> tuple[NDArray[np.int64], str]:
    """The row of the file for each image of the split, and by what it was found."""
    names = [_NAME.search(name or "") for name in split.paths(np.arange(len(split)))]
    if any(names):
        nameless = next((i for i, name in enumerate(names) if name is None), None)
        if nameless is not None:
            raise DataError(
                f"{split.describe(nameless)} has no ILSVRC2012_val_… number in its name, as others have",
                "the number says which of the lists is an image's",
            )
        rows = np.array([int(name[1]) - 1 for name in names if name], np.int64)
        wrong = np.flatnonzero((rows < 0) | (rows >= count))
        if len(wrong):
            raise DataError(
                f"{split.describe(int(wrong[0]))}: --real {path} has {count:,} lists", "is it the file of these images?"
            )
        return rows, "the numbers in their names"
    if len(split.table) != count:
        raise DataError(
            f"--real {path} has {count:,} lists, and split {split.table_name!r} has {len(split.table):,} rows",
            "images without ILSVRC2012_val_… in their names are matched by their order, and there must be a list for each",
        )
    return split.rows, "their order"
