"""How far a run is: a fixed number of steps, or a time budget whose steps are estimated as it goes."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

ESTIMATE_EVERY = 50  # steps
_FIRST_ESTIMATES = (3, 4, 6, 10, 15, 25)
_SLOW_STEPS, _FEW_STEPS = 2, 4
"""So many steps say nothing of the speed, and until so many are measured each may hold costs that come once: allocations,
compilation, caches that fill."""
_HASTE = 2.0
"""How many times as fast as the fastest step so far the first few are taken to be. Progress that comes too late is made up
by the next estimate; progress that came too early, a learning rate that has fallen, is lost."""
_ONCE = 1.5
"""A step at the start that is so many times slower than those after it had costs that do not come again."""
_UNKNOWN = 10**9  # steps of a run before anything is known of its speed
_LARGEST_GAP = 0.02  # of the budget


@dataclass(frozen=True)
class Anchor:
    """At `step` a part `progress` of the run was done and `remaining` steps were to come."""

    step: int
    progress: float
    remaining: int
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {"step": self.step, "progress": self.progress, "remaining": self.remaining, "seconds": self.seconds}


class Clock:
    """Progress in 0..1 by step number, for the schedules.

    Between two anchors progress is linear in steps, so it never jumps or goes back. With a time budget an anchor
    is made from the measured speed every 50 steps, sooner where steps are slow; the anchors are kept, and a
    resumed run takes the kept ones for steps that it does again. A slow start does not shorten the schedules: costs
    that come once are left out of the speed, and until it is known there is rather too little progress than too much.
    """

    def __init__(self, total: int | None, budget: float | None = None, anchors: list[Anchor] | None = None) -> None:
        self.budget = budget
        self.anchors = list(anchors or [])
        if not self.anchors or self.anchors[0].step > 0:
            self.anchors.insert(0, Anchor(0, 0.0, total if total is not None else _UNKNOWN))
        self._measured: list[tuple[int, float]] = []

    def begin(self, step: int, seconds: float, reserve: float, least: float) -> Anchor | None:
        """Measure from here, after `step` steps and `seconds` of the budget. No step takes less than `least` seconds.

        The anchor of a run that has none yet: the most steps that there can be. Without it the first step would be one
        of a billion, and a warm-up by parts of the run would waste it.
        """
        self._measured = [(step, seconds)]
        if self.budget is None or step or len(self.anchors) > 1 or self.anchors[0].remaining != _UNKNOWN:
            return None
        left = max(0.0, self.budget - reserve - seconds)
        self.anchors = [Anchor(0, 0.0, max(1, min(_UNKNOWN - 1, int(left / max(least, 1e-9)))), seconds)]
        return self.anchors[0]

    def _anchor(self, step: int) -> Anchor:
        return next(anchor for anchor in reversed(self.anchors) if anchor.step <= step)

    def total(self, step: int) -> int:
        """Steps of the whole run, as estimated at `step`."""
        anchor = self._anchor(step)
        return anchor.step + anchor.remaining

    def progress(self, step: int) -> float:
        anchor = self._anchor(step)
        part = (step - anchor.step) / anchor.remaining if anchor.remaining else 1.0
        return anchor.progress + (1 - anchor.progress) * min(1.0, part)

    def finished(self, step: int) -> bool:
        return step >= self.total(step)

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether an estimate should be made after `step` steps and `seconds` of the budget."""
        if self.budget is None or self.anchors[-1].step >= step:
            return False
        late = seconds - self.anchors[-1].seconds > _LARGEST_GAP * self.budget
        return step in _FIRST_ESTIMATES or step % ESTIMATE_EVERY == 0 or late or seconds >= self.budget

    def change_speed(self, step: int, seconds: float, ratio: float) -> Anchor | None:
        """An anchor where each step takes `ratio` times as long from now on; None without a budget or where one is kept."""
        if self.budget is None or self.anchors[-1].step >= step:
            return None
        last, total = self._anchor(step), self.total(step)
        remaining = max(0, int((total - step) / ratio))
        self._measured = [(step, seconds)]
        anchor = Anchor(step, self.progress(step), remaining, max(seconds, last.seconds))
        self.anchors.append(anchor)
        return anchor

    def forget(self, step: int, seconds: float) -> None:
        """Measure from here: what `step` updates took until now had costs that do not come again, wherever in the run they came."""
        self._measured = [(step, seconds)]

    def estimate(self, step: int, seconds: float, reserve: float) -> Anchor:
        """A new anchor from the time used; `reserve` seconds are needed after the last step.

        The speed is the mean of that since the start and that of the last estimates.
        """
        assert self.budget is not None
        self._measured.append((step, seconds))
        pace, left = self._pace(), max(0.0, self.budget - reserve - seconds)
        remaining = int(left / max(pace, 1e-9)) if pace is not None else self.total(step) - step if left else 0
        anchor = Anchor(step, self.progress(step), min(max(0, remaining), _UNKNOWN), seconds)
        self.anchors.append(anchor)
        return anchor

    def _pace(self) -> float | None:
        """Seconds of a step; None where too few were measured."""
        points = self._measured
        spans = [(n - m, b - a) for (m, a), (n, b) in itertools.pairwise(points) if n > m]
        if not spans or points[-1][0] - points[0][0] <= _SLOW_STEPS:
            return None
        if points[-1][0] - points[0][0] <= _FEW_STEPS:
            return min(seconds / steps for steps, seconds in spans) / _HASTE
        while len(spans) > 1 and spans[0][1] / spans[0][0] > _ONCE * _usual(spans[1:]):
            spans = spans[1:]
        return (_mean(spans) + _mean(spans[-3:])) / 2


def _mean(spans: list[tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in spans) / sum(steps for steps, _ in spans)


def _usual(spans: list[tuple[int, float]]) -> float:
    """The median of the seconds of a step, over spans."""
    return statistics.median(seconds / steps for steps, seconds in spans)
