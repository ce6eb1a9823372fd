from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vitcli.train.clock import Clock


def test_fixed_number_of_steps() -> None:
    clock = Clock(200)
    assert clock.progress(0) == 0
    assert clock.progress(50) == 0.25
    assert clock.total(10) == 200
    assert not clock.finished(199) and clock.finished(200)
    assert not clock.is_due(50, 1e9)


@given(st.lists(st.floats(0.02, 3.0), min_size=4, max_size=40), st.floats(0, 20))
def test_a_budget_is_kept_at_any_speed(speeds: list[float], reserve: float) -> None:
    """Steps whose time drifts: progress never goes back, ends at one, and the time used stays near the budget."""
    budget = 300.0
    clock, step, seconds, last = Clock(None, budget), 0, 5.0, 0.0
    while not clock.finished(step):
        seconds += speeds[min(len(speeds) - 1, int(len(speeds) * seconds / budget))]
        step += 1
        if clock.is_due(step, seconds):
            clock.estimate(step, seconds, reserve)
        assert clock.progress(step) >= last - 1e-12
        last = clock.progress(step)
        assert step < 10**6
    assert seconds + reserve <= budget * 1.10 + 3 * max(speeds)
    assert clock.progress(step) == 1.0 or seconds + reserve >= 0.9 * budget


def test_estimates_come_every_fifty_steps() -> None:
    clock = Clock(None, 1000.0)
    due = []
    for step in range(1, 301):
        if clock.is_due(step, step * 0.1):
            due.append(step)
            clock.estimate(step, step * 0.1, 0.0)
    assert due == [1, 2, 4, 10, 25, 50, 100, 150, 200, 250, 300]


def test_kept_anchors_are_replayed() -> None:
    first = Clock(None, 100.0)
    for step in range(1, 101):
        if first.is_due(step, float(step) * 0.5):
            first.estimate(step, float(step) * 0.5, 0.0)
    again = Clock(None, 100.0, first.anchors)
    for step in range(101):
        assert again.progress(step) == first.progress(step)
        assert again.total(step) == first.total(step)
        assert not again.is_due(step, 0.0), "steps that were estimated are not estimated again"
