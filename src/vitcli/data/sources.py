"""What DATA names, by way of Hugging Face `datasets`.

`digits`, a preset, a hub id, a folder of class folders, a flat folder, Parquet files, an archive, a saved data set or an
fsspec address all become a `Source`. Columns are found by their type, not by their name.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli import classes as class_names
from vitcli import files, hub
from vitcli.classes import Class
from vitcli.config import DataConfig
from vitcli.data.columns import first_line, make_source
from vitcli.data.decode import IMAGE_ENDINGS, open_file, read_file
from vitcli.data.identity import HELD_ONE_IN, Contents, Digests, stamp, stamp_of_file, stamps_of_rows
from vitcli.data.layout import (
    Arranged,
    Listing,
    Parts,
    arrange,
    is_image,
    list_folder,
    parts_of,
    shards_by_split,
)
from vitcli.data.listing import METADATA, TABLES, Listed, NoPaths, read_listing
from vitcli.data.split import Source, Split, as_text, not_beside
from vitcli.errors import DataError, ResourceError, did_you_mean
from vitcli.randomness import permutation
from vitcli.text import unicode

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Preset:
    hub: str
    image: str
    label: str
    held_out: str = "test"
    config: str = ""
    mirror: bool = True
    note: str = ""


PRESETS: dict[str, Preset] = {
    "cifar10": Preset("uoft-cs/cifar10", "img", "label"),
    "cifar100": Preset("uoft-cs/cifar100", "img", "fine_label"),
    "pets": Preset("timm/oxford-iiit-pet", "image", "label"),
    "flowers": Preset(
        "nelorth/oxford-flowers",
        "image",
        "label",
        note="this hub copy of Flowers-102 has 7,169 training and 1,020 test images, not the official "
        "1,020 + 1,020 and 6,149: results do not compare with the paper's",
    ),
    "fashion-mnist": Preset("zalando-datasets/fashion_mnist", "image", "label"),
    "mnist": Preset("ylecun/mnist", "image", "label", mirror=False),
    "imagenet": Preset("ILSVRC/imagenet-1k", "image", "label", held_out="validation"),
    "imagenette": Preset("frgfm/imagenette", "image", "label", held_out="validation", config="full_size"),
}


# --- finding it --------------------------------------------------------------------------------------------


def open_source(config: DataConfig) -> Source:
    """The data that `config.source` names. Raises DataError with what was looked for and a way out."""
    text = config.source
    if not text.strip():
        raise DataError("the data has an empty name", "name digits, a preset, a folder, a file or a hub id")
    if text == "none":
        raise DataError(
            "data 'none' has no images", "it serves --dry-run only, with --set data.images=… and data.classes=…"
        )
    name = text.removeprefix(PRESET)
    if name == "digits" or name in PRESETS:
        _refuse_ambiguous(text)
        return _digits() if name == "digits" else _hub(name, config, PRESETS[name])
    if text.startswith(PRESET):
        raise DataError(f"no preset {name!r}", did_you_mean(name, ["digits", *PRESETS]))
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
        return _folder(path, config)
    if is_file:
        return _file(path, config)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?", text) and not text.startswith(("./", "../")):
        return _hub(text, config, None)
    raise DataError(
        f"no data set {text!r}: not a preset, a file, a folder or a hub id", did_you_mean(text, ["digits", *PRESETS])
    )


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
    with _quiet():
        table = datasets.Dataset.from_dict({"image": list(pixels), "label": bunch.target.tolist()}, features=features)
    contents = Contents(len(table), held=_fifth_of_each(bunch.target))
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` without its progress bars and log lines, and with a cache that can be written."""
    import datasets

    if not files.is_writable(Path(datasets.config.HF_DATASETS_CACHE)):
        datasets.config.HF_DATASETS_CACHE = _passing_cache()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    import huggingface_hub.utils as hub

    hub.disable_progress_bars()
    yield


@functools.cache
def _passing_cache() -> Path:
    """A folder that goes when this process ends: what datasets reads it writes as Arrow files first."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(files.temporary_folder(Path(tempfile.gettempdir()) / "vit-datasets"))


def _load(builder: str, what: str, **arguments: Any) -> datasets.Dataset:
    import datasets

    try:
        with _quiet():
            return datasets.load_dataset(builder, **arguments)
    except Exception as error:  # datasets raises many types; each is a fault of the data named, or of the disk
        if _found_no_room(error):
            raise ResourceError(
                f"no space left for {what}, which datasets copies to {datasets.config.HF_DATASETS_CACHE}",
                "free some space, or let HF_DATASETS_CACHE name a folder on another disk",
            ) from None
        raise DataError(
            f"cannot read {what}: {first_line(error)}", "is it whole, and in the format its name says?"
        ) from None


def _found_no_room(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is a disk that is full."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno in files.FULL or "Not enough disk space" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


_ARCHIVES = (".zip", ".tar", ".arrow")


def _folder(root: Path, config: DataConfig) -> Source:
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
    if lists:
        return _listed(name, str(root), root, lists, config, listing)
    unread = next((f for f in listing.files if f.lower().endswith((*TABLES, *_ARCHIVES)) and f not in tables), "")
    named = (
        f"a table of paths and labels, or an archive, is named itself: --data {listing.at(unread)}" if unread else ""
    )
    if not images:
        hint = "images lie in a folder a class, such as cats/1.jpg, or train/cats/1.jpg and test/cats/2.jpg"
        raise DataError(f"{root} has no images and no Parquet files", named or hint)
    arranged = arrange(str(root), [parts_of(f) for f in images])
    if named and not any(label for items in arranged.splits.values() for _, label, _ in items):
        said.append(f"no class folders; {named}")
    said += [*arranged.notes, *listing.unread(tables), *listing.empty(arranged.class_folders)]
    return _image_source(name, str(root), [listing.at(f) for f in images], arranged, config, said)


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
    contents = {s: _rows_of([f["filename"] for f in t.cache_files], t, str(root), str(root)) for s, t in tables.items()}
    return make_source(root.name, str(root), tables, contents, config)


def _check_saved(root: Path) -> None:
    """Raises DataError for a saved data set that names what is not in its folder, or is no file."""

    def read(*parts: str) -> Any:
        return json.loads(read_file(str(root.joinpath(*parts)), _LARGEST_DOCUMENT))

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


_LARGEST_DOCUMENT = 2**27


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


def _rows_of(paths: Sequence[str], table: datasets.Dataset, place: str, folder: str = "") -> Contents:
    """The contents of a table that lies in these files, whose rows have no names and may name files in `folder`."""

    def stamps() -> Digests:
        each = [stamp_of_file(path) for path in paths]
        return stamps_of_rows(stamp(place, *each) if all(each) else 0, len(table))

    return Contents(len(table), stamps if paths else None, place=place, trusted=False, folder=folder)


def _image_source(
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
        with _quiet():
            tables[split] = datasets.Dataset.from_dict(
                columns, features=datasets.Features(features), split=datasets.NamedSplit(split)
            )
        contents[split] = _files_of(paths, [below for _, _, below in items], id_)
    return make_source(name, id_, tables, contents, config, notes=notes, names=names)


def _files_of(paths: Sequence[str], names: Sequence[str], place: str) -> Contents:
    local = all("://" not in path for path in paths)

    def stamps() -> Digests:
        return np.array([stamp_of_file(path) for path in paths], np.uint64)

    return Contents(len(paths), stamps if local else None, names, place=place)


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
        with _quiet():
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


def _shard_tables(what: str, groups: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    return {split: _load("parquet", what, data_files={split: files}, split=split) for split, files in groups.items()}


def _left_out(unknown: Sequence[str], root: str) -> list[str]:
    shown = ", ".join(sorted(u.removeprefix(root).lstrip("/") for u in unknown)[:6])
    return [f"left out, as no split is in their names: {shown}"] if unknown else []


def _parquet(
    name: str, id_: str, root: Path, shards: list[Path], config: DataConfig, notes: Sequence[str] = ()
) -> Source:
    _check_files(root, map(str, shards))
    groups, unknown = shards_by_split([(str(f), str(f.relative_to(root))) for f in shards])
    tables = _shard_tables(f"the Parquet files of {id_}", groups)
    contents = {split: _rows_of(groups[split], table, id_, str(root)) for split, table in tables.items()}
    return make_source(name, id_, tables, contents, config, notes=[*_left_out(unknown, str(root)), *notes])


def _file(path: Path, config: DataConfig) -> Source:
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
    table = _load(builder, str(path), data_files=[str(path)], split="train")
    return make_source(
        path.stem,
        str(path),
        {"train": table},
        {"train": _rows_of([str(path)], table, str(path), str(path.parent))},
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
    kept = [(name, p) for name, p in seen if is_image(name)]
    listing = _as_listed(
        path, [p for name, p in seen if not name.endswith("/")], [p for n, p in seen if n.endswith("/")]
    )
    if not kept:
        raise DataError(f"{path} has no images", f"images end in {', '.join(sorted(IMAGE_ENDINGS)[:8])} …")
    arranged = arrange(str(path), [p for _, p in kept])
    said = [*arranged.notes, *listing.unread(), *listing.empty(arranged.class_folders)]
    return _image_source(path.stem, str(path), [f"zip://{name}::{path}" for name, _ in kept], arranged, config, said)


def _as_listed(root: Path, files: Sequence[Parts], folders: Sequence[Parts] = ()) -> Listing:
    """What lies in an archive or at an address, as a folder on disk is listed."""
    return Listing(root, tuple(map(os.sep.join, files)), tuple(map(os.sep.join, folders)))


def _address(address: str, config: DataConfig) -> Source:
    """Parquet or tar files, or a folder of them or of images, at an fsspec address."""
    import fsspec

    protocol = address.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        found = sorted(filesystem.glob(path) if "*" in path else filesystem.find(path))
    except Exception as error:
        raise DataError(
            f"cannot reach {address}: {first_line(error)}",
            "is the address right, its fsspec package installed, and the network there?",
        ) from None
    name = re.sub(r"\W+", "-", address.rstrip("/").rpartition("/")[2].removesuffix(".parquet")).strip("-") or protocol
    root = path.partition("*")[0] if "*" in path else path.rstrip("/") + "/"
    pairs = [(f if "://" in f else f"{protocol}://{f}", f.removeprefix(root)) for f in found]
    shards = [pair for pair in pairs if pair[0].endswith(".parquet")]
    archives = [full for full, _ in pairs if full.endswith(".tar")]
    parts = [(full, tuple(below.split("/"))) for full, below in pairs]
    images = [(full, p) for full, p in parts if is_image(full)]
    notes: list[str] = []
    if shards:
        groups, unknown = shards_by_split([(full, below or full) for full, below in shards])
        tables, notes = _shard_tables(address, groups), _left_out(unknown, address)
    elif archives:
        groups, unknown = shards_by_split([(full, below or full) for full, below in pairs if full.endswith(".tar")])
        tables = {s: _load("webdataset", address, data_files={s: tars}, split=s) for s, tars in groups.items()}
        notes = _left_out(unknown, address)
    elif images:
        arranged = arrange(address, [parts for _, parts in images])
        said = [*arranged.notes, *_as_listed(Path(path), [p for _, p in parts]).unread()]
        return _image_source(name, address, [full for full, _ in images], arranged, config, said)
    else:
        raise DataError(
            f"{address} has no Parquet files, tar archives or images", "name the folder that holds them, or a pattern"
        )
    contents = {split: Contents(len(table), place=address, trusted=False) for split, table in tables.items()}
    return make_source(name, address, tables, contents, config, notes=notes)


def _hub(text: str, config: DataConfig, preset: Preset | None) -> Source:
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
        split: _rows_of([f["filename"] for f in table.cache_files], table, f"{hub_id}:{subset}:{split}")
        for split, table in tables.items()
    }
    if preset is not None:
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
    )
    for part in source.splits.values():
        _check_rows(part, places)
    if preset is not None:
        source = _correct_preset(text, preset, source)
    return source


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
            with _quiet():
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
            text = read_file(str(card), _LARGEST_DOCUMENT).decode("utf-8", "replace")
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
        with _quiet():
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
        with _quiet():
            return datasets.load_dataset(str(folder), subset or None)
    except Exception as error:
        raise DataError(
            f"cannot read the cached {hub_id}: {first_line(error)}",
            f"is the configuration right (user/name:config)? it lies in {folder}",
        ) from None


def _correct_preset(text: str, preset: Preset, source: Source) -> Source:
    """What is known about a preset beyond its hub files."""
    named = source.classes
    if text == "cifar100":
        named = tuple(Class("crab") if c.name == "cra" else c for c in named)
    if text == "imagenet" and len(named) == 1000:
        named = class_names.imagenet_1k()
    return replace(source, classes=named, notes=(*source.notes, *([preset.note] if preset.note else [])))
