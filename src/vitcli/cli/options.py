"""The options that commands share, each declared once, and their way into configuration values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli import config, files
from vitcli.cli import completion, console, habits
from vitcli.config import Overrides
from vitcli.errors import UsageError

_TRAINING, _MACHINE, _OUTPUT, _FILES = "Training", "Machine", "Output", "Configuration"

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        autocompletion=completion.data,
        show_default=False,
        help="digits, a preset (cifar10, cifar100, pets, flowers, fashion-mnist, mnist, imagenet, imagenet-21k, imagenette), "
        "a hub id (user/name\\[@rev]\\[:config]), a folder of class folders, or Parquet files.",
    ),
]
ImgSize = Annotated[str, typer.Option("--img-size", metavar="N|HxW", show_default=False, help="Image size in pixels.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", show_default=False, help="Images of one update.")
]
EvalBatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", show_default=False, help="Images at a time; changes no result but for rounding."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|mps",
        autocompletion=completion.of("auto", "cpu", "cuda", "mps"),
        help="Where to compute.",
        rich_help_panel=_MACHINE,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="auto|fp32|tf32|bf16",
        autocompletion=completion.of("auto", "fp32", "tf32", "bf16"),
        rich_help_panel=_MACHINE,
        help="fp32 is exact; tf32 needs a CUDA card. auto takes bf16 where the hardware has units for it, else fp32.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", show_default=False, help="Of weights, order and augmentation. \\[default: 0]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress; warnings and errors only.", rich_help_panel=_OUTPUT)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Resolve and check everything, print the plan, write nothing.", rich_help_panel=_OUTPUT
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.", rich_help_panel=_OUTPUT)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        autocompletion=completion.keys,
        show_default=False,
        help="Any configuration value; repeatable.",
        rich_help_panel=_FILES,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        show_default=False,
        help="Configuration file, such as a run's run.toml.",
        rich_help_panel=_FILES,
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME",
        autocompletion=completion.recipes,
        show_default=False,
        help="small, finetune, paper-jft, paper-i21k, paper-i1k, paper-finetune, augreg, deit or deit3. \\[default: by command and data]",
        rich_help_panel=_FILES,
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FOLDER",
        show_default=False,
        help="Run folder. \\[default: runs/<model>-<data>-<n>]",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never",
        autocompletion=completion.of("auto", "never"),
        rich_help_panel=_OUTPUT,
        help="auto resumes an unfinished run of the same configuration; never starts anew beside it.",
    ),
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="tensorboard|wandb",
        autocompletion=completion.of("tensorboard", "wandb"),
        show_default=False,
        help="Show the run there as well, from files in its folder; repeatable.",
        rich_help_panel=_OUTPUT,
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        "--epochs", metavar="E", show_default=False, help="Length in passes over the data.", rich_help_panel=_TRAINING
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="S", show_default=False, help="Length in updates.", rich_help_panel=_TRAINING),
]
TimeBudget = Annotated[
    str,
    typer.Option(
        "--time-budget",
        metavar="10m",
        show_default=False,
        help="Length in wall time, from start to exit, evaluation included.",
        rich_help_panel=_TRAINING,
    ),
]
Lr = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="RATE",
        show_default=False,
        help="Learning rate: optim.lr. \\[default: the recipe's]",
        rich_help_panel=_TRAINING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        show_default=False,
        help="Threads that decode images; changes no result. \\[default: as many as prove fastest]",
        rich_help_panel=_MACHINE,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", show_default=False, help="Classes that are named of an image. \\[default: 5]"),
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="NAME",
        autocompletion=completion.of("classify", *config.OBJECTIVE_SECTIONS),
        show_default=False,
        help="What is learned: classify; without labels masked-patch, mae, visreg. \\[default: classify]",
        rich_help_panel=_TRAINING,
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        metavar="FILE|imagenet-1k",
        autocompletion=completion.of("imagenet-1k"),
        show_default=False,
        help="Names for the classes of a checkpoint that has none.",
    ),
]


def overrides(config_file: Path | None, items: list[str] | None, **options: Any) -> Overrides:
    """The values of --config under those of --set and of the options. `options` are by configuration key with `__`
    for the dot; one that is None or empty was not given. Raises UsageError where an option and --set disagree, or a
    value is out of bounds.
    """
    below = config.read_toml(config_file) if config_file else {}
    above = config.parse_set(items or [])
    for name, value in options.items():
        if value is None or value == "":
            continue
        key = name.replace("__", ".")
        parsed, option = _parsed(key, value), option_of(key)
        if above.get(key, parsed) != parsed:
            raise UsageError(f"{option} {value} and --set {key}={above[key]} disagree", "give one of them")
        above[key] = parsed
    values = config.layer(below, above)
    config.check_alone(values)
    return values


OF_A_RUN = {
    "data": "data.source",
    "model": "model.name",
    "img_size": "model.img_size",
    "batch_size": "train.batch_size",
    "lr": "optim.lr",
    "workers": "data.workers",
    "freeze": "train.freeze",
    "labels": "run.labels",
    "seed": "run.seed",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "time_budget": "train.time_budget",
    "objective": "train.objective",
    "teacher": "train.teacher",
    "unlabelled": "data.unlabelled",
    "recipe": "run.recipe",
    "device": "run.device",
    "precision": "run.precision",
}
"""The options of the commands that train, by the names of their parameters, and the configuration values that they are."""


def _parsed(key: str, value: Any) -> Any:
    """The value of an option. Raises UsageError that speaks of the option."""
    try:
        return config.parse_value(key, value)
    except UsageError as error:
        option = option_of(key)
        typed = re.sub(rf"^{re.escape(key)}(?: = |: )?('?)", lambda found: f"{option} {found[1]}", error.message)
        raise UsageError(typed, habits.of_value(option, str(value)) or error.hint) from None


def check_machine(device: str, precision: str) -> None:
    """Raises UsageError where --device or --precision cannot be."""
    _parsed("run.device", device)
    _parsed("run.precision", precision)


def option_of(key: str) -> str:
    """The option that sets a configuration value."""
    name = next((name for name, value in OF_A_RUN.items() if value == key), key.rpartition(".")[2])
    return "--" + name.replace("_", "-")


def of_a_run(parameters: dict[str, Any]) -> Overrides:
    """The values of a training command's options, from its parameters by their names: `of_a_run(locals())`.

    Raises UsageError as `overrides` does.
    """
    asked = {key.replace(".", "__"): parameters.get(name) for name, key in OF_A_RUN.items()}
    for name in ("run__device", "run__precision"):
        asked[name] = given(str(asked[name]), "auto")
    return overrides(parameters["config"], parameters["set_"], **asked)


def check_written(written: dict[str, Path | None], force: bool, endings: dict[str, tuple[str, ...]]) -> None:
    """The files that options name, before any work: `endings` are those that an option takes, a picture's in any case. Raises UsageError,
    also for a file that two name, or ResourceError.
    """
    seen: dict[Path, str] = {}
    for option, path in written.items():
        if path is None:
            continue
        known = endings.get(option)
        ending = path.suffix.lower() if path.suffix.lower() in PICTURES else path.suffix
        if known is not None and ending not in known:
            raise UsageError(f"{option} {path}: unknown ending {path.suffix!r}", f"known: {', '.join(known)}")
        other = seen.setdefault(path.absolute(), option)
        if other != option:
            raise UsageError(f"{other} and {option} are one file, {path}", "give each a name of its own")
        files.check_out(path, force)
        if option != "--out":  # a result, printed as such
            console.asked_for.append(path)


def checkpoint_and_images(checkpoint: str, images: Sequence[str]) -> tuple[str, list[str]]:
    """CKPT and IMAGE… as they were meant: what ends like an image, or is a folder of them, or `-`, is no checkpoint, which was left out then.

    Raises UsageError where the checkpoint stands behind the images.
    """
    from vitcli.data.arrays import ARRAY_ENDING
    from vitcli.data.decode import IMAGE_ENDINGS
    from vitcli.runs import WEIGHTS

    endings = (*IMAGE_ENDINGS, ARRAY_ENDING)

    def is_image(name: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            path = Path(name)
            if path.is_dir() and not (path / WEIGHTS).exists() and not (path / "state").exists():
                return any(f.suffix.lower() in endings for f in path.glob("*"))
        return name == "-" or Path(name).suffix.lower() in endings

    if not checkpoint or not is_image(checkpoint):
        return checkpoint, list(images)
    last = images[-1] if images else ""
    if Path(last).suffix in (".safetensors", ".npz", ".pth") or (last and Path(last, WEIGHTS).is_file()):
        raise UsageError(
            f"{checkpoint} is an image, and {last} a checkpoint: they stand the other way round",
            f"the checkpoint comes first: {last} {' '.join([checkpoint, *images[:-1]])}",
        )
    return "", [checkpoint, *images]


PICTURES, PNG, TABLES = (".png", ".svg"), (".png",), (".parquet", ".csv", ".jsonl")


def given(value: str, default: str) -> str | None:
    """None where an option stands at its default, so that a configuration file's value shows."""
    return None if value == default else value


def size(text: str) -> config.Size | None:
    return config.parse_size(text) if text else None
