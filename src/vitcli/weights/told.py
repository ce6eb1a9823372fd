"""What the name of a file or of an architecture tells of its weights, and how what nothing tells is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vitcli.config import Architecture, EvalConfig, format_size
from vitcli.weights import names as by_name
from vitcli.weights import timm_arguments
from vitcli.weights.keys import Found
from vitcli.weights.layouts import HF_SIGLIP, TIMM, TIMM_MORE, TIMM_PLACED
from vitcli.weights.sidecar import Sidecar
from vitcli.weights.timm_sidecar import by_class


def told_by_name(names: tuple[str, ...], found: Found, where: str) -> Sidecar:
    """What the first of `names` that is a ViT's with these dimensions tells of it. Raises CheckpointError for one that vit cannot
    compute.
    """
    shapes = found.shapes
    try:
        width, _, *sides = shapes["patch_embed.proj.weight"]
        patch = (sides[0], sides[1])
    except (KeyError, ValueError, IndexError):
        return Sidecar()
    depth = sum(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", key) is not None for key in shapes)
    for name in names:
        known = _of_timm(name, found, (width, depth), where)
        if known is not None:
            return known
        heads = by_name.heads(name, width, depth, patch)
        gelu = by_name.activation(name) if heads else None
        if heads and not found.layout.fixed and not found.layout.strict:
            own = found.layout is HF_SIGLIP
            pool = by_name.pooling(name, "cls_token" in shapes) if found.layout is TIMM else None
            pool = None if "fc_norm.weight" in shapes else pool
            timm = timm_arguments.named(name)
            without = found.layout is TIMM and timm is not None and timm.arguments.get("qkv_bias") is False
            return Sidecar(
                heads=heads,
                gelu=found.layout.gelu if own else gelu,
                pool=pool,
                norm_eps=found.layout.norm_eps,
                facts={"qkv_bias": "none"} if without else {},
            )
        if heads and not found.layout.strict:
            return Sidecar(heads=heads)
    return Sidecar()


def _of_timm(name: str, found: Found, dimensions: tuple[int, int], where: str) -> Sidecar | None:
    """What timm builds by a name, of a file with timm's keys; None where it is none of its models of these dimensions."""
    known = timm_arguments.named(name)
    if known is None or found.layout not in (TIMM_MORE, TIMM_PLACED):
        return None
    said = by_class(known.cls, known.arguments, f"{where}: {known.name}")
    if (said.facts["width"], said.facts["depth"]) != dimensions:
        return None
    return replace(said, img_size=known.img_size if "pos_embed" not in found.shapes else None)


def pixels_by_name(names: tuple[str, ...], found: Found) -> tuple[EvalConfig, str] | None:
    """How the pixels of the weights that timm has by a name are made, and why; None where no name is one."""
    if found.layout not in (TIMM_MORE, TIMM_PLACED):
        return None
    known = next(filter(None, map(timm_arguments.named, names)), None)
    return (known.eval, f"the pixel range and crop of timm's {known.name}, as the file's name says") if known else None


_WORDS: dict[str, Callable[[Any], str]] = {
    "heads": lambda heads: f"{heads} head{'s' if heads > 1 else ''}",
    "gelu": lambda form: f"GELU {form}",
    "norm_eps": lambda eps: f"norm_eps {eps:g}",
    "pool": lambda pool: f"pooling {pool}",
    "groups": lambda groups: f"{groups} groups of channels",
    "group_eps": lambda eps: f"group_eps {eps:g}",
    "weight_eps": lambda eps: f"weight_eps {eps:g}",
    "weight_eps_to": lambda part: f"added to the {part}",
    "img_size": lambda size: f"images of {format_size(size)} px",
}


def guesses(model: Architecture, keys: tuple[str, ...]) -> str:
    """One line that names what was guessed, and how to replace it."""
    words = {key: _WORDS[key](getattr(model, key)) for key in keys}
    settings = ", ".join("--img-size" if key == "img_size" else f"--set model.{key}=…" for key in keys)
    return (
        f"a guess: {', '.join(words[key] for key in keys)}; {settings} {'replace' if len(keys) > 1 else 'replaces'} it"
    )
