"""Which weights a run trains (train.tune): all, or few of a trained network's, which fair comparisons find as good as adapters."""

from __future__ import annotations

import re
from typing import Protocol

from vitcli.errors import UsageError

WAYS = "all, head, bias, proj or last:K"
_LAST = re.compile(r"last:([1-9]\d{0,3})")


class Named(Protocol):
    """What is asked of a model (model/classifier.py)."""

    @property
    def layers(self) -> int: ...

    def head_names(self) -> tuple[str, ...]: ...

    def layer_of(self, name: str) -> int: ...


def blocks_of(how: str) -> int | None:
    """K of `last:K`, None for another way. Raises UsageError for what is none."""
    if how in ("all", "head", "bias", "proj"):
        return None
    found = _LAST.fullmatch(how)
    if found is None:
        raise UsageError(
            f"train.tune = {how[:80]!r}: not one of {WAYS}", "last:2 trains the last two blocks and the head"
        )
    return int(found[1])


def is_tuned(model: Named, name: str, how: str) -> bool:
    """Whether the parameter `name` is trained: the head in any case; beside it every bias, or the output projections of attention, or
    what follows the input of the last K blocks.
    """
    last = blocks_of(how)
    if how == "all" or name.startswith(model.head_names()):
        return True
    if last is not None:
        return model.layer_of(name) >= model.layers - last
    if how == "bias":
        return name.endswith("bias")
    return how == "proj" and ".attn.proj." in name
