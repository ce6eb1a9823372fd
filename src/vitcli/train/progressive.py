"""Progressive resizing: the first part of a run trains on smaller images, where a step costs a fraction.

A model learns what is where from small images nearly as well, and sees several times as many of them (as in Touvron et al., 2019, "Fixing the train-test resolution discrepancy"; the numbers are in docs/log.md).
"""

from __future__ import annotations

from dataclasses import replace

from vitcli import flops
from vitcli.config import Architecture, Size

_STEPS = ((0.36, 0.5), (1.0, 0.75))
"""Up to which part of the low-resolution part, and the part of the image's sides."""


def stages(model: Architecture, low_res: float) -> list[tuple[float, Size]]:
    """(part of the run at which it ends, image size), in order; the last ends at 1 and has the model's own size."""
    found = []
    for until, part in _STEPS if low_res else ():
        height, width = (
            max(1, round(part * (side // step))) * step
            for side, step in zip(model.img_size, model.multiple, strict=True)
        )
        found.append((until * low_res, (height, width)))
    return [*found, (1.0, model.img_size)]


def size_at(model: Architecture, low_res: float, progress: float) -> Size:
    """The image size of a step that begins when a part `progress` of the run is done."""
    return next((size for until, size in stages(model, low_res) if progress < until), model.img_size)


def slower(model: Architecture, before: Size, after: Size) -> float:
    """How many times as long a step takes at the size `after`, by its operations."""
    return flops.macs(replace(model, img_size=after)) / flops.macs(replace(model, img_size=before))
