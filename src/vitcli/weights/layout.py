"""A layout of another tool's checkpoints: how it is recognised, its keys, and what its numbers mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from vitcli.config import EvalConfig, Size

VIT_NEEDS = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
"""What no ViT is without."""
PLACELESS = tuple(name for name in VIT_NEEDS if name != "pos_embed")
"""What none is without whose positions are no table."""

UNREAD_POOL = "pools by an attention that vit does not have"
"""Why keys are left out, where what is read instead must be asked for."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family of checkpoints: how it is recognised, its keys, and what its numbers mean."""

    name: str
    markers: tuple[str, ...]  # patterns of keys that only this family has; one of them is enough
    table: Mapping[str, str]
    also: tuple[str, ...] = ()  # patterns that must be there beside a marker, of `a|b` one
    without: tuple[str, ...] = ()  # patterns that must not
    dropped: Mapping[str, str] = field(default_factory=dict)  # patterns of keys that are left out, and what they are
    prefixes: tuple[str, ...] = ()  # of the encoder beside a head without it, taken off
    anchor: str = "patch_embed.proj.weight"  # every file has this key, after the layout's own prefixes
    norm_eps: float = 1e-6
    gelu: str = "erf"
    family: str = "vit"  # families/table.py; a hybrid is told from its shapes
    needed: tuple[str, ...] = VIT_NEEDS  # vit's tensors that no file is without
    keys: Mapping[str, Any] = field(default_factory=dict)  # of `model.`, what its code has for the layers of a ResNet
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # of `model.`, what its code has for a ViT and arrays do not tell
    heads: Mapping[int, int] | None = None  # of each published width, where files do not say
    projects: bool = False  # its head is a projection without a bias
    strict: bool = False  # what nothing tells is refused, never guessed
    posemb: str = "auto"  # how its code interpolates positions
    img_size: Size | None = None  # usual, where a file has no positions
    fixed: bool = True  # its code has one activation, one epsilon and one pooling; else they are guesses
    eval: EvalConfig = field(default_factory=EvalConfig)

    def is_of(self, keys: Keys) -> bool:
        """Whether these keys are of it."""
        found = keys.have
        also = (any(map(found, either.split("|"))) for either in self.also)
        return any(map(found, self.markers)) and all(also) and not any(map(found, self.without))

    @cached_property
    def rows(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(key), target) for key, target in self.table.items()]

    @cached_property
    def left_out(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(key), why) for key, why in self.dropped.items()]


class Keys:
    """Keys of a file, to ask for those of a pattern."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._alike: dict[str, list[str]] = {}  # by what they are but for numbers
        for name in self._names:
            self._alike.setdefault(_NUMBER.sub("#", name), []).append(name)

    def have(self, key: str) -> bool:
        """Whether there is a key of such a pattern."""
        places = "{" in _NUMBER.sub("#", key.replace("{i}", "1")) or "*" in key
        among = self._names if places else self._alike.get(_NUMBER.sub("#", key.replace("{i}", "1")), [])
        return any(map(pattern(key).match, among))


_NUMBER = re.compile(r"\d+")


@cache
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
