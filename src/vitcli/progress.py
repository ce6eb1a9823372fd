"""How long work tells how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody listens."""


_listeners: list[Progress] = []


def listener() -> Progress:
    """Who is told of work that no caller hands a Progress to, such as a download on the way to a checkpoint."""
    return _listeners[-1] if _listeners else silent


@contextlib.contextmanager
def told_to(progress: Progress) -> Iterator[None]:
    """`progress` is the listener meanwhile."""
    _listeners.append(progress)
    try:
        yield
    finally:
        _listeners.remove(progress)
