"""What commands do around their work: say what was decided, show how far it is, print the plan or the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from vitcli import progress, runs
from vitcli.cli import console


class Planned(Protocol):
    """A plan of a measurement."""

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def as_json(self) -> dict[str, Any]: ...


def announce(notes: Sequence[str], warnings: Sequence[str] = (), *, quiet: bool) -> None:
    """Notes and warnings on stderr; the latter in quiet, too."""
    for note in () if quiet else notes:
        console.show_note(note)
    for warning in warnings:
        console.show_warning(warning)


def announced(planned: Planned, *, json: bool, quiet: bool, dry_run: bool) -> bool:
    """What a plan says on stderr; with `dry_run` the plan itself on stdout, and True: nothing is to be done."""
    announce(planned.notes, planned.warnings, quiet=quiet)
    if dry_run:
        tree = planned.as_json()
        console.print_json(tree) if json else console.print_fields(tree)
    return dry_run


@contextlib.contextmanager
def reporting(quiet: bool) -> Iterator[console.Reporter]:
    """Progress on stderr while the work lasts."""
    reporter = console.Reporter(quiet)
    try:
        with progress.told_to(reporter.progress):
            yield reporter
    finally:
        reporter.close()


def newest_checkpoint() -> str:
    """That of the newest finished run, which is said. Raises CheckpointError."""
    path = str(runs.newest_finished())
    console.show_note(f"checkpoint: {path}, the newest finished run")
    return path


def print_result(tree: Any, lines: Sequence[str], *, json: bool) -> None:
    """The result on stdout."""
    console.print_json(tree) if json else console.print_lines(lines)
