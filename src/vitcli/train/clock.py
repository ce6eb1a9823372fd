"""How far a run is: a fixed number of steps, or a time budget whose steps are estimated as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ESTIMATE_EVERY = 50  # steps
_FIRST_ESTIMATES = (1, 2, 4, 10, 25)
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
    resumed run takes the kept ones for steps that it does again.
    """

    def __init__(self, total: int | None, budget: float | None = None, anchors: list[Anchor] | None = None) -> None:
        self.budget = budget
        self.anchors = list(anchors or []) or [Anchor(0, 0.0, total if total is not None else 10**9)]
        self._measured: list[tuple[int, float]] = []

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
        self._measured = []
        anchor = Anchor(step, self.progress(step), remaining, max(seconds, last.seconds))
        self.anchors.append(anchor)
        return anchor

    def estimate(self, step: int, seconds: float, reserve: float) -> Anchor:
        """A new anchor from the time used; `reserve` seconds are needed after the last step.

        The speed is the mean of that since the start and that of the last estimates.
        """
        assert self.budget is not None
        self._measured.append((step, seconds))
        first, recent = self._measured[0], self._measured[max(0, len(self._measured) - 4)]
        rates = [(seconds - then) / (step - at) for at, then in (first, recent) if step > at]
        left = max(0.0, self.budget - reserve - seconds)
        remaining = int(left / (sum(rates) / len(rates))) if rates else self.anchors[-1].remaining
        anchor = Anchor(step, self.progress(step), remaining, seconds)
        self.anchors.append(anchor)
        return anchor
