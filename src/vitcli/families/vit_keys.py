"""The keys of a Vision Transformer (Dosovitskiy et al., 2021), with what its successors added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from vitcli.config_values import Size, key
from vitcli.families.base import Architecture, Shape


@dataclass(frozen=True, kw_only=True)
class VitKeys(Architecture):
    """The keys of a ViT's architecture, and what follows from them alone."""

    name: str = key("ViT-S/16", "the model's name, from which its dimensions follow", fixed=True)
    width: int = key(384, "channels of a token", least=1, most=10**5, fixed=True)
    depth: int = key(12, "blocks", least=1, most=1000, fixed=True)
    heads: int = key(6, "attention heads of a block", least=1, fixed=True)
    mlp: int = key(1536, "channels within the MLP of a block", least=1, most=10**6, fixed=True)
    patch: Size = key((16, 16), "height and width of a patch, in pixels", fixed=True)
    pool: Literal["cls", "mean", "cls+mean", "map"] = key(
        "cls",
        "what the head reads: class token, mean of the patches, both, or what a learned query attends to (SigLIP's map)",
        fixed=True,
    )
    pool_prefix: bool = key(
        False, "model.pool = mean or map reads class token and registers as well (Perception Encoder)", fixed=True
    )
    pool_heads: int = key(
        0, "attention heads of model.pool = map; 0: those of a block", least=0, most=10**4, fixed=True
    )
    pool_mlp: int = key(
        0, "channels within the MLP of model.pool = map; 0: those of a block's", least=0, most=10**6, fixed=True
    )
    class_token: bool = key(True, "a learned token before the patches", fixed=True)
    pre_logits: bool = key(False, "the tanh layer of the paper's pre-training head (§3.1)", fixed=True)
    gelu: Literal["tanh", "erf", "quick", "silu"] = key(
        "erf",
        "activation of the MLP: GELU in its exact form erf; in the form tanh, jax.nn.gelu's default, of the papers' code; as quick, "
        "x·σ(1.702x), of OpenAI's CLIP; or silu, x·σ(x)",
        fixed=True,
    )
    gated: bool = key(
        False, "the MLP multiplies its activations by a second projection (SwiGLU, with gelu = silu)", fixed=True
    )
    mlp_norm: bool = key(False, "a norm of the MLP's hidden channels (EVA02)", fixed=True)
    attention_norm: bool = key(False, "a norm of what attention gives, before its projection (EVA02-CLIP)", fixed=True)
    qk_norm: Literal["none", "layer", "rms"] = key("none", "a norm of each head's queries and keys", fixed=True)
    qkv_bias: Literal["all", "qv", "none"] = key(
        "all", "biases of queries, keys and values; qv: of queries and values alone (BEiT, DINOv3)", fixed=True
    )
    branch_bias: bool = key(True, "biases of attention's projection and of the MLP", fixed=True)
    norm_kind: Literal["layer", "rms"] = key(
        "layer", "every norm is a LayerNorm, or divides by the root mean square alone (AIMv2)", fixed=True
    )
    norm_eps: float = key(1e-6, "added to a norm's variance", least=0, below=1, fixed=True)
    patch_bias: bool = key(True, "the patch embedding has a bias; CLIP's has none", fixed=True)
    patch_norm: bool = key(False, "a norm of the patch embedding, before positions are added (AIMv2)", fixed=True)
    pre_norm: bool = key(False, "a norm of all tokens before the blocks (CLIP)", fixed=True)
    dropout: float = key(
        0.0, "part of a branch's elements that training drops", least=0, below=1, why="nothing would be left"
    )
    drop_path: float = key(
        0.0, "probability that training skips a branch for an image", least=0, below=1, why="nothing would be left"
    )
    drop_path_rule: Literal["linear", "constant"] = key(
        "linear", "drop_path grows from 0 at the first block to its value at the last, or is the same everywhere"
    )
    norm: Literal["before", "after", "none"] = key(
        "before", "the last norm before the mean, after it (MAE, timm's fc_norm), or not at all", fixed=True
    )
    norm_place: Literal["pre", "post"] = key(
        "pre",
        "a block's LayerNorms before its branches, or after each sum as in Vaswani et al. (2017); the last one stays either way",
        fixed=True,
    )
    registers: int = key(
        0,
        "tokens after the class token that nothing reads, without positions (DINOv2)",
        least=0,
        most=10**4,
        fixed=True,
    )
    distilled: bool = key(
        False, "DeiT's distillation token, with a head of its own; the logits are the mean of both heads", fixed=True
    )
    layer_scale: float = key(
        0.0,
        "initial value of a learned factor for each channel of a branch (DeiT-III); 0: none",
        least=0,
        below=math.inf,
        fixed=True,
    )
    register_positions: bool = key(False, "registers have positions as well (Virchow2)", fixed=True)
    prefix_positions: bool = key(
        True,
        "class and distillation token have positions; where there are registers only with register_positions, and never with positions of another kind than learned",
        fixed=True,
    )
    positions: Literal["learned", "none", "2d", "relative", "sincos", "bias"] = key(
        "learned",
        "how a patch's place is told (D.4): a learned vector each; not at all; a learned half for its column and one for its row; a "
        "learned key in attention for each offset between two patches in raster order; fixed sines and cosines; a learned number "
        "in attention for each offset of rows and columns (BEiT)",
        fixed=True,
    )
    rope: Literal["none", "index", "centred", "mixed"] = key(
        "none",
        "queries and keys are turned by angles of a patch's row and column, beside model.positions (model/rope.py): of their numbers; "
        "of places between -1 and 1 (DINOv3); of both at once by learned frequencies",
        fixed=True,
    )
    rope_theta: float = key(10_000.0, "base of the frequencies of model.rope", above=0, below=math.inf, fixed=True)
    rope_layout: Literal["interleaved", "half"] = key(
        "interleaved", "channels that are turned together: neighbours, or one of each half (DINOv3)", fixed=True
    )
    rope_order: Literal["yx", "xy"] = key("yx", "the axis of the first half of the angles: row, or column", fixed=True)
    rope_offset: float = key(
        0.0, "number of the first row and column of model.rope = index", least=0, below=math.inf, fixed=True
    )
    rope_grid: tuple[int, ...] = key(
        (),
        "rows and columns to which the numbers of model.rope = index are scaled; empty: they are not",
        least=1,
        most=10**6,
        longest=2,
        fixed=True,
    )
    rope_registers: float = key(
        0.0,
        "base of the frequencies of registers, turned as a square grid of their own (ViT-5); 0: they are not turned",
        least=0,
        below=math.inf,
        fixed=True,
    )
    posemb: Literal[
        "auto", "paper", "bicubic", "bicubic-antialias", "bicubic-offset", "bilinear", "bilinear-antialias", "geometric"
    ] = key(
        "auto",
        "how positions are taken to another image size (model/posemb.py); auto is what the code of the checkpoint's family does",
    )

    DIMENSIONS: ClassVar[frozenset[str]] = frozenset({"width", "depth", "heads", "mlp", "patch"})

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return self.img_size[0] // self.patch[0], self.img_size[1] // self.patch[1]

    def patch_shape(self) -> Shape:
        """Of E, as a convolution's weights."""
        return (self.width, self.channels, *self.patch)

    @property
    def patch_inputs(self) -> int:
        """Numbers of a patch that E multiplies."""
        return math.prod(self.patch_shape()[1:])

    @property
    def prefix_tokens(self) -> int:
        """Class token, distillation token and registers, in this order before the patches."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def prefix_rows(self) -> int:
        """Rows of the position embedding that belong to prefix tokens."""
        if not self.prefix_positions or self.positions != "learned":
            return 0
        if self.registers:
            return self.prefix_tokens if self.register_positions else 0
        return int(self.class_token) + int(self.distilled)

    @property
    def position_rows(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix_rows

    def position_shapes(self) -> dict[str, Shape]:
        """The learned tables that are added to tokens."""
        if self.positions == "learned":
            return {"pos_embed": (1, self.position_rows, self.width)}
        if self.positions == "2d":
            rows, columns = self.grid
            return {"column_embed": (1, columns, self.width // 2), "row_embed": (1, rows, self.width // 2)}
        return {}

    @property
    def offsets(self) -> int:
        """Keys of relative positions in a block: of every offset between two patches in raster order."""
        return 2 * self.grid[0] * self.grid[1] - 1 if self.positions == "relative" else 0

    @property
    def bias_rows(self) -> int:
        """Numbers of a head for `positions` bias: of every offset of rows and columns, and three of the class token."""
        rows, columns = self.grid
        return (2 * rows - 1) * (2 * columns - 1) + 3 if self.positions == "bias" else 0

    @property
    def has_tables(self) -> bool:
        """Whether there are learned positions of one grid, which another grid needs interpolated."""
        return self.positions not in ("none", "sincos")

    @property
    def is_pairwise(self) -> bool:
        """Whether attention adds something of two patches' places, which needs all patches of the grid."""
        return self.positions in ("relative", "bias")

    @property
    def features(self) -> int:
        return 2 * self.width if self.pool == "cls+mean" else self.width

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix_tokens
