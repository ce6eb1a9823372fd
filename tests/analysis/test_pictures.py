"""The pictures: what an overlay shows and where, files by their ending, any shape of grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitcli import plots
from vitcli.analysis import pictures
from vitcli.analysis.report import OverlayPaths
from vitcli.data.decode import View, render, seen_part
from vitcli.errors import UsageError


@given(
    st.tuples(st.integers(20, 400), st.integers(20, 400)),
    st.tuples(st.integers(16, 128), st.integers(16, 128)),
    st.sampled_from(["short", "square"]),
    st.sampled_from([1.0, 0.9, 0.875, 0.5]),
)
def test_what_a_view_shows_is_the_part_that_it_is_said_to_show(native, size, mode, crop) -> None:
    """A picture of two ramps: the coordinates of the frame's corners are the pixels' values."""
    height, width = native
    view = View(size, mode, crop, "bilinear")
    left, top, right, bottom = seen_part(native, view)
    assert -1e-6 <= left < right <= width + 1e-6 and -1e-6 <= top < bottom <= height + 1e-6
    down = np.repeat(np.linspace(0, 255, height)[:, None], width, axis=1)
    across = np.repeat(np.linspace(0, 255, width)[None], height, axis=0)
    picture = Image.fromarray(np.stack([down, across, down], axis=2).round().astype(np.uint8))
    seen = render(picture, view).astype(float)
    middle = (size[0] // 2, size[1] // 2)
    at = top + (middle[0] + 0.5) * (bottom - top) / size[0], left + (middle[1] + 0.5) * (right - left) / size[1]
    expected = 255 * (at[0] - 0.5) / (height - 1), 255 * (at[1] - 0.5) / (width - 1)
    tolerance = 2 + 255 * 1.5 / min(height, width)  # rounding of the scaled size, and of pixels
    assert seen[0, middle[0], middle[1]] == pytest.approx(expected[0], abs=tolerance)
    assert seen[1, middle[0], middle[1]] == pytest.approx(expected[1], abs=tolerance)


def test_an_overlay_has_the_picture_s_shape_and_is_brightest_where_the_values_are() -> None:
    picture = np.full((120, 200, 3), 128, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 3] = 1
    found = pictures.overlay(picture, values, (40.0, 0.0, 160.0, 120.0))
    assert found.shape == picture.shape and found.dtype == np.uint8
    yellow = found[..., :2].min(2).astype(int) - found[..., 2]
    row, column = np.unravel_index(yellow.argmax(), yellow.shape)
    assert 30 <= row < 60 and 130 <= column < 160
    assert (found[:, :40] == found[0, 0]).all() and found[0, 0].max() < 128  # outside: darkened, not coloured
    assert (found[:, 40] == 255).all() and (found[:, 159] == 255).all()  # the edges of what was seen
    whole = pictures.overlay(picture, values, (0.0, 0.0, 200.0, 120.0))
    assert not (whole[:, 0] == 255).any()


@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.data())
def test_an_overlay_of_any_picture(shape, grid, data) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    left = data.draw(st.floats(0, shape[1] - 1))
    top = data.draw(st.floats(0, shape[0] - 1))
    found = pictures.overlay(
        picture, np.ones(grid, np.float32), (float(left), float(top), float(shape[1]), float(shape[0]))
    )
    assert found.shape == picture.shape


def is_picture(path: Path) -> bool:
    start = path.read_bytes()[:200]
    return start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start or b"<svg" in start


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (20, 3)])
def test_every_picture_is_drawn_at_any_size(ending: str, grid: tuple[int, int], tmp_path: Path) -> None:
    rows = grid[0] * grid[1]
    pictures.attention_distance([[3.0] * grid[1]] * grid[0], 32, 16.0, "title", tmp_path / f"a.{ending}")
    pictures.position_similarity(np.eye(rows), grid, (16, 8), "title", tmp_path / f"b.{ending}")
    pictures.filters(np.zeros((rows, 4, 6, 3)), np.full(rows, 0.1), (4, 6), "title", tmp_path / f"c.{ending}")
    tiles = [(f"{'long ' * 9}{index}.jpg", np.zeros((10, 20, 3), np.uint8)) for index in range(rows)]
    pictures.picture_tiles(tiles, "title", tmp_path / f"d.{ending}")
    for name in "abcd":
        assert is_picture(tmp_path / f"{name}.{ending}")
        if ending == "png":
            with Image.open(tmp_path / f"{name}.png") as picture:
                assert picture.width <= 1600


def test_an_ending_that_is_no_picture_s_is_refused() -> None:
    plots.check_picture(Path("a.SVG"))
    with pytest.raises(UsageError, match="jpeg"):
        plots.check_picture(Path("a.jpeg"))


def test_overlays_of_equal_names_do_not_replace_one_another() -> None:
    names = ["a/cat.jpg", "b/cat.png", "cat-2.jpg", "dog.jpg"]
    paths = OverlayPaths(names, Path("out"), per_layer=True)
    assert [path.name for path in paths.overlays] == [
        "cat-rollout.png", "cat-2-rollout.png", "cat-2-2-rollout.png", "dog-rollout.png",
    ]  # fmt: skip
    assert paths.layers[3].name == "dog-rollout-layers.png" and [p.name for p in paths.sheets] == ["contact-sheet.png"]
    many = OverlayPaths([f"{index}.jpg" for index in range(81)], Path("out"), per_layer=False)
    assert [path.name for path in many.sheets] == ["contact-sheet.png", "contact-sheet-2.png", "contact-sheet-3.png"]
    assert not many.layers and not OverlayPaths(["one.jpg"], Path("out"), False).sheets
