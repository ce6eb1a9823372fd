"""What a run is: frozen dataclasses, the one place where each default stands, and their strict reading.

A configuration is written `section.key = value`: on the command line with `--set`, in a TOML file as
`[section]` tables. An unknown section or key, or a value of the wrong type, is a `UsageError` that names
the nearest known one. Sizes are `(height, width)` everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from vitcli.errors import UsageError, did_you_mean

Size = tuple[int, int]
"""Height and width in pixels, or rows and columns of a grid."""
Range = tuple[float, float]
Stats = tuple[float, float, float]
"""One number for each of red, green and blue, of pixels scaled to 0..1."""
Seconds = Annotated[float, "seconds"]

IMAGENET_MEAN: Stats = (0.485, 0.456, 0.406)
IMAGENET_STD: Stats = (0.229, 0.224, 0.225)

VARIANTS: dict[str, tuple[int, int, int, int]] = {
    # name: width, depth, MLP width, heads. Ti and S are DeiT's; B, L and H are the paper's Table 1;
    # mu and M are big_vision's (models/vit.py, decode_variant).
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
}


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: all that is needed to build a ViT and to count its parameters."""

    name: str = "ViT-S/16"
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536
    patch: Size = (16, 16)
    img_size: Size = (224, 224)
    classes: int = 0  # outputs of the head; 0 has none. Taken from the data.
    pool: Literal["cls", "mean", "cls+mean"] = "cls"  # what the head reads: class token, mean of the patches, or both
    class_token: bool = True
    pre_logits: bool = False  # the tanh layer of the paper's pre-training head (§3.1)
    gelu: Literal["tanh", "erf"] = "erf"  # erf is the exact form; tanh, jax.nn.gelu's default, is the papers' code's
    norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_rule: Literal["linear", "constant"] = "linear"
    norm: Literal["before", "after"] = "before"  # the last LayerNorm before the mean, or after it (MAE, timm's fc_norm)
    registers: int = 0  # tokens after the class token that nothing reads, without positions (DINOv2)
    distilled: bool = False  # DeiT's distillation token, with a head of its own; the logits are the mean of both heads
    layer_scale: float = 0.0  # initial value of a learned factor for each channel of a branch (DeiT-III); 0: none
    prefix_positions: bool = True  # class and distillation token have positions; never where there are registers
    posemb: Literal["auto", "paper", "bicubic", "bicubic-antialias", "bicubic-offset"] = "auto"
    """How positions are taken to another image size (model/posemb.py). `auto` is what the code of the checkpoint's family
    does, where vit knows that it matters, else bicubic."""

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return self.img_size[0] // self.patch[0], self.img_size[1] // self.patch[1]

    @property
    def prefix_tokens(self) -> int:
        """Class token, distillation token and registers, in this order before the patches."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def prefix_rows(self) -> int:
        """Rows of the position embedding that belong to prefix tokens."""
        has_rows = self.prefix_positions and not self.registers
        return int(self.class_token) + int(self.distilled) if has_rows else 0

    @property
    def position_rows(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix_rows

    @property
    def head_inputs(self) -> int:
        return 2 * self.width if self.pool == "cls+mean" else self.width

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix_tokens


@dataclass(frozen=True)
class DataConfig:
    source: str = "digits"
    revision: str = ""
    train_split: str = ""  # empty: the split named train
    image_column: str = ""  # empty: the one column of images
    label_column: str = ""  # empty: the one column of class labels
    fraction: float = 1.0  # part of the training images that is used; smaller parts lie within larger ones
    balanced: bool = False  # draw every class equally often
    workers: int | None = None  # threads that decode images; empty: as many as prove fastest; 0: nothing is read ahead
    memory_mb: int = 512  # bound on the memory of batches that wait
    on_bad_image: Literal["error", "skip"] = "error"
    max_megapixels: float = 89.0
    images: int = 0  # only with `none`
    classes: int = 0  # only with `none`


@dataclass(frozen=True)
class AugmentConfig:
    crop: Literal["none", "pad", "random", "resized"] = "resized"
    """`resized` is the random resized crop (Inception's), `random` a crop of the size from an image 8/7 as
    large, `pad` a shift by up to `pad` of the side with reflected borders, `none` the whole image."""
    scale: Range = (0.08, 1.0)  # area of a resized crop, part of the image
    ratio: Range = (3 / 4, 4 / 3)  # its width over its height
    pad: float = 0.125
    ramp: float = 0.0  # epochs in which crop and shift grow from none to these values; 0: full from the start
    flip: float = 0.5  # probability
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: float = 0.0
    erase: float = 0.0  # probability of random erasing
    views: int = 1  # augmented copies of an image in a batch


@dataclass(frozen=True)
class TrainConfig:
    objective: Literal["classify"] = "classify"
    batch_size: int = 128  # images of one update, over all micro-batches
    accumulate: int = 1  # micro-batches of one update
    epochs: float | None = None
    steps: int | None = None
    time_budget: Seconds | None = None  # wall time from start to exit
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    head_bias: float = 0.0  # the new head's bias; -10 and -6.9 are big_vision's for sigmoid losses
    init: Literal["paper", "mimetic"] = "paper"  # of random weights: the paper's code's, or like trained attention
    head: Literal["zero", "linear"] = "zero"  # a new head starts at zero, or as a linear probe of the frozen features
    low_res: float = 0.0  # part of the run, from its start, that trains on smaller images: half the size, then 3/4
    dev: float = 0.0  # part of the training images kept back to choose by, at most 2,000
    keep: Literal["auto", "finetuned", "average", "probe"] = (
        "auto"  # of a head that began as a probe: chosen by the dev part
    )
    report_on: Literal["held-out", "dev"] = "held-out"  # the images that the run's own scores are of
    freeze: Literal["", "backbone"] = ""
    ema: float = 0.0  # decay of the weights' moving average; 0 is off
    save_every_steps: int = 0
    save_every_seconds: float = 60.0
    log_every_steps: int = 10
    eval_every_steps: int = 0  # 0: only at the end


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 1e-3  # of AdamW or SGD; with Muon, of what is not a matrix in a block
    muon_lr: float = 0.02
    weight_decay: float = 0.0  # decoupled, times the learning rate; on matrices only
    betas: Range = (0.9, 0.999)
    momentum: float = 0.9  # of SGD
    muon_momentum: float = 0.95
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)  # of `step`: parts of the run after which lr is a tenth
    final_lr: float = 0.0  # part of lr at which `cosine` and `linear` end
    warmup_steps: int = 0
    warmup: float = 0.0  # warm-up as a part of the run, where warmup_steps is 0
    layer_decay: float = 1.0
    clip: float = 0.0  # global gradient norm; 0 is off


@dataclass(frozen=True)
class EvalConfig:
    batch_size: int = 0  # 0: a size that suits the device
    crop: float = 1.0  # the centre that is kept after resizing, part of the side
    resize: Literal["short", "square"] = "short"  # the short side to the size, or the whole image squashed to it
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Stats = (0.5, 0.5, 0.5)
    std: Stats = (0.5, 0.5, 0.5)
    top_k: int = 5
    views: int = 1  # 2 adds the mirrored image


@dataclass(frozen=True)
class RunConfig:
    command: Literal["pretrain", "finetune"] = "pretrain"
    recipe: str = "small"
    init: str = ""  # the checkpoint that finetune starts from
    labels: str = ""  # names for the classes of a checkpoint that has none
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"  # fp32 is exact; tf32 is CUDA's; auto: bf16 or fp32
    threads: int = 0  # 0: as many as there are cores
    attention: Literal["auto", "plain", "recompute", "fused"] = "auto"  # `recompute` needs the least memory
    compile: bool = False  # torch.compile: a minute or more at the start, and no faster on the CPUs measured


@dataclass(frozen=True)
class BenchConfig:
    """What `vit bench` measures; no part of a run."""

    modes: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    seconds: float = 10.0  # of measurement for each model and mode, after warming up


@dataclass(frozen=True)
class ProbeConfig:
    """How `vit probe` fits; no part of a run."""

    images: int = 20_000  # most training images that it fits on; a larger set is thinned class by class
    balanced: bool = False  # every class weighs the same, however many images it has


@dataclass(frozen=True)
class AnalysisConfig:
    """How vit looks inside a model; no part of a run."""

    images: int = 128  # of the data, for attention distance, every class its share; image files are all taken
    include_prefix: bool = False  # class token, distillation token and registers count, at distance 0 from everything
    renormalise: bool = True  # what is left of a row of attention without these tokens sums to one again
    discard: float = 0.0  # part of a layer's attention weights, the smallest, that rollout leaves out
    per_layer: bool = False  # rollout up to each layer as well
    components: int = 28  # principal components that vit filters shows


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in dataclasses.fields(Config)}  # type: ignore[misc]
COMMAND_SECTIONS: dict[str, type] = {"bench": BenchConfig, "probe": ProbeConfig, "analysis": AnalysisConfig}
"""What single commands take with --set, beside the sections of a run."""
_HINTS = {name: typing.get_type_hints(cls, include_extras=True) for name, cls in (SECTIONS | COMMAND_SECTIONS).items()}
_FILE_ONLY = {"run.command", "run.init", "model.classes"}  # decided by the command, the checkpoint, the data
LENGTHS = ("train.epochs", "train.steps", "train.time_budget")
ARCHITECTURE = ("model.width", "model.depth", "model.heads", "model.mlp", "model.patch")

Overrides = dict[str, Any]
"""Values by `section.key`, already checked."""


# --- model names -------------------------------------------------------------------------------------------


def model_config(name: str, img_size: Size = (224, 224), classes: int = 0) -> ModelConfig:
    """The architecture that a name stands for, with the paper's class token: `ViT-B/16`, `b/16`, `ti/4`, or the
    dimensions that `model_name` writes for other sizes, `ViT-w128d6h2/4`. Raises UsageError.
    """
    match = re.fullmatch(
        r"(?:vit-)?([a-z]+|w\d+d\d+h\d+(?:m\d+)?)/(\d{1,5})(?:x(\d{1,5}))?", name.strip(), re.IGNORECASE
    )
    if match is None:
        raise UsageError(
            f"unknown model {_shown.repr(name)}", "a model is a size and a patch size, such as ViT-B/16, s/32 or ti/4"
        )
    size, rows, columns = match.groups()
    patch = (int(rows), int(columns or rows))
    if min(patch) < 1:
        raise UsageError(f"patch size 0 in {_shown.repr(name)}", "a patch is at least one pixel")
    width, depth, mlp, heads = _dimensions(size, name)
    model = ModelConfig("", width, depth, heads, mlp, patch, img_size, classes)
    return dataclasses.replace(model, name=model_name(model))


def _dimensions(size: str, name: str) -> tuple[int, int, int, int]:
    """Width, depth, MLP width and heads. Raises UsageError."""
    own = re.fullmatch(r"w(\d{1,6})d(\d{1,4})h(\d{1,4})(?:m(\d{1,6}))?", size.lower())
    if own is not None:
        width, depth, heads = int(own[1]), int(own[2]), int(own[3])
        return width, depth, int(own[4] or 4 * width), heads
    variants = {v.lower(): dimensions for v, dimensions in VARIANTS.items()}
    if size.lower() not in variants:
        raise UsageError(
            f"unknown model size {_shown.repr(size)} in {_shown.repr(name)}", did_you_mean(size.lower(), variants)
        )
    return variants[size.lower()]


def model_name(model: ModelConfig) -> str:
    """`ViT-B/16` for a known size, else its dimensions: `ViT-w128d6h2/4`."""
    dimensions = (model.width, model.depth, model.mlp, model.heads)
    variant = next((v for v, d in VARIANTS.items() if d == dimensions), None)
    if variant is None:
        mlp = "" if model.mlp == 4 * model.width else f"m{model.mlp}"
        variant = f"w{model.width}d{model.depth}h{model.heads}{mlp}"
    return f"ViT-{variant}/{format_size(model.patch)}"


# --- values ------------------------------------------------------------------------------------------------


def format_size(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> Size:
    """`384` or `96x128` (height x width, pixels)."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if match is None or int(match[1]) == 0 or int(match[2] or 1) == 0:
        raise UsageError(f"{_shown.repr(text)} is not a size", "write 384 or 96x128 (height x width, pixels)")
    return int(match[1]), int(match[2] or match[1])


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `1h30m` or `1d` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if not parts or "".join(n + u for n, u in parts) != text.strip().lower():
        raise UsageError(f"{_shown.repr(text)} is not a time", "write 90s, 10m or 1h30m")
    seconds = sum(float(number) * units[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise UsageError(f"{_shown.repr(text)} is no time at all", "write 90s, 10m or 1h30m")
    return seconds


_shown = reprlib.Repr()  # of values in errors: a stranger's can be of any length and depth
_shown.maxstring = _shown.maxother = 80
_shown.maxlevel = 2


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """`value`, from a command line or a TOML file, as the field's type. Raises UsageError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), key)
    if origin is Literal:
        text = value.lower() if isinstance(value, str) else _shown.repr(value)
        if text not in args:
            raise UsageError(
                f"{key} = {_shown.repr(value)}: not one of {', '.join(a or '(empty)' for a in args)}",
                did_you_mean(text, [a for a in args if a]),
            )
        return text
    if isinstance(value, str) and hint in (Seconds, Size):
        try:
            value = parse_seconds(value) if hint == Seconds else parse_size(value)
        except UsageError as error:
            raise UsageError(f"{key}: {error.message}", error.hint) from None
    if hint == Seconds:
        hint = float
    if hint == Size:
        if isinstance(value, int) and not isinstance(value, bool):
            value = (value, value)
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
            raise UsageError(
                f"{key} = {_shown.repr(value)}: not a size", "write 384 or 96x128 (height x width, pixels)"
            )
        return tuple(value)
    if origin is tuple:
        if not isinstance(value, (str, list, tuple)):
            raise UsageError(f"{key} = {_shown.repr(value)}: not a list of numbers", "separate them by commas")
        items = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
        if len(args) != 2 or args[1] is not Ellipsis:
            if len(items) != len(args):
                raise UsageError(
                    f"{key} = {_shown.repr(value)}: {len(args)} numbers are needed", "separate them by commas"
                )
        return tuple(_coerce(item.strip() if isinstance(item, str) else item, args[0], key) for item in items)
    return _scalar(value, hint, key)


def _scalar(value: Any, kind: type, key: str) -> Any:
    wrong = UsageError(
        f"{key} = {_shown.repr(value)}: not {'an' if kind is int else 'a'} {_TYPE_NAMES[kind]}",
        f"write {key}={_EXAMPLES[kind]}, or another {_TYPE_NAMES[kind]}" if kind in _EXAMPLES else "",
    )
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if kind is bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if isinstance(value, bool):
            return value
        if isinstance(value, (str, int)) and str(value).lower() in words:
            return words[str(value).lower()]
        raise wrong
    if isinstance(value, bool):
        raise wrong
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise wrong
    if kind is int and abs(number) > 2**64:
        raise UsageError(f"{key} = {_shown.repr(value)}: beyond 64 bits", f"write {key}=3, or another integer")
    return kind(
        int(value)
        if kind is int and isinstance(value, (int, str)) and re.fullmatch(r"[+-]?\d+", str(value).strip())
        else number
    )


_EXAMPLES = {int: "3", float: "0.5", str: '"text"'}
_TYPE_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}


# --- reading and writing -----------------------------------------------------------------------------------


def known_keys() -> list[str]:
    return [f"{section}.{key}" for section, hints in _HINTS.items() for key in hints]


def check_key(key: str) -> tuple[str, str]:
    """`section.key` split in two. Raises UsageError that names the nearest known one."""
    section, _, name = key.partition(".")
    if section not in _HINTS or name not in _HINTS[section]:
        raise UsageError(f"unknown configuration key {_shown.repr(key)}", did_you_mean(key, known_keys()))
    return section, name


def check_settable(key: str) -> None:
    """Raises UsageError where `key` is unknown, or nobody's to choose."""
    check_key(key)
    if key in _FILE_ONLY:
        raise UsageError(f"{key} cannot be set", "it follows from the command, the checkpoint or the data")


def parse_value(key: str, value: Any) -> Any:
    section, name = check_key(key)
    return _coerce(value, _HINTS[section][name], key)


def parse_set(items: list[str]) -> Overrides:
    """`--set section.key=value`, in order; a later one wins."""
    overrides: Overrides = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {_shown.repr(item)} has no '='", "write --set section.key=value")
        key = key.strip()
        check_settable(key)
        overrides[key] = parse_value(key, value.strip())
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
    if any(above.get(key) is not None for key in LENGTHS):
        for key in LENGTHS:
            below.pop(key, None)
    if "model.name" in above:
        for key in ARCHITECTURE:
            below.pop(key, None)
    return below | above


def apply(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with `overrides` in place. Giving one length clears the others."""
    sections: dict[str, dict[str, Any]] = {}
    if any(overrides.get(key) is not None for key in LENGTHS):
        overrides = dict.fromkeys(LENGTHS) | dict(overrides)
    for key, value in overrides.items():
        section, name = check_key(key)
        if section not in SECTIONS:
            raise UsageError(f"{key} does not concern a run", f"it is a setting of vit {section}")
        sections.setdefault(section, {})[name] = value
    parts = {s: dataclasses.replace(getattr(config, s), **values) for s, values in sections.items()}
    return dataclasses.replace(config, **parts)


def as_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested plain values: tuples become lists, fields that are None are left out."""
    return {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        for section, values in dataclasses.asdict(config).items()
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
        lines = [f"[{section}]"] + [f"{key} = {literal(value)}" for key, value in values.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """A section read back from JSON, strictly typed. Raises UsageError on an unknown key."""
    section = next(name for name, c in SECTIONS.items() if c is cls)
    return cls(**{key: parse_value(f"{section}.{key}", value) for key, value in values.items()})


# --- checks ------------------------------------------------------------------------------------------------


def _usual(key: str) -> str:
    """A hint at the value that a key has where nothing else is said."""
    section, name = check_key(key)
    value = getattr(SECTIONS[section](), name)
    shown = " to ".join(f"{v:g}" for v in value) if isinstance(value, tuple) and len(value) == 2 else value
    return "leave it out" if value is None else f"its default is {shown}"


def check(config: Config) -> Config:
    """`config` if its fields fit together. Raises UsageError with the key and a way out."""
    model, train, augment, optim, data = config.model, config.train, config.augment, config.optim, config.data
    check_model(model)
    check_run(config.run)
    lengths = [key for key in LENGTHS if getattr(train, key.partition(".")[2]) is not None]
    if len(lengths) != 1:
        raise UsageError(
            f"a run has one length, not {len(lengths)}: {', '.join(lengths) or 'none given'}",
            "give one of --epochs, --steps and --time-budget",
        )
    positive = {
        "train.batch_size": train.batch_size,
        "train.accumulate": train.accumulate,
        "train.epochs": train.epochs,
        "train.steps": train.steps,
        "train.time_budget": train.time_budget,
        "optim.lr": optim.lr,
        "data.memory_mb": data.memory_mb,
        "data.max_megapixels": data.max_megapixels,
        "augment.views": augment.views,
        "train.log_every_steps": train.log_every_steps,
    }
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{key} = {value}: must be above 0", _usual(key))
    for key, value in {
        "data.workers": data.workers,
        "augment.randaugment_layers": augment.randaugment_layers,
        "augment.randaugment_magnitude": augment.randaugment_magnitude,
        "augment.mixup": augment.mixup,
        "augment.ramp": augment.ramp,
        "augment.cutmix": augment.cutmix,
        "optim.clip": optim.clip,
        "optim.weight_decay": optim.weight_decay,
        "optim.warmup_steps": optim.warmup_steps,
        "optim.muon_lr": optim.muon_lr,
        "train.save_every_steps": train.save_every_steps,
        "train.eval_every_steps": train.eval_every_steps,
        "train.save_every_seconds": train.save_every_seconds,
    }.items():
        if value is not None and value < 0:
            raise UsageError(f"{key} = {value}: must not be negative", _usual(key))
    for key, value in {
        "augment.flip": augment.flip,
        "augment.erase": augment.erase,
        "data.fraction": data.fraction,
        "train.dev": train.dev,
        "train.low_res": train.low_res,
        "augment.pad": augment.pad,
        "optim.layer_decay": optim.layer_decay,
        "optim.warmup": optim.warmup,
        "optim.final_lr": optim.final_lr,
    }.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{key} = {value}: must lie between 0 and 1", _usual(key))
    for key, value, at_one in (
        ("train.ema", train.ema, "the average would stay at the random weights"),
        ("train.label_smoothing", train.label_smoothing, "nothing of the labels would be left"),
    ):
        if not 0 <= value < 1:
            raise UsageError(f"{key} = {value}: must be at least 0 and below 1; at 1 {at_one}", _usual(key))
    if augment.views > 1:
        raise UsageError(
            f"augment.views = {augment.views}: train.objective = {train.objective} learns from one view of an image",
            _usual("augment.views"),
        )
    _check_upper_bounds(config)
    if data.fraction == 0:
        raise UsageError("data.fraction = 0: no image is left", _usual("data.fraction"))
    if train.batch_size % train.accumulate:
        raise UsageError(
            f"train.batch_size = {train.batch_size} is not a multiple of train.accumulate = {train.accumulate}",
            "each micro-batch has batch_size / accumulate images",
        )
    if train.dev == 1:
        raise UsageError("train.dev = 1: no image is left to train on", "a tenth is usual: --set train.dev=0.1")
    if train.report_on == "dev" and not train.dev:
        raise UsageError("train.report_on = dev needs a dev part", "keep images back with --set train.dev=0.1")
    if not 0 < augment.scale[0] <= augment.scale[1] <= 1:
        raise UsageError(f"augment.scale = {augment.scale}: not a range within 0 and 1", _usual("augment.scale"))
    if not 0 < augment.ratio[0] <= augment.ratio[1]:
        raise UsageError(f"augment.ratio = {augment.ratio}: not a range above 0", _usual("augment.ratio"))
    if not all(0 <= beta < 1 for beta in (*optim.betas, optim.momentum, optim.muon_momentum)):
        raise UsageError(
            f"optim.betas = {optim.betas}, optim.momentum = {optim.momentum}, optim.muon_momentum = {optim.muon_momentum}: "
            "each must be at least 0 and below 1",
            _usual("optim.betas"),
        )
    check_eval(config.eval)
    return config


_LEAST, _MOST = 1e-4, 1e4
"""Bounds of means and deviations; those of pixels in 0..255 lie within them."""


def check_eval(config: EvalConfig) -> None:
    """Raises UsageError for preprocessing that no image survives."""
    if config.batch_size < 0:
        raise UsageError(f"eval.batch_size = {config.batch_size}: must not be negative", _usual("eval.batch_size"))
    if config.top_k < 1:
        raise UsageError(f"eval.top_k = {config.top_k}: must be above 0", _usual("eval.top_k"))
    if not 1e-3 <= config.crop <= 1:
        raise UsageError(f"eval.crop = {config.crop:g}: must lie between 0.001 and 1", _usual("eval.crop"))
    if not all(abs(mean) <= _MOST for mean in config.mean):
        raise UsageError(f"eval.mean = {config.mean}: each must lie within ±{_MOST:g}", _usual("eval.mean"))
    if not all(_LEAST <= std <= _MOST for std in config.std):
        raise UsageError(
            f"eval.std = {config.std}: each must be above 0, from {_LEAST:g} to {_MOST:g}", _usual("eval.std")
        )
    if config.views not in (1, 2):
        raise UsageError(f"eval.views = {config.views}: not 1 or 2", "1 is the image, 2 the image and its mirror image")


_MOST_THREADS = 1024
"""More than any machine's cores; the system would give no more, or the process would die of them."""


def check_alone(overrides: Overrides) -> None:
    """Raises UsageError for values that are out of bounds whatever the others are, before data and weights are opened."""
    config = apply(Config(), {key: value for key, value in overrides.items() if key.partition(".")[0] in SECTIONS})
    check_run(config.run)
    _check_upper_bounds(config)
    _check_dimensions(config.model)
    if "model.name" in overrides and re.fullmatch(r"[\w-]+/[\dx]+", overrides["model.name"]):
        _check_dimensions(model_config(overrides["model.name"]))


def check_imagined(data: DataConfig) -> None:
    """Raises UsageError for the numbers of data `none`, from which classes are made before anything else is looked at."""
    for key, value, least, most in (("images", data.images, 1, 10**12), ("classes", data.classes, 2, 10**6)):
        if not least <= value <= most:
            raise UsageError(
                f"data 'none' needs its numbers: data.{key} = {value} must lie between {least} and {most:,}",
                "add --set data.images=… --set data.classes=…",
            )


def check_run(run: RunConfig) -> None:
    """Raises UsageError for a seed or a number of threads that no machine takes."""
    if not 0 <= run.seed < 2**63:
        raise UsageError(f"run.seed = {run.seed}: must lie between 0 and 2^63 - 1", _usual("run.seed"))
    if not 0 <= run.threads <= _MOST_THREADS:
        raise UsageError(
            f"run.threads = {run.threads}: must lie between 0 and {_MOST_THREADS}", "0 takes as many as there are cores"
        )


def _check_upper_bounds(config: Config) -> None:
    """Raises UsageError for numbers with which a run would do nothing but that for hours, or die."""
    for key, value, most in (
        ("data.workers", config.data.workers or 0, _MOST_THREADS),
        ("augment.randaugment_layers", config.augment.randaugment_layers, 100),
        ("train.epochs", config.train.epochs or 0, 10**9),
        ("train.steps", config.train.steps or 0, 10**12),
        ("train.time_budget", config.train.time_budget or 0, 10**9),
    ):
        if value > most:
            raise UsageError(f"{key} = {value:g}: must be at most {most:,}", _usual(key))
    milestones = config.optim.milestones
    if len(milestones) > 100 or not all(0 <= milestone <= 1 for milestone in milestones):
        raise UsageError(
            f"optim.milestones = {_shown.repr(milestones)}: at most 100, each between 0 and 1",
            "they are parts of the run",
        )


_LARGEST = {"width": 10**5, "depth": 1000, "mlp": 10**6, "registers": 10**4}
_MOST_TOKENS = 10**6
_MOST_PARAMETERS = 10**12
"""Bounds far above any Vision Transformer that was trained (22 billion parameters, 48 blocks, 6144 channels)."""


def _check_dimensions(model: ModelConfig) -> None:
    for key, most in _LARGEST.items():
        if getattr(model, key) > most:
            raise UsageError(
                f"model.{key} = {getattr(model, key)}: must be at most {most:,}",
                "leave it out to take the model's own",
            )


def _check_size(model: ModelConfig) -> None:
    """Raises UsageError for dimensions that no machine holds, before anything is computed with them."""
    _check_dimensions(model)
    if model.tokens > _MOST_TOKENS:
        raise UsageError(
            f"{format_size(model.img_size)} px in patches of {format_size(model.patch)} are {model.tokens:,} tokens, over "
            f"{_MOST_TOKENS:,}",
            "take a smaller --img-size, or a model with larger patches",
        )
    block = 4 * model.width**2 + 2 * model.width * model.mlp
    ends = 3 * model.patch[0] * model.patch[1] + model.tokens + model.classes
    parameters = model.depth * block + ends * model.width
    if parameters > _MOST_PARAMETERS:
        raise UsageError(
            f"{model.name} with {model.classes:,} classes has about {min(parameters, 10**300):.2g} parameters, over {_MOST_PARAMETERS:.0e}",
            "take a smaller --model",
        )


def check_model(model: ModelConfig) -> None:
    """Raises UsageError where the dimensions do not fit together, or no machine holds them."""
    for key in ("width", "depth", "heads", "mlp"):
        if getattr(model, key) < 1:
            raise UsageError(
                f"model.{key} = {getattr(model, key)}: must be at least 1", "leave it out to take the model's own"
            )
    if model.width % model.heads:
        raise UsageError(
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}",
            "every head has width / heads channels; 64 are usual",
        )
    _check_size(model)
    for side, pixels, patch in zip(("height", "width"), model.img_size, model.patch, strict=True):
        if pixels % patch:
            near = max(patch, round(pixels / patch) * patch)
            raise UsageError(
                f"image {side} {pixels} is not a multiple of the patch size {patch} of {model.name}",
                f"the nearest {side} that is: {near}",
            )
    if model.pool != "mean" and not model.class_token:
        raise UsageError(f"model.pool = {model.pool} needs model.class_token = true", "or set model.pool=mean")
    if model.norm == "after" and model.pool != "mean":
        raise UsageError(f"model.norm = after needs model.pool = mean, not {model.pool}", "leave model.norm out")
    if model.distilled and (model.pool != "cls" or model.pre_logits or model.registers):
        raise UsageError(
            "model.distilled goes with model.pool = cls alone", "leave out model.pre_logits and model.registers"
        )
    if model.pre_logits and model.pool == "cls+mean":
        raise UsageError("model.pre_logits reads one token, not model.pool = cls+mean", "leave one of them out")
    if not 0 <= model.norm_eps < 1 or model.classes < 0:
        raise UsageError(
            f"model.norm_eps = {model.norm_eps:g}, model.classes = {model.classes}: must not be negative, the first below 1",
            _usual("model.norm_eps"),
        )
    if model.registers < 0 or not 0 <= model.layer_scale < math.inf:
        raise UsageError(
            f"model.registers = {model.registers}, model.layer_scale = {model.layer_scale}: must not be negative",
            "0 is none",
        )
    for key in ("dropout", "drop_path"):
        if not 0 <= getattr(model, key) < 1:
            raise UsageError(
                f"model.{key} = {getattr(model, key)}: must be at least 0 and below 1; at 1 nothing would be left",
                "0 switches it off",
            )
