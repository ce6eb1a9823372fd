"""Parquet files that lie anywhere, read by groups of rows: the bytes that are wanted, and no others, with retries.

Nothing is copied to this machine's disk. pyarrow parses and decodes; fsspec reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcli.errors import DataError
from vitcli.text import first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_TAIL = 1 << 16
"""Bytes at the end of a file that are asked for first: a footer is rarely longer."""
_MAGIC = b"PAR1"
_VERSIONS = (
    "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "modified",
    "created",
)  # fmt: skip
"""What filesystems of fsspec call that which tells one content at an address from another."""
_FOOTERS = 64
"""Footers that are kept parsed."""
_WASTE = 1 << 20
"""Bytes between two columns that are read rather than asked for in two requests."""
_DECODED_AT_ONCE = 1 << 29
"""Bytes of a group of rows, about: pyarrow reads no structs of 2 GiB at once."""
_AT_ONCE = 16
"""Footers that are read at the same time."""
_FIRST_PAUSE, _SECONDS = 0.5, 60.0
"""Before the first retry, twice as long before each further one; and that an address may take to send something."""


@dataclass
class Traffic:
    """What reading took so far, for the log."""

    bytes: int = 0
    retries: int = 0
    is_over: bool = False  # nobody waits for what is read
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, count: int, retries: int) -> None:
        with self.lock:
            self.bytes += count
            self.retries += retries


class Remote:
    """One file at a path or an fsspec address. Raises DataError with the address where it cannot be had."""

    def __init__(self, address: str, retries: int, traffic: Traffic) -> None:
        self.address, self.retries, self.traffic = address, retries, traffic
        self._filesystem: tuple[Any, str] | None = None
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        if self._size is None:
            self._size = int(self._tried(self._asked_size))
        return self._size

    @property
    def version(self) -> str:
        """What its place says of which content it has, beside the length; empty where that says nothing."""
        return str(self._tried(self._asked_version))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start .. stop - 1."""
        return self._tried(lambda: self._asked(start, stop))

    def _opened(self) -> tuple[Any, str]:
        if self._filesystem is None:
            import fsspec

            options: dict[str, Any] = {}
            if self.address.startswith(("http://", "https://")):
                import aiohttp

                wait = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
                options = {"client_kwargs": {"timeout": wait}}
            self._filesystem = fsspec.core.url_to_fs(self.address, **options)
        return self._filesystem

    def _asked_size(self) -> int:
        filesystem, path = self._opened()
        filesystem.invalidate_cache()
        size = filesystem.info(path).get("size")
        if size is None:
            raise OSError("its length is not said")
        return int(size)

    def _asked_version(self) -> str:
        filesystem, path = self._opened()
        told = filesystem.info(path)
        return "|".join(f"{name}={told[name]}" for name in _VERSIONS if told.get(name) is not None)

    def _asked(self, start: int, stop: int) -> bytes:
        filesystem, path = self._opened()
        found = bytes(filesystem.cat_file(path, start=start, end=stop))
        if len(found) == self._size and len(found) != stop - start:
            found = found[start:stop]  # a server that knows no ranges sends the whole
        if len(found) != stop - start:
            raise OSError(f"{len(found):,} of {stop - start:,} bytes came")
        self.traffic.add(len(found), 0)
        return found

    def _tried(self, ask: Callable[[], Any]) -> Any:
        """What `ask` gives, asked again where it fails. Raises DataError."""
        for tried in range(self.retries + 1):
            try:
                return ask()
            except Exception as error:  # each kind of address has errors of its own
                if (
                    tried == self.retries
                    or self.traffic.is_over
                    or isinstance(error, (FileNotFoundError, PermissionError))
                ):
                    raise DataError(
                        f"cannot read {self.address}, tried {tried + 1} time{'s' * (tried > 0)}: {type(error).__name__}: "
                        f"{first_line(error)[:200]}",
                        "is it there, and the network? the same command goes on from the last saved step",
                    ) from None
                self.traffic.add(0, 1)
                time.sleep(_FIRST_PAUSE * 2**tried * random.uniform(0.5, 1.0))
        raise AssertionError


class _Known(io.RawIOBase):
    """The parts of a file that were read, as a file of its size for pyarrow. Raises OSError for any other part."""

    def __init__(self, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        self._size, self._parts, self._at = size, list(parts), 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._size if count < 0 else min(self._size, self._at + count)
        for start, content in self._parts:
            if start <= self._at and stop <= start + len(content):
                found = content[self._at - start : stop - start]
                self._at = stop
                return found
        raise OSError(f"bytes {self._at:,} to {stop:,} were not read")


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of rows, file after file: of which file, which of its groups, and how many rows and bytes it has."""

    shard: NDArray[np.int64]
    number: NDArray[np.int64]
    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @property
    def first(self) -> NDArray[np.int64]:
        """The number of the first row of each, counted through all files."""
        return np.cumsum(self.rows) - self.rows

    @property
    def total(self) -> int:
        return int(self.rows.sum())


class Shards:
    """Parquet files of one schema, in order. Raises DataError for one that cannot be read, or has other columns."""

    def __init__(self, addresses: Sequence[str], retries: int) -> None:
        self.traffic = Traffic()
        self.files = [Remote(address, retries, self.traffic) for address in addresses]
        self.marks: dict[int, str] = {}
        """The sha256 of each footer that was read: it has the sizes, bounds and places of all columns."""
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()
        self.schema: pa.Schema = self.footer(0).schema.to_arrow_schema()

    def footer(self, shard: int) -> pq.FileMetaData:
        """What a file says of itself."""
        with self._lock:
            if shard in self._footers:
                self._footers.move_to_end(shard)
                return self._footers[shard]
        found = self._read_footer(shard)
        with self._lock:
            self._footers[shard] = found
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return found

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.files[shard]
        size = file.size
        tail = file.read(max(0, size - _TAIL), size)
        if len(tail) < 12 or tail[-4:] != _MAGIC:
            raise DataError(f"{file.address} is no Parquet file, or not a whole one", "streams read Parquet files")
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            if length > size:
                raise DataError(f"{file.address} is not a whole Parquet file", "copy it once more")
            tail = file.read(size - length, size)
        self.marks[shard] = hashlib.sha256(tail[-length:]).hexdigest()
        try:
            return pq.read_metadata(pa.PythonFile(_Known(size, [(size - len(tail), tail)]), mode="r"))
        except Exception as error:
            raise DataError(f"{file.address} is no Parquet file: {first_line(error)[:200]}", "is it whole?") from None

    def groups(self, columns: Sequence[str], each: Callable[[int, int], None] = lambda done, total: None) -> Groups:
        """Those of all files; sizes are of these columns. Raises DataError for a file that lacks one."""
        found: list[list[tuple[int, int, int]]] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for number, footer in enumerate(pool.map(self.footer, range(len(self.files)))):
                leaves = _leaves(footer, columns)
                missing = [c for c in columns if not _leaves(footer, [c])]
                if missing:
                    raise DataError(
                        f"{self.files[number].address} has no column {missing[0]!r}", "shards have the same columns"
                    )
                self._check_alike(number, footer, columns)
                groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
                found.append(
                    [
                        (i, g.num_rows, sum(g.column(c).total_compressed_size for c in leaves))
                        for i, g in enumerate(groups)
                    ]
                )
                each(number + 1, len(self.files))
        rows = [(shard, *group) for shard, groups in enumerate(found) for group in groups if group[1]]
        table = np.array(rows, np.int64).reshape(-1, 4)
        return Groups(*table.T)

    def _check_alike(self, shard: int, footer: pq.FileMetaData, columns: Sequence[str]) -> None:
        """Raises DataError for a file whose columns hold something else than those of the first file, or name other classes: what its numbers
        stand for would be taken from that one.
        """
        if not footer.num_rows:
            return
        schema = footer.schema.to_arrow_schema()
        for name in columns:
            first, here = (_meaning(s, name) for s in (self.schema, schema))
            if first != here:
                what = "names other classes than" if first[0] == here[0] else f"holds {here[0]}, not {first[0]} as"
                raise DataError(
                    f"{self.files[shard].address}: column {name!r} {what} {self.files[0].address}",
                    "shards have the same columns: write them by one program, or stream those that are alike",
                )

    def read(self, shard: int, number: int, columns: Sequence[str]) -> pa.Table:
        """A group of rows. Raises DataError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        footer, file = self.footer(shard), self.files[shard]
        group = footer.row_group(number)
        places = sorted(_place(group.column(leaf)) for leaf in _leaves(footer, columns))
        parts = [(start, file.read(start, stop)) for start, stop in _merged(places)]
        try:
            opened = pq.ParquetFile(pa.PythonFile(_Known(file.size, parts), mode="r"), metadata=footer)
            size = sum(group.column(leaf).total_uncompressed_size for leaf in _leaves(footer, columns))
            rows = max(1, group.num_rows * _DECODED_AT_ONCE // max(1, size))
            return pa.Table.from_batches(opened.iter_batches(rows, [number], list(columns), use_threads=False))
        except Exception as error:
            raise DataError(
                f"cannot read group {number} of rows of {file.address}: {first_line(error)[:200]}",
                "is it whole? the same command goes on from the last saved step",
            ) from None


def _leaves(footer: pq.FileMetaData, columns: Sequence[str]) -> list[int]:
    """The columns of a file, as it counts them, that make up these of its table."""
    names = [footer.schema.column(i).path for i in range(len(footer.schema))]
    return [i for i, name in enumerate(names) if any(name == c or name.startswith(f"{c}.") for c in columns)]


def _meaning(schema: pa.Schema, column: str) -> tuple[str, Any]:
    """The kind of a column, and the classes that `datasets` wrote of it, in their order; None where it wrote none."""
    import pyarrow as pa

    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    families = {
        "images": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct),
        "text": (pa.types.is_string, pa.types.is_large_string),
        "integers": (pa.types.is_integer,),
    }
    said = next((name for name, fits in families.items() if any(fit(kind) for fit in fits)), str(kind))
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return said, features[column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        return said, None


def _place(chunk: Any) -> tuple[int, int]:
    """Where the pages of a column of a group lie."""
    starts = [o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o]
    return min(starts), min(starts) + chunk.total_compressed_size


def _merged(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Few requests: places that lie close together as one."""
    start, stop = places[0]
    for low, high in places[1:]:
        if low - stop > _WASTE:
            yield start, stop
            start = low
        stop = max(stop, high)
    yield start, stop


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expanded(address: str) -> list[str]:
    """`train-{00000..00199}.parquet` as its names, as shells and webdataset write them; any other address as it is. Raises DataError."""
    match = _RANGE.search(address)
    if match is None:
        return [address]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + 1_000_000:
        raise DataError(f"{address}: {match[0]} names no files", "the first number comes first")
    names = (f"{address[: match.start()]}{n:0{len(match[1])}d}{address[match.end() :]}" for n in range(first, last + 1))
    return [name for one in names for name in expanded(one)]
