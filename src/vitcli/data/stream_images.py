"""The images of a stream, decoded as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.config import DataConfig, Size
from vitcli.data.cache import CHUNK, Pixels
from vitcli.data.decode import View
from vitcli.data.decoders import Faults, decode_here, mapped
from vitcli.data.split import usual_size
from vitcli.data.stream import Reader, Rows, Stream
from vitcli.errors import DataError


class StreamImages:
    """The images of a stream at a working size, decoded as they are read. `replaced` are those that could not be, by row, each once however
    often it came, and whose place the next one of their group of rows took.
    """

    is_cached = False

    def __init__(self, stream: Stream, view: View, config: DataConfig) -> None:
        self.stream, self.view, self.config = stream, view, config
        self.reader = Reader(stream, config.workers)
        self.replaced: set[int] = set()
        self._damage = ""

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def damage(self) -> str:
        """What to warn of."""
        return self._damage

    def ids(self, rows: Rows) -> Rows:
        return rows

    def read(self, rows: Rows) -> tuple[Pixels, NDArray[np.int32], NDArray[np.int64] | None]:
        """Pixels `[n, channels, height, width]`, original sizes `[n, 2]` and labels `[n]`. Raises DataError."""
        blobs, labels = self.reader.read(rows)
        pixels = np.empty((len(rows), *self.view.shape), np.uint8)
        sizes = np.empty((len(rows), 2), np.int32)
        parts = [slice(i, i + CHUNK) for i in range(0, len(rows), CHUNK)]

        def work(part: slice, decode_many: Any) -> Faults:
            faults: Faults = []
            found = decode_many([blob or b"" for blob in blobs[part]], self.view, self.config.max_megapixels)
            for index, result in enumerate(found, start=part.start):
                if isinstance(result, str):
                    faults.append((index, result if blobs[index] is not None else "no image"))
                else:
                    pixels[index], sizes[index] = result
            return faults

        for faults in mapped(work, parts, self.config.workers):
            for index, reason in faults:
                row = int(rows[index])
                self._bad(row, reason)
                pixels[index], sizes[index], label = self._beside(row, reason)
                if labels is not None:
                    labels[index] = label
        return pixels, sizes, None if labels is None else np.array(labels, np.int64)

    def _beside(self, row: int, reason: str) -> tuple[Pixels, Size, int]:
        """The next image of the same group of rows that can be read, whatever else is read with it. Raises DataError where none can."""
        for blob, label in self.reader.after(row):
            (found,) = decode_here([blob or b""], self.view, self.config.max_megapixels)
            if not isinstance(found, str):
                return *found, label
        raise self._unreadable(row, reason)

    def _unreadable(self, row: int, reason: str) -> DataError:
        return DataError(
            f"cannot read image {self.reader.called(row)}: {reason}",
            "repair or remove it, or go on with another in its place with --set data.on_bad_image=skip",
        )

    def _bad(self, row: int, reason: str) -> None:
        if self.config.on_bad_image == "error":
            raise self._unreadable(row, reason)
        self.replaced.add(row)
        self._damage = self._damage or (
            f"cannot read image {self.reader.called(row)}: {reason}; the next one takes its place, as of all that cannot be read"
        )


def typical_size_of(stream: Stream, max_megapixels: float) -> tuple[Size, bool]:
    """As split.typical_size, of the first group of rows. Raises DataError."""
    return usual_size(stream.first_blobs(64), max_megapixels, f"in {stream.shards.files[0].address}")
