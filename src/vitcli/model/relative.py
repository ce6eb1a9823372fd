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
from vitcli.model.posemb import METHODS, resize_position_embedding

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
    table: Float[Tensor, "rows heads"], from_grid: Size, to_grid: Size, method: str = METHODS[0]
) -> Float[Tensor, "new_rows heads"]:
    """The table for another grid: offsets interpolated as `resize_position_embedding` does it, the three rows of the class token kept."""
    (old, new) = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (from_grid, to_grid))
    cells, extra = table[None, :-_EXTRA], table[-_EXTRA:]
    return torch.cat([resize_position_embedding(cells, old, new, 0, method)[0], extra])
