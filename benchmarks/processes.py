"""Two processes of one thread against one process of two, and what parts of the weights cost, as ratios.

    python benchmarks/processes.py [--model ti/16] [--img-size 224] [--batch-size 32] [--steps 12] [--rounds 3] [--precision fp32]

The same global batch, weights and images. Commands take turns, so that what else the machine does meets all of them; each gives the median of its
logged steps, without the first third. Prints JSON: images a second, the best of the rounds, and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WAYS = {
    "one process, two threads": (1, []),
    "two processes": (2, []),
    "two processes, sharded": (2, ["scale.shard=true"]),
}


def make(folder: Path, side: int, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / str(index % 2) / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(place)


def rate(folder: Path, out: Path, processes: int, more: list[str], asked: argparse.Namespace) -> float:
    """Images a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vitcli",
        "pretrain",
        "--data",
        str(folder),
        "--model",
        asked.model,
        "--device",
        "cpu",
    ]
    command += [
        "--img-size",
        str(asked.img_size),
        "--batch-size",
        str(asked.batch_size),
        "--steps",
        str(asked.steps),
        "--quiet",
    ]
    command += ["--precision", asked.precision, "--out", str(out), "--resume", "never", "--set", "optim.name=adamw"]
    for value in [
        "train.log_every_steps=1",
        f"run.threads={2 // processes}",
        "train.eval_every_seconds=0",
        "augment.crop=none",
        *more,
    ]:
        command += ["--set", value]
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = [{"WORLD_SIZE": str(processes), "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]
    started = [
        subprocess.Popen(command, env={**env, **(own if processes > 1 else {})}, stdout=subprocess.DEVNULL)
        for own in world
    ]
    if any(process.wait() for process in started):
        raise SystemExit(f"{' '.join(command)} failed")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.median(rates[len(rates) // 3 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ti/16")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        make(Path(name, "data"), asked.img_size, max(64, 2 * asked.batch_size))
        for turn in range(asked.rounds):
            for number, (way, (processes, more)) in enumerate(WAYS.items()):
                found[way].append(rate(Path(name, "data"), Path(name, f"{turn}-{number}"), processes, more, asked))
    best = {way: round(max(rates), 2) for way, rates in found.items()}
    one, two, parts = best.values()
    ratios = {"two processes / one": round(two / one, 3), "sharded / two processes": round(parts / two, 3)}
    print(json.dumps(vars(asked) | {"images_per_second": best, "all": found, "ratios": ratios}))


if __name__ == "__main__":
    main()
