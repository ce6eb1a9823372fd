"""`vit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli.cli import console, options
from vitcli.cli.command import announced, print_result, reporting
from vitcli.cli.train import Checkpoint
from vitcli.errors import UsageError
from vitcli.world import joined, launched

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
_ENDINGS = {
    "--predictions": options.TABLES,
    "--calibrate": (".safetensors",),
    "--confusion": options.PICTURES,
    "--reliability": options.PICTURES,
    "--worst": options.PNG,
}


def eval_(
    checkpoint: Checkpoint = "",
    data: options.Data = "",
    split: Split = "",
    img_size: Sizes = "",
    batch_size: options.EvalBatchSize = None,
    top_k: options.TopK = None,
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
    overrides = options.overrides(None, set_, eval__batch_size=batch_size, eval__top_k=top_k)
    options.check_machine(device, precision)
    written = {
        "--predictions": predictions, "--calibrate": calibrate, "--confusion": confusion, "--reliability": reliability,
        "--worst": worst,
    }  # fmt: skip
    options.check_written(written, force, _ENDINGS)
    sizes = [options.size(text) for text in img_size.split(",")]
    _check_together(sizes, classes, {option for option, path in written.items() if path is not None})
    from vitcli import api

    with reporting(quiet) as reporter:
        first = api.plan_evaluation(
            checkpoint, data, split, img_size=sizes[0], labels=labels, classes=classes, real=real, device=device,
            precision=precision, overrides=overrides, progress=reporter.progress,
        )  # fmt: skip
    plans = [first, *(first.at(size) for size in sizes[1:] if size)]
    if announced(plans[0], json=json, quiet=quiet, dry_run=dry_run):
        return
    if plans[0].split.sets is not None:
        _check_sets(written)
    with joined(first.machine.device):  # of several processes each measures its part, and the first one tells of it
        results = [_measured(planned, written, quiet) for planned in plans]
    if not launched().is_first:
        return
    if len(sizes) > 1:
        rows = [{"img_size": list(size), **tree} for size, tree in zip(sizes, results, strict=True) if size]
        print_result({"results": rows}, _text_of_sizes(rows), json=json)
        return
    print_result(results[0], (_text_of_sets if "map" in results[0] else _text)(results[0]), json=json)


def _measured(planned: EvaluationPlan, written: dict[str, Path | None], quiet: bool) -> dict[str, Any]:
    """The fields of the JSON, and the files that were asked for."""
    from vitcli.evaluate import report
    from vitcli.evaluate.calibration import is_at_a_bound

    out = written["--calibrate"]
    with reporting(quiet) as reporter:
        if planned.split.sets is not None:
            of_sets = planned.measure_sets(reporter.progress)
            if launched().is_first:
                _warn_of(of_sets.unreadable)
            return report.summary_of_sets(of_sets, planned.classes)
        result = planned.measure(reporter.progress, keep_logits=out is not None)
        fitted = planned.calibrate(result, reporter.progress) if out is not None else None
    if not launched().is_first:
        return {}
    _warn_of(result.unreadable)
    tree = report.summary(result, planned.classes, planned.real)
    title = _title(planned, tree)
    if fitted is not None and out is not None:
        tree["calibration"] = fitted[0] | {"checkpoint": str(out)}
        if is_at_a_bound(fitted[0]["temperature"]):
            console.show_warning(
                "the temperature is at the bound of what is tried: there are too few images, or all are right"
            )
        planned.write_calibrated(out, fitted[0]["temperature"])
    if (path := written["--predictions"]) is not None:
        report.write_table(path, report.predictions(result, planned.split, planned.classes))
    if (path := written["--confusion"]) is not None:
        report.draw_confusion(result, planned.classes, title, path)
    if (path := written["--reliability"]) is not None:
        tree["reliability"] = report.reliability(result.tally)
        report.draw_reliability(result, fitted, title, path)
    if (path := written["--worst"]) is not None:
        most = planned.data.max_megapixels
        report.draw_worst(result, planned.split, planned.classes, most, f"greatest loss: {title}", path)
    return tree


def _warn_of(unreadable: int) -> None:
    if unreadable:
        console.show_warning(f"{unreadable} unreadable images are left out")


def _check_together(sizes: list[Any], classes: str, written: set[str]) -> None:
    """Raises UsageError for options that do not go together."""
    if len(sizes) > 1 and None in sizes:
        raise UsageError("--img-size has an empty size among others", "write sizes with commas between them: 160,224")
    if len(sizes) > 1 and written:
        raise UsageError(f"several sizes and {sorted(written)[0]}", "files are written of one size at a time")
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
        f"mAP         {console.percent(tree['map'])} (mean average precision of the classes)",
        f"top-1       {console.percent(tree['top1'])} (the best class is one of the image's)",
    ]
    lines += [f"loss        {tree['loss']:.4f} nats"] if tree["loss"] is not None else []
    seen = sorted((c for c in tree["classes"] if c["n"]), key=lambda c: c["ap"])[:_SHOWN_CLASSES]
    width = max((len(c["name"]) for c in seen), default=0)
    return lines + [f"  {c['name']:<{width}}  {console.percent(c['ap']):>8}  of {c['n']:,}" for c in seen]


def _title(planned: EvaluationPlan, tree: dict[str, Any]) -> str:
    """Which model, which images, how many, how good."""
    top1 = "" if tree["top1"] is None else f", top-1 {100 * tree['top1']:.1f} %"
    return f"{planned.description.model.name} on {planned.source.name} {tree['split']}, {tree['n']:,} images{top1}"


def _text_of_sizes(rows: list[dict[str, Any]]) -> list[str]:
    key, name = ("map", "mAP") if "map" in rows[0] else ("top1", "top-1")
    lines = [f"{'size':<11} {name:>8} {'loss':>8} {'images/s':>9}"]
    for row in rows:
        size = f"{row['img_size'][0]} x {row['img_size'][1]}"
        loss = "–" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(f"{size:<11} {console.percent(row[key]):>8} {loss:>8} {row['images_per_second']:>9,.0f}")
    return lines


def _text(tree: dict[str, Any]) -> list[str]:
    lines = [f"split       {tree['split']}, {tree['n']:,} images", f"top-1       {console.percent(tree['top1'])}"]
    if tree["top5"] is not None:
        lines.append(f"top-5       {console.percent(tree['top5'])}")
    if "real" in tree:
        lines.append(f"ReaL        {console.percent(tree['real'])} of {tree['real_n']:,} images")
    if tree["n"]:
        lines += [
            f"balanced    {console.percent(tree['balanced_top1'])} (mean of the classes)",
            f"loss        {tree['loss']:.4f} nats",
            f"calibration {console.percent(tree['ece'])} expected error",
            f"speed       {tree['images_per_second']:,.0f} images/s",
        ]
    if "calibration" in tree:
        fitted = tree["calibration"]
        lines.append(
            f"temperature {fitted['temperature']:.3f}, fitted on {fitted['fitted_on']:,} images; on the other {fitted['n']:,} the expected "
            f"error goes from {console.percent(fitted['ece_before'])} to {console.percent(fitted['ece'])}"
        )
    seen = [c for c in tree["classes"] if c["n"]]
    if len(seen) > _SHOWN_CLASSES:
        seen = sorted(seen, key=lambda c: c["top1"])[:_SHOWN_CLASSES]
        lines.append(f"the {_SHOWN_CLASSES} classes with the lowest top-1:")
    width = max((len(c["name"]) for c in seen), default=0)
    lines += [f"  {c['name']:<{width}}  {console.percent(c['top1']):>8}  of {c['n']:,}" for c in seen]
    return lines
