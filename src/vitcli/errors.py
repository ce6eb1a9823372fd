"""Every error that vit raises on purpose.

    VitError            a message, a hint, an exit code
    ├── UsageError      2   usage     an option, a configuration key, a file that is in the way
    ├── DataError       3   data      images, labels, splits, a data set that cannot be had
    ├── CheckpointError 4   checkpoint  weights or a model that cannot be had or used
    ├── DivergedError   5   diverged  a loss or gradient that is no longer a number
    ├── ResourceError   6   resources disk, memory, device
    └── Interrupted    75   interrupted  a signal came, the state is saved

Anything else that reaches the command's boundary is a bug in vit and exits with 1.
A message is one line and names the offending value, file, row or key; a hint says what to do.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable


class VitError(Exception):
    """An expected failure: `message` says what is wrong, `hint` what to do, `code` is the exit code."""

    code = 1
    kind = "bug"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, object]:
        return {"error": {"code": self.code, "kind": self.kind, "message": self.message, "hint": self.hint}}


class UsageError(VitError):
    code = 2
    kind = "usage"


class DataError(VitError):
    code = 3
    kind = "data"


class CheckpointError(VitError):
    code = 4
    kind = "checkpoint"


class DivergedError(VitError):
    code = 5
    kind = "diverged"


class ResourceError(VitError):
    code = 6
    kind = "resources"


class Interrupted(VitError):
    code = 75
    kind = "interrupted"


class Stopped(BaseException):
    """A signal came before there was anything new to save; the exit code is 128 + `number`.

    No Exception, which much code catches, and no KeyboardInterrupt, which the parser takes for Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|bad_alloc|could not create a (memory|primitive)",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, oneDNN or Python had no memory left; each says so in its own way."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def did_you_mean(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the nearest of `known`; where nothing is near, `otherwise`, or a list of them."""
    import difflib

    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return otherwise or (f"known: {', '.join(known)}" if known else "")
