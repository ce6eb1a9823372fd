"""Decoding by threads and by processes: small images hold the interpreter's lock for most of their time, so that threads decode no more
than one core.

Each process is this module, run by itself: it reads encoded images from its standard input and writes pixels to its standard
output, imports neither torch nor the program that started it, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vitcli.config import Size
from vitcli.data import decode
from vitcli.data.colour import BadImage
from vitcli.data.decode import View
from vitcli.errors import ResourceError

_TRIAL = 8  # parts a core on which a number of threads is tried
_PROCESS_CORES, _WORTH_PROCESSES = 4, 2.0
"""Cores from which on processes are tried, where threads are less than half as fast as so many cores, and the seconds of decoding by
threads that must be to come: half a second goes into their start.
"""
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

    def decode(self, blobs: Sequence[bytes], view: View, max_megapixels: float) -> list[Decoded]:
        """Raises OSError or EOFError where the process is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"view": asdict(view), "max_megapixels": max_megapixels, "lengths": [len(blob) for blob in blobs]}
        _write(self._process.stdin, asked, blobs)
        found: list[Decoded] = []
        for said in _read_line(self._process.stdout):
            if isinstance(said, str):
                found.append(said)
                continue
            shape, size = said
            content = _read(self._process.stdout, math.prod(shape))
            found.append((np.frombuffer(content, np.uint8).reshape(shape), (size[0], size[1])))
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


Faults = list[tuple[int, str]]
Work = Callable[[slice, DecodeMany], Faults]


def mapped(work: Work, parts: list[slice], workers: int | None) -> Generator[Faults, None, None]:
    """`work` on each part in order, by threads: Pillow decodes without the interpreter's lock.

    None takes as many as are fastest on the first parts. Small images hold the lock for most of their time: one thread may
    then be best, or, where there are cores enough and work for a while, threads that let processes decode. Large ones
    gain from one a core.
    """
    with contextlib.ExitStack() as stack:
        decode_many: DecodeMany = decode_here
        if workers is None:
            cores = os.cpu_count() or 1
            share = _TRIAL * cores
            workers, best, alone = cores, 0.0, 0.0

            def trial(count: int, decoder: DecodeMany) -> Generator[Faults, None, float]:
                nonlocal parts
                first, parts = parts[:share], parts[share:]
                started = time.perf_counter()
                yield from list(_by_threads(work, first, count, decoder))
                return len(first) / (time.perf_counter() - started)

            for count in sorted({cores, 1, 2 * cores}, key=lambda n: n != cores) if len(parts) >= 6 * share else ():
                rate = yield from trial(count, decode_many)
                alone = rate if count == 1 else alone
                workers, best = (count, rate) if rate > best else (workers, best)
            if cores >= _PROCESS_CORES and best < alone * cores / 2 and len(parts) > best * _WORTH_PROCESSES:
                by_processes = stack.enter_context(processes(cores))
                rate = yield from trial(cores, by_processes)  # with their start
                rate = yield from trial(cores, by_processes)
                if rate > best:
                    workers, decode_many = cores, by_processes
        yield from _by_threads(work, parts, workers, decode_many)


def _by_threads(work: Work, parts: list[slice], workers: int, decode_many: DecodeMany) -> Generator[Faults, None, None]:
    if workers <= 1 or len(parts) <= 1:
        yield from (work(part, decode_many) for part in parts)
        return
    with ThreadPoolExecutor(workers) as pool:
        window = 4 * workers
        try:
            pending = [pool.submit(work, part, decode_many) for part in parts[:window]]
        except RuntimeError as error:
            raise ResourceError(
                f"no thread can be started to decode images: {error}",
                "decode everything in the main thread with --set data.workers=0",
            ) from None
        for index in range(len(parts)):
            result = pending[index].result()
            if window + index < len(parts):
                pending.append(pool.submit(work, parts[window + index], decode_many))
            yield result


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
            except (OSError, EOFError, ValueError):
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
            asked = _read_line(questions)
        except EOFError:
            return
        view = asked["view"]
        blobs = [_read(questions, length) for length in asked["lengths"]]
        found = decode_here(blobs, View(**view | {"size": tuple(view["size"])}), asked["max_megapixels"])
        said = [result if isinstance(result, str) else (result[0].shape, result[1]) for result in found]
        _write(answers, said, [result[0].tobytes() for result in found if not isinstance(result, str)])


# --- a line of JSON, and bytes behind it -----------------------------------------------------------------------------------


def _write(stream: IO[bytes], head: Any, parts: Sequence[bytes]) -> None:
    stream.write(json.dumps(head).encode() + b"\n" + b"".join(parts))
    stream.flush()


def _read_line(stream: IO[bytes]) -> Any:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def _read(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
