"""From what was asked to a plan: the checkpoint, the data, the classes, the recipe, the memory, each resolved in its turn."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli import classes as class_names
from vitcli import runs
from vitcli.classes import Class
from vitcli.config import (
    Config,
    DataConfig,
    Overrides,
    Size,
    apply,
    check,
    check_imagined,
)
from vitcli.config_values import usual
from vitcli.data.identity import Record
from vitcli.data.origin import own_source
from vitcli.data.sources import PRESET, by_name, open_source
from vitcli.data.split import NOTHING, Source, Split, also_trained, dev_split, fraction_of, typical_size
from vitcli.errors import DataError, ResourceError, UsageError
from vitcli.machine import Machine, peak_flops, set_up
from vitcli.recipes.facts import Facts
from vitcli.recipes.table import OURS, configure, default_recipe, evaluated_as_trained, fitted_to_data
from vitcli.train import memory
from vitcli.train.narration import said_of
from vitcli.train.objectives.base import Objective
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
    reading, notes = _data_config(overrides, parent)
    machine = set_up(apply(Config(), {k: v for k, v in overrides.items() if k.startswith("run.")}).run)
    data = _data(request, reading, objective, parent)
    classes, outputs, keep_head = _classes(data.classes, parent)
    if not objective.needs_labels and data.source is not None:
        outputs = np.arange(
            len(data.source.classes), dtype=np.int64
        )  # for what it may measure with labels that are there
    unlabelled, further = _unlabelled(request, reading, data, parent)
    # what the recipe makes of that, and what was asked for instead
    images = data.images + (0 if unlabelled is None else len(unlabelled))
    facts = _facts(
        request, replace(data, images=images), len(classes), parent, machine, new_head=bool(classes) and not keep_head
    )
    config, unsuited = _configured(request, reading, facts, parent, objective, keep_head)
    config = with_teacher(_taught(config, parent), classes)
    objective.check(config)
    config, too_large = _in_memory(config, machine, overrides, data.source is None)
    config, train, dev = _with_dev(config, data.train, "train.dev" in overrides)
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
    )
    return replace(plan, notes=(*notes, *data.notes, *further, *said_of(plan)))


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


# --- data --------------------------------------------------------------------------------------------------


def _data_config(overrides: Overrides, parent: Description | None) -> tuple[DataConfig, list[str]]:
    """How data are read, and what to say where they were not named."""
    data = apply(Config(), {k: v for k, v in overrides.items() if k.startswith("data.")}).data
    if "data.source" in overrides:
        return data, []
    if parent is None:
        return replace(data, source=by_name(data.source)), [f"data: {data.source}, as --data was not given"]
    data = replace(data, source=own_source(parent.provenance, str(parent.path)))
    return data, [f"data: {data.source.removeprefix(PRESET)}, the checkpoint's own"]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Data:
    """What is known of the data of a run."""

    images: int
    classes: tuple[Class, ...]
    source: Source | None = None
    train: Split | None = None
    held_out: Split | None = None
    native: Size = (224, 224)
    uniform: bool = False
    mirror: bool = True
    record: Record = NOTHING
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _data(request: Request, config: DataConfig, objective: type[Objective], parent: Description | None) -> _Data:
    """Raises DataError where they are not what the objective learns from."""
    if config.source == "none":
        return _imagined(request, config, objective)
    source, record = open_source(config), parent.record() if parent is not None else NOTHING
    train = source.train(config.train_split, record, request.progress)
    held_out = source.held_out(record, request.progress)
    train = fraction_of(train, config.fraction, request.overrides.get("run.seed", 0))
    warnings: list[str] = []
    if objective.needs_labels:
        _check_labels(source, train, request.command)
        warnings += _untrained(source, train)
    if not request.dry_run:
        warnings += also_trained(held_out, train, record, request.progress)
    native, uniform = typical_size(train, config.max_megapixels)
    return _Data(
        images=len(train),
        classes=source.classes if objective.needs_labels else (),
        source=source,
        train=train,
        held_out=held_out,
        native=native,
        uniform=uniform,
        mirror=source.mirror,
        record=record,
        notes=tuple(source.notes),
        warnings=tuple(warnings),
    )


def _imagined(request: Request, config: DataConfig, objective: type[Objective]) -> _Data:
    """Data `none`: numbers alone."""
    if not request.dry_run:
        raise UsageError("data 'none' has no images to train on", "add --dry-run, or name data with --data")
    check_imagined(config)
    named = tuple(Class(str(i)) for i in range(config.classes)) if objective.needs_labels else ()
    return _Data(images=config.images, classes=named)


def _check_labels(source: Source, train: Split, command: str) -> None:
    """Raises DataError for data that no classifier learns from."""
    if train.labels is None:
        raise DataError(
            f"{source.id} has no labels, and {command} learns from labels",
            "put the images in a folder a class, or name the column with --set data.label_column=…",
        )
    if len(source.classes) < 2:
        raise DataError(
            f"{source.id} has {len(source.classes)} class; a classifier needs two", "put the images in a folder a class"
        )


def _untrained(source: Source, train: Split) -> list[str]:
    """A warning of classes without a training image: their outputs learn nothing, and their images are counted as wrong."""
    assert train.labels is not None
    counts = np.bincount(train.labels, minlength=len(source.classes))
    bare = [source.classes[i].name for i in np.flatnonzero(counts == 0)]
    if not bare:
        return []
    shown = ", ".join(map(repr, bare[:20])) + (f" and {len(bare) - 20} more" if len(bare) > 20 else "")
    return [f"{'a class has' if len(bare) == 1 else f'{len(bare)} classes have'} no training image: {shown}"]


def _with_dev(config: Config, train: Split | None, asked: bool) -> tuple[Config, Split | None, Split | None]:
    """(the configuration, what is trained on, what is chosen by)."""
    if train is None or not config.train.dev:
        return config, train, None
    if train.labels is None:
        raise UsageError(f"train.dev needs labels, and {train.name!r} of these data has none", "leave it out")
    rest, dev = _kept_back(train, config.train.dev, asked or config.train.report_on == "dev")
    return config if dev else replace(config, train=replace(config.train, dev=0.0)), rest, dev


def _kept_back(train: Split, fraction: float, asked: bool) -> tuple[Split, Split | None]:
    """(what is trained on, what is chosen by). Where too little is left of either, raises DataError if the part was asked for,
    and keeps nothing back if it was not.
    """
    rest, dev = dev_split(train, fraction)
    if len(dev) and len(rest):
        return rest, dev
    if not asked:
        return train, None
    raise DataError(
        f"{len(train)} training images cannot be parted: train.dev = {fraction:g} leaves {len(rest)} and {len(dev)}",
        "add images, or choose another --set train.dev=…",
    )


def _classes(known: tuple[Class, ...], parent: Description | None) -> tuple[tuple[Class, ...], NDArray[np.int64], bool]:
    """The model's classes, the output of each class of the data, and whether the parent's head is kept."""
    if parent is not None and parent.classes and known:
        order = class_names.same_set(known, parent.classes)
        if order is not None:
            return parent.classes, np.array(order, np.int64), True
    return known, np.arange(len(known), dtype=np.int64), False


# --- a teacher ---------------------------------------------------------------------------------------------


def _taught(config: Config, parent: Description | None) -> Config:
    """`config` with the checkpoint that it starts from as the teacher of unlabelled data, where no other is named. Raises UsageError
    where there is none, or nothing that learns from it.
    """
    train = config.train
    if config.data.unlabelled and not train.teacher and parent is not None:
        train = replace(train, teacher=str(parent.path))
    if config.data.unlabelled and train.objective != "classify":
        raise UsageError(
            f"--unlabelled goes with the objective classify, not with {train.objective}",
            "give all images as --data, or leave --objective out",
        )
    if config.data.unlabelled and not train.teacher:
        raise UsageError(
            "--unlabelled needs a teacher", "name a checkpoint trained on these classes with --teacher CKPT"
        )
    if config.data.unlabelled and train.loss == "bce":
        raise UsageError("train.loss = bce takes labels that are certain, not a teacher's", "leave it out")
    if train.teacher and not config.data.unlabelled and train.objective != "distill":
        raise UsageError(
            f"train.objective = {train.objective} learns from no teacher",
            "add --objective distill, or --unlabelled DATA for it to label",
        )
    return replace(config, train=train)


def _unlabelled(
    request: Request, config: DataConfig, data: _Data, parent: Description | None
) -> tuple[Split | None, list[str]]:
    """The images that a teacher labels, without those that are labelled here, chosen by or reported on; and what to say."""
    if not config.unlabelled or data.train is None or data.held_out is None:
        return None, []
    wanted = replace(config, source=config.unlabelled, revision="", train_split="", image_column="", label_column="")
    source = open_source(wanted)
    pool = source.train("", parent.record() if parent is not None else NOTHING, request.progress)
    digests = pool.digests(request.progress)
    known = np.isin(digests, np.concatenate([data.train.digests(), data.held_out.digests()])) & (digests != 0)
    rest = pool.subset(np.flatnonzero(~known), "unlabelled")
    if not len(rest):
        raise DataError(
            f"{source.id} has no images beside those of --data and its held-out ones",
            "name other images with --unlabelled",
        )
    left_out = f", without {int(known.sum()):,} that are in --data" if known.any() else ""
    return replace(rest, labels=None), [f"unlabelled: {len(rest):,} images of {source.id}{left_out}"]


# --- the configuration -------------------------------------------------------------------------------------


def _facts(
    request: Request, data: _Data, classes: int, parent: Description | None, machine: Machine, new_head: bool
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
        img_size=overrides.get("model.img_size"),
        parent=parent.model if parent else None,
        parent_eval=parent.eval if parent else None,
        new_head=new_head,
        compute=_compute(machine, overrides),
        parent_seen=seen_since_random(parent.provenance) if parent else None,
        epochs=overrides.get("train.epochs"),
        steps=overrides.get("train.steps"),
        batch_size=overrides.get("train.batch_size"),
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
        augment=replace(config.augment, views=_views(config, overrides, objective)),
        train=replace(config.train, low_res=_low_res(config, overrides)),
    )
    check(config)
    if config.data.balanced and not facts.classes:
        raise UsageError(
            f"data.balanced needs labels, and train.objective = {config.train.objective} has none", "leave it out"
        )
    return fitted_to_data(config, facts, overrides)


def _low_res(config: Config, overrides: Overrides) -> float:
    """Raises UsageError where smaller images were asked for, and the model takes none."""
    if config.model.takes_any_size:
        return config.train.low_res
    if overrides.get("train.low_res"):
        raise UsageError(f"train.low_res: {config.model.name} takes images of one size alone", "leave it out")
    return 0.0


def _views(config: Config, overrides: Overrides, objective: type[Objective]) -> int:
    """Raises UsageError where another number was asked for than the objective learns from."""
    asked: int = overrides.get("augment.views", max(objective.views, config.augment.views))
    if asked < objective.views or (asked > objective.views and not objective.takes_more_views):
        views = "one view" if objective.views == 1 else f"{objective.views} views"
        views += " or more" if objective.takes_more_views else ""
        raise UsageError(
            f"augment.views = {asked}: train.objective = {config.train.objective} learns from {views} of an image",
            usual(type(config.augment), "views") if objective.views == 1 else "leave it out",
        )
    return asked


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


# --- what is said ------------------------------------------------------------------------------------------
