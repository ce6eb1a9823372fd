"""Learned position embeddings and their interpolation to another grid (paper §3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitcli.config import Size

METHODS = ("bicubic", "paper", "bicubic-antialias", "bicubic-offset", "bilinear", "bilinear-antialias")
"""The default first: what measures best without further training (docs/decisions.md)."""
_OFFSET = 0.1


def resize_position_embedding(
    table: Float[Tensor, "1 rows width"], from_grid: Size, to_grid: Size, prefix: int, method: str = METHODS[0]
) -> Float[Tensor, "1 new_rows width"]:
    """The table for `to_grid` from one for `from_grid`, interpolated in two dimensions in float32.

    The first `prefix` rows belong to the class and distillation tokens and are kept. Equal grids return the table unchanged.

    | method              | as in                                                                                         |
    |---------------------|-----------------------------------------------------------------------------------------------|
    | `bicubic`, `auto`   | facebookresearch/deit main.py, transformers                                                   |
    | `paper`             | scipy.ndimage.zoom(order=1), bilinear with the corners aligned: google-research/vision_transformer checkpoint.py |
    | `bicubic-antialias` | timm; facebookresearch/dinov2 and transformers for models with registers                      |
    | `bilinear`          | facebookresearch/perception_models core/vision_encoder/pe.py                                  |
    | `bilinear-antialias` | transformers models/siglip2                                                                  |
    | `geometric`         | of relative position bias alone (model/relative.py); of others `bicubic`                      |
    | `bicubic-offset`    | facebookresearch/dinov2 vision_transformer.py: a scale of (new + 0.1) / old, for models without registers |
    """
    if from_grid == to_grid:
        return table
    head, cells = table[:, :prefix], table[:, prefix:]
    image = cells.reshape(1, *from_grid, -1).permute(0, 3, 1, 2).float()
    resize = _multiplied if torch.are_deterministic_algorithms_enabled() else _interpolated
    image = resize(image, to_grid, method)
    cells = image.permute(0, 2, 3, 1).reshape(1, to_grid[0] * to_grid[1], -1).to(table.dtype)
    return torch.cat([head, cells], dim=1)


def _interpolated(
    image: Float[Tensor, "1 width rows columns"], to_grid: Size, method: str
) -> Float[Tensor, "1 width new_rows new_columns"]:
    if method == "paper":
        return F.interpolate(image, to_grid, mode="bilinear", align_corners=True)
    if method == "bicubic-offset":
        factors = [(new + _OFFSET) / old for new, old in zip(to_grid, image.shape[2:], strict=True)]
        return F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    mode = "bilinear" if method.startswith("bilinear") else "bicubic"
    return F.interpolate(image, to_grid, mode=mode, align_corners=False, antialias=method.endswith("-antialias"))


def _multiplied(
    image: Float[Tensor, "1 width rows columns"], to_grid: Size, method: str
) -> Float[Tensor, "1 width new_rows new_columns"]:
    """The same as two matrix products, since on CUDA the gradient of an interpolation is added up in any order."""
    rows, columns = (_matrix(old, new, method, image.device) for old, new in zip(image.shape[2:], to_grid, strict=True))
    return (rows @ image.double() @ columns.t()).float()  # in float64, which neither autocast nor TF32 rounds


def _matrix(old: int, new: int, method: str, device: torch.device) -> Float[Tensor, "new old"]:
    """What interpolation along a row makes of each unit vector. Not along a column: on a CPU, antialiasing (torch 2.13) gives all rows of
    an image one cell wide, with its channels first in memory, the value of the first.
    """
    units = torch.eye(old, dtype=torch.float64, device=device).reshape(1, old, 1, old)
    return _interpolated(units, (1, new), method).reshape(old, new).t()


def resize_patch_embedding(
    kernel: Float[Tensor, "dim channels rows columns"], to_patch: Size
) -> Float[Tensor, "dim channels new_rows new_columns"]:
    """The kernel for patches of another size whose products with resized patches come nearest to the old ones.

    FlexiViT's pseudo-inverse (Beyer et al., 2023, §3.4; google-research/big_vision models/proj/flexi/vit.py): with B the
    matrix of an antialiased bilinear resize of a patch, the new kernel is (Bᵀ)⁺ w. For larger patches the
    products of enlarged patches stay exactly the same.
    """
    from_patch = (kernel.shape[2], kernel.shape[3])
    if from_patch == to_patch:
        return kernel
    cells = from_patch[0] * from_patch[1]
    basis = torch.eye(cells, dtype=torch.float64).reshape(cells, 1, *from_patch)
    resize = F.interpolate(basis, to_patch, mode="bilinear", align_corners=False, antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize)  # [new, old], of the transposed B
    flat = kernel.flatten(2).double() @ inverse.t()
    return flat.reshape(*kernel.shape[:2], *to_patch).to(kernel.dtype)
