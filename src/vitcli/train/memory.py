"""Whether a run fits into the memory of its machine, decided before it starts: a kernel that has to decide kills it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vitcli import flops
from vitcli.config import Config
from vitcli.errors import ResourceError
from vitcli.evaluate.inference import batch_size
from vitcli.train.objectives.base import Extra
from vitcli.train.objectives.table import objective_named
from vitcli.world import launched

RECIPE_PART = 0.5
"""Of the machine's memory, what a recipe's own choices may take; the rest is for other programs and the error of the estimate."""


@dataclass(frozen=True)
class Room:
    """Bytes: of the machine, by which recipes choose, since it does not change; and free of other use now."""

    total: int
    free: int


def room_of(device: torch.device) -> Room | None:
    """The memory that tensors on `device` lie in; None where the system does not say.

    For a CPU the machine's, or what the control groups of this process allow where that is less (Linux,
    Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). The page cache counts as free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free)
    rooms = [*_machine(), *_control_groups()]
    return Room(min(r.total for r in rooms), max(0, min(r.free for r in rooms))) if rooms else None


def _machine() -> Iterator[Room]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        yield Room(1024 * kilobytes["MemTotal"], 1024 * kilobytes["MemAvailable"])
    except (OSError, ValueError, KeyError, IndexError):
        try:  # not Linux: no word of what is free
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, AttributeError):
            return
        if total > 0:
            yield Room(total, total)


_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}
"""Limit, use, and the fields of memory.stat that are page cache, of version 2 and of version 1."""


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Room]:
    """A room for each group with a limit, from this process's up to the root; in a container that is the container's."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = "memory" if "memory" in controllers.split(",") else controllers
        if version not in _FILES:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            if (room := _limit(root / version / folder, *_FILES[version])) is not None:
                yield room


def _limit(folder: Path, limit: str, used: str, cached: tuple[str, ...]) -> Room | None:
    try:
        total, now = int((folder / limit).read_text()), int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return Room(total, total - now + sum(int(stat.get(name, 0)) for name in cached))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None


def micro_batches(own: int, whole: int, accumulate: int) -> int:
    """How many a process makes of its images: as few as are no larger than those of a process that has the whole batch."""
    most = max(1, (whole or own) // accumulate)
    return next(n for n in range(1, own + 1) if own % n == 0 and own // n <= most)


def needed(config: Config, device: str, bf16: bool) -> flops.Memory:
    """An estimate for the run of `config`. Of several processes, each with a GPU, for one of them: those on one CPU have its memory together."""
    processes = launched().size if device == "cuda" else 1
    shared = processes if config.scale.shard else 1
    if processes > 1 and config.train.batch_size % processes == 0:
        own = config.train.batch_size // processes
        parts = micro_batches(own, config.train.batch_size, config.train.accumulate)
        config = replace(config, train=replace(config.train, batch_size=own, accumulate=parts))
    objective = objective_named(config.train.objective)
    memory = flops.run_memory(config, bf16, batch_size(device, config.model.breadth), objective.activations(config))
    extra = objective.extra(config)
    saved = extra_bytes(config, extra)
    gradients = 4 * extra.parameters + (2 * extra.parameters if bf16 else 0)
    state, saving = memory.state + saved + gradients, memory.saving + saved
    return replace(memory, state=-(-state // shared) + 4 * extra.held, saving=-(-saving // shared))


def saved_step(config: Config) -> int:
    """Bytes of a saved step, what the objective owns included."""
    step = flops.saved_bytes(config.model, config.optim.name, config.train.ema > 0, config.train.tuned)
    return step + extra_bytes(config, objective_named(config.train.objective).extra(config))


def extra_bytes(config: Config, extra: Extra) -> int:
    """Of what an objective owns, in a saved step: with the moments of Adam, LAMB or SGD, as Muon takes none of it."""
    moments = 1 if config.optim.name == "sgd" else 2
    return 4 * (extra.kept + (1 + moments) * extra.parameters)


def fitted(config: Config, device: str, bf16: bool, room: float) -> Config:
    """`config` in micro-batches, and evaluated in parts, that fit into `room` bytes if any do. Results stay the same."""
    if needed(config, device, bf16).total <= room:
        return config
    memory = needed(config, device, bf16)
    spare = room - memory.state - memory.saving
    at_once = config.eval.batch_size or batch_size(device, config.model.breadth)
    while at_once > 1 and flops.evaluation_memory(config.model, at_once, bf16) > spare:
        at_once //= 2
        config = replace(config, eval=replace(config.eval, batch_size=at_once))
    batch = config.train.batch_size
    for accumulate in (n for n in range(config.train.accumulate, batch + 1) if batch % n == 0):
        smaller = replace(config, train=replace(config.train, accumulate=accumulate))
        if needed(smaller, device, bf16).total <= room:
            return smaller
    return config


def check(config: Config, device: str, bf16: bool, room: Room) -> None:
    """Raises ResourceError where the run does not fit into what is free, with what would."""
    memory = needed(config, device, bf16)
    if memory.total <= room.free:
        return
    images = config.train.batch_size // config.train.accumulate
    raise ResourceError(
        f"training {config.model.name} on {images:,} images at a time, {config.train.batch_size:,} a batch, needs about "
        f"{memory.total / 1e9:.1f} GB of memory; {device} has {room.free / 1e9:.1f} GB free",
        _way_out(config, device, bf16, room.free),
    )


def _way_out(config: Config, device: str, bf16: bool, free: float) -> str:
    """The change that fits: of micro-batches, checkpointing or evaluation, which keep the result, else of the batch, else of the
    model.
    """
    smaller = fitted(config, device, bf16, free)
    if needed(smaller, device, bf16).total > free and config.model.cost().checkpointed is not None:
        again = fitted(replace(config, run=replace(config.run, checkpointing=True)), device, bf16, free)
        smaller = again if needed(again, device, bf16).total <= free else smaller
    batch = config.train.batch_size
    while needed(smaller, device, bf16).total > free and batch > 1:
        batch = 2 ** ((batch - 1).bit_length() - 1)
        smaller = fitted(
            replace(config, train=replace(config.train, batch_size=batch, accumulate=1)), device, bf16, free
        )
    if needed(smaller, device, bf16).total > free:
        return "take a smaller --model or --img-size"
    changes = [f"--batch-size {batch}"] if batch != config.train.batch_size else []
    if smaller.run.checkpointing != config.run.checkpointing:
        changes.append("--set run.checkpointing=true")
    if smaller.train.accumulate != config.train.accumulate:
        changes.append(f"--set train.accumulate={smaller.train.accumulate}")
    if smaller.eval.batch_size != config.eval.batch_size:
        changes.append(f"--set eval.batch_size={smaller.eval.batch_size}")
    same = "" if batch != config.train.batch_size else ": the result is the same"
    return f"this fits: {' '.join(changes)}{same}"
