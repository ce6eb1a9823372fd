"""The header of a safetensors file, read without torch: names, types, shapes and metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError

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
_LIMIT = 16 << 20  # bytes of the header: a ViT's has some hundred kilobytes, and JSON takes 25 times its size in memory


@dataclass(frozen=True)
class Header:
    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    data_start: int  # bytes from the start of the file

    def document(self) -> dict[str, Any] | None:
        """The JSON document `vit` of the metadata, or None in somebody else's file. Raises CheckpointError."""
        if "vit" not in self.metadata:
            return None
        try:
            document = json.loads(self.metadata["vit"])
            if not isinstance(document, dict):
                raise ValueError("not an object")
            return document
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: the metadata 'vit' is not JSON: {error}", "the file is damaged"
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
    """The header of `path`. Raises CheckpointError that says what the file is instead."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            wrong = not_weights(start)
            if wrong:
                raise CheckpointError(f"{path} is {wrong}", _LFS_HINT)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, _LIMIT):
                raise CheckpointError(
                    f"{path} is cut off or not a safetensors file: {size:,} bytes, its header says {length + 8:,}",
                    "copy or download it again",
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "does it exist, and may you read it?") from None
    try:
        tree = json.loads(text)
        metadata = {str(k): str(v) for k, v in tree.pop("__metadata__", {}).items()}
        shapes, dtypes, end = {}, {}, 0
        for name, entry in tree.items():
            shape, dtype, (begin, stop) = tuple(int(n) for n in entry["shape"]), entry["dtype"], entry["data_offsets"]
            count = DTYPE_BYTES[dtype]
            for n in shape:
                count *= n
            if min(shape, default=0) < 0 or begin < 0 or stop - begin != count:
                raise ValueError(f"tensor {name!r} of shape {shape} does not have {stop - begin} bytes")
            shapes[name], dtypes[name], end = shape, dtype, max(end, stop)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: {error!s:.200}", "copy or download it again"
        ) from None
    if size != 8 + length + end:
        raise CheckpointError(f"{path} is cut off: {size:,} bytes of {8 + length + end:,}", "copy or download it again")
    return Header(path, metadata, shapes, dtypes, 8 + length)
