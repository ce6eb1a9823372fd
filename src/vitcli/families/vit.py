"""The Vision Transformer (Dosovitskiy et al., 2021) as numbers, with what its successors added."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from vitcli.config_values import RGB, Size, check_bounds, format_size, shown
from vitcli.errors import UsageError
from vitcli.families import vit_checks, vit_numbers
from vitcli.families.base import Activations, Architecture, Cost, Shape
from vitcli.families.sizes import VARIANTS, dimensions_of
from vitcli.families.vit_keys import VitKeys

_NAME = re.compile(r"(?:vit-)?([a-z]+|w\d+d\d+h\d+(?:m\d+)?)/(\d{1,5})(?:x(\d{1,5}))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(VitKeys):
    """The architecture of a ViT."""

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
        return True

    @property
    def is_plain(self) -> bool:
        """Whether its file, as it is, is a ViT of other tools."""
        return self == replace(self, **_PLAIN)

    @property
    def takes_any_size(self) -> bool:
        return not self.is_pairwise

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
        return vit_numbers.cost(self)

    def shapes(self) -> dict[str, Shape]:
        return vit_numbers.shapes(self)

    @property
    def block_parameters(self) -> int:
        return sum(math.prod(shape) for shape in vit_numbers.block_shapes(self).values())

    def block_macs(self, tokens: int) -> int:
        """Multiply-accumulates of a block for so many tokens."""
        return vit_numbers.block_macs(self, tokens)

    def activations(self, tokens: int, again: bool = False) -> Activations:
        """What all blocks keep of so many tokens for the backward pass; where it computes them `again`, their inputs."""
        return vit_numbers.activations(self, tokens, again)

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
            **({"channels": self.channels} if self.channels != RGB else {}),
            **({"gelu": self.gelu} if self.gelu in ("quick", "silu") else {}),
            **{key: getattr(self, key) for key in _PARTS if getattr(self, key) != _PLAIN[key]},
        }

    def resampled_from(self, old: ModelConfig) -> str:
        if self.grid == old.grid or not self.has_tables:
            return ""
        grids = " to ".join(f"{rows}x{columns}" for rows, columns in (old.grid, self.grid))
        table = "relative position bias" if self.positions == "bias" else "position embedding"
        return f"{table}: {grids} patches, interpolated"

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

    def check(self) -> None:
        super().check()
        vit_checks.check(self)


_PLAIN: dict[str, Any] = {
    "positions": "learned",
    "norm_place": "pre",
    "rope": "none",
    "gated": False,
    "mlp_norm": False,
    "attention_norm": False,
    "qk_norm": "none",
    "qkv_bias": "all",
    "branch_bias": True,
    "norm_kind": "layer",
    "patch_bias": True,
    "patch_norm": False,
    "pre_norm": False,
}
"""What every tool's ViT has."""
_PARTS = tuple(key for key in _PLAIN if key not in ("positions", "norm_place"))
