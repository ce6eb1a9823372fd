"""What DATA names, by way of Hugging Face `datasets`.

`digits`, a preset, a hub id, a folder of class folders, a flat folder, Parquet files, an archive, a saved data set or an
fsspec address all become a `Source`. Columns are found by their type, not by their name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcli.config import DataConfig
from vitcli.data.columns import make_source
from vitcli.data.entries import is_entry, open_entry
from vitcli.data.folders import (
    as_listed,
    file_source,
    folder_source,
    image_source,
    left_out_of,
    shard_tables,
)
from vitcli.data.hub_source import hub_source
from vitcli.data.identity import HELD_ONE_IN, Contents
from vitcli.data.layout import (
    arrange,
    images_among,
    shards_by_split,
)
from vitcli.data.loading import files_at, load_quietly, quiet
from vitcli.data.presets import PRESETS
from vitcli.data.split import Source
from vitcli.data.streaming import open_stream
from vitcli.errors import DataError, did_you_mean
from vitcli.progress import Progress, silent
from vitcli.randomness import permutation
from vitcli.text import unicode

# --- finding it --------------------------------------------------------------------------------------------


def open_source(config: DataConfig, progress: Progress = silent) -> Source:
    """The data that `config.source` names. Raises DataError with what was looked for and a way out."""
    text = config.source
    if not text.strip():
        raise DataError("the data has an empty name", "name digits, a preset, a folder, a file or a hub id")
    if config.stream:
        return open_stream(config, progress)
    if text == "none":
        raise DataError(
            "data 'none' has no images", "it serves --dry-run only, with --set data.images=… and data.classes=…"
        )
    name = text.removeprefix(PRESET)
    if name == "digits" or name in PRESETS:
        _refuse_ambiguous(text)
        return _digits() if name == "digits" else hub_source(name, config, PRESETS[name])
    if text.startswith(PRESET):
        raise DataError(f"no preset {name!r}", did_you_mean(name, ["digits", *PRESETS]))
    if is_entry(text):
        return open_entry(text, config)
    if "://" in text:
        return _address(text, config)
    try:
        path = Path(text).expanduser().resolve()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"no data set {text[:80]!r}: {str(error)[:80]}", "name digits, a preset, a folder, a file or a hub id"
        ) from None
    if not is_folder and not is_file and path.exists():
        raise DataError(f"{unicode(str(path))} is a pipe, a socket or a device", "name a file or a folder")
    if is_folder:
        return folder_source(path, config)
    if is_file:
        return file_source(path, config)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?", text) and not text.startswith(("./", "../")):
        return hub_source(text, config, None)
    raise DataError(
        f"no data set {text!r}: not a preset, a file, a folder or a hub id",
        did_you_mean(text, [*_beside(path), "digits", *PRESETS], f"known: {', '.join(sorted(['digits', *PRESETS]))}"),
    )


def _beside(path: Path) -> list[str]:
    """The names of what lies where `path` is not, as they would be typed from here."""
    try:
        found = [other for other in itertools.islice(path.parent.iterdir(), 1000) if not other.name.startswith(".")]
        return [os.path.relpath(other) if other.is_relative_to(Path.cwd()) else str(other) for other in found]
    except (OSError, ValueError):
        return []


PRESET = "preset:"
"""Before the name of a preset, where a folder has the same name."""


def by_name(id_: str) -> str:
    """An id of a source as --data takes it whatever lies in the working directory: of a preset, with `preset:`."""
    return PRESET + id_ if id_ == "digits" or id_ in PRESETS else id_


def _refuse_ambiguous(text: str) -> None:
    """Raises DataError for the bare name of a preset beside which a folder or file of that name lies."""
    if not text.startswith(PRESET) and Path(text).exists():
        raise DataError(
            f"{text!r} is a preset and a {'folder' if Path(text).is_dir() else 'file'} here",
            f"name ./{text} or {PRESET}{text}",
        )


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. They never change, and a fixed fifth of every class is held out."""
    import datasets
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )
    with quiet():
        table = datasets.Dataset.from_dict({"image": list(pixels), "label": bunch.target.tolist()}, features=features)
    contents = Contents(rows=len(table), held=_fifth_of_each(bunch.target))
    known = hashlib.sha256(b"train=digits-1").hexdigest()
    return make_source(
        "digits", "digits", {"train": table}, {"train": contents}, DataConfig(), mirror=False, known_as=known
    )


def _fifth_of_each(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A fifth of every class, in the order of one permutation."""
    order = permutation(0, "held-out", 0, len(labels))
    held = np.zeros(len(labels), bool)
    for value in np.unique(labels):
        members = order[labels[order] == value]
        held[members[: round(len(members) / HELD_ONE_IN)]] = True
    return held


def _address(address: str, config: DataConfig) -> Source:
    """Parquet or tar files, or a folder of them or of images, at an fsspec address."""
    path, pairs = files_at(address)
    protocol = address.partition("://")[0]
    name = re.sub(r"\W+", "-", address.rstrip("/").rpartition("/")[2].removesuffix(".parquet")).strip("-") or protocol
    shards = [pair for pair in pairs if pair[0].endswith(".parquet")]
    archives = [full for full, _ in pairs if full.endswith(".tar")]
    parts = [(full, tuple(below.split("/"))) for full, below in pairs]
    named = set(images_among([full for full, _ in parts]))
    images = [(full, p) for full, p in parts if full in named]
    notes: list[str] = []
    if shards:
        groups, unknown = shards_by_split([(full, below or full) for full, below in shards])
        tables, notes = shard_tables(address, groups), left_out_of(unknown, address)
    elif archives:
        groups, unknown = shards_by_split([(full, below or full) for full, below in pairs if full.endswith(".tar")])
        tables = {s: load_quietly("webdataset", address, data_files={s: tars}, split=s) for s, tars in groups.items()}
        notes = left_out_of(unknown, address)
    elif images:
        arranged = arrange(address, [parts for _, parts in images])
        listing = as_listed(Path(path), [p for _, p in parts])
        said = [*arranged.notes, *listing.unread()]
        source = image_source(name, address, [full for full, _ in images], arranged, config, said)
        return replace(source, left_out=listing.left_out())
    else:
        raise DataError(
            f"{address} has no Parquet files, tar archives or images", "name the folder that holds them, or a pattern"
        )
    contents = {split: Contents(rows=len(table), place=address, trusted=False) for split, table in tables.items()}
    return make_source(name, address, tables, contents, config, notes=notes)
