"""The images of a stream, decoded as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.config import DataConfig, Size
from vitcli.data import decode
from vitcli.data.cache import CHUNK, Pixels
from vitcli.data.decode import View
from vitcli.data.decoders import Faults, mapped
from vitcli.data.stream import Reader, Rows, Stream
from vitcli.errors import DataError


class StreamImages:
    """The images of a stream at a working size, decoded as they are read. `replaced` are those that could not be, by row, each once however
    often it came, and whose place the image before them took.
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
        """Pixels `[n, 3, height, width]`, original sizes `[n, 2]` and labels `[n]`. Raises DataError."""
        blobs, labels = self.reader.read(rows)
        pixels = np.empty((len(rows), 3, *self.view.size), np.uint8)
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

        bad = [fault for faults in mapped(work, parts, self.config.workers) for fault in faults]
        taken = np.arange(len(rows))
        for index, reason in bad:
            self._bad(int(rows[index]), reason)
        if bad:
            broken = {index for index, _ in bad}
            good = [i for i in range(len(rows)) if i not in broken]
            if not good:
                self._bad(int(rows[bad[0][0]]), bad[0][1], always=True)
            for index in sorted(broken):
                taken[index] = max((i for i in good if i < index), default=good[0])
        found_labels = None if labels is None else np.array(labels, np.int64)[taken]
        return (pixels[taken], sizes[taken], found_labels) if bad else (pixels, sizes, found_labels)

    def _bad(self, row: int, reason: str, always: bool = False) -> None:
        if row in self.replaced and not always:
            return
        where = self.reader.called(row)
        if always or self.config.on_bad_image == "error":
            raise DataError(
                f"cannot read image {where}: {reason}",
                "repair or remove it, or go on with another in its place with --set data.on_bad_image=skip",
            )
        self.replaced.add(row)
        self._damage = self._damage or (
            f"cannot read image {where}: {reason}; an image beside it takes its place, as of all that cannot be read"
        )


def typical_size_of(stream: Stream, max_megapixels: float) -> tuple[Size, bool]:
    """(height, width) that images of the first group of rows share, else their median, and whether they share it. Raises DataError."""
    sizes: list[Size] = []
    for blob in stream.first_blobs(64):
        try:
            image = decode.open_image(blob or b"")
        except Exception:  # one that is not read is told of where it is its turn
            continue
        if image.width * image.height <= max_megapixels * 1e6:
            sizes.append(decode.upright_size(image))
    if not sizes:
        raise DataError(
            f"none of the images looked at in {stream.shards.files[0].address} can be read",
            "is this a data set of images?",
        )
    heights, widths = np.median(np.array(sizes), axis=0).astype(int)
    return (int(heights), int(widths)), len(set(sizes)) == 1
