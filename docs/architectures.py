"""Write src/vitcli/tables/timm.tsv: the arguments by which timm builds each of its Vision Transformers, and what they were trained on.

python docs/architectures.py     (needs the development extras)

A line has timm's name, its class, the arguments of the class as JSON, and of its usual weights the mean and standard deviation of pixels, crop,
mode, interpolation and image size. What is a function of its code is written by name: the norm with its epsilon, the activation, the MLP.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_shim

torchvision_shim.import_torchvision()

import timm  # noqa: E402
from timm.models import beit, deit, eva, get_pretrained_cfg, model_entrypoint, vision_transformer  # noqa: E402

PAGE = Path(__file__).parents[1] / "src" / "vitcli" / "tables" / "timm.tsv"
MODULES = (vision_transformer, deit, eva, beit)


class Built(Exception):
    """Instead of a model: of which class, and how."""


def build(cls: type, variant: str, pretrained: bool, pretrained_cfg: Any = None, **arguments: Any) -> None:
    raise Built(cls.__name__, arguments)


def plain(value: Any) -> Any:
    """A function of timm's by its name, with the numbers that are bound to it."""
    if isinstance(value, functools.partial):
        bound = {key: plain(item) for key, item in value.keywords.items()}
        return {"name": value.func.__name__, **bound}
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__name__
    return list(value) if isinstance(value, tuple) else value


def main() -> None:
    for module in MODULES:
        module.build_model_with_cfg = build
    lines = []
    for name in sorted({n for module in MODULES for n in timm.list_models(module=module.__name__.rpartition(".")[2])}):
        try:
            model_entrypoint(name)()
        except Built as built:
            cls, arguments = built.args
        kept = {k: plain(v) for k, v in arguments.items() if not k.startswith("pretrained_") and k != "feature_cfg"}
        config = get_pretrained_cfg(name)
        pixels = [list(config.mean), list(config.std), config.crop_pct, config.crop_mode, config.interpolation]
        lines.append(
            "\t".join([name, cls, *(json.dumps(item) for item in (kept, [*pixels, list(config.input_size[1:])]))])
        )
    head = "# timm's name, its class, the arguments of the class, pixels of its usual weights: mean, std, crop, mode, interpolation, size"
    PAGE.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    print(f"{len(lines)} architectures")


if __name__ == "__main__":
    main()
