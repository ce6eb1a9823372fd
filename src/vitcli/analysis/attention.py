"""What attention weights say: how far a head looks (mean attention distance) and where information comes from (rollout)."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import ModelConfig, Size

# --- mean attention distance -------------------------------------------------------------------------------


def patch_distances(grid: Size, patch: Size) -> Float[Tensor, "patches patches"]:
    """Pixels between the centres of every two patches, in raster order: Euclidean, 0 from a patch to itself."""
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([row.flatten() * patch[0], column.flatten() * patch[1]], dim=1).double()
    return (places[:, None] - places[None]).norm(dim=2)


def uniform_distance(grid: Size, patch: Size) -> float:
    """The mean attention distance in pixels of a head that attends to every patch alike.

    Σ (rows - |i|) (columns - |j|) √((i·height)² + (j·width)²) / (rows·columns)², over all offsets i, j of the grid.
    """
    rows, columns = grid
    total = sum(
        (rows - abs(i)) * (columns - abs(j)) * math.hypot(i * patch[0], j * patch[1])
        for i in range(1 - rows, rows)
        for j in range(1 - columns, columns)
    )
    return total / (rows * columns) ** 2


class AttentionDistance:
    """Mean attention distance of each head of each layer, in pixels (paper §4.5, D.7): a reducer of attention weights.

    Of a query the mean of the distances to all patches, weighted by its attention to them; of a head the mean over queries
    and images. By default prefix tokens (class token, distillation token, registers) are left out, as queries and as keys,
    and what is left of a row is scaled to sum to one again. Without `renormalise` it is not: what a query gives to prefix
    tokens then counts as distance 0. With `include_prefix` these tokens are queries as well, and, having no place, are at
    distance 0 from everything.
    """

    def __init__(
        self, model: ModelConfig, device: torch.device, include_prefix: bool = False, renormalise: bool = True
    ) -> None:
        self.images = 0
        self.sums = torch.zeros(model.depth, model.heads, dtype=torch.float64, device=device)
        self._first = 0 if include_prefix else model.prefix_tokens  # of the queries and keys that count
        self._renormalise = renormalise and self._first > 0
        distances = patch_distances(model.grid, model.patch).float().to(device)
        self._distances = torch.zeros(model.tokens, model.tokens, device=device)
        self._distances[model.prefix_tokens :, model.prefix_tokens :] = distances

    def __call__(self, layer: int, images: slice, weights: Float[Tensor, "images heads tokens tokens"]) -> None:
        first = self._first
        for head, rows in enumerate(weights.unbind(1)):  # one head's product at a time stays in a CPU's cache
            counted = rows[:, first:, first:]
            distance = (counted * self._distances[first:, first:]).sum(dim=2)
            if self._renormalise:
                # a row that gives nothing at all to patches, which is rounding, counts as distance 0
                distance = distance / counted.sum(dim=2).clamp_min(torch.finfo(torch.float32).tiny)
            self.sums[layer - 1, head] += distance.double().mean(dim=1).sum()
        if layer == 1:
            self.images += len(weights)

    def result(self) -> Float[np.ndarray, "layers heads"]:
        """Pixels, the mean over the images so far."""
        return (self.sums / max(1, self.images)).cpu().numpy()


# --- rollout -----------------------------------------------------------------------------------------------


class Rollout:
    """Attention rollout (Abnar and Zuidema, 2020, §3; paper D.8) of one batch: a reducer of attention weights.

    The mean over heads, half of it and half the identity for the residual connection, rows scaled to sum to one; the
    product over layers, the last one leftmost. `discard` is the part of each layer's head mean, the smallest weights of an
    image, that is set to zero before.
    """

    def __init__(self, model: ModelConfig, batch: int, device: torch.device, discard: float = 0.0) -> None:
        self.model, self.discard = model, discard
        self.product = torch.eye(model.tokens, device=device).repeat(batch, 1, 1)
        self._maps = torch.zeros(model.depth, batch, *model.grid, device=device)

    def __call__(self, layer: int, images: slice, weights: Float[Tensor, "images heads tokens tokens"]) -> None:
        mixed = _without_smallest(weights.mean(dim=1), self.discard) / 2
        mixed.diagonal(dim1=1, dim2=2).add_(0.5)
        mixed /= mixed.sum(dim=2, keepdim=True)
        self.product[images] = mixed @ self.product[images]
        self._maps[layer - 1, images] = self._read(self.product[images])

    def _read(self, product: Float[Tensor, "images tokens tokens"]) -> Float[Tensor, "images rows columns"]:
        """What reaches the tokens that the head reads from each patch, the mean where it reads several: of patches alike with `map`,
        whose query weighs them by image.
        """
        model = self.model
        prefix = model.prefix_tokens
        to_patches = product[:, :, prefix:]
        tokens = to_patches[:, : 1 + model.distilled].mean(dim=1)
        patches = to_patches[:, prefix:].mean(dim=1)
        read = {"cls": tokens, "cls+mean": (tokens + patches) / 2}.get(model.pool, patches)
        return read.unflatten(1, model.grid)

    def layers(self) -> NDArray[np.float32]:
        """Rollout up to each layer [layers, images, rows, columns]; the last one is the result."""
        found: NDArray[np.float32] = self._maps.cpu().numpy()
        return found


def _without_smallest(
    weights: Float[Tensor, "images tokens tokens"], part: float
) -> Float[Tensor, "images tokens tokens"]:
    """`weights` with the smallest `part` of each image's numbers set to zero."""
    flat = weights.flatten(1)
    count = int(part * flat.shape[1])
    if not count:
        return weights
    smallest = flat.topk(count, dim=1, largest=False, sorted=False).indices
    return flat.scatter(1, smallest, 0.0).view_as(weights)
