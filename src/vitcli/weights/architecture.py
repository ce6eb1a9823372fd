"""From the shapes of a file's weights to the architecture that they are of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from vitcli.config import Architecture, ModelConfig
from vitcli.errors import CheckpointError, UsageError
from vitcli.families.bit import GROUPS as BIT_GROUPS
from vitcli.weights import residual
from vitcli.weights.keys import WHOLE, Found, Shapes
from vitcli.weights.sidecar import Sidecar
from vitcli.weights.vit_architecture import Stored, by_code, folded, vit


def check_shapes(found: Shapes, model: Architecture, where: str, spelt: Callable[[str], str] = str) -> None:
    """Raises CheckpointError naming the keys that are missing, unexpected or of another shape, as the file spells them."""
    blocks = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", key) is not None for key in found)
    if isinstance(model, ModelConfig) and model.depth > blocks + 1:
        raise CheckpointError(f"{where} has {blocks} blocks, not the {model.depth} of {model.name}", WHOLE)
    wanted = model.shapes()
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    missing, unexpected = [spelt(key) for key in missing], [spelt(key) for key in unexpected]
    misfit = [
        f"{spelt(k)} is {found[k]}, not {wanted[k]}"
        for k in sorted(wanted.keys() & found.keys())
        if found[k] != wanted[k]
    ]
    faults = [
        f"{word}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("shape", misfit))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit {model.name}: {'; '.join(faults)}",
            "vit loads every weight of a file or none",
        )


def architecture(found: Found, said: Sidecar, where: str) -> Stored:
    """The architecture of a recognised file, `said` by its configuration where that is there. Raises CheckpointError."""
    layout = found.layout
    missing = [key for key in layout.needed if key not in found.shapes]
    if missing:
        strays = f" and has {', '.join(sorted(found.strays)[:4])} beside" if found.strays else ""
        lacks = found.spelt(missing[0])
        if found.prefix and "patch_embed.proj.weight" in found.parts:
            lacks += f" beside {found.spelt('patch_embed.proj.weight')}"
        raise CheckpointError(f"{where} has the layout of {layout.name}, but lacks {lacks}{strays}", WHOLE)
    try:
        stored = _READERS[layout.family](found, said, where)
        stored.model.check()
    except (ValueError, IndexError, TypeError, UsageError, ZeroDivisionError, OverflowError) as error:
        text = error.message if isinstance(error, UsageError) else str(error)
        raise CheckpointError(f"{where} is not a model that vit can build: {text}", WHOLE) from None
    if said.channels is not None and said.channels[1] != stored.model.channels:
        key, count = said.channels
        raise CheckpointError(
            f"the patch embedding of {where}, {found.spelt(stored.model.reader)}, has channels = {stored.model.channels}, and the configuration beside it {key} = {count}",
            "is it the file that it belongs to?",
        )
    check_shapes(folded(found.shapes, stored) | dict(found.strays), stored.model, where, found.spelt)
    return stored


def _bit(found: Found, said: Sidecar, where: str) -> Stored:
    """A residual network, which takes images of any size: those of its configuration, else the usual one, which is said."""
    keys = dict(found.layout.keys)
    usual = keys.pop("groups", None)
    model = residual.bit(found.shapes, keys)
    known = by_code(found, said, model)
    groups = said.groups or (usual if known.get("groups") else None)
    told = known | {"groups": groups or model.groups == BIT_GROUPS, "img_size": said.img_size}
    model = replace(model, groups=groups or model.groups, img_size=said.img_size or model.img_size)
    return Stored(model, guessed=tuple(key for key, known in told.items() if not known))


_READERS = {"vit": vit, "bit": _bit}
"""By the family of a layout."""
