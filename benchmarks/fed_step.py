"""A training step fed by the pipeline against the step on one fixed batch, alternating; seconds and ratio as JSON.

    python benchmarks/fed_step.py DATA [--model s/16] [--img-size 224] [--batch 32] [--rand]

The cache is made first. Every round runs as many steps as are augmented together, so that each batch's share is in it.
"""

from __future__ import annotations

import argparse

from opponents import alternate, show

from vitcli.config import AugmentConfig, Config, DataConfig, RunConfig, apply, model_config, parse_size
from vitcli.data.cache import open_images, working_view
from vitcli.data.loader import TrainLoader
from vitcli.data.sources import open_source
from vitcli.data.split import typical_size
from vitcli.machine import set_up
from vitcli.train.bench import trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="s/16")
    parser.add_argument("--img-size", default="224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rand", action="store_true", help="RandAugment and random erasing")
    asked = parser.parse_args()
    machine = set_up(RunConfig())
    split = open_source(DataConfig(source=asked.data)).train()
    assert split.labels is not None
    size, classes = parse_size(asked.img_size), int(split.labels.max()) + 1
    augment = AugmentConfig(randaugment_layers=2, erase=0.25) if asked.rand else AugmentConfig()
    config = apply(
        Config(model=model_config(asked.model, size, classes), augment=augment),
        {"train.batch_size": asked.batch, "optim.lr": 1e-4},
    )
    native, uniform = typical_size(split, 89)
    images = open_images(split, working_view(native, uniform, size, augment), DataConfig())
    room = 10**12 if machine.device.type == "cuda" else 0
    loader = TrainLoader(images, split.labels, config, machine.device, room=room)
    train = trainer(config, machine)
    fixed, batches, together = loader.batch(0), loader.batches(0), loader._together()

    def steps(fed: bool) -> None:
        for _ in range(together):
            train(next(batches) if fed else fixed)

    for _ in range(16 if machine.device.type == "cuda" else 0):  # until all is compiled and recorded
        train(next(batches))
    taken = alternate({"fed": lambda: steps(True), "fixed": lambda: steps(False)}, asked.rounds)
    batches.close()
    show(
        data=asked.data,
        model=config.model.name,
        batch=asked.batch,
        augment="randaugment and erasing" if asked.rand else "crop and flip",
        seconds={name: seconds / together for name, seconds in taken.items()},
        fed_over_fixed=taken["fed"] / taken["fixed"],
    )


if __name__ == "__main__":
    main()
