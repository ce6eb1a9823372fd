"""A model over a split, once: decode, predict, count."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitcli.classes import map_labels
from vitcli.config import Overrides, Size
from vitcli.data.split import Source, Split
from vitcli.errors import DataError
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.metrics import METRICS, Metric, Tally
from vitcli.evaluate.subject import Subject, asked_machine, chosen_data, chosen_split, size_for
from vitcli.progress import Progress, silent
from vitcli.weights.asked import asked_checkpoint, check_names


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """`metrics` has the fields of the command line; the arrays are aligned with `positions` in the split."""

    metrics: dict[str, Any]
    tally: Tally
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    top: NDArray[np.int64]  # [n, k], best first
    scores: NDArray[np.float64]  # [n, k], softmax
    unreadable: int


def evaluate(inference: Inference, split: Split, outputs: NDArray[np.int64]) -> Evaluation:
    """Measure a model on a labelled split. `outputs` maps the data's classes to the model's.

    Raises DataError at an image that cannot be read, or counts it in `unreadable` with data.on_bad_image=skip.
    """
    assert split.labels is not None
    classes = inference.model.config.classes
    images = inference.open(split)
    positions, top, scores = images.valid, [], []
    metrics: dict[str, Metric] = {name: make(classes) for name, make in METRICS.items()}
    k = min(inference.preprocessing.top_k, classes)
    started = time.monotonic()
    with inference.running():
        for here, pixels in inference.batches(images, positions):
            logits, labels = inference.logits(pixels), torch.from_numpy(outputs[split.labels[here]])
            for metric in metrics.values():
                metric.add(logits, labels)
            best = logits.cpu().double().softmax(1).topk(k, 1)
            top.append(best.indices.numpy())
            scores.append(best.values.numpy())
    seconds = time.monotonic() - started
    tally = metrics["classification"]
    assert isinstance(tally, Tally)
    measured = {name: value for metric in metrics.values() for name, value in metric.result().items()}
    return Evaluation(
        metrics={
            "split": split.name,
            **measured,
            "seconds": seconds,
            "images_per_second": len(positions) / seconds if seconds else 0.0,
        },
        tally=tally,
        positions=positions,
        targets=outputs[split.labels[positions]],
        top=np.concatenate(top) if top else np.zeros((0, k), np.int64),
        scores=np.concatenate(scores) if scores else np.zeros((0, k)),
        unreadable=len(images.bad),
    )


# --- the command's plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationPlan(Subject):
    """An evaluation, resolved and checked: `outputs` maps the data's classes to the checkpoint's."""

    source: Source
    split: Split
    outputs: NDArray[np.int64]

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit eval --dry-run`."""
        return super().as_json() | {
            "data": self.source.id,
            "split": self.split.name,
            "n": len(self.split),
            "classes": len(self.classes),
        }

    def measure(self, progress: Progress = silent) -> Evaluation:
        """Load the weights and run over the split. Raises CheckpointError or DataError."""
        return evaluate(self.inference(progress), self.split, self.outputs)


def plan_evaluation(
    reference: str = "",
    data: str = "",
    split: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
    progress: Progress = silent,
) -> EvaluationPlan:
    """What a checkpoint is to be measured on, by default what its training held out.

    Raises CheckpointError, DataError or UsageError.
    """
    described, data_config, notes = asked_checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    source, found = chosen_data(described, data, data_config)
    check_names(described)
    size = size_for(described, img_size)
    part, why, warnings = chosen_split(source, split, described, progress)
    if part.labels is None:
        raise DataError(f"split {part.name!r} of {source.id} has no labels", "evaluation compares with labels")
    counts = np.bincount(part.labels, minlength=len(source.classes)).tolist()
    return EvaluationPlan(
        description=described,
        img_size=size,
        data=data_config,
        machine=asked_machine(device, precision),
        notes=(*notes, *found, *described.notes, *why),
        warnings=warnings,
        source=source,
        split=part,
        outputs=np.array(map_labels(source.classes, counts, described.classes, source.id), np.int64),
    )
