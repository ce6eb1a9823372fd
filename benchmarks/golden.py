"""Whether this tree trains to the same bits as another commit: short CPU runs of both on this machine, their losses and weights compared.

    python benchmarks/golden.py HEAD~1 [--only NAME] [--keep FOLDER]

For changes of structure, which must not change a result. Nothing is stored, since bits differ between processors. Exits with 1
where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("step", "epoch", "images_seen", "loss", "lr", "grad_norm")
EVERYWHERE = {"run.threads": 2, "train.log_every_steps": 1}
SMALL = {"model.depth": 2, "model.width": 32, "model.heads": 2}


def settings(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def pretrain(data: str, steps: int, batch: int, **values: object) -> list[str]:
    """A small model from random weights; `__` in the names of `values` stands for the dot."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    length = ["--steps", str(steps), "--batch-size", str(batch)]
    return ["pretrain", "--data", data, *length, *settings(SMALL | named)]


def finetune(steps: int, *options: str, **values: object) -> list[str]:
    named = {key.replace("__", "."): value for key, value in values.items()}
    length = ["--steps", str(steps), "--batch-size", "16"]
    return ["finetune", "CHECKPOINT", "--data", "DATA", *length, *options, *settings(named)]


RUNS = {
    "mixup and DropPath": pretrain(
        "digits", 12, 32, augment__mixup=0.4, augment__cutmix=0.5, augment__erase=0.3, model__drop_path=0.3, train__ema=0.9
    ),
    "accumulation": pretrain(
        "digits", 10, 32,
        train__accumulate=4, model__dropout=0.1, model__drop_path=0.2, optim__name="adamw", train__loss="sigmoid",
    ),
    "class token, SGD": pretrain(
        "digits", 10, 32,
        model__pool="cls", optim__name="sgd", optim__lr=0.05, optim__layer_decay=0.8, train__label_smoothing=0.1,
    ),
    "progressive sizes": pretrain(
        "DATA", 16, 16, train__low_res=0.6, augment__randaugment_layers=1, data__balanced="true", eval__views=2
    ),
    "choice of the head": finetune(
        30, "--img-size", "16", train__head="linear", train__dev=0.2, train__keep="auto"
    ),
    "frozen backbone": finetune(8, "--freeze", "backbone"),
}  # fmt: skip
"""By name, in order: CHECKPOINT is what the first run left, DATA a folder of class folders."""


def draw(root: Path) -> None:
    """Class folders of 32 px images that a model can tell apart."""
    for split, count in (("train", 40), ("test", 12)):
        for label, colour in enumerate(([200, 60, 60], [60, 200, 60], [60, 60, 200])):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                random = np.random.default_rng([label, index, count])
                pixels = np.clip(np.array(colour) + random.normal(0, 60, (32, 32, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")


def extract(commit: str, folder: Path) -> Path:
    """The sources of a commit."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


def run(source: Path, words: list[str], folder: Path, out: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(source), "VIT_CACHE": str(folder.parent / "cache"), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vitcli", *words, *settings(EVERYWHERE), "--out", out, "--quiet"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{source}: vit {' '.join(words)} ended with {done.returncode}\n{done.stderr}")


def outcome(folder: Path) -> tuple[list[list[object]], str, dict[str, object]]:
    """Losses and norms, the digest of the weights' bytes, what the report says of scores."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [[line[key] for key in COMPARED] for line in lines if "loss" in line]
    scores = [line["eval"] for line in lines if "eval" in line]
    content = (folder / "model.safetensors").read_bytes()
    weights = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    report = json.loads((folder / "report.json").read_text())
    return steps, weights, {"scores": scores, "selection": report.get("selection"), "flops": report["train_flops"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--only", help="one run, by its name; the first is done too, as others start from it")
    parser.add_argument("--keep", type=Path, help="folder for both trees' run folders")
    asked = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        top = (asked.keep or Path(temporary)).resolve()
        draw(top / "data")
        sources = {"here": ROOT / "src", "base": extract(asked.base, top / "tree")}
        for name in sources:
            (top / name).mkdir(parents=True)
        for index, (title, words) in enumerate(RUNS.items()):
            if index and asked.only not in (None, title):
                continue
            found = {}
            for name, source in sources.items():
                places = {"DATA": str(top / "data"), "CHECKPOINT": str(top / name / "run0")}
                run(source, [places.get(w, w) for w in words], top / name, f"run{index}")
                found[name] = outcome(top / name / f"run{index}")
            (steps, weights, said), (old_steps, old_weights, old_said) = found["here"], found["base"]
            wrong = [
                text
                for text, same in (
                    ("losses", steps == old_steps), ("weights", weights == old_weights), ("report", said == old_said)
                )
                if not same
            ]  # fmt: skip
            different += bool(wrong)
            verdict = f"different {', '.join(wrong)}" if wrong else f"equal: weights {weights[:16]}"
            print(f"{title:20} {len(steps):3} losses, the last {steps[-1][3]:.6f}  {verdict}", flush=True)
    print(f"{different} runs differ from {asked.base}" if different else f"all equal to {asked.base}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
