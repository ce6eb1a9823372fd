"""`vit pretrain` and `vit finetune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitcli.cli import completion, console, options
from vitcli.cli.command import announce, reporting
from vitcli.errors import UsageError
from vitcli.world import launched

if TYPE_CHECKING:
    from vitcli.train.plan import Plan

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=completion.models,
        show_default=False,
        help="ViT-B/16, s/32, ti/4 …: a size (mu ti s m b l h) and a patch size; R50x1, R26+ViT-S/32: a ResNet, a hybrid. \\[default: one that suits data and device]",
    ),
]
Init = Annotated[
    str,
    typer.Option(
        "--init",
        metavar="CKPT",
        autocompletion=completion.checkpoints,
        show_default=False,
        help="Continued pre-training: start from this weights file, run folder or hub id.",
        rich_help_panel="Training",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        "--teacher",
        metavar="CKPT",
        autocompletion=completion.checkpoints,
        show_default=False,
        help="What --objective distill learns from, and what labels --unlabelled images.",
        rich_help_panel="Training",
    ),
]
Unlabelled = Annotated[
    str,
    typer.Option(
        "--unlabelled",
        metavar="DATA",
        autocompletion=completion.data,
        show_default=False,
        help="Further images to train on, with labels from --teacher (Noisy Student).",
        rich_help_panel="Training",
    ),
]
Freeze = Annotated[
    str,
    typer.Option(
        "--freeze",
        metavar="backbone",
        autocompletion=completion.of("backbone"),
        show_default=False,
        help="Train the head alone.",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="[CKPT]",
        autocompletion=completion.checkpoints,
        show_default=False,
        help="A weights file, a run folder or a hub id (user/name\\[@rev]). Left out: the newest finished run under ./runs.",
    ),
]


def pretrain(
    data: options.Data = "",
    model: Model = "",
    img_size: options.ImgSize = "",
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    time_budget: options.TimeBudget = "",
    lr: options.Lr = None,
    objective: options.Objective = "",
    init: Init = "",
    teacher: Teacher = "",
    unlabelled: Unlabelled = "",
    recipe: options.Recipe = "",
    config: options.ConfigFile = None,
    set_: options.Set = None,
    out: options.Out = "",
    resume: options.Resume = "auto",
    tracker: options.Tracker = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train a Vision Transformer from random weights, or with --init go on with trained ones.

    Prints the path of the checkpoint. The same command again goes on with an unfinished run.
    """
    overrides = options.of_a_run(locals())
    _train("pretrain", overrides, init, out, resume, tracker or [], json, quiet, dry_run)


def finetune(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    img_size: options.ImgSize = "",
    batch_size: options.BatchSize = None,
    freeze: Freeze = "",
    labels: options.Labels = "",
    objective: options.Objective = "",
    teacher: Teacher = "",
    unlabelled: Unlabelled = "",
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    time_budget: options.TimeBudget = "",
    lr: options.Lr = None,
    recipe: options.Recipe = "",
    config: options.ConfigFile = None,
    set_: options.Set = None,
    out: options.Out = "",
    resume: options.Resume = "auto",
    tracker: options.Tracker = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Move a trained Vision Transformer to other images, classes or another image size.

    The head is kept where the classes are the same, else new; the position embedding is interpolated to --img-size.
    """
    overrides = options.of_a_run(locals())
    _train("finetune", overrides, checkpoint, out, resume, tracker or [], json, quiet, dry_run)


def _train(
    command: Literal["pretrain", "finetune"],
    overrides: dict[str, Any],
    init: str,
    out: str,
    resume: str,
    tracker: list[str],
    json: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    if resume not in ("auto", "never"):
        raise UsageError(
            f"--resume {resume}: not one of auto, never", "auto resumes an unfinished run, never starts beside it"
        )
    if overrides.get("run.command", command) != command:
        raise UsageError(
            f"the configuration is of vit {overrides['run.command']}", f"run vit {overrides['run.command']} --config …"
        )
    import time

    with reporting(quiet) as reporter:
        from vitcli import api  # which takes long enough to be told of
        from vitcli.train.plan import Request
        from vitcli.train.signals import process_seconds

        started = time.monotonic() - process_seconds()
        trackers = api.open_trackers(tracker)
        plan = api.plan(Request(command, overrides, init, dry_run, started, reporter.progress))
        if dry_run:
            announce(plan.notes, plan.warnings, quiet=quiet)
            _show_plan(plan, json)
            return
        folder, report = api.run(plan, out, resume, [reporter, *trackers])
    if not launched().is_first:
        return
    announce(_closing(folder, report), quiet=quiet)
    if json:
        console.print_json(report)
    else:
        console.print_path(folder / Path(report["checkpoint"]).name)


def _closing(folder: Path, report: dict[str, Any]) -> list[str]:
    """What was learnt, where it lies, and what to type next."""
    scores = report.get("eval")
    learnt = f"{console.score_text(scores)}, " if scores else ""
    name = shlex.quote(str(folder))
    ways = [
        f"vit eval {name} --confusion confusion.png",
        f"vit predict {name} IMAGE…",
        f"vit attn-rollout {name} IMAGE… --out looked",
    ]
    if not scores:
        ways = [f"vit finetune {name} --data DATA", f"vit probe {name} --data DATA"]
    return [
        f"done: {learnt}{report['steps']:,} steps of {report['images_seen']:,} images in {console.duration(report['seconds'])}",
        f"files: {folder}; {folder / 'report.html'} shows the run on one page",
        f"next: {'   '.join(ways)}",
    ]


def _show_plan(plan: Plan, json: bool) -> None:
    tree = plan.as_json()
    if json:
        console.print_json(tree)
        return
    steps, flops, own = tree["steps"], tree["train_flops"], tree.get("trained_params")
    rows = {
        "model": tree["model"],
        "parameters": f"{tree['params']:,}{'' if own is None else f', {own:,} of them trained'}",
        "input": f"{plan.config.model.img_size[0]} x {plan.config.model.img_size[1]} px, {plan.config.model.seen}",
        "classes": f"{tree['data']['classes']:,}",
        "data": ", ".join(f"{s['name']} {s['rows']:,}" for s in tree["data"]["splits"]),
        "length": f"{plan.config.train.time_budget:g} s"
        if steps is None
        else f"{steps:,} steps of {plan.config.train.batch_size}",
        "training": "by time" if flops is None else f"{flops:.3g} FLOPs",
        "memory": f"about {tree['memory_bytes'] / 2**30:.2f} GiB",
        **_estimate_row(tree),
        "recipe": plan.config.run.recipe,
    }
    console.print_fields(rows)


def _estimate_row(tree: dict[str, Any]) -> dict[str, str]:
    """Time and price, where they are estimated."""
    if tree.get("seconds") is None:
        return {}
    price = "" if tree["price"] is None else f", price {tree['price']:,.2f}"
    return {"time": f"about {console.duration(tree['seconds'])}, {tree['device_hours']:,.3g} device hours{price}"}
