"""Checkpoints for images of other channels than the usual three: their statistics, and their conversion on request.

model/channels.py has the rules by which a patch embedding is converted; it is converted where it is read (checkpoint.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.config import Architecture, EvalConfig, choices
from vitcli.config_values import RGB, Stats
from vitcli.errors import CheckpointError, UsageError

KEYS = ("channels", "channels_from")
"""Of `model.`: the channels that are asked for, and the rule."""


def fitted(config: EvalConfig, channels: int, path: Path) -> tuple[EvalConfig, list[str]]:
    """`config`, of somebody else's file, with a mean and a deviation for each channel: where it has those of three and the model takes
    others, their averages, and what to say. Raises CheckpointError for any other number of them.
    """

    def of_each(name: str, values: Stats) -> Stats:
        if len(values) not in (RGB, channels):
            raise CheckpointError(
                f"{path}: {name} beside it has {len(values)} numbers, and its patch embedding {channels} channels",
                "is it the configuration that it belongs to?",
            )
        return values if len(values) == channels else (statistics.fmean(values),) * channels

    found = replace(config, mean=of_each("mean", config.mean), std=of_each("std", config.std))
    if found == config:
        return config, []
    said = f"a guess: mean {found.mean[0]:.3g} and deviation {found.std[0]:.3g} of each of {channels} channels"
    return found, [f"{said}; --set eval.mean=… and eval.std=… replace it"]


def converted(
    path: Path, model: Architecture, config: EvalConfig, asked: Mapping[str, Any]
) -> tuple[Architecture, EvalConfig, tuple[str, ...]]:
    """The model of a checkpoint for the channels that are `asked` for, by the rule that is, its preprocessing, and what to say. Each new
    channel has the mean and the deviation of the channel that its filter comes from, or the averages. Raises UsageError where no rule is
    named.
    """
    old, new, rule = model.channels, asked.get("channels"), asked.get("channels_from", "")
    if new is None or new == old:
        return model, config, ()
    if not rule:
        rules = [name for name in choices("model.channels_from") if name]
        raise UsageError(
            f"model.channels = {new}, and the patch embedding of {path} has {old}",
            f"name how they are converted with --set model.channels_from={' or '.join(rules)}, or leave model.channels out",
        )
    model = replace(model, channels=new, channels_from=rule)
    model.check()

    def of_new(values: Stats) -> Stats:
        average = statistics.fmean(values)
        return tuple(average if rule == "mean" else values[channel % old] for channel in range(new))

    said = f"patch embedding: channels from {old} to {new} ({rule})"
    return model, replace(config, mean=of_new(config.mean), std=of_new(config.std)), (said,)
