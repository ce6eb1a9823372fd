"""The header of a safetensors file, read without torch: names, types, shapes and metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError
from vitcli.weights.held import AGAIN, HeldFile

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
MAX_HEADER = 16 << 20
"""Bytes; a ViT's has some hundred kilobytes, one of vit's with 100,000 names of classes some megabytes."""
MAX_NODES = 500_000
"""Arrays and objects of a piece of JSON; each takes some twenty times its bytes in memory."""
_MAX_AXES = 64


@dataclass(frozen=True, kw_only=True)
class Header:
    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    places: dict[str, int]  # bytes from the start of the file to each tensor
    data_start: int
    file: HeldFile

    def document(self) -> dict[str, Any] | None:
        """The JSON document `vit` of the metadata, or None in somebody else's file. Raises CheckpointError."""
        if "vit" not in self.metadata:
            return None
        try:
            text = self.metadata["vit"]
            check_nodes(text.encode("utf-8", "surrogatepass"))
            document = json.loads(text)
            if not isinstance(document, dict):
                raise ValueError("not an object")
            return document
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: the metadata 'vit' is not JSON: {error!s:.200}", "the file is damaged"
            ) from None


def not_weights(start: bytes) -> str:
    """What a file is that holds no weights, as far as its first bytes tell; else empty."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the weights themselves"
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights"
    return ""


_LFS_HINT = "download the file itself: git lfs pull, or the hub's download link"


def read_header(path: Path) -> Header:
    """The header of `path`, which stays open. Raises CheckpointError that says what the file is instead."""
    file = HeldFile(path)
    start = file.read(0, 64)
    wrong = not_weights(start)
    if wrong:
        raise CheckpointError(f"{path} is {wrong}", _LFS_HINT)
    length = int.from_bytes(start[:8], "little")
    if file.size < 8 or length > min(file.size - 8, MAX_HEADER):
        raise CheckpointError(
            f"{path} is cut off or not a safetensors file: {file.size:,} bytes, its header says {length + 8:,}", AGAIN
        )
    text = file.read(8, length)
    try:
        check_nodes(text)
        tree = json.loads(text)
        metadata = {str(k): str(v) for k, v in tree.pop("__metadata__", {}).items()}
        entries = {name: _entry(name, value) for name, value in tree.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error!s:.200}", AGAIN) from None
    end = 0
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise CheckpointError(
                f"{path} is not a safetensors file: {name[:80]!r} does not lie behind the tensor before it", AGAIN
            )
        end = stop
    whole = 8 + length + end
    if file.size != whole:
        raise CheckpointError(f"{path} is cut off: {file.size:,} bytes of {whole:,}", AGAIN)
    shapes = {name: shape for name, (shape, _, _, _) in entries.items()}
    dtypes = {name: dtype for name, (_, dtype, _, _) in entries.items()}
    places = {name: 8 + length + begin for name, (_, _, begin, _) in entries.items()}
    return Header(
        path=path, metadata=metadata, shapes=shapes, dtypes=dtypes, places=places, data_start=8 + length, file=file
    )


def check_nodes(text: bytes) -> None:
    """Raises ValueError for JSON of more than MAX_NODES arrays and objects, before it is made."""
    count = text.count(b"[") + text.count(b"{")
    if count > MAX_NODES:
        raise ValueError(f"{count:,} arrays and objects, over {MAX_NODES:,}")


def _entry(name: str, entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, type, first byte and the one behind the last. Raises what a wrong one makes of these lines."""
    shape, dtype, (begin, stop) = entry["shape"], entry["dtype"], entry["data_offsets"]
    numbers = (*shape, begin, stop)
    if not all(type(n) is int and 0 <= n < 1 << 60 for n in numbers) or len(shape) > _MAX_AXES or stop < begin:
        raise ValueError(f"tensor {name[:80]!r} has no shape and place")
    if not isinstance(dtype, str) or len(dtype) > 20:
        raise ValueError(f"tensor {name[:80]!r} has no type")
    if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != stop - begin:
        raise ValueError(f"tensor {name[:80]!r} of shape {shape} does not have {stop - begin} bytes")
    return tuple(shape), dtype, begin, stop
