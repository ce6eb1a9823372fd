"""A headless Chromium that is told what to do over two pipes (Chrome DevTools Protocol, --remote-debugging-pipe)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
_SECONDS = 120.0


class Tab:
    """One page. `complaints` are what its console and its loading found wrong."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._left, self._count = to, of, b"", 0
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            got = os.read(self._of, 2**20)
            assert got, "the browser ended"
            self._left += got
        first, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(first))

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        end = time.monotonic() + _SECONDS
        while not self.value(script):
            assert time.monotonic() < end, f"never {script}"
            time.sleep(0.1)

    def look(self, width: int, height: int, path: Path, scheme: str = "light") -> None:
        """A picture of the page in a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def tab(place: Path) -> Iterator[Tab]:
    """Skips where there is no Chromium. `place` takes its profile."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    theirs_in, to = os.pipe()
    of, theirs_out = os.pipe()
    arguments = [browser, *_QUIET, "--remote-debugging-pipe", f"--user-data-dir={place / 'profile'}", "about:blank"]
    log = os.open(place / "browser.log", os.O_WRONLY | os.O_CREAT)
    ends = [(theirs_in, 3), (theirs_out, 4), (log, 1), (log, 2)]
    actions = [(os.POSIX_SPAWN_DUP2, here, there) for here, there in ends]
    process = os.posix_spawn(browser, arguments, os.environ, file_actions=actions)
    for descriptor in (theirs_in, theirs_out, log):
        os.close(descriptor)
    try:
        yield Tab(to, of)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(to)
        os.close(of)
