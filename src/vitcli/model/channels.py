"""A patch embedding for images of other channels than those that it was trained on."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def convert_patch_embedding(
    kernel: Float[Tensor, "dim channels rows columns"], to_channels: int, rule: str
) -> Float[Tensor, "dim new_channels rows columns"]:
    """The filters of `kernel` for images of `to_channels`, by one of the rules that `model.channels_from` names.

    | rule     | the filter of a new channel c, of N in place of O                                                 |
    |----------|---------------------------------------------------------------------------------------------------|
    | `mean`   | the mean of the old filters, times O/N                                                            |
    | `repeat` | the old filter of channel c mod O, divided by how many new channels take it; for fewer, times O/N |

    A normalised image whose channels are all equal then has the product that it had, but for `repeat` to fewer channels, where filters are
    left out. `mean` to one channel and `repeat` to a multiple are timm's rules (models/_manipulate.py, adapt_input_conv).
    """
    old = kernel.shape[1]
    if old == to_channels:
        return kernel
    filters = kernel.double()
    if rule == "mean":
        return (filters.mean(dim=1, keepdim=True) * (old / to_channels)).repeat(1, to_channels, 1, 1).to(kernel.dtype)
    source = torch.arange(to_channels) % old
    takers = torch.bincount(source, minlength=old) if to_channels > old else torch.full((old,), to_channels / old)
    return (filters[:, source] / takers[source].view(1, -1, 1, 1)).to(kernel.dtype)
