"""The Vision Transformer (Dosovitskiy et al., 2021) as numbers, with what its successors added."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vitcli.config_values import Size, check_bounds, format_size, key, shown
from vitcli.errors import UsageError
from vitcli.families.base import Activations, Architecture, Cost, Shape
from vitcli.families.sizes import VARIANTS, dimensions_of

_NAME = re.compile(r"(?:vit-)?([a-z]+|w\d+d\d+h\d+(?:m\d+)?)/(\d{1,5})(?:x(\d{1,5}))?", re.IGNORECASE)
_MOST_TOKENS = 10**6
_MOST_PARAMETERS = 10**12
"""Bounds far above any Vision Transformer that was trained (22 billion parameters, 48 blocks, 6144 channels), as are those of its
dimensions."""
_BLOCKS_IN_WORK = 2
"""Blocks' worth of gradients and intermediate values beside what every block keeps."""
_BLOCKS_AGAIN = 5
"""Blocks' worth of all values where blocks are computed again: the one in work, its gradients, and what taking and freeing so much
leaves unused (docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """The architecture of a ViT."""

    name: str = key("ViT-S/16", "the model's name, from which its dimensions follow", fixed=True)
    width: int = key(384, "channels of a token", least=1, most=10**5, fixed=True)
    depth: int = key(12, "blocks", least=1, most=1000, fixed=True)
    heads: int = key(6, "attention heads of a block", least=1, fixed=True)
    mlp: int = key(1536, "channels within the MLP of a block", least=1, most=10**6, fixed=True)
    patch: Size = key((16, 16), "height and width of a patch, in pixels", fixed=True)
    pool: Literal["cls", "mean", "cls+mean"] = key(
        "cls", "what the head reads: class token, mean of the patches, or both", fixed=True
    )
    class_token: bool = key(True, "a learned token before the patches", fixed=True)
    pre_logits: bool = key(False, "the tanh layer of the paper's pre-training head (§3.1)", fixed=True)
    gelu: Literal["tanh", "erf"] = key(
        "erf", "erf is the exact form; tanh, jax.nn.gelu's default, is the papers' code's", fixed=True
    )
    norm_eps: float = key(1e-6, "added to a LayerNorm's variance", least=0, below=1, fixed=True)
    dropout: float = key(
        0.0, "part of a branch's elements that training drops", least=0, below=1, why="nothing would be left"
    )
    drop_path: float = key(
        0.0, "probability that training skips a branch for an image", least=0, below=1, why="nothing would be left"
    )
    drop_path_rule: Literal["linear", "constant"] = key(
        "linear", "drop_path grows from 0 at the first block to its value at the last, or is the same everywhere"
    )
    norm: Literal["before", "after"] = key(
        "before", "the last LayerNorm before the mean, or after it (MAE, timm's fc_norm)", fixed=True
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
    prefix_positions: bool = key(
        True,
        "class and distillation token have positions; never where there are registers, or positions of another kind than learned",
        fixed=True,
    )
    positions: Literal["learned", "none", "2d", "relative", "sincos"] = key(
        "learned",
        "how a patch's place is told (D.4): a learned vector each; not at all; a learned half for its column and one for its row; a "
        "learned key in attention for each offset between two patches in raster order; fixed sines and cosines",
        fixed=True,
    )
    posemb: Literal["auto", "paper", "bicubic", "bicubic-antialias", "bicubic-offset"] = key(
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
        return (self.width, 3, *self.patch)

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
        has_rows = self.prefix_positions and not self.registers and self.positions == "learned"
        return int(self.class_token) + int(self.distilled) if has_rows else 0

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
    def kind(self) -> str:
        return "Vision Transformer"

    @property
    def has_attention(self) -> bool:
        return True

    @property
    def reader(self) -> str:
        return "patch_embed.proj.weight"

    @property
    def reads_pixels(self) -> bool:
        """Whether a patch is of the image."""
        return True

    @property
    def is_plain(self) -> bool:
        """Whether its file, as it is, is a ViT of other tools."""
        return self.positions == "learned" and self.norm_place == "pre"

    @property
    def takes_any_size(self) -> bool:
        return self.positions != "relative"

    @property
    def features(self) -> int:
        return 2 * self.width if self.pool == "cls+mean" else self.width

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix_tokens

    @property
    def multiple(self) -> Size:
        return self.patch

    # --- names ---

    @classmethod
    def parse(cls, name: str) -> ModelConfig | None:
        """`ViT-B/16`, `b/16`, `ti/4`, or the dimensions that `spelled` writes for other sizes, `ViT-w128d6h2/4`, with the paper's
        class token.
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            return None
        size, rows, columns = match.groups()
        patch = (int(rows), int(columns or rows))
        if min(patch) < 1:
            raise UsageError(f"patch size 0 in {shown(name)}", "a patch is at least one pixel")
        width, depth, mlp, heads = dimensions_of(size, name)
        model = cls(name="", width=width, depth=depth, heads=heads, mlp=mlp, patch=patch)
        check_bounds("model", model)
        return replace(model, name=model.spelled())

    def spelled(self) -> str:
        """`ViT-B/16` for a known size, else its dimensions: `ViT-w128d6h2/4`."""
        dimensions = (self.width, self.depth, self.mlp, self.heads)
        variant = next((v for v, d in VARIANTS.items() if d == dimensions), None)
        if variant is None:
            mlp = "" if self.mlp == 4 * self.width else f"m{self.mlp}"
            variant = f"w{self.width}d{self.depth}h{self.heads}{mlp}"
        return f"ViT-{variant}/{format_size(self.patch)}"

    # --- numbers ---

    def cost(self) -> Cost:
        d, t = self.width, self.tokens
        patches = t - self.prefix_tokens
        pre_logits = d * d + d if self.pre_logits else 0
        heads = (1 + self.distilled) * (self.features * self.classes + self.classes) if self.classes else 0
        blocks = self.depth * self.block_parameters
        positions = sum(math.prod(shape) for shape in self.position_shapes().values())
        backbone = (self.patch_inputs + 1) * d + self.prefix_tokens * d + positions + blocks + 2 * d
        head_macs = (1 + self.distilled) * self.features * self.classes + (d * d if self.pre_logits else 0)
        outputs = Activations(float32=4 * self.classes)  # logits, their softmax and gradients
        # the residual stream, and the widest of what a block makes of it
        widest = Activations(float32=3 * t * d, rounded=t * (2 * self.mlp + 5 * d))
        return Cost(
            parameters=backbone + pre_logits + heads,
            head_parameters=pre_logits + heads,
            macs=patches * self.patch_inputs * d + self.depth * self.block_macs(t) + head_macs,
            head_macs=head_macs,
            training=self.activations(t) + outputs,
            training_head=self._kept(t) + outputs,
            checkpointed=self.activations(t, again=True) + outputs,
            evaluation=widest,
        )

    @property
    def block_parameters(self) -> int:
        d, m = self.width, self.mlp
        return 4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d + (2 * d if self.layer_scale else 0) + self.offsets * d

    def block_macs(self, tokens: int) -> int:
        """Multiply-accumulates of a block for so many tokens."""
        products = 4 * tokens * self.width**2 + 2 * tokens**2 * self.width + 2 * tokens * self.width * self.mlp
        return products + (tokens - self.prefix_tokens) * self.offsets * self.width

    def activations(self, tokens: int, again: bool = False) -> Activations:
        """What all blocks keep of so many tokens for the backward pass; where it computes them `again`, their inputs."""
        if again:
            return Activations(float32=self.depth * tokens * self.width) + self._kept(tokens) * _BLOCKS_AGAIN
        return self._kept(tokens) * (self.depth + _BLOCKS_IN_WORK)

    def _kept(self, t: int) -> Activations:
        """By a block: two residual inputs; two normalised inputs, q, k, v, the attended values, the MLP's two hidden tensors; the
        attention probabilities where they are formed.
        """
        d, m = self.width, self.mlp
        return Activations(float32=2 * t * d, rounded=t * (6 * d + 2 * m) + 2 * self.heads * t * (t + self.offsets))

    def shapes(self) -> dict[str, Shape]:
        """Under timm's names."""
        d, m = self.width, self.mlp
        norm = "norm" if self.norm == "before" else "fc_norm"
        shapes: dict[str, Shape] = {
            **self.position_shapes(),
            "patch_embed.proj.weight": self.patch_shape(),
            "patch_embed.proj.bias": (d,),
            f"{norm}.weight": (d,),
            f"{norm}.bias": (d,),
        }
        if self.class_token:
            shapes["cls_token"] = (1, 1, d)
        if self.distilled:
            shapes["dist_token"] = (1, 1, d)
        if self.registers:
            shapes["reg_token"] = (1, self.registers, d)
        for i in range(self.depth):
            for name, shape in {
                "norm1": (d,),
                "attn.qkv": (3 * d, d),
                "attn.proj": (d, d),
                "norm2": (d,),
                "mlp.fc1": (m, d),
                "mlp.fc2": (d, m),
            }.items():
                shapes[f"blocks.{i}.{name}.weight"] = shape
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
            if self.offsets:
                shapes[f"blocks.{i}.attn.offset_embed"] = (1, self.offsets, d)
            if self.layer_scale:
                shapes |= {f"blocks.{i}.ls1.gamma": (d,), f"blocks.{i}.ls2.gamma": (d,)}
        if self.pre_logits:
            shapes |= {"pre_logits.fc.weight": (d, d), "pre_logits.fc.bias": (d,)}
        if self.classes:
            shapes |= {"head.weight": (self.classes, self.features), "head.bias": (self.classes,)}
        if self.classes and self.distilled:
            shapes |= {"head_dist.weight": (self.classes, d), "head_dist.bias": (self.classes,)}
        return shapes

    # --- what others are told ---

    def described(self) -> dict[str, Any]:
        return {
            "patch_size": list(self.patch),
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "mlp": self.mlp,
            "pool": self.pool,
            "positions": self.positions,
            "norm_place": self.norm_place,
        }

    def resampled_from(self, old: ModelConfig) -> str:
        if self.grid == old.grid or self.positions in ("none", "sincos"):
            return ""
        grids = " to ".join(f"{rows}x{columns}" for rows, columns in (old.grid, self.grid))
        return f"position embedding: {grids} patches, interpolated"

    def sized(self) -> str:
        return f"patches of {format_size(self.patch)}"

    def published(self) -> ModelConfig:
        return replace(self, gelu="tanh")

    def without_dropout(self) -> ModelConfig:
        return replace(self, dropout=0.0, drop_path=0.0)

    def with_learned_positions(self) -> ModelConfig:
        """As a plain ViT with a table of positions, which has rows for prefix tokens where it can."""
        return replace(self, positions="learned", prefix_positions=True)

    def with_patch(self, patch: Size) -> Architecture:
        model = replace(self, patch=patch)
        return replace(model, name=model.spelled())

    def with_head(self, classes: int, kept: bool) -> ModelConfig:
        return replace(self, classes=classes, pre_logits=self.pre_logits and kept and bool(classes))

    def completed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A width alone takes heads of 64 and an MLP of four times the width along."""
        values = dict(asked)
        if "width" in values:
            width = values["width"]
            values.setdefault("heads", width // 64 if width % 64 == 0 else self.heads)
            values.setdefault("mlp", 4 * width)
        if values.get("distilled"):
            values.setdefault("pool", "cls")
        if values.get("pool") == "cls":
            values.setdefault("class_token", True)
        return values

    # --- checks ---

    def check(self) -> None:
        check_bounds("model", self)
        if self.width % self.heads:
            raise UsageError(
                f"model.width = {self.width} is not a multiple of model.heads = {self.heads}",
                "every head has width / heads channels; 64 are usual",
            )
        self._check_size()
        for side, pixels, patch in zip(("height", "width"), self.img_size, self.patch, strict=True):
            if pixels % patch:
                near = max(patch, round(pixels / patch) * patch)
                raise UsageError(
                    f"image {side} {pixels} is not a multiple of the patch size {patch} of {self.name}",
                    f"the nearest {side} that is: {near}",
                )
        if self.positions == "2d" and self.width % 2:
            raise UsageError(
                f"model.positions = 2d gives a column and a row half of the channels each, and model.width = {self.width} is odd",
                "take an even width",
            )
        self._check_reading()

    def _check_size(self) -> None:
        """Raises UsageError for dimensions that no machine holds, before anything is computed with them."""
        if self.tokens > _MOST_TOKENS:
            raise UsageError(
                f"{format_size(self.img_size)} px in patches of {format_size(self.patch)} are {self.tokens:,} tokens, over "
                f"{_MOST_TOKENS:,}",
                "take a smaller --img-size, or a model with larger patches",
            )
        block = 4 * self.width**2 + 2 * self.width * self.mlp
        ends = self.patch_inputs + self.tokens + self.classes
        parameters = self.depth * (block + self.offsets * self.width) + ends * self.width
        if parameters > _MOST_PARAMETERS:
            raise UsageError(
                f"{self.name} with {self.classes:,} classes has about {min(parameters, 10**300):.2g} parameters, over {_MOST_PARAMETERS:.0e}",
                "take a smaller --model",
            )

    def _check_reading(self) -> None:
        """Raises UsageError where what the head is to read is not there."""
        if self.pool != "mean" and not self.class_token:
            raise UsageError(f"model.pool = {self.pool} needs model.class_token = true", "or set model.pool=mean")
        if self.norm == "after" and self.pool != "mean":
            raise UsageError(f"model.norm = after needs model.pool = mean, not {self.pool}", "leave model.norm out")
        if self.distilled and (self.pool != "cls" or self.pre_logits or self.registers):
            raise UsageError(
                "model.distilled goes with model.pool = cls alone", "leave out model.pre_logits and model.registers"
            )
        if self.pre_logits and self.pool == "cls+mean":
            raise UsageError("model.pre_logits reads one token, not model.pool = cls+mean", "leave one of them out")
