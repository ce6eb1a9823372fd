"""`vit predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitcli.cli import console, options
from vitcli.cli.command import announce, reporting
from vitcli.cli.train import Checkpoint
from vitcli.errors import Interrupted, Stopped, UsageError
from vitcli.world import joined, launched, told

if TYPE_CHECKING:
    from io import BufferedReader

    from vitcli.evaluate.named import NoImage
    from vitcli.evaluate.predictor import PredictionPlan

Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE…",
        show_default=False,
        help="Image files, folders, patterns, addresses (s3://…), or - for paths on stdin, one a line.",
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
Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        metavar="FILE",
        show_default=False,
        help="The classes to tell apart, a name a line; `OUTPUT<tab>CLASS` makes classes of several outputs.",
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score",
        metavar="P",
        show_default=False,
        help="Below this score an image shows none of these classes: its label is null. \\[default: 0, or 0.5 where labels are sets]",
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        "--sheet",
        metavar="FILE.png",
        show_default=False,
        help="The images with their labels, scores and next guesses, the first 60 of many.",
        rich_help_panel="Pictures",
    ),
]
Embedding = Annotated[
    bool,
    typer.Option("--embedding", help="Add what the head reads, a list of numbers an image; with --json or --out."),
]
MOST_SHOWN = 60
"""Images on a sheet."""
UNREADABLE = 3
"""Exit code where an image could not be read; its line says why, and the others are there."""


def predict(
    checkpoint: Checkpoint = "",
    image: Images = None,
    img_size: options.ImgSize = "",
    batch_size: options.EvalBatchSize = None,
    top_k: options.TopK = None,
    min_score: MinScore = None,
    embedding: Embedding = False,
    labels: options.Labels = "",
    classes: Classes = "",
    out: Table = None,
    sheet: Sheet = None,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Name what is on images: a line an image with its path, label and score, in the order given.

    --json writes an object a line, with the best classes. An image that cannot be read has its error in its line, and the
    exit code is then 3. Computes in float32 unless told otherwise, so that a score is the same everywhere. With --out, the same
    command after a kill or a signal goes on where it was.
    """
    overrides = options.overrides(None, set_, eval__batch_size=batch_size, eval__top_k=top_k)
    checkpoint, images = options.checkpoint_and_images(checkpoint, image or [])
    if not images:
        raise UsageError(
            "no image is named" if not checkpoint else f"no image is named, only the checkpoint {checkpoint}",
            "name files, folders or patterns: vit predict CKPT IMAGE…, or - for paths on stdin",
        )
    options.check_written({"--out": out, "--sheet": sheet}, force, {"--out": options.TABLES, "--sheet": options.PNG})
    if embedding and not json and (out is None or out.suffix == ".csv"):
        raise UsageError("--embedding: a line of text or of CSV holds no list", "add --json, or --out F.parquet")
    from vitcli import api

    planned = api.plan_prediction(
        checkpoint, img_size=options.size(img_size), labels=labels, classes=classes, min_score=min_score, embedding=embedding,
        device=device, precision=precision, overrides=overrides,
    )  # fmt: skip
    announce(planned.notes, quiet=quiet)
    shown: list[dict[str, Any]] = []
    most = 0 if sheet is None else MOST_SHOWN
    with joined(planned.machine.device), reporting(quiet) as reporter:
        if not launched().is_first:
            planned.follow()
            return
        done, failed = (
            _tabled(planned, images, out, force, reporter, shown, most)
            if out
            else _printed(planned, images, json, reporter, shown, most)
        )
        told(False)
    if sheet is not None and failed < done:
        from vitcli.evaluate.report import draw_predictions

        draw_predictions(shown, done, planned.description.model.name, planned.data.max_megapixels, sheet)
    if out is not None:
        console.print_json({"path": str(out), "rows": done, "errors": failed}) if json else console.print_path(out)
    if failed:
        console.show_warning(f"{failed:,} of {done:,} images could not be read")
        raise typer.Exit(UNREADABLE)


def _printed(
    planned: PredictionPlan,
    images: list[str],
    json: bool,
    reporter: console.Reporter,
    shown: list[dict[str, Any]],
    most: int,
) -> tuple[int, int]:
    """A line an image; how many there were, and how many of them could not be read. The first `most` rows are added to `shown`."""
    done = failed = 0
    is_seen = sys.stdout.isatty()  # where lines move past, nothing else needs to
    for row in planned.predict(_named(images)):
        if is_seen and not done:
            reporter.close()  # a bar and lines on one terminal would run into each other
        done, failed = done + 1, failed + ("error" in row)
        shown += [row] if len(shown) < most else []
        console.print_json(row) if json else console.print_row(_fields(row))
        if not is_seen:
            reporter.progress("predicting", done, 0)
    return done, failed


def _tabled(
    planned: PredictionPlan,
    images: list[str],
    out: Path,
    force: bool,
    reporter: console.Reporter,
    shown: list[dict[str, Any]],
    most: int,
) -> tuple[int, int]:
    """A row an image in a table that is written part by part. Rows for `shown` that an earlier command wrote are computed again. Raises
    Interrupted with what was done saved.
    """
    from vitcli.evaluate.named import expand
    from vitcli.evaluate.parts import Table as Rows
    from vitcli.evaluate.parts import columns_of
    from vitcli.train.signals import Signals

    about = planned.as_json()
    columns = columns_of(about, out.suffix != ".csv")
    with Rows(out, columns, about, force) as table, Signals(all_raise=True):
        try:
            first: list[str | NoImage] = []
            left = table.left(_kept(expand(_named(images)), first, most))
            if table.done:
                shown += planned.answers(first[: table.done])
                reporter("note", {"text": f"{table.done:,} images have their rows already, in {table.folder}"})
            for row in planned.answers(left):
                table.add(row)
                shown += [row] if len(shown) < most else []
                reporter.progress("predicting", table.done, 0)
            table.finish()
        except Stopped as stopped:
            table.flush()
            if not table.done:
                raise
            raise Interrupted(
                f"stopped by {stopped} after {table.done:,} images",
                f"the same command goes on; {table.folder} has their rows",
            ) from None
    return table.done, table.errors


def _kept(names: Iterator[str | NoImage], first: list[str | NoImage], most: int) -> Iterator[str | NoImage]:
    """The names as they come; the first `most` are added to `first`."""
    for name in names:
        first += [name] if len(first) < most else []
        yield name


def _named(images: list[str]) -> Iterator[str | NoImage]:
    """The paths given, those on stdin in the place of `-`."""
    from vitcli.evaluate.named import lines_of

    for name in images:
        yield from lines_of(cast("BufferedReader", sys.stdin.buffer)) if name == "-" else [name]


def _fields(row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return row["path"], f"error: {row['error']}"
    if row.get("labels"):
        return row["path"], *(part for item in row["labels"] for part in (item["label"], f"{item['score']:.4f}"))
    return row["path"], "none of these" if row["label"] is None else row["label"], f"{row['score']:.4f}"
