"""From what was asked to a complete, checked plan of a run: configuration, data, classes, weights to start from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitcli import classes as class_names
from vitcli import flops, runs
from vitcli.classes import Class
from vitcli.config import (
    LENGTHS,
    Config,
    Overrides,
    Size,
    apply,
    as_dict,
    check,
    check_imagined,
    format_size,
    model_name,
)
from vitcli.data.identity import Record
from vitcli.data.origin import own_source
from vitcli.data.sources import PRESET, by_name, open_source
from vitcli.data.split import NOTHING, Source, Split, also_trained, dev_split, fraction_of, typical_size
from vitcli.errors import DataError, ResourceError, UsageError
from vitcli.machine import Machine, peak_flops, set_up
from vitcli.progress import Progress, silent
from vitcli.recipes import Facts, configure, default_recipe, evaluated_as_trained, fitted_to_data
from vitcli.train import memory
from vitcli.train.growth import stages
from vitcli.weights.describe import DESCRIBED, Description, describe, locate

_FIXED_BY_PARENT = (
    "width",
    "depth",
    "heads",
    "mlp",
    "patch",
    "gelu",
    "norm_eps",
    "class_token",
    "pre_logits",
    "pool",
    "norm",
    "registers",
    "distilled",
    "layer_scale",
    "prefix_positions",
    "name",
)


_UNEQUAL = 2
"""Largest class over smallest from which a run says how it weighs them."""


@dataclass(frozen=True)
class Request:
    """What was asked for: `overrides` are the configuration file's, --set's and the options' values together.

    `started` is when the time of a budget began, on the clock of time.monotonic.
    """

    command: Literal["pretrain", "finetune"]
    overrides: Overrides = field(default_factory=dict)
    init: str = ""  # finetune's CKPT
    dry_run: bool = False
    started: float = field(default_factory=time.monotonic)
    progress: Progress = silent  # of reading data that must be read to be parted


@dataclass(frozen=True, eq=False)
class Plan:
    config: Config
    request: Request
    machine: Machine
    source: Source | None  # None: data `none`
    train: Split | None
    held_out: Split | None  # what the run reports on
    dev: Split | None  # what it chooses by, kept back from training
    native: Size
    uniform: bool
    classes: tuple[Class, ...]
    outputs: NDArray[np.int64]  # for each class of the data, the model's output
    parent: Description | None
    keep_head: bool
    images: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    record: Record = NOTHING  # the images that trained the parent and the runs before it

    @property
    def steps(self) -> int | None:
        """Updates of the whole run; None where a time budget decides."""
        train = self.config.train
        if train.epochs is not None:
            return max(1, round(train.epochs * self.images / train.batch_size))
        return train.steps

    @property
    def splits(self) -> list[Split]:
        """What the run reads: the training images, the dev part, the held-out images."""
        return list(dict.fromkeys(part for part in (self.train, self.dev, self.held_out) if part is not None))

    @property
    def fits_head(self) -> bool:
        """Whether a new head starts as a linear probe."""
        return self.parent is not None and not self.keep_head and self.config.train.head == "linear"

    @property
    def frozen(self) -> bool:
        return self.config.train.freeze == "backbone"

    def train_flops(self, images_seen: int, share: Callable[[float], float] = lambda progress: progress) -> int:
        """Of training on so many images. `share` is the part of them that was seen up to a part of the run."""
        total, before = 0, 0.0
        for until, size in stages(self.config.model, self.config.train.low_res):
            part = (share(until) if until < 1 else 1.0) - before
            model = replace(self.config.model, img_size=size)
            total += flops.training_flops(model, round(images_seen * part), self.frozen)
            before += part
        return total

    def memory(self) -> flops.Memory:
        return memory.needed(self.config, self.machine.device.type, self.machine.bf16)

    def as_json(self) -> dict[str, Any]:
        """The fields of --dry-run."""
        model, steps = self.config.model, self.steps
        seen = None if steps is None else steps * self.config.train.batch_size
        splits = [{"name": part.name, "rows": len(part)} for part in self.splits]
        if self.source is None:
            splits = [{"name": "train", "rows": self.images}]
        return {
            "model": model.name,
            "params": flops.parameters(model),
            "tokens": model.tokens,
            "macs": flops.macs(model),
            "steps": steps,
            "images_seen": seen,
            "train_flops": None if seen is None else self.train_flops(seen),
            "memory_bytes": self.memory().total,
            "data": {"splits": splits, "classes": model.classes},
            "config": as_dict(self.config),
        }


def make_plan(request: Request) -> Plan:
    """Resolve and check everything. Raises the error of whatever does not fit; writes nothing."""
    overrides, notes = dict(request.overrides), []
    parent = _parent(request) if request.command == "finetune" else None
    if parent is not None:
        parent = parent.labelled(overrides.get("run.labels", ""))
    data = apply(Config(), {k: v for k, v in overrides.items() if k.startswith("data.")}).data
    if "data.source" not in overrides and parent is not None:
        data = replace(data, source=own_source(parent.provenance, str(parent.path)))
        notes.append(f"data: {data.source.removeprefix(PRESET)}, the checkpoint's own")
    elif "data.source" not in overrides:
        notes.append(f"data: {data.source}, as --data was not given")
        data = replace(data, source=by_name(data.source))
    machine = set_up(apply(Config(), {k: v for k, v in overrides.items() if k.startswith("run.")}).run)

    source, train, held_out = None, None, None
    record = parent.record() if parent is not None else NOTHING
    warnings: list[str] = []
    if data.source == "none":
        if not request.dry_run:
            raise UsageError("data 'none' has no images to train on", "add --dry-run, or name data with --data")
        check_imagined(data)
        images, known, native, uniform, mirror = (
            data.images,
            tuple(Class(str(i)) for i in range(data.classes)),
            (224, 224),
            False,
            True,
        )
    else:
        source = open_source(data)
        notes += source.notes
        train = source.train(data.train_split, record, request.progress)
        held_out = source.held_out(record, request.progress)
        train = fraction_of(train, data.fraction, overrides.get("run.seed", 0))
        if train.labels is None:
            raise DataError(
                f"{source.id} has no labels, and {request.command} learns from labels",
                "put the images in a folder a class, or name the column with --set data.label_column=…",
            )
        images, known, mirror = len(train), source.classes, source.mirror
        if len(known) < 2:
            raise DataError(
                f"{source.id} has {len(known)} class; a classifier needs two", "put the images in a folder a class"
            )
        native, uniform = typical_size(train, data.max_megapixels)
        warnings += _untrained(source, train)
        if not request.dry_run:
            warnings += also_trained(held_out, train, record, request.progress)

    classes, outputs, keep_head = _classes(known, parent)
    facts = Facts(
        request.command,
        images,
        len(classes),
        native,
        mirror,
        machine.device.type,
        _other_name(overrides, parent),
        overrides.get("model.img_size"),
        parent.model if parent else None,
        parent.eval if parent else None,
        not keep_head,
        _compute(machine, overrides),
        seen_since_random(parent.provenance) if parent else None,
        epochs=overrides.get("train.epochs"),
        steps=overrides.get("train.steps"),
        batch_size=overrides.get("train.batch_size"),
    )
    recipe = overrides.get("run.recipe") or default_recipe(facts)
    config = evaluated_as_trained(_with_overrides(configure(recipe, facts), overrides, parent), overrides)
    config = replace(
        config,
        run=replace(
            config.run,
            command=request.command,
            recipe=recipe,
            init=_start(request, parent) if parent else "",
            labels=_from_anywhere(config.run.labels),
        ),
        model=replace(
            config.model, classes=len(classes), pre_logits=config.model.pre_logits and (parent is None or keep_head)
        ),
        data=replace(
            data,
            source=_from_anywhere(by_name(data.source)),
            balanced=overrides.get("data.balanced", config.data.balanced),
        ),
    )
    config = replace(config, model=replace(config.model, name=model_name(config.model)))
    check(config)
    config, unsuited = fitted_to_data(config, facts, overrides)
    config, too_large = _in_memory(config, machine, overrides, source is None)
    dev = None
    if train is not None and config.train.dev:
        asked = "train.dev" in overrides or config.train.report_on == "dev"
        train, dev = _kept_back(train, config.train.dev, asked)
        config = config if dev else replace(config, train=replace(config.train, dev=0.0))
        images = len(train)
        held_out = dev if config.train.report_on == "dev" else held_out
    plan = Plan(
        config,
        request,
        machine,
        source,
        train,
        held_out,
        dev,
        native,
        uniform,
        classes,
        outputs,
        parent,
        keep_head,
        images,
        (),
        (*warnings, *unsuited, *too_large),
        record,
    )
    return replace(plan, notes=(*notes, *_said(plan)))


def _untrained(source: Source, train: Split) -> list[str]:
    """A warning of classes without a training image: their outputs learn nothing, and their images are counted as wrong."""
    assert train.labels is not None
    counts = np.bincount(train.labels, minlength=len(source.classes))
    bare = [source.classes[i].name for i in np.flatnonzero(counts == 0)]
    if not bare:
        return []
    shown = ", ".join(map(repr, bare[:20])) + (f" and {len(bare) - 20} more" if len(bare) > 20 else "")
    return [f"{'a class has' if len(bare) == 1 else f'{len(bare)} classes have'} no training image: {shown}"]


def _in_memory(config: Config, machine: Machine, asked: Overrides, only_planned: bool) -> tuple[Config, list[str]]:
    """`config` in micro-batches that fit into the machine's memory where the batch is the recipe's own, and a warning where a
    run that is `only_planned` does not fit. Raises ResourceError where one that is not does not.
    """
    room = memory.room_of(machine.device)
    if room is None:
        return config, []
    device, bf16 = machine.device.type, machine.bf16
    if not {"train.batch_size", "train.accumulate"} & asked.keys():
        config = memory.fitted(config, device, bf16, memory.RECIPE_PART * room.total)
    try:
        memory.check(config, device, bf16, room)
    except ResourceError as error:
        if not only_planned:
            raise
        return config, [f"{error.message}; {error.hint}"]
    return config, []


def seen_since_random(provenance: dict[str, Any]) -> int | None:
    """Images on which a checkpoint was trained, from random weights on, by its own run and those before it; None where the
    chain does not begin with a run from random weights, or does not say.
    """
    before = provenance.get("ancestry") or []
    runs = [provenance, *before] if isinstance(before, list) else []
    if not all(isinstance(run, dict) for run in runs) or not runs or runs[-1].get("command") != "pretrain":
        return None
    seen = [run.get("images_seen") for run in runs]
    return sum(seen) if all(isinstance(n, int) and n >= 0 for n in seen) else None


def _compute(machine: Machine, overrides: Overrides) -> float | None:
    """FLOPs of matrix products that fit into the time budget, at the rate measured now."""
    budget = overrides.get("train.time_budget")
    if budget is None:
        return None
    return float(budget * peak_flops(machine, side=1024))


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


def _parent(request: Request) -> Description:
    """The checkpoint that finetune starts from: CKPT, the configuration's, or the newest finished run. What somebody else's
    weights do not say, such as heads, is as it was asked for.
    """
    reference = _reference(request)
    fixed = {f"model.{name}" for name in DESCRIBED - {"pre_logits"}}
    asked = {key: value for key, value in request.overrides.items() if key in fixed}
    return describe(locate(reference) if reference else runs.newest_finished(), asked)


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


def _other_name(overrides: Overrides, parent: Description | None) -> str:
    """The model's name that was asked for; empty where it is the trained model's own, as in a run.toml."""
    asked: str = overrides.get("model.name", "")
    return "" if parent is not None and asked in (parent.model.name, model_name(parent.model)) else asked


def _classes(known: tuple[Class, ...], parent: Description | None) -> tuple[tuple[Class, ...], NDArray[np.int64], bool]:
    """The model's classes, the output of each class of the data, and whether the parent's head is kept."""
    if parent is not None and parent.classes:
        order = class_names.same_set(known, parent.classes)
        if order is not None:
            return parent.classes, np.array(order, np.int64), True
    return known, np.arange(len(known), dtype=np.int64), False


def _with_overrides(config: Config, overrides: Overrides, parent: Description | None) -> Config:
    """`config` with what was asked for; a width alone takes heads of 64 and an MLP of four times the width along."""
    values = {
        k: v for k, v in overrides.items() if not k.startswith("data.") and k not in ("model.name", "model.classes")
    }
    if parent is not None:
        for name in _FIXED_BY_PARENT:
            key = f"model.{name}"
            if (
                key in overrides
                and overrides[key] != getattr(parent.model, name)
                and name not in ("name", "pre_logits")
            ):
                raise UsageError(
                    f"{key} cannot be changed: the checkpoint's is {getattr(parent.model, name)}",
                    "train a new model with vit pretrain, or leave it out",
                )
            values.pop(key, None)
    if "model.width" in values:
        width = values["model.width"]
        values.setdefault("model.heads", width // 64 if width % 64 == 0 else config.model.heads)
        values.setdefault("model.mlp", 4 * width)
    if values.get("model.pool") == "cls":
        values.setdefault("model.class_token", True)
    return apply(config, values)


def _said(plan: Plan) -> list[str]:
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
        kept = "kept: the classes are the same" if plan.keep_head else f"new, for {len(plan.classes)} classes"
        kept += ", a linear probe of the frozen features at first" if plan.fits_head else ""
        said.append(f"start: {plan.parent.path}; head {kept}")
        if plan.parent.model.img_size != config.model.img_size:
            said.append(
                f"position embedding: {plan.parent.model.grid[0]}x{plan.parent.model.grid[1]} to "
                f"{config.model.grid[0]}x{config.model.grid[1]} patches, interpolated; an image costs "
                f"{flops.macs(config.model) / flops.macs(plan.parent.model):.2g} times as much"
            )
    if not any(asked.get(key) is not None for key in LENGTHS):
        said.append(
            f"length: {config.train.epochs:g} epochs"
            if config.train.epochs
            else f"length: {config.train.steps:,} steps"
        )
    if plan.train is not None and plan.train.labels is not None and not config.data.balanced:
        counts = np.bincount(plan.train.labels)
        largest, smallest = int(counts.max()), int(counts[counts > 0].min())
        if largest > _UNEQUAL * smallest:
            said.append(
                f"classes: of {smallest:,} to {largest:,} images; every image counts alike, with --set data.balanced=true "
                "every class"
            )
    return said


def replan(plan: Plan, config: Config) -> Plan:
    """The same plan with another configuration, as a resumed run's file has it."""
    return replace(plan, config=config, machine=set_up(config.run))
