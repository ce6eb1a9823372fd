"""Numbers to pictures. matplotlib is imported where it draws."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.errors import UsageError
from vitcli.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # of Okabe and Ito's palette, told apart without colour vision


def _figure(width: float, height: float) -> Figure:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where HOME is read-only, it says where its fonts go
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
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


def _short(name: str, letters: int = 60) -> str:
    """A name that leaves room for what is drawn."""
    shown = visible(name)
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
    figure = _figure(8, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    seen = np.array([line["images_seen"] for line in steps])
    loss = np.array([line["loss"] for line in steps])
    if len(steps):
        top.plot(seen, loss, color=BLUE, alpha=0.25, linewidth=1)
        top.plot(seen, _smooth(loss), color=BLUE, linewidth=2, label=name)
        bottom.plot(seen, [line["lr"] for line in steps], color=GRAY, linewidth=1.5)
    top.set_ylabel(name, color=BLUE)
    top.set_title(_short(title), loc="left")
    if scores:
        right = top.twinx()
        right.plot([seen for seen, _ in scores], [100 * own["top1"] for _, own in scores], color=ORANGE, marker="o")
        last_seen, last = scores[-1]
        right.annotate(
            f"{100 * last['top1']:.1f} %",
            (last_seen, 100 * last["top1"]),
            textcoords="offset points",
            xytext=(-8, 8),
            ha="right",
            color=ORANGE,
            weight="bold",
        )
        right.set_ylabel(f"top-1 on {last.get('split', 'test')} (%)", color=ORANGE)
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
    axes.set_title(_short(title), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred mean over a fortieth of the curve."""
    width = max(1, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def confusion(counts: NDArray[np.int64], names: Sequence[str], title: str, path: Path) -> None:
    """Rows are true classes, columns predictions; the shade is the part of the row, the number the count."""
    from matplotlib.colors import PowerNorm

    n, names = len(names), [_short(name, 24) for name in names]
    is_named, size = n <= 130, 9 if n <= 20 else 7
    cell = max(0.45 if n <= 20 else 0.17 if n > 40 else 0.22, 2.6 / n)  # inches
    field, beside = min(24.0, cell * n), (0.009 * size * max(map(len, names)) if is_named else 0.0) + 0.5
    figure = _figure(max(field + beside + 1.4, 5.2), field + beside + 0.4)
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
    figure.suptitle(_short(title, 80), x=0.01, ha="left", fontsize=11)
    _save(figure, path)


Bins = Sequence[dict[str, Any]]
"""Rows of a reliability diagram (evaluate/calibration.py)."""


def reliability(panels: Sequence[tuple[str, Bins]], title: str, path: Path) -> None:
    """Confidence against top-1, a bar a bin, and below how many images each holds; of a model that is as often right as it says the
    bars end at the marks. One or two panels side by side, each with its name.
    """
    figure = _figure(1.4 + 4.6 * len(panels), 5.8)
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
    figure.suptitle(_short(title, 60 * len(panels)), x=0.01, ha="left", fontsize=11)
    _save(figure, path)


# --- the inside of a model ---------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in its pixels."""
PICTURE_FORMATS = (".png", ".svg")


def check_picture(path: Path, option: str = "--plot") -> None:
    """Raises UsageError for an ending that is no picture's."""
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise UsageError(f"{option} {path}: unknown ending {path.suffix!r}", f"known: {', '.join(PICTURE_FORMATS)}")


def attention_distance(
    layers: Sequence[Sequence[float]], image_width: int, uniform: float, title: str, path: Path
) -> None:
    """Depth against mean attention distance in pixels, a dot a head, as the paper's Figure 7 (right).

    Marked are each layer's mean, what a head that attends to everything alike would have, and the width of the image.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.5, 5)
    axes = figure.subplots()
    depth = np.arange(1, len(layers) + 1)
    for layer, heads in zip(depth, layers, strict=True):
        axes.scatter(
            np.full(len(heads), layer), heads, s=34, color=BLUE, alpha=0.65, linewidth=0, zorder=3,
            label="a head" if layer == 1 else None,
        )  # fmt: skip
    means = [float(np.mean(heads)) for heads in layers]
    axes.plot(depth, means, color=ORANGE, linewidth=1.6, marker="_", markersize=13, markeredgewidth=2.2, zorder=4,
              label="mean of the layer")  # fmt: skip
    for height, style, name in ((uniform, ":", "attention to all\npatches alike"), (image_width, "--", "image width")):
        axes.axhline(height, color=GRAY, linestyle=style, linewidth=1.3, zorder=1)
        pixels = f"{height:,.1f}".removesuffix(".0")
        axes.annotate(
            f"{name}\n{pixels} px", (1, height), xycoords=("axes fraction", "data"), textcoords="offset points",
            xytext=(6, 0), ha="left", va="center", color="#555555", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(0.5, len(layers) + 0.5)
    axes.set_ylim(0, 1.08 * image_width)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("network depth (layer)")
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_title(_short(title), loc="left", fontsize=11)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.92), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    _save(figure, path)


def position_similarity(
    similarity: NDArray[np.float64], grid: tuple[int, int], patch: tuple[int, int], title: str, path: Path
) -> None:
    """A tile a patch, at its place: the cosine similarity of its position embedding with every other's (Figure 7, centre)."""
    rows, columns = grid
    gap = max(1, round(max(grid) / 14))  # cells between two tiles
    high, wide = rows + gap, columns + gap
    cells = np.full((rows * high - gap, columns * wide - gap), np.nan)
    for index, tile in enumerate(similarity.reshape(rows * columns, rows, columns)):
        top, left = index // columns * high, index % columns * wide
        cells[top : top + rows, left : left + columns] = tile
    scale = min(8.0 / columns, 6.0 / rows)
    figure = _figure(max(3.6, columns * scale) + 1.6, max(3.0, rows * scale) + 0.9)
    axes = figure.subplots()
    picture = axes.imshow(cells, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    for axis, count, pitch, extent in ((axes.xaxis, columns, wide, columns), (axes.yaxis, rows, high, rows)):
        shown = np.arange(0, count, max(1, -(-count // 16)))
        axis.set_ticks(shown * pitch + (extent - 1) / 2, [str(i + 1) for i in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"column of the patch ({patch[1]} px each)")
    axes.set_ylabel(f"row of the patch ({patch[0]} px each)")
    axes.set_title(_short(title), loc="left", fontsize=11)
    figure.colorbar(picture, ax=axes, shrink=0.75, label="cosine similarity", ticks=[-1, -0.5, 0, 0.5, 1])
    _save(figure, path)


def filters(
    components: NDArray[np.float64], explained: NDArray[np.float64], patch: tuple[int, int], title: str, path: Path
) -> None:
    """Principal components of the patch embedding as pictures of a patch, each from its least to its greatest number."""
    columns = min(7, len(components))
    rows = -(-len(components) // columns)
    figure = _figure(max(5.2, 1.3 * columns), 1.25 * rows * patch[0] / patch[1] + 0.24 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (axes, component) in enumerate(zip(grid.flat, components, strict=False)):
        low, high = component.min(), component.max()
        axes.imshow((component - low) / (high - low or 1.0), interpolation="nearest")
        axes.set_title(f"{index + 1}: {100 * explained[index]:.1f} %", fontsize=9)
    figure.suptitle(_short(title), x=0.01, ha="left", fontsize=11)
    figure.supxlabel(
        f"each {patch[0]} x {patch[1]} px, from its least to its greatest weight; % of the variance of all filters",
        fontsize=9,
    )
    _save(figure, path)


def overlay(picture: NDArray[np.uint8], values: NDArray[np.float32], box: Box) -> NDArray[np.uint8]:
    """A picture in gray, its part in `box` coloured by a grid of values, from the least (dark) to the greatest (yellow).

    What lies outside is darkened, and the edge of the box drawn where there is any.
    """
    from matplotlib import colormaps
    from PIL import Image

    height, width = picture.shape[:2]
    left, top = (max(0, round(side)) for side in box[:2])
    right, bottom = min(width, max(left + 1, round(box[2]))), min(height, max(top + 1, round(box[3])))
    spread = float(values.max() - values.min())
    heat = (values - values.min()) / (spread if spread > 0 else 1.0)
    smooth = Image.fromarray(heat.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth), 0, 1)[..., None]
    gray = (picture @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, axis=2)
    inside = gray[top:bottom, left:right]
    colours = 255 * colormaps["viridis"](share[..., 0])[..., :3]
    opacity = _LEAST_OPACITY + (_MOST_OPACITY - _LEAST_OPACITY) * share
    result = _OUTSIDE * gray
    result[top:bottom, left:right] = (1 - opacity) * inside + opacity * colours
    _draw_edges(result, (left, top, right, bottom))
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


_LEAST_OPACITY, _MOST_OPACITY = 0.35, 0.65
_OUTSIDE = 0.45  # brightness of what the model did not see


def _draw_edges(picture: NDArray[np.float64], box: tuple[int, int, int, int]) -> None:
    """A white line just inside each side of the box that is not the picture's own."""
    height, width = picture.shape[:2]
    line = max(1, round(max(height, width) / 250))
    left, top, right, bottom = box
    if left > 0:
        picture[top:bottom, left : left + line] = 255
    if right < width:
        picture[top:bottom, right - line : right] = 255
    if top > 0:
        picture[top : top + line, left:right] = 255
    if bottom < height:
        picture[bottom - line : bottom, left:right] = 255


def shrunk(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """`picture` with its longer side at most `longest` pixels, its shape kept."""
    from PIL import Image

    factor = longest / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def contact_sheet(rows: NDArray[np.float32], heads: Sequence[str]) -> NDArray[np.uint8]:
    """Images of values 0..1, `[rows, columns, 3, height, width]`, as a table, large enough to look at, under the columns' heads."""
    from PIL import Image, ImageDraw

    edge, margin = max(1, -(-96 // rows.shape[-1])), 4
    pixels = np.rint(255 * rows.clip(0, 1)).astype(np.uint8)
    pixels = pixels.transpose(0, 1, 3, 4, 2).repeat(edge, axis=2).repeat(edge, axis=3)
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


def picture_tiles(tiles: Sequence[tuple[str, NDArray[np.uint8]]], title: str, path: Path) -> None:
    """Overlays side by side, each with its name above, and one key to their colours."""
    from matplotlib.cm import ScalarMappable

    columns = min(len(tiles), max(3, round((1.7 * len(tiles)) ** 0.5)))
    rows = -(-len(tiles) // columns)
    side = 10.4 / max(columns, 5)
    figure = _figure(max(5.0, columns * side + 0.9), rows * (side + 0.2) + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    letters = max(8, round(side * 15))
    for axes, (name, picture) in zip(grid.flat, tiles, strict=False):
        axes.imshow(picture)
        name = visible(name)
        axes.set_title(name if len(name) <= letters else f"…{name[1 - letters :]}", fontsize=7.5, pad=2)
    key = figure.colorbar(
        ScalarMappable(cmap="viridis"), ax=grid, shrink=0.6, aspect=35, pad=0.01, ticks=[0, 1], fraction=0.03
    )
    key.ax.set_yticklabels(["least", "most"])
    key.set_label("attention rollout, within each image", labelpad=-14)
    figure.suptitle(_short(title), x=0.01, ha="left", fontsize=11)
    _save(figure, path)
