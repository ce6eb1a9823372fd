"""Which weights a run trains (train.tune): all, or few of a trained network's. By their names, so that they are counted without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from vitcli.errors import UsageError

WAYS = "all, head, bias, proj or last:K"
_LAST = re.compile(r"last:([1-9]\d{0,3})")
_HEADS = ("head.", "head_dist.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_BEFORE = re.compile(r"patch_embed\.|norm_pre\.|\w+_(embed|token)$")
"""What the blocks read: patches, tokens, positions."""


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


def check_tuned(how: str, freeze: str, model: str, depth: int) -> None:
    """Raises UsageError for a part of the weights that `model`, of `depth` blocks, has not, or that is not the only one asked for."""
    last = blocks_of(how)
    if how in ("all", "head"):
        return
    if freeze:
        raise UsageError(f"train.freeze = {freeze} and train.tune = {how}", "leave one out")
    if not depth:
        raise UsageError(
            f"train.tune = {how} is of a transformer's blocks, and {model} has none",
            "train.tune=head trains the head alone, all everything",
        )
    if last is not None and last > depth:
        raise UsageError(f"train.tune = {how}: {model} has {depth} blocks", "train.tune=all trains everything")


def tuned_names(names: Iterable[str], how: str) -> frozenset[str]:
    """Those of a network's parameters that are trained: the head's in any case; beside them every one that is called a bias, of q, k and v,
    too; or the output projections of attention; or the last K blocks and what follows them.
    """
    names, last = list(names), blocks_of(how)
    depth = 1 + max((int(found[1]) for found in map(_BLOCK.match, names) if found), default=-1)

    def is_tuned(name: str) -> bool:
        if how == "all" or name.startswith(_HEADS):
            return True
        if last is None:
            return name.endswith("bias") if how == "bias" else how == "proj" and ".attn.proj." in name
        block = _BLOCK.match(name)
        return int(block[1]) >= depth - last if block else _BEFORE.match(name) is None

    return frozenset(filter(is_tuned, names))


def tuned_numbers(shapes: Mapping[str, tuple[int, ...]], how: str) -> int:
    """How many numbers of a network with parameters of these shapes are trained."""
    return sum(math.prod(shapes[name]) for name in tuned_names(shapes, how))
