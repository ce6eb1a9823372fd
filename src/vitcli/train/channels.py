"""What a run does otherwise where its images have other channels than red, green and blue."""

from __future__ import annotations

from dataclasses import fields

from vitcli.config import AugmentConfig, Config, EvalConfig, Overrides, apply
from vitcli.config_values import RGB
from vitcli.errors import UsageError

_OF_COLOURS = ("jitter", "gray", "solarize", "three", "randaugment_layers")
"""Keys of `augment` whose operations mix red, green and blue, or invert values. Crops, flips, blur, mixing and erasing serve any channels."""


def suited_to_channels(config: Config, asked: Overrides, before: EvalConfig | None) -> tuple[Config, list[str]]:
    """`config` without the recipe's augmentation of colours, and with a mean and a deviation for each channel: those asked for, else
    those of the checkpoint that it starts from, `before`, else 0.5; and what to warn of. Raises UsageError for augmentation of
    colours that was asked for, and for a rule of conversion where nothing is converted.
    """
    channels = config.model.channels
    if config.model.channels_from and before is None:
        raise UsageError(
            f"model.channels_from = {config.model.channels_from} converts trained weights, and this run starts from random ones",
            "leave it out",
        )
    if channels == RGB:
        return config, []
    usual = {line.name: line.default for line in fields(AugmentConfig) if line.name in _OF_COLOURS}
    changed = [name for name, value in usual.items() if getattr(config.augment, name) != value]
    wrong = next((name for name in changed if f"augment.{name}" in asked), None)
    if wrong is not None:
        raise UsageError(
            f"augment.{wrong} works on red, green and blue, and model.channels = {channels}",
            "leave it out: crops, flips, blur, mixup, cutmix and erasing serve images of any channels",
        )
    values = {f"augment.{name}": usual[name] for name in changed}
    for name in ("mean", "std"):
        if f"eval.{name}" not in asked and len(getattr(config.eval, name)) != channels:
            values[f"eval.{name}"] = (0.5,) * channels if before is None else getattr(before, name)
    left_out = ", ".join(f"augment.{name}" for name in changed)
    said = [f"model.channels = {channels}: without recipe {config.run.recipe}'s {left_out}"] if changed else []
    return apply(config, values), said
