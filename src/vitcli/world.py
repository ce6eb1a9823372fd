"""The processes that train together, as a launcher such as torchrun starts them: how many there are, and what they tell each other.

The first one is the run: it decides, logs, measures and saves. The others follow it (train/following.py).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitcli.errors import ResourceError, UsageError, VitError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PATIENCE = 7200.0
"""Seconds that a process waits for the others, unless VIT_WORLD_TIMEOUT says another number: evaluations and saves take some."""
_MEETING = 1800.0
"""Seconds that it waits until all are there: they plan the same run, and one may read data that another has read before."""
_BUCKET = 25_000_000
"""Numbers that are summed over the processes at once."""


@dataclass(frozen=True)
class World:
    """How many processes there are, which one this is, and which one on its machine."""

    size: int = 1
    rank: int = 0
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        return self.size > 1

    def share(self, count: int) -> slice:
        """This process's part of so many, which `size` must divide."""
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)


@functools.cache
def launched() -> World:
    """As the launcher says in the environment (torch.distributed's names). Raises UsageError for what no launcher writes."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    try:
        size, rank, local = (int(os.environ.get(name, default)) for name, default in zip(names, "100", strict=True))
    except ValueError:
        size = rank = local = -1
    if not 0 <= rank < size or local < 0:
        said = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UsageError(f"{said}: no launcher says that", "start with torchrun, or unset them")
    return World(size, rank, local)


_ALONE = World()
_joined = _ALONE


def world() -> World:
    """The processes that this one has joined; itself alone before that, and in commands that are the first process's."""
    return _joined


def join(device: torch.device) -> None:
    """Meet the other processes, once. Raises ResourceError where they do not come."""
    import torch
    import torch.distributed as distributed

    global _joined
    if not launched().is_shared or world().is_shared:
        return
    if device.type == "cuda":
        torch.cuda.set_device(launched().local_rank)
    try:
        patience = float(os.environ.get("VIT_WORLD_TIMEOUT") or _PATIENCE)
        timeout, meeting = (datetime.timedelta(seconds=s) for s in (patience, min(patience, _MEETING)))
    except (ValueError, OverflowError):
        raise UsageError(
            f"VIT_WORLD_TIMEOUT={os.environ['VIT_WORLD_TIMEOUT']} is no number of seconds", "such as 600, or unset it"
        ) from None
    try:
        with _in_touch(), _stopped_at_once():
            store, rank, size = next(
                distributed.rendezvous("env://", launched().rank, launched().size, timeout=meeting)
            )
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except ValueError as error:  # what the launcher did not say
        raise UsageError(
            f"WORLD_SIZE={launched().size}, and the processes cannot meet: {error}",
            "start with torchrun, or set MASTER_ADDR and MASTER_PORT; unset WORLD_SIZE and RANK for one process",
        ) from None
    _joined = launched()


@contextlib.contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Within it Ctrl-C ends the process: there is nothing to save, and torch waits where Python hears no signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Within it the processes of a launcher are met, if there are any."""
    join(device)
    try:
        yield world()
    finally:
        leave()


def leave() -> None:
    """Nothing more is told."""
    import torch.distributed as distributed

    global _joined
    if world().is_shared:
        _joined = _ALONE
        distributed.destroy_process_group()


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    """Raises ResourceError where another process is gone, or does not answer in time."""
    try:
        yield
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0].partition(". This is typically")[0][-200:]
        raise ResourceError(
            f"another process of this run has ended, or does not answer: {said}",
            "it says why; the same command goes on from the last saved step",
        ) from None


_BETWEEN = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe|process ?group", re.IGNORECASE
)
"""What torch says where processes do not reach each other."""


@contextlib.contextmanager
def in_touch() -> Iterator[None]:
    """Around work in which torch's engines speak to the other processes. Raises ResourceError where one is gone; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if not (world().is_shared and _BETWEEN.search(str(error))):
            raise
        with _in_touch():
            raise


def told(thing: Any = None) -> Any:
    """What the first process gives, in all of them."""
    import torch
    import torch.distributed as distributed

    if not world().is_shared:
        return thing
    box = [thing]
    with _in_touch():
        distributed.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def each_does(work: Callable[[], Any]) -> list[Any]:
    """What `work` gives in each process, in the order of their ranks, in all of them. Raises everywhere what it raises in one."""
    import torch.distributed as distributed

    error: Exception | None = None
    gives: tuple[Any, ...] = ()
    try:
        gives = (work(),)
    except Exception as raised:  # told to the others first, who wait
        error = raised
        vits = raised if isinstance(raised, VitError) else ResourceError(f"{type(raised).__name__}: {raised}"[:300])
        gives = (type(vits), vits.message, vits.hint)
    found = [gives] * world().size
    if world().is_shared:
        with _in_touch():
            distributed.all_gather_object(found, gives)
    if error is not None:
        raise error
    for kind, message, hint in (told for told in found if len(told) > 1):
        raise kind(message, hint)
    return [told[0] for told in found]


def share_out(tensors: Iterable[Tensor]) -> None:
    """The first process's values, in all of them."""
    import torch.distributed as distributed

    if world().is_shared:
        with _in_touch():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def add_up(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, many of them in one message."""
    import torch
    import torch.distributed as distributed

    if not world().is_shared:
        return
    buckets: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}
    counts: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        buckets.setdefault((*kind, counts.get(kind, 0) // _BUCKET), []).append(tensor)
        counts[kind] = counts.get(kind, 0) + tensor.numel()
    for bucket in buckets.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _in_touch():
            distributed.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
