"""`vit sweep`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitcli.cli import command, console, options
from vitcli.cli.train import Freeze, Model
from vitcli.errors import UsageError

if TYPE_CHECKING:
    from vitcli.train.sweep import Sweep

What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[pretrain|finetune] [CKPT]",
        show_default=False,
        help="The command whose runs these are. A checkpoint alone means finetune, nothing means pretrain.",
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="SECTION.KEY=V,V…",
        show_default=False,
        help="Values to try; repeatable, all combinations are run. Values with commas are parted by semicolons.",
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of the best point, on all training images.")]


def sweep(
    what: What = None,
    grid: Grid = None,
    seeds: Seeds = 3,
    data: options.Data = "",
    model: Model = "",
    img_size: options.ImgSize = "",
    batch_size: options.BatchSize = None,
    freeze: Freeze = "",
    labels: options.Labels = "",
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    time_budget: options.TimeBudget = "",
    objective: options.Objective = "",
    recipe: options.Recipe = "",
    config: options.ConfigFile = None,
    set_: options.Set = None,
    out: options.Out = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Try a grid of values, choose by a part of the training images, and train the best with several seeds.

    Every length is that of one run. The dev part is a tenth of the training images (train.dev), never the test split. The
    same command again goes on with an unfinished sweep.
    """
    overrides = options.of_a_run(locals())
    kind, checkpoint = _command(what or [])
    from vitcli import api
    from vitcli.train.plan import Request

    planned = api.plan_sweep(Request(kind, overrides, checkpoint, dry_run, time.monotonic()), grid or [], seeds)
    command.announce(planned.first.notes, quiet=quiet)
    if dry_run:
        _show_plan(planned, json)
        return
    with command.reporting(quiet) as reporter:
        folder, report = api.sweep(planned, out, [reporter], lambda text: reporter("note", {"text": text}))
    command.print_result(report, _text(report, str(folder)), json=json)


def _command(what: list[str]) -> tuple[Literal["pretrain", "finetune"], str]:
    """(command, checkpoint). Raises UsageError."""
    kind: Literal["pretrain", "finetune"] = "finetune" if what else "pretrain"
    if what and what[0] in ("pretrain", "finetune"):
        kind = "pretrain" if what[0] == "pretrain" else "finetune"
        what = what[1:]
    if len(what) > (kind == "finetune"):
        raise UsageError(
            f"too many arguments: {' '.join(what)}", "write vit sweep pretrain …, or vit sweep finetune CKPT …"
        )
    return kind, what[0] if what else ""


def _show_plan(planned: Sweep, json: bool) -> None:
    tree = planned.as_json()
    if json:
        console.print_json(tree)
        return
    from vitcli.train.sweep import text_of

    rows = {
        "model": tree["model"],
        "data": ", ".join(f"{s['name']} {s['rows']:,}" for s in tree["data"]["splits"]),
        "runs": f"{len(tree['grid'])} of the grid, {len(tree['seeds'])} of the best",
        "length": "by time" if tree["steps"] is None else f"{tree['steps']:,} steps each",
        "training": "by time" if tree["train_flops"] is None else f"{tree['train_flops']:.3g} FLOPs in all",
    }
    lines = [f"{name:<11} {value}" for name, value in rows.items()]
    console.print_lines(lines + [f"  {text_of(point)}" for point in planned.grid])


def _text(tree: dict[str, Any], folder: str) -> list[str]:
    rows = [" ".join(f"{k}={v}" for k, v in row["set"].items()) for row in tree["grid"]]
    width = max(map(len, rows))
    lines = ["top-1 on the dev part:"]
    for name, row in zip(rows, tree["grid"], strict=True):
        mark = "  best" if row["set"] == tree["best"] else ""
        score = "diverged" if row["dev_top1"] is None else f"{100 * row['dev_top1']:6.2f} %"
        lines.append(f"  {name:<{width}}  {score}{mark}")
    if tree["top1_mean"] is not None:
        seeds = f"{len(tree['seeds'])} seed{'s' if len(tree['seeds']) > 1 else ''}"
        lines.append(f"top-1       {100 * tree['top1_mean']:.2f} ± {100 * tree['top1_std']:.2f} % ({seeds})")
    checkpoints = [f"checkpoint  {run['checkpoint']}" for run in tree["runs"]]
    return [*lines, *checkpoints, f"picture     {folder}/grid.png"]
