"""Labels that a teacher gives to images that have none, filtered and balanced (Xie et al., 2020, Noisy Student, §2 and §3.1).

The teacher sees images as it was evaluated, without noise; the student sees them with all of the run's. What it said is
written into the run folder, so that a run that is resumed learns from the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vitcli import files
from vitcli.config import PseudoConfig
from vitcli.data.split import Split
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.inference import Inference
from vitcli.randomness import generator

FILE = "pseudo_labels.safetensors"
_MOST = 10**8
Probabilities = Float[np.ndarray[Any, Any], "images classes"]


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """`probabilities` of every unlabelled image; NaN for one that cannot be read. `places` are those that are learned from, each as
    often as balancing asks, `copies` the number of each repetition.
    """

    probabilities: Probabilities
    places: NDArray[np.int64]
    copies: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most likely class of every image."""
        return np.asarray(np.nan_to_num(self.probabilities).argmax(1))

    def __str__(self) -> str:
        """What became of them, in words."""
        labels, kept = self.labels, np.unique(self.places)
        counts = np.bincount(labels[kept], minlength=self.probabilities.shape[1])
        return (
            f"pseudo-labels: {len(kept):,} of {len(labels):,} images, {counts.min():,} to {counts.max():,} a class, "
            f"seen as {len(self.places):,}"
        )


def chosen(probabilities: Probabilities, settings: PseudoConfig, seed: int) -> PseudoLabels:
    """Those with a confidence of at least `settings.threshold`, most confident first up to the number of images a class; a class with
    fewer is repeated up to it, the last time in part, by chance. Raises DataError where none is left.
    """
    known = np.nan_to_num(probabilities, nan=-1.0)
    confidence, labels = known.max(1), known.argmax(1)
    sure = np.flatnonzero(confidence >= settings.threshold)
    if not len(sure):
        raise DataError(
            f"the teacher is sure of none of the {len(probabilities):,} unlabelled images",
            "lower --set pseudo.threshold=…, or take a better teacher",
        )
    if not settings.balance:
        return PseudoLabels(probabilities, sure, np.zeros(len(sure), np.int64))
    counts = np.bincount(labels[sure], minlength=probabilities.shape[1])
    wanted = settings.images or round(float(counts[counts > 0].mean()))
    if wanted * np.count_nonzero(counts) > _MOST:
        raise UsageError(
            f"pseudo.images = {wanted:,} of {np.count_nonzero(counts):,} classes are more than {_MOST:,} images an epoch",
            "ask for fewer",
        )
    places, copies = [], []
    for label in np.flatnonzero(counts):
        members = sure[labels[sure] == label]
        members = members[np.argsort(-confidence[members], kind="stable")][:wanted]
        whole, rest = divmod(wanted, len(members))
        extra = generator(seed, "balance", int(label)).permutation(len(members))[:rest]
        times = np.full(len(members), whole)
        times[extra] += 1
        places.append(np.repeat(members, times))
        copies.append(np.concatenate([np.arange(n) for n in times]))
    return PseudoLabels(probabilities, np.concatenate(places), np.concatenate(copies))


def labelled(teacher: Inference, outputs: NDArray[np.int64], split: Split, path: Path) -> Probabilities:
    """What the teacher says of each image of `split`, its outputs in the order of the student's classes; from the file at `path`
    where an earlier session has asked it. Raises DataError.
    """
    shape = (len(split), len(outputs))
    if path.exists():
        known: Probabilities = load_file(path)["probabilities"]
        if known.shape == shape:
            return known
    found = np.full(shape, np.nan, np.float32)
    images = teacher.open(split)
    with teacher.running():
        for here, pixels in teacher.batches(images, images.valid, "labelling"):
            found[here] = teacher.logits(pixels)[:, torch.from_numpy(outputs)].softmax(1).cpu().numpy()
    files.write_file(path, lambda temporary: save_file({"probabilities": found}, temporary))
    return found


def targets_of(labels: PseudoLabels, settings: PseudoConfig) -> Probabilities:
    """What a student learns of each unlabelled image: the teacher's probabilities, or its most likely class alone."""
    if settings.labels == "soft":
        return np.nan_to_num(labels.probabilities)
    return np.eye(labels.probabilities.shape[1], dtype=np.float32)[labels.labels]
