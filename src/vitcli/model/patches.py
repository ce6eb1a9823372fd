"""Images as patches, and their embedding."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import Size
from vitcli.model.linear import linear


class PatchEmbed(nn.Module):
    """E and its bias, kept as a convolution's weights, applied as one matrix product."""

    def __init__(
        self, patch: Size, width: int, channels: int = 3, *, bias: bool = True, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=bias)
        self.norm = norm or nn.Identity()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        return self.of(cut(images, self.patch))

    def of(self, patches: Float[Tensor, "batch patches pixels"]) -> Float[Tensor, "batch patches dim"]:
        """Of patches that `cut` made."""
        embedded: Tensor = self.norm(linear(patches, self.proj.weight.flatten(1), self.proj.bias))
        return embedded


def cut(images: Float[Tensor, "batch channels height width"], patch: Size) -> Float[Tensor, "batch patches pixels"]:
    """The pixels of each patch, row by row of the grid; within a patch channel by channel, as a convolution's weights lie."""
    (rows, columns), (batch, channels, height, width) = patch, images.shape
    patches = images.view(batch, channels, height // rows, rows, width // columns, columns)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * rows * columns)


def pasted(
    patches: Float[Tensor, "batch patches pixels"], patch: Size, grid: Size
) -> Float[Tensor, "batch 3 height width"]:
    """The inverse of `cut`."""
    (rows, columns), (down, across) = patch, grid
    parts = patches.view(len(patches), down, across, -1, rows, columns)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, down * rows, across * columns)
