"""Variants of the recipe `small` on digits: top-1 on the held-out images for each seed, as a table.

    python benchmarks/small_digits.py [--seeds 0 1] [NAME ...]

Each run is about 40 s on two cores. The table in docs/decisions.md was made with this.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from vitcli import api

CROP: dict[str, Any] = {"augment__crop": "resized", "model__width": 64, "model__heads": 2, "batch_size": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "taken": {},
    "smoothing": {"train__label_smoothing": 0.1},
    "narrow-ratio": {"augment__ratio": [0.85, 1.18]},
    "depth-4": {"model__depth": 4},
    "batch-128": {"batch_size": 128, "epochs": 60},
    "crop-60": {**CROP, "augment__scale": [0.6, 1.0]},
    "crop-60-batch-128": {**CROP, "augment__scale": [0.6, 1.0], "batch_size": 128, "epochs": 60},
    "crop-60-adamw": {**CROP, "augment__scale": [0.6, 1.0], "optim__name": "adamw", "batch_size": 32, "epochs": 50},
    "shift-1": {"augment__crop": "pad", "augment__pad": 0.125, "model__width": 128, "batch_size": 128, "epochs": 30},
    "shift-2": {"augment__crop": "pad", "augment__pad": 0.25, "model__width": 128, "batch_size": 128, "epochs": 30},
    "patch-1": {"model__patch": 1, "model__width": 128, "batch_size": 128, "epochs": 10},
    "average": {"train__ema": 0.99},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    asked = parser.parse_args()
    for name in asked.names or VARIANTS:
        for seed in asked.seeds:
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                _, report = api.train(
                    "pretrain", data="digits", out=str(Path(folder) / "run"), seed=seed, **VARIANTS[name]
                )
                row = {"variant": name, "seed": seed, "top1": report["eval"]["top1"], "steps": report["steps"]}
                print(json.dumps(row | {"seconds": round(time.monotonic() - started, 1)}), flush=True)


if __name__ == "__main__":
    main()
