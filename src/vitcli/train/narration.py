"""What a plan decided without being asked for, in words."""

from __future__ import annotations

import numpy as np

from vitcli import flops
from vitcli.config import (
    LENGTHS,
    Config,
    format_size,
)
from vitcli.train.plan import Plan

_UNEQUAL = 2
"""Largest class over smallest from which a run says how it weighs them."""


def said_of(plan: Plan) -> list[str]:
    """What was decided without being asked for, in words."""
    config, asked, said = plan.config, plan.request.overrides, []
    if "run.recipe" not in asked:
        said.append(f"recipe: {config.run.recipe}")
    if plan.parent is None and "model.name" not in asked:
        said.append(
            f"model: {config.model.name} at {format_size(config.model.img_size)} px, "
            f"{flops.parameters(config.model) / 1e6:.1f} M parameters, chosen for {plan.images:,} images of about "
            f"{format_size(plan.native)} px on {plan.machine.device.type}"
        )
    if plan.parent is not None:
        said += plan.parent.notes
        kept = (
            "left out, as what is learned has no labels"
            if not plan.classes
            else "kept: the classes are the same"
            if plan.keep_head
            else f"new, for {len(plan.classes)} classes"
        )
        kept += ", a linear probe of the frozen features at first" if plan.fits_head else ""
        said.append(f"start: {plan.parent.title}; head {kept}")
        if plan.parent.model.img_size != config.model.img_size:
            how = config.model.resampled_from(plan.parent.model)
            times = flops.macs(config.model) / flops.macs(plan.parent.model)
            said.append(f"{how}{'; ' if how else ''}an image costs {times:.2g} times as much")
    if config.train.tuned != "all":
        said.append(_said_of_tuned(config))
    if config.train.teacher:
        said.append(f"teacher: {config.train.teacher}")
    if not any(asked.get(key) is not None for key in LENGTHS):
        said.append(
            f"length: {config.train.epochs:g} epochs"
            if config.train.epochs
            else f"length: {config.train.steps:,} steps"
        )
    parts = {"to train on": plan.train or plan.stream, "to choose weights by": plan.dev, "to measure": plan.held_out}
    counted = [f"{len(part):,} {what}" for what, part in parts.items() if part is not None and len(part)]
    if counted:
        said.append(f"images: {', '.join(counted)}")
    return [*said, *_said_of_classes(plan)]


def _said_of_tuned(config: Config) -> str:
    """How few weights are trained, and what that saves."""
    model, optimizer, tuned = config.model, config.optim.name, config.train.tuned
    own, every = flops.tuned_parameters(model, tuned), flops.parameters(model)
    kept, whole = (flops.update_bytes(model, optimizer, how) / 1e6 for how in (tuned, "all"))
    saved = 1 - flops.training_flops(model, 1, tuned) / flops.training_flops(model, 1)
    return (
        f"tuned: {tuned}, {own:,} of {every:,} parameters ({own / every:.2g}); gradients and optimizer state take {kept:,.3g} MB in place of "
        f"{whole:,.3g}, an update {saved:.0%} fewer FLOPs"
    )


def _said_of_classes(plan: Plan) -> list[str]:
    """That every image counts alike, where classes are of unequal size."""
    if plan.train is None or plan.train.labels is None or not plan.classes or plan.config.data.balanced:
        return []
    counts = np.bincount(plan.train.labels)
    largest, smallest = int(counts.max()), int(counts[counts > 0].min())
    if largest <= _UNEQUAL * smallest:
        return []
    return [
        f"classes: of {smallest:,} to {largest:,} images; every image counts alike, with --set data.balanced=true "
        "every class"
    ]
