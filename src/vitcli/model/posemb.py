"""Learned position embeddings and their interpolation to another grid (paper §3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitcli.config import Size

METHODS = ("paper", "bicubic", "bicubic-antialias")


def resize_position_embedding(
    table: Float[Tensor, "1 rows width"], from_grid: Size, to_grid: Size, prefix: int, method: str = "bicubic"
) -> Float[Tensor, "1 new_rows width"]:
    """The table for `to_grid` from one for `from_grid`, interpolated in two dimensions in float32.

    The first `prefix` rows belong to the class token and are kept. `paper` is bilinear with the corners
    aligned, as scipy.ndimage.zoom(order=1) in google-research/vision_transformer checkpoint.py; `bicubic` is
    facebookresearch/deit main.py; `bicubic-antialias` is timm's. Equal grids return the table unchanged.
    """
    if from_grid == to_grid:
        return table
    head, cells = table[:, :prefix], table[:, prefix:]
    image = cells.reshape(1, *from_grid, -1).permute(0, 3, 1, 2).float()
    if method == "paper":
        image = F.interpolate(image, to_grid, mode="bilinear", align_corners=True)
    else:
        image = F.interpolate(
            image, to_grid, mode="bicubic", align_corners=False, antialias=method == "bicubic-antialias"
        )
    cells = image.permute(0, 2, 3, 1).reshape(1, to_grid[0] * to_grid[1], -1).to(table.dtype)
    return torch.cat([head, cells], dim=1)
