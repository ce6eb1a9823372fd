"""What open_clip writes beside weights: open_clip_config.json (mlfoundations/open_clip src/open_clip/push_to_hf_hub.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.config import EvalConfig
from vitcli.errors import CheckpointError
from vitcli.weights.sidecar import RUN_BY_OTHERS, Sidecar, checked, count_of, shown, size_of

_HEAD_WIDTH = 64
_ONLY: dict[str, Any] = {
    "attentional_pool": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "no_ln_pre": False,
}
"""Of a tower, what changes its numbers and arrays do not all tell; `output_tokens` and dropout change nothing."""
_RESIZE = {"squash": "square", "shortest": "short"}


def open_clip_says(config: dict[str, Any], usual: EvalConfig, path: Path) -> Sidecar:
    """Raises CheckpointError for a tower that vit does not have, or a value that cannot be."""
    model, pixels = _table(config, "model_cfg"), _table(config, "preprocess_cfg")
    vision = _table(model, "vision_cfg")
    name = vision.get("timm_model_name")
    for key, wanted in _ONLY.items():
        if not isinstance(name, str) and vision.get(key) not in (wanted, None):
            raise CheckpointError(
                f"{path}: {key} = {shown(vision[key])} is nothing that vit can compute", RUN_BY_OTHERS
            )
    said = Sidecar(
        img_size=size_of(path, "image_size", vision.get("image_size")),
        eval=_pixels(pixels, usual, path),
        names=(name,) if isinstance(name, str) else (),
    )
    if said.names:
        return said
    width = count_of(path, "width", vision.get("width", 768))
    head = count_of(path, "head_width", vision.get("head_width", _HEAD_WIDTH))
    assert width is not None and head is not None
    return replace(
        said, heads=max(1, width // head), gelu="quick" if model.get("quick_gelu") is True else "erf", norm_eps=1e-5
    )


def _table(tree: dict[str, Any], key: str) -> dict[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _pixels(tree: dict[str, Any], usual: EvalConfig, path: Path) -> EvalConfig | None:
    if "mean" not in tree:
        return None
    mode = tree.get("resize_mode", "shortest")
    return checked(
        path,
        usual,
        {
            "mean": ("mean", tree.get("mean")),
            "std": ("std", tree.get("std")),
            "interpolation": ("interpolation", tree.get("interpolation", "bicubic")),
            "resize": ("resize_mode", _RESIZE.get(mode) if isinstance(mode, str) else None),
        },
    )
