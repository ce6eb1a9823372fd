"""Variants of the recipe `small` on CIFAR-10 for a few hundred steps: top-1 on the test images, a row a variant.

    python benchmarks/small_cifar10.py DATA [--steps 300] [--seed 0] [SECTION.KEY=VALUE[+SECTION.KEY=VALUE…] ...]

`recipe` is the recipe as it is. 300 steps are two minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from opponents import show

from vitcli import api
from vitcli.config import parse_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("variants", nargs="*", default=["recipe"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for variant in asked.variants:
        values = parse_set([] if variant == "recipe" else variant.split("+"))
        settings = {key.replace(".", "__"): value for key, value in values.items()}
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            _, report = api.train(
                "pretrain",
                data=asked.data,
                out=str(Path(folder) / "run"),
                steps=asked.steps,
                seed=asked.seed,
                **settings,
            )
            row = {"variant": variant, "steps": asked.steps, "seed": asked.seed, "top1": report["eval"]["top1"]}
            show(**row, loss=report["eval"]["loss"], seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
