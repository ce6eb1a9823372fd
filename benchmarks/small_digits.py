"""Variants of the recipe `small` on digits: top-1 on the held-out images for each seed, as a table.

    python benchmarks/small_digits.py [--seeds 0 1] [NAME ...]

Each run is about 40 s on two cores. The table in docs/log.md was made with this.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from vitcli import api

PLAIN: dict[str, Any] = {"augment__mixup": 0.0, "optim__weight_decay": 0.01}
WIDE: dict[str, Any] = {**PLAIN, "model__width": 128, "batch_size": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "taken": {},
    "decay": {"augment__mixup": 0.0},
    "decay-1": {"augment__mixup": 0.0, "optim__weight_decay": 1.0},
    "mixup": {"optim__weight_decay": 0.01},
    "neither": PLAIN,
    "crop-70": {
        "augment__mixup": 0.0,
        "augment__scale": [0.7, 1.0],
        "optim__weight_decay": 0.3,
        "model__drop_path": 0.1,
    },
    "drop-path": {**PLAIN, "model__drop_path": 0.2},
    "dropout": {**PLAIN, "model__dropout": 0.1},
    "smoothing": {**PLAIN, "train__label_smoothing": 0.1},
    "narrow-ratio": {**PLAIN, "augment__ratio": [0.85, 1.18]},
    "depth-4": {**PLAIN, "model__depth": 4},
    "batch-128": {**PLAIN, "batch_size": 128, "epochs": 60},
    "crop-60": {**PLAIN, "augment__scale": [0.6, 1.0]},
    "crop-60-adamw": {**PLAIN, "augment__scale": [0.6, 1.0], "optim__name": "adamw", "batch_size": 32, "epochs": 50},
    "crop-60-wide": {**WIDE, "augment__scale": [0.6, 1.0], "epochs": 30},
    "shift-1": {**WIDE, "augment__crop": "pad", "augment__pad": 0.125, "epochs": 30},
    "shift-2": {**WIDE, "augment__crop": "pad", "augment__pad": 0.25, "epochs": 30},
    "patch-1": {**WIDE, "model__patch": 1, "epochs": 10},
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
