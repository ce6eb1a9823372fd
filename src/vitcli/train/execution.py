"""How updates are executed: each operation launched by the host, some of them compiled into one, or all replayed as one recording.

A GPU that computes faster than a host can launch waits for most of its time. A recording (a CUDA graph) of one whole update, from
what is random to the last weight, is launched at once. It reads memory at fixed addresses alone: the batch is copied there, and
its step, rates and refusals are tensors. torch.compile costs its time once and makes fewer operations of many.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from vitcli.config import Config
from vitcli.data.batch import Batch
from vitcli.errors import is_out_of_memory
from vitcli.machine import Machine, Timing, timing_of, wait_for
from vitcli.text import first_line
from vitcli.train.progressive import stages
from vitcli.train.step import Update, update
from vitcli.train.trainer import Trainer

T = TypeVar("T")
Recording = tuple[T, Callable[[], None]]
"""What the recorded work returned, whose tensors each replay fills anew, and the replay."""

_MEASURED = (2, 5)
"""Steps of a session, from 0, that are timed: the first ones hold costs that come once."""
_WARM_UP = 2
"""Updates that are launched before one of the same shape is recorded: libraries reserve memory and compile in the first."""
LAUNCH_BOUND = 0.5
"""Part of an update that launching it takes, from which on it is recorded."""
_PAYS = 6
"""Times the cost of compiling that a run has still to go for torch.compile to pay: it saved a fifth to a quarter of a step of ViT-B/16
and L/16 on an H100, so that at five times it only breaks even."""
_COMPILING, _COMPILING_A_BLOCK = 14.0, 1.0
"""Seconds: 26 for the 12 blocks of ViT-B/16, 38 for the 24 of L/16 on the same machine."""


def compile_seconds(config: Config) -> float:
    """About what torch.compile takes in a run, each size of its images for itself."""
    blocks = getattr(config.model, "depth", 0) or 2 * _COMPILING
    return (_COMPILING + _COMPILING_A_BLOCK * blocks) * len(list(stages(config.model, config.train.low_res)))


def chosen(machine: Machine, timing: Timing, rest: float, cost: float, records: bool) -> Machine:
    """`machine` with what it left open decided: compiled where at least `_PAYS` times the `cost` of it is to come of the `rest` seconds of the
    run, recorded where launching takes much of an update and `records` says that it can be.
    """
    compiles = machine.compile if machine.compile is not None else rest >= _PAYS * cost
    bound = timing.launch_share >= LAUNCH_BOUND
    return replace(machine, compile=compiles, replay=records and (bound if machine.replay is None else machine.replay))


def told(machine: Machine, timing: Timing, cost: float) -> str:
    """What was chosen, and what it costs."""
    ways = {"compiled": machine.compile, "replayed as one CUDA graph": machine.replay}
    text = " and ".join(way for way, taken in ways.items() if taken) or "launched one operation after the other"
    once = f", which takes about {cost:.0f} s once" if machine.compile else ""
    return f"updates are {text}{once}: launching was {timing.launch_share:.0%} of one"


def can_record(trainer: Trainer) -> bool:
    """Whether an update depends on nothing but tensors: element dropout draws from torch's own generator."""
    return trainer.machine.device.type == "cuda" and not getattr(trainer.config.model, "dropout", 0.0)


class NotRecorded(Exception):
    """An update that cannot be recorded, and has changed nothing."""


class Execution:
    """Updates one after the other. `launch` is train_step; `rest` says how many seconds are still to come, `tell` what was chosen."""

    def __init__(
        self,
        trainer: Trainer,
        launch: Callable[[Trainer, Batch, int], Update],
        rest: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self.trainer, self.launch, self.rest, self.tell = trainer, launch, rest, tell
        self.calls = 0
        self.settling = 0
        """Updates to come that hold costs of their own: compiling, recording."""
        self._shapes: set[Any] = set()
        self.replay: Replay | None = None
        self._chose_to_compile = False
        if trainer.machine.replay and not can_record(trainer):
            trainer.machine = replace(trainer.machine, replay=False)
        self.timing = Timing(0.0, 1.0)
        self._apply()

    def __call__(self, batch: Batch, step: int) -> Update:
        self.settling = max(0, self.settling - 1)
        if self.trainer.machine.compile or self.trainer.machine.replay:
            shape = _shape(batch)
            self.settling = self.settling if shape in self._shapes else _WARM_UP + 2
            self._shapes.add(shape)
        # the first compiled update is launched, so that a failure is seen before anything is recorded
        if self._chose_to_compile:
            return self._launched(batch, step)
        if self.replay is not None:
            try:
                return self.replay(batch, step)
            except NotRecorded as error:
                self.replay, self.trainer.machine = None, replace(self.trainer.machine, replay=False)
                self.tell(f"updates are launched one operation after the other: recording one failed ({error})")
        if not self._is_open or self.calls > _MEASURED[1]:
            return self._launched(batch, step)
        timed = self.calls >= _MEASURED[0]
        self.calls += 1
        result = self._timed(batch, step) if timed else self.launch(self.trainer, batch, step)
        if self.calls > _MEASURED[1]:
            self._choose()
        return result

    def close(self) -> None:
        """Give back the memory of recordings: no update is to come."""
        self.replay = None
        if self.trainer.machine.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _launched(self, batch: Batch, step: int) -> Update:
        """Without torch.compile where that was chosen, not asked for, and fails: it needs a C compiler, and more."""
        if not self._chose_to_compile:
            return self.launch(self.trainer, batch, step)
        try:
            result = self.launch(self.trainer, batch, step)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.trainer.do_not_compile()
            self.tell(f"updates are not compiled: torch.compile failed ({first_line(error)})")
            result = self.launch(self.trainer, batch, step)
        self._chose_to_compile = False
        return result

    @property
    def _is_open(self) -> bool:
        machine = self.trainer.machine
        return machine.device.type == "cuda" and (machine.compile is None or machine.replay is None)

    def _timed(self, batch: Batch, step: int) -> Update:
        results: list[Update] = []
        wait_for(self.trainer.machine.device)
        timing = timing_of(lambda: results.append(self.launch(self.trainer, batch, step)), self.trainer.machine.device)
        if self.calls == _MEASURED[0] + 1 or timing.done < self.timing.done:
            self.timing = timing
        return results[0]

    def _choose(self) -> None:
        trainer = self.trainer
        cost = compile_seconds(trainer.config)
        was_open = trainer.machine.compile is None
        trainer.machine = chosen(trainer.machine, self.timing, self.rest(), cost, can_record(trainer))
        self.tell(told(trainer.machine, self.timing, cost))
        self._chose_to_compile = was_open and bool(trainer.machine.compile)
        self._apply()

    def _apply(self) -> None:
        """Do as the machine says."""
        if self.trainer.machine.compile:
            self.trainer.compile()
        if self.trainer.machine.replay and not self._is_open:
            recorder = Recorder()
            self.replay = Replay(self.trainer, recorder.record, recorder.aside)


class Replay:
    """Updates of a trainer, each shape of batch recorded once. `record` makes a recording of what it calls; `aside` calls what comes
    before, on a stream that may be recorded next.
    """

    def __init__(
        self,
        trainer: Trainer,
        record: Callable[[Callable[[], Update]], Recording[Update]],
        aside: Callable[[Callable[[], Update]], Update],
    ) -> None:
        self.trainer, self.record, self.aside = trainer, record, aside
        self.address = torch.zeros((), dtype=torch.long, device=trainer.machine.numbers)
        self._seen: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[Batch, Recording[Update]]] = {}

    def __call__(self, batch: Batch, step: int) -> Update:
        """Make update `step`. What it returns is overwritten by the next one."""
        self.address.fill_(step)
        shape = _shape(batch)
        if shape not in self._recorded:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] <= _WARM_UP:
                return self.aside(lambda: self._first(batch))
            fixed = batch.each(torch.clone)
            try:
                self._recorded[shape] = fixed, self.record(lambda: update(self.trainer, fixed, self.address))
            except Exception as error:  # nothing has been computed, so that it can be launched
                raise NotRecorded(first_line(error)) from error
        fixed, (result, replay) = self._recorded[shape]
        _fill(fixed, batch)
        replay()
        return result

    def _first(self, batch: Batch) -> Update:
        """Raises NotRecorded where a step that is a tensor is not enough for what is drawn."""
        try:
            self.trainer.objective.draw(self.trainer.model, batch, self.trainer.config.run.seed, self.address)
        except Exception as error:
            raise NotRecorded(first_line(error)) from error
        return update(self.trainer, batch, self.address)


class Recorder:
    """CUDA graphs, and a stream of their own on which they are recorded and what comes before is launched, as torch asks for."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def record(self, body: Callable[[], T]) -> Recording[T]:
        """`body`, which is not executed by recording it. Another thread may go on copying to the device meanwhile."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = body()
        finally:
            torch.cuda.set_stream(current)  # which a recording that fails does not give back
        return result, graph.replay

    def aside(self, body: Callable[[], T]) -> T:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = body()
        current.wait_stream(self.stream)
        return result


def _shape(batch: Batch) -> Any:
    return tuple((name, tuple(t.shape), t.dtype) for name, t in batch.tensors().items())


def _fill(fixed: Batch, batch: Batch) -> None:
    new = batch.tensors()
    for name, tensor in fixed.tensors().items():
        tensor.copy_(new[name], non_blocking=True)
