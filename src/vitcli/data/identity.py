"""What an image is to vit: the digest of its file's bytes. And which part of data without splits it belongs to.

Neither a path nor a time of change says what an image is: a copy keeps its digest, an image that was replaced by
another of the same size and time does not.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files
from vitcli.errors import CheckpointError

Digests = NDArray[np.uint64]
"""A number for each image, of the bytes of its file; 0 where it could not be opened."""

HELD_ONE_IN = 5
"""Where data has no test or validation split, one image in so many is held out."""
KEPT_DIGESTS = 16_384
"""Digests that a checkpoint keeps of the images that trained it: all of them, or the smallest of more."""
_SETTLED_SECONDS = 2.0
"""A file that changed more recently than this before it was read may change again without a new time of change."""
_MEMORY = 1
"""Raised whenever a remembered digest changes its meaning."""
_ALWAYS_READ = 2_000
"""Images up to which nothing is remembered: they are read in less time than a memory of them."""


def digest(blob: bytes) -> int:
    """64 bits of BLAKE2b, never 0: of a million images two share one with a chance of 3 in 10^8."""
    return int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little") or 1


def stamp(*parts: object) -> int:
    """A number for what is known of a file without reading it."""
    return digest("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"))


def stamp_of_file(path: str) -> int:
    """Changes whenever the file does: the system sets its time of change (ctime), which no program can. 0: do not remember."""
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return 0
    if time.time() - max(stat.st_ctime, stat.st_mtime) < _SETTLED_SECONDS:
        return 0
    return stamp(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def stamps_of_rows(base: int, count: int) -> Digests:
    """For the rows of a file with the stamp `base`."""
    if not base:
        return np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        return (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(base)


@dataclass(eq=False, kw_only=True)
class Contents:
    """The digests of a table's images, each read once, and what else says which part an image belongs to.

    `stamps` gives a number a row that changes whenever its file does (0: unknown), by which digests are remembered on
    disk from command to command. `names` are the images' paths below their class, where they have any.
    `held` is a fixed part, of data that never changes.
    """

    rows: int
    stamps: Callable[[], Digests] | None = None
    names: Sequence[str] | None = None
    held: NDArray[np.bool_] | None = None
    place: str = ""  # where the data lies, for the name of the memory
    trusted: bool = True  # the paths in the table are vit's own, not what somebody's rows say
    folder: str = ""  # where a file must lie that a row of somebody's names; empty: anywhere on this machine
    _values: Digests = field(init=False)

    def __post_init__(self) -> None:
        self._values = np.zeros(self.rows, np.uint64)

    @property
    def rule(self) -> str:
        """How its held-out fifth is told, in words."""
        return "always the same" if self.held is not None else "by each image's name or content"

    def local(self, path: str) -> str:
        """The file that a row's `path` stands for; empty where the row may not name it: an address, or out of the folder."""
        if self.trusted:
            return path
        inner = re.sub(r"^(zip|tar)://[^:]*::", "", path)  # a member of an archive that lies here
        if "://" in inner:
            return ""
        if not self.folder:
            return path
        return files.inside(self.folder, path) if inner == path else ""

    def digests(
        self, rows: NDArray[np.int64], read: Callable[[NDArray[np.int64]], Iterable[bytes | None]],
        progress: Callable[[str, int, int], None],
    ) -> Digests:  # fmt: skip
        """Digests of the table's `rows`; `read` gives the bytes of some of them, None for what cannot be opened."""
        missing = rows[self._values[rows] == 0]
        memory = None
        if len(missing) > _ALWAYS_READ and self.stamps is not None:
            memory = _Memory(self.place)
            stamps = self.stamps()
            self._values[missing] = memory.recall(stamps[missing])
            missing = rows[self._values[rows] == 0]
        for start in range(0, len(missing), 256):
            part = missing[start : start + 256]
            self._values[part] = [0 if blob is None else digest(blob) for blob in read(part)]
            progress("reading", start + len(part), len(missing))
        if memory is not None and len(missing):
            memory.keep(stamps[rows], self._values[rows])
        return self._values[rows]

    @cached_property
    def _by_name(self) -> NDArray[np.bool_]:
        return np.array([held_out_by_name(name) for name in self.names or ()], bool)

    def held_out(self, rows: NDArray[np.int64], digests: Digests) -> NDArray[np.bool_]:
        """Whether each row is of the held-out fifth: by the image's name, or by its content in a table without names."""
        if self.held is not None:
            return self.held[rows]
        if self.names is not None:
            return self._by_name[rows]
        return digests % np.uint64(HELD_ONE_IN) == 0


def held_out_by_name(name: str) -> bool:
    """Whether an image with this name is held out, whatever else is there.

    Of images numbered without a gap exactly one in five is: of every five numbers, 0 to 4, 5 to 9 and so on, the one
    that a hash of the rest of the name chooses. Of other names the hash alone decides. The ending does not count.
    """
    stem = unicodedata.normalize("NFC", str(Path(name).with_suffix("")))
    numbered = re.search(r"(\d+)(\D*)$", stem)
    if numbered is None or not numbered[1].isascii():
        return stamp("part", stem) % HELD_ONE_IN == 0
    block, slot = divmod(int(numbered[1][-18:]), HELD_ONE_IN)
    return stamp("part", stem[: numbered.start()], numbered[1][:-18], numbered[2], block) % HELD_ONE_IN == slot


class _Memory:
    """Digests by the stamps of the files that they are of, on disk beside the decode cache.

    The first row of the file is its format and the sum of the others: what another version wrote, or what was damaged, is
    as good as nothing.
    """

    def __init__(self, place: str) -> None:
        self.path = files.cache_home() / "digests" / f"{stamp(place):016x}.npy"
        self.table = np.zeros((0, 2), np.uint64)
        with contextlib.suppress(OSError, ValueError, EOFError):
            table = np.load(self.path, allow_pickle=False)
            if table.dtype == np.uint64 and table.ndim == 2 and table.shape[1] == 2 and len(table):
                whole = table[0].tolist() == [_MEMORY, int(table[1:].sum())]
                self.table = table[1:] if whole else self.table

    def recall(self, stamps: Digests) -> Digests:
        """The digest that belongs to each stamp, 0 for one that is not known."""
        if not len(self.table):
            return np.zeros(len(stamps), np.uint64)
        keys = self.table[:, 0]
        at = np.minimum(np.searchsorted(keys, stamps), len(keys) - 1)
        return np.where((keys[at] == stamps) & (stamps != 0), self.table[at, 1], np.uint64(0))

    def keep(self, stamps: Digests, digests: Digests) -> None:
        """Remember these alone; what cannot be written is read again the next time."""
        known = (stamps != 0) & (digests != 0)
        table = np.stack([stamps[known], digests[known]], axis=1)
        table = table[np.argsort(table[:, 0], kind="stable")]
        head = np.array([[_MEMORY, table.sum()]], np.uint64)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, np.concatenate([head, table]))

        with contextlib.suppress(Exception):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_file(self.path, write)


# --- what a checkpoint remembers -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Record:
    """The images that trained a checkpoint and the runs before it.

    `digests` are sorted: all of them where it `is_complete`, else the smallest of more, and every image that the rule of
    parts would hold out. Runs whose images nobody recorded (somebody else's weights) are `unknown`, by what they say of themselves.
    """

    images: int = 0
    digests: Digests = field(default_factory=lambda: np.zeros(0, np.uint64))
    is_complete: bool = True
    unknown: tuple[str, ...] = ()

    def contains(self, digests: Digests) -> NDArray[np.bool_]:
        """Whether each image is known to have trained; of an incomplete record a False may be wrong."""
        return np.isin(digests, self.digests) & (digests != 0)

    def among(self, digests: Digests) -> int:
        """How many of these images trained: counted, or estimated from the smallest digests of an incomplete record."""
        known = self.contains(digests)
        if self.is_complete or not known.any():
            return int(known.sum())
        sampled = digests <= self.digests[min(len(self.digests), KEPT_DIGESTS) - 1]
        estimate = round(len(digests) * float(known[sampled].mean())) if sampled.any() else 0
        return max(int(known.sum()), estimate)

    def and_(self, digests: Digests, kept: Digests | None = None) -> Record:
        """With the images of one more run; `kept` are those that stay in any case."""
        fresh = np.unique(digests[digests != 0])
        images = self.images + len(fresh) - self.among(fresh)
        whole = np.union1d(self.digests, fresh)
        always = np.union1d(self.digests[KEPT_DIGESTS:], np.zeros(0, np.uint64) if kept is None else kept)
        complete = self.is_complete and len(whole) <= KEPT_DIGESTS
        chosen = whole if complete else np.union1d(whole[:KEPT_DIGESTS], always[always != 0][:KEPT_DIGESTS])
        return Record(images, chosen, complete, self.unknown)

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "complete": self.is_complete,
            "unknown": list(self.unknown),
            "digests": base64.b64encode(self.digests.astype("<u8").tobytes()).decode(),
        }

    @classmethod
    def of(cls, tree: Any, where: str) -> Record:
        """The inverse of `as_json`. Raises CheckpointError for anything else."""
        try:
            blob = base64.b64decode(tree["digests"], validate=True)
            digests = np.unique(np.frombuffer(blob, "<u8").astype(np.uint64))
            images, complete, unknown = tree["images"], tree["complete"], tree["unknown"]
            if type(images) is not int or images < 0 or type(complete) is not bool:
                raise ValueError("images and complete")
            return cls(images, digests, complete, tuple(str(name) for name in unknown))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{where}: its record of training images cannot be read: {error}",
                "the file is damaged, or was changed by hand",
            ) from None
