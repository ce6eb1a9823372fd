"""What a run says while it is at work."""

from __future__ import annotations

import pytest

from vitcli.cli import console


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.9, "59 s"), (185, "3:05"), (3723, "1:02:03")])
def test_durations(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


def test_the_time_left_of_a_run_goes_by_its_last_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the mean since the start: images may have grown, or the first steps were those of an earlier session."""
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    reporter = console.Reporter(quiet=False)
    for step in (400, 410):
        fields = {"step": step, "total": 910, "images_seen": step * 128, "images_per_second": 256.0, "loss": 1.0}
        reporter("step", fields)
    assert capsys.readouterr().err.splitlines()[-1].endswith("410/910  loss 1.000  256 images/s, 4:10 left")
