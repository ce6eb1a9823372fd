"""What a model knows before it sees an image: how alike its position embeddings are, and its filters of the patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def position_similarity(
    table: Float[Tensor, "1 rows width"], prefix: int
) -> Float[np.ndarray[Any, Any], "patches patches"]:
    """Cosine similarity of the position embeddings of every two patches, in raster order (paper §4.5, Figure 7 centre).

    The first `prefix` rows of the table belong to prefix tokens and are left out. A row of zeros is like no other.
    """
    rows = table[0, prefix:].double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (rows @ rows.T).clamp(-1, 1).numpy()


@dataclass(frozen=True, eq=False)
class Filters:
    """Principal components of the patch embedding, by falling variance."""

    components: Float[np.ndarray[Any, Any], "components rows columns channels"]  # unit vectors, as pixels of a patch
    explained_variance: Float[np.ndarray[Any, Any], " components"]  # part of the whole variance


def principal_filters(kernel: Float[Tensor, "width channels rows columns"], most: int) -> Filters:
    """The first principal components of the patch embedding's filters (paper §4.5, Figure 7 left), at most `most`.

    The `width` filters are the samples, their channels·rows·columns weights the variables; the mean filter is taken off. A
    component's sign, which means nothing, is such that its largest weight is positive.
    """
    samples = kernel.double().flatten(1)
    samples = samples - samples.mean(dim=0)
    _, values, components = torch.linalg.svd(samples, full_matrices=False)
    variance = values**2
    kept = min(most, len(values))
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = (components * largest.sign())[:kept]
    pictures = components.unflatten(1, kernel.shape[1:]).permute(0, 2, 3, 1)
    total = float(variance.sum())
    return Filters(pictures.numpy(), (variance[:kept] / (total or 1.0)).numpy())
