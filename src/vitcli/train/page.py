"""What a run's report.html says: scores, curves, classes, confusion, mistakes, data, configuration; one file, to be passed on as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli import flops, pages
from vitcli.config import ModelConfig, as_dict, format_size, to_toml
from vitcli.evaluate.evaluator import Evaluation
from vitcli.evaluate.metrics import confusion
from vitcli.evaluate.sets import SetEvaluation
from vitcli.plots import limits_of, smoothed
from vitcli.train.objectives.table import objective_named
from vitcli.train.plan import Plan

FILE = "report.html"
MOST_MISTAKES = 24
_MOST_CLASSES, _MOST_CELLS, _MOST_PAIRS, _FIRST, _MOST_BYTES = 1000, 40, 30, 20, 1_200_000
_NAMES = {"top1": "top-1", "top5": "top-5", "loss": "loss (nats)", "ece": "calibration error", "n": "images",
          "map": "mAP", "balanced_top1": "balanced top-1"}  # fmt: skip
_PERCENT = ("top1", "top5", "ece", "balanced_top1", "map")


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image as the model saw it, `[height, width, 3]`, its name, its class, the one that it was taken for, and how sure the model was."""

    pixels: NDArray[np.uint8]
    name: str
    target: int
    predicted: int
    score: float


@dataclass(frozen=True, eq=False)
class Shown:
    """What a run shows beside its numbers: pictures of its objective by name, its last evaluation, and its mistakes, the worst first."""

    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    evaluation: Evaluation | SetEvaluation | None = None
    mistakes: Sequence[Mistake] = ()


def write(plan: Plan, folder: Path, report: dict[str, Any], lines: list[dict[str, Any]], shown: Shown) -> None:
    """The page of a finished run. Raises ResourceError."""
    places = _places(plan, folder)
    title = f"{plan.config.model.name} on {plan.source.name if plan.source else 'none'}"
    body = [
        f"<h1>{pages.text(title)}</h1>",
        pages.faint(_summary(plan, report)),
        pages.tiles(scores_said(report)),
        *(pages.warning(pages.without_places(said, places)) for said in report["warnings"]),
        pages.section("Curves", _curves(plan, lines)),
        *_pictures(shown.pictures),
        *_of_classes(plan, shown),
        pages.section("Data", pages.facts(_data(plan, report))),
        pages.section("Next", pages.code("\n".join(_commands(plan, folder)))),
        pages.section(
            "Configuration",
            pages.facts(_run(plan, report)),
            pages.folded("run.toml", pages.code(pages.without_places(to_toml(plan.config), places))),
        ),
    ]
    pages.write(title, body, folder / FILE)


def _places(plan: Plan, folder: Path) -> list[str]:
    """Paths of this machine that may stand in what is shown."""
    values = [value for keys in as_dict(plan.config).values() if isinstance(keys, dict) for value in keys.values()]
    return [str(folder.absolute()), str(Path.cwd()), str(Path.home()), *(v for v in values if isinstance(v, str))]


def _summary(plan: Plan, report: dict[str, Any]) -> str:
    model = plan.config.model
    how = "fine-tuned" if plan.config.run.command == "finetune" else "trained further"
    start = f"{how} from {plan.parent.title}" if plan.parent else "trained from random weights"
    return (
        f"A {model.kind} of {flops.parameters(model):,} parameters at {format_size(model.img_size)} px, {start}: {report['steps']:,} steps, "
        f"{report['images_seen']:,} images, {report['seconds']:,.0f} s."
    )


def scores_said(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The scores of a report as (name, text), those that every classifier has first."""
    scores = report["eval"] or {}
    for name in [*(n for n in _NAMES if n in scores), *(n for n in scores if n not in _NAMES and n != "split")]:
        value = scores[name]
        if isinstance(value, (int, float)):
            on = f" of {scores['split']}" if name == "n" and "split" in scores else ""
            form = (
                f"{100 * value:.2f} %"
                if name in _PERCENT
                else f"{value:,}"
                if isinstance(value, int)
                else f"{value:.4g}"
            )
            yield f"{_NAMES.get(name, name)}{on}", form


def _curves(plan: Plan, lines: list[dict[str, Any]]) -> str:
    steps = [line for line in lines if "loss" in line]
    seen = np.array([line["images_seen"] for line in steps], np.float64)
    below, unit = "training images seen", objective_named(plan.config.train.objective).unit
    charts = []
    if steps:
        loss = np.array([line["loss"] for line in steps], np.float64)
        name = "training loss" + (f" ({unit})" if unit else "")
        charts.append(pages.chart(seen, loss, name, below, smooth=smoothed(loss), limits=limits_of(loss)))
    for key, score, name in (("eval", "top1", "top-1 on held-out images (%)"), ("eval", "map", "mAP (%)"),
                             ("monitor", "knn", "top-1 of training images by k-NN (%)")):  # fmt: skip
        there = [
            (line["images_seen"], line[key][score]) for line in lines if (line.get(key) or {}).get(score) is not None
        ]
        if len(there) > 1:
            xs, ys = np.array(there, np.float64).T
            charts.append(pages.chart(xs, 100 * ys, name, below, limits=(0.0, 100.0), dots=True))
    if steps:
        rates = np.array([line["lr"] for line in steps], np.float64)
        charts.append(pages.chart(seen, rates, "learning rate", below, limits=(0.0, float(rates.max()) * 1.05 or 1.0)))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _pictures(pictures: Mapping[str, NDArray[np.uint8]]) -> Iterator[str]:
    """As many as the page has room for."""
    size = 0
    for name, pixels in pictures.items():
        made = pages.picture(pixels, name, "wide")
        size += len(made)
        if size < _MOST_BYTES:
            yield pages.section(name.capitalize(), made)


def classes_measured(plan: Plan, shown: Shown) -> tuple[str, list[tuple[float, str, int]]]:
    """What a class is measured by, and (0..1, class, images) of each, the worst first."""
    found = shown.evaluation
    if found is None:
        return "", []
    if isinstance(found, SetEvaluation):
        name, counts = "average precision", found.tally.whole()[1].sum(0).numpy()
    else:
        name, counts = "top-1", found.tally.class_n
    parts = zip(found.tally.per_class(), plan.classes, counts, strict=True)
    return name, sorted(((part, c.name, int(n)) for part, c, n in parts if part is not None), key=lambda row: row[0])


def _of_classes(plan: Plan, shown: Shown) -> Iterator[str]:
    """Each class, what was taken for what, and the mistakes."""
    found, names = shown.evaluation, [c.name for c in plan.classes]
    if found is None or not names:
        return
    name, there = classes_measured(plan, shown)
    rows = [(name, f"{n:,}", f"{100 * part:.1f} %", part) for part, name, n in there[:_MOST_CLASSES]]
    heads = ("class", "images", name)
    left = len(there) - len(rows)
    yield pages.section(
        "Classes, the worst first",
        pages.bars(heads, rows[:_FIRST]),
        pages.folded(f"{len(rows) - _FIRST:,} more classes", pages.bars(heads, rows[_FIRST:]))
        if len(rows) > _FIRST
        else "",
        pages.faint(f"{left:,} better ones are left out") if left else "",
    )
    if isinstance(found, Evaluation) and len(found.targets):
        yield pages.section("Confusion", *_confusion(found, names))
        yield pages.section("Worst mistakes", *_mistakes(found, shown.mistakes, names))


def _confusion(found: Evaluation, names: Sequence[str]) -> Iterator[str]:
    """All of it, or where classes are many the most frequent."""
    present, counts = confusion(found.targets, found.top[:, 0])
    own = [names[int(c)] for c in present]
    if len(present) <= _MOST_CELLS:
        yield pages.faint("Rows are true classes, columns predictions; the shade is the part of the row.")
        yield pages.matrix(counts, own)
        return
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, off.shape), strict=True) if off[i, j]]
    rows = [(own[i], own[j], f"{off[i, j]:,}", f"{100 * off[i, j] / counts[i].sum():.0f} %") for i, j in pairs]
    yield pages.table(("true", "predicted", "images", "of the class"), rows, frozenset({2, 3}))


def _mistakes(found: Evaluation, mistakes: Sequence[Mistake], names: Sequence[str]) -> Iterator[str]:
    wrong = int((found.top[:, 0] != found.targets).sum())
    if not wrong:
        yield pages.faint("None: all images are classified rightly.")
        return
    yield pages.faint(
        f"{wrong:,} of {len(found.targets):,} images are taken for another class; here are the {len(mistakes):,} with the greatest loss, "
        "as the model sees them: class → prediction, and how sure it is."
    )
    yield pages.images(
        (
            pages.picture(m.pixels, f"{names[m.target]}, taken for {names[m.predicted]}"),
            f"{m.name}: {names[m.target]}" if m.name else names[m.target],
            f"{names[m.predicted]}, {100 * m.score:.0f} %",
        )
        for m in mistakes
    )


def _data(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if plan.source is not None:
        yield "data", plan.source.name
    names = {
        "train": plan.train or plan.stream,
        "unlabelled": plan.unlabelled,
        "kept back to choose by": plan.dev,
        "held out": plan.held_out,
    }
    for name, part in names.items():
        if part is not None:
            yield name, f"{len(part):,} images" + (f" of {part.name}" if part.name != name else "")
    yield "sizes", f"{'all ' if plan.uniform else 'about '}{format_size(plan.native)} px"
    if plan.classes:
        counts = plan.class_counts
        some = ", ".join(c.name for c in plan.classes[:20]) + (" …" if len(plan.classes) > 20 else "")
        yield "classes", f"{len(plan.classes):,}: {some}"
        if counts.any():
            least, most = int(counts.min()), int(counts.max())
            yield "training images a class", f"{least:,}" if least == most else f"{least:,} to {most:,}"
    for split, n in report.get("unreadable", {}).items():
        yield "unreadable", f"{n:,} images of {split}"


def _run(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"{plan.config.run.recipe}, seed {plan.config.run.seed}"
    yield "training", f"{report['train_flops']:.3g} FLOPs, {report['images_per_second']:,.0f} images/s"
    if report["resumed_from"] is not None:
        yield "resumed", f"from step {report['resumed_from']:,}"
    if "selection" in report:
        scores = report["selection"].get("dev_top1") or {}
        said = ", ".join(f"{name} {100 * v:.1f} %" for name, v in scores.items() if v is not None)
        yield "weights", report["selection"]["kept"] + (f" (top-1 on the dev part: {said})" if said else "")


def _commands(plan: Plan, folder: Path) -> Iterator[str]:
    run = folder.name if folder.is_absolute() else str(folder)
    run = f"'{run}'" if " " in run else run
    if plan.classes:
        yield f"vit eval {run}"
        yield f"vit predict {run} IMAGE… --sheet predictions.png"
    yield f"vit finetune {run} --data DATA"
    yield (
        f"vit attn-rollout {run} IMAGE… --out rollout"
        if isinstance(plan.config.model, ModelConfig)
        else f"vit info {run}"
    )
