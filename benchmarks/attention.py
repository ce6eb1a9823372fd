"""The paths of attention on this machine: forward and backward, milliseconds, medians of alternating runs.

python benchmarks/attention.py [--batch 32] [--heads 6] [--tokens 65 197 577]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from vitcli.config import RunConfig
from vitcli.machine import set_up
from vitcli.model.attention import PATHS, attend

ROUNDS = 9


def milliseconds(attend: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> float:
    qkv = torch.randn((3, *shape), dtype=dtype, requires_grad=True)
    started = time.perf_counter()
    attend(qkv).sum().backward()
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--tokens", type=int, nargs="*", default=[65, 197, 577])
    asked = parser.parse_args()
    set_up(RunConfig())
    paths: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {name: partial(attend, path=name) for name in PATHS}
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in asked.tokens:
            shape = (asked.batch, asked.heads, tokens, 64)
            times: dict[str, list[float]] = {name: [] for name in paths}
            for _ in range(ROUNDS):
                for name, path in paths.items():
                    times[name].append(milliseconds(path, shape, dtype))
            medians = {name: round(statistics.median(values[1:]), 2) for name, values in times.items()}
            ratio = round(medians["fused"] / medians["plain"], 2)
            print(json.dumps({"tokens": tokens, "dtype": str(dtype), **medians, "fused_over_plain": ratio}), flush=True)


if __name__ == "__main__":
    main()
