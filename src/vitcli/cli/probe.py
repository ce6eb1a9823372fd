"""`vit probe`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitcli.cli import console, options
from vitcli.cli.evaluate import Split
from vitcli.cli.train import Checkpoint

Method = Annotated[
    str,
    typer.Option(
        "--method", metavar="linear", help="linear: softmax regression, its penalty chosen by cross-validation."
    ),
]


def probe(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    method: Method = "linear",
    split: Split = "",
    img_size: options.ImgSize = "",
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure what a checkpoint's frozen features are worth on some data, without training the network.

    The classifier is fitted on the training images and measured on the held-out ones.
    """
    from vitcli import config

    overrides = options.overrides(None, set_)
    config.parse_value("run.device", device)
    config.parse_value("run.precision", precision)
    from vitcli import api

    planned = api.plan_probe(
        checkpoint, data, split, method=method, img_size=options.size(img_size), device=device, precision=precision,
        overrides=overrides,
    )  # fmt: skip
    if not quiet:
        for note in planned.notes:
            console.show_note(note)
    for warning in planned.warnings:
        console.show_warning(warning)
    if dry_run:
        tree = planned.as_json()
        console.print_json(tree) if json else console.print_fields(tree)
        return
    reporter = console.Reporter(quiet)
    try:
        tree = planned.measure(reporter.progress)
    finally:
        reporter.close()
    if json:
        console.print_json(tree)
    else:
        console.print_lines(_text(tree))


def _text(tree: dict[str, Any]) -> list[str]:
    result = tree["results"][0]
    lines = [
        f"probe       {tree['method']}, fitted on {tree['train_n']:,} images",
        f"split       {tree['split']}, {result['n']:,} images",
        f"top-1       {100 * result['top1']:.2f} %",
        f"penalty     l2 = {result['l2']:g}, the best of these by cross-validation:",
    ]
    return lines + [f"  {row['l2']:<8g} {100 * row['top1']:6.2f} %" for row in tree["cross_validation"]]
