"""Rotary positions of patches: queries and keys turned by angles of their row and column, so that products depend on offsets.

Two axes share a head's channels. Of d channels, d / 4 frequencies f turn d / 2 pairs: the angles of a patch are its place on the
first axis times f, then its place on the second times f; which axis is first is `model.rope_order`.

| model.rope | frequency j of n = d / 4    | place of row r of a grid of R rows (a column likewise)                      | as in                   |
|------------|-----------------------------|-----------------------------------------------------------------------------|-------------------------|
| `index`    | theta^(-j / n)              | r + `rope_offset`, times the rows of `rope_grid` over R where that is given | EVA02, PE, rope-vit     |
| `centred`  | 2π theta^(-j / n)           | 2 (r + 0.5) / R - 1                                                         | DINOv3                  |
| `mixed`    | learned, d / 2 of each axis | r; the angles of both axes are added up                                     | rope-vit (Heo et al., 2024) |

Sources: baaivision/EVA EVA-02/asuka/rope.py, facebookresearch/dinov3 layers/rope_position_encoding.py, facebookresearch/
perception_models core/vision_encoder/rope.py, naver-ai/rope-vit models/vit_rope.py. Prefix tokens are not turned; of registers with
`rope_registers` see there (wangf3014/ViT-5). All is computed in float32.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitcli.config import ModelConfig, Size


class MixedFrequencies(nn.Module):
    """The learned frequencies of `mixed`, of each axis, block and head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(2, config.depth, config.heads, config.width // config.heads // 2))

    @torch.no_grad()
    def initialise(self, theta: float, generator: torch.Generator) -> None:
        """Frequencies of theta in two directions at a right angle, of a random angle for each head (rope-vit)."""
        _, depth, heads, pairs = self.freqs.shape
        size = theta ** -(torch.arange(pairs // 2) / (pairs // 2))
        angle = torch.rand(depth, heads, 1, generator=generator) * 2 * math.pi
        turned = [torch.cat([size * f(angle), size * f(angle + math.pi / 2)], dim=-1) for f in (torch.cos, torch.sin)]
        self.freqs.copy_(torch.stack(turned))


def rotations(
    config: ModelConfig, grid: Size, freqs: Tensor | None = None, device: torch.device | None = None
) -> Float[Tensor, "blocks 2 1 heads tokens dim"] | None:
    """Cosines and sines for the tokens of such a grid, prefix tokens first; None without. One block and one head stand for all where
    they are the same.
    """
    if config.rope == "none":
        return None
    with torch.autocast(device.type if device else "cpu", enabled=False):
        places = _places(config, grid, device)
        if freqs is not None:
            first, second = freqs.float().unsqueeze(3)  # [depth, heads, 1, pairs]
            angles = places[0][:, None] * first + places[1][:, None] * second
        else:
            f = _frequencies(config, config.rope_theta, device)
            angles = torch.cat([axis[:, None] * f for axis in places], dim=1)[None, None]
        before = _prefix_angles(config, device).expand(*angles.shape[:2], -1, -1)
        angles = torch.cat([before.to(angles.dtype), angles], dim=2)
        half = config.rope_layout == "half"
        whole = torch.cat([angles, angles], dim=-1) if half else angles.repeat_interleave(2, dim=-1)
        return torch.stack([whole.cos(), whole.sin()], dim=1).unsqueeze(2)


def _frequencies(config: ModelConfig, theta: float, device: torch.device | None) -> Float[Tensor, " quarter"]:
    n = config.width // config.heads // 4
    found = 1 / theta ** (torch.arange(n, device=device, dtype=torch.float32) / n)
    return 2 * math.pi * found if config.rope == "centred" else found


def _places(config: ModelConfig, grid: Size, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Of each patch in raster order, on the first axis and on the second."""
    axes = []
    for side, scaled in zip(grid, config.rope_grid or (0, 0), strict=True):
        place = torch.arange(side, device=device, dtype=torch.float32)
        if config.rope == "centred":
            place = 2 * ((place + 0.5) / side) - 1
        elif config.rope == "index":
            place = place + config.rope_offset
            place = place / side * scaled if scaled else place
        axes.append(place)
    row, column = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    return (row, column) if config.rope_order == "yx" else (column, row)


def _prefix_angles(config: ModelConfig, device: torch.device | None) -> Float[Tensor, "1 1 prefix pairs"]:
    """Zero, but of registers that have a grid of their own."""
    n = config.width // config.heads // 2
    angles = torch.zeros(config.prefix_tokens, n, device=device)
    if config.rope_registers:
        side = math.isqrt(config.registers)
        f = _frequencies(config, config.rope_registers, device)
        place = torch.arange(side, device=device, dtype=torch.float32)
        axes = torch.meshgrid(place, place, indexing="ij")
        row, column = (axis.flatten()[:, None] * f for axis in axes)
        own = (row, column) if config.rope_order == "yx" else (column, row)
        angles[-config.registers :] = torch.cat(own, dim=1)
    return angles[None, None]


def of_block(
    table: Float[Tensor, "blocks 2 some these tokens channels"] | None, index: int
) -> Float[Tensor, "2 some these tokens channels"] | None:
    """The rotations of a block, counted from 0."""
    return None if table is None else table[index % len(table)]


def of_kept(
    table: Float[Tensor, "blocks 2 1 heads tokens dim"] | None, kept: Int[Tensor, "batch seen"], prefix: int
) -> Float[Tensor, "blocks 2 batch heads seen_tokens dim"] | None:
    """The rotations of prefix tokens and of those patches of each image that are `kept`, by their numbers."""
    if table is None:
        return None
    tokens = torch.cat([torch.arange(prefix, device=kept.device).expand(len(kept), -1), kept + prefix], dim=1)
    return table.squeeze(2)[..., tokens, :].movedim(3, 2)


def turned(
    x: Float[Tensor, "batch heads tokens dim"], table: Float[Tensor, "2 some these tokens dim"], layout: str
) -> Float[Tensor, "batch heads tokens dim"]:
    """Queries or keys by their angles, in the type that they have."""
    cosine, sine = table
    wide = x.float()
    if layout == "half":
        first, second = wide.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        across = torch.stack([-wide[..., 1::2], wide[..., ::2]], dim=-1).flatten(-2)
    return (wide * cosine + across * sine).to(x.dtype)
