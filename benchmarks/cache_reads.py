"""Random rows of the decode cache read with checksums, against a memory map of the same file; then under a training step.

    python benchmarks/cache_reads.py [--rounds 9]

Read alone: microseconds an image. Under a step: a thread reads ahead as in training, by either way, alternating.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from opponents import alternate, show

from vitcli import files
from vitcli.config import Config, RunConfig, apply, model_config
from vitcli.data.batch import Batch
from vitcli.data.cache import FORMAT, Cached, checksums
from vitcli.data.prefetch import ahead
from vitcli.machine import set_up
from vitcli.train.bench import trainer


def make(folder: Path, images: int, side: int) -> Cached:
    random, shape = np.random.default_rng(0), (images, 3, side, side)

    def fill(place: Path) -> None:
        sums = []
        with (place / "pixels.u8").open("wb") as file:
            for start in range(0, images, 500):
                part = random.integers(0, 256, (min(500, images - start), *shape[1:]), dtype=np.uint8)
                sums.append(checksums(part))
                file.write(part.tobytes())
        np.save(place / "sums.npy", np.concatenate(sums))
        np.save(place / "sizes.npy", np.full((images, 2), side, np.int32))
        (place / "images.json").write_text(json.dumps({"format": FORMAT, "shape": shape, "bad": []}))

    files.write_folder(folder, fill)
    return Cached(folder, shape)


def measure(images: int, side: int, batch: int, model: str, rounds: int) -> dict[str, Any]:
    import torch

    machine = set_up(RunConfig())
    with tempfile.TemporaryDirectory() as place:
        cached = make(Path(place) / "cache", images, side)
        mapped = np.memmap(cached.folder / "pixels.u8", np.uint8, "r", shape=cached.shape)
        ways = {"mapped": lambda rows: mapped[rows], "read": lambda rows: cached.read(rows)[0]}
        random = np.random.default_rng(1)
        alone = alternate(
            {name: lambda way=way: [way(random.integers(0, images, batch)) for _ in range(20)] for name, way in ways.items()},
            rounds,
        )  # fmt: skip
        config = apply(
            Config(model=model_config(model, (side, side), 10)), {"train.batch_size": batch, "optim.lr": 1e-4}
        )
        train, labels, ids = trainer(config, machine), torch.arange(batch) % 10, torch.arange(batch)

        def steps(name: str) -> float:
            way = ways[name]
            reads = ahead(lambda _: way(random.integers(0, images, batch)), itertools.count(), 2)
            next(reads)
            started = time.perf_counter()
            for _ in range(4):
                pixels = torch.from_numpy(next(reads)).to(machine.device)
                train(Batch((pixels.float() / 255,), labels.to(machine.device), ids))
            taken = time.perf_counter() - started
            reads.close()
            return taken / 4

        steps("mapped")
        fed = {name: [] for name in ways}
        for _ in range(rounds):
            for name in ways:
                fed[name].append(steps(name))
        step = {name: float(np.median(values)) for name, values in fed.items()}
    return {
        "side": side, "batch": batch, "model": config.model.name,
        "microseconds_an_image": {name: 1e6 * seconds / 20 / batch for name, seconds in alone.items()},
        "step_seconds": step, "step_read_over_mapped": step["read"] / step["mapped"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    for images, side, batch, model in ((50_000, 32, 256, "mu/4"), (2_000, 224, 32, "ti/16")):
        show(**measure(images, side, batch, model, asked.rounds))


if __name__ == "__main__":
    main()
