"""Pages of HTML that are one file each: nothing in them is fetched, and no script is needed to read them.

What is given as text is escaped here; what a function of this module returned is markup.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.text import visible

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_WIDE, _HIGH, _LEFT, _BOTTOM, _TOP = 560, 260, 54, 38, 10
_POINTS = 400
"""Of a line, at most: more are not seen."""
_SMALL = 48
"""Pixels of a side up to which an image is shown by its pixels."""


def text(value: object, letters: int = 200) -> str:
    """Anything as text between tags or in an attribute, long text cut."""
    shown = visible(str(value))
    return html.escape(shown if len(shown) <= letters else f"{shown[: letters - 1]}…")


def without_places(shown: str, known: Iterable[str] = ()) -> str:
    """Text in which the folders of this machine are left out: of an absolute path the last name stays. `known` are paths that stand in
    it, whatever letters they are of.
    """
    for path in sorted({p for p in known if len(p) > 1 and _is_absolute(p)}, key=len, reverse=True):
        last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        shown = shown.replace(path, f"…/{last}")
    return re.sub(r"(?<![\w.:/…])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"']+[/\\])+", "…/", shown)


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[/\\]", path) is not None


def write(title: str, body: Iterable[str], path: Path) -> None:
    """The page. Raises ResourceError."""
    style = resources.files("vitcli.tables").joinpath("page.css").read_text(encoding="utf-8")
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    )
    page = head + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    files.write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def section(title: str, *parts: str) -> str:
    """Parts under a heading; nothing where all are empty."""
    there = [part for part in parts if part]
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(there) + "\n</section>" if there else ""


def tiles(fields: Iterable[tuple[str, str]]) -> str:
    """Numbers in large letters, each over its name."""
    made = [f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in fields]
    return f'<div class="tiles">{"".join(made)}</div>' if made else ""


def facts(fields: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(value, 600)}</td></tr>" for name, value in fields)
    return f"<table>{rows}</table>"


def bars(heads: Sequence[str], rows: Iterable[tuple[str, str, str, float]]) -> str:
    """A table of a name, two numbers and a bar that is a part, 0..1, of the column."""
    head = "".join(f"<th{' class=number' if 0 < i < 3 else ''}>{text(name)}</th>" for i, name in enumerate(heads))
    made = [
        f'<tr><td class="name">{text(name)}</td><td class="number">{text(first)}</td><td class="number">{text(second)}</td>'
        f'<td class="bar"><i style="width:{100 * part:.1f}%"></i></td></tr>'
        for name, first, second, part in rows
    ]
    return f'<div class="scroll"><table><thead><tr>{head}<th></th></tr></thead><tbody>{"".join(made)}</tbody></table></div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: frozenset[int] = frozenset()) -> str:
    """`numbers` are the columns that stand at the right."""

    def cells(kind: str, row: Sequence[object]) -> str:
        return "".join(
            f"<{kind}{' class=number' if i in numbers else ''}>{text(c)}</{kind}>" for i, c in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def matrix(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """Rows are true classes, columns predictions; the shade is the part of the row, the number the count."""
    part = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def cell(row: int, column: int) -> str:
        count, share = int(counts[row, column]), float(part[row, column]) ** 0.6
        if not count:
            return "<td></td>"
        said = text(f"{names[row]} → {names[column]}: {count:,}", 300)
        high = ' class="high"' if share > 0.6 else ""
        return f'<td{high} style="background:rgba(0,114,178,{share:.2f})" title="{said}">{count:,}</td>'

    head = "".join(f"<th>{text(name, 24)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{text(name, 28)}</th>{''.join(cell(i, j) for j in range(len(names)))}</tr>"
        for i, name in enumerate(names)
    )
    return f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def picture(pixels: NDArray[np.uint8], alternative: str, kind: str = "") -> str:
    """An image in the page itself."""
    height, width = pixels.shape[:2]
    kind = kind or ("small" if _is_small(pixels) else "")
    named = f' class="{kind}"' if kind else ""
    return f'<img{named} width="{width}" height="{height}" alt="{text(alternative)}" src="{address(pixels)}">'


def address(pixels: NDArray[np.uint8]) -> str:
    """An address that holds the image itself: few pixels as they are (PNG), many as JPEG."""
    from PIL import Image

    file, kind = io.BytesIO(), "png" if _is_small(pixels) else "jpeg"
    Image.fromarray(pixels).save(file, kind, **({} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_small(pixels: NDArray[np.uint8]) -> bool:
    return max(pixels.shape[:2]) <= _SMALL


def images(shown: Iterable[tuple[str, str, str]]) -> str:
    """Pictures side by side, each (markup, what it is, what it was taken for)."""
    made = [
        f"<figure>{image}<figcaption>{text(own, 80)}<br>→ <b>{text(taken, 80)}</b></figcaption></figure>"
        for image, own, taken in shown
    ]
    return f'<div class="images">{"".join(made)}</div>' if made else ""


def chart(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    name: str,
    below: str,
    *,
    smooth: NDArray[np.float64] | None = None,
    limits: tuple[float, float] | None = None,
    dots: bool = False,
) -> str:
    """A line, or with `smooth` that line over a light one, or with `dots` a dot a point, under its name, with room for the numbers."""
    finite = np.isfinite(y)
    x, y, smooth = x[finite], y[finite], None if smooth is None else smooth[finite]
    if not len(x):
        return ""
    low, high = limits or (float(y.min()), float(y.max()))
    high = high if high > low else low + (abs(low) or 1.0)
    right = max(float(x.max()), 1.0)

    def place(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> list[str]:
        across = _LEFT + xs / right * (_WIDE - _LEFT - 12)
        down = _TOP + (1 - (np.clip(ys, low, high) - low) / (high - low)) * (_HIGH - _TOP - _BOTTOM)
        return [f"{a:.1f},{d:.1f}" for a, d in zip(across, down, strict=True)]

    parts = []
    for at in _ticks(low, high, 5):
        d = place(np.zeros(1), np.array([at]))[0].partition(",")[2]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - 12}" y1="{d}" y2="{d}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(d) + 4:.1f}" text-anchor="end">{at:.4g}</text>')
    for at in _ticks(0.0, right, 5):
        a = place(np.array([at]), np.array([low]))[0].partition(",")[0]
        anchor = "end" if float(a) > _WIDE - 30 else "middle"
        parts.append(f'<text x="{a}" y="{_HIGH - _BOTTOM + 17}" text-anchor="{anchor}">{at:,.6g}</text>')
    parts.append(f'<text x="{_WIDE - 12}" y="{_HIGH - 4}" text-anchor="end">{text(below)}</text>')
    kind = "scores" if dots else "line" if smooth is None else "raw"
    parts.append(f'<polyline class="{kind}" points="{" ".join(place(*thinned(x, y)))}"/>')
    if smooth is not None:
        parts.append(f'<polyline class="line" points="{" ".join(place(*thinned(x, smooth)))}"/>')
    if dots or len(x) == 1:
        for point, value in zip(place(x, y), y, strict=True):
            a, d = point.split(",")
            parts.append(f'<circle class="dot" cx="{a}" cy="{d}" r="3.5"><title>{value:.4g}</title></circle>')
    drawn = f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{text(name)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{text(name)}</figcaption>{drawn}</figure>"


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most so many points that more are not seen: of each group the least and the greatest, in their order, so that no peak is lost."""
    if len(x) <= _POINTS:
        return x, y
    kept = {0, len(x) - 1}
    for group in np.array_split(np.arange(len(x)), _POINTS // 2):
        kept |= {int(group[y[group].argmin()]), int(group[y[group].argmax()])}
    places = np.array(sorted(kept))
    return x[places], y[places]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def code(lines: str) -> str:
    return f"<pre>{html.escape(lines)}</pre>"


def folded(title: str, *parts: str) -> str:
    """What is seen once it is asked for."""
    return f"<details><summary>{text(title)}</summary>\n{''.join(parts)}\n</details>"


def warning(said: str) -> str:
    return f'<p class="warning">{text(said, 1000)}</p>'


def faint(said: str) -> str:
    return f'<p class="faint">{text(said, 1000)}</p>'
