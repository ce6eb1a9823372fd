"""What the font of pictures can write: matplotlib's own, so that a picture is the same everywhere."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where HOME is read-only, it says where its fonts go


@functools.cache
def font_file() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def _letters() -> frozenset[int]:
    """That the font has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_file())).get_charmap())


def drawable(text: str) -> str:
    """Text with the letters that the font lacks, as Chinese ones, written as \\u72d7: boxes would make all such names alike."""
    if text.isascii():
        return text
    return re.sub("[^\x00-\x7f]", lambda m: m[0] if ord(m[0]) in _letters() else _escaped(ord(m[0])), text)


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
