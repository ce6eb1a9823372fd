"""Numbers to pictures. matplotlib is imported where it draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.errors import UsageError
from vitcli.lettering import drawable
from vitcli.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # of Okabe and Ito's palette, told apart without colour vision


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a dollar in a name is a dollar

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # an empty box stands for it
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")

    files.write_file(path, write)


def short(name: str, letters: int = 60) -> str:
    """A name that leaves room for what is drawn."""
    shown = drawable(visible(name))
    return shown if len(shown) <= letters else f"{shown[: letters - 1]}…"


def curves(lines: Sequence[dict[str, Any]], title: str, path: Path, unit: str = "nats") -> None:
    """Training loss (each step and smoothed), learning rate and evaluations against the images seen; of a run without labels what
    k-NN made of its training images instead.
    """
    steps = [line for line in lines if "loss" in line]
    scores = [(line["images_seen"], line["eval"]) for line in lines if "eval" in line]
    monitored = [(line["images_seen"], line["monitor"]) for line in lines if "monitor" in line]
    scores += [
        (seen, {"top1": own["knn"], "split": "training images by k-NN"}) for seen, own in monitored if "knn" in own
    ]
    scores = [(seen, own) for seen, own in scores if own.get("top1") is not None]
    name = f"training loss ({unit})" if unit else "training loss"
    figure = new_figure(8, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    if steps:
        _loss(top, bottom, steps)
    top.set_ylabel(name, color=BLUE)
    figure.suptitle(short(title, 80), x=0.01, ha="left", fontsize=11)
    if scores:
        _scores(top.twinx(), scores)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("training images seen")
    bottom.set_xlim(left=0)
    bottom.set_ylim(bottom=0)
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (top, bottom):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, path)


def _loss(top: Axes, bottom: Axes, steps: Sequence[dict[str, Any]]) -> None:
    """The loss, where lines are many smoothed over the light single ones, and the learning rate below."""
    seen = np.array([line["images_seen"] for line in steps], np.float64)
    loss = np.array([line["loss"] for line in steps], np.float64)
    marker = "o" if len(steps) <= 40 else ""
    if len(steps) >= 8:
        top.plot(seen, loss, color=BLUE, alpha=0.3, linewidth=1)
    top.plot(seen, smoothed(loss), color=BLUE, linewidth=2, marker=marker, markersize=3.5)
    low, high = limits_of(loss)
    top.set_ylim(low, high)
    if loss.max() > high:
        place = float(seen[loss.argmax()])
        top.annotate(
            f"▲ up to {loss.max():.3g}",
            (place, high),
            textcoords="offset points",
            xytext=(3, -12),
            color=BLUE,
            fontsize=9,
        )
    bottom.plot(seen, [line["lr"] for line in steps], color=GRAY, linewidth=1.5, marker=marker, markersize=3)


def _scores(axes: Axes, scores: Sequence[tuple[float, dict[str, Any]]]) -> None:
    """Top-1 in percent, from 0 to 100, with the last one named on the side where there is room."""
    axes.plot(
        [seen for seen, _ in scores], [100 * own["top1"] for _, own in scores], color=ORANGE, marker="o", clip_on=False
    )
    last_seen, last = scores[-1]
    below = last["top1"] > 0.9
    axes.annotate(
        f"{100 * last['top1']:.1f} %", (last_seen, 100 * last["top1"]), textcoords="offset points", color=ORANGE, weight="bold",
        xytext=(-8, -9 if below else 8), ha="right", va="top" if below else "bottom",
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
    )  # fmt: skip
    axes.set_ylabel(f"top-1 on {last.get('split', 'test')} (%)", color=ORANGE)
    axes.set_ylim(0, 100)
    axes.spines[["top"]].set_visible(False)


def grid_scores(points: Sequence[str], scores: Sequence[float | None], title: str, path: Path) -> None:
    """Dev top-1 of every point of a sweep, as dots in the order of the grid, the best one marked; None has none."""
    figure = new_figure(8, 1.2 + 0.34 * len(points))
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
    axes.set_title(short(title), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred mean over a fortieth of the curve, over seven points of a short one, and over no more than there is on either side near its ends: the first and the last
    value stay what they are.
    """
    half = max(len(values) // 80, min(3, len(values) // 8))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(half, np.minimum(places, len(values) - 1 - places))
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)


_LEAST_SPAN = 0.2
"""Of a loss: what moves by less than this part of it is not made to look like more."""


def limits_of(loss: NDArray[np.float64]) -> tuple[float, float]:
    """An axis for a loss: all of it but single peaks far above the rest, and never so narrow that noise fills it."""
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return 0.0, 1.0
    low, high, usual = float(finite.min()), float(finite.max()), float(np.quantile(finite, 0.98))
    if high - low > 3 * (max(usual, float(finite[0])) - low) > 0:
        high = max(usual, float(finite[0]))
    span = max(high - low, _LEAST_SPAN * max(abs(high), abs(low)), 1e-9)
    low, high = (low + high - span) / 2 - 0.05 * span, (low + high + span) / 2 + 0.05 * span
    return (0.0 if finite.min() >= 0 and low < 0.15 * high else low), high


def confusion(counts: NDArray[np.int64], names: Sequence[str], title: str, path: Path) -> None:
    """Rows are true classes, columns predictions; the shade is the part of the row, the number the count."""
    from matplotlib.colors import PowerNorm

    n, names = len(names), [short(name, 24) for name in names]
    is_named, size = n <= 130, 9 if n <= 20 else 7
    cell = max(0.45 if n <= 20 else 0.17 if n > 40 else 0.22, 2.6 / n)  # inches
    field, beside = min(24.0, cell * n), (0.009 * size * max(map(len, names)) if is_named else 0.0) + 0.5
    figure = new_figure(max(field + beside + 1.4, 5.2), field + beside + 0.4)
    axes = figure.subplots()
    part = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(part, cmap="Blues", norm=PowerNorm(0.6, 0, 1))  # so that rare mistakes are seen
    figure.colorbar(
        picture, ax=axes, fraction=0.35 / field, aspect=min(40, 10 * field), pad=0.02, label="part of the row"
    )
    axes.set(xlabel="predicted", ylabel="true")
    if is_named:
        axes.set_xticks(range(n), names, rotation=90, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    if n <= 25:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if part[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=size, color=colour)
    large = max(1.0, field / 9)  # a page that is looked at whole
    axes.xaxis.label.set_fontsize(10 * large)
    axes.yaxis.label.set_fontsize(10 * large)
    figure.suptitle(short(title, 80), x=0.01, ha="left", fontsize=11 * large)
    save(figure, path)


Bins = Sequence[dict[str, Any]]
"""Rows of a reliability diagram (evaluate/calibration.py)."""


def reliability(panels: Sequence[tuple[str, Bins]], title: str, path: Path) -> None:
    """Confidence against top-1, a bar a bin, and below how many images each holds; of a model that is as often right as it says the
    bars end at the marks. One or two panels side by side, each with its name.
    """
    figure = new_figure(1.4 + 4.6 * len(panels), 5.8)
    grid = figure.subplots(2, len(panels), sharex=True, height_ratios=[3, 1], squeeze=False)
    most = max((row["n"] for _, bins in panels for row in bins), default=0) or 1
    for column, (name, bins) in enumerate(panels):
        top, bottom = grid[0, column], grid[1, column]
        there = [row for row in bins if row["n"]]
        middle, width = [50 * (row["low"] + row["high"]) for row in there], 100 / len(bins)
        bars = top.bar(middle, [100 * row["top1"] for row in there], 0.9 * width, color=BLUE, alpha=0.75)
        marks = top.hlines([100 * row["confidence"] for row in there], np.array(middle) - width / 2,
                           np.array(middle) + width / 2, color=ORANGE, linewidth=3)  # fmt: skip
        (line,) = top.plot([0, 100], [0, 100], color=GRAY, linestyle="--", linewidth=1)
        bottom.bar([50 * (r["low"] + r["high"]) for r in bins], [r["n"] for r in bins], 0.9 * width, color=GRAY)
        top.set(xlim=(0, 100), ylim=(0, 103), ylabel="top-1 (%)" if column == 0 else "")
        top.set_title(name, loc="left", fontsize=9.5)
        bottom.set(ylim=(0, 1.08 * most), xlabel="confidence (%)", ylabel="images" if column == 0 else "")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
    names = ["part of a bin that is right", "its mean confidence", "the two are equal"]
    figure.legend([bars, marks, line], names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(short(title, 60 * len(panels)), x=0.01, ha="left", fontsize=11)
    save(figure, path)


def compared(
    names: Sequence[str],
    kinds: Sequence[str],
    scores: Sequence[float],
    axes_: Sequence[tuple[str, Sequence[float | None]]],
    title: str,
    path: Path,
) -> None:
    """Top-1 against each of some costs, on a logarithmic axis, as the paper's Figure 5: a numbered dot a run, its colour and shape its
    kind, and a line through those that no other is better and cheaper than.
    """  # fmt: skip
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = new_figure(5.2 * min(2, len(axes_)) + 3.0, 4.2 * -(-len(axes_) // 2) + 0.4)
    grid = figure.subplots(-(-len(axes_) // 2), min(2, len(axes_)), squeeze=False).flat
    styles = dict(
        zip(dict.fromkeys(kinds), [(BLUE, "o"), (ORANGE, "s"), ("#009E73", "^"), (GRAY, "D")] * 4, strict=False)
    )
    low, high = 100 * min(scores), 100 * max(scores)
    for axes, (label, costs) in zip(grid, axes_, strict=False):
        there = [(cost, 100 * scores[i], i) for i, cost in enumerate(costs) if cost]
        for cost, score, index in there:
            colour, marker = styles[kinds[index]]
            axes.scatter(cost, score, color=colour, marker=marker, s=46, zorder=3)
            axes.annotate(str(index + 1), (cost, score), textcoords="offset points", xytext=(6, 5), fontsize=9)
        best = [(c, s) for c, s, _ in sorted(there) if all(s > s2 for c2, s2, _ in there if (c2, -s2) < (c, -s))]
        axes.step([c for c, _ in best], [s for _, s in best], where="post", color=GRAY, linewidth=1.2, zorder=1)
        axes.set(
            xscale="log",
            xlabel=label,
            ylabel="top-1 (%)",
            ylim=(max(-2.0, low - 0.12 * (high - low) - 3), min(103.0, high + 0.15 * (high - low) + 3)),
        )
        costs_here = [cost for cost, _, _ in there] or [1.0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs_here) < 100 * min(costs_here) else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if not there:
            axes.set_axis_off()
    handles = [Line2D([], [], color=styles[k][0], marker=styles[k][1], linestyle="") for k in kinds]
    figure.legend(handles, [f"{i + 1}  {short(name, 34)}" for i, name in enumerate(names)], loc="outside right upper",
                  frameon=False, fontsize=9)  # fmt: skip
    figure.suptitle(short(title, 100), x=0.01, ha="left", fontsize=11)
    save(figure, path)


PICTURE_FORMATS = (".png", ".svg")


def check_picture(path: Path, option: str = "--plot") -> None:
    """Raises UsageError for an ending that is no picture's."""
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise UsageError(f"{option} {path}: unknown ending {path.suffix!r}", f"known: {', '.join(PICTURE_FORMATS)}")


def as_shown(pixels: NDArray[Any]) -> NDArray[Any]:
    """Numbers of any channels, which come last, as the three colours that people see: of one or two channels the first in gray, of three
    or four the first three, of more the mean in gray.
    """
    channels = pixels.shape[-1]
    if channels in (3, 4):
        return pixels[..., :3]
    gray = pixels[..., :1] if channels < 3 else pixels.mean(-1, keepdims=True)
    gray = np.rint(gray).astype(pixels.dtype) if pixels.dtype.kind == "u" else gray
    return np.repeat(gray, 3, axis=-1)


def contact_sheet(rows: NDArray[np.float32], heads: Sequence[str]) -> NDArray[np.uint8]:
    """Images of values 0..1, `[rows, columns, channels, height, width]`, as a table, large enough to look at, under the columns' heads."""
    from PIL import Image, ImageDraw

    edge, margin = max(1, -(-96 // rows.shape[-1])), 4
    pixels = np.rint(255 * rows.clip(0, 1)).astype(np.uint8)
    pixels = as_shown(pixels.transpose(0, 1, 3, 4, 2)).repeat(edge, axis=2).repeat(edge, axis=3)
    height, width = pixels.shape[2] + margin, pixels.shape[3] + margin
    sheet = Image.new("RGB", (width * len(heads) + margin, height * len(rows) + 16 + margin), "white")
    for column, head in enumerate(heads):
        ImageDraw.Draw(sheet).text((margin + column * width, 2), head, fill="black")
        for row in range(len(rows)):
            sheet.paste(Image.fromarray(pixels[row, column]), (margin + column * width, 16 + row * height))
    return np.array(sheet)


def write_pixels(picture: NDArray[np.uint8], path: Path) -> None:
    """A PNG of these pixels. Raises ResourceError."""
    from PIL import Image

    files.write_file(path, lambda temporary: Image.fromarray(picture).save(temporary, "PNG"))
