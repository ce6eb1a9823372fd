"""`vit probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli.cli import completion, options
from vitcli.cli.command import announced, print_result, reporting
from vitcli.cli.evaluate import Split
from vitcli.cli.train import Checkpoint

Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="linear|fewshot|knn",
        autocompletion=completion.of("linear", "fewshot", "knn"),
        help="linear: a linear discriminant or softmax regression, whichever is better by cross-validation. fewshot: the "
        "paper's least squares on probe.shots images a class. knn: a vote of the probe.k nearest.",
    ),
]
FeaturesFile = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="FILE",
        show_default=False,
        help="Write the features, a row an image, as .npz or .parquet; with --set probe.patches=true those of every patch, too.",
        rich_help_panel="Output",
    ),
]


def probe(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    method: Method = "linear",
    split: Split = "",
    img_size: options.ImgSize = "",
    features: FeaturesFile = None,
    force: options.Force = False,
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

    overrides = options.overrides(None, set_)
    options.check_machine(device, precision)
    from vitcli import api

    planned = api.plan_probe(
        checkpoint, data, split, method=method, img_size=options.size(img_size), device=device, precision=precision,
        features=features, force=force, overrides=overrides,
    )  # fmt: skip
    if announced(planned, json=json, quiet=quiet, dry_run=dry_run):
        return
    with reporting(quiet) as reporter:
        tree = planned.measure(reporter.progress)
    print_result(tree, _text(tree), json=json)


def _text(tree: dict[str, Any]) -> list[str]:
    lines = [
        f"probe       {tree['method']}, fitted on {tree['train_n']:,} images",
        f"split       {tree['split']}, {tree['results'][0]['n']:,} images",
    ]
    if "cross_validation" in tree:
        (row,) = tree["results"]
        lines += [
            f"top-1       {100 * row['top1']:.2f} %",
            f"penalty     l2 = {row['l2']:g}, {tree['solver']}, the best of these by cross-validation:",
        ]
        return lines + [
            f"  {row['solver']:<8}{row['l2']:<8g} {100 * row['top1']:6.2f} %" for row in tree["cross_validation"]
        ]
    for row in tree["results"]:
        left = ("top1", "std", "n", "draws")
        by = ", ".join(f"{name} = {value:g}" for name, value in row.items() if name not in left)
        spread = f" ± {100 * row['std']:.2f}" if row.get("std") is not None else ""
        lines.append(f"top-1       {100 * row['top1']:.2f}{spread} %{f' with {by}' if by else ''}")
    return lines
