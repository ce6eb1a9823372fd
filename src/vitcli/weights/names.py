"""What an architecture's name tells and its arrays do not: heads, activation and pooling.

The names are timm's (vit_so400m_patch14_siglip_gap_384), transformers' and the hub's (vit-base-patch16-224), facebookresearch's
(dinov2_vits14_reg4), torchvision's (vit_b_16). What stands here are facts of timm 1.0.31 models/vision_transformer.py and
of the papers. A name is believed only where its width, depth and patch are those of the arrays.
"""

from __future__ import annotations

import re

from vitcli.config_values import shown
from vitcli.errors import CheckpointError
from vitcli.families.pretrained import other_family

_SIZES: dict[str, tuple[tuple[int, int, int], ...]] = {
    # name: (width, depth, heads)
    "tiny": ((192, 12, 3),),
    "xsmall": ((256, 10, 4),),
    "small": ((384, 12, 6), (384, 36, 6)),
    "wee": ((256, 14, 4),),
    "little": ((320, 14, 5),),
    "medium": ((512, 12, 8),),
    "mediumd": ((512, 20, 8),),
    "betwixt": ((640, 12, 10),),
    "base": ((768, 12, 12), (896, 12, 14)),
    "so150m": ((896, 18, 14),),
    "so150m2": ((832, 21, 13),),
    "so400m": ((1152, 27, 16),),
    "large": ((1024, 24, 16),),
    "intern300m": ((1024, 24, 16),),
    "huge": ((1280, 32, 16),),
    "giant": ((1408, 40, 16), (1536, 40, 24)),
    "giantopt": ((1536, 40, 16),),
    "gigantic": ((1664, 48, 16),),
}
_SHORT = {
    "ti": "tiny",
    "t": "tiny",
    "s": "small",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
    "bigg": "gigantic",
}
_LONG = re.compile(
    r"(?:^|[^a-z0-9])(?:vit|deit3?|eva|flexivit|beit|dino|dinov2|dinov2[_-]with[_-]registers|mae|msn|siglip2?|ijepa)[_-](?:msn[_-]|mae[_-])?"
    rf"({'|'.join(sorted(_SIZES, key=len, reverse=True))})(?![a-z0-9])"
)
_BRIEF = re.compile(r"(?:^|[^a-z])vit[_-]?(ti|t|s|b|l|h|g|bigg|so400m)[_-]?p?(\d{1,2})(?!\d)")
_PATCH = re.compile(r"patch(\d{1,2})(?!\d)")


def check_read(name: str, reference: str = "") -> None:
    """Raises CheckpointError where `name`, by which a model goes or its configuration calls it, is one that vit does not read."""
    other = other_family(name)
    if other:
        raise CheckpointError(
            f"{shown(reference or name)} is a model that vit does not read: {other}"
            + (f" ({shown(name)})" if reference and name != other else ""),
            "vit models lists the names that it reads; timm and transformers run others",
        )


def _size(name: str) -> tuple[str, list[str]] | None:
    """The size that a ViT's name has, and the sides of its patches; None for other names."""
    text = name.lower().replace("/", "-")
    long, brief = _LONG.search(text), _BRIEF.search(text)
    if long is not None:
        return long[1], _PATCH.findall(text)
    if brief is not None:
        return _SHORT.get(brief[1], brief[1]), [brief[2]]
    return None


def heads(name: str, width: int, depth: int, patch: tuple[int, int]) -> int | None:
    """Of the ViT that `name` says, if it has these dimensions."""
    found = _size(name)
    if found is None or any((int(side), int(side)) != patch for side in found[1][:1]):
        return None
    if name.startswith("vit_base_patch16_gap_224"):
        return 16
    return next((h for w, d, h in _SIZES[found[0]] if (w, d) == (width, depth)), None)


def pooling(name: str, class_token: bool) -> str:
    """What the head of the model that `name` says reads, in the names of ModelConfig."""
    text = name.lower()
    averaged = re.search(r"[^a-z]gap(?![a-z])", text) is not None or text.startswith(("eva_", "beit3_"))
    return "mean" if averaged or not class_token else "cls"


def activation(name: str) -> str | None:
    """The form of the GELU in the model that `name` says; None where it says no ViT.

    SigLIP's code has the tanh form, of which timm keeps some models' and leaves others' at the exact one.
    """
    text = name.lower()
    if _size(text) is None:
        return None
    if re.search(r"quick_?gelu", text):
        return "quick"
    if "siglip" not in text:
        return "erf"
    if not text.startswith("vit_"):
        return "tanh"  # transformers
    exact = re.search(r"(base|large)_patch16_siglip|so400m_patch14_siglip", text) is not None
    return "erf" if exact and not re.search(r"large_patch16_siglip(_gap)?_512", text) else "tanh"
