"""A file's own keys for vit's tensors, for messages: of those that it has, and of those that it would have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vitcli.weights.layout import Layout, filled, pattern

Spelt = Mapping[str, Mapping[str, str]]
"""By vit's name, the file's key of each part: of q, k and v, of gate and value, or of the empty name for all of it."""


@dataclass(frozen=True)
class Spelling:
    """`prefix` stands before all keys of the encoder, `outer` before those of its head."""

    layout: Layout
    keys: Spelt
    prefix: str = ""
    outer: str = ""

    def of(self, name: str) -> str:
        """What the file has of one of vit's tensors, or would have; vit's own name where the layout has none for it."""
        return " and ".join(self.keys[name].values()) if self.keys.get(name) else self.missing(name)

    def missing(self, name: str, which: str = "") -> str:
        """The key that a part would have: as another block has it, else the layout's first."""
        return self._as_another_block(name, which) or self._as_listed(name, which) or name

    def _as_another_block(self, name: str, which: str) -> str:
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if match is None:
            return ""
        for other, keys in self.keys.items():
            at = re.fullmatch(rf"blocks\.(\d+)\.{re.escape(match[2])}", other)
            if at is not None:
                found = [keys[which]] if which in keys else list(keys.values()) if not which else []
                told = [re.sub(rf"(?<!\d){at[1]}(?!\d)", match[1], key, count=1) for key in found]
                if told:
                    return " and ".join(told)
        return ""

    def _as_listed(self, name: str, which: str) -> str:
        before = self.outer if name.startswith("head") else self.prefix
        for key, targets in self.layout.table.items():
            for target in targets.split("|"):
                bare, _, part = target.partition("@")[0].partition("[")
                match = pattern(bare).match(name)
                if match is not None and (part == which or not which):
                    return before + filled(key, match)
        return ""


def prefix_of(names: Mapping[str, str]) -> str:
    """What most of a file's keys have before the layout's names."""
    before = Counter(key.removesuffix(name) for key, name in names.items() if key.endswith(name))
    return before.most_common(1)[0][0] if before else ""
