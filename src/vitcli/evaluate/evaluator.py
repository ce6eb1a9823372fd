"""A model over a split, once: decode, predict, count."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.classes import Class, map_labels
from vitcli.config import Overrides, Size
from vitcli.data.split import Source, Split, class_counts
from vitcli.errors import DataError, UsageError
from vitcli.evaluate.calibration import calibrated, most_images
from vitcli.evaluate.features import thinned
from vitcli.evaluate.inference import Inference, alike
from vitcli.evaluate.metrics import METRICS, Metric, Tally, ranked
from vitcli.evaluate.outputs import Outputs, asked_outputs
from vitcli.evaluate.real import RealLabels, real_labels
from vitcli.evaluate.sets import SetEvaluation, evaluate_sets
from vitcli.evaluate.subject import Subject, asked_machine, chosen_data, chosen_split, size_for
from vitcli.progress import Progress, silent
from vitcli.weights import checkpoint
from vitcli.weights.asked import asked_checkpoint, check_names
from vitcli.world import world


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """`metrics` has the fields of the command line; the arrays are aligned with `positions` in the split."""

    metrics: dict[str, Any]
    tally: Tally
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    top: NDArray[np.int64]  # [n, k], best first
    scores: NDArray[np.float64]  # [n, k], softmax
    losses: NDArray[np.float64]  # [n], nats
    unreadable: int
    logits: Float[Tensor, "images classes"] | None = field(default=None, repr=False)  # where they were asked for


def evaluate(inference: Inference, split: Split, outputs: NDArray[np.int64], keep_logits: bool = False) -> Evaluation:
    """Measure a model on a labelled split. `outputs` maps the data's classes to those that the model tells apart.

    Raises DataError at an image that cannot be read, or counts it in `unreadable` with data.on_bad_image=skip.
    """
    assert split.labels is not None
    images = inference.open(split)
    positions, top, scores, losses, kept = images.valid, [], [], [], []
    metrics: dict[str, Metric] = {name: make(inference.classes) for name, make in METRICS.items()}
    k = min(inference.preprocessing.top_k, inference.classes)
    started = time.monotonic()
    with inference.running():
        for here, logits in inference.each(images, positions, "logits"):
            labels = torch.from_numpy(outputs[split.labels[here]])
            for metric in metrics.values():
                metric.add(logits, labels)
            best, logs = ranked(logits, k), logits.double().log_softmax(1)
            top.append(best.numpy())
            scores.append(logs.gather(1, best).exp().numpy())
            losses.append(-logs.gather(1, labels[:, None]).squeeze(1).numpy())
            kept += [logits] if keep_logits else []
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
        losses=np.concatenate(losses) if losses else np.zeros(0),
        unreadable=len(images.bad),
        logits=torch.cat(kept) if kept else None,
    )


# --- the command's plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationPlan(Subject):
    """An evaluation, resolved and checked: `outputs` maps the data's classes to those that count."""

    source: Source
    split: Split
    outputs: NDArray[np.int64]
    counted: Outputs | None = None
    real: RealLabels | None = None

    @property
    def classes(self) -> tuple[Class, ...]:
        """Those that are told apart: the checkpoint's, or what --classes makes of them."""
        return self.description.classes if self.counted is None else self.counted.classes

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit eval --dry-run`."""
        return super().as_json() | {
            "data": self.source.id,
            "split": self.split.name,
            "n": len(self.split),
            "classes": len(self.classes),
        }

    def inference(self, progress: Progress = silent) -> Inference:
        team = alike if world().is_shared else None
        return replace(super().inference(progress), outputs=self.counted, team=team)

    def measure_sets(self, progress: Progress = silent) -> SetEvaluation:
        """As `measure`, of a split whose labels are sets. Raises CheckpointError or DataError."""
        return evaluate_sets(self.inference(progress), self.split, self.outputs)

    def measure(self, progress: Progress = silent, keep_logits: bool = False) -> Evaluation:
        """Load the weights and run over the split. `keep_logits` keeps them where they fit into memory. Raises CheckpointError or
        DataError.
        """
        fitting = len(self.split) <= most_images(len(self.classes))
        return evaluate(self.inference(progress), self.split, self.outputs, keep_logits and fitting)

    def calibrate(self, measured: Evaluation, progress: Progress = silent) -> tuple[dict[str, Any], Tally, Tally]:
        """A temperature for the checkpoint, fitted on one half of the images and measured on the other: its fields (calibration.py), and
        what was counted of that half before and after. Takes the logits that `measured` kept, else those of a part of the images.
        Raises CheckpointError or DataError.
        """
        found = measured
        if found.logits is None:
            part = thinned(self.split, most_images(len(self.classes)))
            found = evaluate(self.inference(progress), part, self.outputs, keep_logits=True)
        if found.logits is None or len(found.logits) < 2:
            raise DataError(
                f"split {self.split.name!r} has {len(found.positions)} images that can be read",
                "a temperature is fitted on one half of them and measured on the other",
            )
        return calibrated(found.logits, torch.from_numpy(found.targets), self.description.eval.temperature)

    def write_calibrated(self, out: Path, temperature: float) -> None:
        """The checkpoint with this temperature in its header, in a file of its own. Raises CheckpointError or ResourceError."""
        described, tensors = checkpoint.load(self.description)
        described, fitting = checkpoint.resized(described, tensors, self.img_size)
        evaluation = replace(self.description.eval, temperature=temperature)
        checkpoint.save(replace(described, path=out, classes=self.description.classes, eval=evaluation), fitting)


def plan_evaluation(
    reference: str = "",
    data: str = "",
    split: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    classes: str = "",
    real: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
    progress: Progress = silent,
) -> EvaluationPlan:
    """What a checkpoint is to be measured on, by default what its training held out. `classes` and `real` are files, as the command
    takes them.

    Raises CheckpointError, DataError or UsageError.
    """
    described, data_config, notes = asked_checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    source, found = chosen_data(described, data, data_config)
    check_names(described)
    size = size_for(described, img_size)
    part, why, warnings = chosen_split(source, split, described, progress)
    if not part.is_labelled:
        raise DataError(f"split {part.name!r} of {source.id} has no labels", "evaluation compares with labels")
    if part.labels is None and (real or classes):
        raise UsageError(f"{'--real' if real else '--classes'}: the labels of {source.id} are sets", "leave it out")
    counts = class_counts(part, len(source.classes)).tolist()
    there = [c for c, count in zip(source.classes, counts, strict=True) if count]
    counted = asked_outputs(classes, described.classes, there) if classes else None
    known = described.classes if counted is None else counted.classes
    try:
        outputs = np.array(map_labels(source.classes, counts, known, source.id), np.int64)
    except DataError as error:
        if counted is None:
            raise
        raise DataError(
            f"--classes {classes}: {error.message.replace('the checkpoint does not know', 'are not among those that count')}",
            "the data's classes are to be among those that the file leaves, under the names that it gives them",
        ) from None
    places = np.arange(len(described.classes)) if counted is None else counted.places
    shown = real_labels(Path(real), part, outputs, described.classes, places) if real else None
    return EvaluationPlan(
        description=described,
        img_size=size,
        data=data_config,
        machine=asked_machine(device, precision),
        notes=(*notes, *found, *described.notes, *why, *(shown.notes if shown else ())),
        warnings=(*warnings, *(shown.warnings if shown else ())),
        source=source,
        split=part,
        outputs=outputs,
        counted=counted,
        real=shown,
    )
