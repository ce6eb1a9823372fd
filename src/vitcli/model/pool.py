"""Pooling by attention: a learned query reads all tokens (SigLIP's MAP head: google-research/big_vision models/vit.py)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import ModelConfig
from vitcli.model.attention import attention_weights
from vitcli.model.layers import Mlp, make_norm
from vitcli.model.linear import Linear


class AttentionPool(nn.Module):
    """y + MLP(LN y), y the output projection of what the latent query attends to among all tokens; no residual around it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.pool_heads or config.heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q, self.kv, self.proj = Linear(width, width), Linear(width, 2 * width), Linear(width, width)
        self.norm = make_norm(config.norm_kind, width, config.norm_eps)
        act = "erf" if config.gated else config.gelu
        self.mlp = Mlp(width, config.pool_mlp or config.mlp, act)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        q = self.q(self.latent).unflatten(2, (self.heads, -1)).transpose(1, 2).expand(tokens.shape[0], -1, -1, -1)
        k, v = self.kv(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attention_weights(q, k) @ v
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return (y + self.mlp(self.norm(y)))[:, 0]
