"""A training step and inference against timm (and transformers), alternating in one process; medians and ratios as JSON.

    python benchmarks/step.py [--model s/16] [--img-size 224] [--batch 32] [--rounds 9]
    python benchmarks/step.py --model R50x1 --only train        and for a hybrid, R26+ViT-S/32

Rows: `train` and `infer`, all in the precision of the machine (bf16 under autocast, inference also with the opponents'
weights in bf16); `defaults`, each as it comes (timm trains and infers in fp32 unless told otherwise); `drop path`, and
`peak`, the best of five 4096³ products. The opponents run in the same process with vit's allocator
settings, which if anything favours them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from opponents import alternate, import_timm, show

from vitcli import flops
from vitcli.config import Architecture, Config, EvalConfig, ModelConfig, RunConfig, apply, model_config, parse_size
from vitcli.data.batch import Batch
from vitcli.evaluate.inference import logits_of
from vitcli.machine import Machine, peak_flops, set_up
from vitcli.model.linear import packed
from vitcli.model.vit import ViT, init_weights
from vitcli.train.bench import trainer
from vitcli.weights.describe import Description
from vitcli.weights.theirs import format_of


def vit_model(model: ModelConfig, machine: Machine) -> ViT:
    made = ViT(model)
    init_weights(made, 0)
    torch.nn.init.normal_(made.head.weight, std=0.05)  # logits with a spread, for the comparison of precisions
    return machine.place(made)


def vit_step(model: Architecture, batch: int, machine: Machine) -> Callable[[], Any]:
    config = apply(Config(model=model), {"train.batch_size": batch, "optim.lr": 1e-4})
    step = trainer(config, machine)
    images, labels = torch.randn(batch, 3, *model.img_size), torch.randint(model.classes, (batch,))
    data = Batch((images,), labels, torch.arange(batch))
    return lambda: step(data)


def timm_model(timm: Any, model: Architecture) -> torch.nn.Module:
    """The model of timm's that an export would be read by."""
    description = Description(path=Path(), model=model, classes=(), eval=EvalConfig())
    tree = format_of(description, "timm").config(description)
    made: torch.nn.Module = timm.create_model(tree["architecture"], num_classes=model.classes, **tree["model_args"])
    return made


def timm_step(timm: Any, model: Architecture, batch: int, bf16: bool) -> Callable[[], Any]:
    made = timm_model(timm, model)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, fused=bf16)  # fused is not its default
    images, labels = torch.randn(batch, 3, *model.img_size), torch.randint(model.classes, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(made(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(
    timm: Any, model: ModelConfig, batch: int, machine: Machine, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Any]]:
    import transformers

    ours = vit_model(model, machine).eval()
    theirs = timm_model(timm, model).eval()
    theirs.load_state_dict(ours.state_dict())
    settings = transformers.ViTConfig(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        image_size=model.img_size,
        patch_size=model.patch,
        num_labels=model.classes,
    )
    others = transformers.ViTForImageClassification(settings).eval()
    images = torch.randn(batch, 3, *model.img_size)

    def of(call: Callable[[], Any], bf16: bool = False) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return call()

        return run

    stack.enter_context(packed(ours, machine.bf16))  # once for an evaluation, not for a batch

    def vit() -> Any:
        with torch.inference_mode():
            return logits_of(ours, images, machine.bf16, 1)

    half, theirs_bf16, others_bf16 = (
        images.bfloat16(),
        copy.deepcopy(theirs).bfloat16(),
        copy.deepcopy(others).bfloat16(),
    )
    return {
        "vit": vit,
        "timm": of(lambda: theirs_bf16(half)),
        "timm, autocast": of(lambda: theirs(images), True),
        "transformers": of(lambda: others_bf16(half).logits),
        "transformers, autocast": of(lambda: others(images).logits, True),
        "timm, fp32": of(lambda: theirs(images)),
        "transformers, fp32": of(lambda: others(images).logits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="s/16")
    parser.add_argument("--img-size", default="224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=["train", "defaults", "infer", "drop"])
    asked = parser.parse_args()
    machine = set_up(RunConfig())
    timm = import_timm()
    model = model_config(asked.model, parse_size(asked.img_size), 1000)
    named = {"model": model.name, "img_size": asked.img_size, "batch": asked.batch}
    peak = peak_flops(machine)
    if "train" in asked.only:
        taken = alternate(
            {"vit": vit_step(model, asked.batch, machine), "timm": timm_step(timm, model, asked.batch, machine.bf16)},
            asked.rounds,
            warm_up=2,
        )
        achieved = flops.training_flops(model, asked.batch) / taken["vit"]
        peak = max(peak, peak_flops(machine))
        speed = {name: asked.batch / seconds for name, seconds in taken.items()}
        show(
            what="train", **named, images_per_second=speed, ratio=taken["timm"] / taken["vit"], of_peak=achieved / peak
        )
    if "defaults" in asked.only:
        taken = alternate(
            {"vit": vit_step(model, asked.batch, machine), "timm": timm_step(timm, model, asked.batch, False)},
            max(3, asked.rounds // 3),
        )
        show(what="train, defaults", **named, ratio=taken["timm"] / taken["vit"])
    if "infer" in asked.only:
        with contextlib.ExitStack() as stack:
            calls = inference(timm, model, asked.batch, machine, stack)
            exact = calls["timm, fp32"]()
            difference = {name: float((calls[name]().float() - exact).abs().max()) for name in list(calls)[:3]}
            taken = alternate(calls, asked.rounds)
        speed = {name: asked.batch / seconds for name, seconds in taken.items()}
        ratio = {name: seconds / taken["vit"] for name, seconds in taken.items() if name != "vit"}
        show(what="infer", **named, images_per_second=speed, ratio=ratio, largest_difference_to_fp32=difference)
    if "drop" in asked.only:
        variants = {
            "none": model,
            "constant 0.4": replace(model, drop_path=0.4, drop_path_rule="constant"),
            "linear 0.4": replace(model, drop_path=0.4),
        }
        taken = alternate({k: vit_step(m, asked.batch, machine) for k, m in variants.items()}, asked.rounds, warm_up=3)
        show(what="drop path", **named, faster={k: taken["none"] / v for k, v in taken.items() if k != "none"})
    show(what="peak", tflops=peak / 1e12)


if __name__ == "__main__":
    main()
