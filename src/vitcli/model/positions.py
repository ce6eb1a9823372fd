"""Where a patch is, in each of the ways that `model.positions` names (paper §3.1 and D.4): tables that are added to patches.

Relative positions are no table; they are a bias of attention (model/attention.py), as rotary ones turn queries and keys (model/rope.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from vitcli.config import ModelConfig, Size
from vitcli.errors import UsageError
from vitcli.model.posemb import resize_position_embedding
from vitcli.model.relative import resize_bias_table


def position_table(
    tensors: Mapping[str, Tensor], config: ModelConfig, grid: Size, device: torch.device | None = None
) -> Float[Tensor, "1 rows width"]:
    """What is added to prefix tokens that have positions, then to the patches of `grid` in raster order; zeros where nothing is.

    `tensors` are the model's, by their names. The two dimensions of `2d` are X, the column, in the first half of the channels
    and Y in the second.
    """
    if config.positions == "learned":
        return resize_position_embedding(tensors["pos_embed"], config.grid, grid, config.prefix_rows, config.posemb)
    if config.positions == "2d":
        across, down = (_axis(tensors, name, config, grid, config.posemb) for name in _AXES)
        halves = [across.unsqueeze(1).expand(-1, grid[0], -1, -1), down.unsqueeze(2).expand(-1, -1, grid[1], -1)]
        return torch.cat(halves, dim=-1).flatten(1, 2)
    if config.positions == "sincos":
        return sines_and_cosines(grid, config.width, device).unsqueeze(0)
    return torch.zeros(1, grid[0] * grid[1], config.width, device=device)


_AXES = {"column_embed": 1, "row_embed": 0}
"""The tables of `2d`, and the axis of the grid that each has a row for."""


def _axis(tensors: Mapping[str, Tensor], name: str, config: ModelConfig, grid: Size, method: str) -> Tensor:
    """A table of `2d` [1, places, width / 2] for `grid`, interpolated along its axis."""
    axis = _AXES[name]
    return resize_position_embedding(tensors[name], (config.grid[axis], 1), (grid[axis], 1), 0, method)


def resized_positions(
    tensors: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig, method: str = ""
) -> dict[str, Tensor]:
    """The tensors that differ for the grid of `new`, by `method`, else as `old` says. Raises UsageError for relative positions."""
    method = method or old.posemb
    if old.grid == new.grid or not old.has_tables:
        return {}
    if old.positions == "bias":
        names = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(old.depth)]
        return {name: resize_bias_table(tensors[name], old.grid, new.grid, method) for name in names}
    if old.positions == "2d":
        return {name: _axis(tensors, name, old, new.grid, method) for name in _AXES}
    if old.positions == "relative":
        one, other = (f"{rows}x{columns}" for rows, columns in (old.grid, new.grid))
        raise UsageError(
            f"model.positions = relative counts patches of a grid of {one} one after the other, and says nothing of one of {other}",
            "keep the image size that it was trained at, or train with model.positions=2d",
        )
    table = tensors["pos_embed"]
    return {"pos_embed": resize_position_embedding(table, old.grid, new.grid, old.prefix_rows, method)}


def places_of(config: ModelConfig) -> str:
    """Where a model without learned positions that are added to patches has their places."""
    if config.is_pairwise:
        return f"places are in its attention (model.positions = {config.positions})"
    if config.rope != "none":
        return f"places are in rotations of queries and keys (model.rope = {config.rope})"
    return f"model.positions = {config.positions}"


def as_learned(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with positions `learned`, where they are a table; prefix tokens then have rows of zeros."""
    if config.positions in ("learned", "relative", "bias") or (config.positions == "none" and config.rope != "none"):
        return config, dict(tensors)
    table = position_table(tensors, config, config.grid)
    plain = config.with_learned_positions()
    rows = torch.zeros(1, plain.prefix_rows, config.width)
    kept = {name: tensor for name, tensor in tensors.items() if name not in _AXES}
    return plain, kept | {"pos_embed": torch.cat([rows, table], dim=1)}


@torch.no_grad()
def start_as_sines(tensors: Mapping[str, Tensor], config: ModelConfig, scale: float) -> None:
    """Learned positions of patches at `scale` times sines and cosines of their column and row, in place."""
    (rows, columns), width = config.grid, config.width
    if config.positions == "learned":
        tensors["pos_embed"][:, config.prefix_rows :] = scale * sines_and_cosines(config.grid, width)
    elif config.positions == "2d":
        tensors["column_embed"].copy_(scale * sines_and_cosines((1, columns), width)[:, : width // 2])
        tensors["row_embed"].copy_(scale * sines_and_cosines((rows, 1), width)[:, width // 2 :])


def sines_and_cosines(grid: Size, width: int, device: torch.device | None = None) -> Float[Tensor, "patches width"]:
    """A quarter of the width each: sine and cosine of the column, sine and cosine of the row, at wavelengths of 2π to 20,000π
    (MAE, util/pos_embed.py).
    """
    quarter = -(-width // 4)
    rates = 10_000.0 ** (-torch.arange(quarter, device=device) / quarter)
    places = (torch.arange(side, device=device) for side in grid)
    row, column = torch.meshgrid(*places, indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[:, :width]
