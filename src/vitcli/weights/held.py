"""A file of weights, opened once: what is read of it later is of the same file, whatever has its name by then.

It is read and not mapped into memory, since a mapped file that is cut off kills the process that looks at it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vitcli.errors import CheckpointError
from vitcli.plain import open_plain, read_at

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "copy or download it again"
_PART = 1 << 24  # bytes that are read at once for a digest


class HeldFile:
    """A file that stays open. Raises CheckpointError where it cannot be opened, or is no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.stream: BinaryIO = open_plain(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CheckpointError(f"cannot read {path}: {reason}", "does it exist, and may you read it?") from None
        self.size, self._changed = self._state()

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self.stream.fileno())
        return found.st_size, found.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raises CheckpointError where somebody wrote into the file since it was opened."""
        if self._state() != (self.size, self._changed):
            raise CheckpointError(f"{self.path} changed while it was read", "run the command again")

    def read_into(self, start: int, buffer: memoryview) -> None:
        """The bytes from `start` on. Raises CheckpointError where there are fewer, or others than before."""
        done = 0
        while done < len(buffer):
            try:
                count = read_at(self.stream.fileno(), buffer[done : done + (1 << 30)], start + done)
            except OSError as error:
                raise CheckpointError(f"cannot read {self.path}: {error.strerror}", AGAIN) from None
            if not count:
                self.check_unchanged()
                raise CheckpointError(f"{self.path} is cut off", AGAIN)
            done += count
        self.check_unchanged()

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes, or as many as there are. Raises CheckpointError as `read_into`."""
        content = bytearray(max(0, min(count, self.size - start)))
        self.read_into(start, memoryview(content))
        return bytes(content)

    def numbers(self, start: int, count: int, dtype: str) -> Tensor:
        """So many numbers of torch's type `dtype`. Raises CheckpointError as `read_into`, before there is room for them."""
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        if start + count * kind.itemsize > self.size:
            raise CheckpointError(f"{self.path} is cut off", AGAIN)
        raw = torch.empty(count * kind.itemsize, dtype=torch.uint8)
        self.read_into(start, raw.numpy().data)
        return raw.view(kind)

    def sha256(self, start: int) -> str:
        """The digest of all bytes from `start` on."""
        digest = hashlib.sha256()
        for place in range(start, self.size, _PART):
            digest.update(self.read(place, _PART))
        return digest.hexdigest()
