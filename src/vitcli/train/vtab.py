"""Many data sets in one table: a checkpoint moved to each, by fine-tuning or a probe (VTAB: paper §4.1 and Table 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.config import Config, Overrides, Size, apply, parse_set
from vitcli.data.entries import Absent, Entries, folder_of
from vitcli.errors import UsageError, VitError, did_you_mean
from vitcli.evaluate.probe import METHODS, plan_probe
from vitcli.progress import Progress, silent
from vitcli.train import runfolder
from vitcli.train.plan import Request
from vitcli.train.planning import make_plan
from vitcli.train.run import train
from vitcli.train.runlog import Log

FINETUNE = "finetune"
_ONE_NUMBER: Overrides = {"probe.shots": (5,), "probe.k": (20,)}
"""Five shots are the paper's linear few-shot accuracy (§4.1)."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks, and how a checkpoint is moved to each. Runs of fine-tuning lie in `out`, a folder a task."""

    checkpoint: str
    entries: Entries
    tasks: tuple[str, ...]
    method: str
    out: Path
    overrides: Overrides
    img_size: Size | None = None
    device: str = "auto"
    precision: str = "auto"

    def check(self) -> None:
        """Raises UsageError for a method or a task that there is not."""
        if self.method not in (FINETUNE, *METHODS):
            raise UsageError(f"unknown method {self.method!r}", did_you_mean(self.method, [FINETUNE, *METHODS]))
        several = next((key for key in _ONE_NUMBER if len(self.overrides.get(key, ())) > 1), None)
        if several is not None:
            raise UsageError(f"{several} has several values", "a table has one score a task: give one")
        wrong = next((task for task in self.tasks if task not in self.entries.by_name), None)
        if wrong is not None:
            raise UsageError(f"no task {wrong!r}", did_you_mean(wrong, self.entries.by_name))


def run_suite(
    suite: Suite, say: Callable[[str], None], log: Callable[[], Log], progress: Progress = silent
) -> dict[str, Any]:
    """The fields of `vit vtab --json`. A task whose data are not there is named in `absent`, one that failed in `failed`; neither is in
    any mean, and a mean of a group that lacks one is None. Raises VitError where a task fails that is asked for alone.
    """
    suite.check()
    rows: list[dict[str, Any]] = []
    for task in suite.tasks:
        entry = suite.entries.by_name[task]
        row: dict[str, Any] = {"task": task, "group": entry.group, "top1": None, "n": None}
        try:
            folder_of(suite.entries, task)
            say(f"{task}: {suite.method}")
            row |= _finetuned(suite, task, log()) if suite.method == FINETUNE else _probed(suite, task, progress)
        except Absent as error:
            row["absent"] = error.message
            say(f"{task}: absent, {error.message}")
        except VitError as error:
            if len(suite.tasks) == 1 or error.code == 75:
                raise
            row["failed"] = error.message
            say(f"{task}: failed, {error.message}")
        rows.append(row)
    return {"checkpoint": suite.checkpoint, "method": suite.method, "tasks": rows, **table_of(rows)}


def table_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of top-1 by group and of all tasks, each task counting once."""
    groups = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        groups[group] = _mean([row["top1"] for row in rows if row["group"] == group])
    whole = _mean([row["top1"] for row in rows])
    return {
        "groups": groups,
        **whole,
        "absent": [row["task"] for row in rows if "absent" in row],
        "failed": [row["task"] for row in rows if "failed" in row],
    }


def _mean(scores: Sequence[float | None]) -> dict[str, Any]:
    """`mean` of all, None where one is missing, and `mean_of_present`, those that are there."""
    there = [score for score in scores if score is not None]
    mean = sum(there) / len(there) if there else None
    return {
        "mean": mean if len(there) == len(scores) else None,
        "mean_of_present": mean,
        "tasks_present": len(there),
        "tasks_of": len(scores),
    }


def _finetuned(suite: Suite, task: str, log: Log) -> dict[str, Any]:
    """A run in a folder of its own, resumed or taken as it is where it is there."""
    needed = parse_set(list(suite.entries.by_name[task].set))
    asked = {**needed, **suite.overrides, "data.source": suite.entries.address(task)}
    asked |= {"run.device": suite.device} if suite.device != "auto" else {}
    asked |= {"run.precision": suite.precision} if suite.precision != "auto" else {}
    asked |= {"model.img_size": suite.img_size} if suite.img_size else {}
    plan = make_plan(Request("finetune", asked, suite.checkpoint))
    place = runfolder.choose(plan, str(suite.out / task), "auto")
    folder, report = train(plan, place, log)
    scores = report["eval"] or {}
    return {"top1": scores.get("top1"), "n": scores.get("n"), "run": str(folder)}


def _probed(suite: Suite, task: str, progress: Progress) -> dict[str, Any]:
    """Raises DataError, also where a class has fewer images than the shots asked for."""
    overrides = dict(_ONE_NUMBER) | suite.overrides
    plan = plan_probe(
        suite.checkpoint, suite.entries.address(task), method=suite.method, img_size=suite.img_size, device=suite.device,
        precision=suite.precision, overrides=overrides,
    )  # fmt: skip
    found = plan.measure(progress)
    (row,) = found["results"]
    return {"top1": row["top1"], "n": row["n"], "results": found["results"]}


def check_settings(overrides: Overrides, method: str) -> None:
    """Raises UsageError for a value that does not concern the method."""
    if method == FINETUNE:
        apply(Config(), {k: v for k, v in overrides.items() if not k.startswith("model.")})
        return
    wrong = next((k for k in overrides if not k.startswith(("probe.", "eval.", "data.", "model."))), None)
    if wrong is not None:
        raise UsageError(f"{wrong} does not concern a probe", "it takes --set probe.…, eval.…, data.… and model.… only")
