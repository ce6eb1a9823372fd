"""Tables of paths and labels: CSV, TSV and JSONL files, and the metadata.* of an image folder.

What a CSV holds is text: `001`, `NA` and `1e5` are names. Paths are relative to the table, and name nothing outside
its folder: a table that came with a download opens no other file.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vitcli import files
from vitcli.config import DataConfig
from vitcli.data.decode import open_file, read_file
from vitcli.data.layout import is_image, meaning_of
from vitcli.errors import DataError, did_you_mean
from vitcli.text import unicode

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
"""Names of tables that an image folder may have, as `datasets` has them."""
_IMAGE_NAMES = ("file_name", "image", "img", "path", "image_path", "filepath", "filename", "file", "name")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y")
_SPLIT_NAMES = ("split", "set", "subset", "partition", "fold")
_LOOKED_AT = 50
_MOST_COLUMNS, _LONGEST_LINE = 10_000, 2**24


@dataclass(frozen=True)
class Listed:
    """Rows by split, as (path of the image, label, its name below the table); a label is None where there is none.

    `is_guess`: the column of labels is the only one there was beside the paths, whatever its name.
    """

    splits: dict[str, list[tuple[str, Any, str]]]
    has_labels: bool
    is_guess: bool = False
    notes: tuple[str, ...] = ()


class NoPaths(DataError):
    """A table that lists no images."""


def read_listing(table: Path, root: Path, config: DataConfig) -> Listed:
    """The images that `table`, somewhere below `root`, lists. Raises DataError with the row, NoPaths where there are none."""
    rows = _rows(table)
    if not rows:
        raise DataError(f"{table} has no rows", "write a path and a label a line, below their names")
    names = list(dict.fromkeys(name for row in rows[:_LOOKED_AT] for name in row))
    _check_width(table, len(names))
    image = _column(
        table, config.image_column, names, _holding_paths(rows, names, table), _IMAGE_NAMES, "paths of images"
    )
    if not image:
        raise NoPaths(
            f"{table} has no column of image files; its columns: {', '.join(names)}",
            "paths are relative to the table; name their column with --set data.image_column=…",
        )
    usual = [n for n in names if n != image and n.lower() in _LABEL_NAMES]
    split = _split_column(table, rows, [n for n in names if n not in (image, config.label_column, *usual)])
    left = [n for n in names if n not in (image, split)]
    alone = left if len(left) == 1 and _tells_apart(rows, left[0]) else []
    label = _column(table, config.label_column, names, usual or alone, _LABEL_NAMES, "labels")
    if label:
        _check_labels(table, rows, label)
    is_guess = not (config.label_column or usual)
    splits = _placed(table, root, rows, image, split, label)
    return Listed(splits, bool(label), is_guess, _said(table, label, left, is_guess))


def _check_width(table: Path, columns: int) -> None:
    """Raises DataError for more columns than a table has: looking through them would take minutes."""
    if columns > _MOST_COLUMNS:
        raise DataError(
            f"{table} has {columns:,} columns, over {_MOST_COLUMNS:,}", "a table has a path and a label a line"
        )


def _placed(
    table: Path, root: Path, rows: Sequence[dict[str, Any]], image: str, split: str, label: str
) -> dict[str, list[tuple[str, Any, str]]]:
    """Every row in its split, as `Listed` has them. Raises DataError for one without a path, or where no file is there."""
    own = "/".join(table.parent.relative_to(root).parts)
    splits: dict[str, list[tuple[str, Any, str]]] = {}
    for number, row in enumerate(rows, start=1):
        below = row.get(image)
        if not isinstance(below, str) or not below.strip():
            raise DataError(f"{table}: row {number} names no image ({below!r})", "correct or remove this row")
        path, below = _within(table, below.strip(), number)
        value = row.get(label) if label else None
        value = (unicode(value) if value.strip() else None) if isinstance(value, str) else value
        below = f"{own}/{below}" if own else below
        where = str(row.get(split, "")) if split else below.rpartition("/")[0]
        splits.setdefault(_split(where, bool(split)), []).append((path, value, _below_class(below, value)))
    first = [path for items in splits.values() for path, _, _ in items[:_LOOKED_AT]]
    if not any(map(os.path.isfile, first)):
        raise DataError(
            f"{table}: of the files that it names none is there, such as {first[0]}",
            f"paths are relative to the table's folder, endings included; they stand in its column {image!r}",
        )
    return splits


def _below_class(path: str, label: Any) -> str:
    """What identifies an image: its path below the folder of its class, as in a folder of class folders, where it has one."""
    parts = path.split("/")
    return "/".join(parts[parts.index(label) + 1 :]) if label in parts[:-1] else path


def _said(table: Path, label: str, left: Sequence[str], is_guess: bool) -> tuple[str, ...]:
    """Notes on what became of the columns beside the paths."""
    unused = [n for n in left if n != label]
    shown = ", ".join(unused[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
    if not label:
        return (f"{table.name}: no column of labels among {shown}",) if unused else ()
    said = [f"{table.name}: labels are its column {label!r}, the only one beside the paths"] if is_guess else []
    return (*said, *([f"{table.name}: columns that are not used: {shown}"] if unused else []))


def _split(where: str, is_word: bool) -> str:
    """The split that a word says, or the folders of a path, from the nearest on; else train."""
    for part in [where] if is_word else reversed(where.split("/")):
        meaning = meaning_of(part)
        if meaning is not None and (is_word or not meaning.rest):
            return meaning.split
    return "train"


def _split_column(table: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The column that says splits: one that is called so, else one that holds nothing but words for two of them or more.

    Raises DataError where one that is called so says a split in some rows alone.
    """
    for name in sorted(names, key=lambda n: n.lower() not in _SPLIT_NAMES):
        first = {str(row.get(name, "")) for row in rows[:_LOOKED_AT]}
        if name.lower() not in _SPLIT_NAMES and None in map(meaning_of, first):
            continue
        values = list(dict.fromkeys(str(row.get(name, "")) for row in rows))
        meanings = [meaning_of(value) for value in values[:_LOOKED_AT]]
        said = {meaning.split for meaning in meanings if meaning is not None and not meaning.rest}
        if None not in meanings and len(values) <= _LOOKED_AT and (name.lower() in _SPLIT_NAMES or len(said) > 1):
            return name
        if said and name.lower() in _SPLIT_NAMES:
            odd = values[meanings.index(None)] if None in meanings else values[-1]
            raise DataError(
                f"{table}: column {name!r} says {odd!r}, which is no split",
                "write train, validation or test in each row",
            )
    return ""


def _tells_apart(rows: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether a column may be labels, by its values alone: two or more, and not another one in every row."""
    return 1 < len({str(row.get(name)) for row in rows}) < len(rows)


def _check_labels(table: Path, rows: Sequence[dict[str, Any]], name: str) -> None:
    """Raises DataError where some labels are text and others numbers, which JSON tells apart."""
    kinds: dict[type, int] = {}
    for number, row in enumerate(rows, start=1):
        value = row.get(name)
        members = value if isinstance(value, list) else [value]
        for member in members:
            if member is not None:
                kinds.setdefault(type(member), number)
            if isinstance(member, (list, dict, float)):
                raise DataError(
                    f"{table}: row {number} has the label {str(value)[:80]}",
                    "a label is text, an integer, or a list of them",
                )
        value = None if isinstance(value, list) else value
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DataError(f"{table}: row {number} has the label {value}, a number of no class", "write it as text")
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise DataError(
            f"{table}: column {name!r} holds {one.__name__} in row {first} and {other.__name__} in row {second}",
            "write all labels as text, or all as integers",
        )


def _within(table: Path, below: str, number: int) -> tuple[str, str]:
    """The file that a row names, and its path from the table, whichever way that is written there.

    Raises DataError where that is an address, or lies outside the table's folder.
    """
    folder = os.path.normpath(table.parent)
    if "\\" in below and not os.path.lexists(os.path.join(folder, below)):  # noqa: PTH118 (as fast as rows are read)
        below = below.replace("\\", "/")  # a table that was written on Windows
    path = files.inside(folder, below)
    if not path or re.search(r"(^|::)[A-Za-z][\w+.-]*://", below) or re.search("[\0\ud800-\udb7f]", below):
        raise DataError(
            f"{table}: row {number} names {below[:200]!r}, which is not in the table's folder",
            "a table lists files beside and below it, by their path from there",
        )
    return path, path[len(folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def _column(
    table: Path, wanted: str, names: Sequence[str], found: Sequence[str], usual: Sequence[str], what: str
) -> str:
    """The column asked for, else the one that is found, of several the one with the most usual name. Raises DataError."""
    if wanted:
        if wanted not in names:
            raise DataError(f"{table} has no column {wanted!r}", did_you_mean(wanted, names))
        return wanted
    if len(found) > 1:
        by_name = [n for u in usual for n in found if n.lower() == u]
        if not by_name:
            raise DataError(
                f"{table} has {len(found)} columns of {what}: {', '.join(found)}",
                f"name it with --set data.{'image' if what.startswith('path') else 'label'}_column=…",
            )
        return by_name[0]
    return found[0] if found else ""


def _holding_paths(rows: Sequence[dict[str, Any]], names: Sequence[str], table: Path) -> list[str]:
    """The columns whose first values are names of image files, or files that are there."""

    def is_path(value: Any) -> bool:
        return isinstance(value, str) and (is_image(value) or (bool(value) and os.path.isfile(table.parent / value)))  # noqa: PTH113 (of any length)

    return [n for n in names if all(is_path(row.get(n)) for row in rows[:_LOOKED_AT])]


def _rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a table by the names of its columns. Raises DataError."""
    try:
        if table.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_table(pyarrow.BufferReader(read_file(str(table)))).to_pylist())
        with open_file(str(table)) as binary:
            # UTF-16 where its mark comes first, as spreadsheets write it; else UTF-8, with a mark or without
            is_wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            binary.seek(0)
            code = "utf-16" if is_wide else "utf-8-sig"
            with io.TextIOWrapper(binary, encoding=code, errors="surrogateescape", newline="") as file:
                if table.suffix.lower() in (".jsonl", ".ndjson"):
                    return list(_json_rows(_lines(file, table), table))
                return _text_rows(file, table)
    except (OSError, csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read {table}: {str(error)[:200]}", "is it whole, and in the format its name says?"
        ) from None


def _lines(file: TextIO, table: Path) -> Iterator[str]:
    """The lines of a table. Raises DataError for one without end: memory would end first."""
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise DataError(
                f"{table}: line {number} is longer than {_LONGEST_LINE:,} characters",
                "a table has a path and a label a line",
            )
        yield line


def _json_rows(lines: Iterable[str], table: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{table}: line {number} is no JSON: {str(error)[:200]}", 'write {"path": "a.jpg", "label": "cat"}'
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{table}: line {number} is no JSON object", 'write {"path": "a.jpg", "label": "cat"}')
            yield row


def _text_rows(file: TextIO, table: Path) -> list[dict[str, Any]]:
    """Of CSV or TSV. Without a line of names the columns are called path, label, column-3 …"""
    start = file.read(64_000)
    file.seek(0)
    first = start.splitlines()[0] if start.splitlines() else ""
    mark = "\t" if table.suffix.lower() == ".tsv" else max(",;\t|", key=lambda m: (first.count(m), m == ","))
    reader = csv.reader(_lines(file, table), delimiter=mark, strict=True)
    try:
        lines = [cells for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(
            f"{table}: line {reader.line_num} cannot be read: {error}", "quote cells that hold the separator or a quote"
        ) from None
    if not lines:
        return []
    head, width = lines[0], max(map(len, lines))
    _check_width(table, width)
    headless = any(is_image(cell) for cell in head)
    if headless:
        head = ["path", "label", *(f"column-{i}" for i in range(3, width + 1))][:width]
    head = [name.strip() for name in head]
    if len(set(head)) < len(head):
        raise DataError(
            f"{table} names two columns {next(n for n in head if head.count(n) > 1)!r}", "rename one of them"
        )
    rows = lines if headless else lines[1:]
    for cells in rows:
        while len(cells) > len(head) and not cells[-1].strip():
            cells.pop()  # a separator at the end of a line
    wrong = next((i for i, cells in enumerate(rows, start=1) if len(cells) > len(head)), None)
    if wrong is not None:
        raise DataError(
            f"{table}: row {wrong} has {len(rows[wrong - 1])} cells for {len(head)} columns",
            "quote cells that hold the separator",
        )
    return [dict(zip(head, [*cells, *[""] * (len(head) - len(cells))], strict=True)) for cells in rows]
