"""Training images that stay where they are: groups of rows of Parquet files, in an order that is arithmetic on (seed, epoch, place).

No row is looked at before its turn, and none is kept after it. The order holds for any number of processes and any place to go on from, and
each row comes once an epoch: `datasets`' own shuffled streams repeat and lose rows where they are resumed, and give the rows of few files to
few processes.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli.classes import Class
from vitcli.data.shards import Groups, Shards
from vitcli.errors import DataError
from vitcli.randomness import generator, permutation

if TYPE_CHECKING:
    import pyarrow as pa

Rows = NDArray[np.int64]

_LANES = 64
"""Places of the epoch that are read side by side, at most: the images of a batch come from so many groups of rows."""
_BUFFER_BYTES, _BUFFER_ROWS = 1 << 30, 16_384
"""That wait shuffled, over all lanes."""
_READERS = 8
"""Groups of rows that are read at the same time, where the number of workers is not said."""


# --- the order ---------------------------------------------------------------------------------------------


class StreamOrder:
    """Rows 0 .. n-1, shuffled anew each epoch, such that what is near in the order is near in the files.

    The groups of rows of an epoch stand in shuffled order, one behind the other. So many lanes part this sequence evenly, and a batch
    takes as many rows from each; each lane is shuffled within windows. A process that computes a part of every batch so reads a part of
    the groups. With `repeats`, each row comes so often in a row, as loader.Order has it.
    """

    def __init__(self, groups: Groups, batch_size: int, seed: int, repeats: int = 1) -> None:
        self.groups, self.seed, self.repeats, self.n = groups, seed, repeats, groups.total
        self.batch = max(1, batch_size // repeats)
        self.lanes = self._lanes()
        self.chunk = self.batch // self.lanes
        row = max(1.0, float(groups.bytes.sum()) / self.n)
        spare = max(0.0, _BUFFER_BYTES - self.lanes * float(groups.bytes.max()))
        self.window = max(self.chunk, int(min(_BUFFER_ROWS, spare / row)) // self.lanes)
        self._first = groups.first
        self._epoch = lru_cache(maxsize=2)(self._layout)
        self._shuffled = lru_cache(maxsize=4 * self.lanes)(self._shuffle)

    def _lanes(self) -> int:
        """A power of two that divides the batch, such that two of the largest groups a lane fit into the buffer."""
        fitting = _BUFFER_BYTES // (2 * max(1, int(self.groups.bytes.max())))
        lanes = math.gcd(self.batch, _LANES)
        while lanes > 1 and lanes > fitting:
            lanes //= 2
        return lanes

    def _layout(self, epoch: int) -> tuple[Rows, Rows, Rows]:
        """(groups in their order, where each begins in the sequence, where each lane begins and the last ends)."""
        order = permutation(self.seed, "groups", epoch, len(self.groups.rows))
        rows = self.groups.rows[order]
        whole, rest = divmod(self.n, self.batch)
        lengths = whole * self.chunk + np.clip(rest - np.arange(self.lanes) * self.chunk, 0, self.chunk)
        return order, np.cumsum(rows) - rows, np.concatenate([[0], np.cumsum(lengths)])

    def _shuffle(self, epoch: int, lane: int, window: int, size: int) -> Rows:
        return generator(self.seed, "window", epoch, lane, window).permutation(size)

    def _shift(self, lane: int) -> int:
        """So that the windows of different lanes end at different times."""
        return self.window * lane // self.lanes

    def _window(self, epoch: int, lane: int, window: int) -> tuple[int, int]:
        """Where a window lies in the sequence of its epoch."""
        _, _, lanes = self._epoch(epoch)
        first, last, shift = int(lanes[lane]), int(lanes[lane + 1]), self._shift(lane)
        return max(first, first + window * self.window - shift), min(last, first + (window + 1) * self.window - shift)

    def _placed(self, start: int, count: int) -> tuple[Rows, Rows, Rows, Rows]:
        """(epoch, lane, window, place in the lane) of places start .. start + count - 1."""
        places = np.arange(start, start + count)
        epochs, within = places // self.n, (places % self.n) // self.repeats
        turn, rest = divmod(within, self.batch)
        lanes, inner = divmod(rest, self.chunk)
        inner = turn * self.chunk + inner
        shifts = np.array([self._shift(lane) for lane in range(self.lanes)])
        return epochs, lanes, (inner + shifts[lanes]) // self.window, inner

    def take(self, start: int, count: int) -> tuple[Rows, Rows]:
        """(rows, epochs) at places start .. start + count - 1."""
        epochs, lanes, windows, inner = self._placed(start, count)
        rows = np.empty(count, np.int64)
        for epoch, lane, window in _different(epochs, lanes, windows):
            here = (epochs == epoch) & (lanes == lane) & (windows == window)
            order, begins, starts = self._epoch(epoch)
            low, high = self._window(epoch, lane, window)
            shuffled = low + self._shuffled(epoch, lane, window, high - low)[starts[lane] + inner[here] - low]
            at = np.searchsorted(begins, shuffled, "right") - 1
            rows[here] = self._first[order[at]] + shuffled - begins[at]
        return rows, epochs

    def copies(self, start: int, count: int) -> Rows:
        """Which of its repeats, from 0, a row is at each of these places."""
        return (np.arange(start, start + count) % self.n) % self.repeats

    def windows(self, start: int, count: int, chosen: NDArray[np.bool_]) -> set[int]:
        """The groups that the windows of the `chosen` ones of these places need."""
        epochs, lanes, windows, _ = self._placed(start, count)
        found: set[int] = set()
        for epoch, lane, window in _different(epochs[chosen], lanes[chosen], windows[chosen]):
            order, begins, _ = self._epoch(epoch)
            low, high = self._window(epoch, lane, window)
            first, last = (np.searchsorted(begins, place, "right") - 1 for place in (low, high - 1))
            found.update(order[first : last + 1].tolist())
        return found


def _different(*columns: Rows) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.unique(np.stack(columns, axis=1), axis=0).tolist()]


# --- the rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """The rows of a split: `index` is the class of each value of the column of labels; None without labels."""

    name: str
    shards: Shards
    groups: Groups
    image_column: str
    label_column: str
    classes: tuple[Class, ...]
    index: Mapping[Any, int] | None

    def __len__(self) -> int:
        return self.groups.total

    @property
    def columns(self) -> list[str]:
        return [self.image_column, *([self.label_column] if self.label_column else [])]

    @property
    def is_labelled(self) -> bool:
        return self.index is not None

    @property
    def identity(self) -> str:
        """Of the files, wherever they lie, as far as it is known without reading them: their names, lengths and footers."""
        digest = hashlib.sha256()
        for shard, file in enumerate(self.shards.files):
            name = file.address.partition("?")[0].rpartition("/")[2]
            digest.update(f"{name}\0{file.size}\0{self.shards.marks[shard]}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def describe(self, group: int, offset: int) -> str:
        """The file and the row in it."""
        shard = self.groups.shard[group]
        before = int(self.groups.rows[:group][self.groups.shard[:group] == shard].sum())
        return f"row {before + offset} of {self.shards.files[shard].address}"

    def first_blobs(self, most: int) -> list[bytes | None]:
        """Of the first group of rows."""
        group = _Group(self, 0)
        return [group.blob(i) for i in np.linspace(0, group.rows - 1, min(most, group.rows)).astype(int).tolist()]


class _Group:
    """A group of rows in memory, encoded as it was stored."""

    def __init__(self, stream: Stream, group: int) -> None:
        table = stream.shards.read(int(stream.groups.shard[group]), int(stream.groups.number[group]), stream.columns)
        self.stream, self.group, self.rows = stream, group, len(table)
        self._images: pa.ChunkedArray = _encoded(table.column(stream.image_column))
        self._labels: list[Any] | None = (
            table.column(stream.label_column).to_pylist() if stream.index is not None else None
        )

    def blob(self, offset: int) -> bytes | None:
        found = self._images[offset].as_py()
        return found if isinstance(found, bytes) else None

    def label(self, offset: int) -> int:
        """Raises DataError for one that is no class."""
        assert self._labels is not None and self.stream.index is not None
        value = self._labels[offset]
        if value not in self.stream.index:
            raise DataError(
                f"{self.stream.describe(self.group, offset)} has label {value!r}, not one of the {len(self.stream.classes)} classes",
                "correct or remove this row",
            )
        return self.stream.index[value]


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of the images of a column, of itself or of its field `bytes`; in chunks, since one array holds 2 GiB of them at most."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)


class Reader:
    """Rows of a stream by their numbers. Groups of rows are in memory as long as they are said to be needed."""

    def __init__(self, stream: Stream, workers: int | None) -> None:
        self.stream = stream
        self._first = stream.groups.first
        self._pool = ThreadPoolExecutor(_READERS if workers is None else max(1, workers), "vit-stream")
        self._held: dict[int, Future[_Group]] = {}
        stream.shards.traffic.is_over = False
        self._lock = threading.Lock()

    def need(self, now: set[int], soon: set[int]) -> None:
        """Begin to read the groups of these sets that are not there, and forget all others."""
        with self._lock:
            for group in [g for g in self._held if g not in now and g not in soon]:
                self._held.pop(group).cancel()
            for group in [*sorted(now), *sorted(soon - now)]:
                if group not in self._held:
                    self._held[group] = self._pool.submit(_Group, self.stream, group)

    def read(self, rows: Rows) -> tuple[list[bytes | None], list[int] | None]:
        """(encoded images, labels). Raises DataError."""
        groups = np.searchsorted(self._first, rows, "right") - 1
        blobs: list[bytes | None] = []
        labels: list[int] = []
        for row, number in zip(rows.tolist(), groups.tolist(), strict=True):
            group = self._group(number)
            offset = row - int(self._first[number])
            blobs.append(group.blob(offset))
            if self.stream.is_labelled:
                labels.append(group.label(offset))
        return blobs, labels if self.stream.is_labelled else None

    def after(self, row: int) -> Iterator[tuple[bytes | None, int]]:
        """The other images of the group of a row with their labels, 0 without any, from the next one on."""
        number = int(np.searchsorted(self._first, row, "right")) - 1
        group, offset = self._group(number), row - int(self._first[number])
        for place in range(offset + 1, offset + group.rows):
            place %= group.rows
            yield group.blob(place), group.label(place) if self.stream.is_labelled else 0

    def _group(self, number: int) -> _Group:
        with self._lock:
            future = self._held.get(number)
        return _Group(self.stream, number) if future is None else future.result()

    def called(self, row: int) -> str:
        """What a row is, for messages."""
        group = int(np.searchsorted(self._first, row, "right")) - 1
        return self.stream.describe(group, row - int(self._first[group]))

    def close(self) -> None:
        """Nothing more is read; what is tried again is given up."""
        self.stream.shards.traffic.is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
