"""A training step of each objective beside the supervised one's, in turns: medians of their times, and their ratio.

    python benchmarks/objective_step.py [MODEL] [--size 224] [--batch 32] [--only mae,visreg] [--set mae.width=192] [--rounds 7]

MODEL is S/16 unless given. Machines drift, so that only ratios hold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from vitcli import flops
from vitcli.config import Config, apply, model_config, parse_set
from vitcli.data.batch import Batch
from vitcli.machine import set_up
from vitcli.train.bench import trainer
from vitcli.train.objectives.table import objective_named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="S/16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", default="mae,masked-patch,visreg")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    size, steps, counted = (asked.size, asked.size), {}, {}
    for name in ("classify", *asked.only.split(",")):
        model = model_config(asked.model, size, 1000 if name == "classify" else 0)
        config = apply(Config(model=model), {"train.objective": name, "train.steps": 1} | parse_set(asked.set))
        objective = objective_named(name)
        config = replace(config, augment=replace(config.augment, views=objective.views))
        config = replace(config, train=replace(config.train, batch_size=asked.batch))
        machine = set_up(config.run)
        images = torch.randn(asked.batch, 3, *size, device=machine.device)
        labels = torch.randint(1000, (asked.batch,), device=machine.device)
        batch = Batch((images,) * objective.views, labels, torch.arange(asked.batch))
        steps[name] = (trainer(config, machine), batch)
        counted[name] = objective.training_flops(config, 1) / flops.training_flops(model, 1)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(asked.rounds + 1):
        for name, (step, batch) in steps.items():
            started = time.perf_counter()
            step(batch)
            if turn:
                times[name].append(time.perf_counter() - started)
    base = statistics.median(times["classify"])
    print(f"{asked.model} at {asked.size} px, batch {asked.batch}, {machine.precision}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{name:14} {1000 * median:8.1f} ms  {median / base:.3f} of the supervised step, {counted[name]:.3f} counted"
        )


if __name__ == "__main__":
    main()
