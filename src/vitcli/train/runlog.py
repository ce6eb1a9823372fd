"""A run's events and their readers. The loop writes events; the console, files and trackers read them.

| event      | fields                                                                                         |
|------------|------------------------------------------------------------------------------------------------|
| `note`     | text: something decided that the user may want to know                                        |
| `warning`  | text                                                                                           |
| `progress` | what, done, total: decoding, evaluating                                                        |
| `step`     | step, epoch, images_seen, loss, lr, grad_norm, images_per_second, seconds, total,              |
|            | metrics: those of the objective, by name; in metrics.jsonl they stand beside the other fields |
| `eval`     | step, epoch, images_seen, seconds, eval                                                        |
| `monitor`  | step, epoch, images_seen, seconds, monitor: of a run without labels (train/monitor.py)         |
| `saved`    | step, seconds: how long training stood still for it                                            |
| `begin`    | folder, config, step, seconds: the run's folder and configuration, and where it begins or is resumed |
| `report`   | report: of a finished run, as in report.json                                                   |
| `end`      | nothing: no further event of this run, finished or not; what a sink holds open it closes      |
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitcli import files

Event = dict[str, Any]
Sink = Callable[[str, Event], None]

BETWEEN_STEPS = ("eval", "monitor")
"""Fields of what happens before a step, which a run that is resumed there does again."""
LINE_FIELDS = (
    "step",
    "epoch",
    "images_seen",
    "loss",
    "lr",
    "grad_norm",
    "images_per_second",
    "seconds",
    "read_bytes",
    "read_retries",
    *BETWEEN_STEPS,
)
PATIENCE = 10.0
"""Seconds that a sink may take for one event, unless it has a `patience` of its own."""


class Log:
    """Hands each event to every sink and waits for it, but not for ever: one that fails, or takes longer than
    `patience` seconds, is dropped with one warning, and training goes on.
    """

    def __init__(self, sinks: Sequence[Sink], patience: float | None = None) -> None:
        self._sinks = [
            _Apart(sink, getattr(sink, "patience", PATIENCE) if patience is None else patience) for sink in sinks
        ]
        self.warnings: list[str] = []

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "warning":
            self.warnings.append(fields["text"])
        for sink in list(self._sinks):
            if sink not in self._sinks:  # dropped meanwhile
                continue
            try:
                sink(event, fields)
            except Exception as error:
                self._sinks.remove(sink)
                self("warning", text=f"a log stopped: {type(error).__name__}: {error}")

    def progress(self, what: str, done: int, total: int) -> None:
        self("progress", what=what, done=done, total=total)

    def close(self) -> None:
        """Tell the sinks that this is the end, and end their threads; what is logged later starts them again."""
        self("end")
        for sink in self._sinks:
            sink.close()


class _Apart:
    """A sink on a thread of its own, so that one that hangs holds up nothing but itself, not even the process's end."""

    def __init__(self, sink: Sink, patience: float) -> None:
        self.sink, self.patience = sink, patience
        self._thread: threading.Thread | None = None

    def __call__(self, event: str, fields: Event) -> None:
        """Raises the sink's own error, or TimeoutError."""
        if self._thread is None and not self._start():
            self.sink(event, fields)
            return
        self._events.put((event, fields))
        try:
            error = self._ends.get(timeout=self.patience)
        except queue.Empty:
            raise TimeoutError(f"no answer for {self.patience:g} s") from None
        if error is not None:
            raise error

    def _start(self) -> bool:
        """Whether the system gave a thread."""
        self._events: queue.SimpleQueue[tuple[str, Event] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, name="vit-log", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while (item := self._events.get()) is not None:
            try:
                self.sink(*item)
                self._ends.put(None)
            except Exception as error:
                self._ends.put(error)

    def close(self) -> None:
        if self._thread is not None:
            self._events.put(None)
            self._thread.join(self.patience)
            self._thread = None


class Metrics:
    """`metrics.jsonl`: a line a logged step or evaluation. It belongs to the run, so no line is ever dropped.

    On a full disk lines wait in memory until there is room, or until a step is saved, which then fails.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Lines of an earlier session are kept up to `step`, at which this one begins."""
        self.path = path
        self._waiting: list[str] = []
        rewind(path, step)
        self._whole = path.stat().st_size if path.exists() else 0

    def add(self, fields: Event) -> str:
        """Write a line. Returns why it has to wait, where it has and none waited before; else nothing."""
        own = fields.get("metrics", {})
        taken = next((name for name in own if name in LINE_FIELDS), None)
        if taken is not None:
            raise ValueError(f"the objective's metric {taken!r} has the name of a field of metrics.jsonl")
        line = {key: fields[key] for key in LINE_FIELDS if key in fields} | own
        first = not self._waiting
        self._waiting.append(json.dumps(line, allow_nan=False) + "\n")
        try:
            self._write()
        except OSError as error:
            return f"{self.path} has to wait: {error.strerror or error}" if first else ""
        return ""

    def flush(self) -> None:
        """Bring every line to the disk. Raises ResourceError."""
        with files.disk_errors(self.path):
            self._write()
            if self.path.exists():
                files.fsync_path(self.path)

    def _write(self) -> None:
        text = "".join(self._waiting).encode()
        if not text:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.ftruncate(descriptor, self._whole)  # a part of a line that a full disk took
            os.lseek(descriptor, self._whole, os.SEEK_SET)
            written = 0
            while written < len(text):
                written += os.write(descriptor, text[written:])
        finally:
            os.close(descriptor)
        self._whole += len(text)
        self._waiting.clear()


def read_lines(path: Path) -> list[Event]:
    """The whole lines of a file of JSON objects; a line that a kill cut off is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
    return lines


def rewind(path: Path, step: int) -> None:
    """Leave out what a run that is resumed from `step` does again: later lines, and what was measured at `step`."""

    def stays(line: Event) -> bool:
        at = line.get("step")
        return isinstance(at, int) and (at < step or (at == step and not line.keys() & set(BETWEEN_STEPS)))

    if path.exists():
        kept = [line for line in read_lines(path) if stays(line)]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
