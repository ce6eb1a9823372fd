"""Imports everything once and then forks a process for each command line that it reads on stdin.

So a test can start, kill and start again a real `vit` in half a second instead of five. Orders and answers are a JSON
object a line: `{"start": {...}}` answers with a pid, `{"poll": pid}` with an exit status or null.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import datasets  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch._dynamo  # noqa: F401 (torch's optimizers import it, in two seconds)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vitcli.api  # noqa: F401
from vitcli.cli.app import main

_figure = Figure()
_figure.subplots().set_title("fonts")
FigureCanvasAgg(_figure).draw()


def child(order: dict[str, Any]) -> None:
    """Become `vit` with the order's arguments; `before` is Python that is run first, to inject a fault."""
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    for descriptor, name in ((0, order["stdin"] or os.devnull), (1, order["out"]), (2, order["err"])):
        opened = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    exec(order["before"], {})
    main(order["arguments"])


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    child(order["start"])
                except SystemExit as done:
                    code = int(done.code or 0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            answer: Any = pid
        else:
            ended, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
