"""vit from Python: the commands as functions, with their options as arguments.

>>> from vitcli import api
>>> folder, report = api.pretrain(data="digits", epochs=20)  # doctest: +SKIP
>>> scores = api.evaluate(report["checkpoint"])  # doctest: +SKIP

What a function returns are the fields of its command's --json. Image sizes are (height, width) in pixels. `overrides` are configuration values by
`section.key`, as --set takes them, of their own types or as text. Where a checkpoint is left out, it is the newest finished run
under ./runs; where data are, the checkpoint's own. Errors are a VitError (errors.py): UsageError, DataError, CheckpointError,
DivergedError, ResourceError, Interrupted.

A command that plans before it works has both halves here: `plan_evaluation(...)` checks and says what would be done,
`.measure()` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from vitcli import world
from vitcli.analysis.plan import AttentionPlan as AttentionPlan
from vitcli.analysis.plan import filters_of as filters
from vitcli.analysis.plan import plan_attention
from vitcli.analysis.plan import similarity_of as position_similarity
from vitcli.config import Architecture, Overrides, Size, parse_value
from vitcli.config import Config as Config
from vitcli.evaluate.evaluator import EvaluationPlan as EvaluationPlan
from vitcli.evaluate.evaluator import plan_evaluation
from vitcli.evaluate.predictor import PredictionPlan as PredictionPlan
from vitcli.evaluate.predictor import plan_prediction
from vitcli.evaluate.probe import ProbePlan as ProbePlan
from vitcli.evaluate.probe import plan_probe
from vitcli.evaluate.report import summary, summary_of_sets
from vitcli.progress import Progress, silent
from vitcli.train import runfolder
from vitcli.train.bench import bench_asked
from vitcli.train.following import follow, together
from vitcli.train.plan import Plan, Request
from vitcli.train.planning import make_plan as plan
from vitcli.train.run import train as train_plan
from vitcli.train.runlog import Log, Sink
from vitcli.train.sweep import Sweep
from vitcli.train.sweep import choose as _choose_sweep
from vitcli.train.sweep import make_sweep as plan_sweep
from vitcli.train.sweep import run as _run_sweep
from vitcli.train.trackers import trackers as open_trackers
from vitcli.weights.asked import loaded as load
from vitcli.weights.export import export_asked as export
from vitcli.weights.export import push
from vitcli.weights.resize import resize_position_embedding

__all__ = [
    "AttentionPlan", "Config", "EvaluationPlan", "Plan", "PredictionPlan", "ProbePlan", "Request", "Sink", "Sweep",
    "attention_distance", "attention_rollout", "bench", "evaluate", "export", "filters", "finetune", "load", "open_trackers", "plan",
    "plan_attention", "plan_evaluation", "plan_prediction", "plan_probe", "plan_sweep", "position_similarity", "predict",
    "pretrain", "probe", "push", "resize_position_embedding", "run", "sweep", "train",
]  # fmt: skip

# --- training ----------------------------------------------------------------------------------------------


def train(
    command: Literal["pretrain", "finetune"],
    *,
    data: str = "",
    init: str = "",
    model: str = "",
    img_size: Size | int | str | None = None,
    objective: str = "",
    teacher: str = "",
    unlabelled: str = "",
    recipe: str = "",
    freeze: str = "",
    batch_size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    time_budget: float | str | None = None,
    seed: int | None = None,
    device: str = "",
    precision: str = "",
    out: str = "",
    resume: str = "auto",
    trackers: Sequence[str] = (),
    sinks: Sequence[Sink] = (),
    overrides: Overrides | None = None,
) -> tuple[Path, dict[str, Any]]:
    """`vit pretrain` or `vit finetune`: the run folder and the report. `init` is the checkpoint that it starts from; `time_budget` is in
    seconds, or text such as 10m; `sinks` hear the run's events (train/runlog.py), and so do `trackers`, named as --tracker names them.
    """
    asked = {
        "data.source": data,
        "model.name": model,
        "model.img_size": img_size,
        "train.objective": objective,
        "train.teacher": teacher,
        "data.unlabelled": unlabelled,
        "run.recipe": recipe,
        "train.freeze": freeze,
        "train.batch_size": batch_size,
        "train.epochs": epochs,
        "train.steps": steps,
        "train.time_budget": time_budget,
        "run.seed": seed,
        "run.device": device,
        "run.precision": precision,
    }
    given = {name: value for name, value in asked.items() if value not in (None, "")} | dict(overrides or {})
    hearing: list[Sink] = [*sinks, *open_trackers(trackers)]
    return run(plan(Request(command, _parsed(given), init)), out, resume, hearing)


def pretrain(
    *,
    data: str = "",
    model: str = "",
    img_size: Size | int | str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    time_budget: float | str | None = None,
    seed: int | None = None,
    out: str = "",
    overrides: Overrides | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train from random weights: the run folder and the report. `train` takes more options."""
    return train(
        "pretrain", data=data, model=model, img_size=img_size, epochs=epochs, steps=steps, time_budget=time_budget,
        seed=seed, out=out, overrides=overrides,
    )  # fmt: skip


def finetune(
    checkpoint: str = "",
    *,
    data: str = "",
    img_size: Size | int | str | None = None,
    freeze: str = "",
    epochs: float | None = None,
    steps: int | None = None,
    time_budget: float | str | None = None,
    seed: int | None = None,
    out: str = "",
    overrides: Overrides | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Move a checkpoint to other images, classes or another image size: the run folder and the report."""
    return train(
        "finetune", init=checkpoint, data=data, img_size=img_size, freeze=freeze, epochs=epochs, steps=steps,
        time_budget=time_budget, seed=seed, out=out, overrides=overrides,
    )  # fmt: skip


def run(planned: Plan, out: str = "", resume: str = "auto", sinks: Sequence[Sink] = ()) -> tuple[Path, dict[str, Any]]:
    """Train what was planned, or resume it. Returns the run folder and the report."""
    with together(planned) as is_first:
        if not is_first:
            return follow(planned), {}
        log = Log(sinks)
        place = world.told(runfolder.choose(planned, out, resume))
        log("note", text=f"run folder: {place.folder}")
        for note in planned.notes if place.how != "finished" else ():
            log("note", text=note)
        for warning in planned.warnings if place.how != "finished" else ():
            log("warning", text=warning)
        return train_plan(planned, place, log)


def sweep(
    planned: Sweep, out: str = "", sinks: Sequence[Sink] = (), say: Callable[[str], None] = lambda text: None
) -> tuple[Path, dict[str, Any]]:
    """Run a sweep of `plan_sweep`, or resume it. Returns its folder and its report.

    `say` is told of every run before it starts, the sinks hear each run's events.
    """
    folder = _choose_sweep(planned, out)
    say(f"sweep folder: {folder}")
    return folder, _run_sweep(planned, folder, lambda: Log(sinks), say)


# --- measuring ---------------------------------------------------------------------------------------------


def evaluate(
    checkpoint: str = "",
    data: str = "",
    split: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    classes: str = "",
    real: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint: top-1, top-5, loss, calibration error, each class."""
    planned = plan_evaluation(
        checkpoint, data, split, img_size=img_size, labels=labels, classes=classes, real=real, device=device,
        precision=precision, overrides=_parsed(overrides),
    )  # fmt: skip
    if planned.split.sets is not None:
        return summary_of_sets(planned.measure_sets(), planned.classes)
    return summary(planned.measure(), planned.classes, planned.real)


def predict(
    checkpoint: str,
    paths: Iterable[str],
    *,
    img_size: Size | None = None,
    labels: str = "",
    classes: str = "",
    min_score: float | None = None,
    embedding: bool = False,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Name what is on image files: a row an image, in the order given; one that cannot be read has `error`."""
    planned = plan_prediction(
        checkpoint, img_size=img_size, labels=labels, classes=classes, min_score=min_score, embedding=embedding, device=device,
        precision=precision, overrides=_parsed(overrides),
    )  # fmt: skip
    return list(planned.predict(paths))


def probe(
    checkpoint: str = "",
    data: str = "",
    split: str = "",
    *,
    method: str = "linear",
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    features: Path | None = None,
    force: bool = False,
    overrides: Overrides | None = None,
) -> dict[str, Any]:
    """Fit a classifier on a checkpoint's frozen features, and measure it; `features` is a file to write them to."""
    planned = plan_probe(
        checkpoint, data, split, method=method, img_size=img_size, device=device, precision=precision, features=features,
        force=force, overrides=_parsed(overrides),
    )  # fmt: skip
    return planned.measure()


def bench(
    models: Sequence[Architecture], overrides: Overrides | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Speed of `models` (config.model_config) on this machine. Raises UsageError for a value that does not concern it."""
    return bench_asked(models, _parsed(overrides), progress)


# --- looking inside ----------------------------------------------------------------------------------------


def attention_distance(
    checkpoint: str = "",
    data: str = "",
    images: Sequence[str] = (),
    *,
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> dict[str, Any]:
    """Mean attention distance in pixels, a number a head a layer."""
    planned = plan_attention(
        checkpoint, data, images, img_size=img_size, device=device, precision=precision, overrides=_parsed(overrides)
    )
    return planned.distance()


def attention_rollout(
    checkpoint: str,
    images: Sequence[str],
    out: Path,
    *,
    img_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
    overrides: Overrides | None = None,
) -> dict[str, Any]:
    """Write attention rollouts over image files as pictures into the folder `out`."""
    planned = plan_attention(
        checkpoint, "", images, img_size=img_size, device=device, precision=precision, overrides=_parsed(overrides)
    )
    return planned.overlays(images, out, force)


def _parsed(overrides: Overrides | None) -> Overrides:
    """Raises UsageError for an unknown key, or a value of the wrong kind or out of its bounds."""
    return {name: parse_value(name, value) for name, value in (overrides or {}).items()}
