"""TensorBoard and Weights & Biases as readers of a run's events.

What they hold is what metrics.jsonl holds: a run that is resumed writes them anew from its lines, so that a step that a kill made a
run do twice is there once, and one that a tracker had not brought to the disk is not lost.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vitcli import files
from vitcli.errors import UsageError
from vitcli.train.runlog import BETWEEN_STEPS, Event, read_lines

Scalars = dict[str, float]


class Tracker(ABC):
    """A sink. It begins with the first line of metrics.jsonl, so that a run that never came so far leaves nothing of it."""

    package: ClassVar[str]
    patience: ClassVar[float] = 30.0
    """Seconds that one event may take: opening a tracker asks other processes."""

    def __init__(self) -> None:
        self._begun: Event = {}
        self._is_open = False

    def __call__(self, event: str, fields: Event) -> None:
        if event == "begin":
            self._begun = fields
        elif event in ("step", *BETWEEN_STEPS):
            if not self._is_open:
                self._catch_up(fields)
            self.add(fields["step"], fields["seconds"], scalars(fields))
        elif event == "report" and self._is_open:
            self.add_report(fields["report"])
        elif event == "end" and self._is_open:
            self._is_open = False
            self.close()

    def _catch_up(self, now: Event) -> None:
        """Open, and add the lines before the one of `now`."""
        self.open(self._begun["folder"], self._begun["config"], self._begun["seconds"])
        self._is_open = True
        for line in read_lines(self._begun["folder"] / "metrics.jsonl"):
            if line["step"] != now["step"] or line.keys() & set(BETWEEN_STEPS) != now.keys() & set(BETWEEN_STEPS):
                self.add(line["step"], line["seconds"], scalars(line))

    @abstractmethod
    def open(self, folder: Path, config: dict[str, Any], seconds: float) -> None:
        """Begin in a run folder; `seconds` is how long the run has taken by now. Takes the place of what an earlier session wrote."""

    @abstractmethod
    def add(self, step: int, seconds: float, values: Scalars) -> None: ...

    @abstractmethod
    def add_report(self, report: dict[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


def scalars(fields: Event) -> Scalars:
    """The numbers of a line of metrics.jsonl, or of its event: `train/loss`, …; of an evaluation `eval/top1`, …"""
    measured = [name for name in BETWEEN_STEPS if isinstance(fields.get(name), dict)]
    own = {k: v for k, v in fields.items() if k not in ("step", "total")} | fields.get("metrics", {})
    parts = {name: fields[name] for name in measured} or {"train": own}
    return {
        f"{part}/{name}": value
        for part, values in parts.items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration by `section.key`, values of other kinds than numbers and texts as text."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, values in config.items()
        for key, value in values.items()
    }


class TensorBoard(Tracker):
    """`tensorboard/` in the run folder."""

    package = "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter

    def open(self, folder: Path, config: dict[str, Any], seconds: float) -> None:
        from torch.utils.tensorboard.summary import hparams

        place = folder / "tensorboard"
        earlier = list(place.glob("events.out.tfevents.*"))
        # a page that is open meanwhile drops what it read before: from step 0 on
        self._writer = self._make(str(place), purge_step=0 if earlier else None, flush_secs=10)
        for path in earlier:
            path.unlink()
        self._start = time.time() - seconds
        text = (folder / "run.toml").read_text(encoding="utf-8")
        self._writer.add_text("run.toml", "".join(f"    {line}\n" for line in text.splitlines()), 0)
        for summary in hparams(flat(config), {"train/loss": 0, "eval/top1": 0}):
            self._writer._get_file_writer().add_summary(summary)

    def add(self, step: int, seconds: float, values: Scalars) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=self._start + seconds)

    def add_report(self, report: dict[str, Any]) -> None:
        text = json.dumps(report, indent=2)
        self._writer.add_text("report", "".join(f"    {line}\n" for line in text.splitlines()), report["steps"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """`wandb/` in the run folder; online only for a user who is logged in, and where WANDB_MODE does not say otherwise."""

    package = "wandb"

    def __init__(self) -> None:
        super().__init__()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent that was not asked for
        import wandb

        self._wandb = wandb

    def open(self, folder: Path, config: dict[str, Any], seconds: float) -> None:
        place, mode = folder / "wandb", _mode()
        name = place / "id"
        if not name.exists():
            place.mkdir(exist_ok=True)
            files.write_text(name, uuid.uuid4().hex[:8])
        known = name.read_text(encoding="utf-8").strip()
        for earlier in place.glob(f"offline-run-*-{known}") if mode == "offline" else ():
            shutil.rmtree(earlier)  # its lines are written anew
        quiet: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "save_code": False}
        quiet |= {"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True}
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vit"), name=folder.name, id=known, dir=str(folder), config=config,
            mode=mode, resume="allow" if mode == "online" else None,
            settings=self._wandb.Settings(init_timeout=self.patience - 5, **quiet),
        )  # fmt: skip
        self._known_steps = self._run.step  # online, the service has these, and takes no step twice

    def add(self, step: int, seconds: float, values: Scalars) -> None:
        if step >= self._known_steps:
            self._run.log(values, step=step)

    def add_report(self, report: dict[str, Any]) -> None:
        self._run.summary.update({"report": report})

    def close(self) -> None:
        self._run.finish()


def _mode() -> Any:
    """wandb's own setting, but never a question for a key."""
    asked = os.environ.get("WANDB_MODE", "online")
    return "offline" if asked == "online" and not _is_logged_in() else asked


def _is_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def trackers(names: Sequence[str]) -> list[Tracker]:
    """One for each name, commas parting several. Raises UsageError for one that is unknown or not installed."""
    asked = dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip())
    for name in asked:
        if name not in TRACKERS:
            raise UsageError(f"--tracker {name}: unknown", f"known: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UsageError(f"--tracker {name}: {name} is not installed", 'pip install "vitcli[trackers]"')
    return [TRACKERS[name]() for name in asked]
