"""From what was asked to a plan: the checkpoint, the data, the classes, the recipe, the memory, each resolved in its turn."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli import classes as class_names
from vitcli import runs
from vitcli.classes import Class
from vitcli.config import (
    OBJECTIVE_SECTIONS,
    Config,
    DataConfig,
    Overrides,
    apply,
    as_dict,
    check,
)
from vitcli.data.sources import by_name
from vitcli.errors import ResourceError, UsageError
from vitcli.families.table import size_said
from vitcli.machine import Machine, peak_flops, set_up
from vitcli.recipes.facts import Facts
from vitcli.recipes.table import OURS, configure, default_recipe, evaluated_as_trained, fitted_to_data
from vitcli.train import estimate as estimating
from vitcli.train import memory
from vitcli.train.channels import suited_to_channels
from vitcli.train.estimate import NO_ESTIMATE, Estimate
from vitcli.train.gathering import RunData, data_of, reading_of, unlabelled_of, with_dev
from vitcli.train.label_kinds import of_sets, without_labels
from vitcli.train.narration import said_of
from vitcli.train.objectives.base import Objective
from vitcli.train.objectives.classify import BALANCED
from vitcli.train.objectives.table import objective_named
from vitcli.train.plan import Plan, Request
from vitcli.train.teacher import with_teacher
from vitcli.weights.describe import DESCRIBED, Description, describe
from vitcli.weights.document import seen_since_random
from vitcli.weights.locate import locate


def make_plan(request: Request) -> Plan:
    """Resolve and check everything. Raises the error of whatever does not fit; writes nothing."""
    overrides = request.overrides
    objective = objective_named(overrides.get("train.objective", "classify"))
    # what it starts from, learns from and runs on
    parent = _parent(request)
    reading, notes = reading_of(overrides, parent)
    machine = set_up(apply(Config(), {k: v for k, v in overrides.items() if k.startswith("run.")}).run)
    data = data_of(request, reading, objective, parent)
    classes, outputs, keep_head = _classes(data.classes, parent)
    if not objective.needs_labels and data.source is not None:
        outputs = np.arange(
            len(data.source.classes), dtype=np.int64
        )  # for what it may measure with labels that are there
    unlabelled, further = unlabelled_of(request, reading, data)
    # what the recipe makes of that, and what was asked for instead
    images = data.images + (0 if unlabelled is None else len(unlabelled))
    facts = _facts(
        request, replace(data, images=images), len(classes), parent, machine, new_head=bool(classes) and not keep_head
    )
    config, unsuited = _configured(request, reading, facts, parent, objective, keep_head)
    config = of_sets(config, data, overrides, objective)
    config = with_teacher(_taught(config, objective, parent), classes, by_name=data.source is not None)
    objective.check(config)
    config, too_large = _in_memory(config, machine, overrides, data.source is None)
    config, train, dev = with_dev(config, data.train, "train.dev" in overrides)
    plan = Plan(
        config=config,
        request=request,
        machine=machine,
        source=data.source,
        train=train,
        held_out=dev if config.train.report_on == "dev" else data.held_out,
        dev=dev,
        unlabelled=unlabelled,
        native=data.native,
        uniform=data.uniform,
        classes=classes,
        outputs=outputs,
        parent=parent,
        keep_head=keep_head,
        images=(data.images if train is None else len(train)) + (0 if unlabelled is None else len(unlabelled)),
        warnings=(*data.warnings, *unsuited, *too_large, *_compared_apart(config, objective)),
        record=data.record,
        counts=data.counts,
        stream=data.stream,
    )
    objective.check_classes(config, classes, plan.class_counts)
    estimate, estimated = _estimated(plan, objective)
    return replace(plan, estimate=estimate, notes=(*notes, *data.notes, *further, *said_of(plan), *estimated))


def _estimated(plan: Plan, objective: type[Objective]) -> tuple[Estimate, list[str]]:
    """What the run takes by a file of `vit bench`, where --dry-run was asked for with one, and how that is known. Raises UsageError."""
    config, train = plan.config, plan.config.train
    if not plan.request.dry_run or not config.scale.bench:
        return NO_ESTIMATE, estimating.unused(config.scale) if plan.request.dry_run else []
    rows = estimating.read_bench(config.scale.bench)
    if plan.steps is None:
        return estimating.of_seconds(float(train.time_budget or 0), config.scale), ["estimate: the time budget itself"]
    flops = objective.training_flops(config, 1)
    row = estimating.nearest(rows, config.model.name, config.model.img_size, flops)
    found = estimating.of_flops(plan.train_flops(plan.steps * train.batch_size), row, config.scale)
    return found, [estimating.said(found, row, config, flops)]


def _compared_apart(config: Config, objective: type[Objective]) -> list[str]:
    """That micro-batches are not the same as the batch, where a loss compares the images of one."""
    train = config.train
    if objective.is_mean_over_images or train.accumulate == 1:
        return []
    return [
        f"train.objective = {train.objective} compares images with each other: {train.accumulate} micro-batches of "
        f"{train.batch_size // train.accumulate} are not the same as one batch of {train.batch_size}"
    ]


# --- the checkpoint that it starts from --------------------------------------------------------------------


def _parent(request: Request) -> Description | None:
    """The checkpoint that a run starts from: finetune's CKPT, the configuration's, or the newest finished run; pretrain's --init.
    What somebody else's weights do not say, such as heads, is as it was asked for.
    """
    reference = _reference(request)
    if request.command != "finetune" and not reference:
        return None
    fixed = {f"model.{name}" for name in DESCRIBED - {"pre_logits"}}
    asked = {key: value for key, value in request.overrides.items() if key in fixed}
    found = describe(locate(reference) if reference else runs.newest_finished(), asked)
    return found.labelled(request.overrides.get("run.labels", ""))


def _reference(request: Request) -> str:
    """CKPT as it was asked for, on the command line or in a configuration file; empty where it was not."""
    reference: str = request.init or request.overrides.get("run.init", "")
    return reference


def _start(request: Request, parent: Description) -> str:
    """The checkpoint as any working directory finds it: a file's whole path, or the name that it has on the hub."""
    reference = _reference(request)
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if reference and not Path(reference).expanduser().exists():
            return reference
    return str(parent.path.resolve())


def _from_anywhere(name: str) -> str:
    """`name`, if it is a path, as one that holds in every working directory, so that a run.toml repeats its run."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = Path(name).expanduser()
        if name and path.exists():
            return str(path.resolve())
    return name


# --- classes -----------------------------------------------------------------------------------------------


def _classes(known: tuple[Class, ...], parent: Description | None) -> tuple[tuple[Class, ...], NDArray[np.int64], bool]:
    """The model's classes, the output of each class of the data, and whether the parent's head is kept."""
    if parent is not None and parent.classes and known:
        order = class_names.same_set(known, parent.classes)
        if order is not None:
            return parent.classes, np.array(order, np.int64), True
    return known, np.arange(len(known), dtype=np.int64), False


# --- a teacher ---------------------------------------------------------------------------------------------


def _taught(config: Config, objective: type[Objective], parent: Description | None) -> Config:
    """`config` with the checkpoint that it starts from as the teacher of unlabelled data, where no other is named. Raises UsageError
    where there is none, or nothing that learns from it.
    """
    train = config.train
    if not config.data.unlabelled:
        if train.teacher and not objective.has_teacher:
            raise UsageError(
                f"train.objective = {train.objective} learns from no teacher",
                "add --objective distill, or --unlabelled DATA for it to label, or clear train.teacher",
            )
        return config
    if not objective.takes_distributions:
        raise UsageError(
            f"train.objective = {train.objective} has no use for a teacher's labels of --unlabelled images",
            "give all images as --data, or leave --objective out",
        )
    if train.loss == "bce":
        raise UsageError(
            "train.loss = bce takes labels that are certain, not a teacher's", "add --set train.loss=softmax"
        )
    if train.teacher:
        return config
    if parent is None:
        raise UsageError(
            "--unlabelled needs a teacher", "name a checkpoint trained on these classes with --teacher CKPT"
        )
    return replace(config, train=replace(train, teacher=str(parent.path)))


# --- the configuration -------------------------------------------------------------------------------------


def _facts(
    request: Request, data: RunData, classes: int, parent: Description | None, machine: Machine, new_head: bool
) -> Facts:
    """What a recipe decides by."""
    overrides = request.overrides
    return Facts(
        command=request.command,
        images=data.images,
        classes=classes,
        size=data.native,
        mirror=data.mirror,
        device=machine.device.type,
        model=_other_name(overrides, parent),
        img_size=overrides.get("model.img_size") or size_said(_other_name(overrides, parent)),
        parent=parent.model if parent else None,
        parent_eval=replace(parent.eval, temperature=1.0, scores="softmax") if parent else None,
        new_head=new_head,
        compute=_compute(machine, overrides),
        parent_seen=seen_since_random(parent.provenance) if parent else None,
        epochs=overrides.get("train.epochs"),
        steps=overrides.get("train.steps"),
        batch_size=overrides.get("train.batch_size"),
        tune=overrides.get("train.tune", "all"),
    )


def _configured(
    request: Request,
    data: DataConfig,
    facts: Facts,
    parent: Description | None,
    objective: type[Objective],
    keep_head: bool,
) -> tuple[Config, list[str]]:
    """The recipe's configuration with what was asked for in its place, checked, and warnings. Raises UsageError."""
    overrides = request.overrides
    recipe = overrides.get("run.recipe") or default_recipe(facts)
    own = configure(recipe, facts)
    own = replace(own, train=replace(own.train, objective=overrides.get("train.objective", own.train.objective)))
    if recipe in OURS:
        own = objective.suited(own, facts)
    config = evaluated_as_trained(_with_overrides(own, overrides, parent), overrides)
    config = without_labels(config, overrides, objective)
    config, uncoloured = suited_to_channels(config, overrides, parent.eval if parent else None)
    model = config.model.with_head(facts.classes, parent is None or keep_head)
    config = replace(
        config,
        run=replace(
            config.run,
            command=request.command,
            recipe=recipe,
            init=_start(request, parent) if parent else "",
            labels=_from_anywhere(config.run.labels),
        ),
        model=replace(model, name=model.spelled()),
        data=replace(
            data,
            source=_from_anywhere(by_name(data.source)),
            unlabelled=_from_anywhere(by_name(data.unlabelled)) if data.unlabelled else "",
            balanced=overrides.get("data.balanced", config.data.balanced),
        ),
        scale=replace(config.scale, bench=_from_anywhere(config.scale.bench)),
        augment=replace(config.augment, views=objective.checked_views(config, overrides.get("augment.views"))),
        train=replace(
            config.train,
            low_res=_low_res(config, overrides),
            class_weights=config.train.class_weights
            if config.train.class_weights == BALANCED
            else _from_anywhere(config.train.class_weights),
        ),
    )
    check(config)
    _check_sections(config, overrides)
    _check_tuned(config, facts)
    config, unsuited = fitted_to_data(config, facts, overrides)
    return config, [*uncoloured, *unsuited]


def _check_tuned(config: Config, facts: Facts) -> None:
    """Raises UsageError where a part of the weights is to be trained, and the others are random or there is no head."""
    if facts.parent is None and config.train.tune != "all":
        raise UsageError(
            f"train.tune = {config.train.tune} leaves the other weights as they are, which are random ones here",
            "start from trained weights: vit finetune CKPT, or --init CKPT",
        )
    if config.train.tuned != "all" and not facts.classes:
        asked = "train.freeze" if config.train.freeze else f"train.tune = {config.train.tune}"
        raise UsageError(
            f"{asked} leaves nothing to train of a model without a head, and train.objective = {config.train.objective} has none"
            if config.train.tuned == "head"
            else f"{asked} is of a classifier, and train.objective = {config.train.objective} trains none",
            "leave it out",
        )


def _low_res(config: Config, overrides: Overrides) -> float:
    """Raises UsageError where smaller images were asked for, and the model takes none."""
    if config.model.takes_any_size:
        return config.train.low_res
    if overrides.get("train.low_res"):
        raise UsageError(f"train.low_res: {config.model.name} takes images of one size alone", "leave it out")
    return 0.0


def _check_sections(config: Config, overrides: Overrides) -> None:
    """Raises UsageError for a setting that was asked for and that nothing in this run reads."""
    own = as_dict(config)
    for name in overrides:
        section = name.partition(".")[0]
        if section in OBJECTIVE_SECTIONS and section not in own:
            way = "add --unlabelled DATA" if section == "pseudo" else f"add --objective {section}"
            raise UsageError(f"{name} has no part in this run", f"{way}, or leave it out")


def _with_overrides(config: Config, overrides: Overrides, parent: Description | None) -> Config:
    """`config` with what was asked for. Raises UsageError for what the checkpoint fixes."""
    elsewhere = ("model.name", "model.classes", "model.family")
    values = {k: v for k, v in overrides.items() if not k.startswith("data.") and k not in elsewhere}
    if parent is not None:
        for name in parent.model.fixed():
            key = f"model.{name}"
            if key in values and values[key] != getattr(parent.model, name) and name != "pre_logits":
                raise UsageError(
                    f"{key} cannot be changed: the checkpoint's is {getattr(parent.model, name)}",
                    "train a new model with vit pretrain, or leave it out",
                )
            values.pop(key, None)
    model = {k.partition(".")[2]: v for k, v in values.items() if k.startswith("model.")}
    completed = {f"model.{k}": v for k, v in config.model.completed(model).items()}
    return apply(config, values | completed)


def _other_name(overrides: Overrides, parent: Description | None) -> str:
    """The model's name that was asked for; empty where it is the trained model's own, as in a run.toml."""
    asked: str = overrides.get("model.name", "")
    return "" if parent is not None and asked in (parent.model.name, parent.model.spelled()) else asked


def _compute(machine: Machine, overrides: Overrides) -> float | None:
    """FLOPs of matrix products that fit into the time budget, at the rate measured now."""
    budget = overrides.get("train.time_budget")
    if budget is None:
        return None
    return float(budget * peak_flops(machine, side=1024))


# --- memory ------------------------------------------------------------------------------------------------


def _in_memory(config: Config, machine: Machine, asked: Overrides, only_planned: bool) -> tuple[Config, list[str]]:
    """`config` in micro-batches that fit into the machine's memory where the batch is the recipe's own, and a warning where a
    run that is `only_planned` does not fit. Raises ResourceError where one that is not does not.
    """
    room = memory.room_of(machine.device)
    if room is None:
        return config, []
    device, bf16 = machine.device.type, machine.bf16
    parted = objective_named(config.train.objective).is_mean_over_images
    if parted and not {"train.batch_size", "train.accumulate"} & asked.keys():
        config = memory.fitted(config, device, bf16, memory.RECIPE_PART * room.total)
    try:
        memory.check(config, device, bf16, room)
    except ResourceError as error:
        if not only_planned:
            raise
        return config, [f"{error.message}; {error.hint}"]
    return config, []
