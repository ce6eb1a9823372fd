"""Data as a stream (data.stream): which files there are, their columns and classes; held-out files are read as any other data."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitcli import files, hub
from vitcli.classes import Class
from vitcli.config import DataConfig
from vitcli.data.columns import image_column, label_column, make_source, named_values
from vitcli.data.folders import left_out_of, rows_of, shard_tables
from vitcli.data.hub_source import corrected
from vitcli.data.layout import list_folder, shards_by_split
from vitcli.data.listing import METADATA
from vitcli.data.loading import files_at, quiet
from vitcli.data.presets import PRESETS, Preset
from vitcli.data.shards import Groups, Remote, Shards, Traffic, expanded
from vitcli.data.split import Source
from vitcli.data.stream import Stream
from vitcli.errors import DataError
from vitcli.progress import Progress, silent
from vitcli.text import first_line, unicode

_PRESET = "preset:"
_PIECE = 64 << 20
_SCANNED = 16
"""Groups of rows whose labels are read at the same time."""


def open_stream(config: DataConfig, progress: Progress = silent, labels: bool = True) -> Source:
    """Parquet files as a stream to train on, `Source.stream`, and those of a held-out split, if there are any, as its only split.

    Without `labels` no column of them is looked at. Raises DataError for what is no Parquet, and where the files do not say which are trained
    on.
    """
    name, id_, groups, notes, preset = _found(config)
    if preset is not None:
        config = replace(
            config, image_column=config.image_column or preset.image, label_column=config.label_column or preset.label
        )
    held = [preset.held_out] if preset is not None else ["test", "validation"]
    chosen = config.train_split or next((s for s in ("train", *groups) if s in groups and s not in held), "")
    if chosen not in groups:
        there = f"there are: {', '.join(sorted(groups))}"
        asked = f"of a split {chosen!r}" if chosen else "to train on"
        raise DataError(f"{id_} has no files {asked}", f"{there}; data.train_split names one")
    stream = _stream(groups[chosen], config, chosen, id_, progress, labels)
    if chosen != "train":
        notes = [f"trained on is {chosen!r}", *notes]
    source = _held_out(name, id_, {s: groups[s] for s in held if s in groups and s != chosen}, stream, config, progress)
    digest = hashlib.sha256(stream.identity.encode())
    if source.splits:
        digest.update(source.identity(progress).encode())
    else:
        notes = [*notes, f"{id_} has no files of a test or validation split: nothing is measured"]
    source = replace(source, stream=stream, known_as=f"stream:{digest.hexdigest()}", notes=(*notes, *source.notes))
    return source if preset is None else corrected(name, preset, source)


def _found(config: DataConfig) -> tuple[str, str, dict[str, list[str]], list[str], Preset | None]:
    """(name, id, addresses by split, notes, preset) of what `config.source` names."""
    text = config.source
    preset = PRESETS.get(text.removeprefix(_PRESET))
    if preset is not None and not Path(text).exists():
        return text.removeprefix(_PRESET), text, _on_hub(preset.hub, preset.config, config.revision), [], preset
    if "://" in text:
        found = [address for one in text.split(",") for address in _at_address(one)]
        root = text.partition("*")[0].partition("{")[0].rpartition("/")[0] + "/"
        if all(
            address.startswith(f"{text.rstrip('/')}/") for address in found
        ):  # a folder's, whose own name says no split
            root = text.rstrip("/") + "/"
    elif "*" in text:
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (of any root)
        root = text.partition("*")[0].rpartition("/")[0] + "/"
        found = [f for f in found if f.endswith(".parquet")]
    else:
        path = Path(text).expanduser().resolve()
        if not path.exists():
            rest, _, subset = text.partition(":")
            hub_id, _, revision = rest.partition("@")
            return hub_id.rpartition("/")[2], text, _on_hub(hub_id, subset, revision or config.revision), [], None
        root = str(path if path.is_dir() else path.parent) + "/"
        listed = list_folder(path).files if path.is_dir() else (path.name,)
        found = [root + f for f in listed if f.endswith(".parquet") and f.rpartition("/")[2] not in METADATA]
    if not found:
        raise DataError(
            f"{unicode(text)} has no Parquet files", "a stream reads Parquet files; leave data.stream out for others"
        )
    groups, unknown = shards_by_split([(address, address.removeprefix(root)) for address in found])
    is_place = "://" in text or "*" in text
    name = (root.rstrip("/").rpartition("/")[2] if is_place else Path(text.rstrip("/")).stem) or "stream"
    return name, text, groups, left_out_of(unknown, root), None


def _at_address(address: str) -> list[str]:
    """The Parquet files of an fsspec address, a pattern, or a numbered range of names."""
    names = expanded(address)
    plain = address.partition("?")[0] if address.startswith(("http://", "https://")) else address
    if len(names) > 1 or ("*" not in address and plain.endswith(".parquet")):
        return names
    return [full for full, _ in files_at(address)[1] if full.endswith(".parquet")]


def _on_hub(hub_id: str, subset: str, revision: str) -> dict[str, list[str]]:
    """The Parquet files of a data set of the hub by split, as `datasets` finds them. Raises DataError."""
    import datasets

    try:
        with quiet():
            builder = datasets.load_dataset_builder(hub_id, subset or None, revision=revision or None)
    except Exception as error:
        raise DataError(f"cannot look at {hub_id} on the hub: {first_line(error)}", hub.hint(error)) from None
    found = builder.config.data_files or {}
    groups = {str(split): [str(f) for f in names] for split, names in found.items()}
    wrong = next((f for names in groups.values() for f in names if not f.endswith(".parquet")), "")
    if wrong or not groups:
        raise DataError(
            f"{hub_id} has {wrong.rpartition('/')[2] or 'no files'}, and a stream reads Parquet files",
            "leave data.stream out to download it",
        )
    return groups


# --- columns and classes -----------------------------------------------------------------------------------


def _stream(
    addresses: Sequence[str], config: DataConfig, split: str, id_: str, progress: Progress, labels: bool
) -> Stream:
    import datasets

    shards = Shards(addresses, config.retries)
    with quiet():
        table = datasets.Dataset(shards.schema.empty_table())
    image = image_column(table, config.image_column, id_)
    label = label_column(table, config.label_column, image, id_) if labels else ""
    columns = [image, *([label] if label else [])]
    groups = shards.groups(columns, lambda done, total: progress("reading", done, total))
    if not groups.total:
        raise DataError(f"{id_} has no rows of {split!r}", "are these the right files, and whole?")
    classes: tuple[Class, ...] = ()
    index: dict[Any, int] | None = None
    feature = table.info.features.get(label) if label else None
    if isinstance(feature, datasets.ClassLabel):
        classes = tuple(Class(str(name)) for name in feature.names)
        index = {value: value for value in range(len(classes))}
    elif label:
        classes, index = named_values(None, [_values(shards, groups, label, progress)])
        index = index or None
    return Stream(
        name=split, shards=shards, groups=groups, image_column=image, label_column=label if index else "", classes=classes, index=index
    )  # fmt: skip


def _values(shards: Shards, groups: Groups, column: str, progress: Progress) -> set[Any]:
    """The different labels of all rows, which the files do not name. Raises DataError where they are neither integers nor text."""
    import pyarrow as pa

    kind = shards.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    fitting = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(fits(kind) for fits in fitting):
        raise DataError(f"column {column!r} holds {kind}, not classes", "labels are class labels, integers or text")
    found: set[Any] = set()
    with ThreadPoolExecutor(_SCANNED) as pool:
        pairs = zip(groups.shard.tolist(), groups.number.tolist(), strict=True)
        tables = pool.map(lambda pair: shards.read(pair[0], pair[1], [column]).column(0).unique().to_pylist(), pairs)
        for done, values in enumerate(tables, start=1):
            found.update(values)
            progress("reading labels", done, len(groups.rows))
    return found - {None, -1}


def _copied(address: str, config: DataConfig, progress: Progress) -> str:
    """A file from elsewhere that is measured on again and again, kept beside the decode cache."""
    remote = Remote(address, config.retries, Traffic())
    size, place = remote.size, files.cache_home() / "held-out"
    known = f"{address}|{size}|{remote.version}"
    path = place / f"{hashlib.sha256(known.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    if path.exists() and path.stat().st_size == size:
        return str(path)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for start in range(0, size, _PIECE):
                file.write(remote.read(start, min(size, start + _PIECE)))
                progress("copying held-out files", min(size, start + _PIECE), size)

    place.mkdir(parents=True, exist_ok=True)
    files.write_file(path, fill)
    return str(path)


def _held_out(
    name: str, id_: str, groups: dict[str, list[str]], stream: Stream, config: DataConfig, progress: Progress
) -> Source:
    """The files of the first split that is there, with the classes of the stream."""
    split = next(iter(groups), "")
    if not split:
        return Source(name=name, id=id_, revision="", classes=stream.classes, splits={})
    here = [_copied(address, config, progress) if "://" in address else address for address in groups[split]]
    tables = shard_tables(f"the held-out files of {id_}", {split: here})
    contents = rows_of(here, tables[split], id_, str(Path(here[0]).parent))
    config = replace(config, image_column=stream.image_column, label_column=stream.label_column)
    source = make_source(name, id_, tables, {split: contents}, config)
    part = source.splits[source.train_split]
    if part.labels is not None and stream.is_labelled:
        places = {c.name: i for i, c in enumerate(stream.classes)}
        unknown = [c.name for c in source.classes if c.name not in places]
        if unknown:
            raise DataError(
                f"{id_}: {split} has {len(unknown)} classes that are not among those trained on, the first is {unknown[0]!r}",
                "correct or remove these rows",
            )
        part = replace(part, labels=np.array([places[c.name] for c in source.classes], np.int64)[part.labels])
    part = replace(part, name=split, labels=part.labels if stream.is_labelled else None)
    return replace(source, classes=stream.classes, splits={split: part}, held_out_split=split, notes=())
