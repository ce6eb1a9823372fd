"""`vit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli import files
from vitcli.cli import console, options
from vitcli.cli.command import announced, print_result, reporting
from vitcli.cli.train import Checkpoint

Split = Annotated[
    str, typer.Option("--split", metavar="NAME", show_default=False, help="Which split. \\[default: the held-out one]")
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        show_default=False,
        help="A row an image, as .parquet, .csv or .jsonl.",
        rich_help_panel="Output",
    ),
]
Confusion = Annotated[
    Path | None,
    typer.Option(
        "--confusion",
        metavar="FILE.png",
        show_default=False,
        help="Picture of true against predicted classes.",
        rich_help_panel="Output",
    ),
]
_SHOWN_CLASSES = 20


def eval_(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    split: Split = "",
    img_size: options.ImgSize = "",
    batch_size: options.EvalBatchSize = None,
    labels: options.Labels = "",
    predictions: Predictions = None,
    confusion: Confusion = None,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure a checkpoint: top-1, top-5, loss, calibration error, and each class.

    Needs nothing but the checkpoint where that says what data it was trained on.
    """
    from vitcli import config

    overrides = options.overrides(None, set_, eval__batch_size=batch_size)
    config.parse_value("run.device", device)
    config.parse_value("run.precision", precision)
    for path in filter(None, (predictions, confusion)):
        files.check_out(path, force)
    from vitcli import api
    from vitcli.evaluate import report

    if predictions is not None:
        report.check_table(predictions)
    with reporting(quiet) as reporter:
        planned = api.plan_evaluation(
            checkpoint, data, split, img_size=options.size(img_size), labels=labels, device=device, precision=precision,
            overrides=overrides, progress=reporter.progress,
        )  # fmt: skip
    if announced(planned, json=json, quiet=quiet, dry_run=dry_run):
        return
    with reporting(quiet) as reporter:
        result = planned.measure(reporter.progress)
    if result.unreadable:
        console.show_warning(f"{result.unreadable} unreadable images are left out")
    tree = report.summary(result, planned.classes)
    if predictions is not None:
        report.write_table(predictions, report.predictions(result, planned.split, planned.classes))
    if confusion is not None:
        report.draw_confusion(result, planned.classes, planned.source.name, confusion)
    print_result(tree, _text(tree), json=json)


def _text(tree: dict[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f} %"

    lines = [f"split       {tree['split']}, {tree['n']:,} images", f"top-1       {percent(tree['top1'])}"]
    if tree["top5"] is not None:
        lines.append(f"top-5       {percent(tree['top5'])}")
    if tree["n"]:
        lines += [
            f"balanced    {percent(tree['balanced_top1'])} (mean of the classes)",
            f"loss        {tree['loss']:.4f} nats",
            f"calibration {percent(tree['ece'])} expected error",
            f"speed       {tree['images_per_second']:,.0f} images/s",
        ]
    seen = [c for c in tree["classes"] if c["n"]]
    if len(seen) > _SHOWN_CLASSES:
        seen = sorted(seen, key=lambda c: c["top1"])[:_SHOWN_CLASSES]
        lines.append(f"the {_SHOWN_CLASSES} classes with the lowest top-1:")
    width = max((len(c["name"]) for c in seen), default=0)
    lines += [f"  {c['name']:<{width}}  {percent(c['top1']):>8}  of {c['n']:,}" for c in seen]
    return lines
