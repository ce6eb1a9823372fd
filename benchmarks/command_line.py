"""`vit pretrain` against timm's train.py from the command line: images a second of a whole epoch, each as it comes.

    TIMM_TRAIN=path/to/train.py python benchmarks/command_line.py FOLDER [--model s/16] [--img-size 224] [--batch 32]

FOLDER holds a folder a class under train and validation. timm's script is not in its wheel; without TIMM_TRAIN this
says so and ends. Both get the model, the image size, the batch and the workers, and nothing else; timm once more with
`--amp --amp-dtype bfloat16`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from opponents import run_timm_train, show


def timm_rate(script: str, asked: argparse.Namespace, folder: str, *more: str) -> float:
    """The rate of the last progress line of the training epoch, as the script prints it."""
    name = {"ti/16": "vit_tiny_patch16_224", "s/16": "vit_small_patch16_224", "b/16": "vit_base_patch16_224"}[
        asked.model
    ]
    fixed = ["--data-dir", asked.data, "--model", name, "--img-size", asked.img_size, "-b", str(asked.batch)]
    fixed += ["--epochs", "1", "--device", "cpu", "--output", folder, "--workers", "2", "--no-prefetcher"]
    fixed += ["--num-classes", str(asked.classes), "--log-interval", "1"]
    text = run_timm_train(script, *fixed, *more)
    rates = re.findall(r"Train:.*?\(\s*[\d.]+s,\s*([\d.]+)/s\)", text)
    if not rates:
        raise SystemExit(f"no rate in what {script} printed:\n{text[-2000:]}")
    return float(rates[-1])


def vit_rate(asked: argparse.Namespace, folder: str) -> float:
    import json

    command = [sys.executable, "-m", "vitcli", "pretrain", "--data", asked.data, "--model", asked.model, "--json"]
    command += ["--img-size", asked.img_size, "--batch-size", str(asked.batch), "--epochs", "1", "--out", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="s/16")
    parser.add_argument("--img-size", default="224")
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    script = os.environ.get("TIMM_TRAIN", "")
    if not Path(script).is_file():
        print("skipped: TIMM_TRAIN does not name timm's train.py, which its wheel lacks")
        return
    asked.classes = len([p for p in (Path(asked.data) / "train").iterdir() if p.is_dir()])
    with tempfile.TemporaryDirectory() as home:
        rates = {
            "vit": vit_rate(asked, f"{home}/vit"),
            "timm, defaults": timm_rate(script, asked, f"{home}/a"),
            "timm, bf16": timm_rate(script, asked, f"{home}/b", "--amp", "--amp-dtype", "bfloat16"),
        }
    ratio = {name: rates["vit"] / rate for name, rate in rates.items() if name != "vit"}
    show(data=asked.data, model=asked.model, images_per_second=rates, vit_over=ratio)


if __name__ == "__main__":
    main()
