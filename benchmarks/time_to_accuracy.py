"""What timm's train.py reaches in some minutes, and how long `vit pretrain` takes to get there, start-up included.

    TIMM_TRAIN=path/to/train.py python benchmarks/time_to_accuracy.py DATA [--minutes 10] [--budget 90] [--only vit timm] [--epochs N] [--lines LINE …]

DATA is a folder of Parquet files with the columns of the hub's CIFAR-10. timm's script is not in its wheel; without
TIMM_TRAIN this says so and measures vit alone. timm gets the best of three command lines (COMMANDS), in the machine's
faster precision, each for the whole time: as many epochs as it takes, by the rate of one epoch of the first, so that its
schedule ends no sooner than the time does. Its model is a ViT of width 128, depth 6 and patch 4 at 32 px, 1.2 M parameters, as vit's default.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opponents import run_timm_train, show

MODEL = ["--model", "vit_tiny_patch16_224", "--img-size", "32", "--num-classes", "10"]
MODEL += ["--model-kwargs", "img_size=32", "patch_size=4", "embed_dim=128", "depth=6", "num_heads=4"]
COMMON = ["-b", "128", "--workers", "2", "--no-prefetcher", "--device", "cpu", "--opt", "adamw", "--sched", "cosine"]
COMMON += ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--crop-pct", "1.0", "--min-lr", "0"]
COMMANDS = {
    "lr 1e-3, crop and flip": ["--lr", "1e-3", "--weight-decay", "0.05", "--warmup-epochs", "0"],
    "lr 3e-3, crop and flip": ["--lr", "3e-3", "--weight-decay", "0.05", "--warmup-epochs", "1"],
    "lr 2e-3, milder crop": ["--lr", "2e-3", "--weight-decay", "0.05", "--warmup-epochs", "0", "--scale", "0.6", "1.0"],
}


def timm_run(script: str, data: str, options: list[str], epochs: int, bf16: bool, home: str) -> tuple[float, float]:
    """(top-1, minutes) of a run of so many epochs."""
    amp = ["--amp", "--amp-dtype", "bfloat16"] if bf16 else []
    columns = ["--dataset", f"hfds/{data}", "--train-split", "train", "--val-split", "test"]
    columns += ["--input-key", "img", "--target-key", "label"]
    name = f"{epochs}-{abs(hash(tuple(options)))}"
    length = ["--epochs", str(epochs), "--cooldown-epochs", "0", "--output", home, "--experiment", name]
    started = time.monotonic()
    text = run_timm_train(script, *columns, *MODEL, *COMMON, *options, *amp, *length)
    table = Path(home) / name / "summary.csv"
    if not table.exists():
        raise SystemExit(f"timm's script left no summary:\n{text[-3000:]}")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    return float(rows[-1]["eval_top1"]) / 100, (time.monotonic() - started) / 60


def vit_top1(data: str, budget: float, home: str) -> tuple[float, float]:
    """(top-1, seconds of the command)."""
    started = time.monotonic()
    command = [sys.executable, "-m", "vitcli", "pretrain", "--data", data, "--time-budget", f"{budget}s", "--json"]
    done = subprocess.run([*command, "--out", f"{home}/vit"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["eval"]["top1"], time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--budget", type=float, default=90, help="of vit, in seconds")
    parser.add_argument("--only", nargs="*", choices=["vit", "timm"], default=["vit", "timm"])
    parser.add_argument("--epochs", type=int, default=0, help="of timm, in place of measuring how many fit")
    parser.add_argument("--lines", nargs="*", choices=COMMANDS, default=[*COMMANDS], help="of timm's command lines")
    asked = parser.parse_args()
    script = os.environ.get("TIMM_TRAIN", "")
    with tempfile.TemporaryDirectory() as home:
        if "vit" in asked.only:
            top1, seconds = vit_top1(asked.data, asked.budget, home)
            show(who="vit pretrain", top1=top1, seconds=seconds)
        if "timm" not in asked.only:
            return
        if not Path(script).is_file():
            print("timm skipped: TIMM_TRAIN does not name timm's train.py, which its wheel lacks")
            return
        from vitcli.config import RunConfig
        from vitcli.machine import set_up

        bf16 = set_up(RunConfig()).bf16
        precision, epochs = "bf16" if bf16 else "fp32", asked.epochs
        if not epochs:
            name = asked.lines[0]
            top1, minutes = timm_run(script, asked.data, COMMANDS[name], 1, bf16, home)
            show(who=f"timm, {name}", precision=precision, epochs=1, top1=top1, minutes=minutes)
            epochs = math.ceil(asked.minutes / minutes)
        for name in asked.lines:
            top1, minutes = timm_run(script, asked.data, COMMANDS[name], epochs, bf16, home)
            show(who=f"timm, {name}", precision=precision, epochs=epochs, top1=top1, minutes=minutes)


if __name__ == "__main__":
    main()
