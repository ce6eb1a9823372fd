"""A block's four linear layers in bf16, forward, by `linear` and by torch's own; milliseconds, medians of alternating runs.

python benchmarks/linear.py [--rows 6304] [--width 384]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from opponents import alternate, show

from vitcli.config import RunConfig
from vitcli.machine import set_up
from vitcli.model.linear import linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32 * 197, help="images times tokens")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    set_up(RunConfig())
    width = asked.width
    for name, (inputs, outputs) in {
        "qkv": (width, 3 * width),
        "proj": (width, width),
        "fc1": (width, 4 * width),
        "fc2": (4 * width, width),
    }.items():
        x, weight, bias = (
            torch.randn(*shape).bfloat16() for shape in ((asked.rows, inputs), (outputs, inputs), (outputs,))
        )
        with torch.no_grad():
            taken = alternate(
                {"vit": lambda w=(x, weight, bias): linear(*w), "torch": lambda w=(x, weight, bias): F.linear(*w)},
                asked.rounds,
            )
        show(layer=name, milliseconds={k: 1e3 * v for k, v in taken.items()}, ratio=taken["torch"] / taken["vit"])


if __name__ == "__main__":
    main()
