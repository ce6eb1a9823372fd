"""Multi-head self-attention; the weights themselves are a function of their own."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PLAIN_TOKENS_ON_CPU = 640
"""Longest sequence for which attention is formed as a matrix on a CPU.

At 197 tokens, heads of 64, batch 32 and bf16 on two AVX512-BF16 cores the plain products take a third of the
time of the fused kernel, forward and backward; beyond this length their memory, which grows with the square,
is the larger cost.
"""


def attention_weights(
    q: Float[Tensor, "batch heads queries dim"], k: Float[Tensor, "batch heads keys dim"]
) -> Float[Tensor, "batch heads queries keys"]:
    """softmax(q kᵀ / √dim): each row sums to one."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)


def uses_plain(device: str, tokens: int) -> bool:
    """Whether `attend` forms the attention matrix. It changes bits, so a run's state records it."""
    return device == "cpu" and tokens <= PLAIN_TOKENS_ON_CPU


def attend(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """attention_weights(q, k) v, by the path that is faster for the device and length."""
    if uses_plain(q.device.type, q.shape[-2]):
        return attention_weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """MSA of the paper's appendix A: q, k, v and output projections with biases, heads of width / heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "3 batch heads tokens dim"]:
        """q, k and v, stacked in this order."""
        batch, tokens, width = x.shape
        return self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.project(x).unbind(0)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(x.shape))
