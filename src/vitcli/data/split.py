"""Splits of a data set: rows of a table of images, with labels or without."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitcli.classes import Class
from vitcli.config import Size
from vitcli.data.decode import native_size, read_file
from vitcli.data.identity import Contents, Digests, Record
from vitcli.data.layout import meaning_of
from vitcli.errors import DataError, UsageError, did_you_mean
from vitcli.progress import Progress, silent
from vitcli.randomness import permutation

if TYPE_CHECKING:
    import datasets

    from vitcli.data.stream import Stream

NOTHING = Record()
"""No image has trained anything yet."""

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

MOST_DEV = 2000
"""Images that are kept back from training at most: of so many a top-1 of 0.7 is known to within one point."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a table. `labels` is aligned with `rows`; None where the images have none. Where an image may show several classes or
    none, `sets` says which, a row an image, and there are no labels.
    """

    name: str
    table: datasets.Dataset
    image_column: str
    rows: Rows
    labels: Labels | None
    contents: Contents  # shared by all parts of the table
    sets: NDArray[np.bool_] | None = field(default=None, kw_only=True)

    @property
    def is_labelled(self) -> bool:
        return self.labels is not None or self.sets is not None

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Rows, name: str = "") -> Split:
        labels = None if self.labels is None else self.labels[positions]
        sets = None if self.sets is None else self.sets[positions]
        return replace(self, rows=self.rows[positions], labels=labels, name=name or self.name, sets=sets)

    def blobs(self, positions: Rows) -> list[tuple[bytes | None, str]]:
        """The encoded image and its path (empty: none) at each position."""
        return self._blobs(self.rows[positions].tolist())

    def _blobs(self, rows: list[int]) -> list[tuple[bytes | None, str]]:
        """Of rows of the table. Raises DataError for a row that names what it may not."""
        found = []
        for row, item in zip(rows, self.table[rows][self.image_column], strict=True):
            blob, path = (item.get("bytes"), path_in(item.get("path") or "")) if isinstance(item, dict) else (None, "")
            if blob is None and path:
                local = self.contents.local(path)
                if not local:
                    raise not_beside(row, self.table_name, path)
                blob, path = _read(local), local
            found.append((blob, path))
        return found

    def paths(self, positions: Rows) -> list[str | None]:
        """The path of the image at each position, where it has one."""
        if not len(positions):
            return []
        alone = self.table.select_columns([self.image_column]).flatten()  # so that no image's bytes are read
        column = f"{self.image_column}.path"
        if column not in alone.column_names:
            return [None] * len(positions)
        found = alone.select_columns([column]).select(self.rows[positions])[column]
        return [path and path_in(path) for path in found]

    def digests(self, progress: Progress = silent) -> Digests:
        """What the image at each position is, wherever it lies; 0 for one that cannot be opened. Reads each file once."""

        def read(rows: Rows) -> list[bytes | None]:
            return [blob for blob, _ in self._blobs(rows.tolist())]

        return self.contents.digests(self.rows, read, progress)

    def path_of(self, position: int) -> str:
        """The path of an image's file, empty where it has none."""
        item = self.table[int(self.rows[position])][self.image_column]
        return path_in(item.get("path") or "") if isinstance(item, dict) else ""

    def describe(self, position: int) -> str:
        """The split and row of an image, and its path where it has one, for messages."""
        path = self.path_of(position)
        where = f"row {int(self.rows[position])} of split {self.table_name!r}"
        if path and (Path(path).is_absolute() or "://" in path):
            return f"{path} ({where})"
        return where + (f" ({path})" if path else "")

    @property
    def table_name(self) -> str:
        return str(self.table.split or self.name)


def class_counts(part: Split, classes: int) -> NDArray[np.int64]:
    """How many images of a labelled split show each class."""
    if part.sets is not None:
        return part.sets.sum(0)
    assert part.labels is not None
    return np.bincount(part.labels, minlength=classes)


def not_beside(row: int, split: str, path: str) -> DataError:
    """What is wrong with a row that names an address, or a file elsewhere."""
    return DataError(
        f"row {row} of split {split!r} names {path[:200]!r}, which is not beside its table",
        "rows hold an image's bytes, or name a file in the table's own folder",
    )


def as_text(path: str) -> str:
    """A path as Arrow holds text: one that is not UTF-8 as the hexadecimal of its bytes, behind a NUL, which no path has."""
    if path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path):
        return path
    return "\0" + os.fsencode(path).hex()


def path_in(text: str) -> str:
    """The inverse of `as_text`."""
    if not text.startswith("\0"):
        return text
    with contextlib.suppress(ValueError):
        return os.fsdecode(bytes.fromhex(text[1:]))
    return text


def _read(path: str) -> bytes | None:
    """The bytes at a path or an address; None where they cannot be had."""
    if "://" not in path:
        with contextlib.suppress(OSError, ValueError):
            return read_file(path)
        return None
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except Exception:  # each kind of address has errors of its own, and each means that the image cannot be had
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """What DATA named. Where `held_out_split` is empty, a part is held out of the images that are trained on."""

    name: str  # short, for run folders
    id: str  # what --data takes to find it again
    revision: str
    classes: tuple[Class, ...]
    splits: dict[str, Split]
    mirror: bool = True
    held_out_split: str = ""
    notes: tuple[str, ...] = field(default=())
    left_out: tuple[tuple[str, int], ...] = ()  # endings of files that are no images, and how many
    stream: Stream | None = None  # what is trained on, where data.stream asks for that; then it is in no split
    known_as: str = ""  # what its images are, where that is known without reading them: a revision of a hub's

    def identity(self, progress: Progress = silent) -> str:
        """Of the images and labels of every split, in order, wherever they lie."""
        if self.known_as:
            return self.known_as
        digest = hashlib.sha256()
        names = np.array([c.id or c.name for c in self.classes] or [""])
        for split, part in sorted(self.splits.items()):
            labels = [] if part.labels is None else names[part.labels].tolist()
            digest.update(json.dumps([split, len(part), labels]).encode("utf-8", "surrogateescape"))
            if part.sets is not None:
                digest.update("\0".join(names).encode("utf-8", "surrogateescape") + np.packbits(part.sets).tobytes())
            digest.update(part.digests(progress).tobytes())
        return digest.hexdigest()

    @property
    def train_split(self) -> str:
        """The split that is trained on where none is named: `train`, else the first that is not reported on, with labels if any has."""
        others = [s for s in self.splits if s != self.held_out_split]
        if not others and self.stream is not None:
            raise UsageError(
                "data.stream: only vit pretrain and vit finetune read the images of a stream", "leave data.stream out"
            )
        labelled = [s for s in others if self.splits[s].is_labelled]
        return "train" if "train" in self.splits else [*labelled, *others][0]

    def train(self, name: str = "", trained: Record = NOTHING, progress: Progress = silent) -> Split:
        """The training images: the split `name`, else `train`, less what is held out of it.

        Raises DataError, and UsageError for the split that results are reported on.
        """
        carved = () if self.held_out_split else tuple({"test", "all"} - self.splits.keys())
        if name and (self._spelled(name) in carved or self._spelled(name) == self.held_out_split):
            others = ", ".join(s for s in self.splits if s != self.held_out_split)
            raise UsageError(
                f"data.train_split = {name}: results are reported on {'part of ' * (name == 'all')}that split, "
                "so it cannot be trained on as well",
                f"leave it out, or name another: {others}",
            )
        part = self.whole(name or self.train_split)
        return part if self.held_out_split else carve(part, trained, progress)[0]

    def held_out(self, trained: Record = NOTHING, progress: Progress = silent) -> Split:
        """What results are reported on: the data's own split, else a part of every class by a rule of each image alone.

        Images that `trained` names are in no such part.
        """
        if self.held_out_split:
            return self.whole(self.held_out_split)
        return carve(self.splits[self.train_split], trained, progress)[1]

    def split(self, name: str, trained: Record = NOTHING, progress: Progress = silent) -> Split:
        """A split by its name; `all` is every labelled row of data that have no split to report on. Raises DataError."""
        name = self._spelled(name)
        if name == "all" and "all" not in self.splits and not self.held_out_split:
            return self.splits[self.train_split]
        if not self.held_out_split and name in ("train", "test"):
            return self.train("", trained, progress) if name == "train" else self.held_out(trained, progress)
        return self.whole(name)

    def _spelled(self, name: str) -> str:
        """A split's name as the data have it: what stands in a folder called `val` is `validation`."""
        meaning = meaning_of(name)
        known = {*self.splits, *(() if self.held_out_split else ("train", "test"))}
        return meaning.split if name not in known and meaning and not meaning.rest and meaning.split in known else name

    def whole(self, name: str) -> Split:
        """A split as the data have it, nothing held out of it. Raises DataError."""
        name = self._spelled(name)
        if name not in self.splits and self.stream is not None:
            raise DataError(
                f"{self.id} is a stream, whose images are trained on and not looked at otherwise",
                "leave data.stream out",
            )
        if name not in self.splits:
            known = [*self.splits, *([] if self.held_out_split else ["train", "test", "all"])]
            raise DataError(f"{self.id} has no split {name[:200]!r}", did_you_mean(name, set(known)))
        return self.splits[name]


def carve(part: Split, trained: Record = NOTHING, progress: Progress = silent) -> tuple[Split, Split]:
    """(rest, held out). An image's part follows from its name or content alone (identity.py), so data may grow.

    Every class keeps an image to be trained on, and of two or more holds one out. The same bytes are never in both
    parts, and no image that `trained` an earlier run is held out.
    """
    digests = part.digests(progress)
    held = part.contents.held_out(part.rows, digests)
    if part.contents.held is None:
        known = trained.contains(digests)
        held &= ~known
        held &= ~_copies(digests, held)
        classes = part.labels if part.labels is not None else np.zeros(len(part), np.int64)
        order, copies = by_digest(classes, digests), _Copies(digests)
        members = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1) if len(order) else []
        for each in members:
            fresh = each[~known[each] & (digests[each] != 0)]
            if len(fresh) and not held[each].any() and (digests[each] != digests[fresh[0]]).any():
                held[copies.of(fresh[0])] = True
        for each in members:
            if held[each].all():
                held[copies.of(each[-1])] = False
    return part.subset(np.flatnonzero(~held), "train"), part.subset(np.flatnonzero(held), "test")


def also_trained(held_out: Split, train: Split, record: Record, progress: Progress = silent) -> list[str]:
    """Warnings of images that results are reported on and that are, byte for byte, trained on here or were before, or of none."""
    if not len(held_out):
        return ["no image is held out, as each class has one alone or they are copies: nothing is measured"]
    measured, trained = held_out.digests(progress), train.digests(progress)
    here = int((np.isin(measured, trained) & (measured != 0)).sum())
    before = record.among(measured)
    said = []
    if here:
        said.append(f"{here:,} of the {len(held_out):,} images of {held_out.name!r} are byte for byte training images")
    if before:
        said.append(f"{before:,} of the {len(held_out):,} images of {held_out.name!r} trained the checkpoint before")
    return said


def _copies(digests: Digests, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each image has the bytes of one that is not `held`."""
    return np.isin(digests, digests[~held]) & (digests != 0)


class _Copies:
    """Where the images lie that share their bytes, found without a look at all of them."""

    def __init__(self, digests: Digests) -> None:
        self.digests, self.order = digests, np.argsort(digests, kind="stable")
        self.ordered = digests[self.order]

    def of(self, position: int) -> Rows:
        wanted = self.digests[position]
        first, last = (np.searchsorted(self.ordered, wanted, side) for side in ("left", "right"))
        return self.order[first:last]


def by_digest(classes: Labels, digests: Digests) -> Rows:
    """Positions one class after the other, within each by what the images are."""
    return np.lexsort((digests, classes))


def by_class(labels: Labels, purpose: str) -> Rows:
    """Positions one class after the other, shuffled within each, the same whatever the run's seed."""
    order = permutation(0, purpose, 0, len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def folds_of(labels: Labels, count: int, purpose: str) -> Rows:
    """The fold of each label, 0..count-1, in which every class has its share to within one image."""
    fold = np.empty(len(labels), np.int64)
    fold[by_class(labels, purpose)] = np.arange(len(labels)) % count
    return fold


def stratified(labels: Labels, count: int, purpose: str) -> Rows:
    """`count` positions, in order, in which every class has its share to within one image."""
    places = (np.arange(count) + 0.5) * len(labels) / count
    return np.sort(by_class(labels, purpose)[places.astype(np.int64)])


def dev_split(part: Split, fraction: float) -> tuple[Split, Split]:
    """(rest, dev): training images kept back to choose by, a seeded part of every class, at most MOST_DEV of them."""
    assert part.labels is not None
    count = min(MOST_DEV, round(fraction * len(part)))
    held = np.zeros(len(part), bool)
    held[stratified(part.labels, count, "dev")] = True
    held &= np.isin(part.labels, part.labels[~held])  # a class keeps an image to be trained on
    held &= ~_copies(part.digests(), held)  # a copy of an image that is trained on says nothing
    return part.subset(np.flatnonzero(~held)), part.subset(np.flatnonzero(held), "dev")


def fraction_of(part: Split, fraction: float, seed: int) -> Split:
    """A seeded part of the rows: of every class the same share to within one image, but never none of it. A smaller fraction lies
    within a larger one.

    The images of a class wait in line at equal distances from 0 to 1, and those before `fraction` are taken. Lines begin at
    places of their own, so that what many small classes lose or gain by whole images evens out.
    """
    if fraction >= 1:
        return part
    order = permutation(seed, "fraction", 0, len(part))
    if part.labels is None:
        return part.subset(np.sort(order[: max(1, round(fraction * len(part)))]))
    _, classes, counts = np.unique(part.labels, return_inverse=True, return_counts=True)
    line = order[np.argsort(classes[order], kind="stable")]
    place = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = (permutation(seed, "fraction-classes", 0, len(counts)) + 0.5) / len(counts)
    taken = (place + np.repeat(begin, counts)) / np.repeat(counts, counts) < fraction
    return part.subset(np.sort(line[taken | (place == 0)]))


def typical_size(part: Split, max_megapixels: float) -> tuple[Size, bool]:
    """(height, width) that 64 images spread over the split share, else their median, and whether they share it."""
    places = np.unique(np.linspace(0, len(part) - 1, 64).astype(np.int64))
    return usual_size((blob for blob, _ in part.blobs(places)), max_megapixels, f"in split {part.name!r}")


def usual_size(blobs: Iterable[bytes | None], max_megapixels: float, where: str) -> tuple[Size, bool]:
    """(height, width) that encoded images share, else their median, and whether they share it. Raises DataError where none can be read."""
    sizes: list[Size] = []
    for blob in blobs:
        with contextlib.suppress(Exception):
            size = native_size(blob or b"")
            if size[0] * size[1] <= max_megapixels * 1e6:
                sizes.append(size)
    if not sizes:
        raise DataError(f"none of the images looked at {where} can be read", "is this a data set of images?")
    heights, widths = np.median(np.array(sizes), axis=0).astype(int)
    return (int(heights), int(widths)), len(set(sizes)) == 1
