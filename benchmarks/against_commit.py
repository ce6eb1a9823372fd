"""Training steps of this tree against another commit's, in processes that take turns; medians of each and the ratio as JSON.

    python benchmarks/against_commit.py COMMIT [--rounds 3]

ViT-S/16 at 224 px, batch 32, AdamW; and the small recipe's model on CIFAR-10's size, batch 128, Muon and clipping. A process of
each tree is started a turn, so that neither has the other's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from golden import ROOT, extract

MEASURE = """
import json, statistics, time, torch
from vitcli.config import Config, RunConfig, apply, model_config
from vitcli.data.batch import Batch
from vitcli.machine import set_up
from vitcli.train.bench import trainer

machine, found = set_up(RunConfig()), {}
for name, side, classes, batch, steps, settings in (
    ("S/16", 224, 1000, 32, 4, {}),
    ("ViT-w128d6h4/4", 32, 10, 128, 40, {"optim.name": "muon", "optim.clip": 1.0, "optim.weight_decay": 0.1}),
):
    model = model_config(name, (side, side), classes)
    step = trainer(apply(Config(model=model), {"train.batch_size": batch, "optim.lr": 1e-4} | settings), machine)
    data = Batch((torch.randn(batch, 3, side, side),), torch.randint(classes, (batch,)), torch.arange(batch))
    times = []
    for turn in range(steps + 2):
        started = time.perf_counter()
        step(data)
        times.append(time.perf_counter() - started)
    found[name] = times[2:]
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trees = {"here": ROOT / "src", "there": extract(asked.commit, Path(temporary))}
        times: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
        for turn in range(asked.rounds):
            for name in sorted(trees, reverse=bool(turn % 2)):
                done = subprocess.run(
                    [sys.executable, "-c", MEASURE], env=os.environ | {"PYTHONPATH": str(trees[name])},
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                for model, seconds in json.loads(done.stdout).items():
                    times[name].setdefault(model, []).extend(seconds)
    for model in times["here"]:
        middle = {name: statistics.median(times[name][model]) for name in times}
        print(json.dumps({"model": model, "seconds": middle, "here over there": middle["here"] / middle["there"]}))


if __name__ == "__main__":
    main()
