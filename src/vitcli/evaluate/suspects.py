"""Labels that are likely wrong: images whose features a classifier of the others takes for another class (Northcutt et al., 2021,
"Confident Learning").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli.config import Overrides
from vitcli.data.split import Source, folds_of
from vitcli.errors import DataError
from vitcli.evaluate.calibration import fitted_temperature
from vitcli.evaluate.features import Features
from vitcli.evaluate.kept import embedded_parts
from vitcli.evaluate.linear import linear_probe
from vitcli.evaluate.subject import Subject, asked_machine, size_for
from vitcli.progress import Progress, silent
from vitcli.weights.asked import asked_checkpoint

_FOLDS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Suspect:
    """An image by its split and position, its label and the class that it looks like, with their probabilities."""

    split: int
    position: int
    label: int
    suggested: int
    chance_of_label: float
    chance_of_suggested: float


def held_out_chances(features: Features, classes: int) -> Float[np.ndarray, "images classes"]:
    """The probability of each class by a linear probe of the other four fifths of the images, at the temperature that suits them all."""
    fold = folds_of(features.targets, _FOLDS, "suspects")
    logits = np.zeros((len(features), classes))
    for index in range(_FOLDS):
        here = fold == index
        probe = linear_probe(features.rows(~here), classes, solvers=("closed",))
        logits[here] = probe.logits(features.rows(here))
    found = torch.from_numpy(logits)
    return (found / fitted_temperature(found, torch.from_numpy(features.targets))).softmax(1).numpy()


def suspects_among(targets: NDArray[np.int64], chances: Float[np.ndarray, "images classes"]) -> NDArray[np.int64]:
    """Which images are likely labelled wrongly, the most likely first.

    An image is of a class with confidence where it is at least as likely of it as the images labelled so are on the average; it is
    suspected where the likeliest of these classes is not its label.
    """
    count = np.bincount(targets, minlength=chances.shape[1])
    own = np.bincount(targets, chances[np.arange(len(targets)), targets], minlength=chances.shape[1])
    usual = np.where(count > 0, own / np.maximum(count, 1), np.inf)
    confident = np.where(chances >= usual, chances, -1.0)
    likeliest = confident.argmax(1)
    found = np.flatnonzero((confident.max(1) >= 0) & (likeliest != targets))
    margin = chances[found, likeliest[found]] - chances[found, targets[found]]
    found, margin = found[margin > 0], margin[margin > 0]
    return found[np.argsort(-margin, kind="stable")]


def suspects_of(
    source: Source,
    readable: Sequence[NDArray[np.int64]],
    reference: str,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
    progress: Progress = silent,
) -> tuple[list[Suspect], tuple[str, ...]]:
    """The suspected labels of all labelled splits of `source` by the features of a checkpoint, and what to say. `readable` are the
    positions of each split that can be read.

    Raises CheckpointError, DataError or UsageError.
    """
    described, data, notes = asked_checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    subject = Subject(
        description=described, img_size=size_for(described, None), data=data, machine=asked_machine(device, precision)
    )
    labelled = [
        (i, split.subset(readable[i]))
        for i, split in enumerate(source.splits.values())
        if split.labels is not None and len(readable[i])
    ]
    if not labelled:
        raise DataError(f"{source.id} has no labels", "labels are compared with predictions")
    inference = subject.inference(progress)
    parts = embedded_parts(inference, [split for _, split in labelled], keep=True)
    features = parts[0].features
    for part in parts[1:]:
        features = features.and_(part.features)
    chances = held_out_chances(features, len(source.classes))
    where = [
        (i, int(readable[i][position]))
        for (i, _), part in zip(labelled, parts, strict=True)
        for position in part.positions
    ]
    found = []
    for index in suspects_among(features.targets, chances):
        label, row = int(features.targets[index]), chances[index]
        likeliest = int(row.argmax())
        found.append(
            Suspect(
                split=where[index][0],
                position=where[index][1],
                label=label,
                suggested=likeliest,
                chance_of_label=float(row[label]),
                chance_of_suggested=float(row[likeliest]),
            )
        )
    return found, (*notes, *described.notes)


def as_json(suspect: Suspect, source: Source, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `label_errors`; `row` says which image it is."""
    return row | {
        "label": source.classes[suspect.label].name,
        "suggested": source.classes[suspect.suggested].name,
        "score": suspect.chance_of_suggested,
        "label_score": suspect.chance_of_label,
    }
