"""Data sets that a TOML file describes: where they lie, which splits, what their labels are (tables/vtab.toml says how).

`FILE.toml:NAME` is an entry of a file, whose folder its paths are relative to; `vtab:NAME@ROOT` one of VTAB's below a folder.
"""

from __future__ import annotations

import io
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcli import files
from vitcli.config import DataConfig
from vitcli.data.colour import BadImage
from vitcli.data.columns import make_source
from vitcli.data.decode import open_rgb, read_file
from vitcli.data.folders import folder_source, shard_tables
from vitcli.data.identity import Contents
from vitcli.data.layout import list_folder, shards_by_split
from vitcli.data.loading import quiet
from vitcli.data.split import Source, Split
from vitcli.errors import DataError, did_you_mean
from vitcli.plain import read_plain
from vitcli.randomness import permutation

if TYPE_CHECKING:
    import datasets

VTAB = "vtab:"
_LARGEST = 1 << 20
_MOST_MEGAPIXELS = 89.0


class Absent(DataError):
    """The data of an entry are not there."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the file a field; what each means, tables/vtab.toml says."""

    name: str
    train: str
    test: str
    val: str = ""
    group: str = ""
    path: str = ""
    image: str = ""
    label: str = ""
    rule: str = "label"
    divide: float = 1.0
    subtract: int = 0
    field: str = ""
    edges: tuple[float, ...] = ()
    kinds: tuple[str, ...] = ()
    times: int = 1
    mirror: bool = True
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The entries of a file: of each, `examples` are the images of train and of val that are trained on; 0, 0: all of train and val."""

    by_name: dict[str, Entry]
    examples: tuple[int, int]
    root: Path
    where: str

    def address(self, name: str) -> str:
        """What --data takes for an entry."""
        return f"{VTAB}{name}@{self.root}" if self.where == VTAB else f"{self.where}:{name}"


def read_entries(file: Path | None, root: Path) -> Entries:
    """The entries of a file, or VTAB's where it is None. Raises DataError for a file that is none, with the entry and the field."""
    if file is None:
        text = resources.files("vitcli.tables").joinpath("vtab.toml").read_text(encoding="utf-8")
    else:
        try:
            text = read_plain(file, _LARGEST).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {file}: {str(error)[:200]}", _HINT) from None
    where = VTAB if file is None else str(file)
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not TOML: {str(error)[:200]}", _HINT) from None
    examples = tree.pop("examples", [0, 0])
    if not (isinstance(examples, list) and len(examples) == 2 and all(type(n) is int and n >= 0 for n in examples)):
        raise DataError(
            f"{where}: examples = {str(examples)[:80]}", "write how many of train and of val, such as [800, 200]"
        )
    entries = {name: _entry(where, name, values) for name, values in tree.items()}
    return Entries(by_name=entries, examples=(examples[0], examples[1]), root=root, where=where)


_HINT = "a table a data set, such as [flowers] with train and test; vit's own tables/vtab.toml has nineteen"


def _entry(where: str, name: str, values: Any) -> Entry:
    """Raises DataError for a field that is unknown, missing, or of another kind than its default."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: {name} is no table", _HINT)
    kinds: dict[str, Any] = {f.name: f.default for f in fields(Entry) if f.name != "name"}
    for key, value in values.items():
        if key not in kinds:
            raise DataError(f"{where}: [{name}] has an unknown field {key!r}", did_you_mean(key, kinds))
        usual = kinds[key]
        wanted: Any = str if key in ("train", "test") else list if isinstance(usual, tuple) else type(usual)
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise DataError(f"{where}: [{name}] {key} = {str(value)[:80]!r} is no {wanted.__name__}", _HINT)
    missing = [key for key in ("train", "test") if key not in values]
    if missing:
        raise DataError(f"{where}: [{name}] lacks {missing[0]}", _HINT)
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    entry = Entry(name=name, **given)
    _check_entry(where, entry)
    if entry.rule not in _RULES:
        raise DataError(f"{where}: [{name}] rule = {entry.rule!r}", did_you_mean(entry.rule, _RULES))
    return entry


def _check_entry(where: str, entry: Entry) -> None:
    """Raises DataError for a name that is no folder's, and for values that no rule takes."""
    members: list[tuple[str, tuple[Any, ...], Any]] = [
        ("edges", entry.edges, (int, float)),
        ("kinds", entry.kinds, str),
        ("set", entry.set, str),
    ]
    wrong = next((key for key, values, kind in members if not all(isinstance(v, kind) for v in values)), None)
    if wrong is None and not (0 < entry.divide < math.inf):
        wrong = "divide"
    if wrong is None and (isinstance(entry.times, bool) or not 1 <= entry.times <= 255):
        wrong = "times"
    if wrong is None and entry.rule == "nearest" and (len(entry.edges) < 2 or list(entry.edges) != sorted(entry.edges)):
        wrong = "edges"
    if wrong is not None:
        raise DataError(f"{where}: [{entry.name[:80]}] {wrong} = {str(getattr(entry, wrong))[:80]}", _HINT)
    if not re.fullmatch(r"\w[\w.+-]{0,100}", entry.name):
        raise DataError(f"{where}: {entry.name[:80]!r} is no name", "letters, digits, - _ + and . name a data set")


def is_entry(text: str) -> bool:
    """Whether DATA names an entry of a file."""
    file, colon, _ = text.rpartition(":")
    return text.startswith(VTAB) or (bool(colon) and file.lower().endswith(".toml"))


def open_entry(text: str, config: DataConfig) -> Source:
    """The data that an entry describes. Raises DataError."""
    if text.startswith(VTAB):
        name, at, root = text.removeprefix(VTAB).partition("@")
        entries = read_entries(None, Path(root if at else ".").expanduser().resolve())
    else:
        file, _, name = text.rpartition(":")
        place = Path(file).expanduser().resolve()
        entries = read_entries(place, place.parent)
    if name not in entries.by_name:
        raise DataError(f"{entries.where} has no entry {name!r}", did_you_mean(name, entries.by_name))
    return source_of(entries, name, config)


def folder_of(entries: Entries, name: str) -> Path:
    """Where the data of an entry lie. Raises Absent, or DataError for a path that leads out of the root."""
    entry = entries.by_name[name]
    inner = files.inside(str(entries.root), entry.path or entry.name)
    if not inner:
        raise DataError(
            f"{entries.where}: [{name}] path = {entry.path[:200]!r} leads out of {entries.root}",
            "data lie below the root",
        )
    folder = Path(inner)
    if not folder.is_dir():
        raise Absent(f"no folder {folder}", f"the data of {name} lie there, or elsewhere below another root")
    return folder


def source_of(entries: Entries, name: str, config: DataConfig) -> Source:
    """An entry as data with the splits train and test. Raises Absent, or DataError."""
    entry = entries.by_name[name]
    base = _base(entry, folder_of(entries, name), config)
    train, val = _slice(base, entry.train), _slice(base, entry.val) if entry.val else None
    test = _slice(base, entry.test)
    if any(entries.examples):
        train = train.subset(np.arange(min(entries.examples[0], len(train))))
        val = None if val is None else val.subset(np.arange(min(entries.examples[1], len(val))))
    parts = [train] if val is None else [train, val]
    id_ = entries.address(name)
    splits = {
        split: _joined(split, items, entry.times, id_)
        for split, items in (("train", parts), ("test", [test]))
        if any(map(len, items))
    }
    if len(splits) < 2:
        raise DataError(f"{id_} has no images to train on, or none to measure", "are its splits whole?")
    said = f"{name}: {len(splits['train']):,} training images, {len(splits['test']):,} to measure"
    mirror = base.mirror and entry.mirror
    return replace(
        base, name=name, id=id_, splits=splits, held_out_split="test", mirror=mirror, notes=(said,), known_as=""
    )


# --- splits ------------------------------------------------------------------------------------------------


def _slice(source: Source, text: str) -> Split:
    """`train`, `train[:90%]`, `test[50%:]`, `train[:800]`, as TFDS writes parts of splits. Raises DataError."""
    found = re.fullmatch(r"([\w.-]+)(?:\[(\d+%?)?:(\d+%?)?\])?", text)
    if found is None:
        raise DataError(f"{text!r} is no part of a split", "write train, train[:90%] or train[100:200]")
    part = _in_no_order(source.whole(found[1]))
    first, last = (_place(found[i], len(part), edge) for i, edge in ((2, 0), (3, len(part))))
    return part.subset(np.arange(first, max(first, last)))


def _in_no_order(part: Split) -> Split:
    """A split whose images come class after class, as those of class folders do, shuffled always alike; another as it is."""
    labels = part.labels
    if labels is None or len(labels) < 3 or labels[0] == labels[-1] or (np.diff(labels) < 0).any():
        return part
    return part.subset(permutation(0, "entry", 0, len(part)))


def _place(text: str | None, count: int, otherwise: int) -> int:
    if text is None:
        return otherwise
    number = int(text.removesuffix("%")[:12])  # more digits are more than any split has
    return min(count, math.floor(count * number / 100 + 0.5) if text.endswith("%") else number)


def _joined(name: str, parts: Sequence[Split], times: int, id_: str) -> Split:
    """Parts of one or more tables as a table of their own."""
    import datasets

    column, first = parts[0].image_column, parts[0]
    with quiet():
        tables = [part.table.select(part.rows) for part in parts]
        whole = datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
        if times != 1:
            whole = _brightened(whole, column, times)
    contents = Contents(
        rows=len(whole), place=f"{id_}:{name}", trusted=first.contents.trusted, folder=first.contents.folder
    )
    labels = None
    if all(part.labels is not None for part in parts):
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    sets = None
    if all(part.sets is not None for part in parts):
        sets = np.concatenate([part.sets for part in parts if part.sets is not None])
    return Split(name, whole, column, np.arange(len(whole), dtype=np.int64), labels, contents, sets=sets)


def _brightened(table: datasets.Dataset, column: str, times: int) -> datasets.Dataset:
    """The images with every value times so much: those of dSprites are stored as 0 and 1."""
    import datasets

    items = []
    for row, item in enumerate(table[column]):
        try:
            blob = item["bytes"] if item["bytes"] is not None else read_file(item["path"] or "")
            image, _ = open_rgb(blob, _MOST_MEGAPIXELS)
        except (BadImage, OSError, ValueError) as error:
            raise DataError(f"cannot read image {row}: {error}", "repair or remove it") from None
        stream = io.BytesIO()
        image.point(lambda value: value * times).save(stream, "PNG")
        items.append({"bytes": stream.getvalue(), "path": item["path"]})
    features = datasets.Features({column: datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({column: items}, features=features)


# --- labels ------------------------------------------------------------------------------------------------


def _base(entry: Entry, folder: Path, config: DataConfig) -> Source:
    """The folder as it is, its labels by the entry's rule."""
    config = replace(config, image_column=entry.image or config.image_column)
    listing = list_folder(folder)
    shards = [f for f in listing.files if f.endswith(".parquet")]
    if not entry.label or not shards:
        return folder_source(folder, config)
    groups, _ = shards_by_split([(listing.at(f), f) for f in shards])
    tables = shard_tables(f"the Parquet files of {folder}", groups)
    named = {split: table for split, table in tables.items() if entry.label in table.column_names}
    if not named:
        if all("label" in table.column_names for table in tables.values()):
            return folder_source(folder, config)
        raise DataError(f"{folder} has no column {entry.label!r}", "the entry says what its labels are read of")
    labelled = {split: _labelled(table, entry, f"{folder}, split {split!r}") for split, table in named.items()}
    contents = {
        split: Contents(rows=len(table), place=str(folder), trusted=False, folder=str(folder))
        for split, table in named.items()
    }
    return make_source(entry.name, str(folder), labelled, contents, replace(config, label_column=_RULED))


_RULED = "label by rule"


def _labelled(table: datasets.Dataset, entry: Entry, where: str) -> datasets.Dataset:
    """The table with a column of classes, whole numbers from the entry's rule."""
    values = table.select_columns([entry.label]).with_format("arrow")[:].column(0).to_pylist()
    rule = _RULES[entry.rule]
    labels = []
    for row, value in enumerate(values):
        try:
            label = rule(value, entry)
            if isinstance(label, bool) or int(label) != label or label < 0:
                raise ValueError(f"{label} is no class")
            labels.append(int(label))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise DataError(
                f"{where}: row {row} of column {entry.label!r} has no label by rule {entry.rule!r}: {str(error)[:100]}",
                "is it laid out as in TFDS?",
            ) from None
    with quiet():
        return table.remove_columns([entry.label]).add_column(_RULED, labels)


def _count(value: Any, entry: Entry) -> int:
    members = _members(value)
    return len(members) - entry.subtract


def _nearest(value: Any, entry: Entry) -> int:
    """The bin of the least number; one past the last where there is none."""
    numbers = []
    for member in _members(value):
        if entry.kinds and member.get("type") not in (*entry.kinds, *range(len(entry.kinds))):
            continue
        found: Any = member
        for key in entry.field.split("."):
            found = found[int(key)] if key.isdigit() else found[key]
        numbers.append(float(found))
    if not numbers or min(numbers) >= entry.edges[-1]:
        return len(entry.edges) - 1
    if min(numbers) < entry.edges[0]:
        raise ValueError(f"{min(numbers):g} lies before the first edge")
    return int(np.searchsorted(entry.edges, min(numbers), side="right")) - 1


def _members(value: Any) -> list[dict[str, Any]]:
    """A list of records, or a record of lists, which TFDS and Parquet have for the same thing."""
    if isinstance(value, dict):
        names = list(value)
        return [dict(zip(names, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return list(value)


_RULES: dict[str, Callable[[Any, Entry], int]] = {
    "label": lambda value, entry: value,
    "floor": lambda value, entry: math.floor(value / entry.divide),
    "count": _count,
    "nearest": _nearest,
}
