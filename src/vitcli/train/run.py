"""A run as a process has it: its lock, its status, the room on its disk; and what is left where it never began."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitcli import files, flops, runs
from vitcli.errors import Interrupted, ResourceError, Stopped, VitError
from vitcli.train import memory, runfolder, state
from vitcli.train.loop import Loop
from vitcli.train.plan import Plan, replan
from vitcli.train.runfolder import Place
from vitcli.train.runlog import Log
from vitcli.train.session import Session
from vitcli.train.signals import Signals

Report = dict[str, Any]


def train(plan: Plan, place: Place, log: Log) -> tuple[Path, Report]:
    """Train, or go on training, in `place`. Returns the run folder and the report.

    Raises Interrupted after a signal, with the state saved, and any VitError of what went wrong.
    """
    if place.how == "finished":
        log("note", text=f"{place.folder} is finished already")
        return place.folder, json.loads((place.folder / "report.json").read_text(encoding="utf-8"))
    is_new, made = place.how == "new", [p for p in (place.folder, *place.folder.parents) if not p.exists()]
    if not is_new:
        plan = replan(plan, runfolder.continued(plan, place.folder))
        log("note", text=f"resuming the unfinished run {place.folder}")
    with (
        contextlib.closing(log),
        runfolder.lock(place.folder),
        Signals() as signals,
        _status_of(place.folder, is_new, made),
    ):
        if runs.status(place.folder).get("status") == "running":
            log("note", text=runs.ended(place.folder))
        if is_new:
            for name in files.remove_leftovers(place.folder / "state"):
                log("warning", text=f"ignored {name}, which a killed start left")
            runfolder.create(place.folder, plan)
        _preflight(plan, place.folder)
        return place.folder, Loop(Session(plan, place.folder, log, signals)).finish()


@contextlib.contextmanager
def _status_of(folder: Path, is_new: bool, made: Sequence[Path]) -> Iterator[None]:
    """Write how the run ended; what a new run that never came to a first step made is removed.

    A signal before the first step of a run that is resumed is an interruption like any other: its state is there.
    """
    try:
        yield
    except (Stopped, KeyboardInterrupt, Exception) as error:
        saved = state.steps(folder / "state")
        if isinstance(error, Stopped) and saved:
            runfolder.write_status(folder, "saved", saved[-1], Interrupted.code)
            raise Interrupted(
                f"stopped by {error} before a new step; step {saved[-1]} is saved in {folder}",
                "run the same command again to resume",
            ) from None
        if is_new and not saved and not (folder / "metrics.jsonl").exists():
            _undo(folder, made)
        elif isinstance(error, Exception) and not isinstance(error, Interrupted):
            code = error.code if isinstance(error, VitError) else VitError.code
            with contextlib.suppress(ResourceError):
                runfolder.write_status(folder, "failed", runs.status(folder).get("step", 0), code)
        raise


_BEFORE_THE_FIRST_STEP = ("run.toml", "state/identity.json", "state/status.json", "state/clock.jsonl", "state/lock")
"""What a run writes before its first step."""


def _undo(folder: Path, made: Sequence[Path]) -> None:
    """Remove by name what a run without a step made, and the folders that it `made`, innermost first, where they are empty then:
    whatever else is there is not its own.
    """
    for place in (folder, folder / "state"):
        files.remove_leftovers(place)
    with contextlib.suppress(OSError):
        for name in _BEFORE_THE_FIRST_STEP:
            (folder / name).unlink(missing_ok=True)
        (folder / "state").rmdir()
        for empty in made:
            empty.rmdir()


def _preflight(plan: Plan, folder: Path) -> None:
    """Raises ResourceError where the disk has no room for what a run needs at its fullest: two saved steps, the one
    that is being written, and the checkpoint.
    """
    config = plan.config
    step = memory.saved_step(config)
    there = sum(f.stat().st_size for f in (folder / "state").glob("step-*/*"))
    needed, free = (state.KEPT_STEPS + 1) * step + 4 * flops.parameters(config.model) - there, files.free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"{folder} has {free:,} bytes free; saved steps of {step:,} bytes and the checkpoint need {needed:,}",
            "free some space, or choose another folder with --out",
        )
