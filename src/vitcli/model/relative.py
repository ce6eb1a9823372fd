"""Relative position bias: a learned number of each head for every offset of rows and columns (Bao et al., 2022, BEiT; microsoft/unilm
beit/modeling_finetune.py).

The table has a row for each offset of a grid, rows of offsets first, then three: from the class token to patches, from patches to
it, from it to itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitcli.config import Size

_EXTRA = 3


def offset_rows(grid: Size, device: torch.device | None = None) -> Int[Tensor, "tokens tokens"]:
    """For every query and key, class token first, the row of the table."""
    rows, columns = grid
    places = (torch.arange(side, device=device) for side in grid)
    row, column = (axis.flatten() for axis in torch.meshgrid(*places, indexing="ij"))
    down, across = (axis[:, None] - axis[None] for axis in (row, column))
    patches = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
    last = (2 * rows - 1) * (2 * columns - 1)
    index = F.pad(patches, (1, 0, 1, 0), value=last)
    index[:, 0] = last + 1
    index[0, 0] = last + 2
    return index


def resize_bias_table(
    table: Float[Tensor, "rows heads"], from_grid: Size, to_grid: Size, method: str = ""
) -> Float[Tensor, "new_rows heads"]:
    """The table for another grid: offsets interpolated in two dimensions in float32, bicubic, with `bicubic-antialias` antialiased; the
    three rows of the class token are kept.
    """
    if from_grid == to_grid:
        return table
    (old, new) = ([2 * side - 1 for side in grid] for grid in (from_grid, to_grid))
    cells, extra = table[:-_EXTRA].float(), table[-_EXTRA:]
    image = cells.t().reshape(1, -1, *old)
    image = F.interpolate(image, new, mode="bicubic", align_corners=False, antialias=method == "bicubic-antialias")
    return torch.cat([image.flatten(2)[0].t().to(table.dtype), extra])
