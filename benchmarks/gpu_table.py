"""Training steps on one GPU, of vit and of timm, launched and compiled: a line of JSON a row, and the table as Markdown at the end.

    python benchmarks/gpu_table.py [--rows S/16 B/16 L/16 Ti/4 small recipe] [--seconds 2]

Every step is in bf16 under autocast with fused AdamW on a batch that lies ready; shares are of a peak measured before, between and
after. `replayed` is as one CUDA graph; `chosen` is what a long run takes: compiled, and replayed where launching takes most of a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from opponents import import_timm
from step import timm_model

from vitcli import flops
from vitcli.config import BenchConfig, Config, ModelConfig, RunConfig, apply, model_config
from vitcli.machine import Machine, peak_flops, seconds_of, set_up
from vitcli.train.bench import bench

SMALL, RECIPE = "ViT-w128d6h4/4", "ViT-w256d9h4/4"
ROWS: dict[str, list[tuple[str, int, int, int]]] = {
    "S/16": [("S/16", 224, 1000, 512)],
    "B/16": [("B/16", 224, 1000, 256)],
    "L/16": [("L/16", 224, 1000, 128)],
    "Ti/4": [("Ti/4", 32, 10, 512)],
    "small": [(SMALL, 32, 10, 128), (SMALL, 32, 10, 512)],
    "recipe": [(RECIPE, 32, 10, 512)],
}
"""Model, pixels, classes, batch; `recipe` is the larger of those that `small` takes of CIFAR-10, given time."""
MUST = {("S/16", 512): 12_000, ("B/16", 256): 4_200, ("L/16", 128): 1_280, ("Ti/4", 512): 60_000, (SMALL, 128): 85_000, (SMALL, 512): 170_000}  # fmt: skip
"""Images a second."""


def of_vit(model: ModelConfig, batch: int, seconds: float, machine: Machine) -> dict[str, Any]:
    config = apply(Config(), {"train.steps": 1, "optim.weight_decay": 0.05})
    found = bench([model], config, BenchConfig(modes=("train",), seconds=seconds), machine, size=batch)
    (result,) = found["results"]
    return {k: result[k] for k in ("images_per_second", "share_of_peak", "launch_share", "compile_seconds", "replay", "bound", "memory_bytes")}  # fmt: skip


def of_timm(timm: Any, model: ModelConfig, batch: int, seconds: float, compiles: bool) -> dict[str, Any]:
    device = torch.device("cuda")
    made = timm_model(timm, model).to(device)
    forward = torch.compile(made) if compiles else made
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    images = torch.randn(batch, 3, *model.img_size, device=device)
    labels = torch.randint(model.classes, (batch,), device=device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.cuda.reset_peak_memory_stats()
    first = [seconds_of(step, device) for _ in range(5)]
    times: list[float] = []
    while len(times) < 8 or sum(times) < seconds:
        times.append(seconds_of(step, device))
    rate = batch / statistics.median(times)
    found = {"images_per_second": rate, "memory_bytes": torch.cuda.max_memory_allocated()}
    return found | ({"compile_seconds": max(first)} if compiles else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--compile-timm", nargs="*", default=["S/16", "B/16"], help="rows; compiling takes half a minute each"
    )
    asked = parser.parse_args()
    machine, timm = set_up(RunConfig(device="cuda")), import_timm()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "peak_tflops": peak_flops(machine) / 1e12}), flush=True)  # fmt: skip
    lines = ["| model, batch | vit launched | vit replayed | vit chosen | timm launched | timm compiled | chosen / timm compiled | must |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, pixels, classes, batch in (row for asked_row in asked.rows for row in ROWS[asked_row]):
        model = model_config(name, (pixels, pixels), classes)
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "vit launched": lambda m=model, b=batch: of_vit(m, b, asked.seconds, replace(machine, compile=False, replay=False)),
            "vit replayed": lambda m=model, b=batch: of_vit(m, b, asked.seconds, replace(machine, compile=False, replay=True)),
            "vit chosen": lambda m=model, b=batch: of_vit(m, b, asked.seconds, machine),
            "timm launched": lambda m=model, b=batch: of_timm(timm, m, b, asked.seconds, False),
            "timm compiled": lambda m=model, b=batch: of_timm(timm, m, b, asked.seconds, True),
        }  # fmt: skip
        if name not in asked.compile_timm:
            del ways["timm compiled"]
        found = {}
        for way, measure in ways.items():
            found[way] = measure()
            print(json.dumps({"model": name, "batch": batch, "way": way} | found[way]), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()
        operations = flops.training_flops(model, 1)
        peak = peak_flops(machine)
        cells = [f"{f['images_per_second']:,.0f} ({f['images_per_second'] * operations / peak:.2f})" for f in found.values()]  # fmt: skip
        other, must = found.get("timm compiled"), MUST.get((name, batch))
        ratio = f"{found['vit chosen']['images_per_second'] / other['images_per_second']:.2f}" if other else "–"
        cells += ["–"] * (5 - len(cells))
        lines.append(f"| {name}, {batch} | {' | '.join(cells)} | {ratio} | {f'{must:,}' if must else '–'} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
