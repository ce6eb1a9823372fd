"""Fine-tuning by small time budgets beside the linear probe of the same weights and images, without bf16 and on one thread.

    python benchmarks/probe_floor.py WEIGHTS --cifar10 FOLDER [--pets FOLDER] [--only pets,few,grey,handful] [--budgets 60,120]

FOLDERs hold `train.parquet` and `test.parquet` as the hub has them. Sets, images for training and held out: `pets` as it
is, 914 and 148; of CIFAR-10 `few`, 600 and 300 of ten classes; `grey`, four classes without colour, 1,206, 572, 236 and 85 for
training and a sixth as many held out; `handful`, five of each of ten classes and 300. A budget counts from start to exit.

DeiT-Ti, top-1 on the held-out images, seed 0. One thread of a machine with several other processes, so that `vit probe` took
94 s for `few` and 324 s for `grey`, a multiple of what it takes alone:

| set | probe | budget, s | finetune | steps |
|---|---|---|---|---|
| handful | 0.707 | 60 | 0.707 | 0 |
| handful | 0.707 | 120 | 0.707 | 0 |
| few | 0.873 | 90 | 0.873 | 0 |
| few | 0.873 | 180 | 0.873 | 0 |
| grey | 0.805 | 200, less than the probe takes | 0.794 | 0 |
| grey | 0.805 | 400 | 0.805 | 0 |

With both threads of an otherwise idle machine, whose budgets leave time to tune (`vit finetune … --time-budget … --precision fp32`):

| set | probe | budget, s | finetune | steps |
|---|---|---|---|---|
| pets | 0.872 | 180 | 0.865, one image of 148 | 72 |
| grey | 0.805 | 300 | 0.819 | 75 |

With 60 steps in place of a budget and no dev part (`--steps 60 --set train.dev=0`) `handful` has 0.703 with the probe, 0.727 with
the mean of weights and with the tuned ones (benchmarks/averaging.py).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from opponents import show

GREY = {"cat": 1206, "dog": 572, "deer": 236, "horse": 85}


def write(cifar: Path, out: Path, counts: dict[str, tuple[int, int]], grey: bool = False) -> Path:
    """Folders of classes with so many images of CIFAR-10 for training and held out."""
    import datasets
    from PIL import Image

    for split, which in (("train", 0), ("test", 1)):
        table = datasets.Dataset.from_parquet(str(cifar / f"{split}.parquet")).cast_column(
            "img", datasets.Image(decode=False)
        )
        labels, names = np.array(table["label"]), table.features["label"].names
        for name, count in counts.items():
            folder = out / split / name
            folder.mkdir(parents=True)
            for row in np.flatnonzero(labels == names.index(name))[: count[which]].tolist():
                image = Image.open(io.BytesIO(table[row]["img"]["bytes"]))
                (image.convert("L") if grey else image).save(folder / f"{row:05}.png")
    return out


def made(name: str, cifar: Path, root: Path) -> Path:
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    if name == "grey":
        return write(cifar, root / name, {k: (n, n // 6) for k, n in GREY.items()}, grey=True)
    return write(cifar, root / name, dict.fromkeys(classes, (60, 30) if name == "few" else (5, 30)))


def vit(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "vitcli", *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 2):  # 2: the budget is too short for the images that are measured
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--pets", type=Path)
    parser.add_argument("--only", default="pets,few,grey,handful")
    parser.add_argument("--budgets", default="60,120")
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["VIT_CACHE"] = str(root / "cache")
        for name in asked.only.split(","):
            data = asked.pets if name == "pets" else made(name, asked.cifar10, root)
            started = time.monotonic()
            probe = vit("probe", asked.weights, "--data", data, "--precision", "fp32")
            (row,) = probe["results"]
            show(set=name, probe=row["top1"], l2=row["l2"], n=row["n"], seconds=time.monotonic() - started)
            for budget in asked.budgets.split(","):
                report = vit(
                    "finetune", asked.weights, "--data", data, "--time-budget", f"{budget}s", "--precision", "fp32",
                    "--set", "run.threads=1", *(f"--set={s}" for s in asked.set), "--out", root / f"{name}-{budget}",
                )  # fmt: skip
                if "error" in report:
                    show(set=name, budget=budget, error=report["error"])
                    continue
                known = {key: report[key] for key in ("seconds", "steps", "images_per_second", "selection")}
                show(set=name, budget=budget, top1=report["eval"]["top1"], **known)


if __name__ == "__main__":
    main()
