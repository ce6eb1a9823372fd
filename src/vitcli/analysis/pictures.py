"""The inside of a model as pictures. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli.lettering import drawable
from vitcli.plots import BLUE, GRAY, ORANGE, as_shown, new_figure, save, short
from vitcli.text import visible

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in its pixels."""


def attention_distance(
    layers: Sequence[Sequence[float]], image_width: int, uniform: float, title: str, path: Path
) -> None:
    """Depth against mean attention distance in pixels, a dot a head, as the paper's Figure 7 (right).

    Marked are each layer's mean, what a head that attends to everything alike would have, and the width of the image.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.5, 5)
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
    axes.set_title(short(title), loc="left", fontsize=11)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.92), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    save(figure, path)


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
    figure = new_figure(max(3.6, columns * scale) + 1.6, max(3.0, rows * scale) + 0.9)
    axes = figure.subplots()
    picture = axes.imshow(cells, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    for axis, count, pitch, extent in ((axes.xaxis, columns, wide, columns), (axes.yaxis, rows, high, rows)):
        shown = np.arange(0, count, max(1, -(-count // 16)))
        axis.set_ticks(shown * pitch + (extent - 1) / 2, [str(i + 1) for i in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"column of the patch ({patch[1]} px each)")
    axes.set_ylabel(f"row of the patch ({patch[0]} px each)")
    axes.set_title(short(title), loc="left", fontsize=11)
    figure.colorbar(picture, ax=axes, shrink=0.75, label="cosine similarity", ticks=[-1, -0.5, 0, 0.5, 1])
    save(figure, path)


def filters(
    components: NDArray[np.float64], explained: NDArray[np.float64], patch: tuple[int, int], title: str, path: Path
) -> None:
    """Principal components of the patch embedding as pictures of a patch, each from its least to its greatest number, of other channels than
    three as plots.as_shown shows them.
    """
    columns = min(7, len(components))
    rows = -(-len(components) // columns)
    figure = new_figure(max(5.2, 1.3 * columns), 1.25 * rows * patch[0] / patch[1] + 0.24 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (axes, component) in enumerate(zip(grid.flat, components, strict=False)):
        component = as_shown(component)
        low, high = component.min(), component.max()
        axes.imshow((component - low) / (high - low or 1.0), interpolation="nearest")
        axes.set_title(f"{index + 1}: {100 * explained[index]:.1f} %", fontsize=9)
    figure.suptitle(short(title), x=0.01, ha="left", fontsize=11)
    figure.supxlabel(
        f"each {patch[0]} x {patch[1]} px, from its least to its greatest weight; % of the variance of all filters",
        fontsize=9,
    )
    save(figure, path)


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


def picture_tiles(tiles: Sequence[tuple[str, NDArray[np.uint8]]], title: str, path: Path) -> None:
    """Overlays side by side, each with its name above, and one key to their colours."""
    from matplotlib.cm import ScalarMappable

    columns = min(len(tiles), max(3, round((1.7 * len(tiles)) ** 0.5)))
    rows = -(-len(tiles) // columns)
    side = 10.4 / max(columns, 5)
    figure = new_figure(max(5.0, columns * side + 0.9), rows * (side + 0.2) + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    letters = max(8, round(side * 15))
    for axes, (name, picture) in zip(grid.flat, tiles, strict=False):
        axes.imshow(picture)
        name = drawable(visible(name))
        axes.set_title(name if len(name) <= letters else f"…{name[1 - letters :]}", fontsize=7.5, pad=2)
    key = figure.colorbar(
        ScalarMappable(cmap="viridis"), ax=grid, shrink=0.6, aspect=35, pad=0.01, ticks=[0, 1], fraction=0.03
    )
    key.ax.set_yticklabels(["least", "most"])
    if rows > 1:
        key.set_label("attention rollout, within each image", labelpad=-14)
    else:  # less room
        key.set_label("attention rollout", fontsize=8, labelpad=-8)
    figure.suptitle(short(title), x=0.01, ha="left", fontsize=11)
    save(figure, path)
