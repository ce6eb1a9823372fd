from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import train_run
from vitcli.train.clock import Anchor, Clock
from vitcli.train.runlog import read_lines


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
    assert due == [3, 4, 6, 10, 15, 25, 50, 100, 150, 200, 250, 300]


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


def followed(
    seconds_of: Callable[[int], float], budget: float, used: float = 3.0, reserve: float = 2.0, least: float = 0.5
) -> tuple[list[float], float]:
    """Progress before each step, and the time at the end, of a run whose machine could at best do a step in `least` of the
    time that its 50th takes.
    """
    clock, step, seconds, seen = Clock(None, budget), 0, used, []
    anchor = clock.begin(0, seconds, reserve, least * seconds_of(50))
    assert anchor is not None and clock.anchors == [anchor]
    while not clock.finished(step):
        seen.append(clock.progress(step))
        seconds += seconds_of(step)
        step += 1
        if clock.is_due(step, seconds):
            clock.estimate(step, seconds, reserve)
    assert clock.progress(step) == 1.0
    return seen, seconds + reserve


@given(
    usual=st.floats(0.02, 6),
    slow=st.lists(st.floats(1, 30), max_size=4),
    least=st.floats(0.05, 1),
    budget=st.sampled_from([60.0, 180.0, 600.0]),
)
@settings(max_examples=200, deadline=None)
def test_a_slow_start_does_not_shorten_the_schedule(
    usual: float, slow: list[float], least: float, budget: float
) -> None:
    """Whatever the first steps cost, progress is monotone, the budget is kept, and what the steps after them get of the
    schedule is nearly all of it, in equal parts.
    """
    extra = [min(factor * usual, budget / 12) for factor in slow]
    seen, end = followed(lambda step: max(usual, extra[step] if step < len(extra) else 0), budget, least=least)
    assert end <= budget + max([usual, *extra]) + 0.02 * budget
    steps = [b - a for a, b in itertools.pairwise(seen)]
    assert all(part >= 0 for part in steps)
    assert seen[min(len(seen) - 1, 4)] <= 8 / max(1, len(seen)) + 0.1, (
        "of a few steps each gets no more than twice its share"
    )
    if len(seen) >= 30:
        assert 1 - seen[-1] <= 0.1, "the schedule ends at its end"
        assert max(steps) <= 0.12
        late = steps[len(steps) // 2 :]
        assert max(late) <= 4 * (1 - seen[len(steps) // 2]) / len(late)


def test_one_slow_step_costs_nothing_of_the_schedule() -> None:
    """60 s, steps of 0.1 s, and one of ten seconds: as the first, the second or both."""
    for slow in ((0,), (1,), (0, 1)):
        seen, end = followed(lambda step, slow=slow: 10.0 if step in slow else 0.1, 60.0)  # type: ignore[misc]
        assert seen[10] <= 0.05 and end <= 60.2, (slow, seen[:12])


def test_no_step_of_a_short_run_is_wasted() -> None:
    """Thirteen steps of four seconds: the first is not one of a billion, so that a warm-up by parts begins with it."""
    seen, end = followed(lambda step: 4.0, 60.0, least=0.6)
    assert len(seen) == 13 and end <= 60
    assert seen[1] >= 0.04 and seen[2] >= 0.08
    ideal = [step / 13 for step in range(13)]
    assert max(abs(a - b) for a, b in zip(seen, ideal, strict=True)) <= 0.18


def test_a_run_that_goes_on_keeps_its_beginning() -> None:
    first = Clock(None, 100.0)
    begun = first.begin(0, 1.0, 0.0, 0.5)
    assert begun is not None and begun.remaining == 198
    for step in range(1, 60):
        if first.is_due(step, float(step)):
            first.estimate(step, float(step), 0.0)
    again = Clock(None, 100.0, first.anchors)
    assert again.begin(30, 31.0, 0.0, 0.1) is None
    assert [again.progress(step) for step in range(60)] == [first.progress(step) for step in range(60)]


def test_anchors_of_an_older_run_begin_at_step_one() -> None:
    clock = Clock(None, 100.0, [Anchor(1, 0.0, 100, 2.0), Anchor(50, 0.5, 50, 52.0)])
    assert clock.progress(0) == 0.0 and clock.progress(50) == 0.5


def test_the_first_estimate_of_a_session_does_not_count_steps_twice() -> None:
    """Where nothing is measured yet, as many steps remain as the last estimate said, less those done since."""
    clock = Clock(None, 100.0, [Anchor(1, 0.0, 100, 2.0), Anchor(50, 0.5, 50, 52.0)])
    assert clock.estimate(80, 82.0, 0.0).remaining == 20


def test_without_a_budget_nothing_is_estimated() -> None:
    clock = Clock(100)
    assert clock.begin(0, 5.0, 0.0, 0.1) is None
    assert clock.total(0) == 100


def test_row_58_a_clock_that_jumps_changes_no_budget_and_no_log(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's clock is set while a run is at work, as by a time server."""
    real, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + 18_000 * (next(looks) % 3 - 1))
    began = time.monotonic()
    folder, report = train_run("pretrain", data=str(class_folders), out=str(tmp_path / "run"), model="mu/4", batch_size=16, time_budget=12.0,
        train__log_every_steps=1,
    )  # fmt: skip
    took = time.monotonic() - began
    assert report["steps"] > 3 and report["seconds"] <= took + 1 and took < 100
    seconds = [line["seconds"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] <= took + 1
