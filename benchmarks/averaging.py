"""How far between the linear probe and the tuned weights it is best to stop: images classified rightly and loss.

    python benchmarks/averaging.py RUN PARENT DATA [--split NAME] [--views 1 2] [--parts 0 0.25 0.5 0.75 1]

RUN is a finished run of `vit finetune` to new classes, PARENT the checkpoint that it started from. A row each for the probe that
was fitted without the dev part and for the one of all training images, which is what a run averages with.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from opponents import show

from vitcli import api
from vitcli.evaluate.evaluator import evaluate
from vitcli.evaluate.inference import Inference
from vitcli.train import state
from vitcli.weights import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("parent")
    parser.add_argument("data")
    parser.add_argument("--split", default="")
    parser.add_argument("--views", type=int, nargs="+", default=[1])
    parser.add_argument("--parts", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="of the tuned weights")
    asked = parser.parse_args()
    plan = api.plan_evaluation(asked.run, asked.data, asked.split)
    saved, _ = state.newest(Path(asked.run) / "state")
    if saved is None or "probe-head" not in saved.groups:
        raise SystemExit(f"{asked.run} did not start from a linear probe")
    tuned, model = saved.groups["model"], plan.description.model
    _, frozen = checkpoint.resized(*checkpoint.load(asked.parent), model.img_size)
    for fitted, group in (("without the dev part", "probe-head"), ("on all", "probe-whole")):
        probe = {**frozen, **saved.groups[group]}
        for part in asked.parts:
            network = checkpoint.model_with(model, {name: probe[name].lerp(tuned[name], part) for name in tuned})
            for views in asked.views:
                preprocessing = replace(plan.description.eval, views=views)
                inference = Inference(network, preprocessing, plan.data, plan.machine)
                scores = evaluate(inference, plan.split, plan.outputs).metrics
                right = round(scores["top1"] * scores["n"])
                show(probe=fitted, tuned=part, views=views, right=right, n=scores["n"], loss=scores["loss"])


if __name__ == "__main__":
    main()
