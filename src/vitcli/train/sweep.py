"""A sweep: every point of a grid scored on a dev part of the training images, the best one trained anew on all of them.

This is the paper's fine-tuning protocol (Dosovitskiy et al., 2021, B.1.1: a grid on a part split off from training, then
retraining, and the mean and standard deviation of three runs). Each run has a folder of its own in the sweep's, so a
sweep that was stopped goes on where it stood.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vitcli import files, plots
from vitcli.config import check_settable, parse_value
from vitcli.errors import DivergedError, UsageError
from vitcli.runs import RUNS
from vitcli.train import runfolder
from vitcli.train.objectives.table import objective_named
from vitcli.train.plan import Plan, Request
from vitcli.train.planning import make_plan
from vitcli.train.run import train as train_plan
from vitcli.train.runlog import Log

DEV = 0.1
"""Part of the training images that points are scored on, unless train.dev says otherwise (Table 4: 1 to 10 %)."""
_ASKED = "sweep.json"
_DECIDED = {
    "run.seed": "--seeds says how many seeds",
    "train.dev": "--set train.dev=… is the part that all points are scored on",
    "train.report_on": "points are scored on the dev part, the best one on the held-out images",
}
"""What a grid cannot vary, and what to do instead."""

Point = dict[str, Any]
"""Values by `section.key`."""


def parse_grid(axes: Sequence[str]) -> list[Point]:
    """All combinations of `section.key=value,value…`, the last axis fastest.

    Values that hold commas themselves are parted by semicolons. Raises UsageError.
    """
    if not axes:
        raise UsageError("a sweep needs a grid", "give --grid optim.lr=0.001,0.003,0.01")
    values: dict[str, list[Any]] = {}
    for axis in axes:
        key, equals, text = axis.partition("=")
        key = key.strip()
        if not equals or not text.strip():
            raise UsageError(f"--grid {axis!r} has no values", "write --grid section.key=value,value")
        check_settable(key)
        if key in _DECIDED:
            raise UsageError(f"--grid cannot take {key}", f"a sweep decides it; {_DECIDED[key]}")
        if key in values:
            raise UsageError(f"--grid names {key} twice", "give all its values at once")
        items = [item.strip() for item in text.split(";" if ";" in text else ",")]
        values[key] = list(dict.fromkeys(parse_value(key, item) for item in items))
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep, resolved: the plans of its grid and of the seeds that the best point is trained with."""

    request: Request
    grid: tuple[Point, ...]
    seeds: tuple[int, ...]
    first: Plan  # of the first point, whose data and model name the folder

    def scored(self, point: Point) -> Request:
        """A point's run on what is left of the training images, reported on the dev part."""
        dev = self.request.overrides.get("train.dev", DEV)
        return self._with({**point, "train.dev": dev, "train.report_on": "dev"})

    def final(self, point: Point, seed: int, keep: str = "auto") -> Request:
        """The best point's run on all training images, reported on the held-out ones. It has no dev part to choose weights
        by, so it keeps what the point's run chose.
        """
        kept = {} if keep == "auto" else {"train.keep": keep}
        return self._with({**point, **kept, "run.seed": seed, "train.dev": 0.0})

    def _with(self, values: Point) -> Request:
        return replace(self.request, overrides={**self.request.overrides, **values})

    def as_json(self) -> dict[str, Any]:
        """The fields of `vit sweep --dry-run`."""
        plan = self.first.as_json()
        runs = len(self.grid) + len(self.seeds)
        seen = plan["images_seen"]
        return {
            "grid": [as_set(point) for point in self.grid],
            "seeds": list(self.seeds),
            "runs": runs,
            "model": plan["model"],
            "steps": plan["steps"],
            "train_flops": None if seen is None else plan["train_flops"] * runs,
            "data": plan["data"],
            "config": plan["config"],
        }


def make_sweep(request: Request, grid: Sequence[str], seeds: int = 3) -> Sweep:
    """Check every point before the first run. Raises the error of whatever does not fit."""
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be at least 1", "3 are enough for a standard deviation")
    points = parse_grid(grid)
    for point in points:
        objective = (request.overrides | point).get("train.objective", "classify")
        if not objective_named(objective).needs_labels:
            raise UsageError(
                f"a sweep compares top-1, and train.objective = {objective} has none", "run its points one by one"
            )
    start = request.overrides.get("run.seed", 0)
    sweep = Sweep(request, tuple(points), tuple(range(start, start + seeds)), None)  # type: ignore[arg-type]
    plans = [make_plan(sweep.scored(point)) for point in points]
    return replace(sweep, first=plans[0])


def as_set(point: Point) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in point.items()}


def point_name(point: Point) -> str:
    """A point as the name of its folder: `lr-0.003_depth-6`."""
    parts = [f"{key.partition('.')[2]}-{value}" for key, value in as_set(point).items()]
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-")[:100]


def _data_name(sweep: Sweep) -> str:
    """A folder's or file's own name, without those that it lies in."""
    source = sweep.first.config.data.source
    return Path(source).name if Path(source).is_absolute() else source


def choose(sweep: Sweep, out: str) -> Path:
    """The sweep's folder: `out`, else the newest unfinished one of the same sweep, else the next number under ./runs.

    Raises UsageError where `out` holds something else.
    """
    asked = identity(sweep)
    if out:
        folder = Path(out)
        files.check_out(folder, force=True, folder=True)
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and _asked(folder) != asked)):
            raise UsageError(f"{folder} exists and holds something else", "give --out a new name")
        return folder
    name = re.sub(r"[^\w.]+", "-", f"sweep-{sweep.first.config.model.name}-{_data_name(sweep)}")
    name = name.rstrip("-")[:80]
    same = [p for p in RUNS.glob("sweep-*") if not (p / "report.json").exists() and _asked(p) == asked]
    if same:
        return max(same, key=lambda p: (p / _ASKED).stat().st_mtime_ns)
    numbers = [int(m[1]) for p in RUNS.glob("sweep-*") if (m := re.fullmatch(re.escape(name) + r"-(\d+)", p.name))]
    return RUNS / f"{name}-{max(numbers, default=0) + 1}"


def identity(sweep: Sweep) -> dict[str, Any]:
    """What makes two sweeps the same."""
    run = runfolder.identity(sweep.first)
    return json.loads(json.dumps({**run, "grid": [as_set(p) for p in sweep.grid], "seeds": list(sweep.seeds)}))


def _asked(folder: Path) -> Any:
    try:
        return json.loads((folder / _ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


T = TypeVar("T")


def run(sweep: Sweep, folder: Path, log_of: Callable[[], Log], say: Callable[[str], None]) -> dict[str, Any]:
    """Score the grid (None: it diverged), retrain the best point with every seed, write `report.json` and `grid.png`. Returns the report.

    Raises Interrupted after a signal; the same call then goes on. Raises DivergedError where every point diverged.
    """
    if (folder / "report.json").exists():
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / _ASKED, identity(sweep))

    def train(request: Request, where: Path) -> dict[str, Any]:
        plan = make_plan(replace(request, started=time.monotonic()))
        return train_plan(plan, runfolder.choose(plan, str(where), "auto"), log_of())[1]

    scores: list[float | None] = []
    choices: list[str] = []
    for number, point in _numbered(sweep.grid):
        say(f"grid {number} of {len(sweep.grid)}: {text_of(point)}")
        try:
            report = train(sweep.scored(point), folder / "grid" / f"{number:02}-{point_name(point)}")
            scores.append(report["eval"]["top1"])
            choices.append((report.get("selection") or {}).get("choice", "auto"))
        except DivergedError as error:
            say(f"diverged: {error.message}")
            scores.append(None)
            choices.append("auto")
    top, place = max((-1.0 if score is None else score, -i) for i, score in enumerate(scores))
    if top < 0:
        raise DivergedError("training diverged at every point of the grid", "lower the learning rates")
    best = sweep.grid[-place]
    ties = sum(score == top for score in scores) - 1
    tie = f", as {ties} other{'s' * (ties > 1)} of {len(scores)} points: the first is taken" if ties else ""
    dev = sweep.first.dev
    on = "" if dev is None else f" of {len(dev):,} images"
    say(f"best on the dev part{on}: {text_of(best)}, top-1 {top:.4f}{tie}; now on all training images")
    runs = []
    for number, seed in _numbered(sweep.seeds):
        say(f"seed {seed} ({number} of {len(sweep.seeds)})")
        report = train(sweep.final(best, seed, choices[-place]), folder / f"seed-{seed}")
        top1 = None if report["eval"] is None else report["eval"]["top1"]
        runs.append({"seed": seed, "top1": top1, "checkpoint": report["checkpoint"]})
    tops = [run["top1"] for run in runs if run["top1"] is not None]
    result = {
        "grid": [{"set": as_set(p), "dev_top1": s} for p, s in zip(sweep.grid, scores, strict=True)],
        "best": as_set(best),
        "top1_mean": statistics.fmean(tops) if tops else None,
        "top1_std": statistics.stdev(tops) if len(tops) > 1 else 0.0 if tops else None,
        "seeds": list(sweep.seeds),
        "runs": runs,
    }
    plots.grid_scores([text_of(p) for p in sweep.grid], scores, str(folder.name), folder / "grid.png")
    files.write_json(folder / "report.json", result)
    return result


def _numbered(items: Sequence[T]) -> Iterator[tuple[int, T]]:
    return enumerate(items, start=1)


def text_of(point: Point) -> str:
    """`optim.lr=0.003 model.depth=6`."""
    return " ".join(f"{key}={value}" for key, value in as_set(point).items())
