"""`vit bench`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitcli import config
from vitcli.cli import completion, options
from vitcli.cli.command import print_result, reporting
from vitcli.families.table import size_said

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL…",
        autocompletion=completion.models,
        show_default=False,
        help="Models such as ViT-S/16, ti/4 or R50x1.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", show_default=False, help="Images at a time. \\[default: what suits the device]"
    ),
]


def bench(
    models: Models,
    img_size: options.ImgSize = "",
    batch_size: Batch = None,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Images a second in training and inference, beside the peak of this machine's matrix products.

    Training is the whole step, forward, backward and AdamW, on a batch that lies ready.

    What changes speed can be set: bench.modes=infer, run.attention=recompute, run.compile=on, model.drop_path=0.4.

    What bounds a step is said beside it: launching its operations, moving its numbers, or arithmetic.
    """
    overrides = options.overrides(
        None,
        set_,
        run__device=options.given(device, "auto"),
        run__precision=options.given(precision, "auto"),
        train__batch_size=batch_size,
    )
    asked, classes = options.size(img_size), overrides.get("data.classes", 1000)
    sizes = [asked or size_said(name) or (224, 224) for name in models]
    named = [config.model_config(m, size, classes).suited_to(size) for m, size in zip(models, sizes, strict=True)]
    from vitcli import api

    with reporting(quiet) as reporter:
        tree = api.bench(named, overrides, reporter.progress)
    print_result(tree, _text(tree), json=json)


def _text(tree: dict[str, Any]) -> list[str]:
    ((precision, peak),) = tree["peak_tflops"].items()
    rows = [("model", "mode", "batch", "images/s", "TFLOP/s", "of peak", "bound by")]
    rows += [
        (
            result["model"],
            result["mode"] + _way(result),
            str(result["batch_size"]),
            f"{result['images_per_second']:,.1f}",
            f"{result['tflops']:.3g}",
            f"{100 * result['share_of_peak']:.0f} %",
            result["bound"],
        )
        for result in tree["results"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*lines, f"peak of a matrix product in {precision}: {peak:.3g} TFLOP/s"]


def _way(result: dict[str, Any]) -> str:
    ways = [name for name, taken in (("compiled", result["compile"]), ("replayed", result["replay"])) if taken]
    return f" ({', '.join(ways)})" if ways else ""
