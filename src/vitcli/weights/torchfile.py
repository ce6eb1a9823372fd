"""The files that torch.save writes, read without torch.load: a tree with outlines of tensors, and each tensor's numbers.

| format                        | tree                  | numbers                                                      |
|-------------------------------|-----------------------|--------------------------------------------------------------|
| zip (since 1.6)               | `…/data.pkl`          | `…/data/KEY`, usually not compressed                         |
| legacy (torch/serialization.py, _legacy_save) | the fourth of five pickles | after the fifth, which lists the keys: a count and the bytes of each |

Only what rebuilds plain tensors is understood. Tensor subclasses, quantised and sparse tensors stay inert.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.errors import CheckpointError
from vitcli.weights.archives import check_sum, is_archive, open_archive, read_entry, stored_at
from vitcli.weights.held import AGAIN, HeldFile
from vitcli.weights.pickles import Damaged, Global, Inert, Reader

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 64 << 20
"""Bytes of the tree; the numbers lie elsewhere. A training checkpoint's has a few megabytes at most."""
_MAX_STORAGE = 1 << 34  # bytes of a compressed one: it is unpacked into memory
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclass(frozen=True)
class Storage:
    """`count` numbers of the storage `key`, from its number `base` on."""

    key: str
    dtype: str
    count: int
    base: int = 0


@dataclass(frozen=True, eq=False)
class Outline:
    """A tensor that was not read: which numbers of which storage it is."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.storage.dtype

    @property
    def span(self) -> int:
        """Numbers of the storage from its first to its last."""
        return 0 if 0 in self.shape else 1 + _last(self.shape, self.strides)


def _last(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


# --- the tree ----------------------------------------------------------------------------------------------


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(type(n) is int and 0 <= n < 1 << 48 for n in value):
        raise Damaged("a tensor whose size is none")
    return tuple(value)


def _rebuilt(arguments: tuple[Any, ...]) -> Any:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2(storage, offset, size, stride, …)."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage):
        return Inert(storage.name if isinstance(storage, Inert) else "a tensor without numbers")
    shape, strides = _sizes(size), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(strides):
        raise Damaged("a tensor whose strides do not fit")
    last = offset + _last(shape, strides)
    if 0 not in shape and last >= storage.count:
        raise Damaged(f"a tensor of shape {shape} reaches behind its {storage.count:,} numbers")
    return Outline(storage, offset, shape, strides)


def _rebuilt_untyped(arguments: tuple[Any, ...]) -> Any:
    """torch._utils._rebuild_tensor_v3(storage of bytes, offset, size, stride, requires_grad, hooks, dtype, …)."""
    storage, dtype = arguments[0], arguments[6]
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else ""
    if not isinstance(storage, Storage) or name not in BYTES:
        return Inert(f"torch.{name or 'dtype'}"[:60])
    return _rebuilt((replace(storage, dtype=name, count=storage.count // BYTES[name]), *arguments[1:4]))


def _first(arguments: tuple[Any, ...]) -> Any:
    """torch._utils._rebuild_parameter(data, …): the tensor itself."""
    return arguments[0]


_PLAIN_TENSORS = {("torch", "Tensor"), ("torch._tensor", "Tensor"), ("torch.nn.parameter", "Parameter")}


def _rebuilt_from_type(arguments: tuple[Any, ...]) -> Any:
    """torch._tensor._rebuild_from_type_v2(function, class, arguments, attributes): a plain tensor with attributes, or a subclass."""
    function, kind, inner = arguments[:3]
    make = _KNOWN.get((function.module, function.name)) if isinstance(function, Global) else None
    if isinstance(kind, Global) and (kind.module, kind.name) in _PLAIN_TENSORS and make is not None:
        return make(inner)
    return Inert(str(kind) if isinstance(kind, Global) else "a tensor subclass")


def _pairs(arguments: tuple[Any, ...]) -> Any:
    """collections.OrderedDict([(key, value), …]), or empty as its pickles have it."""
    table: dict[Any, Any] = {}
    if arguments:
        reader = Reader(b"")
        reader._store(table, [part for key, value in arguments[0] for part in (key, value)])
    return table


def _counted(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], dict) else {}


_KNOWN: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuilt_untyped,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuilt_from_type,
    ("torch", "Size"): _first,
    ("collections", "OrderedDict"): _pairs,
    ("collections", "defaultdict"): lambda arguments: {},
    ("collections", "Counter"): _counted,
}


def _storage(address: Any) -> Any:
    """What stands for a storage in a pickle: ('storage', class, key, device, count[, view])."""
    if not isinstance(address, tuple) or len(address) < 5 or address[0] != "storage":
        return Inert("a persistent id")
    _, kind, key, _, count, *view = address
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module.partition(".")[0] == "torch" else None
    if dtype is None:
        return Inert(str(kind) if isinstance(kind, Global) else "a storage")
    if not isinstance(key, (str, int)) or type(count) is not int or count < 0:
        raise Damaged("a storage without a key or size")
    if view and isinstance(view[0], tuple):  # (key, first, count) of a part of it, before 0.4
        _, first, count = view[0]
        return Storage(str(key), dtype, *_sizes((count, first)))
    return Storage(str(key), dtype, count)


# --- the file ----------------------------------------------------------------------------------------------

BROKEN = (
    OSError,
    EOFError,
    ValueError,  # Damaged among them
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    MemoryError,
    AttributeError,
    RuntimeError,  # NotImplementedError among them
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, numpy and torch raise on a file whose bytes are not what they should be."""


class TorchFile:
    """A file of torch.save. `tree` holds Outline for tensors and Inert for what would be more than data.

    Raises CheckpointError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, HeldFile(path)
        self.effort = 0  # bytes of pickles that were read
        self._folder = ""  # of the entries of a zip archive
        self._storages: dict[str, Storage] = {}
        self._places: dict[str, tuple[int, int]] = {}  # of a legacy file's storages: first byte, bytes
        self._summed: set[str] = set()  # entries whose checksum was right
        try:
            self.zipped = is_archive(self.file)
            self.tree = self._zipped() if self.zipped else self._legacy()
        except BROKEN as error:
            raise CheckpointError(f"cannot read {path}: {one_line(error)}", AGAIN) from None

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return open_archive(self.file)

    def _zipped(self) -> Any:
        archive = self._archive
        found = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if not found:
            raise ValueError("not a PyTorch file, or cut off")
        entry = min(found, key=len)
        self._folder = entry.removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in archive.NameToInfo and read_entry(archive, order, 64).strip() != b"little":
            raise ValueError("its numbers are big-endian")
        data = read_entry(archive, entry, MAX_PICKLE)
        self.effort = len(data)
        return self._read_pickle(data).load()

    def _legacy(self) -> Any:
        """Magic number, protocol, facts about the machine, tree, keys; then the storages one after another."""
        head = self.file.read(0, MAX_PICKLE)
        if head[:1] != b"\x80":
            raise ValueError("not a PyTorch file, or cut off")
        reader = self._read_pickle(head)
        magic = reader.load()
        self.effort = reader.position
        if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
            return magic  # a plain pickle, whatever is in it
        parts = []
        for _ in range(4):
            reader = self._read_pickle(head, reader.position)
            parts.append(reader.load())
        self.effort = reader.position
        _, machine, tree, keys = parts
        if isinstance(machine, dict) and machine.get("little_endian", True) is not True:
            raise ValueError("its numbers are big-endian")
        self._place(keys if isinstance(keys, list) else [], reader.position)
        return tree

    def _read_pickle(self, data: bytes, position: int = 0) -> Reader:
        def storage(address: Any) -> Any:
            found = _storage(address)
            if isinstance(found, Storage):
                self._storages.setdefault(found.key, found)
            return found

        return Reader(data, position, _KNOWN, storage)

    def _place(self, keys: list[Any], position: int) -> None:
        """Where the storages of a legacy file lie, each behind the one before. Raises ValueError where it is cut off."""
        for key in keys:
            storage = self._storages.get(key) if isinstance(key, str) else None
            count = int.from_bytes(self.file.read(position, 8), "little", signed=True)
            length = count * BYTES[storage.dtype] if storage is not None else -1
            if length < 0 or position + 8 + length > self.file.size:
                raise ValueError("it is cut off, or its storages do not lie as it says")
            self._places[key] = (position + 8, length)
            position += 8 + length

    def cost(self, outline: Outline) -> int:
        """Bytes that are made where a tensor is read. Raises CheckpointError where its storage is not in the file."""
        with self._broken():
            start, length = self._place_of(outline.storage)
            width = BYTES[outline.dtype]
            return max(math.prod(outline.shape) * width, length if start is None else outline.span * width)

    def read(self, outline: Outline) -> Tensor:
        """The numbers of a tensor. Raises CheckpointError."""
        import torch

        storage, width = outline.storage, BYTES[outline.dtype]
        with self._broken():
            start, length = self._place_of(storage)
            if storage.base + storage.count > length // width:
                raise ValueError(f"storage {storage.key} has {length // width:,} numbers, not {storage.count:,}")
            if outline.span == 0:
                return torch.empty(outline.shape, dtype=getattr(torch, outline.dtype))
            first = (storage.base + outline.offset) * width
            if start is None:
                whole = bytearray(read_entry(self._archive, self._entry(storage.key), _MAX_STORAGE))
                raw = torch.frombuffer(whole, dtype=torch.uint8)[first : first + outline.span * width].clone()
                numbers = raw.view(getattr(torch, outline.dtype))
            else:
                numbers = self.file.numbers(start + first, outline.span, outline.dtype)
                if self.zipped and storage.key not in self._summed:
                    check_sum(self._archive, self._entry(storage.key), self.file, start)
                    self._summed.add(storage.key)
            self.file.check_unchanged()
            return torch.as_strided(numbers, outline.shape, outline.strides)

    def _entry(self, key: str) -> str:
        return f"{self._folder}data/{key}"

    def _place_of(self, storage: Storage) -> tuple[int | None, int]:
        """Where the bytes of a storage begin, None where they are compressed, and how many there are. Raises what BROKEN lists."""
        if storage.count == 0:
            return 0, 0
        if not self.zipped:
            return self._places[storage.key]
        entry = self._entry(storage.key)
        return stored_at(self._archive, entry, self.file), self._archive.getinfo(entry).file_size

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        """Turn what BROKEN lists into CheckpointError."""
        try:
            yield
        except BROKEN as error:
            self.file.check_unchanged()
            raise CheckpointError(f"cannot read {self.path}: {one_line(error)}", AGAIN) from None


def one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
