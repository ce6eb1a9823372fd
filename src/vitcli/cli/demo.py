"""`vit demo`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated

import typer

from vitcli.cli import console, options
from vitcli.cli.command import announce
from vitcli.cli.train import Checkpoint
from vitcli.errors import UsageError

if TYPE_CHECKING:
    from vitcli.analysis.demo import Demo, Server

Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        metavar="N",
        show_default=False,
        help="The port of the page; 0 takes any that is free. \\[default: 7860, or the next that is free]",
    ),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")]
_PORTS = range(7860, 7880)


def demo(
    checkpoint: Checkpoint = "",
    port: Port = None,
    open_: Open = False,
    img_size: options.ImgSize = "",
    top_k: options.TopK = None,
    labels: options.Labels = "",
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A page in the browser: drop an image, see its label and where the model looked.

    Prints the page's address and answers until Ctrl-C. Only this machine can reach it, and nothing is kept or sent elsewhere.
    From another machine: ssh -L 7860:localhost:7860 HOST, then http://localhost:7860 there.
    """
    overrides = options.overrides(None, set_, eval__top_k=top_k)
    from vitcli import api

    planned = api.plan_prediction(
        checkpoint,
        img_size=options.size(img_size),
        labels=labels,
        device=device,
        precision=precision,
        overrides=overrides,
    )
    announce(planned.notes, quiet=quiet)
    from vitcli.analysis import demo as page

    def ready(address: str) -> None:
        console.print_json({"url": address}) if json else console.print_lines([address])
        if not quiet:
            console.show_note("open it in a browser; Ctrl-C ends it")
        if open_:
            import webbrowser

            webbrowser.open(address)

    page.serve(_server(page.Demo(planned), port), ready)


def _server(demo: Demo, port: int | None) -> Server:
    """Raises UsageError for a port that is taken or not allowed."""
    from vitcli.analysis.demo import Server

    for number in _PORTS if port is None else [port]:
        try:
            return Server(demo, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE and not isinstance(error, PermissionError):
                raise
    taken = f"--port {port}" if port is not None else f"every port from {_PORTS.start} to {_PORTS.stop - 1}"
    raise UsageError(f"{taken} is taken, or may not be had", "--port 0 takes one that is free")
