"""Work that a thread does ahead of the one that needs it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar, cast

from vitcli.errors import ResourceError

T = TypeVar("T")

NO_WORKERS = "read everything in the main thread with --set data.workers=0"


def ahead(make: Callable[[int], T], numbers: Iterable[int], depth: int) -> Generator[T, None, None]:
    """make(n) for each number in order, up to `depth` of them made by a thread before they are asked for.

    Raises what `make` raises, in its place, and ResourceError where the thread cannot be started or has died.
    """
    if depth == 0:
        yield from map(make, numbers)
        return
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for number in numbers:
                if stop.is_set():
                    return
                put(make(number), None)
            put(None, StopIteration())
        except Exception as error:  # raised again where the item is asked for
            put(None, error)

    thread = threading.Thread(target=work, name="vit-ahead", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(f"no thread can be started to read images ahead: {error}", NO_WORKERS) from None
    try:
        while True:
            item, fault = _next(waiting, thread)
            if isinstance(fault, StopIteration):
                return
            if fault is not None:
                raise fault
            yield cast(T, item)
    finally:
        stop.set()
        thread.join()


def _next(waiting: queue.Queue[tuple[T | None, BaseException | None]], thread: threading.Thread) -> Any:
    """The next item that waits. Raises ResourceError where there is none and nobody to make one."""
    while True:
        alive = thread.is_alive()
        try:
            return waiting.get(timeout=1.0)
        except queue.Empty:
            if not alive:
                raise ResourceError("the thread that reads images ahead has died", NO_WORKERS) from None
