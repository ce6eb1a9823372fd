"""Data sets of the hub, downloaded or in its cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli import classes as class_names
from vitcli import files, hub
from vitcli.classes import Class
from vitcli.config import DataConfig
from vitcli.data.columns import make_source
from vitcli.data.decode import read_file
from vitcli.data.folders import (
    LARGEST_DOCUMENT,
    rows_of,
)
from vitcli.data.loading import quiet
from vitcli.data.presets import Preset
from vitcli.data.split import Source, Split, not_beside
from vitcli.errors import DataError
from vitcli.text import first_line


def hub_source(text: str, config: DataConfig, preset: Preset | None) -> Source:
    """A data set by its hub id, or a preset."""
    rest, _, subset = text.partition(":")
    rest, _, revision = rest.partition("@")
    name, hub_id = rest.rpartition("/")[2], rest
    if preset is not None:
        name, hub_id, subset = text, preset.hub, preset.config
    revision = revision or config.revision
    found = _from_hub(hub_id, subset, revision)
    folder = _cached_snapshot(hub_id, revision)
    places = _places(hub_id, folder)
    tables = dict(found)
    if folder is not None:
        revision = folder.name
    contents = {
        split: rows_of([f["filename"] for f in table.cache_files], table, f"{hub_id}:{subset}:{split}")
        for split, table in tables.items()
    }
    named: tuple[Class, ...] = ()
    if preset is not None:
        if text == "imagenet-21k" and config.label_column in ("", preset.label):
            named = class_names.imagenet_21k()
            _check_synsets(text, tables, preset.label, named)
        config = replace(
            config, image_column=config.image_column or preset.image, label_column=config.label_column or preset.label
        )
    source = make_source(
        name,
        text,
        tables,
        contents,
        config,
        mirror=preset.mirror if preset else True,
        held_out=preset.held_out if preset else "",
        revision=revision,
        known_as=f"hub:{hub_id}:{subset}:{revision}" if folder is not None else "",
        classes=named,
    )
    for part in source.splits.values():
        _check_rows(part, places)
    if preset is not None:
        source = corrected(text, preset, source)
    return source


def is_here(hub_id: str, revision: str) -> bool:
    """Whether images of a data set, not its card alone, lie in the hub's local cache. Asks nobody."""
    folder = _cached_snapshot(hub_id, revision)
    return folder is not None and any(f.suffix in (".parquet", ".tar") for f in folder.rglob("*"))


_LOOKED_AT = 64
"""Rows of each split whose class is compared with the synset that they name."""


def _check_synsets(name: str, tables: Mapping[str, Any], column: str, known: Sequence[Class]) -> None:
    """Raises DataError where the labels are not in the order of `known`, by what the rows say of themselves in `json`."""
    for split, table in tables.items():
        if not {column, "json"} <= set(table.column_names):
            continue
        rows = table.select_columns([column, "json"])[:_LOOKED_AT]
        for row, (label, said) in enumerate(zip(rows[column], rows["json"], strict=True)):
            synset = said.get("class_name") if isinstance(said, dict) else None
            meant = known[label].id if isinstance(label, int) and 0 <= label < len(known) else "none"
            if synset and synset != meant:
                raise DataError(
                    f"{name}, split {split!r}: row {row} has label {label} and is of {synset}, where that label is {meant}",
                    "the hub's copy is not the one that vit knows: name it by its hub id, with --set data.label_column=…",
                )


def _places(hub_id: str, snapshot: Path | None) -> list[str]:
    """The folders in which the files of a data set from the hub lie: its own in the hub's cache, and what was unpacked."""
    import datasets
    from huggingface_hub import constants

    own = Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id.replace('/', '--')}"
    places = [own, Path(datasets.config.DOWNLOADED_DATASETS_PATH), *([snapshot] if snapshot else [])]
    return [*map(str, places), *(str(place.resolve()) for place in places)]


def _check_rows(part: Split, places: Sequence[str]) -> None:
    """Raises DataError for a row that names a file outside `places`, or an address."""
    import pyarrow.compute as pc

    column = part.table.data.column(part.image_column)
    paths = pc.if_else(pc.is_null(pc.struct_field(column, "bytes")), pc.struct_field(column, "path"), None)
    for row, path in enumerate(paths.to_pylist()):
        if path and not any(files.inside(place, path) == os.path.normpath(path) for place in places):
            raise not_beside(row, part.table_name, path)


def _from_hub(hub_id: str, subset: str, revision: str) -> Any:
    """A data set from the hub, or from the local cache where the hub cannot be asked. Raises DataError."""
    import datasets

    offline = hub.is_offline()
    obstacle = None if offline else hub.obstacle(hub_id, "dataset", revision)
    if not offline and obstacle is None:
        try:
            with quiet():
                _check_cards(hub_id, [path for name in _CARDS if (path := _card(hub_id, name, revision))])
                return datasets.load_dataset(hub_id, subset or None, revision=revision or None)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"cannot load {hub_id} from the hub: {first_line(error)}", hub.hint(error)) from None
    folder = _cached_snapshot(hub_id, revision)
    if folder is not None:
        return _load_snapshot(folder, hub_id, subset)
    if obstacle is not None:
        raise DataError(f"cannot load {hub_id} from the hub: {first_line(obstacle)}", hub.hint(obstacle))
    raise DataError(
        f"{hub_id} is not in the local cache, and HF_HUB_OFFLINE is set",
        "unset HF_HUB_OFFLINE to download it, or give a folder or Parquet files with --data",
    )


_CARDS = ("README.md", ".huggingface.yaml")
"""Where a data set of the hub says which files it has."""


def _card(hub_id: str, name: str, revision: str) -> Path | None:
    """A card of a data set on the hub; None where it has none."""
    import huggingface_hub
    from huggingface_hub.utils import EntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, name, repo_type="dataset", revision=revision or None))
    except EntryNotFoundError:
        return None


def _check_cards(hub_id: str, cards: Iterable[Path]) -> None:
    """Raises DataError for a data set whose card names files that are not its own: loading it would open and dial them."""
    import yaml  # type: ignore[import-untyped]

    for card in cards:
        try:
            text = read_file(str(card), LARGEST_DOCUMENT).decode("utf-8", "replace")
            head = text.split("\n---", 1)[0].removeprefix("---") if card.name == "README.md" else text
            tree = yaml.safe_load(head)
        except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
            raise DataError(f"cannot read {card}: {first_line(error)[:200]}", "is it whole?") from None
        configs = tree.get("configs") if isinstance(tree, dict) else None
        named = [c.get(key) for c in configs or () if isinstance(c, dict) for key in ("data_files", "data_dir")]
        for name in _texts(named):
            if "://" in name or "::" in name or name.startswith(("/", "~")) or ".." in name.split("/"):
                raise DataError(
                    f"{hub_id}: its card {card.name} names {name[:200]!r}, which is no file of its own",
                    "download the images, and give their folder with --data",
                )


def _texts(tree: Any) -> Iterator[str]:
    """All texts in lists and tables, each of these once, however often they name each other."""
    waiting, seen = [tree], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, (list, dict)) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item


def _cached_snapshot(hub_id: str, revision: str) -> Path | None:
    """The folder of a data set in the hub's local cache, or None."""
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(
                snapshot_download(hub_id, repo_type="dataset", revision=revision or None, local_files_only=True)
            )
    except Exception:  # not cached, whatever the reason
        return None


def _load_snapshot(folder: Path, hub_id: str, subset: str) -> Any:
    """A data set from its snapshot, by the configuration in its card where there is one."""
    import datasets

    _check_cards(hub_id, [folder / name for name in _CARDS if (folder / name).exists()])
    try:
        with quiet():
            return datasets.load_dataset(str(folder), subset or None)
    except Exception as error:
        raise DataError(
            f"cannot read the cached {hub_id}: {first_line(error)}",
            f"is the configuration right (user/name:config)? it lies in {folder}",
        ) from None


def corrected(text: str, preset: Preset, source: Source) -> Source:
    """What is known about a preset beyond its hub files."""
    named = source.classes
    if text == "cifar100":
        named = tuple(Class("crab") if c.name == "cra" else c for c in named)
    if text == "imagenet" and len(named) == 1000:
        named = class_names.imagenet_1k()
    return replace(source, classes=named, notes=(*source.notes, *([preset.note] if preset.note else [])))
