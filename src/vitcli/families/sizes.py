"""The sizes of Vision Transformers by their names."""

from __future__ import annotations

import re

from vitcli.config_values import shown
from vitcli.errors import UsageError, did_you_mean

VARIANTS: dict[str, tuple[int, int, int, int]] = {
    # name: width, depth, MLP width, heads. Ti and S are DeiT's; B, L and H are the paper's Table 1;
    # mu and M are big_vision's (models/vit.py, decode_variant).
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
}


_DIMENSIONS = re.compile(r"w(\d{1,6})d(\d{1,4})h(\d{1,4})(?:m(\d{1,6}))?", re.IGNORECASE)


def dimensions_of(size: str, name: str) -> tuple[int, int, int, int]:
    """Width, depth, MLP width and heads. Raises UsageError."""
    own = _DIMENSIONS.fullmatch(size)
    if own is not None:
        width, depth, heads = int(own[1]), int(own[2]), int(own[3])
        return width, depth, int(own[4] or 4 * width), heads
    variants = {v.lower(): dimensions for v, dimensions in VARIANTS.items()}
    if size.lower() not in variants:
        raise UsageError(f"unknown model size {shown(size)} in {shown(name)}", did_you_mean(size.lower(), variants))
    return variants[size.lower()]
