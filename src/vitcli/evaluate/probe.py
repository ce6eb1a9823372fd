"""`vit probe`: a classifier of a checkpoint's frozen features, fitted on training images and measured on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vitcli import files
from vitcli.config import Overrides, ProbeConfig, Size
from vitcli.config_values import check_bounds
from vitcli.data.split import Source, Split, also_trained, fraction_of
from vitcli.errors import DataError, UsageError, did_you_mean
from vitcli.evaluate.features import Features, thinned
from vitcli.evaluate.fewshot import fewshot
from vitcli.evaluate.kept import check_file, embedded_parts, write_features
from vitcli.evaluate.linear import SOLVERS, linear_probe
from vitcli.evaluate.nearest import knn
from vitcli.evaluate.subject import Subject, asked_machine, chosen_data, size_for
from vitcli.progress import Progress, silent
from vitcli.weights.asked import asked_checkpoint, section_of


class Method(Protocol):
    """Fits classifiers on features and measures them on others: `results`, a row a classifier with at least `top1` and `n`,
    and whatever else `vit probe --json` is to show. Raises DataError.
    """

    def __call__(self, train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]: ...


def linear(train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]:
    """A linear discriminant or softmax regression, solver and penalty chosen by cross-validation."""
    asked = next(((solver,) for solver in SOLVERS if solver == settings.solver), SOLVERS)
    probe = linear_probe(train, classes, settings.balanced, asked)
    return {
        "results": [{"l2": probe.l2, "top1": probe.top1_on(held_out), "n": len(held_out)}],
        "solver": probe.solver,
        "cross_validation": list(probe.tried),
    }


METHODS: dict[str, Method] = {"linear": linear, "fewshot": fewshot, "knn": knn}


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbePlan(Subject):
    """A probe, resolved and checked."""

    method: str
    source: Source
    train: Split
    held_out: Split
    settings: ProbeConfig
    features: Path | None = None  # a file for what the classifier is fitted and measured on

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit probe --dry-run`."""
        return super().as_json() | {
            "data": self.source.id,
            "train": min(len(self.train), self.settings.images),
            "split": self.held_out.name,
            "n": len(self.held_out),
            "classes": len(self.source.classes),
        }

    def measure(self, progress: Progress = silent) -> dict[str, Any]:
        """The fields of `vit probe --json`. Raises CheckpointError, DataError or ResourceError."""
        features = self.features
        inference = self.inference(progress)
        splits = [thinned(self.train, self.settings.images), self.held_out]
        parts = embedded_parts(inference, splits, self.settings.cache)
        if features is not None:
            about = (
                self.as_json() | {"grid": list(replace(self.description.vit, img_size=self.img_size).grid)}
                if self.settings.patches
                else self.as_json()
            )
            write_features(features, parts, self.source.classes, about, inference if self.settings.patches else None)
        train, held_out = (part.features for part in parts)
        found = METHODS[self.method](train, held_out, len(self.source.classes), self.settings)
        return {
            "method": self.method,
            "results": found["results"],
            "split": self.held_out.name,
            "train_n": len(train),
            **{name: value for name, value in found.items() if name != "results"},
            **({"features": str(features)} if features is not None else {}),
        }


def plan_probe(
    reference: str = "",
    data: str = "",
    split: str = "",
    *,
    method: str = "linear",
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    features: Path | None = None,
    force: bool = False,
    overrides: Overrides | None = None,
) -> ProbePlan:
    """What a classifier of a checkpoint's frozen features is to be fitted and measured on; `features` is a file to write them to.

    Raises CheckpointError, DataError or UsageError.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}", did_you_mean(method, METHODS))
    asked = overrides or {}
    described, data_config, notes = asked_checkpoint(reference, asked, ("eval.", "data.", "probe.", "model."))
    source, found = chosen_data(described, data, data_config)
    settings = ProbeConfig(**section_of(asked, "probe"))  # type: ignore[arg-type]
    check_bounds("probe", settings)
    if features is not None:
        check_file(features, settings.patches)
        files.check_out(features, force)
    elif settings.patches:
        raise UsageError("probe.patches: the features of patches go into a file", "name it with --features F.parquet")
    size = size_for(described, img_size)
    record = described.record()
    train = fraction_of(source.train(data_config.train_split, record), data_config.fraction, 0)
    held_out = source.split(split, record) if split else source.held_out(record)
    for part in (train, held_out):
        if part.sets is not None:
            raise DataError(
                f"the labels of {source.id} are sets", "a probe learns one class an image; fine-tune instead"
            )
        if part.labels is None:
            raise DataError(f"split {part.name!r} of {source.id} has no labels", "a probe learns from labels")
        if not len(part):
            raise DataError(f"split {part.name!r} of {source.id} has no images", "name one that has with --split")
    return ProbePlan(
        description=described,
        img_size=size,
        data=data_config,
        machine=asked_machine(device, precision),
        notes=(*notes, *found, *described.notes),
        warnings=tuple(also_trained(held_out, train, record)),
        method=method,
        source=source,
        train=train,
        held_out=held_out,
        settings=settings,
        features=features,
    )
