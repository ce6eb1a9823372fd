"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody listens."""
