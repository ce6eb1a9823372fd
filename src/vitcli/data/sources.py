"""What DATA names: splits of images with labels, by way of Hugging Face `datasets`.

`digits`, a preset, a hub id, a folder of class folders, a flat folder, Parquet files, a saved data set or an
fsspec address all become a `Source`. Columns are found by their type, not by their name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli import classes as class_names
from vitcli.classes import Class
from vitcli.config import DataConfig, Size
from vitcli.errors import DataError, did_you_mean
from vitcli.randomness import permutation

if TYPE_CHECKING:
    import datasets

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

TEST_FRACTION = 0.2
"""Part of each class that is held out where the data has no test or validation split."""

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
_LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "cls", "y")


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


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a table. `labels` is aligned with `rows`; None where the images have none."""

    name: str
    table: datasets.Dataset
    image_column: str
    rows: Rows
    labels: Labels | None
    key: str  # changes whenever a file behind the table does

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Rows, name: str = "") -> Split:
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, rows=self.rows[positions], labels=labels, name=name or self.name)

    def blobs(self, positions: Rows) -> list[tuple[bytes | None, str]]:
        """The encoded image and its path (empty: none) at each position."""
        column = self.table[self.rows[positions].tolist()][self.image_column]
        return [_blob(item) for item in column]

    def describe(self, position: int) -> str:
        """The path, or the split and row, of an image, for messages."""
        row = int(self.rows[position])
        item = self.table[row][self.image_column]
        path = item.get("path") if isinstance(item, dict) else None
        if path and (Path(path).is_absolute() or "://" in path):
            return str(path)
        return f"row {row} of split {self.table_name!r}" + (f" ({path})" if path else "")

    @property
    def table_name(self) -> str:
        return str(self.table.split or self.name)


def _blob(item: Any) -> tuple[bytes | None, str]:
    if not isinstance(item, dict):
        return None, ""
    path = item.get("path") or ""
    if item.get("bytes") is not None:
        return item["bytes"], path
    if not path:
        return None, ""
    try:
        if "://" in path:
            import fsspec

            with fsspec.open(path, "rb") as file:
                return file.read(), path
        return Path(path).read_bytes(), path
    except OSError:
        return None, path


@dataclass(frozen=True, eq=False)
class Source:
    name: str  # short, for run folders
    id: str  # what --data takes to find it again
    revision: str
    identity: str  # of the content, wherever it lies
    classes: tuple[Class, ...]
    splits: dict[str, Split]
    mirror: bool = True
    held_out_split: str = ""
    notes: tuple[str, ...] = field(default=())

    def train(self, name: str = "") -> Split:
        """The training images: the split `name`, else `train`, less what is held out of it. Raises DataError."""
        if name or "train" in self.splits:
            part = self._named(name or "train")
        else:
            part = next(iter(self.splits.values()))
        return part if self.held_out_split else _carved(part)[0]

    def held_out(self) -> Split:
        """What results are reported on: the data's own split, else a part of every class by a fixed rule."""
        if self.held_out_split:
            return self._named(self.held_out_split)
        return _carved(self.splits.get("train", next(iter(self.splits.values()))))[1]

    def split(self, name: str) -> Split:
        """A split by its name; `all` is every labelled row of data that has one split. Raises DataError."""
        if name == "all" and "all" not in self.splits and len(self.splits) == 1:
            return next(iter(self.splits.values()))
        if not self.held_out_split and name in ("train", "test"):
            return self.train() if name == "train" else self.held_out()
        return self._named(name)

    def _named(self, name: str) -> Split:
        if name not in self.splits:
            known = [*self.splits, *([] if self.held_out_split else ["train", "test", "all"])]
            raise DataError(f"{self.id} has no split {name!r}", did_you_mean(name, set(known)))
        return self.splits[name]


def _carved(part: Split) -> tuple[Split, Split]:
    """(rest, held out): a fifth of each class, at least one image of two, the same whatever the run's seed."""
    keys = part.labels if part.labels is not None else np.zeros(len(part), np.int64)
    order = permutation(0, "held-out", 0, len(part))
    held = np.zeros(len(part), bool)
    for value in np.unique(keys):
        members = order[keys[order] == value]
        count = max(1, round(TEST_FRACTION * len(members))) if len(members) > 1 else 0
        held[members[:count]] = True
    return part.subset(np.flatnonzero(~held), "train"), part.subset(np.flatnonzero(held), "test")


def fraction_of(part: Split, fraction: float, seed: int) -> Split:
    """A seeded part of the rows; a smaller fraction lies within a larger one."""
    if fraction >= 1:
        return part
    count = max(1, round(fraction * len(part)))
    return part.subset(np.sort(permutation(seed, "fraction", 0, len(part))[:count]))


def typical_size(part: Split, max_megapixels: float) -> tuple[Size, bool]:
    """(height, width) that 64 images spread over the split share, else their median, and whether they share it."""
    import io

    from PIL import Image

    sizes: list[Size] = []
    for blob, _ in part.blobs(np.unique(np.linspace(0, len(part) - 1, 64).astype(np.int64))):
        with contextlib.suppress(Exception):
            image = Image.open(io.BytesIO(blob or b""))
            if image.width * image.height <= max_megapixels * 1e6:
                turned = image.getexif().get(0x0112, 1) >= 5
                sizes.append((image.width, image.height) if turned else (image.height, image.width))
    if not sizes:
        raise DataError(
            f"none of the images looked at in split {part.name!r} can be read", "is this a data set of images?"
        )
    heights, widths = np.median(np.array(sizes), axis=0).astype(int)
    return (int(heights), int(widths)), len(set(sizes)) == 1


# --- finding it --------------------------------------------------------------------------------------------


def open_source(config: DataConfig) -> Source:
    """The data that `config.source` names. Raises DataError with what was looked for and a way out."""
    text = config.source
    if text == "digits":
        return _digits()
    if text == "none":
        raise DataError(
            "data 'none' has no images", "it serves --dry-run only, with --set data.images=… and data.classes=…"
        )
    if text in PRESETS:
        return _hub(text, config, PRESETS[text])
    if "://" in text:
        return _address(text, config)
    path = Path(text).expanduser()
    if path.exists():
        path = path.resolve()
    if path.is_dir():
        return _folder(path, config)
    if path.is_file():
        return _file(path, config)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?", text) and not text.startswith(("./", "../")):
        return _hub(text, config, None)
    raise DataError(
        f"no data set {text!r}: not a preset, a file, a folder or a hub id", did_you_mean(text, ["digits", *PRESETS])
    )


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; it has no split of its own."""
    import datasets
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )
    with _quiet():
        table = datasets.Dataset.from_dict({"image": list(pixels), "label": bunch.target.tolist()}, features=features)
    return _source("digits", "digits", {"train": table}, {"train": "digits-1"}, DataConfig(), mirror=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` without its progress bars and log lines."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    import huggingface_hub.utils as hub

    hub.disable_progress_bars()
    yield


def _load(builder: str, what: str, **arguments: Any) -> datasets.Dataset:
    import datasets

    try:
        with _quiet():
            return datasets.load_dataset(builder, **arguments)
    except Exception as error:  # datasets raises many types; each is a fault of the data named
        raise DataError(
            f"cannot read {what}: {_first_line(error)}", "is it whole, and in the format its name says?"
        ) from None


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return lines[0]


def _folder(root: Path, config: DataConfig) -> Source:
    import datasets

    name = root.name
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        try:
            saved = datasets.load_from_disk(str(root))
        except Exception as error:
            raise DataError(f"cannot read the saved data set {root}: {_first_line(error)}") from None
        tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        key = _stat_key(root, sorted(root.rglob("*.arrow")))
        return _source(name, str(root), tables, dict.fromkeys(tables, key), config)
    files = _walk(root)
    shards = [f for f in files if f.suffix == ".parquet"]
    if shards:
        return _parquet(name, str(root), root, shards, config)
    images = [f for f in files if f.suffix.lower() in IMAGE_ENDINGS]
    if any(f.name in ("metadata.csv", "metadata.jsonl", "metadata.parquet") for f in files):
        found = _load("imagefolder", f"the image folder {root}", data_dir=str(root))
        key = _stat_key(root, files)
        return _source(name, str(root), dict(found), dict.fromkeys(found, key), config)
    if not images:
        raise DataError(
            f"{root} has no images and no Parquet files",
            "images lie in a folder a class, such as cats/1.jpg, or train/cats/1.jpg and test/cats/2.jpg",
        )
    return _image_folder(name, root, images, config)


def _walk(root: Path) -> list[Path]:
    """Every file below `root` in a fixed order, hidden ones and __MACOSX left out, links followed."""
    found: list[Path] = []
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(n for n in names if not n.startswith((".", "__MACOSX")))
        found += [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
    return sorted(found)


def _stat_key(root: Path, files: Sequence[Path], with_time: bool = True) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns if with_time else ''}\n".encode())
    return digest.hexdigest()


def _image_folder(name: str, root: Path, images: list[Path], config: DataConfig) -> Source:
    """Class folders, split folders of class folders, or images without classes."""
    import datasets

    tops = {f.relative_to(root).parts[0] for f in images if len(f.relative_to(root).parts) > 1}
    splitting = bool(tops) and all(t.lower() in _SPLIT_WORDS for t in tops)
    rows: dict[str, list[tuple[Path, str]]] = {}
    for file in images:
        parts = file.relative_to(root).parts
        split = _SPLIT_WORDS[parts[0].lower()] if splitting and len(parts) > 1 else "train"
        folders = parts[1:-1] if splitting else parts[:-1]
        rows.setdefault(split, []).append((file, folders[0] if folders else ""))
    names = sorted({label for items in rows.values() for _, label in items if label})
    loose = [file for items in rows.values() for file, label in items if not label]
    if names and loose:
        raise DataError(
            f"{loose[0]} lies beside the class folders, so it has no class", "move it into the folder of its class"
        )
    tables, keys = {}, {}
    for split, items in rows.items():
        columns: dict[str, Any] = {"image": [str(file) for file, _ in items]}
        features = {"image": datasets.Image()}
        if names:
            index = {label: i for i, label in enumerate(names)}
            columns["label"] = [index[label] for _, label in items]
            features["label"] = datasets.ClassLabel(names=names)
        with _quiet():
            tables[split] = datasets.Dataset.from_dict(
                columns, features=datasets.Features(features), split=datasets.NamedSplit(split)
            )
        keys[split] = _stat_key(root, [file for file, _ in items])
    identity = _stat_key(root, images, with_time=False)
    return _source(name, str(root), tables, keys, config, identity=identity)


def _split_of(path: str) -> str:
    """The split that a shard's name or folder says, else train."""
    parts = re.split(r"[/\\]", path)
    for part in reversed(parts):
        word = re.match(r"[a-z]+", part.lower())
        if word and word[0] in _SPLIT_WORDS:
            return _SPLIT_WORDS[word[0]]
    return "train"


def _parquet(name: str, id_: str, root: Path, shards: list[Path], config: DataConfig) -> Source:
    groups: dict[str, list[Path]] = {}
    for shard in shards:
        groups.setdefault(_split_of(str(shard.relative_to(root))), []).append(shard)
    tables = {
        split: _load("parquet", f"the Parquet files of {id_}", data_files=[str(f) for f in files], split="train")
        for split, files in groups.items()
    }
    keys = {split: _stat_key(root, files) for split, files in groups.items()}
    return _source(name, id_, tables, keys, config, identity=_stat_key(root, shards, with_time=False))


def _file(path: Path, config: DataConfig) -> Source:
    if path.suffix == ".parquet":
        return _parquet(path.stem, str(path), path.parent, [path], config)
    if path.suffix in (".tar", ".zip", ".arrow"):
        builder = {".tar": "webdataset", ".zip": "imagefolder", ".arrow": "arrow"}[path.suffix]
        table = _load(builder, str(path), data_files=[str(path)], split="train")
        return _source(path.stem, str(path), {"train": table}, {"train": _stat_key(path.parent, [path])}, config)
    raise DataError(
        f"{path} is not a data set", "a file of data ends in .parquet, .tar, .zip or .arrow; a folder holds images"
    )


def _address(address: str, config: DataConfig) -> Source:
    """Parquet, tar or zip files, or a folder of them or of images, at an fsspec address."""
    import fsspec

    protocol = address.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        found = sorted(filesystem.glob(path) if "*" in path else filesystem.find(path))
    except Exception as error:
        raise DataError(
            f"cannot reach {address}: {_first_line(error)}",
            "is the address right, its fsspec package installed, and the network there?",
        ) from None
    full = [f if "://" in f else f"{protocol}://{f}" for f in found]
    name = re.sub(r"\W+", "-", address.rstrip("/").rpartition("/")[2].removesuffix(".parquet")).strip("-") or protocol
    shards = [f for f in full if f.endswith(".parquet")]
    if shards:
        groups: dict[str, list[str]] = {}
        for shard in shards:
            groups.setdefault(_split_of(shard.partition("://")[2]), []).append(shard)
        tables = {split: _load("parquet", address, data_files=files, split="train") for split, files in groups.items()}
        return _source(name, address, tables, {s: t._fingerprint for s, t in tables.items()}, config)
    for ending, builder in ((".tar", "webdataset"), (".zip", "imagefolder")):
        if any(f.endswith(ending) for f in full):
            table = _load(builder, address, data_files=[f for f in full if f.endswith(ending)], split="train")
            return _source(name, address, {"train": table}, {"train": table._fingerprint}, config)
    images = [f for f in full if f.lower().endswith(IMAGE_ENDINGS)]
    if not images:
        raise DataError(f"{address} has no Parquet files, archives or images")
    found_table = _load("imagefolder", address, data_files=images, split="train", drop_labels=False)
    return _source(name, address, {"train": found_table}, {"train": found_table._fingerprint}, config)


def _hub(text: str, config: DataConfig, preset: Preset | None) -> Source:
    """A hub data set: from the hub, or from its local cache where the hub cannot be reached."""
    import datasets

    rest, _, subset = text.partition(":")
    rest, _, revision = rest.partition("@")
    name, hub_id = rest.rpartition("/")[2], rest
    if preset is not None:
        name, hub_id, subset = text, preset.hub, preset.config
    revision = revision or config.revision
    folder = _cached_snapshot(hub_id, revision)
    offline = datasets.config.HF_HUB_OFFLINE
    found: Any = None
    if not offline:
        try:
            with _quiet():
                found = datasets.load_dataset(hub_id, subset or None, revision=revision or None)
        except Exception as error:
            if folder is None:
                raise DataError(f"cannot load {hub_id} from the hub: {_first_line(error)}", _hub_hint(error)) from None
    if found is None:
        if folder is None:
            raise DataError(
                f"{hub_id} is not in the local cache, and HF_HUB_OFFLINE is set",
                "unset HF_HUB_OFFLINE to download it, or give a folder or Parquet files with --data",
            )
        found = _load_snapshot(folder, hub_id, subset)
    tables = dict(found)
    if folder is not None:
        revision = folder.name
    keys = {split: f"{hub_id}:{subset}:{split}:{table._fingerprint}" for split, table in tables.items()}
    if preset is not None:
        config = replace(
            config, image_column=config.image_column or preset.image, label_column=config.label_column or preset.label
        )
    source = _source(
        name,
        text,
        tables,
        keys,
        config,
        mirror=preset.mirror if preset else True,
        held_out=preset.held_out if preset else "",
        revision=revision,
        identity=f"hub:{hub_id}:{subset}:{revision}",
    )
    if preset is not None:
        source = _correct_preset(text, preset, source)
    return source


def _hub_hint(error: BaseException) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if any(
        word in text for word in ("connect", "resolve", "timeout", "offline", "network", "unreachable", "max retries")
    ):
        return "no network? set HF_HUB_OFFLINE=1 to use cached data only, or give a folder or Parquet files with --data"
    if any(word in text for word in ("gated", "401", "403", "authenticated", "private")):
        return "ask for access on its hub page, then log in with: hf auth login"
    return "check the id (user/name), its configuration (user/name:config) and revision (user/name@rev)"


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

    try:
        with _quiet():
            return datasets.load_dataset(str(folder), subset or None)
    except Exception as error:
        raise DataError(
            f"cannot read the cached {hub_id}: {_first_line(error)}",
            f"remove {folder} and load it again with a network",
        ) from None


def _correct_preset(text: str, preset: Preset, source: Source) -> Source:
    """What is known about a preset beyond its hub files."""
    named = source.classes
    if text == "cifar100":
        named = tuple(Class("crab") if c.name == "cra" else c for c in named)
    if text == "imagenet" and len(named) == 1000:
        named = class_names.imagenet_1k()
    return replace(source, classes=named, notes=(*source.notes, *([preset.note] if preset.note else [])))


# --- columns and labels ------------------------------------------------------------------------------------


def _source(
    name: str,
    id_: str,
    tables: dict[str, datasets.Dataset],
    keys: dict[str, str],
    config: DataConfig,
    *,
    mirror: bool = True,
    held_out: str = "",
    revision: str = "",
    identity: str = "",
) -> Source:
    """Splits with their columns found and their labels checked."""
    tables = {_SPLIT_WORDS.get(split, split): table for split, table in tables.items()}
    keys = {_SPLIT_WORDS.get(split, split): key for split, key in keys.items()}
    first = tables.get("train", next(iter(tables.values())))
    image_column = _image_column(first, config.image_column, id_)
    label_column = _label_column(first, config.label_column, image_column, id_)
    named, as_index = _classes(tables, label_column)
    splits = {}
    for split, table in tables.items():
        labels = None
        if label_column and label_column in table.column_names:
            labels = _labels(table, label_column, as_index, len(named), f"{id_}, split {split!r}")
        splits[split] = Split(
            split,
            _raw_images(table, image_column, split),
            image_column,
            np.arange(len(table), dtype=np.int64),
            labels,
            keys[split],
        )
    splits = {s: part for s, part in splits.items() if len(part)}
    if not splits:
        raise DataError(f"{id_} is empty")
    candidates = [
        s for s in (held_out, "test", "validation") if s in splits and splits[s].labels is not None and s != "train"
    ]
    if len(splits) == 1:
        candidates = []
    notes = (
        ()
        if candidates
        else (
            f"{id_} has no test split: {TEST_FRACTION:.0%} of every class of {next(iter(splits))!r} is held out, always the same",
        )
    )
    return Source(
        re.sub(r"[^\w.-]+", "-", name).strip("-") or "data",
        id_,
        revision,
        identity or _digest(keys),
        named,
        splits,
        mirror,
        candidates[0] if candidates else "",
        notes,
    )


def _digest(keys: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{k}={v}" for k, v in sorted(keys.items())).encode()).hexdigest()


def _image_column(table: datasets.Dataset, wanted: str, id_: str) -> str:
    import datasets
    import pyarrow as pa

    if wanted:
        if wanted not in table.column_names:
            raise DataError(f"{id_} has no column {wanted!r}", did_you_mean(wanted, table.column_names))
        return wanted
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
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


def _label_column(table: datasets.Dataset, wanted: str, image_column: str, id_: str) -> str:
    """The one column of class labels; empty where there is none."""
    import datasets

    if wanted:
        if wanted not in table.column_names:
            raise DataError(f"{id_} has no column {wanted!r}", did_you_mean(wanted, table.column_names))
        return wanted
    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
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


def _classes(tables: dict[str, datasets.Dataset], column: str) -> tuple[tuple[Class, ...], dict[Any, int] | None]:
    """The classes, and for a column that is not of class labels the index of each value."""
    import datasets

    if not column:
        return (), None
    for table in tables.values():
        feature = table.features.get(column)
        if isinstance(feature, datasets.ClassLabel):
            return tuple(Class(str(n)) for n in feature.names), None
    values = {v for t in tables.values() if column in t.column_names for v in _column(t, column).unique().to_pylist()}
    wrong = next((v for v in values if v is not None and not isinstance(v, (int, str, bool))), None)
    if wrong is not None:
        raise DataError(f"column {column!r} holds {wrong!r}, not a class", "labels are class labels, integers or text")
    ordered = sorted((v for v in values if v is not None and v != -1), key=lambda v: (isinstance(v, str), v))
    return tuple(Class(str(v)) for v in ordered), {v: i for i, v in enumerate(ordered)}


def _labels(
    table: datasets.Dataset, column: str, as_index: dict[Any, int] | None, count: int, where: str
) -> Labels | None:
    """Labels 0..count-1, or None where every one of them is missing. Raises DataError with the row of a wrong one."""
    values = _column(table, column)
    if as_index is not None:
        labels = np.array([as_index.get(v, -1) for v in values.to_pylist()], np.int64)
    else:
        labels = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong) == len(labels):
        return None
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {row} has label {values[row].as_py()!r}, not one of the {count} classes "
            f"({len(wrong)} such row{'s' * (len(wrong) > 1)})",
            "correct or remove these rows",
        )
    return labels


def _raw_images(table: datasets.Dataset, column: str, split: str) -> datasets.Dataset:
    """The image column alone, undecoded."""
    import datasets

    table = table.select_columns([column])
    try:
        return table.cast_column(column, datasets.Image(decode=False)).with_format(None)
    except Exception as error:
        raise DataError(
            f"column {column!r} of split {split!r} does not hold images: {_first_line(error)}",
            "name the column of images with --set data.image_column=…",
        ) from None
