"""Peak memory of training against timm's, and resident memory while a cache many times data.memory_mb is read.

    python benchmarks/memory.py [--model s/16] [--img-size 224] [--batch 32]

Each side is a process of its own; what an idle one has after its imports is taken off. Kernel figures: VmHWM, RssAnon.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from opponents import show


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def training(side: str, model: str, img_size: str, batch: int) -> None:
    """Three steps, then the peak above what was there before the model was made."""
    import torch
    from opponents import import_timm
    from step import timm_step, vit_step

    from vitcli.config import RunConfig, model_config, parse_size
    from vitcli.machine import set_up

    timm = import_timm()
    torch.randn(64, 64) @ torch.randn(64, 64)
    idle = resident("VmRSS")
    config = model_config(model, parse_size(img_size), 1000)
    if side == "timm":
        step = timm_step(timm, config, batch, bf16=True)
    else:
        step = vit_step(config, batch, set_up(RunConfig(attention="recompute" if side == "recompute" else "auto")))
    for _ in range(3):
        step()
    print(json.dumps({"peak": resident("VmHWM") - idle}))


def reading(images: int, side: int, memory_mb: int) -> None:
    """Two epochs over a cache that is far larger than data.memory_mb, anonymous memory every fifth of them."""
    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image

    from vitcli.config import AugmentConfig, Config, DataConfig, RunConfig, apply
    from vitcli.data.cache import open_images, working_view
    from vitcli.data.loader import TrainLoader
    from vitcli.data.split import Split
    from vitcli.machine import set_up

    set_up(RunConfig())
    with tempfile.TemporaryDirectory() as home:
        os.environ["VIT_CACHE"] = home
        path = Path(home) / "one.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        table = Dataset.from_dict({"image": [{"bytes": None, "path": str(path)}] * images})
        labels = np.arange(images) % 10
        split = Split("train", table, "image", np.arange(images), labels, "memory")
        data = DataConfig(memory_mb=memory_mb)
        augment = AugmentConfig()
        config = apply(
            Config(augment=augment, data=data),
            {"model.img_size": (side, side), "model.patch": (side // 8,) * 2, "train.batch_size": 64},
        )
        opened = open_images(split, working_view((side, side), True, (side, side), augment), data)
        assert opened.cached is not None, "the disk has no room for the cache"
        loader = TrainLoader(opened, labels, config, torch.device("cpu"))
        batches, seen = loader.batches(0), []
        steps = 2 * images // 64
        for step in range(steps):
            next(batches)
            if step % max(1, steps // 10) == max(1, steps // 10) - 1:
                seen.append(resident("RssAnon"))
        batches.close()
        print(json.dumps({"cache": int(np.prod(opened.cached.shape)), "anonymous": seen}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="s/16")
    parser.add_argument("--img-size", default="224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=16_000, help="of 128 px in the cache that is read")
    parser.add_argument("--memory-mb", type=int, default=32)
    parser.add_argument("--inner", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inner:
        if asked.inner[0] == "reading":
            reading(asked.images, 128, asked.memory_mb)
        else:
            training(asked.inner[0], asked.model, asked.img_size, asked.batch)
        return

    def inner(what: str) -> dict[str, object]:
        command = [sys.executable, *sys.argv, "--inner", what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    peaks = {side: float(str(inner(side)["peak"])) for side in ("vit", "recompute", "timm")}
    show(
        what="peak memory of training",
        model=asked.model,
        batch=asked.batch,
        gigabytes={side: peak / 1e9 for side, peak in peaks.items()},
        over_timm={side: peaks[side] / peaks["timm"] for side in ("vit", "recompute")},
    )
    read = inner("reading")
    seen = [int(value) for value in read["anonymous"]]  # type: ignore[attr-defined]
    show(
        what="anonymous memory while reading",
        cache_over_memory_mb=int(str(read["cache"])) / asked.memory_mb / 1e6,
        megabytes=[round(value / 1e6) for value in seen],
        growth=seen[-1] / seen[0],
    )


if __name__ == "__main__":
    main()
