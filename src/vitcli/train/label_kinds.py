"""What a configuration has to do with the labels of the data: sets in place of one an image, or none at all."""

from __future__ import annotations

import numpy as np

from vitcli.config import Config, Overrides, apply, as_dict, check
from vitcli.errors import UsageError
from vitcli.train.gathering import RunData
from vitcli.train.objectives.base import Objective


def of_sets(config: Config, data: RunData, overrides: Overrides, objective: type[Objective]) -> Config:
    """`config` for data whose labels are sets: a sigmoid loss, and a new head that begins at how often a class is there. Raises UsageError for
    what was asked for and takes one label an image.
    """
    if data.train is None or data.train.sets is None or not objective.needs_labels:
        return config
    if not objective.takes_sets or config.data.unlabelled:
        raise UsageError(
            f"train.objective = {config.train.objective} learns one label an image, and those of the data are sets",
            "leave --objective, --teacher and --unlabelled out",
        )
    for name, usual_ in _OF_ONE_LABEL.items():
        if overrides.get(name, usual_) not in (usual_, "bce" if name == "train.loss" else usual_):
            way = "leave it out" + (
                "; vit sweep, which needs it, is of one label an image" if name == "train.dev" else ""
            )
            raise UsageError(
                f"{name} = {overrides[name]} takes one label an image, and those of the data are sets", way
            )
    loss = "bce" if config.train.loss == "bce" else "sigmoid"
    often = float(np.clip(data.train.sets.mean(), 1e-4, 1 - 1e-4))
    values = dict(_OF_ONE_LABEL) | {"train.loss": loss, "eval.scores": "sigmoid"}
    values["train.head_bias"] = overrides.get("train.head_bias", float(np.log(often / (1 - often))))
    return check(apply(config, values))


_OF_ONE_LABEL: Overrides = {
    "train.loss": "sigmoid",
    "train.label_smoothing": 0.0,
    "train.head": "zero",
    "train.keep": "auto",
    "train.dev": 0.0,
    "train.report_on": "held-out",
    "data.balanced": False,
    "eval.scores": "sigmoid",
}
"""What takes one label an image, at what it is where labels are sets."""


_OF_LABELS = (
    "train.loss",
    "train.label_smoothing",
    "train.class_weights",
    "train.head_bias",
    "train.head",
    "train.keep",
    "train.dev",
    "train.report_on",
    "data.balanced",
    "augment.mixup",
    "augment.cutmix",
    "run.labels",
)


def without_labels(config: Config, overrides: Overrides, objective: type[Objective]) -> Config:
    """`config` without what concerns labels, where there are none to learn. Raises UsageError for what was asked of it."""
    if objective.needs_labels:
        return config
    usual_ = {f"{s}.{k}": v for s, values in as_dict(Config()).items() for k, v in values.items()}
    for name in _OF_LABELS:
        if overrides.get(name, usual_[name]) != usual_[name]:
            raise UsageError(
                f"{name} concerns labels, and train.objective = {config.train.objective} learns none", "leave it out"
            )
    return apply(config, {name: usual_[name] for name in _OF_LABELS})
