"""What the commands and notebooks call.

>>> from vitcli import api
>>> folder, report = api.train("pretrain", data="digits", epochs=20)  # doctest: +SKIP
>>> scores = api.evaluate(report["checkpoint"])  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitcli import files, runs
from vitcli.analysis import report as looking
from vitcli.analysis.posemb import Filters, principal_filters
from vitcli.analysis.posemb import position_similarity as similarity_of
from vitcli.classes import Class, imagenet_1k, map_labels
from vitcli.config import (
    AnalysisConfig,
    BenchConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    Overrides,
    ProbeConfig,
    Size,
    apply,
    check,
    check_eval,
    check_model,
    parse_value,
)
from vitcli.config import Config as Config
from vitcli.data.identity import Record
from vitcli.data.origin import own_source
from vitcli.data.samples import files_split, sample_split
from vitcli.data.sources import open_source
from vitcli.data.split import Source, Split, also_trained, fraction_of, stratified
from vitcli.errors import CheckpointError, DataError, UsageError, did_you_mean
from vitcli.evaluate.evaluator import Evaluation
from vitcli.evaluate.evaluator import evaluate as measure
from vitcli.evaluate.predictor import NoImage, expand
from vitcli.evaluate.predictor import predict as predict_files
from vitcli.evaluate.probe import Features, features_of, linear_probe
from vitcli.evaluate.report import summary
from vitcli.machine import Machine, set_up
from vitcli.model.posemb import METHODS
from vitcli.model.vit import ViT
from vitcli.progress import Progress, silent
from vitcli.train import loop, runfolder
from vitcli.train.bench import bench as measure_speed
from vitcli.train.plan import Plan, Request, make_plan
from vitcli.train.runlog import Log, Sink
from vitcli.train.sweep import Sweep, make_sweep
from vitcli.train.sweep import choose as choose_sweep
from vitcli.train.sweep import run as run_sweep
from vitcli.weights import checkpoint
from vitcli.weights import export as exporting
from vitcli.weights.describe import Description, describe, locate, open_checkpoint


def load(
    reference: str | Description, img_size: Size | None = None, labels: str = "", overrides: Overrides | None = None
) -> tuple[Description, ViT]:
    """A checkpoint's description and its model, its position embedding interpolated to `img_size`.

    `overrides` are `model.` values for what somebody else's file does not say; a checkpoint that is described already is
    read as it was. Raises CheckpointError or UsageError.
    """
    description, tensors = checkpoint.load(reference, overrides)
    description, fitting = checkpoint.resized(description, tensors, img_size or description.model.img_size)
    return description.labelled(labels), checkpoint.build(description.model, fitting)


def plan(request: Request) -> Plan:
    """A run, resolved and checked; nothing is written."""
    return make_plan(request)


def run(planned: Plan, out: str = "", resume: str = "auto", sinks: Sequence[Sink] = ()) -> tuple[Path, dict[str, Any]]:
    """Train what was planned, or go on. Returns the run folder and the report."""
    log = Log(sinks)
    place = runfolder.choose(planned, out, resume)
    log("note", text=f"run folder: {place.folder}")
    for note in planned.notes if place.how != "finished" else ():
        log("note", text=note)
    for warning in planned.warnings if place.how != "finished" else ():
        log("warning", text=warning)
    return loop.train(planned, place, log)


def sweep(
    planned: Sweep, out: str = "", sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda text: None
) -> tuple[Path, dict[str, Any]]:
    """Run a sweep of `plan_sweep`, or go on with it. Returns its folder and its report.

    `say` is told of every run before it starts, the sinks hear each run's events.
    """
    folder = choose_sweep(planned, out)
    say(f"sweep folder: {folder}")
    return folder, run_sweep(planned, folder, lambda: Log(sinks), say)


def plan_sweep(request: Request, grid: Sequence[str], seeds: int = 3) -> Sweep:
    """A grid of `section.key=value,value` over a run, resolved and checked; nothing is written."""
    return make_sweep(request, grid, seeds)


def train(
    command: Literal["pretrain", "finetune"],
    *,
    data: str = "",
    init: str = "",
    out: str = "",
    resume: str = "auto",
    sinks: Sequence[Sink] = (),
    **values: Any,
) -> tuple[Path, dict[str, Any]]:
    """`pretrain` or `finetune` in one call. `values` are configuration values: epochs=20, or `optim__lr=0.01` for optim.lr.

    Raises the VitError of whatever does not fit.
    """
    shorts = {
        "model": "model.name",
        "img_size": "model.img_size",
        "batch_size": "train.batch_size",
        "epochs": "train.epochs",
        "steps": "train.steps",
        "time_budget": "train.time_budget",
        "recipe": "run.recipe",
        "seed": "run.seed",
        "device": "run.device",
        "precision": "run.precision",
        "freeze": "train.freeze",
    }
    overrides: Overrides = {"data.source": data} if data else {}
    for name, value in values.items():
        key = shorts.get(name, name.replace("__", "."))
        overrides[key] = parse_value(key, value)
    return run(make_plan(Request(command, overrides, init)), out, resume, sinks)


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """An evaluation, resolved and checked: `outputs` maps the data's classes to the checkpoint's."""

    description: Description
    img_size: Size
    source: Source
    split: Split
    outputs: NDArray[np.int64]
    data: DataConfig
    machine: Machine
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def classes(self) -> tuple[Class, ...]:
        return self.description.classes

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit eval --dry-run`."""
        return {
            "checkpoint": str(self.description.path),
            "model": self.description.model.name,
            "img_size": list(self.img_size),
            "data": self.source.id,
            "split": self.split.name,
            "n": len(self.split),
            "classes": len(self.classes),
        }

    def measure(self, progress: Progress = silent) -> Evaluation:
        """Load the weights and run over the split. Raises CheckpointError or DataError."""
        _, model = load(self.description, self.img_size)
        return measure(
            model.to(self.machine.device), self.split, self.outputs, self.description.eval, self.data,
            device=self.machine.device, bf16=self.machine.bf16, progress=progress,
        )  # fmt: skip


def plan_evaluation(
    reference: str = "",
    data: str = "",
    split: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
    progress: Progress = silent,
) -> EvaluationPlan:
    """What a checkpoint is to be measured on, by default what its training held out.

    Raises CheckpointError, DataError or UsageError.
    """
    described, data_config, notes = _checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    source, found = _data(described, data, data_config)
    notes += found
    _need_names(described)
    size = img_size or described.model.img_size
    check_model(replace(described.model, img_size=size))
    part, why, warnings = _chosen_split(source, split, described, progress)
    if part.labels is None:
        raise DataError(f"split {part.name!r} of {source.id} has no labels", "evaluation compares with labels")
    counts = np.bincount(part.labels, minlength=len(source.classes)).tolist()
    outputs = np.array(map_labels(source.classes, counts, described.classes, source.id), np.int64)
    machine = set_up(apply(Config(), _machine(device, precision)).run)
    return EvaluationPlan(
        described, size, source, part, outputs, data_config, machine, (*notes, *described.notes, *why), warnings
    )


def evaluate(reference: str = "", data: str = "", split: str = "", **options: Any) -> dict[str, Any]:
    """Measure a checkpoint: the fields of `vit eval --json`. `options` are those of `plan_evaluation`."""
    planned = plan_evaluation(reference, data, split, **options)
    return summary(planned.measure(), planned.classes)


@dataclass(frozen=True, eq=False)
class PredictionPlan:
    """A prediction, resolved and checked."""

    description: Description
    classes: tuple[Class, ...]
    img_size: Size
    data: DataConfig
    machine: Machine
    notes: tuple[str, ...]

    def predict(self, paths: Iterable[str | NoImage]) -> Iterator[dict[str, Any]]:
        """A row an image, in order: the lines of `vit predict --json`. Raises CheckpointError."""
        _, model = load(self.description, self.img_size)
        return predict_files(
            model.to(self.machine.device), expand(paths), self.classes, self.description.eval, self.data,
            device=self.machine.device, bf16=self.machine.bf16,
        )  # fmt: skip


def plan_prediction(
    reference: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> PredictionPlan:
    """What a checkpoint is to predict with; `auto` is float32 here. Raises CheckpointError or UsageError."""
    described, data, notes = _checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    if described.model.classes == 0:
        _need_names(described)
    classes = described.classes
    if not classes and described.model.classes == 1000:
        classes = imagenet_1k()
        notes.append("labels: imagenet-1k, as the checkpoint has 1,000 outputs and no names; --labels names others")
    elif not classes:
        classes = tuple(Class(str(index)) for index in range(described.model.classes))
        notes.append("labels: the numbers of the outputs, as the checkpoint has no names; --labels gives them")
    size = img_size or described.model.img_size
    check_model(replace(described.model, img_size=size))
    chosen = "fp32" if precision == "auto" else precision
    machine = set_up(apply(Config(), _machine(device, chosen)).run)
    return PredictionPlan(described, classes, size, data, machine, (*notes, *described.notes))


def predict(reference: str, paths: Iterable[str], **options: Any) -> list[dict[str, Any]]:
    """Predict image files: the lines of `vit predict --json`. `options` are those of `plan_prediction`."""
    return list(plan_prediction(reference, **options).predict(paths))


def resize_position_embedding(
    reference: str,
    out: Path,
    img_size: Size | None = None,
    patch: Size | None = None,
    method: str = "",
    force: bool = False,
    overrides: Overrides | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a checkpoint for another image or patch size: the fields of `vit resize-posemb --json`, and what to say.

    `method` is by default the checkpoint's own. `overrides` are `model.` values for what somebody else's file does not say.
    Raises UsageError where `out` exists or the sizes do not fit, CheckpointError, ResourceError.
    """
    _check_fitting(overrides or {}, ("model.",))
    if method and method not in METHODS:
        raise UsageError(f"unknown method {method!r}", did_you_mean(method, METHODS))
    files.check_out(out, force)
    opened = open_checkpoint(locate(reference), overrides)
    checkpoint.check_digest(opened)
    old, lazy = opened.description, checkpoint.Lazy(opened)
    method = method or (METHODS[0] if old.model.posemb == "auto" else old.model.posemb)
    new, tensors = checkpoint.resized(old, lazy, img_size or old.model.img_size, method, patch)
    changed = new.model != old.model
    kept = {
        "resized_from": {"path": str(old.path), "sha256": old.sha256, "grid": list(old.model.grid), "method": method}
    }
    written = replace(
        new,
        path=out,
        provenance=old.provenance | (kept if changed else {}),
        scores={} if changed else old.scores,
    )
    checkpoint.save(written, tensors)
    tree = {
        "checkpoint": str(out),
        "from_grid": list(old.model.grid),
        "to_grid": list(new.model.grid),
        "method": method,
        "img_size": list(new.model.img_size),
        "patch_size": list(new.model.patch),
        "keys": key_counts(new),
    }
    return tree, old.notes


def key_counts(description: Description) -> dict[str, Any]:
    """How many keys of somebody else's file were used and renamed, and the names of those resampled or dropped."""
    report = description.report
    return {
        "layout": description.layout,
        "used": sum(row.fate == "used" for row in report),
        "renamed": sum(row.fate == "renamed" for row in report),
        "resampled": [row.key for row in report if row.fate == "resampled"],
        "dropped": [row.key for row in report if row.fate == "dropped"],
    }


def export(
    reference: str, out: Path, form: str, labels: str = "", force: bool = False, overrides: Overrides | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a checkpoint for another tool: the fields of `vit export --json`, and what to say.

    `overrides` are `model.` values for what somebody else's file does not say, and `eval.` values of its preprocessing.
    Raises UsageError, CheckpointError, also where that tool gives other logits, or ResourceError.
    """
    described, _, _ = _checkpoint(reference, overrides or {}, ("model.", "eval."))
    described = described.labelled(labels)
    exporting.check_format(form, described)
    exporting.check_place(out, form, force, described.path)
    _, tensors = checkpoint.load(described)
    return exporting.export(described, tensors, out, form, force), described.notes


def push(out: Path, repository: str) -> str:
    """Upload an export to the hub. Returns its address. Raises ResourceError."""
    return exporting.push(out, repository)


@dataclass(frozen=True, eq=False)
class ProbePlan:
    """A probe, resolved and checked."""

    description: Description
    img_size: Size
    source: Source
    train: Split
    held_out: Split
    data: DataConfig
    settings: ProbeConfig
    machine: Machine
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit probe --dry-run`."""
        return {
            "checkpoint": str(self.description.path),
            "model": self.description.model.name,
            "img_size": list(self.img_size),
            "data": self.source.id,
            "train": min(len(self.train), self.settings.images),
            "split": self.held_out.name,
            "n": len(self.held_out),
            "classes": len(self.source.classes),
        }

    def measure(self, progress: Progress = silent) -> dict[str, Any]:
        """The fields of `vit probe --json`. Raises CheckpointError or DataError."""
        _, model = load(self.description, self.img_size)
        outputs = np.arange(len(self.source.classes), dtype=np.int64)

        def features(part: Split, most: int) -> Features:
            return features_of(
                model.to(self.machine.device), part, outputs, self.description.eval, self.data,
                device=self.machine.device, bf16=self.machine.bf16, most=most, progress=progress,
            )  # fmt: skip

        train = features(self.train, self.settings.images)
        probe = linear_probe(train, len(outputs), self.settings.balanced)
        held_out = features(self.held_out, len(self.held_out))
        return {
            "method": "linear",
            "results": [{"l2": probe.l2, "top1": probe.top1_on(held_out), "n": len(held_out)}],
            "split": self.held_out.name,
            "train_n": len(train),
            "cross_validation": list(probe.tried),
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
    overrides: Overrides | None = None,
) -> ProbePlan:
    """What a classifier of a checkpoint's frozen features is to be fitted and measured on.

    Raises CheckpointError, DataError or UsageError.
    """
    if method not in PROBES:
        raise UsageError(f"unknown method {method!r}", did_you_mean(method, PROBES))
    asked = overrides or {}
    described, data_config, notes = _checkpoint(reference, asked, ("eval.", "data.", "probe.", "model."))
    source, found = _data(described, data, data_config)
    settings = ProbeConfig(**{k.partition(".")[2]: v for k, v in asked.items() if k.startswith("probe.")})
    if settings.images < 2:
        raise UsageError(f"probe.images = {settings.images}: must be at least 2")
    size = img_size or described.model.img_size
    check_model(replace(described.model, img_size=size))
    record = described.record()
    train = fraction_of(source.train(data_config.train_split, record), data_config.fraction, 0)
    held_out = source.split(split, record) if split else source.held_out(record)
    for part in (train, held_out):
        if part.labels is None:
            raise DataError(f"split {part.name!r} of {source.id} has no labels", "a probe learns from labels")
        if not len(part):
            raise DataError(f"split {part.name!r} of {source.id} has no images", "name one that has with --split")
    machine = set_up(apply(Config(), _machine(device, precision)).run)
    warnings = tuple(also_trained(held_out, train, record))
    return ProbePlan(
        described,
        size,
        source,
        train,
        held_out,
        data_config,
        settings,
        machine,
        (*notes, *found, *described.notes),
        warnings,
    )


PROBES = ("linear",)
"""Methods of `vit probe`."""


def probe(reference: str = "", data: str = "", **options: Any) -> dict[str, Any]:
    """Fit and measure a probe: the fields of `vit probe --json`. `options` are those of `plan_probe`."""
    return plan_probe(reference, data, **options).measure()


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """A look at a model's attention over images, resolved and checked."""

    description: Description
    img_size: Size
    data_name: str
    split: Split
    data: DataConfig
    settings: AnalysisConfig
    machine: Machine
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit attn-distance --dry-run` and `vit attn-rollout --dry-run`."""
        return {
            "checkpoint": str(self.description.path),
            "model": self.description.model.name,
            "img_size": list(self.img_size),
            "data": self.data_name,
            "images": len(self.split),
        }

    @property
    def model(self) -> ModelConfig:
        """The model, for images of `img_size`."""
        return replace(self.description.model, img_size=self.img_size)

    def _loaded(self) -> ViT:
        _, model = load(self.description, self.img_size)
        return model.to(self.machine.device)

    def distance(self, progress: Progress = silent) -> dict[str, Any]:
        """The fields of `vit attn-distance --json`. Raises CheckpointError or DataError."""
        return looking.attention_distance(
            self._loaded(), self.split, self.description.eval, self.data, self.settings,
            device=self.machine.device, bf16=self.machine.bf16, progress=progress,
        )  # fmt: skip

    def rollout(self, progress: Progress = silent) -> looking.Rollouts:
        """Rollout of every image. Raises CheckpointError or DataError."""
        return looking.attention_rollout(
            self._loaded(), self.split, self.description.eval, self.data, self.settings,
            device=self.machine.device, bf16=self.machine.bf16, progress=progress,
        )  # fmt: skip

    def overlays(
        self, names: Sequence[str], out: Path, force: bool = False, progress: Progress = silent
    ) -> dict[str, Any]:
        """Roll out the attention over the files `names`, which the plan was made of, and write a picture an image into
        the folder `out`: the fields of `vit attn-rollout --json`. Raises UsageError for a file that is in the way,
        CheckpointError, DataError, or ResourceError.
        """
        paths = looking.OverlayPaths(names, out, self.settings.per_layer)
        paths.prepare(force)
        found = self.rollout(progress)
        sheets = looking.write_overlays(
            found, paths, self.description.eval, self.data, self.img_size, self.description.model.name, progress
        )
        grid = list(found.maps.shape[2:])
        return {
            "images": [
                {"path": names[i], "overlay": str(paths.overlays[i]), "grid": grid} for i in found.positions.tolist()
            ],
            "contact_sheets": [str(path) for path in sheets],
        }


def plan_attention(
    reference: str = "",
    data: str = "",
    images: Sequence[str] = (),
    *,
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> AttentionPlan:
    """What a checkpoint's attention is looked at over: `data`, or the files `images`, or the data that the checkpoint was
    trained on, or sample photographs where that cannot be had.

    Raises CheckpointError, DataError or UsageError.
    """
    asked = overrides or {}
    described, data_config, notes = _checkpoint(reference, asked, ("eval.", "data.", "analysis.", "model."))
    settings = _analysis(asked)
    if data and images:
        raise UsageError(f"--data {data} and image files are two sources", "give one of them")
    size = img_size or described.model.img_size
    check_model(replace(described.model, img_size=size))
    found: list[str] = []
    warnings: list[str] = []
    if images:
        name, part = "files", files_split(list(images))
        most = settings.images if "analysis.images" in asked else len(part)
        part = part.subset(np.arange(min(most, len(part))))
    else:
        try:
            source, found = _data(described, data, data_config)
            part, why, _ = _chosen_split(source, "", described)
            name, found = source.id, [*found, *why]
        except (DataError, UsageError) as error:
            if data:
                raise
            name, part = "sample photographs", sample_split()
            warnings.append(f"{error.message}; the images are {len(part)} sample photographs, --data names others")
        if len(part) > settings.images:
            found.append(f"images: {settings.images:,} of the {len(part):,} of split {part.name}")
            keys = part.labels if part.labels is not None else np.zeros(len(part), np.int64)
            part = part.subset(stratified(keys, settings.images, "analysis"))
    machine = set_up(apply(Config(), _machine(device, precision)).run)
    return AttentionPlan(
        described, size, name, part, data_config, settings, machine, (*notes, *found, *described.notes), tuple(warnings)
    )


def attention_distance(reference: str = "", data: str = "", **options: Any) -> dict[str, Any]:
    """Mean attention distance in pixels: the fields of `vit attn-distance --json`. `options` are those of `plan_attention`."""
    return plan_attention(reference, data, **options).distance()


def attention_rollout(reference: str, images: Sequence[str], out: Path, **options: Any) -> dict[str, Any]:
    """Write attention rollouts over image files: the fields of `vit attn-rollout --json`. `options` are those of
    `plan_attention`."""
    return plan_attention(reference, "", images, **options).overlays(images, out)


def position_similarity(
    reference: str = "", img_size: Size | None = None, overrides: Overrides | None = None
) -> tuple[Description, NDArray[np.float64], tuple[str, ...]]:
    """The checkpoint, at `img_size` where it is given, the cosine similarity of its position embeddings [rows, rows] in
    raster order, and what to say. Raises CheckpointError or UsageError."""
    _check_fitting(overrides or {}, ("model.",))
    described, tensors, notes = _weights(reference, img_size, overrides)
    return described, similarity_of(tensors["pos_embed"].float(), described.model.prefix_rows), notes


def filters(reference: str = "", overrides: Overrides | None = None) -> tuple[Description, Filters, tuple[str, ...]]:
    """The checkpoint, the principal components of its patch embedding, and what to say. Raises CheckpointError or UsageError."""
    asked = overrides or {}
    _check_fitting(asked, ("analysis.", "model."))
    described, tensors, notes = _weights(reference, None, asked)
    return described, principal_filters(tensors["patch_embed.proj.weight"].float(), _analysis(asked).components), notes


def _analysis(asked: Overrides) -> AnalysisConfig:
    """What `analysis.` keys say, checked. Raises UsageError."""
    settings = AnalysisConfig(**{k.partition(".")[2]: v for k, v in asked.items() if k.startswith("analysis.")})
    for key in ("images", "components"):
        if getattr(settings, key) < 1:
            raise UsageError(
                f"analysis.{key} = {getattr(settings, key)}: must be at least 1", "leave it out for the default"
            )
    if not 0 <= settings.discard < 1:
        raise UsageError(f"analysis.discard = {settings.discard}: must be from 0 to below 1", "0.9 keeps a tenth")
    return settings


def _weights(
    reference: str, img_size: Size | None = None, overrides: Overrides | None = None
) -> tuple[Description, Mapping[str, Tensor], tuple[str, ...]]:
    """A checkpoint whose weights are read one by one. Raises CheckpointError or UsageError."""
    path, notes = _located(reference)
    opened = open_checkpoint(path, overrides)
    checkpoint.check_digest(opened)
    described, lazy = opened.description, checkpoint.Lazy(opened)
    resized, tensors = checkpoint.resized(described, lazy, img_size or described.model.img_size)
    return resized, tensors, (*notes, *described.notes)


def bench(models: Sequence[ModelConfig], overrides: Overrides, progress: Progress = silent) -> dict[str, Any]:
    """Speed of `models` on this machine: the fields of `vit bench --json`.

    Raises UsageError where an override concerns neither the speed of a step nor `bench`.
    """
    fitting = ("bench.", "run.", "train.", "model.", "optim.", "data.classes")
    wrong = next((key for key in overrides if not key.startswith(fitting)), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} does not concern a benchmark", f"bench takes --set {', '.join(f + '…' for f in fitting[:5])}"
        )
    asked = {key.partition(".")[2]: value for key, value in overrides.items() if key.startswith("bench.")}
    settings = BenchConfig(**asked)
    if not settings.modes or settings.seconds <= 0:
        raise UsageError("nothing to measure", "bench.modes is train, infer or both, bench.seconds above 0")
    values = {key: value for key, value in overrides.items() if not key.startswith(("bench.", "data."))}
    config = apply(Config(), {"train.steps": 1} | values)
    named = [
        apply(replace(config, model=model), {k: v for k, v in values.items() if k.startswith("model.")}).model
        for model in models
    ]
    for model in named:
        check(replace(config, model=model))
    return measure_speed(named, config, settings, set_up(config.run), overrides.get("train.batch_size", 0), progress)


def _machine(device: str, precision: str) -> Overrides:
    """Checked values of the two options. Raises UsageError."""
    asked = {"run.device": device, "run.precision": precision}
    return {key: parse_value(key, value) for key, value in asked.items()}


def _located(reference: str) -> tuple[Path, list[str]]:
    """The checkpoint that is named, else that of the newest finished run, and what to say. Raises CheckpointError."""
    if reference:
        return locate(reference), []
    path = runs.newest_finished()
    return path, [f"checkpoint: {path}, the newest finished run"]


def _check_fitting(overrides: Overrides, fitting: tuple[str, ...]) -> None:
    """Raises UsageError for a configuration value that does not begin with one of `fitting`."""
    wrong = next((key for key in overrides if not key.startswith(fitting)), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} does not concern a measurement", f"it takes --set {', '.join(f + '…' for f in fitting)} only"
        )


def _checkpoint(
    reference: str, overrides: Overrides, fitting: tuple[str, ...]
) -> tuple[Description, DataConfig, list[str]]:
    """The checkpoint with the preprocessing asked for in its place, how to read data, and what to say.

    Raises UsageError for a configuration value that does not begin with one of `fitting`.
    """
    path, notes = _located(reference)
    _check_fitting(overrides, fitting)
    described = describe(path, overrides)
    values = {k.partition(".")[2]: v for k, v in overrides.items() if k.startswith("eval.")}
    config: EvalConfig = replace(described.eval, **values)
    check_eval(config)
    data = apply(Config(), {k: v for k, v in overrides.items() if k.startswith("data.")}).data
    return replace(described, eval=config), data, notes


def _data(described: Description, asked: str, config: DataConfig) -> tuple[Source, list[str]]:
    """The data asked for, else the checkpoint's own, and what to say. Raises UsageError or DataError."""
    if asked:
        source = open_source(replace(config, source=asked))
        return source, list(source.notes)
    source = open_source(replace(config, source=own_source(described.provenance, str(described.path))))
    return source, [f"data: {source.id}, the checkpoint's own", *source.notes]


def _need_names(described: Description) -> None:
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


def _chosen_split(
    source: Source, name: str, described: Description, progress: Progress = silent
) -> tuple[Split, tuple[str, ...], tuple[str, ...]]:
    """The split asked for; else the held-out one, or all of data that has one split and trained nothing. With notes and warnings.

    Images that trained the checkpoint are left out of a part that vit itself holds out, and are named in a warning where
    a split is measured as it is. Raises DataError where it cannot be told what was held out.
    """
    record = described.record()
    part, notes = (
        _default_part(source, described, record, progress) if not name else (source.split(name, record, progress), ())
    )
    seen = record.among(part.digests(progress)) if len(record.digests) else 0
    about = "" if record.is_complete else "about "
    warning = f"{about}{seen:,} of the {len(part):,} images of {part.name!r} trained this checkpoint: a score on them is too high"
    return part, notes, (warning,) if seen else ()


def _default_part(
    source: Source, described: Description, record: Record, progress: Progress
) -> tuple[Split, tuple[str, ...]]:
    if source.held_out_split:
        return source.held_out(), ()
    whole = source.split("all") if len(source.splits) == 1 else source.train()
    seen = len(record.digests) and record.contains(whole.digests(progress)).any()
    if not seen and not _is_ancestral(source, described):
        part = whole if len(source.splits) == 1 else source.held_out(record, progress)
        unknown = f"; what {', '.join(record.unknown)} was trained on is not recorded" if record.unknown else ""
        by = (
            "by their content, the checkpoint was trained on none"
            if record.images
            else "none is recorded to have trained it"
        )
        return part, (f"split: {part.name}, {len(part):,} images; {by}{unknown}",)
    part = source.held_out(record, progress)
    if whole.contents.held is None and (
        not record.images or (not record.is_complete and record.contains(source.held_out().digests()).any())
    ):
        raise DataError(
            f"{described.path} was trained on {source.id}, and does not record well enough which images were held out",
            "name what is to be measured: --split all includes images that trained it",
        )
    if not len(part):
        raise DataError(f"every image of {source.id} trained {described.path}", "give other images with --data")
    return part, (f"split: the {len(part):,} images of {source.id} that training held out",)


def _is_ancestral(source: Source, described: Description) -> bool:
    """Whether the checkpoint, or a run before it, says that it was trained on data of this id, path or name."""
    runs = [
        described.provenance,
        *(described.provenance.get("ancestry") or []),
        described.provenance.get("parent") or {},
    ]
    data = [tree for run in runs if isinstance(run, dict) and isinstance(tree := run.get("data"), dict)]
    known = {str(tree.get(key)) for tree in data for key in ("id", "name", "identity") if tree.get(key)}
    return bool(known & {source.id, source.name, source.known_as})
