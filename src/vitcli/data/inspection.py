"""What is in a data set: classes, sizes, what cannot be read, what is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.config import DataConfig
from vitcli.data.colour import BadImage
from vitcli.data.decode import open_rgb
from vitcli.data.duplicates import SIDE, equal_groups, groups_of, near_pairs, thumb_of
from vitcli.data.split import Source, Split, class_counts
from vitcli.progress import Progress, silent

_CHUNK = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection:
    """All images of all splits, one after the other: `split` and `position` say which, `part` is trained on (train) or held out (test).

    `sizes` are [height, width], 0 of an image that cannot be read, whose place and reason `faults` has.
    """

    source: Source
    splits: tuple[Split, ...]
    split: NDArray[np.int64]
    position: NDArray[np.int64]
    part: NDArray[np.str_]
    sizes: NDArray[np.int64]
    faults: tuple[tuple[int, str], ...]
    exact: tuple[list[int], ...]
    near: tuple[list[int], ...]

    @property
    def readable(self) -> list[NDArray[np.int64]]:
        """For each split the positions of its images that can be read."""
        whole = self.sizes[:, 0] > 0
        return [self.position[(self.split == i) & whole] for i in range(len(self.splits))]

    @cached_property
    def _paths(self) -> list[list[str | None]]:
        return [split.paths(np.arange(len(split))) for split in self.splits]

    def row(self, index: int) -> dict[str, Any]:
        """Where an image is: `split`, `row` of its table, `part`, `path` where it has one."""
        split, position = self.splits[self.split[index]], int(self.position[index])
        path = self._paths[self.split[index]][position]
        found: dict[str, Any] = {"split": split.name, "row": int(split.rows[position]), "part": str(self.part[index])}
        return found | ({"path": path} if path else {})

    def leaked(self) -> NDArray[np.bool_]:
        """Which held-out images are, byte for byte or nearly, trained on as well."""
        result = np.zeros(len(self.split), bool)
        for group in (*self.exact, *self.near):
            if (self.part[group] == "train").any():
                result[[i for i in group if self.part[i] == "test"]] = True
        return result

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit data --json`."""
        groups = [("exact", group) for group in self.exact] + [("near", group) for group in self.near]
        return {
            "data": self.source.id,
            "splits": [self._split(split) for split in self.splits],
            "unreadable": [self.row(index) | {"reason": reason} for index, reason in self.faults],
            "left_out": [{"ending": ending, "n": n} for ending, n in self.source.left_out],
            "sizes": self._sizes(),
            "duplicates": [
                {"kind": kind, "across": len(set(self.part[group])) > 1, "rows": [self.row(i) for i in group]}
                for kind, group in groups
            ],
            "leaked": int(self.leaked().sum()),
        }

    def _split(self, split: Split) -> dict[str, Any]:
        counts = class_counts(split, len(self.source.classes)).tolist() if split.is_labelled else []
        classes = [c.as_json() | {"n": n} for c, n in zip(self.source.classes, counts, strict=False)]
        return {"name": split.name, "rows": len(split), "classes": classes}

    def _sizes(self) -> dict[str, Any] | None:
        """The smallest, median and largest size by area, and how many images have the commonest."""
        sizes = self.sizes[self.sizes[:, 0] > 0]
        if not len(sizes):
            return None
        order = np.lexsort((sizes[:, 0], sizes.prod(1)))
        commonest, n = Counter(map(tuple, sizes.tolist())).most_common(1)[0]
        named = {"smallest": order[0], "median": order[(len(order) - 1) // 2], "largest": order[-1]}
        found: dict[str, Any] = {name: sizes[place].tolist() for name, place in named.items()}
        return found | {"commonest": list(commonest), "of_commonest": n}


def inspect(source: Source, config: DataConfig, near: bool = True, progress: Progress = silent) -> Inspection:
    """Look at every image once. `near` looks for near duplicates, too (duplicates.py). Raises DataError."""
    splits = tuple(source.splits.values())
    where = np.concatenate([np.full(len(split), i, np.int64) for i, split in enumerate(splits)])
    positions = np.concatenate([np.arange(len(split)) for split in splits])
    thumbs, sizes, faults = _seen(splits, config, near, progress)
    digests = np.concatenate([split.digests(progress) for split in splits])
    digests = np.where(sizes[:, 0] > 0, digests, np.uint64(0))  # what is no image is no copy of another
    exact = tuple(equal_groups(digests))
    copies = np.isin(np.arange(len(digests)), [i for group in exact for i in group[1:]])
    kept = np.flatnonzero((sizes[:, 0] > 0) & ~copies)
    pairs = kept[near_pairs(thumbs[kept], progress)] if near else np.zeros((0, 2), np.int64)
    same = [(group[0], other) for group in exact for other in group[1:]]
    joined = np.concatenate([pairs, np.array(same, np.int64).reshape(-1, 2)])
    among = {int(i) for i in pairs.ravel()}
    return Inspection(
        source=source,
        splits=splits,
        split=where,
        position=positions,
        part=_parts(source, splits, config, progress),
        sizes=sizes,
        faults=faults,
        exact=exact,
        near=tuple(group for group in groups_of(joined, len(digests)) if among & set(group)),
    )


def _parts(source: Source, splits: Sequence[Split], config: DataConfig, progress: Progress) -> NDArray[np.str_]:
    """Of each image whether training takes it, reports are of it, or neither."""
    held = source.held_out(progress=progress)
    trained = source.train(config.train_split, progress=progress)
    parts = []
    for split in splits:
        rows = np.full(len(split), "unused", "<U6")
        for name, part in (("train", trained), ("test", held)):
            if part.table is split.table:
                rows[np.isin(split.rows, part.rows)] = name
        parts.append(rows)
    return np.concatenate(parts)


def _seen(
    splits: Sequence[Split], config: DataConfig, near: bool, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[tuple[int, str], ...]]:
    """Thumbs, sizes and faults of every image, by threads."""
    count = sum(map(len, splits))
    thumbs = np.zeros((count if near else 0, SIDE, SIDE, 3), np.uint8)
    sizes, faults = np.zeros((count, 2), np.int64), []
    begins = np.cumsum([0, *map(len, splits)])
    chunks = [
        (split, int(begin), np.arange(start, min(start + _CHUNK, len(split))))
        for split, begin in zip(splits, begins, strict=False)
        for start in range(0, len(split), _CHUNK)
    ]

    def look(chunk: tuple[Split, int, NDArray[np.int64]]) -> list[tuple[int, str]]:
        split, begin, positions = chunk
        bad = []
        for place, (blob, path) in zip(begin + positions, split.blobs(positions), strict=True):
            try:
                if blob is None:
                    raise BadImage(f"{path} cannot be opened" if path else "no image")
                image, size = open_rgb(blob, config.max_megapixels, draft=(2 * SIDE, 2 * SIDE))
                sizes[place] = size
                if near:
                    thumbs[place] = thumb_of(image)
            except BadImage as error:
                bad.append((int(place), str(error)))
        return bad

    done = 0
    with ThreadPoolExecutor(config.workers or None) as pool:
        for chunk, bad in zip(chunks, pool.map(look, chunks), strict=True):
            faults += bad
            done += len(chunk[2])
            progress("looking", done, count)
    return thumbs, sizes, tuple(faults)
