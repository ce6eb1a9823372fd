"""A layout of another tool's checkpoints: how it is recognised, its keys, and what its numbers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vitcli.config import EvalConfig

VIT_NEEDS = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
"""What no ViT is without."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family of checkpoints: how it is recognised, its keys, and what its numbers mean."""

    name: str
    markers: tuple[str, ...]  # patterns of keys that only this family has; one of them is enough
    table: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)  # patterns of keys that are left out, and what they are
    prefixes: tuple[str, ...] = ()  # of the encoder beside a head without it, taken off
    anchor: str = "patch_embed.proj.weight"  # every file has this key, after the layout's own prefixes
    norm_eps: float = 1e-6
    gelu: str = "erf"
    family: str = "vit"  # families/table.py; a hybrid is told from its shapes
    needed: tuple[str, ...] = VIT_NEEDS  # vit's tensors that no file is without
    keys: Mapping[str, Any] = field(default_factory=dict)  # of `model.`, what its code has for the layers of a ResNet
    fixed: bool = True  # its code has one activation, one epsilon and one pooling; else they are guesses
    eval: EvalConfig = field(default_factory=EvalConfig)

    @cached_property
    def marks(self) -> list[re.Pattern[str]]:
        return [pattern(marker) for marker in self.markers]

    @cached_property
    def rows(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(key), target) for key, target in self.table.items()]

    @cached_property
    def left_out(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(key), why) for key, why in self.dropped.items()]


def pattern(key: str) -> re.Pattern[str]:
    """`{i}` a block or stage, `{j}` a unit, `{n}` the number of a layer that has one or not, `{p}` weight or bias, `{s}` scale or
    bias, `*` anything.
    """
    escaped = re.escape(key)
    for name, meaning in _PLACES.items():
        escaped = escaped.replace(re.escape(name), meaning)
    return re.compile(escaped + r"\Z")


_PLACES = {
    "{i}": r"(?P<i>\d{1,6})",
    "{j}": r"(?P<j>\d{1,6})",
    "{n}": r"(?:_\d{1,6})?",
    "{p}": r"(?P<p>weight|bias)",
    "{s}": r"(?P<s>scale|bias)",
    "*": ".*",
}


def filled(target: str, match: re.Match[str]) -> str:
    """A target with what its places have in a key: `{i-1}` counts from 0 what the key counts from 1."""
    values = {name: value or "" for name, value in match.groupdict().items()}
    if "s" in values:
        values["s"] = {"scale": "weight", "bias": "bias"}[values["s"]]
    for name, value in values.items():
        target = target.replace(f"{{{name}}}", value)
        if f"{{{name}-1}}" in target:
            target = target.replace(f"{{{name}-1}}", str(int(value) - 1))
    return target
