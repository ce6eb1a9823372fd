"""`vit predict` over many files through a pipe: its speed against decoding alone and the model alone, its memory as it goes.

    python benchmarks/predict.py CKPT [--files 20000] [--side 64] [--img-size N]

Files are JPEGs of noise and gradients in a temporary folder. The floor is one after the other: 1 / (1/decode + 1/model), both with
all cores, measured here before and after. RssAnon is read from /proc while the command runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitcli import api
from vitcli.evaluate.named import read_named


def make(folder: Path, count: int, side: int) -> list[str]:
    random = np.random.default_rng(0)
    across = np.linspace(0, 255, side)
    for index in range(count):
        pixels = np.stack([np.add.outer(across * random.random(), across * random.random()) for _ in range(3)], 2) / 2
        pixels += random.normal(0, 8, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:06}.jpg")
    return sorted(map(str, folder.iterdir()))


def floor(checkpoint: str, names: list[str], size: tuple[int, int] | None) -> tuple[float, float]:
    """Images a second of decoding, and of the model, each alone."""
    planned = api.plan_prediction(checkpoint, img_size=size)
    inference = planned.inference()
    sample = names[:4096]
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        pixels = list(pool.map(lambda name: read_named(name, inference.view, 89.0), sample))
    decode = len(sample) / (time.perf_counter() - started)
    batches = [
        torch.from_numpy(np.stack(pixels[i : i + inference.batch_size]))
        for i in range(0, len(pixels), inference.batch_size)
    ]
    with inference.running():
        inference.logits(inference.normalised(batches[0]))
        started = time.perf_counter()
        for batch in batches:
            inference.logits(inference.normalised(batch))
        model = len(sample) / (time.perf_counter() - started)
    return decode, model


def anonymous(pid: int) -> int:
    """Bytes of RssAnon; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--img-size", type=int)
    asked = parser.parse_args()
    size = (asked.img_size, asked.img_size) if asked.img_size else None
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "in").mkdir()
        names = make(Path(place) / "in", asked.files, asked.side)
        before = floor(asked.checkpoint, names, size)
        command = [sys.executable, "-m", "vitcli", "predict", asked.checkpoint, "-", "--json", "--quiet"]
        command += ["--img-size", str(asked.img_size)] if asked.img_size else []
        with (Path(place) / "list").open("w") as file:
            file.writelines(f"{name}\n" for name in names)
        with (Path(place) / "list").open() as file:
            running = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        seen, first, memory = [], 0.0, []
        for number, line in enumerate(running.stdout):
            seen.append(json.loads(line)["path"])
            first = first or time.perf_counter()
            if number % max(1, asked.files // 20) == 0:
                memory.append(anonymous(running.pid))
        rate = (len(seen) - 1) / (time.perf_counter() - first)
        assert running.wait() == 0 and seen == names
        after = floor(asked.checkpoint, names, size)
        decode, model = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        expected = 1 / (1 / decode + 1 / model)
        print(f"decode {decode:,.0f}, model {model:,.0f}, one after the other {expected:,.0f} images/s")
        print(f"vit predict - --json: {rate:,.0f} images/s, {rate / expected:.3f} of it")
        print("RssAnon in MB after each twentieth:", " ".join(f"{m / 1e6:.0f}" for m in memory))


if __name__ == "__main__":
    main()
