"""`vit attn-distance` beside the plain forward pass and `vit eval`: time and peak memory on the same batch; rows of JSON.

    python benchmarks/analysis.py [--model b/16] [--img-size 384] [--batch 16] [--rounds 5] [--precision auto]

`time`: the forward pass as evaluation does it and the pass that reduces every layer's attention to distances, alternating
in one process. `memory`: each in a process of its own, the peak over what was resident once model and images were there;
allowed is evaluation's and one layer's attention of one micro-batch. `commands`: peak resident memory of the whole
commands on a checkpoint with random weights and as many image files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import resident
from opponents import alternate, show
from PIL import Image

from vitcli.analysis.attention import AttentionDistance
from vitcli.analysis.capture import MICRO_BYTES, reduce_attention
from vitcli.classes import Class
from vitcli.config import EvalConfig, ModelConfig, RunConfig, model_config, parse_size
from vitcli.evaluate.inference import logits_of
from vitcli.machine import Machine, set_up
from vitcli.model.linear import packed
from vitcli.model.vit import ViT, init_weights
from vitcli.weights.checkpoint import save
from vitcli.weights.describe import Description


def passes(config: ModelConfig, batch: int, machine: Machine) -> tuple[ViT, dict[str, Callable[[], Any]]]:
    """The model, and the two passes over one batch that lies ready."""
    model = ViT(config)
    init_weights(model, 0)
    machine.place(model).eval()
    images = torch.randn(batch, 3, *config.img_size, generator=torch.Generator().manual_seed(0)).to(machine.device)

    @torch.inference_mode()
    def forward() -> Any:
        return logits_of(model, images, machine.bf16, 1)

    def distances() -> Any:
        found = AttentionDistance(config, machine.device)
        reduce_attention(model, images, found, machine.bf16)
        return found.result()

    return model, {"forward": forward, "attention distance": distances}


def peak(config: ModelConfig, batch: int, machine: Machine, which: str) -> None:
    """Three passes, then the peak above what was resident before the first one."""
    model, works = passes(config, batch, machine)
    with packed(model, machine.bf16):
        torch.randn(64, 64) @ torch.randn(64, 64)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
        before = resident("VmRSS")
        for _ in range(3):
            works[which]()
        print(json.dumps({"peak": resident("VmHWM") - before}))


def commands(config: ModelConfig, batch: int, precision: str) -> dict[str, float]:
    """Peak resident bytes of the two commands on the same images."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = ViT(config)
        init_weights(model, 0)
        classes = tuple(Class(str(index)) for index in range(config.classes))
        save(
            Description(path=place / "b.safetensors", model=config, classes=classes, eval=EvalConfig()),
            model.state_dict(),
        )
        del model
        random = np.random.default_rng(0)
        (place / "photos" / "0").mkdir(parents=True)
        for index in range(batch):
            pixels = random.integers(0, 256, (*config.img_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / "0" / f"{index}.png")
        shared = ["b.safetensors", "--data", "photos", "--batch-size", str(batch), "--precision", precision, "--json"]
        return {name: _peak_of([name, *shared], place) for name in ("eval", "attn-distance")}


def _peak_of(arguments: list[str], place: Path) -> float:
    with Path(os.devnull).open("w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitcli", *arguments], cwd=place, stdout=nowhere, stderr=nowhere
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"vit {' '.join(arguments)} failed")
    return usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="b/16")
    parser.add_argument("--img-size", default="384")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--only", nargs="*", default=["time", "memory", "commands"])
    parser.add_argument("--inner", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    config = model_config(asked.model, parse_size(asked.img_size), 1000)
    machine = set_up(RunConfig(precision=asked.precision))
    if asked.inner:
        peak(config, asked.batch, machine, asked.inner)
        return
    named = {"model": config.name, "img_size": asked.img_size, "batch": asked.batch, "bf16": machine.bf16}
    if "time" in asked.only:
        model, works = passes(config, asked.batch, machine)
        with packed(model, machine.bf16):
            taken = alternate(works, asked.rounds)
        show(what="time", **named, seconds=taken, ratio=taken["attention distance"] / taken["forward"])
        del model, works
    layer = 4 * config.heads * config.tokens**2
    micro_batch = layer * max(1, min(asked.batch, MICRO_BYTES["cpu"] // layer))
    if "memory" in asked.only:
        peaks = {}
        for which in ("forward", "attention distance"):
            command = [sys.executable, *sys.argv, "--inner", which]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            peaks[which] = float(json.loads(done.stdout.splitlines()[-1])["peak"])
        allowed = peaks["forward"] + micro_batch
        show(
            what="memory", **named, megabytes={k: v / 1e6 for k, v in peaks.items()},
            one_layer_of_a_micro_batch=micro_batch / 1e6, over_allowed=peaks["attention distance"] / allowed,
        )  # fmt: skip
    if "commands" in asked.only:
        found = commands(config, asked.batch, asked.precision)
        allowed = found["eval"] + micro_batch
        show(
            what="commands", **named, megabytes={k: v / 1e6 for k, v in found.items()},
            over_allowed=found["attn-distance"] / allowed,
        )  # fmt: skip


if __name__ == "__main__":
    main()
