"""This tree against another commit in one run: seconds to help and `vit info`, of a training step, of a run; its peak of memory.

    python benchmarks/versions.py BASE [--rounds 5]

Each measurement is of a process of its own, the trees in turns; medians, and this tree over the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from golden import ROOT, extract

TRAIN = ["pretrain", "--data", "digits", "--quiet", "--set", "train.log_every_steps=10"]


def command(source: Path, folder: Path, *words: str) -> tuple[float, int]:
    """(seconds, peak bytes) of a command."""
    environment = os.environ | {"PYTHONPATH": str(source), "VIT_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcli", *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{source}: vit {' '.join(words)} ended with {status}")
    return time.perf_counter() - started, 1024 * usage.ru_maxrss


def trained(source: Path, folder: Path, *words: str) -> tuple[float, int]:
    """(images a second, peak bytes) of a short run: the median of its logged lines but the first."""
    out = tempfile.mkdtemp(dir=folder)
    _, peak = command(source, folder, *TRAIN, *words, "--out", f"{out}/run")
    lines = [json.loads(line) for line in Path(out, "run", "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.median(rates[1:]), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources = {"here": ROOT / "src", "base": extract(asked.base, folder / "tree")}
        cases: dict[str, Callable[[Path], tuple[float, int]]] = {
            "vit --help, seconds": lambda source: command(source, folder, "--help"),
            "vit info b/16, seconds": lambda source: command(source, folder, "info", "b/16"),
            "digits, images/s": lambda source: trained(source, folder, "--steps", "150"),
            "ti/8 at 32 px, images/s": lambda source: trained(
                source, folder, "--model", "ti/8", "--img-size", "32", "--steps", "40", "--batch-size", "64"
            ),
        }
        for name, measure in cases.items():
            found: dict[str, list[tuple[float, int]]] = {tree: [] for tree in sources}
            for turn in range(asked.rounds + 1):
                for tree in sorted(sources, reverse=bool(turn % 2)):
                    measured = measure(sources[tree])
                    if turn:  # the first compiles and fills caches
                        found[tree].append(measured)
            value = {tree: statistics.median(v for v, _ in pairs) for tree, pairs in found.items()}
            peak = {tree: statistics.median(p for _, p in pairs) for tree, pairs in found.items()}
            print(
                f"{name:26} here {value['here']:9.4g}  base {value['base']:9.4g}  ratio {value['here'] / value['base']:.3f}   "
                f"memory {peak['here'] / 1e6:.0f} MB, ratio {peak['here'] / peak['base']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
