"""ResNet against ViT at equal training FLOPs: CIFAR-10 with 2, 10 and 100 % of its images, and pre-training on half of the classes.

    python benchmarks/data_scaling.py DATA                    seeds 0, 1, 2; every run is a line of --out
    python benchmarks/data_scaling.py DATA --plot scaling.png the lines of --out as a table and a figure

DATA is a folder of Parquet shards with the ten classes of CIFAR-10. Every run sees the same number of images at the same sizes.
The two models have about as many multiply-accumulates an image, which the table shows as FLOPs of the whole run.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

VIT = [sys.executable, "-m", "vitcli"]
MODELS = {
    "ViT": ["--model", "ViT-w128d6h4/4", "--set", "model.pool=mean", "--set", "model.class_token=false"],
    "ResNet": ["--model", "R50x0.25"],
}
FRACTIONS = (0.02, 0.1, 1.0)
BEFORE, AFTER = ("airplane", "automobile", "ship", "truck", "horse"), ("bird", "cat", "deer", "dog", "frog")
"""Classes of the pre-training, and those that it is fine-tuned to: no picture of a kind is in both."""
TRANSFERRED = 0.02
"""Of the images of the second half's classes."""


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*VIT, *arguments, "--json", "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vit {' '.join(arguments)}\n{done.stderr}")
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def halves(data: Path, out: Path) -> dict[str, str]:
    """Folders of class folders with the images of each half of the classes, as PNG files."""
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    folders = {"before": out / "before", "after": out / "after"}
    if all((folder / "whole").exists() for folder in folders.values()):
        return {name: str(folder / "images") for name, folder in folders.items()}
    for split, shards in (("train", "train*.parquet"), ("test", "test*.parquet")):
        table = load_dataset("parquet", data_files={split: str(data / "**" / shards)}, split=split)
        names = table.features["label"].names
        for index, row in enumerate(table):
            name = names[row["label"]]
            folder = folders["before" if name in BEFORE else "after"] / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            picture = io.BytesIO()
            row["img"].save(picture, "png")
            (folder / f"{index}.png").write_bytes(picture.getvalue())
    for folder in folders.values():
        (folder / "whole").touch()
    return {name: str(folder / "images") for name, folder in folders.items()}


def rows(asked: argparse.Namespace) -> None:
    data = halves(Path(asked.data), asked.runs)
    common = [
        "--batch-size",
        "128",
        "--set",
        "eval.views=1",
        "--set",
        f"run.threads={asked.threads}",
        "--device",
        asked.device,
    ]
    known = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []

    def note(arm: str, model: str, seed: int, *reports: dict[str, Any]) -> None:
        row = {
            "arm": arm, "model": model, "seed": seed, "top1": reports[-1]["eval"]["top1"],
            "train_flops": sum(r["train_flops"] for r in reports), "seconds": round(sum(r["seconds"] for r in reports)),
            "before": [r["eval"]["top1"] for r in reports[:-1]],
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        with asked.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for seed in map(int, asked.seeds.split(",")):
        for model, options in MODELS.items():
            if model not in asked.only.split(","):
                continue

            def train(
                command: str, name: str, where: str, *more: str, model: str = model, seed: int = seed
            ) -> dict[str, Any]:
                folder = asked.runs / f"{model}-{seed}-{name}"
                return run(command, *more, "--data", where, "--seed", str(seed), "--out", str(folder), *common)

            def is_known(arm: str, model: str = model, seed: int = seed) -> bool:
                return any((row["arm"], row["model"], row["seed"]) == (arm, model, seed) for row in known)

            for part in FRACTIONS:
                arm = f"{part:.0%}"
                if not is_known(arm):
                    report = train(
                        "pretrain",
                        arm,
                        asked.data,
                        *options,
                        "--steps",
                        str(asked.steps),
                        "--set",
                        f"data.fraction={part}",
                    )
                    note(arm, model, seed, report)
            few = ["--set", f"data.fraction={TRANSFERRED}"]
            if not is_known("new classes, from scratch"):
                note("new classes, from scratch", model, seed,
                     train("pretrain", "scratch", data["after"], *options, *few, "--steps", str(asked.steps // 3)))  # fmt: skip
            if not is_known("new classes, pre-trained"):
                first = train("pretrain", "before", data["before"], *options, "--steps", str(asked.steps))
                second = train(
                    "finetune", "after", data["after"], first["checkpoint"], *few, "--steps", str(asked.steps // 3)
                )
                note("new classes, pre-trained", model, seed, first, second)


def table(lines: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By arm and model: mean and standard deviation of top-1 over seeds, and training FLOPs; printed as Markdown."""
    arms = list(dict.fromkeys(row["arm"] for row in lines))
    found = {}
    print("| images | ResNet | ViT | FLOPs, ResNet | ViT |\n|---|---|---|---|---|")
    for arm in arms:
        cells, flops = [], []
        for model in ("ResNet", "ViT"):
            scores = [row["top1"] for row in lines if (row["arm"], row["model"]) == (arm, model)]
            compute = [row["train_flops"] for row in lines if (row["arm"], row["model"]) == (arm, model)]
            if not scores:
                cells.append("–"), flops.append("–")
                continue
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            found[arm, model] = (statistics.mean(scores), spread, statistics.mean(compute))
            cells.append(f"{found[arm, model][0]:.3f} ± {spread:.3f} ({len(scores)})")
            flops.append(f"{found[arm, model][2]:.3g}")
        print(f"| {arm} | {' | '.join(cells)} | {' | '.join(flops)} |")
    return found


def plot(found: dict[tuple[str, str], tuple[float, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(8, 3.2), width_ratios=(3, 2), sharey=False, layout="constrained"
    )
    for model, colour in (("ResNet", "tab:gray"), ("ViT", "tab:blue")):
        arms = [f"{part:.0%}" for part in FRACTIONS if (f"{part:.0%}", model) in found]
        values = [found[arm, model] for arm in arms]
        left.errorbar(
            [50_000 * float(arm[:-1]) / 100 for arm in arms], [v[0] for v in values], [v[1] for v in values],
            marker="o", capsize=3, color=colour, label=model,
        )  # fmt: skip
        arms = [arm for arm in ("new classes, from scratch", "new classes, pre-trained") if (arm, model) in found]
        values = [found[arm, model] for arm in arms]
        right.errorbar(
            [arm.partition(", ")[2] for arm in arms], [v[0] for v in values], [v[1] for v in values],
            marker="o", capsize=3, color=colour, label=model,
        )  # fmt: skip
    left.set(xscale="log", xlabel="training images", ylabel="top-1 on the test images", title="CIFAR-10")
    right.set(xlim=(-0.3, 1.3), title="500 images of five new classes")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--only", default="ViT,ResNet")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs-data-scaling"))
    parser.add_argument("--out", type=Path, default=Path("data-scaling.jsonl"))
    parser.add_argument("--plot", type=Path, default=None)
    asked = parser.parse_args()
    if asked.plot is None:
        rows(asked)
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()]
    found = table(lines)
    if asked.plot is not None:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
