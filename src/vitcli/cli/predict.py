"""`vit predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitcli import files
from vitcli.cli import console, options
from vitcli.cli.command import announce, reporting

if TYPE_CHECKING:
    from io import BufferedReader

    from vitcli.evaluate.predictor import NoImage

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", show_default=False, help="A weights file, a run folder or a hub id (user/name\\[@rev])."
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE…",
        show_default=False,
        help="Image files, folders, patterns, or - for paths on stdin, one a line.",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        show_default=False,
        help="A row an image, as .parquet, .csv or .jsonl, in place of lines on stdout.",
        rich_help_panel="Output",
    ),
]
UNREADABLE = 3
"""Exit code where an image could not be read; its line says why, and the others are there."""


def predict(
    checkpoint: Checkpoint,
    images: Images,
    img_size: options.ImgSize = "",
    batch_size: options.EvalBatchSize = None,
    labels: options.Labels = "",
    out: Table = None,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Name what is on images: a line an image with its path, label and score, in the order given.

    --json writes an object a line, with the best classes. An image that cannot be read has its error in its line, and the
    exit code is then 3. Computes in float32 unless told otherwise, so that a score is the same everywhere.
    """
    overrides = options.overrides(None, set_, eval__batch_size=batch_size)
    if out is not None:
        files.check_out(out, force)
    from vitcli import api
    from vitcli.evaluate import predictor, report

    if out is not None:
        report.check_table(out, "--out")
    planned = api.plan_prediction(
        checkpoint, img_size=options.size(img_size), labels=labels, device=device, precision=precision,
        overrides=overrides,
    )  # fmt: skip
    announce(planned.notes, quiet=quiet)
    rows, failed, done = [], 0, 0
    with reporting(quiet) as reporter:
        for row in planned.predict(_named(images)):
            done, failed = done + 1, failed + ("error" in row)
            if out is not None:
                rows.append(row)
                reporter.progress("predicting", done, done + 1)
            elif json:
                console.print_json(row)
            else:
                console.print_row(_fields(row))
    if out is not None:
        report.write_table(out, predictor.table(rows, nested=out.suffix != ".csv"))
        console.print_json({"path": str(out), "rows": done, "errors": failed}) if json else console.print_path(out)
    if failed:
        console.show_warning(f"{failed:,} of {done:,} images could not be read")
        raise typer.Exit(UNREADABLE)


def _named(images: list[str]) -> Iterator[str | NoImage]:
    """The paths given, those on stdin in the place of `-`."""
    from vitcli.evaluate.predictor import lines_of

    for name in images:
        yield from lines_of(cast("BufferedReader", sys.stdin.buffer)) if name == "-" else [name]


def _fields(row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return row["path"], f"error: {row['error']}"
    return row["path"], row["label"], f"{row['score']:.4f}"
