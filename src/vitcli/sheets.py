"""Contact sheets: many small pictures with a few words each, on one page."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.lettering import drawable, font_file
from vitcli.text import visible

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

SIDE = 128
"""Pixels of a picture's longer side."""
_MARGIN, _LINE, _LETTERS = 14, 17, 13
_WIDEST = 190
"""Pixels of a tile, where its words need them."""
INK, FAINT, WRONG = "#222222", "#777777", "#B03A00"
UNREADABLE = np.full((SIDE, SIDE, 3), 200, np.uint8)
"""Stands for a picture that cannot be had."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture, at most SIDE pixels wide and high, and lines of text below it, each with its colour."""

    picture: NDArray[np.uint8]
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures in a line behind a name and a smaller line below it."""

    name: str
    below: str
    tiles: tuple[Tile, ...]


def page(tiles: Sequence[Tile], title: str, path: Path, columns: int = 0) -> None:
    """Tiles in reading order under a title. Raises ResourceError."""
    columns = min(columns or max(4, min(8, round((1.6 * len(tiles)) ** 0.5))), max(1, len(tiles)))
    lines = max((len(tile.lines) for tile in tiles), default=0)
    field = _room((text for tile in tiles for text, _ in tile.lines), _WIDEST)
    wide, high = field + _MARGIN, SIDE + lines * _LINE + _MARGIN
    rows = -(-len(tiles) // columns)
    sheet, draw, top = _begun(columns * wide + _MARGIN, max(rows * high, _LINE + _MARGIN), title)
    for index, tile in enumerate(tiles):
        _place(sheet, draw, tile, _MARGIN + index % columns * wide, top + index // columns * high, field)
    if not tiles:
        draw.text((_MARGIN, top), "none", fill=FAINT, font=_font())
    _save(sheet, path)


def _room(texts: Iterable[str], most: int) -> int:
    """Pixels that a tile has for these words: its picture's, or what they need up to `most`."""
    return max([SIDE, *(min(most, _width(_fitted(text, most))) for text in texts)])


def table(rows: Sequence[Row], title: str, path: Path) -> None:
    """A row of tiles for each name, in two or three blocks side by side where there are many. Raises ResourceError."""
    blocks = 1 if len(rows) <= 14 else 2 if len(rows) <= 40 else 3
    columns = max((len(row.tiles) for row in rows), default=0)
    lines = max((len(tile.lines) for row in rows for tile in row.tiles), default=0)
    most = 230 if blocks == 1 else 150
    names = max((_width(_fitted(text, most)) for row in rows for text in (row.name, row.below)), default=0)
    field = _room((text for row in rows for tile in row.tiles for text, _ in tile.lines), _WIDEST)
    wide, high = field + _MARGIN // 2, SIDE + _MARGIN // 2 + lines * _LINE
    block, each = names + _MARGIN + columns * wide + 2 * _MARGIN, -(-len(rows) // blocks)
    sheet, draw, top = _begun(blocks * block + _MARGIN, max(each * high, _LINE) + _MARGIN, title)
    if not rows:
        draw.text((_MARGIN, top), "none", fill=FAINT, font=_font())
    for index, row in enumerate(rows):
        left, y = _MARGIN + index // each * block, top + index % each * high
        for line, (text, colour) in enumerate(((row.name, INK), (row.below, FAINT))):
            draw.text((left, y + SIDE // 2 - _LINE + line * _LINE), _fitted(text, most), fill=colour, font=_font())
        for column, tile in enumerate(row.tiles):
            _place(sheet, draw, tile, left + names + _MARGIN + column * wide, y, field)
    _save(sheet, path)


def _begun(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A white page with its title, for which it is wide enough, and where what comes below it begins."""
    from PIL import Image, ImageDraw

    top = _MARGIN + 28
    width = max(width, 420, min(_width(visible(title)[:200], 16), 900) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), _fitted(title, width - 2 * _MARGIN, 16), fill=INK, font=_font(16))
    return sheet, draw, top


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, field: int) -> None:
    """The picture in the middle of its field, `field` pixels wide and SIDE high, and its lines below it."""
    from PIL import Image

    height, width = tile.picture.shape[:2]
    draw.rectangle((left, top, left + field - 1, top + SIDE - 1), fill="#F2F2F2")
    sheet.paste(Image.fromarray(tile.picture), (left + (field - width) // 2, top + (SIDE - height) // 2))
    for index, (text, colour) in enumerate(tile.lines):
        draw.text((left, top + SIDE + 2 + index * _LINE), _fitted(text, field + 2), fill=colour, font=_font())


@functools.cache
def _font(size: int = _LETTERS) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(font_file()), size)


def _width(text: str, size: int = _LETTERS) -> int:
    return int(_font(size).getlength(text)) + 1


def _fitted(text: str, pixels: int, size: int = _LETTERS) -> str:
    """As much of a text as is not wider than this, its end cut off."""
    text = drawable(visible(text)[:200])
    if _width(text, size) <= pixels:
        return text
    while text and _width(text + "…", size) > pixels:
        text = text[:-1]
    return text + "…"


def _save(sheet: Image.Image, path: Path) -> None:
    files.write_file(path, lambda temporary: sheet.save(temporary, "PNG"))


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture made to fit the square of a tile, larger ones smaller and small ones larger by whole pixels."""
    from PIL import Image

    factor = SIDE / max(picture.size)
    if factor >= 2:
        whole = int(factor)
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    elif factor < 1:
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(picture)
