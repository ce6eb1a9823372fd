"""Relative position bias: a learned number of each head for every offset of rows and columns (Bao et al., 2022, BEiT; microsoft/unilm
beit/modeling_finetune.py).

The table has a row for each offset of a grid, rows of offsets first, then three: from the class token to patches, from patches to
it, from it to itself.
"""

from __future__ import annotations

import numpy as np
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
    """The table for another grid: offsets interpolated as `resize_position_embedding` does it, the three rows of the class token kept.

    `geometric` (microsoft/unilm beit/run_class_finetuning.py, in timm's linear form) takes the old offsets to lie further and further
    apart, so that the farthest is the new grid's and the nearest stay neighbours.
    """
    if method == "geometric" and from_grid != to_grid:
        down, across = (_spread(old, new) for old, new in zip(from_grid, to_grid, strict=True))
        cells = table[:-_EXTRA].float().unflatten(0, (2 * from_grid[0] - 1, 2 * from_grid[1] - 1))
        moved = torch.einsum("yr,rch,xc->yxh", down.to(cells), cells, across.to(cells)).flatten(0, 1)
        return torch.cat([moved.to(table.dtype), table[-_EXTRA:]])
    method = METHODS[0] if method == "geometric" else method
    (old, new) = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (from_grid, to_grid))
    cells, extra = table[None, :-_EXTRA], table[-_EXTRA:]
    return torch.cat([resize_position_embedding(cells, old, new, 0, method)[0], extra])


def _spread(old: int, new: int) -> Float[Tensor, "new_offsets old_offsets"]:
    """Weights of old offsets in each new one along an axis: the old ones lie at 0, ±1, ±(1 + q), ±(1 + q + q²) …, with the ratio q by which
    the last of them comes to the last new one.
    """
    reach, low, high = new - 1, 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** (old - 1)) / (1 - q) > reach else (q, high)
    steps = np.concatenate([[0.0], np.cumsum(q ** np.arange(old - 1))])
    places = np.concatenate([-steps[:0:-1], steps])
    wanted = np.arange(-reach, reach + 1)
    units = np.eye(len(places))
    return torch.from_numpy(np.stack([np.interp(wanted, places, unit) for unit in units], axis=1))
