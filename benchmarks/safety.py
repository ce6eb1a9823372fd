"""What saving costs: a step of the small model with a save every 50 steps, against none.

    python benchmarks/safety.py [--rounds 6] [--data DATA]

Both are stretches of one run, in turns, so that a machine that slows down slows both down. Of each stretch of 50
steps the time is taken from its start to its end, the save included, and what goes on in the background with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vitcli import api
from vitcli.train import loop

EVERY = 50


def stretches(data: str, rounds: int) -> tuple[dict[bool, list[float]], list[float]]:
    """Seconds a step, by whether the stretch was saved at its start, and how long training stood still for each save."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    stops: list[float] = []
    began = 0.0

    def is_due(run: Any) -> bool:
        """Asked after every step, in place of the loop's own question: saves before every other stretch."""
        nonlocal began
        step, now = run.session.at.step, time.perf_counter()
        if step % EVERY:
            return False
        if step > EVERY:  # the first stretch warms up
            seconds[step // EVERY % 2 == 0].append((now - began) / EVERY)
        began = now
        return step // EVERY % 2 == 1

    def listen(event: str, fields: dict[str, Any]) -> None:
        if event == "saved":
            stops.append(fields["seconds"])

    loop.Loop._save_is_due = is_due  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        steps = EVERY * (2 * rounds + 1)
        api.train("pretrain", data=data, out=str(Path(folder) / "run"), steps=steps, sinks=[listen])
    return seconds, stops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--data", default="digits")
    asked = parser.parse_args()
    seconds, stops = stretches(asked.data, asked.rounds)
    saved, unsaved = statistics.median(seconds[True]), statistics.median(seconds[False])
    pairs = [100 * (a / b - 1) for a, b in zip(seconds[True], seconds[False], strict=True)]
    print(f"step with a save every {EVERY}   {1000 * saved:.2f} ms (median of {len(seconds[True])} stretches)")
    print(f"step without                {1000 * unsaved:.2f} ms")
    print(
        f"saving costs                {100 * (saved / unsaved - 1):+.2f} % (in pairs {min(pairs):+.1f} to {max(pairs):+.1f})"
    )
    print(f"training stood still for    {1000 * statistics.median(stops):.1f} ms a save")


if __name__ == "__main__":
    main()
