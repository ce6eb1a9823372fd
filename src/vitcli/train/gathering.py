"""The data of a run: what is trained on, chosen by, reported on and labelled by a teacher, opened and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitcli.classes import Class
from vitcli.config import (
    Config,
    DataConfig,
    Overrides,
    Size,
    apply,
    check_imagined,
)
from vitcli.data.hub_source import is_here
from vitcli.data.identity import Record
from vitcli.data.origin import own_source
from vitcli.data.presets import PRESETS
from vitcli.data.sources import PRESET, by_name, open_source
from vitcli.data.split import NOTHING, Source, Split, also_trained, class_counts, dev_split, fraction_of, typical_size
from vitcli.data.stream import Stream
from vitcli.data.stream_images import typical_size_of
from vitcli.data.streaming import open_stream
from vitcli.errors import DataError, UsageError
from vitcli.train.objectives.base import Objective
from vitcli.train.plan import Request
from vitcli.weights.describe import Description


def reading_of(overrides: Overrides, parent: Description | None) -> tuple[DataConfig, list[str]]:
    """How data are read, and what to say where they were not named."""
    data = apply(Config(), {k: v for k, v in overrides.items() if k.startswith("data.")}).data
    if "data.source" in overrides:
        return data, []
    if parent is None:
        return replace(data, source=by_name(data.source)), [f"data: {data.source}, as --data was not given"]
    data = replace(data, source=own_source(parent.provenance, str(parent.path)))
    return data, [f"data: {data.source.removeprefix(PRESET)}, the checkpoint's own"]


@dataclass(frozen=True, eq=False, kw_only=True)
class RunData:
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
    counts: tuple[tuple[str, int], ...] = ()  # splits and their images, where there is no source, or a stream
    stream: Stream | None = None  # in place of `train`


def data_of(request: Request, config: DataConfig, objective: type[Objective], parent: Description | None) -> RunData:
    """Raises DataError where they are not what the objective learns from."""
    if config.source == "none":
        return _imagined(request, config, objective)
    if request.dry_run and (published := _published(config, objective)) is not None:
        return published
    if config.stream:
        return _streamed(request, config, objective, parent)
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
    return RunData(
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


def _streamed(request: Request, config: DataConfig, objective: type[Objective], parent: Description | None) -> RunData:
    """Parquet files to train on where they are. Raises UsageError for what needs all images to be looked at first."""
    wrong = {
        "data.fraction": config.fraction < 1,
        "data.balanced": config.balanced,
        "--unlabelled": bool(config.unlabelled),
        "train.class_weights": bool(request.overrides.get("train.class_weights")),
        "train.dev": bool(request.overrides.get("train.dev")),
    }
    for name in (name for name, is_asked in wrong.items() if is_asked):
        raise UsageError(f"{name} and data.stream: a stream's images are not known before their turn", "leave one out")
    source = open_stream(config, request.progress, labels=objective.needs_labels)
    stream = source.stream
    assert stream is not None
    if objective.needs_labels and not stream.is_labelled:
        raise DataError(
            f"{source.id} has no labels, and {request.command} learns from labels",
            "name the column with --set data.label_column=…",
        )
    if objective.needs_labels and len(source.classes) < 2:
        raise DataError(f"{source.id} has {len(source.classes)} class; a classifier needs two", "add images of another")
    unseen = (
        []
        if objective.needs_labels
        else ["train.monitor: nothing is measured on the way, as a stream is not looked at twice"]
    )
    record = parent.record() if parent is not None else NOTHING
    native, uniform = typical_size_of(stream, config.max_megapixels)
    held_out = source.held_out() if source.held_out_split else None
    return RunData(
        images=len(stream),
        classes=source.classes if objective.needs_labels else (),
        source=source,
        stream=stream,
        held_out=held_out,
        native=native,
        uniform=uniform,
        mirror=source.mirror,
        record=replace(record, unknown=(*record.unknown, source.id), is_complete=False),
        notes=(f"stream: {len(stream):,} images in {len(stream.shards.files):,} files", *source.notes, *unseen),
        counts=((stream.name, len(stream)), *([(held_out.name, len(held_out))] if held_out is not None else [])),
    )


def _imagined(request: Request, config: DataConfig, objective: type[Objective]) -> RunData:
    """Data `none`: numbers alone."""
    if not request.dry_run:
        raise UsageError("data 'none' has no images to train on", "add --dry-run, or name data with --data")
    check_imagined(config, objective.needs_labels)
    named = tuple(Class(str(i)) for i in range(config.classes)) if objective.needs_labels else ()
    return RunData(images=config.images, classes=named, counts=(("train", config.images),))


def _published(config: DataConfig, objective: type[Objective]) -> RunData | None:
    """A large preset as it is published, for a plan where it is not on this machine; None where it is, or is to be read otherwise."""
    name = config.source.removeprefix(PRESET)
    preset = PRESETS.get(name)
    if preset is None or preset.numbers is None or config.unlabelled or config.train_split not in ("", "train"):
        return None
    if (config.source == name and Path(name).exists()) or is_here(preset.hub, config.revision):
        return None
    numbers = preset.numbers
    images = max(1, round(config.fraction * numbers.train))
    said = (
        f"{name} ({preset.hub}) is not on this machine: planned by its published numbers, {numbers.train:,} images to train on and "
        f"{numbers.held_out:,} to measure; a run downloads it, which takes access to it on the hub"
    )
    return RunData(
        images=images,
        classes=numbers.classes() if objective.needs_labels else (),
        native=numbers.size,
        notes=(said, *([preset.note] if preset.note else [])),
        counts=(("train", images), (preset.held_out, numbers.held_out)),
    )


def _check_labels(source: Source, train: Split, command: str) -> None:
    """Raises DataError for data that no classifier learns from."""
    if not train.is_labelled:
        raise DataError(
            f"{source.id} has no labels, and {command} learns from labels",
            "put the images in a folder a class, or name the column with --set data.label_column=…",
        )
    if len(source.classes) < 2 and train.sets is None:
        raise DataError(
            f"{source.id} has {len(source.classes)} class; a classifier needs two", "put the images in a folder a class"
        )


def _untrained(source: Source, train: Split) -> list[str]:
    """A warning of classes without a training image: their outputs learn nothing, and their images are counted as wrong."""
    counts = class_counts(train, len(source.classes))
    bare = [source.classes[i].name for i in np.flatnonzero(counts == 0)]
    if not bare:
        return []
    shown = ", ".join(map(repr, bare[:20])) + (f" and {len(bare) - 20} more" if len(bare) > 20 else "")
    return [f"{'a class has' if len(bare) == 1 else f'{len(bare)} classes have'} no training image: {shown}"]


def with_dev(config: Config, train: Split | None, asked: bool) -> tuple[Config, Split | None, Split | None]:
    """(the configuration, what is trained on, what is chosen by)."""
    if train is None or not config.train.dev:
        return config, train, None
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


def unlabelled_of(request: Request, config: DataConfig, data: RunData) -> tuple[Split | None, list[str]]:
    """The images that a teacher labels, without those that are labelled here, chosen by or reported on; and what to say. Nothing is
    held out of them, as nothing is measured on them.
    """
    if not config.unlabelled:
        return None, []
    if data.train is None or data.held_out is None:
        raise UsageError("--unlabelled has images, and data 'none' has numbers alone", "name data with --data")
    wanted = replace(config, source=config.unlabelled, revision="", train_split="", image_column="", label_column="")
    source = open_source(wanted)
    pool = source.splits[source.train_split]
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
