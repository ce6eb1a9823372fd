"""What the configuration files beside somebody else's weights say, and what a training script kept in its file.

timm's and transformers' config.json, preprocessor_config.json, the args.yaml of a folder that timm's train.py wrote, and
the arguments in a checkpoint. What changes the numbers of a model is used or refused by name, never passed over.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from vitcli.config import EvalConfig
from vitcli.weights.open_clip_sidecar import open_clip_says
from vitcli.weights.sidecar import (
    MULTI_LABEL,
    Sidecar,
    read_flat_yaml,
    read_json,
)
from vitcli.weights.timm_sidecar import from_training, timm_says
from vitcli.weights.transformers_sidecar import processor_says, transformers_says


def read_sidecars(weights: Path, usual: EvalConfig, pooler: bool = False) -> Sidecar:
    """What stands beside a file that a folder or the hub gives its usual name; `usual` is its layout's preprocessing.
    `pooler`: the file has a layer between class token and head.

    Raises CheckpointError where it names an activation, a pooling or a layer that vit does not have: the numbers would be others.
    Likewise for a value that cannot be, and for a file that is none or too large.
    """
    said = Sidecar()
    if is_usual(weights):
        path = weights.parent / "config.json"
        steps = weights.parent / "preprocessor_config.json"
        config, processor = read_json(path), read_json(steps)
        if weights.name.startswith("open_clip_"):
            beside = weights.parent / "open_clip_config.json"
            said = open_clip_says(read_json(beside), usual, beside) if beside.exists() else said
        elif isinstance(config.get("pretrained_cfg"), dict):
            said = timm_says(config, usual, path)
        else:
            said = transformers_says(config, usual, path, pooler)
            of_sets = config.get("problem_type") == MULTI_LABEL
            usual = replace(usual, scores="sigmoid") if of_sets else usual
            without = usual if of_sets else None
            said = replace(said, eval=processor_says(processor, usual, steps) if processor else without)
    if is_of_training(weights):
        path = weights.parent / "args.yaml"
        said = said.over(from_training(read_flat_yaml(path), usual, path))
    return said


_USUAL = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")


def is_usual(weights: Path) -> bool:
    """Whether a file has one of the names for the weights of the folder that it is in."""
    return weights.name.partition(".")[0] in _USUAL and weights.suffix in (
        ".safetensors", ".bin", ".json", ".pth", ".pt",
    )  # fmt: skip


def is_of_training(weights: Path) -> bool:
    """Whether a file has a name that timm's train.py gives."""
    return re.fullmatch(r"(model_best|last|checkpoint-\d+|recovery-\d+-\d+)\.pth\.tar", weights.name) is not None


# --- timm --------------------------------------------------------------------------------------------------


# --- transformers ------------------------------------------------------------------------------------------
