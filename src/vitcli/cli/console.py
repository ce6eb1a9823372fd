"""stdout for the result, stderr for people: notes, warnings, progress, errors."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vitcli.errors import ResourceError, VitError
from vitcli.text import as_json, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS, LATER_SECONDS = 2.0, 10.0
"""Between two lines of progress where stderr is not a terminal: in the first minutes, when somebody may be looking, and later."""
_LATER = 180.0


class Unread(Exception):
    """Nobody reads stdout any more. No OSError, since the parser would make exit code 1 of a closed pipe."""


def take_any_text() -> None:
    """Whatever the streams' encoding, no letter ends a command: those that it does not have are written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(tree: Any) -> None:
    written = as_json(tree)
    if not _is_unicode(sys.stdout):
        written = "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in written)
    _deliver(written + "\n")


def print_lines(lines: Iterable[str]) -> None:
    _deliver("".join(visible(line) + "\n" for line in lines))


def print_row(fields: Iterable[str]) -> None:
    """A line of fields with tabs between them."""
    _deliver("\t".join(map(visible, fields)) + "\n")


def print_fields(fields: Mapping[str, Any]) -> None:
    print_lines(f"{name:<11} {value}" for name, value in fields.items())


def print_path(path: str | os.PathLike[str]) -> None:
    """A path, which another command may read: as it is, but on a terminal as what can be seen of it."""
    if sys.stdout.isatty():
        print_lines([os.fspath(path)])
    else:
        _deliver(os.fsencode(path) + b"\n")


def _written() -> int | None:
    """Bytes of the file that stdout is, up to here; None where it is none, or others may add to it too."""
    try:
        import fcntl

        is_own = stat.S_ISREG(os.fstat(1).st_mode) and not fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND
        return os.lseek(1, 0, os.SEEK_CUR) if is_own else None
    except (ImportError, OSError):
        return None


def silence(*descriptors: int) -> None:
    """Nobody reads these any more: what is still to be written goes nowhere."""
    for descriptor in descriptors:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def _is_unicode(stream: IO[str]) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _deliver(content: str | bytes) -> None:
    """Write the result. Raises ResourceError where it cannot be written, Unread where nobody reads.

    What a full disk took of it is taken back, so that a file holds whole lines.
    """
    before, stream = _written(), sys.stdout
    if not isinstance(stream, io.TextIOWrapper):  # something that collects text, as in a notebook
        stream.write(content if isinstance(content, str) else visible(os.fsdecode(content.rstrip())) + "\n")
        return
    blob = content if isinstance(content, bytes) else content.encode(stream.encoding, "backslashreplace")
    try:
        stream.flush()
        left = memoryview(blob)
        while left:
            left = left[stream.buffer.write(left) :]  # where Python does not buffer, a write may take a part
        stream.buffer.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise Unread from None
        if before is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(1, before)
        silence(1)
        raise ResourceError(
            f"cannot write the result to stdout: {error.strerror}", "free some space, or send it somewhere else"
        ) from None


def _say(text: str) -> None:
    """What is for people. That it cannot be written, on a full disk or to nobody, is no reason to stop."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _colour(sys.stderr) else text


def show_error(error: VitError, as_json: bool) -> None:
    """The message and the hint, a line each; with --json the error object on stdout as well."""
    _say(f"{_styled('error:', '1;31')} {visible(_one_line(error.message))}\n")
    if error.hint:
        _say(f"{_styled('hint:', '1;36')} {visible(_one_line(error.hint))}\n")
    if as_json:
        print_json(error.as_json())


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


asked_for: list[Path] = []
"""Files that options of this command name, which are said where they were written."""


def say_written(quiet: bool) -> None:
    """What was asked for beside the result, and is there."""
    for path in asked_for:
        if not quiet and path.exists():
            show_note(f"wrote {path}")
    asked_for.clear()


def show_note(text: str) -> None:
    _say(_styled(visible(text), "2") + "\n")


def show_warning(text: str) -> None:
    _say(f"{_styled('warning:', '1;33')} {visible(text)}\n")


def duration(seconds: float) -> str:
    """`42 s`, `3:05` or `1:02:03`."""
    whole = int(max(0, seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def score_text(scores: dict[str, Any]) -> str:
    """Top-1 of a classifier, mean average precision where labels are sets; of another objective's scores every number."""
    if "map" in scores:
        return f"mAP {percent(scores['map'])} on {scores['n']:,} images of {scores['split']}"
    if "top1" in scores:
        return f"top-1 {percent(scores['top1'])} on {scores['n']:,} images of {scores['split']}{_interval(scores)}"
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, (int, float)))


def _interval(scores: dict[str, Any]) -> str:
    """Where the score of a few images may lie on more of them (Wilson, 1927)."""
    part, n = scores["top1"], scores["n"]
    if part is None or not 0 < n < _FEW:
        return ""
    z = 1.96
    middle = (part + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n))
    return f", 95 % interval {100 * (middle - half):.0f} to {100 * (middle + half):.0f} %"


_FEW = 300


def _has_bar() -> bool:
    """Whether stderr is a terminal on which something can move."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


_PACES = 7
"""Lines of a run by whose middle speed the time left goes: a pause between two steps is in one of them."""


class Reporter:
    """A reader of a run's events: a moving bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.doing = ""
        self.begun = self.started = self.last = time.monotonic()
        self.has_printed = False
        self.paces: list[float] = []
        """Seconds of a step, of the last ones that were told."""
        self.detail = self.waiting = ""
        self._lock = threading.RLock()
        self._over = threading.Event()
        if not quiet:
            self._begin()

    def _begin(self) -> None:
        """Something moves from the start and whatever the work does: a bar by rich's own thread, else lines by one of ours."""
        if _has_bar():
            self._move_bar("starting", 0, 0, "")
            return
        self.doing, self.last = (
            "starting",
            self.begun - PLAIN_SECONDS / 2,
        )  # half of a wait is over before anything is imported
        with contextlib.suppress(RuntimeError):  # the system gives no thread: lines come with the work
            threading.Thread(target=self._beat, name="vit-progress", daemon=True).start()

    def _beat(self) -> None:
        """A line where the work itself has said nothing for a while."""
        while not self._over.wait(0.25):
            with self._lock:
                now = time.monotonic()
                if self.doing and now - self.last >= self._pause(now) and not self._over.is_set():
                    self.last = now
                    _say(self.waiting or f"{self.doing}, {duration(now - self.started)}\n")
                    self.waiting = ""

    def _pause(self, now: float) -> float:
        return PLAIN_SECONDS if now - self.begun < _LATER else LATER_SECONDS

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        if event == "warning":
            self._line(show_warning, fields["text"])
        elif self.quiet:
            return
        elif event == "note":
            self._line(show_note, fields["text"])
        elif event == "progress":
            what = fields["what"]
            self._advance(what, fields["done"], fields["total"], self.detail if what == "training" else "")
        elif event == "step":
            step, total, rate = fields["step"], fields["total"], fields["images_per_second"]
            if step and rate:
                self.paces = [*self.paces[-_PACES + 1 :], fields["images_seen"] / step / rate]
            left = (total - step) * statistics.median(self.paces) if self.paces else None
            self.detail = f"loss {fields['loss']:.3f}  {rate:,.0f} images/s"
            self._advance("training", step, total, self.detail, left)
        elif event in ("eval", "monitor"):
            self._line(show_note, f"step {fields['step']:,}: {score_text(fields[event])}")

    def progress(self, what: str, done: int, total: int) -> None:
        self("progress", {"what": what, "done": done, "total": total})

    def close(self) -> None:
        self._over.set()
        with self._lock:
            self.doing = ""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, show: Any, text: str) -> None:
        if self.bar is None:
            show(text)
            return
        from rich.markup import escape

        style = "yellow" if show is show_warning else "dim"
        self.bar.console.print(
            f"[{style}]{'warning: ' if show is show_warning else ''}{escape(visible(text))}[/]", highlight=False
        )

    def _advance(self, what: str, done: int, total: int, detail: str, left: float | None = None) -> None:
        """`left`: seconds at the speed of the last steps; otherwise by the mean speed so far. A `total` of 0 is not known."""
        with self._lock:
            if what != self.doing:
                self.doing, self.started, self.task, self.has_printed = what, time.monotonic(), None, False
                self.waiting = ""
            if _has_bar():
                self._move_bar(what, done, total, detail)
            else:
                self._plain(what, done, total, detail, left)

    def _move_bar(self, what: str, done: int, total: int, detail: str) -> None:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self.bar = Progress(
                SpinnerColumn("line"),
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            self.bar.start()
        if self.task is None:
            for task in self.bar.task_ids:
                self.bar.update(task, visible=False)
            # work that is taken up again goes on with its time
            self.task = next(
                (task.id for task in self.bar.tasks if task.description == what and what == "training"), None
            )
            if self.task is None:
                self.task = self.bar.add_task(what, total=total or None, detail=detail)
            self.bar.update(self.task, visible=True)
        self.bar.update(self.task, completed=done, total=total or None, detail=detail)
        if 0 < total <= done and what != "training":
            self.bar.remove_task(self.task)
            self.doing = ""

    def _plain(self, what: str, done: int, total: int, detail: str, left: float | None) -> None:
        """A line every few seconds; work that takes less is not worth one."""
        now, is_last = time.monotonic(), 0 < total <= done
        if not total:
            self.waiting = f"{what} {done:,}, {done / max(now - self.started, 1e-3):,.0f} a second\n"
        else:
            if left is None:
                left = (now - self.started) / max(done, 1) * (total - done)
            rest = f", {duration(left)} left" if not is_last else ""
            self.waiting = f"{what} {done:,}/{total:,}{'  ' + detail if detail else ''}{rest}\n"
        if now - self.last < self._pause(now) and not (is_last and self.has_printed):
            return
        self.last, self.has_printed = now, not is_last
        _say(self.waiting)
        self.waiting = ""
