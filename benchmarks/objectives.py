"""What objectives give where few images have labels: arms of equal wall time, pre-training included.

    python benchmarks/objectives.py DATA                        ten minutes an arm, a tenth of the labels, seed 0
    python benchmarks/objectives.py DATA --only mae,scratch --seeds 0,1,2 --minutes 10
    python benchmarks/objectives.py DATA --steps 1              the same arms by the steps that two AVX512-BF16 cores make in ten minutes
    python benchmarks/objectives.py DATA --few-shot             1, 5 and 10 images a class on each arm's pre-trained weights

An arm is a chain of commands, each of which may name the run before it. Every result is a line of --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VIT = [sys.executable, "-m", "vitcli"]
RUN = "{run}"


@dataclass(frozen=True)
class Stage:
    """A command, its part of the arm's time, and the steps that it has in ten minutes."""

    command: tuple[str, ...]
    part: float
    steps: int


def few(part: float, steps: int, *command: str) -> Stage:
    """On the labelled tenth."""
    return Stage((*command, "--set", "data.fraction={fraction}"), part, steps)


def unlabelled(objective: str, part: float, steps: int, *more: str) -> Stage:
    return Stage(("pretrain", "--objective", objective, *more), part, steps)


TUNED = few(0.5, 780, "finetune", RUN)
ARMS: dict[str, tuple[Stage, ...]] = {
    "scratch": (few(1.0, 2140, "pretrain"),),
    "mae": (unlabelled("mae", 0.5, 1700), TUNED),
    "masked-patch": (unlabelled("masked-patch", 0.5, 820), TUNED),
    "masked-patch, pixels": (unlabelled("masked-patch", 0.5, 820, "--set", "masked-patch.target=pixels"), TUNED),
    "visreg": (unlabelled("visreg", 0.5, 960), TUNED),
    "sigreg": (
        unlabelled("visreg", 0.5, 960, "--set", "visreg.regulariser=sigreg"),
        TUNED,
    ),
    "noisy student": (
        few(0.5, 880, "pretrain"),
        few(0.5, 690, "finetune", RUN, "--unlabelled", "{data}"),
    ),
    # of twice the time: whether a round beats the teacher that had the whole of it
    "noisy student after a whole teacher": (
        few(1.0, 2140, "pretrain"),
        few(1.0, 1700, "finetune", RUN, "--unlabelled", "{data}"),
    ),
    # of all labels
    "supervised": (Stage(("pretrain",), 0.5, 1100),),
    "distilled from supervised": (
        Stage(("pretrain",), 0.5, 1100),
        Stage(("pretrain", "--objective", "distill", "--teacher", RUN), 0.5, 850),
    ),
    "distilled": (
        Stage(("pretrain",), 1.5, 3400),
        Stage(("pretrain", "--objective", "distill", "--teacher", RUN), 0.5, 850),
    ),
}


def run(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run([*VIT, *arguments, "--json", "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vit {' '.join(arguments)}\n{done.stderr}")
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def trained(arm: str, seed: int, asked: argparse.Namespace, stages: int) -> list[dict[str, Any]]:
    """The reports of the first `stages` commands of an arm; those that are finished already are read."""
    reports: list[dict[str, Any]] = []
    for number, stage in enumerate(ARMS[arm][:stages]):
        length = (
            ["--steps", str(round(stage.steps * asked.steps))]
            if asked.steps
            else ["--time-budget", f"{60 * asked.minutes * stage.part:g}s"]
        )
        before = reports[-1]["checkpoint"] if reports else ""
        command = [part.format(run=before, data=asked.data, fraction=asked.fraction) for part in stage.command]
        folder = asked.runs / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}" / str(number)
        threads = ["--set", f"run.threads={asked.threads}"] if asked.threads else []
        common = ["--data", asked.data, "--seed", str(seed), "--out", str(folder), "--device", asked.device]
        reports.append(run([*command, *common, *length, *threads]))
    return reports


def score(report: dict[str, Any]) -> float | None:
    return None if report["eval"] is None else report["eval"]["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--only", default="", help="arms, separated by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=float, default=0.0, help="in place of time: times the steps of ten minutes")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the training images whose labels are known")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--few-shot", action="store_true", help="probe what each arm's pre-training leaves")
    parser.add_argument("--runs", type=Path, default=Path("runs-objectives"))
    parser.add_argument("--out", type=Path, default=Path("objectives.jsonl"))
    asked = parser.parse_args()
    wanted = [name.strip() for name in asked.only.split(";" if ";" in asked.only else ",")] if asked.only else [*ARMS]
    for seed in map(int, asked.seeds.split(",")):
        for arm in wanted:
            row: dict[str, Any] = {"arm": arm, "seed": seed, "minutes": asked.minutes, "steps": asked.steps}
            if asked.few_shot:
                pretrained = [number for number, stage in enumerate(ARMS[arm]) if stage.command[0] == "pretrain"]
                report = trained(arm, seed, asked, 1 + pretrained[-1])[-1]
                probe = ["probe", report["checkpoint"], "--data", asked.data]
                shots = run([*probe, "--method", "fewshot", "--set", "probe.shots=1,5,10"])["results"]
                nearest = run([*probe, "--method", "knn"])["results"]
                row |= {"few_shot": shots, "knn": nearest}
            else:
                reports = trained(arm, seed, asked, len(ARMS[arm]))
                row |= {
                    "top1": score(reports[-1]),
                    "before": [score(report) for report in reports[:-1]],
                    "seconds": [round(report["seconds"]) for report in reports],
                    "done": [report["steps"] for report in reports],
                    "train_flops": sum(report["train_flops"] for report in reports),
                }
            print(json.dumps(row), flush=True)
            with asked.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
