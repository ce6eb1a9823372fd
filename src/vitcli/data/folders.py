"""Folders and files on this machine as data: class folders, tables, saved sets, archives."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcli import files
from vitcli.classes import Class
from vitcli.config import DataConfig
from vitcli.data.columns import make_source
from vitcli.data.decode import IMAGE_ENDINGS, open_file, read_file
from vitcli.data.identity import Contents, Digests, stamp, stamp_of_file, stamps_of_rows
from vitcli.data.layout import (
    UNREAD,
    Arranged,
    Listing,
    Parts,
    arrange,
    images_among,
    list_folder,
    parts_of,
    shards_by_split,
)
from vitcli.data.listing import METADATA, TABLES, Listed, NoPaths, read_listing
from vitcli.data.loading import load_quietly, quiet
from vitcli.data.split import Source, as_text
from vitcli.errors import DataError
from vitcli.text import first_line

if TYPE_CHECKING:
    import datasets

_ARCHIVES = (".zip", ".tar", ".arrow")


def folder_source(root: Path, config: DataConfig) -> Source:
    name = root.name
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        return _saved(root, config)
    listing = list_folder(root)
    listing.check()
    shards = [f for f in listing.files if f.endswith(".parquet") and _base(f) not in METADATA]
    images = listing.images
    if shards:
        beside = [f"left out: {len(images):,} image files beside the Parquet files"] if images else []
        return _parquet(name, str(root), root, [root / f for f in shards], config, beside)
    tables = [f for f in listing.files if _base(f) in METADATA]
    lists, said = _read_tables(root, tables, config, listing)
    left_out = listing.left_out(tables)
    if lists:
        return replace(_listed(name, str(root), root, lists, config, listing), left_out=left_out)
    unread = next((f for f in listing.files if f.lower().endswith((*TABLES, *_ARCHIVES)) and f not in tables), "")
    named = (
        f"a table of paths and labels, or an archive, is named itself: --data {listing.at(unread)}" if unread else ""
    )
    if not images:
        if kinds := listing.kinds(tables):
            raise DataError(f"{root} has no images that can be read and no Parquet files, but {kinds}", named or UNREAD)
        hint = "images lie in a folder a class, such as cats/1.jpg, or train/cats/1.jpg and test/cats/2.jpg"
        raise DataError(f"{root} has no images and no Parquet files", named or hint)
    arranged = arrange(str(root), [parts_of(f) for f in images])
    if named and not any(label for items in arranged.splits.values() for _, label, _ in items):
        said.append(f"no class folders; {named}")
    said += [*arranged.notes, *listing.unread(tables), *listing.empty(arranged.class_folders)]
    source = image_source(name, str(root), [listing.at(f) for f in images], arranged, config, said)
    return replace(source, left_out=left_out)


def _read_tables(
    root: Path, tables: Sequence[str], config: DataConfig, listing: Listing
) -> tuple[list[Listed], list[str]]:
    """A folder's own tables, or none and a note where they say no labels and the images lie in class folders."""
    found: list[Listed] = []
    obstacle: NoPaths | None = None
    for file in tables:
        try:
            found.append(read_listing(root / file, root, config))
        except NoPaths as error:
            obstacle = error
    if not tables or (found and any(table.has_labels and not table.is_guess for table in found)):
        return found, []
    with contextlib.suppress(DataError):
        arranged = arrange(str(root), [parts_of(f) for f in listing.images])
        if any(label for items in arranged.splits.values() for _, label, _ in items):
            return [], [f"{', '.join(tables[:3])}: no column called label or class, so the classes are the folders"]
    if obstacle is not None:
        raise obstacle
    return found, []


def _base(file: str) -> str:
    return file.rpartition(os.sep)[2].lower()


def _saved(root: Path, config: DataConfig) -> Source:
    """What `datasets` saved with save_to_disk."""
    import datasets

    _check_saved(root)
    try:
        saved = datasets.load_from_disk(str(root))
    except Exception as error:
        raise DataError(
            f"cannot read the saved data set {root}: {first_line(error)}",
            "is it whole? datasets.load_from_disk should read it",
        ) from None
    tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    contents = {s: rows_of([f["filename"] for f in t.cache_files], t, str(root), str(root)) for s, t in tables.items()}
    return make_source(root.name, str(root), tables, contents, config)


def _check_saved(root: Path) -> None:
    """Raises DataError for a saved data set that names what is not in its folder, or is no file."""

    def read(*parts: str) -> Any:
        return json.loads(read_file(str(root.joinpath(*parts)), LARGEST_DOCUMENT))

    try:
        splits = [""] if (root / "state.json").exists() else []
        splits += read("dataset_dict.json")["splits"] if (root / "dataset_dict.json").exists() else []
        for split in splits:
            _check_files(root, [os.path.join(split, "state.json")])  # noqa: PTH118
            _check_files(root, [os.path.join(split, f["filename"]) for f in read(split, "state.json")["_data_files"]])  # noqa: PTH118
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read the saved data set {root}: {first_line(error)[:200]}",
            "is it whole? datasets.load_from_disk should read it",
        ) from None


LARGEST_DOCUMENT = 2**27


def _check_files(root: Path, names: Iterable[str]) -> None:
    """Raises DataError for a file that does not lie in `root`, or is none: a library would wait for a pipe."""
    for name in names:
        path = files.inside(str(root), name)
        if not path:
            raise DataError(
                f"{root} names {name[:200]!r}, which does not lie in it", "name the data itself with --data"
            )
        try:
            open_file(path, sys.maxsize).close()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {first_line(error)}", "is it whole, and a file?") from None


def rows_of(paths: Sequence[str], table: datasets.Dataset, place: str, folder: str = "") -> Contents:
    """The contents of a table that lies in these files, whose rows have no names and may name files in `folder`."""

    def stamps() -> Digests:
        each = [stamp_of_file(path) for path in paths]
        return stamps_of_rows(stamp(place, *each) if all(each) else 0, len(table))

    return Contents(rows=len(table), stamps=stamps if paths else None, place=place, trusted=False, folder=folder)


def image_source(
    name: str, id_: str, addresses: Sequence[str], arranged: Arranged, config: DataConfig, notes: Sequence[str] = ()
) -> Source:
    """A source of image files: a table a split, with a column of classes where it has any. Files have names."""
    import datasets

    names = sorted({label for items in arranged.splits.values() for _, label, _ in items if label})
    index = {label: i for i, label in enumerate(names)}
    tables, contents = {}, {}
    for split, items in arranged.splits.items():
        paths = [addresses[i] for i, _, _ in items]
        columns: dict[str, Any] = {"image": list(map(as_text, paths))}
        features = {"image": datasets.Image()}
        if any(label for _, label, _ in items):
            columns["label"] = [index[label] for _, label, _ in items]
            features["label"] = datasets.Value("int64")  # a ClassLabel of many names is copied at every step
        with quiet():
            tables[split] = datasets.Dataset.from_dict(
                columns, features=datasets.Features(features), split=datasets.NamedSplit(split)
            )
        contents[split] = _files_of(paths, [below for _, _, below in items], id_)
    return make_source(name, id_, tables, contents, config, notes=notes, classes=[Class(n) for n in names])


def _files_of(paths: Sequence[str], names: Sequence[str], place: str) -> Contents:
    local = all("://" not in path for path in paths)

    def stamps() -> Digests:
        return np.array([stamp_of_file(path) for path in paths], np.uint64)

    return Contents(rows=len(paths), stamps=stamps if local else None, names=names, place=place)


def _listed(
    name: str, id_: str, root: Path, lists: Sequence[Listed], config: DataConfig, listing: Listing | None = None
) -> Source:
    """A source of one or more tables of paths and labels."""
    import datasets

    rows, again = _once(id_, lists)
    labelled = any(table.has_labels for table in lists)
    tables, contents = {}, {}
    for split, items in rows.items():
        paths = [path for path, _, _ in items]
        columns: dict[str, Any] = {"image": list(map(as_text, paths))}
        if labelled:
            columns["label"] = [label for _, label, _ in items]
        with quiet():
            table = datasets.Dataset.from_dict(columns, split=datasets.NamedSplit(split))
            tables[split] = table.cast_column("image", datasets.Image())
        contents[split] = _files_of(paths, [below for _, _, below in items], id_)
    notes = [note for table in lists for note in table.notes]
    notes += [f"left out: {again:,} rows that name an image again, with the same label"] if again else []
    if listing is not None:
        named = {path for items in rows.values() for path, _, _ in items}
        beside = sum(listing.at(f) not in named for f in listing.images)
        notes += [f"left out: {beside:,} images that no table lists"] if beside else []
        notes += listing.unread(f for f in listing.files if _base(f) in METADATA)
    config = replace(config, image_column="image", label_column="label" if labelled else "")
    return make_source(name, id_, tables, contents, config, notes=notes)


def _once(id_: str, lists: Sequence[Listed]) -> tuple[dict[str, list[tuple[str, Any, str]]], int]:
    """The rows of all tables by split, each image once in it, and how many named one again.

    Raises DataError for an image with two labels: it would count as right and as wrong.
    """
    rows: dict[str, dict[str, tuple[str, Any, str]]] = {}
    labels: dict[str, Any] = {}
    for table in lists:
        for split, items in table.splits.items():
            for path, label, below in items:
                if label is not None and labels.setdefault(path, label) != label:
                    raise DataError(
                        f"{id_}: {below} is listed with the labels {labels[path]!r} and {label!r}",
                        "an image has one label: remove the rows that are wrong",
                    )
                known = rows.setdefault(split, {}).get(path)
                rows[split][path] = (path, label, below) if known is None or known[1] is None else known
    listed = sum(len(items) for table in lists for items in table.splits.values())
    return {split: list(items.values()) for split, items in rows.items()}, listed - sum(map(len, rows.values()))


def shard_tables(what: str, groups: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    return {
        split: load_quietly("parquet", what, data_files={split: files}, split=split) for split, files in groups.items()
    }


def left_out_of(unknown: Sequence[str], root: str) -> list[str]:
    shown = ", ".join(sorted(u.removeprefix(root).lstrip("/") for u in unknown)[:6])
    return [f"left out, as no split is in their names: {shown}"] if unknown else []


def _parquet(
    name: str, id_: str, root: Path, shards: list[Path], config: DataConfig, notes: Sequence[str] = ()
) -> Source:
    _check_files(root, map(str, shards))
    groups, unknown = shards_by_split([(str(f), str(f.relative_to(root))) for f in shards])
    tables = shard_tables(f"the Parquet files of {id_}", groups)
    contents = {split: rows_of(groups[split], table, id_, str(root)) for split, table in tables.items()}
    return make_source(name, id_, tables, contents, config, notes=[*left_out_of(unknown, str(root)), *notes])


def file_source(path: Path, config: DataConfig) -> Source:
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path.stem, str(path), path.parent, [path], config)
    if ending in TABLES:
        return _listed(path.stem, str(path), path.parent, [read_listing(path, path.parent, config)], config)
    if ending == ".zip":
        return _zip(path, config)
    if ending not in _ARCHIVES:
        raise DataError(
            f"{path} is not a data set",
            "a file of data ends in .parquet, .csv, .tsv, .jsonl, .tar, .zip or .arrow; a folder holds images",
        )
    builder = {".tar": "webdataset", ".arrow": "arrow"}[ending]
    table = load_quietly(builder, str(path), data_files=[str(path)], split="train")
    return make_source(
        path.stem,
        str(path),
        {"train": table},
        {"train": rows_of([str(path)], table, str(path), str(path.parent))},
        config,
    )


def _zip(path: Path, config: DataConfig) -> Source:
    """Images in an archive laid out as an image folder, alone or below one folder of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except Exception as error:  # zipfile raises many types; each is a fault of the archive
        raise DataError(f"cannot read {path}: {first_line(error)}", "is it whole?") from None
    split = [(name, tuple(p for p in name.split("/") if p)) for name in names]
    seen = [(name, p) for name, p in split if not any(q.startswith((".", "__MACOSX")) for q in p)]
    images = set(images_among([name for name, _ in seen]))
    kept = [(name, p) for name, p in seen if name in images]
    listing = as_listed(
        path, [p for name, p in seen if not name.endswith("/")], [p for n, p in seen if n.endswith("/")]
    )
    if not kept:
        raise DataError(f"{path} has no images", f"images end in {', '.join(sorted(IMAGE_ENDINGS)[:8])} …")
    arranged = arrange(str(path), [p for _, p in kept])
    said = [*arranged.notes, *listing.unread(), *listing.empty(arranged.class_folders)]
    addresses = [f"zip://{name}::{path}" for name, _ in kept]
    return replace(image_source(path.stem, str(path), addresses, arranged, config, said), left_out=listing.left_out())


def as_listed(root: Path, files: Sequence[Parts], folders: Sequence[Parts] = ()) -> Listing:
    """What lies in an archive or at an address, as a folder on disk is listed."""
    return Listing(root, tuple(map(os.sep.join, files)), tuple(map(os.sep.join, folders)))
