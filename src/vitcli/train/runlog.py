"""A run's events and their readers. The loop writes events; the console, files and trackers read them.

| event      | fields                                                                                         |
|------------|------------------------------------------------------------------------------------------------|
| `note`     | text: something decided that the user may want to know                                        |
| `warning`  | text                                                                                           |
| `progress` | what, done, total: decoding, evaluating                                                        |
| `step`     | step, epoch, images_seen, loss, lr, grad_norm, images_per_second, seconds, total               |
| `eval`     | step, epoch, images_seen, seconds, eval                                                        |
| `saved`    | step                                                                                           |
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Sink = Callable[[str, Event], None]

LINE_FIELDS = ("step", "epoch", "images_seen", "loss", "lr", "grad_norm", "images_per_second", "seconds", "eval")


class Log:
    """Hands each event to every sink; a sink that fails is dropped with one warning, and training goes on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)
        self.warnings: list[str] = []

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "warning":
            self.warnings.append(fields["text"])
        for sink in list(self.sinks):
            try:
                sink(event, fields)
            except Exception as error:
                self.sinks.remove(sink)
                self("warning", text=f"a log stopped: {type(error).__name__}: {error}")

    def progress(self, what: str, done: int, total: int) -> None:
        self("progress", what=what, done=done, total=total)


def metrics_file(path: Path) -> Sink:
    """`metrics.jsonl`: a line a logged step or evaluation."""

    def sink(event: str, fields: Event) -> None:
        if event in ("step", "eval"):
            line = {key: fields[key] for key in LINE_FIELDS if key in fields}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    return sink


def read_lines(path: Path) -> list[Event]:
    """The whole lines of a `metrics.jsonl`; a line that a kill cut off is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def rewind(path: Path, step: int) -> None:
    """Leave out the lines after `step`, which are about to be done again."""
    if path.exists():
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
