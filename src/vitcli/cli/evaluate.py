"""`vit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli import files
from vitcli.cli import console, options
from vitcli.cli.command import announced, print_result, reporting
from vitcli.cli.train import Checkpoint
from vitcli.errors import UsageError

if TYPE_CHECKING:
    from vitcli.evaluate.evaluator import EvaluationPlan

_OUTPUT, _PICTURES = "Output", "Pictures"
Split = Annotated[
    str, typer.Option("--split", metavar="NAME", show_default=False, help="Which split. \\[default: the held-out one]")
]
Sizes = Annotated[
    str,
    typer.Option(
        "--img-size",
        metavar="N|HxW,…",
        show_default=False,
        help="Image size in pixels; several, with commas, are measured one after the other.",
    ),
]
Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        metavar="data|FILE",
        show_default=False,
        help="The classes to tell apart: those that the data have, or of a file with a name a line; `OUTPUT<tab>CLASS` makes classes "
        "of several outputs.",
    ),
]
Real = Annotated[
    str,
    typer.Option(
        "--real",
        metavar="LABELS.json",
        show_default=False,
        help="Reassessed labels (ReaL), a list of classes an image: adds the part whose prediction is one of them.",
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="OUT",
        show_default=False,
        help="Fit a temperature on half of the images, measure it on the others, and write the checkpoint with it.",
        rich_help_panel=_OUTPUT,
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        show_default=False,
        help="A row an image, as .parquet, .csv or .jsonl.",
        rich_help_panel=_OUTPUT,
    ),
]
Confusion = Annotated[
    Path | None,
    typer.Option(
        "--confusion",
        metavar="FILE.png",
        show_default=False,
        help="True against predicted classes.",
        rich_help_panel=_PICTURES,
    ),
]
Reliability = Annotated[
    Path | None,
    typer.Option(
        "--reliability",
        metavar="FILE.png",
        show_default=False,
        help="How sure the model is against how often it is right.",
        rich_help_panel=_PICTURES,
    ),
]
Worst = Annotated[
    Path | None,
    typer.Option(
        "--worst",
        metavar="FILE.png",
        show_default=False,
        help="The images with the greatest loss, with truth and prediction.",
        rich_help_panel=_PICTURES,
    ),
]
_SHOWN_CLASSES = 20


def eval_(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    split: Split = "",
    img_size: Sizes = "",
    batch_size: options.EvalBatchSize = None,
    labels: options.Labels = "",
    classes: Classes = "",
    real: Real = "",
    predictions: Predictions = None,
    calibrate: Calibrate = None,
    confusion: Confusion = None,
    reliability: Reliability = None,
    worst: Worst = None,
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
    written = {
        "--predictions": predictions, "--calibrate": calibrate, "--confusion": confusion, "--reliability": reliability,
        "--worst": worst,
    }  # fmt: skip
    for path in filter(None, written.values()):
        files.check_out(path, force)
    sizes = [options.size(text) for text in img_size.split(",")]
    _check_together(sizes, classes, {option for option, path in written.items() if path is not None})
    from vitcli import api
    from vitcli.evaluate import report

    if predictions is not None:
        report.check_table(predictions)
    results: list[dict[str, Any]] = []
    for size in sizes:
        with reporting(quiet) as reporter:
            planned = api.plan_evaluation(
                checkpoint, data, split, img_size=size, labels=labels, classes=classes, real=real, device=device,
                precision=precision, overrides=overrides, progress=reporter.progress,
            )  # fmt: skip
        if announced(planned, json=json, quiet=quiet or bool(results), dry_run=dry_run):
            return
        if planned.split.sets is not None:
            _check_sets(written)
            with reporting(quiet) as reporter:
                of_sets = planned.measure_sets(reporter.progress)
            results.append(report.summary_of_sets(of_sets, planned.classes))
            continue
        with reporting(quiet) as reporter:
            result = planned.measure(reporter.progress)
            fitted = planned.calibrate(reporter.progress) if calibrate is not None else None
        if result.unreadable:
            console.show_warning(f"{result.unreadable} unreadable images are left out")
        results.append(report.summary(result, planned.classes, planned.real))
        if reliability is not None:
            results[-1]["reliability"] = report.reliability(result.tally)
        if fitted is not None:
            results[-1]["calibration"] = fitted[0] | {"checkpoint": str(calibrate)}
    if len(sizes) > 1:
        rows = [{"img_size": list(size), **tree} for size, tree in zip(sizes, results, strict=True) if size]
        print_result({"results": rows}, _text_of_sizes(rows), json=json)
        return
    if "map" in results[0]:
        print_result(results[0], _text_of_sets(results[0]), json=json)
        return
    if predictions is not None:
        report.write_table(predictions, report.predictions(result, planned.split, planned.classes))
    if calibrate is not None and fitted is not None:
        planned.write_calibrated(calibrate, fitted[0]["temperature"])
    title = _title(planned, results[0])
    if confusion is not None:
        report.draw_confusion(result, planned.classes, title, confusion)
    if reliability is not None:
        report.draw_reliability(result, fitted, title, reliability)
    if worst is not None:
        report.draw_worst(
            result, planned.split, planned.classes, planned.data.max_megapixels, f"greatest loss: {title}", worst
        )
    print_result(results[0], _text(results[0]), json=json)


def _check_together(sizes: list[Any], classes: str, written: set[str]) -> None:
    """Raises UsageError for options that do not go together."""
    if len(sizes) > 1 and (None in sizes or written):
        raise UsageError(
            f"several sizes and {sorted(written)[0] if written else 'an empty one'}",
            "files are written of one size at a time",
        )
    if classes and "--calibrate" in written:
        raise UsageError("--calibrate and --classes", "a temperature is of all classes: leave --classes out")


def _check_sets(written: dict[str, Path | None]) -> None:
    """Raises UsageError for a file that is of one label an image."""
    wrong = next((option for option, path in written.items() if path is not None), None)
    if wrong is not None:
        raise UsageError(f"{wrong}: the labels of these data are sets", "it is of one label an image: leave it out")


def _text_of_sets(tree: dict[str, Any]) -> list[str]:
    lines = [
        f"split       {tree['split']}, {tree['n']:,} images",
        f"mAP         {_percent(tree['map'])} (mean average precision of the classes)",
        f"top-1       {_percent(tree['top1'])} (the best class is one of the image's)",
    ]
    lines += [f"loss        {tree['loss']:.4f} nats"] if tree["loss"] is not None else []
    seen = sorted((c for c in tree["classes"] if c["n"]), key=lambda c: c["ap"])[:_SHOWN_CLASSES]
    width = max((len(c["name"]) for c in seen), default=0)
    return lines + [f"  {c['name']:<{width}}  {_percent(c['ap']):>8}  of {c['n']:,}" for c in seen]


def _title(planned: EvaluationPlan, tree: dict[str, Any]) -> str:
    """Which model, which images, how many, how good."""
    top1 = "" if tree["top1"] is None else f", top-1 {100 * tree['top1']:.1f} %"
    return f"{planned.description.model.name} on {planned.source.name} {tree['split']}, {tree['n']:,} images{top1}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _text_of_sizes(rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'size':<11} {'top-1':>8} {'loss':>8} {'images/s':>9}"]
    for row in rows:
        size = f"{row['img_size'][0]} x {row['img_size'][1]}"
        loss = "–" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(f"{size:<11} {_percent(row['top1']):>8} {loss:>8} {row['images_per_second']:>9,.0f}")
    return lines


def _text(tree: dict[str, Any]) -> list[str]:
    lines = [f"split       {tree['split']}, {tree['n']:,} images", f"top-1       {_percent(tree['top1'])}"]
    if tree["top5"] is not None:
        lines.append(f"top-5       {_percent(tree['top5'])}")
    if "real" in tree:
        lines.append(f"ReaL        {_percent(tree['real'])} of {tree['real_n']:,} images")
    if tree["n"]:
        lines += [
            f"balanced    {_percent(tree['balanced_top1'])} (mean of the classes)",
            f"loss        {tree['loss']:.4f} nats",
            f"calibration {_percent(tree['ece'])} expected error",
            f"speed       {tree['images_per_second']:,.0f} images/s",
        ]
    if "calibration" in tree:
        fitted = tree["calibration"]
        lines.append(
            f"temperature {fitted['temperature']:.3f}, fitted on {fitted['fitted_on']:,} images; on the other {fitted['n']:,} the expected "
            f"error goes from {_percent(fitted['ece_before'])} to {_percent(fitted['ece'])}"
        )
    seen = [c for c in tree["classes"] if c["n"]]
    if len(seen) > _SHOWN_CLASSES:
        seen = sorted(seen, key=lambda c: c["top1"])[:_SHOWN_CLASSES]
        lines.append(f"the {_SHOWN_CLASSES} classes with the lowest top-1:")
    width = max((len(c["name"]) for c in seen), default=0)
    lines += [f"  {c['name']:<{width}}  {_percent(c['top1']):>8}  of {c['n']:,}" for c in seen]
    return lines
