"""vit: the Vision Transformer of *An Image is Worth 16x16 Words* as a command line.

`vitcli.api` is the Python door; the `vit` command is `vitcli.cli.app`.
Importing this package imports neither torch nor datasets.
"""

import os
import time

__version__ = "0.1.0"

STARTED = time.monotonic()
"""When this process began to be vit, on the clock of time.monotonic."""


def _start_anew() -> None:
    global STARTED
    STARTED = time.monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
