"""Few weights tuned against all of them and none (train.tune): top-1 on held-out images and seconds, a row a run.

    python benchmarks/tune.py CKPT DATA [--shots 10] [--tested 1000] [--img-size 224] [--steps 50] [--seeds 0 1 2] [--ways all bias …]
    python benchmarks/tune.py CKPT DATA --dev --ways bias@1e-3 bias@3e-3      at other rates, on training images that were not drawn
    python benchmarks/tune.py --table FILE…                                    such rows as a table

DATA is a folder of Parquet shards `train*` and `test*`. A seed draws `--shots` images of each class and orders them; every way sees the
same ones. `probe` is `vit probe`, `frozen` is `--freeze backbone`; the rate is the recipe's where none is named. `seconds` are one
processor's, of the whole command: its start, the probe that a new head begins as and the test included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from opponents import show

VIT = [sys.executable, "-m", "vitcli"]
WAYS = ("probe", "frozen", "head", "bias", "proj", "last:2", "all")


def drawn(data: Path, out: Path, shots: int, tested: int, seed: int, dev: bool) -> Path:
    """A folder with `shots` training images of each class, and about `tested` others, as many of each: of the test split, or with `dev` of
    the training images that are left.
    """
    from datasets import Image, load_dataset
    from datasets.utils.logging import disable_progress_bar

    folder = out / f"{data.name}-{shots}-{tested}-{seed}{'-dev' if dev else ''}"
    if (folder / "whole").exists():
        return folder
    disable_progress_bar()
    splits = {}
    for split in ("train", "test"):
        table = load_dataset("parquet", data_files={split: str(data / f"{split}*.parquet")}, split=split)
        column = next(name for name, kind in table.features.items() if isinstance(kind, Image))
        splits[split] = table.cast_column(column, Image(decode=False)), column
    names = splits["train"][0].features["label"].names
    random = np.random.default_rng(seed)
    for split in ("train", "test"):
        table, column = splits["train" if dev else split]
        labels = np.array(table["label"])
        for number, name in enumerate(names):
            own = np.flatnonzero(labels == number)
            if split == "train" or dev:
                own = np.random.default_rng((seed, number)).permutation(own)
                own = own[:shots] if split == "train" else own[shots:]
            else:
                own = random.permutation(own)
            chosen = own if split == "train" else own[: max(1, tested // len(names))]
            place = folder / "images" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in chosen:
                (place / f"{index}.img").write_bytes(table[int(index)][column]["bytes"])
    (folder / "whole").touch()
    return folder


def named(folder: Path) -> None:
    """Gives images the suffix of what they are."""
    from PIL import Image

    for path in folder.rglob("*.img"):
        with Image.open(path) as image:
            kind = (image.format or "png").lower()
        path.rename(path.with_suffix(f".{kind}"))


def measured(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """What a command says, and its seconds of one processor, which other work on the machine does not lengthen."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*VIT, *arguments, "--json", "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vit {' '.join(arguments)}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(done.stdout), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(asked: argparse.Namespace, images: Path, way: str, seed: int) -> dict[str, Any]:
    common = [asked.checkpoint, "--data", str(images), "--img-size", str(asked.img_size)]
    if way == "probe":
        said, seconds = measured(["probe", *common, "--set", "probe.cache=false"])
        return {"top1": said["results"][0]["top1"], "seconds": seconds}
    part, _, rate = way.partition("@")
    tuned = ["--freeze", "backbone"] if part == "frozen" else ["--set", f"train.tune={part}"]
    settings = [*asked.set, "run.threads=1", *([f"optim.lr={rate}"] if rate else [])]
    options = [*tuned, "--steps", str(asked.steps), "--seed", str(seed), *(o for s in settings for o in ("--set", s))]
    with tempfile.TemporaryDirectory(dir=asked.out) as folder:
        out = Path(folder) / "run"
        said, seconds = measured(["finetune", *common, *options, "--out", str(out)])
        lr = tomllib.loads((out / "run.toml").read_text())["optim"]["lr"]
    return {
        "lr": lr,
        "top1": said["eval"]["top1"],
        "loss": said["eval"]["loss"],
        "kept": said["selection"]["kept"],
        "dev": said["selection"]["dev_top1"],
        "seconds": seconds,
    }


def rows(asked: argparse.Namespace) -> None:
    data = Path(asked.data)
    for seed in asked.seeds:
        folder = drawn(data, asked.out, asked.shots, asked.tested, seed, asked.dev)
        named(folder / "images")
        for way in asked.ways:
            found = run(asked, folder / "images", way, seed)
            row = {"data": data.name, "shots": asked.shots, "img_size": asked.img_size, "steps": asked.steps}
            show(**row, measured_on="dev" if asked.dev else "test", set=asked.set, way=way, seed=seed, **found)


def table(files: Iterable[Path]) -> None:
    """Mean and standard deviation of the seeds of each way and rate."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in (json.loads(line) for path in files for line in path.read_text().splitlines()):
        key = (row["data"], row["img_size"], row["measured_on"], *row["set"], row["way"], row.get("lr", ""))
        groups[key].append(row)
    print("| data | way | lr | seeds | top-1 | loss | seconds |\n|---|---|---|---|---|---|---|")
    for key, members in groups.items():
        data, size, on, *changed, way, rate = key

        def spread(what: str, digits: int, members: list[dict[str, Any]] = members) -> str:
            values = [row[what] for row in members if row.get(what) is not None]
            if not values:
                return ""
            mean = f"{statistics.mean(values):.{digits}f}"
            return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else mean

        cells = [f"{data}, {size} px, {on}", " ".join([way, *changed]), f"{rate:g}" if rate else "", str(len(members))]
        cells += [spread("top1", 3), spread("loss", 3), spread("seconds", 0)]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--shots", type=int, default=10, help="images a class")
    parser.add_argument("--tested", type=int, default=1000, help="images that are measured on")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("tune-runs"), help="for images and runs")
    parser.add_argument("--table", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.table:
        table(asked.table)
    elif asked.data:
        rows(asked)
    else:
        parser.error("name a checkpoint and data")


if __name__ == "__main__":
    main()
