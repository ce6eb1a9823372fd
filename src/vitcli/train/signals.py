"""What comes from outside while a run is at work: signals; and how long its process has been there."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import FrameType
from typing import Any

import vitcli
from vitcli.errors import Stopped


def process_seconds() -> float:
    """Since this package was imported, which a command does first: the age of the process would count what a shell did before it became
    this command.
    """
    return _INTERPRETER + time.monotonic() - vitcli.STARTED


_INTERPRETER = 0.05
"""Seconds that Python takes before it imports anything."""


class Signals:
    """SIGINT, SIGTERM, SIGHUP and SIGUSR1 while a run is at work.

    Once `is_training`, one sets a flag that the loop looks at after every step, and a second one ends the process at
    once. Before that one raises Stopped, but for SIGUSR1, by which schedulers warn long before they kill, unless `all_raise`.
    """

    def __init__(self, all_raise: bool = False) -> None:
        self.received = 0
        self.all_raise = all_raise
        self.is_training = False
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        warns = number == getattr(signal, "SIGUSR1", None) and not self.all_raise
        if self.received and not warns:
            os._exit(128 + number)
        if not self.received:
            self.received = number
            if not self.is_training and not warns:
                raise Stopped(number)
            with contextlib.suppress(OSError):  # not sys.stderr: the signal may have come while that was written to
                os.write(2, b"\nfinishing this step and saving; once more stops at once\n")

    def __enter__(self) -> Signals:
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) is signal.SIG_IGN and number == getattr(signal, "SIGHUP", None):
                continue  # nohup
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: a notebook keeps its own handling
                return self
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
