"""Batches that are ready for the model, images a second, against timm's loader with as many worker processes.

    python benchmarks/pipeline.py FOLDER_OR_PARQUET [--img-size 224] [--large 2000] [--workers 2] [--rand]

Both read the same folder of class folders; a data set in another form, or one that is enlarged with --large or
repeated with --images, is written out as one first. timm's workers are started before its clock, vit's cache is
empty before its first epoch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opponents import import_timm, show
from PIL import Image

from vitcli.config import AugmentConfig, Config, DataConfig, RunConfig, apply
from vitcli.data.cache import open_images, working_view
from vitcli.data.decode import open_rgb
from vitcli.data.loader import TrainLoader
from vitcli.data.sources import open_source
from vitcli.data.split import typical_size
from vitcli.machine import set_up


def write_folder(data: str, images: int, large: int, folder: Path) -> None:
    """`images` files of the training split in folders a class: PNG where small, else JPEG, the long side `large`."""
    source = open_source(DataConfig(source=data))
    split = source.split("train") if "train" in source.splits else source.split("all")
    assert split.labels is not None
    for number in range(images or len(split)):
        row = number % len(split)
        blob, _ = next(iter(split.blobs(np.array([row]))))
        image, _ = open_rgb(blob or b"", 89)
        name = folder / source.classes[split.labels[row]].name / f"{number:06d}"
        name.parent.mkdir(exist_ok=True)
        if large:
            scale = large / max(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        if max(image.size) <= 64:
            image.save(name.with_suffix(".png"))
        else:
            image.save(name.with_suffix(".jpg"), quality=92)


def vit_speed(folder: Path, asked: argparse.Namespace, augment: AugmentConfig) -> dict[str, float]:
    """First epoch from the files, with an empty cache, and a later one."""
    size = (asked.img_size, asked.img_size)
    values = {"model.img_size": size, "model.patch": (asked.img_size // 8,) * 2, "train.batch_size": asked.batch_size}
    config = apply(Config(augment=augment), values)
    with tempfile.TemporaryDirectory() as home:
        os.environ["VIT_CACHE"] = home
        split = open_source(DataConfig(source=str(folder), workers=asked.workers)).split("all")
        started = time.perf_counter()
        native, uniform = typical_size(split, 89)
        data = DataConfig(source=str(folder), workers=asked.workers)
        images = open_images(split, working_view(native, uniform, size, augment), data)
        loader = TrainLoader(images, split.labels, config, torch.device("cpu"))
        steps = len(images) // asked.batch_size
        batches = loader.batches(0)
        for _ in range(steps):
            next(batches)
        first = time.perf_counter() - started
        later, taken = 0, 0.0
        while taken < asked.seconds:
            started = time.perf_counter()
            for _ in range(max(1, steps)):
                next(batches)
            taken += time.perf_counter() - started
            later += max(1, steps)
        batches.close()
    return {"first": len(images) / first, "later": later * asked.batch_size / taken}


def timm_speed(timm: Any, folder: Path, asked: argparse.Namespace) -> float:
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(folder))
    loader = create_loader(
        dataset,
        input_size=(3, asked.img_size, asked.img_size),
        batch_size=asked.batch_size,
        is_training=True,
        use_prefetcher=False,
        interpolation="bicubic",
        num_workers=asked.workers,
        auto_augment="rand-m9-mstd0.5" if asked.rand else None,
        re_prob=0.25 if asked.rand else 0.0,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    next(iter(loader))  # the workers are there
    done, taken = 0, 0.0
    while taken < asked.seconds:
        started = time.perf_counter()
        for images, _ in loader:
            done += len(images)
        taken += time.perf_counter() - started
    return done / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=0, help="files to write; 0 is all of the data once")
    parser.add_argument("--large", type=int, default=0, help="enlarge to this many pixels on the long side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rand", action="store_true", help="RandAugment and random erasing")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    set_up(RunConfig())
    timm = import_timm()
    augment = (
        AugmentConfig(randaugment_layers=2, randaugment_magnitude=9.0, erase=0.25) if asked.rand else AugmentConfig()
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_folder(asked.data, asked.images, asked.large, folder)
        rows = []
        for _ in range(asked.rounds):
            ours, theirs = vit_speed(folder, asked, augment), timm_speed(timm, folder, asked)
            rows.append((ours["first"], ours["later"], theirs))
    first, later, theirs = (float(np.median(column)) for column in zip(*rows, strict=True))
    show(
        data=asked.data,
        img_size=asked.img_size,
        large=asked.large,
        augment="randaugment and erasing" if asked.rand else "crop and flip",
        workers=asked.workers,
        images_per_second={"vit, first epoch": first, "vit, later": later, "timm": theirs},
        ratio={"first epoch": first / theirs, "later": later / theirs},
    )


if __name__ == "__main__":
    main()
