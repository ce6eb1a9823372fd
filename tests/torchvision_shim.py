"""Lets a stock torchvision import beside a CPU build of torch, for timm and transformers as test oracles.

torchvision registers fake kernels for its compiled operators when it is imported, and fails where these did
not load. Declaring each operator that it misses is enough, since the oracles call none of them.
"""

from __future__ import annotations

import importlib
import re
import sys

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")


def import_torchvision() -> None:
    for _ in range(20):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"torchvision::(\w+)", str(error))
            if missing is None:
                raise
            _library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
                del sys.modules[name]


import_torchvision()
