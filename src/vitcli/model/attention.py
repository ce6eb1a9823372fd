"""Multi-head self-attention by whichever path is fastest; the weights themselves are a function of their own."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitcli.config import ModelConfig
from vitcli.model.layers import make_norm
from vitcli.model.linear import Linear, linear
from vitcli.model.relative import offset_rows
from vitcli.model.rope import turned

AttentionPath = Literal["plain", "recompute", "fused"]
"""How attention is computed: with the matrix of weights kept for the backward pass, formed again in it, or by
torch's fused kernel. All three give the same numbers up to rounding."""
PATHS: tuple[AttentionPath, ...] = get_args(AttentionPath)

PLAIN_TOKENS_ON_CPU = 640
"""Longest sequence for which a CPU keeps the weights for the backward pass.

On two AVX512-BF16 cores in bf16, heads of 64, forward and backward (benchmarks/attention.py): at 197 tokens,
batch 32 and 6 heads plain 44 ms, recompute 56 ms, fused 110 ms; at 577 tokens, batch 16, 115, 145 and 230 ms.
Beyond this length the kept weights, which grow with the square, are the larger cost.
"""
_CHUNK_BYTES = 8_000_000
"""Weights that `recompute` forms at once: they stay in the cache, and small ones are not cut up."""


def attention_weights(
    q: Float[Tensor, "*batch queries dim"],
    k: Float[Tensor, "*batch keys dim"],
    bias: Float[Tensor, "*some queries keys"] | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """softmax(q kᵀ / √dim + bias): each row sums to one."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def best_path(device: str, tokens: int) -> AttentionPath:
    """The fastest path for a device and length. It changes bits, so a run's state records it."""
    if device != "cpu":
        return "fused"
    return "plain" if tokens <= PLAIN_TOKENS_ON_CPU else "recompute"


def attend(
    qkv: Float[Tensor, "3 batch heads tokens dim"],
    path: AttentionPath | None = None,
    bias: Float[Tensor, "some heads tokens tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens dim"]:
    """attention_weights(q, k, bias) v, by `path` or the best one; with a bias `plain` and `recompute` are the same."""
    chosen = path or best_path(qkv.device.type, qkv.shape[3])
    bias = None if bias is None else bias.to(qkv.dtype)
    compiling = torch.compiler.is_compiling()  # which takes the products apart by itself
    if chosen == "fused" or (compiling and chosen == "recompute"):
        q, k, v = qkv.unbind(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if bias is not None or compiling:
        q, k, v = qkv.unbind(0)
        return attention_weights(q, k, bias) @ v
    result: Tensor = _Products.apply(qkv, chosen == "plain")
    return result


class _Products(torch.autograd.Function):
    """Attention as batched matrix products, its backward pass written out.

    Left to autograd, the same products cost a sixth more: q, k and v are copied one by one, and their gradients
    gathered again. The copy of q, k and v as one tensor is what the backward pass keeps, with the weights
    where `keep` is set.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, keep: bool) -> Tensor:
        qkv = qkv.contiguous()
        result = torch.empty_like(qkv[0])
        keep = keep and ctx.needs_input_grad[0]
        ctx.parts = [slice(None)] if keep else _parts(qkv)
        kept = []
        for part in ctx.parts:
            q, k, v = qkv[:, part].flatten(1, 2)
            weights = _weights(q, k)
            torch.bmm(weights, v, out=result[part].flatten(0, 1))
            if keep:
                kept.append(weights)
        ctx.save_for_backward(qkv, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        qkv, *kept = ctx.saved_tensors
        scale = qkv.shape[-1] ** -0.5
        gradient = gradient.contiguous()
        gradients = torch.zeros_like(qkv) if not qkv.numel() else torch.empty_like(qkv)
        for index, part in enumerate(ctx.parts):
            q, k, v = qkv[:, part].flatten(1, 2)
            dq, dk, dv = gradients[:, part].flatten(1, 2)
            g = gradient[part].flatten(0, 1)
            weights = kept[index] if kept else _weights(q, k)
            torch.bmm(weights.transpose(1, 2), g, out=dv)
            d = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
            dq.baddbmm_(d, k, beta=0, alpha=scale)
            dk.baddbmm_(d.transpose(1, 2), q, beta=0, alpha=scale)
        return gradients, None


def _weights(q: Float[Tensor, "rows tokens dim"], k: Float[Tensor, "rows tokens dim"]) -> Tensor:
    """attention_weights without autograd, the scale taken into the product and the softmax in place."""
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, -1, out=logits)


def _parts(qkv: Float[Tensor, "3 batch heads tokens dim"]) -> list[slice]:
    """Groups of images whose weights take about `_CHUNK_BYTES`."""
    _, batch, heads, tokens, _ = qkv.shape
    images = max(1, _CHUNK_BYTES // (heads * tokens * tokens * qkv.element_size()))
    return [slice(i, i + images) for i in range(0, batch, images)]


class Qkv(Linear):
    """The projection to q, k and v as one matrix. A bias of q and v alone has two parts, and k adds nothing."""

    def __init__(self, width: int, biases: str) -> None:
        super().__init__(width, 3 * width, bias=biases == "all")
        self.partial = biases == "qv"
        if self.partial:
            self.bias = nn.Parameter(torch.empty(2 * width))

    def added(self) -> Float[Tensor, " outputs"] | None:
        if not self.partial or self.bias is None:
            return self.bias
        q, v = self.bias.chunk(2)
        return torch.cat([q, torch.zeros_like(q), v])


class Attention(nn.Module):
    """MSA of the paper's appendix A: q, k, v and output projections, heads of width / heads.

    With positions `relative` a learned key for each offset of a patch's raster index from a query's has its products with the query
    added to those of the content (paper D.4; Shaw et al., 2018); prefix tokens have none. With `bias` a number of each offset of rows
    and columns is added (model/relative.py). Queries and keys may be normalised by head, and turned (model/rope.py), in this order.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dim = config.width, config.width // config.heads
        self.heads, self.grid, self.prefix = config.heads, config.grid, config.prefix_tokens
        self.rope_layout = config.rope_layout
        self.path: AttentionPath | None = None  # None: the best one for device and length
        self.offset_embed = nn.Parameter(torch.empty(1, config.offsets, width)) if config.offsets else None
        rows = config.bias_rows
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, config.heads)) if rows else None
        self.qkv = Qkv(width, config.qkv_bias)
        self.q_norm, self.k_norm = (
            nn.Identity() if config.qk_norm == "none" else make_norm(config.qk_norm, dim, config.norm_eps)
            for _ in range(2)
        )
        self.norm = make_norm(config.norm_kind, width, config.norm_eps) if config.attention_norm else nn.Identity()
        self.proj = Linear(width, width, bias=config.branch_bias)
        self.is_plain = config.qk_norm == "none"

    def project(
        self, x: Float[Tensor, "batch tokens width"], rope: Float[Tensor, "2 some these tokens channels"] | None = None
    ) -> Float[Tensor, "3 batch heads tokens dim"]:
        """q, k and v, stacked in this order, q and k as they are multiplied."""
        qkv = self._heads(self.qkv(x))
        if self.is_plain and rope is None:
            return qkv
        q, k, v = qkv.unbind(0)
        return torch.stack([self._placed(q, self.q_norm, rope), self._placed(k, self.k_norm, rope), v])

    def _placed(self, x: Tensor, norm: nn.Module, rope: Tensor | None) -> Tensor:
        """Queries or keys, normalised and turned, in the type that they have."""
        normed = norm(x).to(x.dtype)
        return normed if rope is None else turned(normed, rope, self.rope_layout)

    def _heads(self, x: Float[Tensor, "batch tokens rows"]) -> Float[Tensor, "parts batch heads tokens dim"]:
        width = self.proj.in_features
        return x.view(*x.shape[:2], x.shape[2] // width, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        outputs: int | None = None,
        rope: Float[Tensor, "2 some these tokens channels"] | None = None,
    ) -> Float[Tensor, "batch outputs width"]:
        """The first `outputs` tokens of the result, or all: keys and values are always all tokens'."""
        if outputs is not None and self.offset_embed is not None and outputs > self.prefix:
            return self(x, None, rope)[:, :outputs]
        if outputs is None:
            qkv = self.project(x, rope)
            mixed = attend(qkv, self.path, self.bias(qkv[0]))
        else:
            width = self.proj.in_features
            weight, bias = self.qkv.weight, self.qkv.added()
            first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
            (q,) = self._heads(linear(x[:, :outputs], weight[:width], first))
            k, v = self._heads(linear(x, weight[width:], rest))
            q = self._placed(q, self.q_norm, None if rope is None else rope[..., :outputs, :])
            mixed = attention_weights(q, self._placed(k, self.k_norm, rope), self._table_bias(outputs)) @ v
        return self.joined(mixed.transpose(1, 2).flatten(2))

    def joined(self, mixed: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """What becomes of the heads' results, side by side."""
        projected: Tensor = self.proj(self.norm(mixed))
        return projected

    def bias(
        self, q: Float[Tensor, "batch heads tokens dim"], heads: slice = slice(None)
    ) -> Float[Tensor, "some heads tokens tokens"] | None:
        """What relative positions add to the logits of `heads`, whose queries are given; None without.

        Raises ValueError for another number of patches.
        """
        n = self.grid[0] * self.grid[1]
        if self.offset_embed is None and self.relative_position_bias_table is None:
            return None
        if q.shape[2] != self.prefix + n:
            raise ValueError(f"{q.shape[2] - self.prefix} patches, relative positions are of {n}")
        if self.offset_embed is None:
            return self._table_bias(None, heads)
        keys = self.offset_embed.unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)[:, heads]
        products = (q[:, :, self.prefix :] * q.shape[-1] ** -0.5) @ keys.to(q.dtype)  # by k - q + n - 1
        return F.pad(_skewed(products), (self.prefix, 0, self.prefix, 0))

    def _table_bias(
        self, outputs: int | None, heads: slice = slice(None)
    ) -> Float[Tensor, "1 heads outputs tokens"] | None:
        """The numbers of positions `bias` for the first `outputs` queries; None without."""
        if self.relative_position_bias_table is None:
            return None
        rows = offset_rows(self.grid, self.relative_position_bias_table.device)[:outputs]
        return self.relative_position_bias_table[:, heads][rows].permute(2, 0, 1).unsqueeze(0)


def _skewed(products: Float[Tensor, "batch heads n offsets"]) -> Float[Tensor, "batch heads n n"]:
    """Element q, k of the result is element q, k - q + n - 1 of what is given: each row is shifted by one more, which is a view of
    the flat numbers with a row one shorter.
    """
    n = products.shape[2]
    step = max(1, 2 * n - 2)
    return products.flatten(2)[..., n - 1 : n - 1 + n * step].unflatten(2, (n, step))[..., :n]
