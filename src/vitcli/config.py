"""What a run is: frozen dataclasses, the one place where each default stands, and their strict reading.

A configuration is written `section.key = value`: on the command line with `--set`, in a TOML file as `[section]` tables. An unknown
section or key, or a value of the wrong type, is a `UsageError` that names the nearest known one. Sizes are `(height, width)`.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vitcli.config_objectives import DistillConfig as DistillConfig
from vitcli.config_objectives import MAEConfig as MAEConfig
from vitcli.config_objectives import MaskedPatchConfig as MaskedPatchConfig
from vitcli.config_objectives import PseudoConfig as PseudoConfig
from vitcli.config_objectives import VisregConfig as VisregConfig
from vitcli.config_sections import AnalysisConfig as AnalysisConfig
from vitcli.config_sections import AugmentConfig as AugmentConfig
from vitcli.config_sections import BenchConfig as BenchConfig
from vitcli.config_sections import DataConfig as DataConfig
from vitcli.config_sections import EvalConfig as EvalConfig
from vitcli.config_sections import OptimConfig as OptimConfig
from vitcli.config_sections import ProbeConfig as ProbeConfig
from vitcli.config_sections import RunConfig as RunConfig
from vitcli.config_sections import ScaleConfig as ScaleConfig
from vitcli.config_sections import TrainConfig as TrainConfig
from vitcli.config_values import Size as Size
from vitcli.config_values import (
    Stats,
    check_bounds,
    check_value,
    coerce,
    key_of,
    shown,
    usual,
    written,
)
from vitcli.config_values import format_size as format_size
from vitcli.config_values import parse_seconds as parse_seconds
from vitcli.config_values import parse_size as parse_size
from vitcli.errors import UsageError, did_you_mean
from vitcli.families.base import Architecture
from vitcli.families.sizes import VARIANTS as VARIANTS
from vitcli.families.table import FAMILIES, named
from vitcli.families.table import model_config as model_config
from vitcli.families.vit import ModelConfig as ModelConfig
from vitcli.tuning import blocks_of, check_tuned

IMAGENET_MEAN: Stats = (0.485, 0.456, 0.406)
IMAGENET_STD: Stats = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`settings` are the sections of objectives (OBJECTIVE_SECTIONS), by their names; one that is missing has its defaults."""

    run: RunConfig = field(default_factory=RunConfig)
    model: Architecture = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
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
    "scale": ScaleConfig,
}
OBJECTIVE_SECTIONS: dict[str, type] = {
    "masked-patch": MaskedPatchConfig,
    "mae": MAEConfig,
    "visreg": VisregConfig,
    "distill": DistillConfig,
    "pseudo": PseudoConfig,
}
"""Sections that are an objective's own (train/objectives), or of runs with unlabelled data, beside those of every run."""
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
    """Keys that may differ when a run is resumed: they change how it is done, not what."""
    return frozenset(
        f"{section}.{f.name}"
        for section, classes in _all_sections().items()
        for cls in classes
        for f in dataclasses.fields(cls)
        if section not in COMMAND_SECTIONS and not key_of(f).compared
    )


def _line_of(name: str) -> tuple[type, dataclasses.Field[Any]]:
    """The class and the field of `section.key`. Raises UsageError that names the nearest known one."""
    section, _, rest = name.partition(".")
    for cls in _all_sections().get(section, ()):
        for line in dataclasses.fields(cls):
            if line.name == rest:
                return cls, line
    own = [key for key in sorted(known_keys()) if key.partition(".")[2] == name.rpartition(".")[2]]
    hint = (
        f"did you mean {' or '.join(own)}?"
        if own
        else did_you_mean(name, known_keys(), "vit's keys stand in docs/reference.md")
    )
    raise UsageError(f"unknown configuration key {shown(name)}", hint)


def check_key(name: str) -> tuple[str, str]:
    """`section.key` split in two. Raises UsageError that names the nearest known one."""
    _line_of(name)
    section, _, rest = name.partition(".")
    return section, rest


def check_settable(name: str) -> None:
    """Raises UsageError where `name` is unknown, or nobody's to choose."""
    if not key_of(_line_of(name)[1]).settable:
        raise UsageError(f"{name} cannot be set", "it follows from the command, the checkpoint or the data")


def parse_value(name: str, value: Any) -> Any:
    """`value`, from a command line or a file, as the key's kind and within its bounds. Raises UsageError."""
    cls, line = _line_of(name)
    parsed = coerce(value, _hints(cls)[line.name], name)
    check_value(name, parsed, cls, line)
    return parsed


def choices(name: str) -> tuple[str, ...]:
    """The values of a key that takes one of a few; none for others, and for a key that is not known."""
    for cls in _all_sections().get(name.partition(".")[0], ()):
        hint = _hints(cls).get(name.partition(".")[2])
        kinds = [hint, *typing.get_args(hint)]
        found = [typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal]
        if found:
            return tuple(map(str, found[0]))
        if bool in kinds:
            return ("true", "false")
    return ()


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
        family = named(above["model.name"])
        kept = {f.name for f in dataclasses.fields(family)} - family.DIMENSIONS - {"family"} if family else set()
        below = {name: v for name, v in below.items() if not name.startswith("model.") or name[len("model.") :] in kept}
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
    for section in (config.train.objective, "pseudo" if config.data.unlabelled else ""):
        if section in OBJECTIVE_SECTIONS:
            yield section, config.settings_of(section)


def as_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested plain values: tuples become lists, fields that are None are left out."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in written(values).items() if v is not None}
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
        values.check() if section == "model" else check_bounds(section, values)
    check_statistics(config.model, config.eval)
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
    for name, value, without in (("train.init", train.init, "paper"), ("run.attention", config.run.attention, "auto")):
        if value != without and not config.model.has_attention:
            raise UsageError(f"{name} = {value} is of attention, and {config.model.name} has none", "leave it out")
    if config.run.checkpointing and config.model.cost().checkpointed is None:
        raise UsageError(
            f"run.checkpointing: {config.model.name} has no blocks that are computed again", "leave it out"
        )
    depth = config.model.depth if isinstance(config.model, ModelConfig) else 0
    check_tuned(train.tune, train.freeze, config.model.name, depth)
    if train.loss == "bce" and train.label_smoothing:
        raise UsageError(
            "train.loss = bce takes labels whole: train.label_smoothing must be 0", "leave train.label_smoothing out"
        )
    if train.report_on == "dev" and not train.dev:
        raise UsageError("train.report_on = dev needs a dev part", "keep images back with --set train.dev=0.1")
    if augment.three and max(augment.gray, augment.blur, augment.solarize) > 0:
        raise UsageError(
            "augment.three draws among gray, blur and solarize by itself", "leave those three out, or augment.three"
        )
    for name, (low, high) in (("scale", augment.scale), ("ratio", augment.ratio)):
        if low > high:
            raise UsageError(f"augment.{name} = ({low:g}, {high:g}): not a range", usual(AugmentConfig, name))
    return config


def check_statistics(model: Architecture, evaluation: EvalConfig) -> None:
    """Raises UsageError where there is not one mean and one deviation for each channel of the model's images."""
    for name, values in (("mean", evaluation.mean), ("std", evaluation.std)):
        if len(values) != model.channels:
            raise UsageError(
                f"eval.{name} has {len(values)} numbers, not one a channel: model.channels = {model.channels}",
                f"give a number a channel, or leave eval.{name} out",
            )


def check_alone(overrides: Overrides) -> None:
    """Raises UsageError for values that cannot be whatever the others are, before data and weights are opened."""
    for name, value in overrides.items():
        check_value(name, value, *_line_of(name))
    if "model.name" in overrides:
        named(overrides["model.name"])
    blocks_of(overrides.get("train.tune", "all"))


def check_imagined(data: DataConfig, labelled: bool = True) -> None:
    """Raises UsageError for the numbers of data `none`, from which classes are made before anything else is looked at."""
    for name, value, least in (("images", data.images, 1), ("classes", data.classes, 2 if labelled else 0)):
        if value < least:
            raise UsageError(
                f"data 'none' needs its numbers: data.{name} = {value} must be at least {least}",
                "add --set data.images=… --set data.classes=…",
            )
