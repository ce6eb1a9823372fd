"""The columns of a table: which holds the images, which the labels, and which classes these are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli.classes import Class, fold, spelled_as
from vitcli.config import DataConfig
from vitcli.data.identity import Contents
from vitcli.data.layout import SPLIT_WORDS, meaning_of
from vitcli.data.split import Labels, Source, Split
from vitcli.errors import DataError, did_you_mean
from vitcli.text import first_line

if TYPE_CHECKING:
    import datasets

_LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "cls", "y")

_LONGEST_NAME = 1000
"""Characters of a class's name: what is longer is a text."""


def _check_lengths(named: Sequence[Class], id_: str) -> None:
    """Raises DataError for a name that is none."""
    longest = max((len(c.name) for c in named), default=0)
    if longest > _LONGEST_NAME:
        raise DataError(
            f"{id_} has a class whose name is {longest:,} characters long, over {_LONGEST_NAME:,}",
            "name the column of labels with --set data.label_column=…",
        )


def make_source(
    name: str,
    id_: str,
    tables: dict[str, datasets.Dataset],
    contents: Mapping[str, Contents],
    config: DataConfig,
    *,
    mirror: bool = True,
    held_out: str = "",
    revision: str = "",
    known_as: str = "",
    notes: Sequence[str] = (),
    classes: Sequence[Class] = (),
) -> Source:
    """Splits with their columns found and their labels checked; `classes` are those of labels 0, 1 …, where the table names none."""
    usual = _usual_names(tables)
    tables, contents = {usual[s]: t for s, t in tables.items()}, {usual[s]: c for s, c in contents.items()}
    first = tables.get("train", next(iter(tables.values())))
    images = image_column(first, config.image_column, id_)
    label = label_column(first, config.label_column, images, id_)
    are_sets = any(_holds_lists(table, label) for table in tables.values())
    named, index = _classes_of_sets(tables, label) if are_sets else _classes(tables, label)
    if classes and all(isinstance(value, int) for value in index):  # whether or not each has an image
        named, index = tuple(classes), {label: label for label in range(len(classes))}
    _check_lengths(named, id_)
    splits = {}
    for split, table in tables.items():
        labels = sets = None
        if label and label in table.column_names:
            where = f"{id_}, split {split!r}"
            if are_sets:
                sets = _sets(table, label, index, where)
            else:
                labels = _labels(table, label, index, where)
        splits[split] = Split(
            split,
            _raw_images(table, images, split),
            images,
            np.arange(len(table), dtype=np.int64),
            labels,
            contents[split],
            sets=sets,
        )
    splits = {s: part for s, part in splits.items() if len(part)}
    if not splits:
        raise DataError(f"{id_} has no rows in any split", "is it the right file or folder, and whole?")
    candidates = [s for s in (held_out, "test", "validation") if s in splits and splits[s].is_labelled and s != "train"]
    if len(splits) == 1:
        candidates = []
    source = Source(
        name=re.sub(r"[^\w.-]+", "-", name).strip("-") or "data",
        id=id_,
        revision=revision,
        classes=named,
        splits=splits,
        mirror=mirror,
        held_out_split=candidates[0] if candidates else "",
        notes=(),
        known_as=known_as,
    )
    return replace(source, notes=(*_of_splits(source), *_alike(named), *notes))


def _of_splits(source: Source) -> list[str]:
    """Notes on which images are trained on, where data do not say it as usual, and which are not used."""
    carved, splits = source.train_split, source.splits
    said = []
    if not source.held_out_split:
        unlabelled = [s for s in splits if s != carved and not splits[s].is_labelled]
        lacks = f"no labels in {', '.join(unlabelled)}" if unlabelled else "no test split"
        said.append(f"{source.id} has {lacks}: a fifth of {carved!r} is held out, {splits[carved].contents.rule}")
    known = {carved, source.held_out_split, *SPLIT_WORDS.values()}
    unused = [s for s, part in splits.items() if s not in known and part.is_labelled]
    if unused or (source.held_out_split and carved != "train"):
        others = f"; not used: {', '.join(unused)}" if unused else ""
        said.append(f"trained on is {carved!r}{others} (data.train_split and --split name others)")
    return said


def _usual_names(splits: Iterable[str]) -> dict[str, str]:
    """Each split's name as vit calls it, where no other split has that name or means the same: Test and test_images as test."""
    meanings = {split: meaning_of(split) for split in splits}
    said = [meaning.split for meaning in meanings.values() if meaning is not None]
    return {
        s: m.split if m and m.split not in meanings and said.count(m.split) == 1 else s for s, m in meanings.items()
    }


def _alike(named: Sequence[Class]) -> list[str]:
    """A note on classes that would be one if case, spaces, _, - and the Unicode form did not count, and that no ids tell apart."""
    spellings: dict[str, list[str]] = {}
    for item in (c for c in named if not c.id):
        spellings.setdefault(fold(item.name), []).append(repr(item.name))
    groups = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    return [f"classes that differ in spelling alone are kept apart: {', '.join(groups[:8])}"] if groups else []


def image_column(table: datasets.Dataset, wanted: str, id_: str) -> str:
    """The one column of images. Raises DataError."""
    import datasets
    import pyarrow as pa

    if wanted:
        if wanted not in table.column_names:
            raise DataError(f"{id_} has no column {wanted!r}", did_you_mean(wanted, table.column_names))
        return wanted
    images = [name for name, feature in table.info.features.items() if isinstance(feature, datasets.Image)]
    if not images:
        schema = table.data.schema
        images = [
            f.name
            for f in schema
            if pa.types.is_binary(f.type)
            or pa.types.is_large_binary(f.type)
            or (pa.types.is_struct(f.type) and "bytes" in {f.type.field(i).name for i in range(f.type.num_fields)})
        ]
    if len(images) != 1:
        found = f"{len(images)} columns of images ({', '.join(images)})" if images else "no column of images"
        raise DataError(
            f"{id_} has {found}; its columns: {', '.join(table.column_names)}", "name it with --set data.image_column=…"
        )
    return images[0]


def label_column(table: datasets.Dataset, wanted: str, image_column: str, id_: str) -> str:
    """The one column of class labels; empty where there is none."""
    import datasets

    if wanted:
        if wanted not in table.column_names:
            raise DataError(f"{id_} has no column {wanted!r}", did_you_mean(wanted, table.column_names))
        return wanted
    typed = [name for name, feature in table.info.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    named = [name for name in _LABEL_NAMES if name in (typed or table.column_names) and name != image_column]
    if named:
        return named[0]
    if typed:
        raise DataError(
            f"{id_} has {len(typed)} columns of class labels: {', '.join(typed)}",
            "choose one with --set data.label_column=…",
        )
    return ""


def _column(table: datasets.Dataset, name: str) -> Any:
    return table.select_columns([name]).with_format("arrow")[:].column(0).combine_chunks()


def _values(table: datasets.Dataset, column: str) -> list[Any]:
    """A label column as names where the table names its classes, else as it stands; a stray one wrapped.

    Raises DataError where it holds neither integers nor text.
    """
    import datasets
    import pyarrow as pa

    found = _column(table, column)
    kind = found.type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(f"column {column!r} holds {kind}, not classes", "labels are class labels, integers or text")
    feature = table.info.features.get(column)
    values = found.to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        return [names[v] if isinstance(v, int) and 0 <= v < len(names) else _Stray(v) for v in values]
    return [_Stray(v) if v is None or v == -1 else v for v in values]


@dataclass(frozen=True)
class _Stray:
    """A label that stands for no class; None and -1 say that there is none."""

    value: Any

    @property
    def is_missing(self) -> bool:
        return self.value is None or self.value == -1


def _classes(tables: Mapping[str, datasets.Dataset], column: str) -> tuple[tuple[Class, ...], dict[Any, int]]:
    """The classes and the index of each value: the first named list of classes, else all values in order.

    What another split spells otherwise than the training images is matched as data and checkpoint are (classes.py).
    """
    import datasets

    if not column:
        return (), {}
    first = sorted(tables, key=lambda split: split != "train")
    tables = {split: tables[split] for split in first if column in tables[split].column_names}
    features = [table.info.features.get(column) for table in tables.values()]
    named = next((f.names for f in features if isinstance(f, datasets.ClassLabel)), None)
    values = [{v for v in _values(table, column) if not isinstance(v, _Stray)} for table in tables.values()]
    return named_values(named, values)


def named_values(names: Sequence[Any] | None, values: Sequence[set[Any]]) -> tuple[tuple[Class, ...], dict[Any, int]]:
    """The classes and the index of each value, of a table's `names` or of the values of each split, the training images' first."""
    known = _ordered(values[0]) if names is None else [str(n) for n in names]
    others = set().union(*values) - set(known)
    spelled: dict[Any, Any] = spelled_as(
        sorted(v for v in others if isinstance(v, str)), [v for v in known if isinstance(v, str)]
    )
    if names is None:
        known = _ordered({*known, *(spelled.get(v, v) for v in others)})
    index = {v: i for i, v in enumerate(known)}
    index |= {v: index[spelled[v]] for v in others if spelled.get(v) in index}
    return tuple(Class(str(v)) for v in known), index


def _ordered(values: set[Any]) -> list[Any]:
    """Numbers in their order, then text; text that is numbers alone, as 2 and 10, in theirs."""
    numbers = all(isinstance(v, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", v) for v in values)
    return sorted(values, key=int if numbers else lambda v: (isinstance(v, str), v))


def _labels(table: datasets.Dataset, column: str, index: dict[Any, int], where: str) -> Labels | None:
    """Labels 0..classes-1, or None where every one is missing. Raises DataError with the row of a wrong one."""
    values = _values(table, column)
    labels = np.array([index.get(v, -1) for v in values], np.int64)
    wrong = np.flatnonzero(labels < 0)
    if len(wrong) == len(labels) and all(isinstance(v, _Stray) and v.is_missing for v in values):
        return None
    if len(wrong):
        row = int(wrong[0])
        value = values[row].value if isinstance(values[row], _Stray) else values[row]
        raise DataError(
            f"{where}: row {row} has label {value!r}, not one of the {len(index)} classes "
            f"({len(wrong)} such row{'s' * (len(wrong) > 1)})",
            "correct or remove these rows",
        )
    return labels


# --- labels that are sets ----------------------------------------------------------------------------------


def _holds_lists(table: datasets.Dataset, column: str) -> bool:
    import pyarrow as pa

    if not column or column not in table.column_names:
        return False
    kind = table.data.schema.field(column).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _set_values(table: datasets.Dataset, column: str) -> list[list[Any] | None]:
    """The classes of each row, as names where the table names them; None where a row has no label at all. One that is no list is a set of
    one. Raises DataError where they are neither integers nor text.
    """
    import datasets
    import pyarrow as pa

    found = _column(table, column)
    kind = found.type.value_type if _holds_lists(table, column) else found.type
    fitting = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(fits(kind) for fits in fitting):
        raise DataError(
            f"column {column!r} holds {found.type}, not classes",
            "labels are class labels, integers or text, or lists of them",
        )
    rows = [row if row is None or isinstance(row, list) else [row] for row in found.to_pylist()]
    feature = table.info.features.get(column)
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        return [
            None if row is None else [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in row]
            for row in rows
        ]
    return rows


def _classes_of_sets(tables: Mapping[str, datasets.Dataset], column: str) -> tuple[tuple[Class, ...], dict[Any, int]]:
    """As `_classes`, of the members of all sets. Raises DataError where there are none, or of different kinds."""
    import datasets

    first = [s for s in sorted(tables, key=lambda split: split != "train") if column in tables[s].column_names]
    features = [tables[split].info.features.get(column) for split in first]
    features = [getattr(feature, "feature", feature) for feature in features]
    named = next((f.names for f in features if isinstance(f, datasets.ClassLabel)), None)
    values = [
        {v for row in _set_values(tables[split], column) for v in row or [] if v is not None and v != -1}
        for split in first
    ]
    kinds = {type(v) for part in values for v in part}
    if len(kinds) > 1:
        raise DataError(f"column {column!r} holds text and integers", "write all labels as text, or all as integers")
    if not named and not any(values):
        raise DataError(
            f"column {column!r} names no class in any row", 'a label is a list of classes, such as ["cat", "dog"]'
        )
    return named_values(named, values)


def _sets(table: datasets.Dataset, column: str, index: dict[Any, int], where: str) -> NDArray[np.bool_] | None:
    """A row an image, a column a class; None where no row has a label. Raises DataError with the row of what is no class, or has none."""
    values = _set_values(table, column)
    if all(row is None for row in values):
        return None
    result = np.zeros((len(table), len(index)), bool)
    for row, members in enumerate(values):
        if members is None:
            raise DataError(
                f"{where}: row {row} has no label", "an image that shows none of the classes has an empty list"
            )
        for member in members:
            if member not in index:
                raise DataError(
                    f"{where}: row {row} has {member!r} among its labels, not one of the {len(index)} classes",
                    "correct or remove this row",
                )
            result[row, index[member]] = True
    return result


def _raw_images(table: datasets.Dataset, column: str, split: str) -> datasets.Dataset:
    """The image column alone, undecoded."""
    import datasets

    try:
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    except Exception as error:
        raise DataError(
            f"column {column!r} of split {split!r} does not hold images: {first_line(error)}",
            "name the column of images with --set data.image_column=…",
        ) from None
