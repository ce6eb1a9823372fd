"""Run folders: where a run goes, whether it is resumed, and that only one process writes there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitcli import __version__, files
from vitcli.config import Config, apply, as_dict, layer, read_toml, to_toml, uncompared
from vitcli.data.split import Split
from vitcli.errors import UsageError, VitError
from vitcli.runs import RUNS, WEIGHTS, status
from vitcli.train.plan import Plan
from vitcli.weights.checkpoint import check_digest
from vitcli.weights.describe import open_checkpoint


@dataclass(frozen=True)
class Place:
    """`how`: a new folder, an unfinished run of the same configuration, or a finished one."""

    folder: Path
    how: Literal["new", "unfinished", "finished"]


def write_status(folder: Path, what: str, step: int, code: int | None = None) -> None:
    files.write_json(
        folder / "state" / "status.json",
        {"status": what, "step": step, "code": code, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
    )


def identity(plan: Plan) -> dict[str, Any]:
    """What makes two runs the same: the values asked for, the data's content, the weights to start from."""
    asked = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in plan.request.overrides.items()
        if k not in uncompared() and k not in ("data.source", "run.init", "run.command")
    }
    return {
        "command": plan.request.command,
        "asked": asked,
        "data": plan.source.identity(plan.request.progress) if plan.source else "none",
        "parent": (plan.parent.sha256 or str(plan.parent.path)) if plan.parent else "",
        **({"teacher": plan.config.train.teacher_digest} if plan.config.train.teacher else {}),
        **_weights_of_classes(plan),
        **({_POOL: _digest(plan.unlabelled)} if plan.unlabelled is not None else {}),
    }


def _weights_of_classes(plan: Plan) -> dict[str, Any]:
    """What a file of class weights says, by its bytes."""
    path = Path(plan.config.train.class_weights)
    return {_WEIGHTS: files.sha256_file(path)} if plan.config.train.class_weights and path.is_file() else {}


_POOL = "unlabelled"
_WEIGHTS = "class weights"
_IMAGES = "images"
_VERSION = "vit"
"""Beside what makes runs the same: how many images each part had, and who wrote it, to say what changed."""


def _digest(pool: Split) -> str:
    """Of the images that a teacher labels."""
    return hashlib.sha256(pool.digests().tobytes()).hexdigest()


def _stored(folder: Path) -> dict[str, Any]:
    """The identity of a folder's run. Raises OSError or ValueError."""
    tree = json.loads((folder / "state" / "identity.json").read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("not a table")
    return tree


def _counts(plan: Plan) -> dict[str, int]:
    counts = {name: len(part) for name, part in plan.source.splits.items()} if plan.source else {}
    return counts if plan.stream is None else {plan.stream.name: len(plan.stream), **counts}


def _comparable(config: Config) -> dict[str, Any]:
    flat = {f"{s}.{k}": v for s, values in as_dict(config).items() for k, v in values.items()}
    return {k: v for k, v in flat.items() if k not in uncompared() and k not in ("data.source", "run.init")}


def stored_config(folder: Path) -> Config:
    return apply(Config(), read_toml(folder / "run.toml"))


def _is_same(folder: Path, plan: Plan) -> bool:
    try:
        theirs, ours = _stored(folder), identity(plan)
        theirs.pop(_IMAGES, None)
        theirs.pop(_VERSION, None)
        if theirs == ours:
            return True
        return (
            theirs.pop("asked") is not None
            and ours.pop("asked") is not None
            and theirs == ours
            and _comparable(stored_config(folder)) == _comparable(plan.config)
        )
    except (OSError, ValueError, VitError, KeyError, AttributeError):
        return False


def differences(folder: Path, plan: Plan) -> str:
    """The keys in which a folder's run and the plan differ, with both values; the versions, where they do."""
    stored: dict[str, Any] = {}
    try:
        stored = _stored(folder)
        theirs, ours = _comparable(stored_config(folder)), _comparable(plan.config)
    except (OSError, ValueError, VitError) as error:
        return f"what it was asked for cannot be read ({str(error)[:200]}){_versions(stored)}"
    found = [
        f"{k}: {theirs.get(k)} there, {ours.get(k)} now"
        for k in sorted(theirs.keys() | ours.keys())
        if theirs.get(k) != ours.get(k)
    ]
    if stored.get("data") != identity(plan)["data"]:
        found.insert(0, _data_changed(stored_config(folder).data.source, stored.get(_IMAGES), plan))
    if stored.get(_POOL) != identity(plan).get(_POOL):
        found.insert(0, "unlabelled: other images there than now")
    if stored.get(_WEIGHTS) != identity(plan).get(_WEIGHTS):
        found.insert(0, "class weights: the file says something else than then")
    if stored.get("parent") != identity(plan)["parent"]:
        found.insert(0, f"checkpoint: {stored_config(folder).run.init} there, {plan.config.run.init} now")
    return ("; ".join(found) or "what was asked for") + _versions(stored)


def _versions(stored: dict[str, Any]) -> str:
    theirs = stored.get(_VERSION, __version__)
    return "" if theirs == __version__ else f"; it was begun by vit {theirs!s:.20}, and this is vit {__version__}"


def _data_changed(there: str, counts: Any, plan: Plan) -> str:
    """What is other about the data: its name, how many images it has, or what they are."""
    now, here = _counts(plan), plan.config.data.source
    if there != here or not isinstance(counts, dict):
        return f"data.source: {there} there, {here} now"
    changed = [f"{name} {counts.get(name, 0)} there, {now.get(name, 0)} now" for name in sorted({*counts, *now})]
    if counts != now:
        return f"the images of {here}: {', '.join(changed)}"
    return f"the images of {here}: as many, but not the same files or labels"


def choose(plan: Plan, out: str, resume: str) -> Place:
    """Where the run goes (see `Running the same command again` in the reference). Raises UsageError."""
    if out:
        return _given(Path(out), plan, resume)
    name = re.sub(r"[^\w.]+", "-", f"{plan.config.model.name}-{plan.source.name if plan.source else 'none'}")[:100]
    if resume != "never":
        unfinished = [
            p
            for p in RUNS.glob("*")
            if status(p) and status(p).get("status") != "done" and _is_same(p, plan) and not _is_locked(p)
        ]
        if unfinished:
            return Place(max(unfinished, key=lambda p: (p / "state" / "status.json").stat().st_mtime_ns), "unfinished")
    numbers = [int(m[1]) for p in RUNS.glob("*") if (m := re.fullmatch(re.escape(name) + r"-(\d+)", p.name))]
    return Place(RUNS / f"{name}-{max(numbers, default=0) + 1}", "new")


def _given(folder: Path, plan: Plan, resume: str) -> Place:
    files.check_out(folder, force=True, folder=True)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return Place(folder, "new")
    if resume == "never":
        number = 2
        while folder.with_name(f"{folder.name}-{number}").exists():
            number += 1
        return Place(folder.with_name(f"{folder.name}-{number}"), "new")
    if not folder.is_dir() or not (folder / "state").is_dir():
        raise UsageError(f"{folder} exists and is not a run folder", "give --out a new name")
    if _has_not_begun(folder):
        return Place(folder, "new")
    if not _is_same(folder, plan):
        raise UsageError(
            f"{folder} holds a run of another configuration: {differences(folder, plan)}",
            "give --out another name, or --resume never to start beside it",
        )
    return Place(folder, "finished" if _is_finished(folder) else "unfinished")


def _has_not_begun(folder: Path) -> bool:
    """Whether a run was killed before its folder was complete, so that there is nothing of it but a lock."""
    begun = status(folder) or (folder / "metrics.jsonl").exists() or any((folder / "state").glob("step-*"))
    return (folder / "state" / "lock").is_file() and not begun


def _is_finished(folder: Path) -> bool:
    """Whether a run ended and its final weights are whole; where it is not, its end is done once more from the state."""
    if status(folder).get("status") != "done":
        return False
    with contextlib.suppress(OSError, ValueError, RecursionError, VitError):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        check_digest(open_checkpoint(folder / WEIGHTS))
        return isinstance(report, dict) and isinstance(report.get("checkpoint"), str)
    return False


def continued(plan: Plan, folder: Path) -> Config:
    """The stored configuration with the new values of what is not compared."""
    new = {
        f"{s}.{k}": v
        for s, values in as_dict(plan.config).items()
        for k, v in values.items()
        if f"{s}.{k}" in uncompared()
    }
    new |= {"data.source": plan.config.data.source, "run.init": plan.config.run.init}
    return apply(Config(), layer(read_toml(folder / "run.toml"), new))


def create(folder: Path, plan: Plan) -> None:
    """What describes the run, into its locked folder; the status comes last. Raises ResourceError, or UsageError where
    another run was first.
    """
    if status(folder):
        raise UsageError(f"{folder} was just taken by another run", "run the command again")
    files.write_text(folder / "run.toml", to_toml(plan.config))
    files.write_json(
        folder / "state" / "identity.json", identity(plan) | {_IMAGES: _counts(plan), _VERSION: __version__}
    )
    write_status(folder, "running", 0)


def _is_locked(folder: Path) -> bool:
    """Whether a process is at work in `folder`, or none may be."""
    try:
        with lock(folder, patience=0):
            return False
    except VitError:
        return True


@contextlib.contextmanager
def lock(folder: Path, patience: float = 1.0) -> Iterator[None]:
    """Only one process writes into a run folder, which is made where there is none; the lock dies with the process.

    Raises UsageError naming the other after `patience` seconds, or ResourceError where nothing can be written.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    path = folder / "state" / "lock"
    with files.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    with file:
        until = time.monotonic() + patience  # another process may be looking whether the folder is in use
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    file.seek(0)
                    raise UsageError(
                        f"{folder} is in use by {file.read().decode().strip() or 'another process'}",
                        "wait for it, or give --out another name",
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
                break  # a network disk without locks
        with contextlib.suppress(OSError):  # on a full disk the lock holds, though it does not say for whom
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
