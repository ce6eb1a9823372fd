"""A local page that a model answers on: an image goes in, its label and where the model looked come out."""

from __future__ import annotations

import json
import string
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from vitcli import __version__, pages
from vitcli.analysis import pictures
from vitcli.analysis.attention import Rollout
from vitcli.analysis.capture import reduce_attention
from vitcli.data.colour import BadImage
from vitcli.data.decode import decode, open_rgb, seen_part
from vitcli.evaluate.predictor import PredictionPlan, answers_to
from vitcli.model.vit import ViT

MOST_BYTES = 64 * 2**20
"""Of an image that is sent."""
_AT_ONCE = 8
"""Requests that are worked on or wait; more are told to come again."""
_PATIENCE = 30.0
"""Seconds that a connection may say nothing."""
_PIXELS = 640
"""The longer side of the pictures that are sent back."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Demo:
    """A model with its weights, which answers one image at a time. Raises CheckpointError."""

    def __init__(self, planned: PredictionPlan) -> None:
        self.planned = planned
        self._inference = replace(planned.inference(), outputs=planned.counted)
        self._one = threading.Lock()

    def about(self) -> dict[str, str]:
        """What the page says of the model, by the names of the places in its text."""
        planned, model = self.planned, self.planned.description.model
        rows, columns = planned.img_size
        shown = f"{len(planned.named):,} classes, {rows} x {columns} pixels, {planned.description.path.name}"
        return {"model": model.name, "about": shown, "version": f"vit {__version__}"}

    def answer(self, blob: bytes) -> dict[str, Any]:
        """Of the bytes of an image the row of `vit predict --json`, with `picture`, the image as it was read, and `overlay`, its
        attention rollout, None of a model that has no attention: each the address of a picture that holds it. Raises BadImage.
        """
        with self._one, self._inference.running():
            inference = self._inference
            most = inference.data.max_megapixels
            pixels = decode(blob, inference.view, most)[0]
            images = inference.normalised(torch.from_numpy(pixels[None]))
            row = next(answers_to(inference, images, self.planned.named, self.planned.wanted))
            image, size = open_rgb(blob, most)
            shown = pictures.shrunk(np.asarray(image), _PIXELS)
            overlay = None
            if isinstance(inference.model, ViT):
                rollout = Rollout(inference.model.config, 1, inference.machine.device)
                reduce_attention(inference.model, images, rollout, inference.machine.bf16)
                left, top, right, bottom = (side * shown.shape[0] / size[0] for side in seen_part(size, inference.view))
                overlay = pictures.overlay(shown, rollout.layers()[-1, 0], (left, top, right, bottom))
        return row | {
            "picture": pages.address(shown),
            "overlay": None if overlay is None else pages.address(overlay),
        }


class Server(ThreadingHTTPServer):
    """The page on a port of this machine alone; 0 takes one that is free. Raises OSError for one that is taken.

    A request whose Host or Origin is another machine's is refused, as a page elsewhere that a browser here has open could send it.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, demo: Demo, port: int) -> None:
        self.demo = demo
        self.free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _PATIENCE
    server_version, sys_version = f"vit/{__version__}", ""

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._prediction)

    def _answer(self, made: Callable[[str], tuple[str, str]]) -> None:
        """Send what is made of the path asked for, (kind, text), or why there is nothing."""
        try:
            self._check_sender()
            self._send(HTTPStatus.OK, *made(urlsplit(self.path).path))
        except _Refused as refused:
            self.close_connection = True
            self._send(refused.status, "json", json.dumps({"error": refused.why}))

    def _check_sender(self) -> None:
        """A request names this machine, as it does behind a tunnel too. Raises _Refused."""
        origin = self.headers.get("Origin")
        named = [f"//{self.headers.get('Host', '')}", *([origin] if origin is not None else [])]
        if not all(_host(name) in _LOOPBACK for name in named):
            raise _Refused(HTTPStatus.FORBIDDEN, "this page answers its own machine alone")

    def _page(self, path: str) -> tuple[str, str]:
        if path == "/":
            named = {name: pages.text(value) for name, value in self.server.demo.about().items()}
            return "html", string.Template(_stored("demo.html")).substitute(named)
        if path in ("/page.css", "/demo.css", "/demo.js"):
            return path.rpartition(".")[2], _stored(path[1:])
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _prediction(self, path: str) -> tuple[str, str]:
        if path != "/predict":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the image is not said")
        if len(length) > 20 or int(length) > MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES >> 20} MiB")
        if not self.server.free.acquire(blocking=False):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "other images are waiting; try again")
        try:
            blob = self.rfile.read(int(length))
            if len(blob) < int(length):
                raise _Refused(HTTPStatus.BAD_REQUEST, "the image broke off")
            return "json", json.dumps(self.server.demo.answer(blob))
        except BadImage as error:
            raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        except (RuntimeError, MemoryError) as error:  # too little memory, on a card most of all; the next may fit
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__) from None
        finally:
            self.server.free.release()

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", _KINDS.get(kind, "application/json"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not written down."""


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _stored(name: str) -> str:
    return resources.files("vitcli.tables").joinpath(name).read_text(encoding="utf-8")


def serve(server: Server, ready: Callable[[str], None]) -> None:
    """Answer until the process is interrupted. `ready` is called with the address once requests are accepted."""
    with server:
        ready(server.address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return
