"""What DATA names, by way of Hugging Face `datasets`.

`digits`, a preset, a hub id, a folder of class folders, a flat folder, Parquet files, an archive, a saved data set or an
fsspec address all become a `Source`. Columns are found by their type, not by their name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcli import classes as class_names
from vitcli import hub
from vitcli.classes import Class
from vitcli.config import DataConfig
from vitcli.data.columns import SPLIT_WORDS, first_line, make_source
from vitcli.data.split import Source
from vitcli.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")


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
    try:
        path = Path(text).expanduser().resolve()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"no data set {text[:80]!r}: {str(error)[:80]}", "name digits, a preset, a folder, a file or a hub id"
        ) from None
    if is_folder:
        return _folder(path, config)
    if is_file:
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
    return make_source("digits", "digits", {"train": table}, {"train": "digits-1"}, DataConfig(), mirror=False)


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
            f"cannot read {what}: {first_line(error)}", "is it whole, and in the format its name says?"
        ) from None


def _folder(root: Path, config: DataConfig) -> Source:
    import datasets

    name = root.name
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        try:
            saved = datasets.load_from_disk(str(root))
        except Exception as error:
            raise DataError(
                f"cannot read the saved data set {root}: {first_line(error)}",
                "is it whole? datasets.load_from_disk should read it",
            ) from None
        tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        key = _stat_key(root, sorted(root.rglob("*.arrow")))
        return make_source(name, str(root), tables, dict.fromkeys(tables, key), config)
    files = _walk(root)
    shards = [f for f in files if f.suffix == ".parquet"]
    if shards:
        return _parquet(name, str(root), root, shards, config)
    images = [f for f in files if f.suffix.lower() in IMAGE_ENDINGS]
    if any(f.name in ("metadata.csv", "metadata.jsonl", "metadata.parquet") for f in files):
        found = _load("imagefolder", f"the image folder {root}", data_dir=str(root))
        key = _stat_key(root, files)
        return make_source(name, str(root), dict(found), dict.fromkeys(found, key), config)
    if not images:
        raise DataError(
            f"{root} has no images and no Parquet files",
            "images lie in a folder a class, such as cats/1.jpg, or train/cats/1.jpg and test/cats/2.jpg",
        )
    return _image_folder(name, root, images, config)


def _walk(root: Path) -> list[Path]:
    """Every file below `root` in a fixed order, hidden ones and __MACOSX left out, links followed but for those that
    lead back up.
    """
    found: list[Path] = []
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        visible = sorted(n for n in names if not n.startswith((".", "__MACOSX")))
        names[:] = [n for n in visible if not here.is_relative_to((here / n).resolve())]
        found += [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
    return sorted(found)


def _stat_key(root: Path, files: Sequence[Path], *, here: bool = True) -> str:
    """A digest of names and sizes, and with `here` of the place and the times of change."""
    digest = hashlib.sha256(str(root).encode() if here else b"")
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}", "a link that leads nowhere? remove it") from None
        digest.update(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns if here else ''}\n".encode())
    return digest.hexdigest()


Groups = dict[str, list[tuple[str, str]]]
"""(address, class) of images by split; the class is empty where there is none."""


def _grouped(what: str, images: Sequence[tuple[str, tuple[str, ...]]]) -> Groups:
    """Images given as (address, the parts of its path below the root): in class folders, in split folders of class
    folders, or without classes. Raises DataError for an image beside class folders.
    """
    tops = {parts[0] for _, parts in images if len(parts) > 1}
    splitting = bool(tops) and all(t.lower() in SPLIT_WORDS for t in tops)
    groups: Groups = {}
    for address, parts in images:
        split = SPLIT_WORDS[parts[0].lower()] if splitting and len(parts) > 1 else "train"
        folders = parts[1:-1] if splitting else parts[:-1]
        groups.setdefault(split, []).append((address, folders[0] if folders else ""))
    named = any(label for items in groups.values() for _, label in items)
    loose = [address for items in groups.values() for address, label in items if not label]
    if named and loose:
        raise DataError(
            f"{loose[0]} lies beside the class folders of {what}, so it has no class",
            "move it into the folder of its class",
        )
    return groups


def _image_tables(groups: Groups) -> dict[str, datasets.Dataset]:
    """A table a split, with a column of classes where there are any."""
    import datasets

    names = sorted({label for items in groups.values() for _, label in items if label})
    index = {label: i for i, label in enumerate(names)}
    tables = {}
    for split, items in groups.items():
        columns: dict[str, Any] = {"image": [address for address, _ in items]}
        features = {"image": datasets.Image()}
        if names:
            columns["label"] = [index[label] for _, label in items]
            features["label"] = datasets.ClassLabel(names=names)
        with _quiet():
            tables[split] = datasets.Dataset.from_dict(
                columns, features=datasets.Features(features), split=datasets.NamedSplit(split)
            )
    return tables


def _image_folder(name: str, root: Path, images: list[Path], config: DataConfig) -> Source:
    groups = _grouped(str(root), [(str(file), file.relative_to(root).parts) for file in images])
    keys = {split: _stat_key(root, [Path(address) for address, _ in items]) for split, items in groups.items()}
    identity = _stat_key(root, images, here=False)
    return make_source(name, str(root), _image_tables(groups), keys, config, identity=identity)


def _split_of(path: str) -> str:
    """The split that a word of a shard's name, or of its nearest folder, says; else train."""
    for part in reversed(re.split(r"[/\\]", path)):
        for word in re.findall(r"[a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return "train"


def _shard_groups(shards: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Addresses by split of Parquet files given as (address, path below the root)."""
    groups: dict[str, list[str]] = {}
    for address, path in shards:
        groups.setdefault(_split_of(path), []).append(address)
    return groups


def _shard_tables(what: str, groups: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    return {split: _load("parquet", what, data_files={split: files}, split=split) for split, files in groups.items()}


def _parquet(name: str, id_: str, root: Path, shards: list[Path], config: DataConfig) -> Source:
    groups = _shard_groups([(str(f), str(f.relative_to(root))) for f in shards])
    keys = {split: _stat_key(root, [Path(f) for f in files]) for split, files in groups.items()}
    tables = _shard_tables(f"the Parquet files of {id_}", groups)
    return make_source(name, id_, tables, keys, config, identity=_stat_key(root, shards, here=False))


def _file(path: Path, config: DataConfig) -> Source:
    if path.suffix == ".parquet":
        return _parquet(path.stem, str(path), path.parent, [path], config)
    if path.suffix == ".zip":
        tables = _zip_tables(path)
    elif path.suffix in (".tar", ".arrow"):
        builder = {".tar": "webdataset", ".arrow": "arrow"}[path.suffix]
        tables = {"train": _load(builder, str(path), data_files=[str(path)], split="train")}
    else:
        raise DataError(
            f"{path} is not a data set", "a file of data ends in .parquet, .tar, .zip or .arrow; a folder holds images"
        )
    key, identity = _stat_key(path.parent, [path]), _stat_key(path.parent, [path], here=False)
    return make_source(path.stem, str(path), tables, dict.fromkeys(tables, key), config, identity=identity)


def _zip_tables(path: Path) -> dict[str, datasets.Dataset]:
    """Images in an archive laid out as an image folder, alone or below one folder of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(n for n in archive.namelist() if n.lower().endswith(IMAGE_ENDINGS))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}", "is it whole?") from None
    parts = [tuple(p for p in name.split("/") if p) for name in members]
    kept = [i for i, p in enumerate(parts) if not any(q.startswith((".", "__MACOSX")) for q in p)]
    if not kept:
        raise DataError(f"{path} has no images", f"images end in {', '.join(IMAGE_ENDINGS[:5])} …")
    wrapped = len({parts[i][0] for i in kept}) == 1 and all(len(parts[i]) > 2 for i in kept)
    images = [(f"zip://{members[i]}::{path}", parts[i][1:] if wrapped else parts[i]) for i in kept]
    return _image_tables(_grouped(str(path), images))


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
    images = [(full, tuple(below.split("/"))) for full, below in pairs if full.lower().endswith(IMAGE_ENDINGS)]
    if shards:
        tables = _shard_tables(address, _shard_groups([(full, below or full) for full, below in shards]))
    elif archives:
        tables = {"train": _load("webdataset", address, data_files=archives, split="train")}
    elif images:
        tables = _image_tables(_grouped(address, images))
    else:
        raise DataError(
            f"{address} has no Parquet files, tar archives or images", "name the folder that holds them, or a pattern"
        )
    return make_source(name, address, tables, {s: t._fingerprint for s, t in tables.items()}, config)


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
    tables = dict(found)
    if folder is not None:
        revision = folder.name
    keys = {split: f"{hub_id}:{subset}:{split}:{table._fingerprint}" for split, table in tables.items()}
    if preset is not None:
        config = replace(
            config, image_column=config.image_column or preset.image, label_column=config.label_column or preset.label
        )
    source = make_source(
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


def _from_hub(hub_id: str, subset: str, revision: str) -> Any:
    """A data set from the hub, or from the local cache where the hub cannot be asked. Raises DataError."""
    import datasets

    offline = hub.is_offline()
    obstacle = None if offline else hub.obstacle(hub_id, "dataset", revision)
    if not offline and obstacle is None:
        try:
            with _quiet():
                return datasets.load_dataset(hub_id, subset or None, revision=revision or None)
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
