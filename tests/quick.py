"""`vit` for scripts with many commands: a process that has imported everything forks one for each, two seconds sooner.

`serve` is that process; `write_command` writes a `vit` for PATH that hands it its arguments, working directory, environment and
standard streams, and ends with its exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

_CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode("utf-8", "surrogateescape")
socket.send_fds(server, [len(order).to_bytes(8, "big")], [0, 1, 2])
server.sendall(order)
for descriptor in (0, 1, 2):
    os.close(descriptor)
os._exit(int(server.recv(8) or b"99"))
"""


def serve(address: str) -> None:
    """Answer until the process that asked for this one is gone."""
    import datasets  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch._dynamo  # noqa: F401 (torch's optimizers import it, in two seconds)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import vitcli.api  # noqa: F401

    FigureCanvasAgg(Figure()).draw()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while True:
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            answer(asked)
        asked.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def answer(asked: socket.socket) -> None:
    """Be `vit` in a process of its own, and say how it ended."""
    size, streams, _, _ = socket.recv_fds(asked, 8, 3)
    order = b""
    while len(order) < int.from_bytes(size, "big"):
        order += asked.recv(1 << 16)
    arguments, folder, environment = json.loads(order.decode("utf-8", "surrogateescape"))
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            for descriptor, stream in enumerate(streams):
                os.dup2(stream, descriptor)
                os.close(stream)
            asked.close()
            sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
            sys.stdout, sys.stderr = (os.fdopen(i, "w", encoding="utf-8", closefd=False) for i in (1, 2))
            from vitcli.cli.app import main

            main(arguments)
        except SystemExit as done:
            code = int(done.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(pid, 0)
    asked.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


@contextlib.contextmanager
def quick_vit(folder: Path) -> Iterator[Path]:
    """A folder for PATH with such a `vit`."""
    short = tempfile.mkdtemp(
        prefix="vit-", dir="/tmp" if Path("/tmp").is_dir() else None
    )  # a socket's name has 100 letters
    address = str(Path(short) / "socket")
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        command = folder / "bin" / "vit"
        command.parent.mkdir()
        command.write_text(_CLIENT.format(python=sys.executable, address=address))
        command.chmod(0o755)
        yield command.parent
    finally:
        server.kill()
        server.communicate()
        shutil.rmtree(short, ignore_errors=True)


if __name__ == "__main__":
    serve(sys.argv[1])
