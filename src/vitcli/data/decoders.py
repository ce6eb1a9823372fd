"""Decoding by processes: small images hold the interpreter's lock for most of their time, so that threads decode no more than one core.

Each process is this module, run by itself: it reads encoded images from its standard input and writes pixels to its standard
output, imports neither torch nor the program that started it, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli.config import Size
from vitcli.data import decode
from vitcli.data.colour import BadImage
from vitcli.data.decode import View

Decoded = tuple[NDArray[np.uint8], Size] | str
"""Pixels and the size of the original, or why there are none."""
DecodeMany = Callable[[Sequence[bytes], View, float], list[Decoded]]


def decode_here(blobs: Sequence[bytes], view: View, max_megapixels: float) -> list[Decoded]:
    """Each image by this process."""
    found: list[Decoded] = []
    for blob in blobs:
        try:
            found.append(decode.decode(blob, view, max_megapixels))
        except BadImage as error:
            found.append(str(error))
    return found


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def decode(self, *asked: Any) -> list[Decoded]:
        """Raises OSError or EOFError where the process is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump(asked, self._process.stdin, protocol=5)
        self._process.stdin.flush()
        found: list[Decoded] = pickle.load(self._process.stdout)
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def processes(count: int) -> Iterator[DecodeMany]:
    """Within it so many of them decode, for as many threads. What one that is gone was asked is decoded here."""
    idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
    started: list[_Process] = []
    try:
        for _ in range(count):
            try:
                started.append(_Process())
                idle.put(started[-1])
            except OSError:  # there are as many as there can be
                idle.put(None)

        def decode_there(blobs: Sequence[bytes], view: View, max_megapixels: float) -> list[Decoded]:
            process = idle.get()
            try:
                if process is not None:
                    return process.decode(blobs, view, max_megapixels)
            except (OSError, EOFError, pickle.UnpicklingError):
                process = None
            finally:
                idle.put(process)
            return decode_here(blobs, view, max_megapixels)

        yield decode_there
    finally:
        for process in started:
            process.close()


def _serve() -> None:
    """What a process does: one answer for each question."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            blobs, view, max_megapixels = pickle.load(questions)
        except EOFError:
            return
        pickle.dump(decode_here(blobs, view, max_megapixels), answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
