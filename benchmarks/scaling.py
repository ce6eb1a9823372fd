"""How the cost of a training step grows with tokens, depth and batch, and that of a pass with the data, beside the FLOPs.

    python benchmarks/scaling.py [--width 384] [--rounds 5]

A table as JSON lines: `cost` is seconds over those of the first row of its series, `flops` the same of the counted
FLOPs (flops.py), `efficiency` their ratio: 1 where time grows as the count does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from opponents import alternate, show
from step import vit_step

from vitcli import flops
from vitcli.config import AugmentConfig, Config, DataConfig, ModelConfig, RunConfig, Size, apply
from vitcli.data.cache import open_images, working_view
from vitcli.data.loader import TrainLoader
from vitcli.data.split import Split
from vitcli.machine import Machine, set_up

GRIDS: tuple[Size, ...] = ((4, 8), (8, 8), (14, 14), (16, 16), (24, 24))  # 33, 65, 197, 257 and 577 tokens


def model(width: int, depth: int, grid: Size) -> ModelConfig:
    size = (16 * grid[0], 16 * grid[1])
    return ModelConfig(width=width, depth=depth, heads=max(1, width // 64), mlp=4 * width, img_size=size, classes=100)


def series(name: str, rows: list[tuple[str, ModelConfig, int]], rounds: int, machine: Machine) -> None:
    """Rows of (label, model, batch), timed in turn."""
    works = {label: vit_step(config, batch, machine) for label, config, batch in rows}
    taken = alternate(works, rounds, warm_up=2)
    first_label, first, first_batch = rows[0]
    for label, config, batch in rows:
        cost = taken[label] / taken[first_label]
        counted = flops.training_flops(config, batch) / flops.training_flops(first, first_batch)
        tokens = batch * config.tokens
        show(
            series=name,
            row=label,
            seconds=taken[label],
            microseconds_per_token=1e6 * taken[label] / tokens,
            cost=cost,
            flops=counted,
            efficiency=counted / cost,
        )


def data_size(counts: list[int], machine: Machine) -> None:
    """A pass over cached images of 32 px; the cache itself is made first and not timed."""
    import datasets

    with tempfile.TemporaryDirectory() as home:
        os.environ["VIT_CACHE"] = home
        features = datasets.Features({"image": datasets.Image(decode=False)})
        blob = _png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), Path(home) / "one.png")
        first = 0.0
        for count in counts:
            table = datasets.Dataset.from_dict({"image": [{"bytes": blob, "path": None}] * count}, features=features)
            split = Split("train", table, "image", np.arange(count), np.arange(count) % 10, f"scaling-{count}")
            config = apply(Config(), {"model.img_size": (32, 32), "model.patch": (4, 4), "train.batch_size": 128})
            images = open_images(split, working_view((32, 32), True, (32, 32), AugmentConfig()), DataConfig())
            loader = TrainLoader(images, split.labels, config, machine.device)
            batches, times = loader.batches(0), []
            for _ in range(3):
                started = time.perf_counter()
                for _ in range(count // 128):
                    next(batches)
                times.append(time.perf_counter() - started)
            batches.close()
            taken = sorted(times)[1] / count
            first = first or taken
            show(series="data", row=f"{count} images", microseconds_per_image=1e6 * taken, cost_per_image=taken / first)


def _png(pixels: np.ndarray, path: Path) -> bytes:  # type: ignore[type-arg]
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.manual_seed(0)
    machine = set_up(RunConfig())
    width = asked.width
    series(
        "tokens",
        [(f"{g[0] * g[1] + 1} tokens", model(width, 4, g), 8) for g in GRIDS],
        asked.rounds,
        machine,
    )
    series("depth", [(f"depth {d}", model(width, d, (8, 8)), 16) for d in (2, 4, 8, 16)], asked.rounds, machine)
    series("batch", [(f"batch {b}", model(width, 4, (8, 8)), b) for b in (2, 8, 32, 128)], asked.rounds, machine)
    data_size([2_560, 10_240, 40_960], machine)


if __name__ == "__main__":
    main()
