"""Which interpolation of the position embedding is best without further training: top-1 and loss at other sizes.

    python benchmarks/posemb.py CKPT DATA --sizes 192 288 384 [--split NAME] [--labels imagenet-1k] [--images 2000]

A row a size and method. At the checkpoint's own size there is nothing to interpolate, so one row shows where it starts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from opponents import show

from vitcli import api
from vitcli.evaluate.evaluator import evaluate
from vitcli.evaluate.inference import Inference
from vitcli.model.posemb import METHODS
from vitcli.weights import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--split", default="")
    parser.add_argument("--labels", default="")
    parser.add_argument("--images", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--crop", type=float, default=0.0, help="in place of the checkpoint's own")
    asked = parser.parse_args()
    crop = {"overrides": {"eval.crop": asked.crop}} if asked.crop else {}
    plan = api.plan_evaluation(asked.checkpoint, asked.data, asked.split, labels=asked.labels, **crop)
    description, tensors = checkpoint.load(asked.checkpoint)
    part = plan.split
    if asked.images and len(part) > asked.images:
        part = part.subset(np.random.default_rng(0).permutation(len(part))[: asked.images])
    for size in asked.sizes:
        is_own = (size, size) == description.model.img_size
        for method in ("none",) if is_own else METHODS:
            fitting, weights = checkpoint.resized(description, tensors, (size, size), METHODS[0] if is_own else method)
            model = checkpoint.model_with(fitting.model, weights)
            machine = replace(plan.machine, bf16=False)
            result = evaluate(Inference(model, plan.description.eval, plan.data, machine), part, plan.outputs)
            show(
                size=size, method=method, crop=plan.description.eval.crop, top1=result.metrics["top1"],
                loss=result.metrics["loss"], n=result.metrics["n"],
            )  # fmt: skip


if __name__ == "__main__":
    main()
