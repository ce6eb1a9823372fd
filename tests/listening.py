"""An address on this machine that nobody should call."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Listener:
    """`calls` are the first bytes of each."""

    address: str
    calls: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    """A listener on loopback for as long as the context lasts; whoever calls is heard and hung up on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        listener, stop = Listener(f"127.0.0.1:{server.getsockname()[1]}"), threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(0.2)
                        listener.calls.append(b"")
                        listener.calls[-1] = connection.recv(200)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield listener
        finally:
            stop.set()
            thread.join()
