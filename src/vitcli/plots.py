"""Numbers to pictures. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # of Okabe and Ito's palette, told apart without colour vision


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    files.write_file(path, lambda temporary: figure.savefig(temporary, format=path.suffix.lstrip(".") or "png"))


def curves(lines: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Training loss (each step and smoothed), learning rate and evaluations against the images seen."""
    steps = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "eval" in line and line["eval"].get("top1") is not None]
    figure = _figure(8, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    seen = np.array([line["images_seen"] for line in steps])
    loss = np.array([line["loss"] for line in steps])
    if len(steps):
        top.plot(seen, loss, color=BLUE, alpha=0.25, linewidth=1)
        top.plot(seen, _smooth(loss), color=BLUE, linewidth=2, label="training loss (nats)")
        bottom.plot(seen, [line["lr"] for line in steps], color=GRAY, linewidth=1.5)
    top.set_ylabel("training loss (nats)", color=BLUE)
    top.set_title(title, loc="left")
    if scores:
        right = top.twinx()
        right.plot(
            [s["images_seen"] for s in scores], [100 * s["eval"]["top1"] for s in scores], color=ORANGE, marker="o"
        )
        last = scores[-1]
        right.annotate(
            f"{100 * last['eval']['top1']:.1f} %",
            (last["images_seen"], 100 * last["eval"]["top1"]),
            textcoords="offset points",
            xytext=(-8, 8),
            ha="right",
            color=ORANGE,
            weight="bold",
        )
        right.set_ylabel(f"top-1 on {last['eval'].get('split', 'test')} (%)", color=ORANGE)
        right.set_ylim(0, 100)
        right.spines[["top"]].set_visible(False)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("training images seen")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (top, bottom):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    _save(figure, path)


def grid_scores(points: Sequence[str], scores: Sequence[float | None], title: str, path: Path) -> None:
    """Dev top-1 of every point of a sweep, as dots in the order of the grid, the best one marked; None has none."""
    figure = _figure(8, 1.2 + 0.34 * len(points))
    axes = figure.subplots()
    shown = [(place, 100 * score) for place, score in enumerate(scores) if score is not None]
    low, high = min(score for _, score in shown), max(score for _, score in shown)
    best = next(place for place, score in shown if score == high)
    for place, score in shown:
        colour, weight = (ORANGE, "bold") if place == best else (BLUE, "normal")
        axes.hlines(place, 0, score, color=GRAY, alpha=0.3, linewidth=1)
        axes.scatter(score, place, color=colour, s=50, zorder=2)
        axes.annotate(
            f"{score:.1f} %", (score, place), textcoords="offset points", xytext=(8, 0), va="center", weight=weight
        )
    names = [point if score is not None else f"{point} (diverged)" for point, score in zip(points, scores, strict=True)]
    axes.set_yticks(range(len(points)), names)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_xlim(max(0.0, low - 0.25 * (high - low) - 1), high + 0.12 * (high - low) + 1)
    axes.set_xlabel("top-1 on the dev part (%)")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred mean over a fortieth of the curve."""
    width = max(1, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def confusion(counts: NDArray[np.int64], names: Sequence[str], title: str, path: Path) -> None:
    """Rows are true classes, columns predictions; the shade is the part of the row, the number the count."""
    n = len(names)
    side = min(24.0, max(4.5, 0.28 * n + 2.2))
    figure = _figure(side, side)
    axes = figure.subplots()
    part = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(part, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="part of the class's images")
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if n <= 80:
        axes.set_xticks(range(n), names, rotation=90, fontsize=7 if n > 20 else 9)
        axes.set_yticks(range(n), names, fontsize=7 if n > 20 else 9)
    if n <= 25:
        for row, column in np.argwhere(counts > 0):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if part[row, column] > 0.5 else "black",
            )
    _save(figure, path)
