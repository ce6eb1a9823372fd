"""Plain files: opened only if they are that, read and written at a place."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path) -> BinaryIO:
    """A file, opened to be read. Raises OSError, also for what is no file, such as a pipe, which would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, most: int) -> bytes:
    """The bytes of a file. Raises OSError as `open_plain`, and for one of more than `most` bytes."""
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


_PLACE = threading.Lock()  # of a file's own position, where a system reads and writes only there


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Bytes from `offset` on into a buffer, by any number of threads; how many there were. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _PLACE:
        os.lseek(descriptor, offset, os.SEEK_SET)
        found = os.read(descriptor, buffer.nbytes)
    buffer.cast("B")[: len(found)] = found
    return len(found)


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """All bytes of `content` from `offset` on, by any number of threads. Raises OSError."""
    while content:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, content, offset)
        else:
            with _PLACE:
                os.lseek(descriptor, offset, os.SEEK_SET)
                written = os.write(descriptor, content)
        content, offset = content[written:], offset + written
