"""What a run is: frozen dataclasses, the one place where each default stands, and their strict reading.

A configuration is written `section.key = value`: on the command line with `--set`, in a TOML file as
`[section]` tables. An unknown section or key, or a value of the wrong type, is a `UsageError` that names
the nearest known one. Sizes are `(height, width)` everywhere.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vitcli.config_values import (
    Range,
    Seconds,
    Stats,
    check_bounds,
    coerce,
    key,
    key_of,
    out_of_bounds,
    shown,
    usual,
)
from vitcli.config_values import Size as Size
from vitcli.config_values import format_size as format_size
from vitcli.config_values import parse_seconds as parse_seconds
from vitcli.config_values import parse_size as parse_size
from vitcli.errors import UsageError, did_you_mean
from vitcli.families.base import Architecture
from vitcli.families.table import FAMILIES, named
from vitcli.families.table import model_config as model_config
from vitcli.families.vit import VARIANTS as VARIANTS
from vitcli.families.vit import ModelConfig as ModelConfig

IMAGENET_MEAN: Stats = (0.485, 0.456, 0.406)
IMAGENET_STD: Stats = (0.229, 0.224, 0.225)

_MOST_THREADS = 1024
"""More than any machine's cores; the system would give no more, or the process would die of them."""
_MOST_PIXEL = 1e4
"""Bound of means and deviations; those of pixels in 0..255 lie within it."""


# --- sections ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = key("digits", "DATA: a preset, a hub id, a folder or a file (`--data`)")
    revision: str = key("", "of a hub id: a branch, tag or commit")
    train_split: str = key("", "the split to train on; empty: the one named train")
    image_column: str = key("", "empty: the one column of images")
    label_column: str = key("", "empty: the one column of class labels")
    fraction: float = key(
        1.0, "part of the training images that is used; smaller parts lie within larger ones", above=0, most=1
    )
    balanced: bool = key(False, "draw every class equally often")
    workers: int | None = key(
        None,
        "threads that decode images; empty: as many as prove fastest; 0: nothing is read ahead",
        least=0,
        most=_MOST_THREADS,
        compared=False,
    )
    memory_mb: int = key(512, "bound on the memory of batches that wait, in megabytes", above=0, compared=False)
    on_bad_image: Literal["error", "skip"] = key(
        "error", "an image that cannot be read ends the command, or is left out and counted"
    )
    max_megapixels: float = key(89.0, "the largest image that is decoded, in millions of pixels", above=0)
    images: int = key(0, "number of training images; only with `none`", least=0, most=10**12)
    classes: int = key(0, "number of classes; only with `none`", least=0, most=10**6)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    crop: Literal["none", "pad", "random", "resized"] = key(
        "resized",
        "`resized` is the random resized crop (Inception's), `random` a crop of the size from an image 8/7 as large, `pad` a "
        "shift by up to `pad` of the side with reflected borders, `none` the whole image",
    )
    scale: Range = key((0.08, 1.0), "area of a resized crop, part of the image", above=0, most=1)
    ratio: Range = key((3 / 4, 4 / 3), "width over height of a resized crop", above=0)
    pad: float = key(0.125, "the largest shift of `pad`, part of the side", least=0, most=1)
    ramp: float = key(
        0.0, "epochs in which crop and shift grow from none to these values; 0: full from the start", least=0
    )
    flip: float = key(0.5, "probability of mirroring an image", least=0, most=1)
    randaugment_layers: int = key(0, "operations of RandAugment on each image; 0 is off", least=0, most=100)
    randaugment_magnitude: float = key(10.0, "their strength, 10 is the paper's scale", least=0)
    mixup: float = key(0.0, "alpha of the Beta distribution by which two images are mixed; 0 is off", least=0)
    cutmix: float = key(0.0, "the same for the area of a box that comes from another image; 0 is off", least=0)
    erase: float = key(0.0, "probability of erasing a box of an image", least=0, most=1)
    views: int = key(1, "augmented copies of an image in a batch", above=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    objective: str = key("classify", "what is learned (`--objective`)")
    batch_size: int = key(128, "images of one update, over all micro-batches", above=0)
    accumulate: int = key(1, "micro-batches of one update: less memory, the same result", above=0, compared=False)
    epochs: float | None = key(None, "length in passes over the data", above=0, most=1e9)
    steps: int | None = key(None, "length in updates", above=0, most=1e12)
    time_budget: Seconds | None = key(None, "length in wall time from start to exit", above=0, most=1e9)
    loss: Literal["softmax", "sigmoid"] = key("softmax", "cross-entropy over the classes, or of each class by itself")
    label_smoothing: float = key(
        0.0,
        "part of a label that is spread over all classes",
        least=0,
        below=1,
        why="nothing of the labels would be left",
    )
    head_bias: float = key(0.0, "the new head's bias; -10 and -6.9 are big_vision's for sigmoid losses")
    init: Literal["paper", "mimetic"] = key(
        "paper", "random weights: the paper's code's, or attention that begins like trained attention"
    )
    head: Literal["zero", "linear"] = key(
        "zero", "a new head starts at zero, or as a linear probe of the frozen features"
    )
    low_res: float = key(
        0.0,
        "part of the run, from its start, that trains on smaller images: half the size, then 3/4",
        least=0,
        most=1,
    )
    dev: float = key(
        0.0,
        "part of the training images kept back to choose by, at most 2,000",
        least=0,
        below=1,
        why="no image is left to train on",
    )
    keep: Literal["auto", "finetuned", "average", "probe"] = key(
        "auto", "final weights of a run whose head began as a probe; auto: chosen by the dev part"
    )
    report_on: Literal["held-out", "dev"] = key("held-out", "the images that the run's own scores are of")
    freeze: Literal["", "backbone"] = key("", "`backbone` trains the head alone (`--freeze`)")
    ema: float = key(
        0.0,
        "decay of the weights' moving average; 0 is off",
        least=0,
        below=1,
        why="the average would stay at the random weights",
    )
    save_every_steps: int = key(0, "updates between saved steps; 0: by time alone", least=0, compared=False)
    save_every_seconds: float = key(60.0, "time between saved steps; 0: by updates alone", least=0, compared=False)
    log_every_steps: int = key(10, "updates between lines of metrics.jsonl", above=0, compared=False)
    eval_every_steps: int = key(0, "updates between evaluations; 0: only at the end", least=0, compared=False)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    name: Literal["adamw", "sgd", "muon"] = key("adamw", "muon takes the matrices of the blocks, AdamW the rest")
    lr: float = key(1e-3, "of AdamW or SGD; with Muon, of what is not a matrix in a block", above=0)
    muon_lr: float = key(0.02, "learning rate of Muon", least=0)
    weight_decay: float = key(0.0, "decoupled, times the learning rate; on matrices only", least=0)
    betas: Range = key((0.9, 0.999), "of AdamW: how much of its two averages stays at an update", least=0, below=1)
    momentum: float = key(0.9, "of SGD", least=0, below=1)
    muon_momentum: float = key(0.95, "of Muon", least=0, below=1)
    schedule: Literal["cosine", "linear", "step", "constant"] = key("cosine", "how the learning rate falls")
    milestones: tuple[float, ...] = key(
        (0.3, 0.6, 0.9), "of `step`: parts of the run after which lr is a tenth", least=0, most=1
    )
    final_lr: float = key(0.0, "part of lr at which `cosine` and `linear` end", least=0, most=1)
    warmup_steps: int = key(0, "updates in which the learning rate grows to lr", least=0)
    warmup: float = key(0.0, "warm-up as a part of the run, where warmup_steps is 0", least=0, most=1)
    layer_decay: float = key(1.0, "factor of the learning rate from each layer to the one below", least=0, most=1)
    clip: float = key(0.0, "largest norm of the whole gradient; 0 is off", least=0)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    batch_size: int = key(0, "images at a time; 0: a number that suits the device", least=0, compared=False)
    crop: float = key(1.0, "the centre that is kept after resizing, part of the side", least=1e-3, most=1)
    resize: Literal["short", "square"] = key("short", "the short side to the size, or the whole image squashed to it")
    interpolation: Literal["bilinear", "bicubic"] = key("bicubic", "how images are resized")
    mean: Stats = key(
        (0.5, 0.5, 0.5), "subtracted from red, green and blue in 0..1", least=-_MOST_PIXEL, most=_MOST_PIXEL
    )
    std: Stats = key((0.5, 0.5, 0.5), "by which they are divided then", least=1e-4, most=_MOST_PIXEL)
    top_k: int = key(5, "classes that predictions name", least=1)
    views: int = key(1, "2 adds the mirrored image", least=1, most=2)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    command: Literal["pretrain", "finetune"] = key("pretrain", "what made the run", settable=False)
    recipe: str = key("small", "what decides all that is not asked for (`--recipe`)")
    init: str = key("", "the checkpoint that finetune starts from", settable=False)
    labels: str = key("", "names for the classes of a checkpoint that has none (`--labels`)")
    seed: int = key(0, "of weights, order and augmentation (`--seed`)", least=0, below=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "where to compute (`--device`)", compared=False)
    precision: Literal["auto", "fp32", "tf32", "bf16"] = key(
        "auto", "fp32 is exact; tf32 is CUDA's; auto: bf16 or fp32 (`--precision`)"
    )
    threads: int = key(0, "0: as many as there are cores", least=0, most=_MOST_THREADS, compared=False)
    attention: Literal["auto", "plain", "recompute", "fused"] = key("auto", "`recompute` needs the least memory")
    compile: bool = key(False, "torch.compile: a minute or more at the start, and no faster on the CPUs measured")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What `vit bench` measures; no part of a run."""

    modes: tuple[Literal["train", "infer"], ...] = key(("train", "infer"), "train, infer or both")
    seconds: float = key(10.0, "of measurement for each model and mode, after warming up", above=0)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How `vit probe` fits; no part of a run."""

    images: int = key(20_000, "most training images that it fits on; a larger set is thinned class by class", least=2)
    balanced: bool = key(False, "every class weighs the same, however many images it has")


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """How vit looks inside a model; no part of a run."""

    images: int = key(
        128, "of the data, for attention distance, every class its share; image files are all taken", least=1
    )
    include_prefix: bool = key(
        False, "class token, distillation token and registers count, at distance 0 from everything"
    )
    renormalise: bool = key(True, "what is left of a row of attention without these tokens sums to one again")
    discard: float = key(
        0.0, "part of a layer's attention weights, the smallest, that rollout leaves out", least=0, below=1
    )
    per_layer: bool = key(False, "rollout up to each layer as well")
    components: int = key(28, "principal components that vit filters shows", least=1)


@dataclass(frozen=True)
class Config:
    """`settings` are the sections of objectives (OBJECTIVE_SECTIONS), by their names; one that is missing has its defaults."""

    run: RunConfig = field(default_factory=RunConfig)
    model: Architecture = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def settings_of(self, section: str) -> Any:
        """The section of an objective."""
        return self.settings.get(section) or OBJECTIVE_SECTIONS[section]()


SECTIONS: dict[str, type] = {
    "run": RunConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "train": TrainConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
}
OBJECTIVE_SECTIONS: dict[str, type] = {}
"""Sections that are an objective's own (train/objectives), beside those of every run."""
COMMAND_SECTIONS: dict[str, type] = {"bench": BenchConfig, "probe": ProbeConfig, "analysis": AnalysisConfig}
"""What single commands take with --set, beside the sections of a run."""
LENGTHS = ("train.epochs", "train.steps", "train.time_budget")

Overrides = dict[str, Any]
"""Values by `section.key`, already checked."""


# --- keys --------------------------------------------------------------------------------------------------


def _all_sections() -> dict[str, tuple[type, ...]]:
    """Every section, with the classes whose keys it has: of `model` each family's."""
    alone = SECTIONS | OBJECTIVE_SECTIONS | COMMAND_SECTIONS
    families = tuple(family.config for family in FAMILIES.values())
    return {name: families if name == "model" else (cls,) for name, cls in alone.items()}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def known_keys() -> list[str]:
    return list(
        dict.fromkeys(
            f"{section}.{f.name}"
            for section, classes in _all_sections().items()
            for cls in classes
            for f in dataclasses.fields(cls)
        )
    )


def uncompared() -> frozenset[str]:
    """Keys that may differ when a run goes on: they change how it is done, not what."""
    return frozenset(
        f"{section}.{f.name}"
        for section, cls in (SECTIONS | OBJECTIVE_SECTIONS).items()
        for f in dataclasses.fields(cls)
        if not key_of(f).compared
    )


def _class_of(section: str, name: str) -> type | None:
    """The class that has this key."""
    classes = _all_sections().get(section, ())
    return next((cls for cls in classes if name in {f.name for f in dataclasses.fields(cls)}), None)


def check_key(name: str) -> tuple[str, str]:
    """`section.key` split in two. Raises UsageError that names the nearest known one."""
    section, _, rest = name.partition(".")
    if _class_of(section, rest) is None:
        raise UsageError(f"unknown configuration key {shown(name)}", did_you_mean(name, known_keys()))
    return section, rest


def check_settable(name: str) -> None:
    """Raises UsageError where `name` is unknown, or nobody's to choose."""
    section, rest = check_key(name)
    if not _about(section, rest).settable:
        raise UsageError(f"{name} cannot be set", "it follows from the command, the checkpoint or the data")


def _about(section: str, name: str) -> Any:
    cls = _class_of(section, name)
    assert cls is not None
    return key_of(next(f for f in dataclasses.fields(cls) if f.name == name))


def parse_value(name: str, value: Any) -> Any:
    """`value`, from a command line or a file, as the key's kind and within its bounds. Raises UsageError."""
    section, rest = check_key(name)
    cls = _class_of(section, rest)
    assert cls is not None
    parsed = coerce(value, _hints(cls)[rest], name)
    _check_alone(name, parsed)
    return parsed


def _check_alone(name: str, value: Any) -> None:
    """Raises UsageError for a value that is out of its bounds."""
    section, rest = check_key(name)
    fault = _about(section, rest).fault(value)
    if fault:
        cls = _class_of(section, rest)
        assert cls is not None
        raise out_of_bounds(name, value, fault, usual(cls, rest))


# --- reading and writing -----------------------------------------------------------------------------------


def parse_set(items: list[str]) -> Overrides:
    """`--set section.key=value`, in order; a later one wins."""
    overrides: Overrides = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {shown(item)} has no '='", "write --set section.key=value")
        name = name.strip()
        check_settable(name)
        overrides[name] = parse_value(name, value.strip())
    return overrides


def read_toml(path: Path) -> Overrides:
    """A configuration file as overrides. Raises UsageError with the file and key."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "give --config a TOML file, such as a run's run.toml"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}", "give --config a TOML file, such as a run's run.toml"
        ) from None
    overrides: Overrides = {}
    for section, table in tree.items():
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {section!r} stands outside a section", "write it in a table such as [train]")
        for name, value in table.items():
            try:
                overrides[f"{section}.{name}"] = parse_value(f"{section}.{name}", value)
            except UsageError as error:
                raise UsageError(f"{path}: {error.message}", error.hint) from None
    return overrides


def layer(below: Overrides, above: Overrides) -> Overrides:
    """`above` over `below`. A length or a model name given above replaces the lengths or dimensions below."""
    below = dict(below)
    if any(above.get(length) is not None for length in LENGTHS):
        for length in LENGTHS:
            below.pop(length, None)
    if "model.name" in above:
        for name in {"family"}.union(*(family.config.DIMENSIONS for family in FAMILIES.values())):
            below.pop(f"model.{name}", None)
    return below | above


def apply(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with `overrides` in place. Giving one length clears the others. Raises UsageError for a key that does not concern
    a run, or this family of models.
    """
    sections: dict[str, dict[str, Any]] = {}
    if any(overrides.get(length) is not None for length in LENGTHS):
        overrides = dict.fromkeys(LENGTHS) | dict(overrides)
    for name, value in overrides.items():
        section, rest = check_key(name)
        if section in COMMAND_SECTIONS:
            raise UsageError(f"{name} does not concern a run", f"it is a setting of vit {section}")
        sections.setdefault(section, {})[rest] = value
    parts = {s: _replaced(_section(config, s, values), s, values) for s, values in sections.items()}
    own = {s: values for s, values in parts.items() if s in OBJECTIVE_SECTIONS}
    common = {s: values for s, values in parts.items() if s not in own}
    return dataclasses.replace(config, **common, settings={**config.settings, **own})


def _section(config: Config, section: str, values: Mapping[str, Any]) -> Any:
    """The section as it is, of `model` another family's where that is asked for."""
    if section in OBJECTIVE_SECTIONS:
        return config.settings_of(section)
    found = getattr(config, section)
    if section == "model" and values.get("family", found.family) != found.family:
        return _family_of(values["family"])(family=values["family"])
    return found


def _family_of(name: str) -> type[Architecture]:
    if name not in FAMILIES:
        raise UsageError(f"unknown family of models {shown(name)}", did_you_mean(name, FAMILIES))
    return FAMILIES[name].config


def _replaced(section: Any, name: str, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(section)}
    wrong = next((rest for rest in values if rest not in known), None)
    if wrong is not None:
        raise UsageError(f"{name}.{wrong} does not concern {section.name or section.family}", "leave it out")
    return dataclasses.replace(section, **values)


def _own_sections(config: Config) -> Iterator[tuple[str, Any]]:
    """The sections of a run: those of every run, and its objective's."""
    yield from ((section, getattr(config, section)) for section in SECTIONS)
    if config.train.objective in OBJECTIVE_SECTIONS:
        yield config.train.objective, config.settings_of(config.train.objective)


def as_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested plain values: tuples become lists, fields that are None are left out."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in vars(values).items() if v is not None}
        for section, values in _own_sections(config)
    }


def to_toml(config: Config) -> str:
    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
        if isinstance(value, list):
            return "[" + ", ".join(literal(v) for v in value) + "]"
        return repr(value)

    blocks = []
    for section, values in as_dict(config).items():
        lines = [f"[{section}]"] + [f"{name} = {literal(value)}" for name, value in values.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def from_dict(section: str, values: Mapping[str, Any]) -> Any:
    """A section read back from JSON, strictly typed and within its bounds. Raises UsageError, also for an unknown key."""
    cls = _family_of(str(values.get("family", "vit"))) if section == "model" else SECTIONS[section]
    unknown = next((name for name in values if name not in {f.name for f in dataclasses.fields(cls)}), None)
    if unknown is not None:
        raise UsageError(f"{section}.{shown(unknown)} is unknown", "")
    return cls(**{name: parse_value(f"{section}.{name}", value) for name, value in values.items()})


# --- checks ------------------------------------------------------------------------------------------------


def check(config: Config) -> Config:
    """`config` if its values lie within their bounds and fit together. Raises UsageError with the key and a way out."""
    train, augment = config.train, config.augment
    for section, values in _own_sections(config):
        check_bounds(section, values)
    config.model.check()
    lengths = [name for name in LENGTHS if getattr(train, name.partition(".")[2]) is not None]
    if len(lengths) != 1:
        raise UsageError(
            f"a run has one length, not {len(lengths)}: {', '.join(lengths) or 'none given'}",
            "give one of --epochs, --steps and --time-budget",
        )
    if train.batch_size % train.accumulate:
        raise UsageError(
            f"train.batch_size = {train.batch_size} is not a multiple of train.accumulate = {train.accumulate}",
            "each micro-batch has batch_size / accumulate images",
        )
    if train.report_on == "dev" and not train.dev:
        raise UsageError("train.report_on = dev needs a dev part", "keep images back with --set train.dev=0.1")
    for name, (low, high) in (("scale", augment.scale), ("ratio", augment.ratio)):
        if low > high:
            raise UsageError(f"augment.{name} = ({low:g}, {high:g}): not a range", usual(AugmentConfig, name))
    if len(config.optim.milestones) > _MOST_MILESTONES:
        raise UsageError(
            f"optim.milestones = {shown(config.optim.milestones)}: at most {_MOST_MILESTONES}",
            "they are parts of the run",
        )
    return config


_MOST_MILESTONES = 100


def check_alone(overrides: Overrides) -> None:
    """Raises UsageError for values that cannot be whatever the others are, before data and weights are opened."""
    for name, value in overrides.items():
        _check_alone(name, value)
    if "model.name" in overrides:
        named(overrides["model.name"])
    if len(overrides.get("optim.milestones", ())) > _MOST_MILESTONES:
        raise UsageError(f"optim.milestones has more than {_MOST_MILESTONES} values", "they are parts of the run")


def check_imagined(data: DataConfig) -> None:
    """Raises UsageError for the numbers of data `none`, from which classes are made before anything else is looked at."""
    for name, value, least in (("images", data.images, 1), ("classes", data.classes, 2)):
        if value < least:
            raise UsageError(
                f"data 'none' needs its numbers: data.{name} = {value} must be at least {least}",
                "add --set data.images=… --set data.classes=…",
            )
