"""Text from strangers, such as the names of files and classes, made fit for where it is written.

JSON alone is exact. Elsewhere what is no plain text is shown by escapes, so that a name stays on its line, moves no
cursor, and is neither formula nor markup.
"""

from __future__ import annotations

import json
import re
from typing import Any

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls, separators of lines, marks that turn the direction of writing, and halves of pairs of UTF-16."""
_LONE = re.compile("[\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKUP = re.compile(r"[\\`*_\[\]|~$<>&#!]|(?<=www)\.|(?<=:)/(?=/)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def visible(text: str) -> str:
    """One line of text for a terminal: what would not be seen is written as \\n, \\x1b or \\u202e, a byte that is not UTF-8 as
    \\xff."""
    return _HIDDEN.sub(_escape, _joined(text))


def _joined(text: str) -> str:
    """Letters again, where each byte of one was kept by itself: names of files, in a locale without UTF-8."""
    try:
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair of UTF-16, as JSON can hold it
        return text


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # a byte, as file names hold it
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def unicode(text: str) -> str:
    """Text for a column of UTF-8: bytes and halves of pairs that are none are written as \\xff and \\ud800."""
    return _LONE.sub(_escape, _joined(text))


def cell(text: str) -> str:
    """Text for a cell of a CSV file: `visible`, and no formula for a spreadsheet. A number stays one."""
    shown = visible(text)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(shown) else shown


def markdown(text: str) -> str:
    """Text within a line or a cell of a table of Markdown, which may hold HTML: without markup, links and tags."""
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0]) or f"\\{match[0]}", visible(text))


def as_json(tree: Any, indent: int | None = None) -> str:
    """JSON that gives back exactly what it was made of, written with what a terminal or a file in UTF-8 takes.

    Raises ValueError for numbers that are not finite.
    """
    written = _joined(json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=False))
    return re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", written)


def last_names(path: str) -> str:
    """Of a path or an address what tells files apart to a reader: the file and its folder, which is often its class."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]
    return "/".join(parts[-2:]) or path


def first_line(error: BaseException) -> str:
    """What a library's error says, without the rest of its story."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return lines[0]
