"""A block of the Vision Transformer: attention and an MLP, each beside the stream of what came before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitcli import host
from vitcli.config import ModelConfig
from vitcli.model.attention import Attention
from vitcli.model.layers import Mlp, make_norm

Branch = Callable[[Tensor, Tensor | None], Tensor]
"""Of what a branch reads, and which images of the batch that is; None: all."""


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (facebookresearch/deit models_v2.py)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return x * self.gamma


class Block(nn.Module):
    """x + f(LN x) twice, or with `norm_place` post LN(x + f(x)). `keep` says for each image whether its residual branch is computed at
    all, or counts (DropPath).
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm_kind, config.width, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = make_norm(config.norm_kind, config.width, config.norm_eps)
        self.mlp = Mlp(
            config.width,
            config.mlp,
            config.gelu,
            dropout=config.dropout,
            gated=config.gated,
            bias=config.branch_bias,
            norm=make_norm(config.norm_kind, config.mlp, config.norm_eps) if config.mlp_norm else None,
        )
        self.drop = nn.Dropout(config.dropout)
        self.ls1, self.ls2 = (
            LayerScale(config.width, config.layer_scale) if config.layer_scale else nn.Identity() for _ in range(2)
        )
        self.drop_path, self.post = drop_path, config.norm_place == "post"

    def before(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What a branch reads of x."""
        return x if self.post else norm(x)

    def after(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What becomes of the sum with a branch."""
        return norm(x) if self.post else x

    def attention_branch(
        self, x: Float[Tensor, "batch tokens width"], outputs: int | None = None, rope: Tensor | None = None
    ) -> Float[Tensor, "batch outputs width"]:
        scaled: Tensor = self.ls1(self.drop(self.attn(self.before(self.norm1, x), outputs, rope)))
        return scaled

    def mlp_branch(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        scaled: Tensor = self.ls2(self.drop(self.mlp(self.before(self.norm2, x))))
        return scaled

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        keep: Bool[Tensor, "2 batch"] | None = None,
        outputs: int | None = None,
        rope: Float[Tensor, "2 some these tokens channels"] | None = None,
    ) -> Float[Tensor, "batch outputs width"]:
        """The first `outputs` tokens of the block's result, or all of them. `rope` turns queries and keys (model/rope.py)."""
        mixed, transformed = (None, None) if keep is None else keep

        def mix(x: Tensor, rows: Tensor | None) -> Tensor:
            own = rope if rope is None or rows is None or rope.shape[1] == 1 else rope[:, rows]
            return self.attention_branch(x, outputs, own)

        def transform(x: Tensor, rows: Tensor | None) -> Tensor:
            return self.mlp_branch(x)

        x = self.after(self.norm1, self._add(x[:, :outputs], x, mix, mixed))
        return self.after(self.norm2, self._add(x, x, transform, transformed))

    def _add(self, x: Tensor, source: Tensor, branch: Branch, keep: Bool[Tensor, " batch"] | None) -> Tensor:
        """x + branch(source), the branch computed for the images in `keep` alone where that is known before it begins."""
        if keep is None or self.drop_path == 0:
            return x + branch(source, None)
        scale = 1 / (1 - self.drop_path)
        if not host.can_read(keep):
            return x + branch(source, None).to(x.dtype) * (keep * scale).to(x.dtype)[:, None, None]
        rows = torch.from_numpy(np.flatnonzero(keep.numpy()))
        if not len(rows):  # its weights have a gradient of zero then, in every process
            return x.index_add(
                0,
                torch.zeros(1, dtype=torch.long),
                branch(source[:1], torch.zeros(1, dtype=torch.long)).to(x.dtype),
                alpha=0.0,
            )
        kept = branch(source.index_select(0, rows), rows)
        return x.index_add(0, rows, kept.to(x.dtype), alpha=scale)
