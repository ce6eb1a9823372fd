"""A checkpoint as a command asks for it: which one, with which values in place of its own, at which image size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitcli.config import Config, DataConfig, EvalConfig, Overrides, Size, apply, check_statistics
from vitcli.config_values import check_bounds
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.classifier import Classifier
from vitcli.runs import newest_finished
from vitcli.weights import checkpoint
from vitcli.weights.describe import Description, Opened, describe, open_checkpoint
from vitcli.weights.locate import locate


def located(reference: str) -> tuple[Path, list[str]]:
    """The checkpoint that is named, else that of the newest finished run, and what to say. Raises CheckpointError."""
    if reference:
        return locate(reference), []
    path = newest_finished()
    return path, [f"checkpoint: {path}, the newest finished run"]


def check_fitting(overrides: Overrides, fitting: tuple[str, ...]) -> None:
    """Raises UsageError for a configuration value that does not begin with one of `fitting`."""
    wrong = next((key for key in overrides if not key.startswith(fitting)), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} does not concern a measurement", f"it takes --set {', '.join(f + '…' for f in fitting)} only"
        )


def section_of(overrides: Overrides, section: str) -> dict[str, object]:
    """The values of one section by their keys."""
    return {key.partition(".")[2]: value for key, value in overrides.items() if key.startswith(f"{section}.")}


def asked_checkpoint(
    reference: str, overrides: Overrides, fitting: tuple[str, ...]
) -> tuple[Description, DataConfig, list[str]]:
    """The checkpoint with the preprocessing asked for in its place, how to read data, and what to say.

    Raises CheckpointError, or UsageError for a configuration value that does not begin with one of `fitting`.
    """
    path, notes = located(reference)
    check_fitting(overrides, fitting)
    described = describe(path, overrides)
    config: EvalConfig = replace(described.eval, **section_of(overrides, "eval"))  # type: ignore[arg-type]
    check_bounds("eval", config)
    check_statistics(described.model, config)
    data = apply(Config(), {k: v for k, v in overrides.items() if k.startswith("data.")}).data
    return replace(described, eval=config), data, notes


def opened_checkpoint(reference: str, overrides: Overrides) -> tuple[Opened, list[str]]:
    """A checkpoint whose weights are read one by one, and what to say. Raises CheckpointError or UsageError."""
    path, notes = located(reference)
    opened = open_checkpoint(path, overrides)
    checkpoint.check_digest(opened)
    return opened, notes


def loaded(
    reference: str | Description, img_size: Size | None = None, labels: str = "", overrides: Overrides | None = None
) -> tuple[Description, Classifier]:
    """A checkpoint's description and its model, resized to `img_size`.

    `overrides` are `model.` values for what somebody else's file does not say; a checkpoint that is described already is
    read as it was. Raises CheckpointError or UsageError.
    """
    description, tensors = checkpoint.load(reference, overrides)
    description, fitting = checkpoint.resized(description, tensors, img_size or description.model.img_size)
    return description.labelled(labels), checkpoint.model_with(description.model, fitting)


def check_names(described: Description) -> None:
    """Raises CheckpointError where a checkpoint has no classes, or does not name them."""
    if described.model.classes == 0:
        raise CheckpointError(
            f"{described.path} has no classification head", "fine-tune it first: vit finetune CKPT --data DATA"
        )
    if not described.classes:
        hint = (
            "name them with --labels imagenet-1k"
            if described.model.classes == 1000
            else "name them with --labels FILE, a name a line"
        )
        raise CheckpointError(f"{described.path} does not name its {described.model.classes} classes", hint)
