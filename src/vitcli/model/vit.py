"""The Vision Transformer (Dosovitskiy et al., 2021, §3.1 and appendix A), under timm's parameter names.

images → patches · E + b → [class token; patches] + positions → depth × (x + MSA(LN x); x + MLP(LN x)) → LN
       → the class token, or the mean of the patches → [tanh layer] → head

What its successors added is part of the configuration: a distillation token with a head of its own (DeiT), a learned
factor for each channel of a branch (DeiT-III), registers (DINOv2), the last LayerNorm after the mean (MAE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitcli import host
from vitcli.config import Architecture, ModelConfig, Size
from vitcli.model.attention import Attention, AttentionPath
from vitcli.model.block import Block, LayerScale
from vitcli.model.classifier import Classifier
from vitcli.model.linear import linear
from vitcli.model.posemb import resize_patch_embedding
from vitcli.model.positions import position_table, resized_positions, start_as_sines
from vitcli.randomness import Step, step_uniforms

TOKENS = ("pos_embed", "column_embed", "row_embed", "cls_token", "dist_token", "reg_token")
"""Parameters beside the layers: learned vectors that are added to tokens, or are tokens."""


class PatchEmbed(nn.Module):
    """E and its bias, kept as a convolution's weights, applied as one matrix product."""

    def __init__(self, patch: Size, width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        return self.of(cut(images, self.patch))

    def of(self, patches: Float[Tensor, "batch patches pixels"]) -> Float[Tensor, "batch patches dim"]:
        """Of patches that `cut` made."""
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


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


class PreLogits(nn.Module):
    """The hidden layer of the paper's pre-training head (§3.1, D.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return torch.tanh(self.fc(x))


def drop_path_rates(config: ModelConfig) -> list[float]:
    """The rate of each block: growing linearly from 0 to drop_path, or constant (DeiT-III)."""
    if config.drop_path_rule == "constant":
        return [config.drop_path] * config.depth
    return [config.drop_path * layer / max(1, config.depth - 1) for layer in range(config.depth)]


class ViT(Classifier):
    """A Vision Transformer of any size, patch and image size. Raises UsageError if the dimensions do not fit."""

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.checkpointing = False
        self.patch_embed = self.make_patch_embed()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, config.width)) if config.registers else None
        for name, shape in config.position_shapes().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_path_rates(config))
        before = config.norm == "before"
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if before else nn.Identity()
        self.fc_norm = nn.Identity() if before else nn.LayerNorm(config.width, config.norm_eps)
        self.pre_logits = PreLogits(config.width) if config.pre_logits else nn.Identity()
        self.head = nn.Linear(config.features, config.classes) if config.classes else nn.Identity()
        self.head_dist = nn.Linear(config.width, config.classes) if config.classes and config.distilled else None

    def make_patch_embed(self) -> PatchEmbed:
        return PatchEmbed(self.config.patch, self.config.width)

    @property
    def heads(self) -> list[nn.Linear]:
        """The layers that give logits: one, two of a distilled model, none without classes."""
        return [layer for layer in (self.head, self.head_dist) if isinstance(layer, nn.Linear)]

    def positions(self, grid: Size) -> Float[Tensor, "1 rows dim"]:
        """What is added to the prefix tokens that have positions and to the patches of `grid`."""
        tables = {name: getattr(self, name) for name in self.config.position_shapes()}
        return position_table(tables, self.config, grid, self.patch_embed.proj.weight.device)

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Patches, prefix tokens and positions: the input of the first block."""
        prefix, patches = self.placed(self.grid_of(images))
        return self.with_prefix(self.patch_embed(images) + patches, prefix)

    def grid_of(self, images: Float[Tensor, "batch 3 height width"]) -> Size:
        """Rows and columns of patches."""
        patch = self.config.patch
        return images.shape[2] // patch[0], images.shape[3] // patch[1]

    def placed(self, grid: Size) -> tuple[Float[Tensor, "1 rows dim"], Float[Tensor, "1 patches dim"]]:
        """The positions of prefix tokens, and of the patches of such a grid."""
        rows, table = self.config.prefix_rows, self.positions(grid)
        return table[:, :rows], table[:, rows:]

    def with_prefix(
        self, patches: Float[Tensor, "batch patches dim"], positions: Float[Tensor, "1 rows dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Patches that have their positions, or some of them, behind the prefix tokens with theirs."""
        prefix: list[Tensor] = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if positions.shape[1]:
            prefix = [torch.cat(prefix, dim=1) + positions]
        if self.reg_token is not None:
            prefix.append(self.reg_token)
        tokens = [token.to(patches.dtype).expand(patches.shape[0], -1, -1) for token in prefix]
        return self.pos_drop(torch.cat([*tokens, patches], dim=1) if tokens else patches)

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        keep: Bool[Tensor, "depth 2 batch"] | None = None,
        outputs: int | None = None,
    ) -> Float[Tensor, "batch outputs dim"]:
        """The first `outputs` tokens, or all, after the last LayerNorm if that stands before the pooling.

        `keep` are DropPath's rows, known before any branch runs.
        """
        return self.blocks_of(self.embed(images), keep, outputs)

    def blocks_of(
        self,
        x: Float[Tensor, "batch tokens dim"],
        keep: Bool[Tensor, "depth 2 batch"] | None = None,
        outputs: int | None = None,
    ) -> Float[Tensor, "batch outputs dim"]:
        """What the blocks make of such tokens, however many, as `encode` gives it."""
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            x = self._through(block, x, None if keep is None else keep[index], outputs if index == last else None)
        return self.norm(x)

    def _through(self, block: nn.Module, x: Tensor, keep: Tensor | None, outputs: int | None) -> Tensor:
        """What a block makes of its input; with checkpointing, only this is kept for the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            result: Tensor = block(x, keep, outputs)
            return result
        draws = self.config.dropout > 0  # from torch's generators, whose state is then kept too
        return checkpoint(block, x, keep, outputs, use_reentrant=False, preserve_rng_state=draws)

    def read(
        self, images: Float[Tensor, "batch 3 height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> list[Float[Tensor, "batch inputs"]]:
        """What each head reads. Of the last block, only the tokens that are read are computed."""
        config = self.config
        if config.pool == "cls":
            tokens = self.encode(images, keep, outputs=1 + config.distilled)
            return [self.pre_logits(token) for token in tokens.unbind(1)]
        tokens = self.encode(images, keep)
        mean = self.fc_norm(tokens[:, config.prefix_tokens :].mean(dim=1))
        return [self.pre_logits(mean if config.pool == "mean" else torch.cat([tokens[:, 0], mean], dim=1))]

    def features(
        self, images: Float[Tensor, "batch 3 height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> Float[Tensor, "batch inputs"]:
        """What the head reads; of a distilled model the mean of what its two heads read."""
        read = self.read(images, keep)
        return read[0] if len(read) == 1 else torch.stack(read).mean(dim=0)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Logits of normalised images, of a distilled model the mean of both heads'; without a head the features.

        Raises ValueError for images of another size than the configuration's, or of `taking`, at which positions are
        interpolated in every pass.
        """
        self.check_size(images)
        if self.head_dist is None:
            return self.head(self.features(images, keep))
        of_class, of_teacher = self.logits(images, keep)
        return (of_class + of_teacher) / 2

    def logits(
        self, images: Float[Tensor, "batch 3 height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> list[Float[Tensor, "batch classes"]]:
        """Of a distilled model those of the class token and of the distillation token."""
        if self.head_dist is None:
            return [self(images, keep)]
        self.check_size(images)
        of_class, of_teacher = self.read(images, keep)
        return [self.head(of_class), self.head_dist(of_teacher)]

    def draw(
        self, seed: int, step: Step, batch: int, device: torch.device | None = None
    ) -> Bool[Tensor, "depth 2 batch"] | None:
        """DropPath: whether each branch counts for an image."""
        rates = drop_path_rates(self.config)
        if not any(rates):
            return None
        u = step_uniforms(seed, "drop-path", step, batch, 2 * len(rates), device).T.unflatten(0, (len(rates), 2))
        return u >= host.constants(rates, u.device).view(-1, 1, 1)

    def use_checkpointing(self, on: bool) -> None:
        self.checkpointing = on

    def use_attention(self, path: AttentionPath | None) -> None:
        for module in self.modules():
            if isinstance(module, Attention):
                module.path = path

    # --- weights and the optimizer ---

    def initialise(self, seed: int, how: str = "paper", head_bias: float = 0.0) -> None:
        """`paper` is init_weights, `mimetic` init_mimetic over it."""
        init_weights(self, seed, head_bias)
        if how == "mimetic":
            init_mimetic(self, seed)

    def replaced_names(self) -> tuple[str, ...]:
        return (*self.head_names(), "pre_logits.")

    @staticmethod
    def resize(
        tensors: Mapping[str, Tensor], old: Architecture, new: Architecture, method: str = ""
    ) -> dict[str, Tensor]:
        """Positions for another grid, by `method`, else as `old` says; the patch embedding for patches of another size."""
        assert isinstance(old, ModelConfig) and isinstance(new, ModelConfig)
        changed = resized_positions(tensors, old, new, method)
        if new.patch != old.patch:
            changed["patch_embed.proj.weight"] = resize_patch_embedding(tensors["patch_embed.proj.weight"], new.patch)
        return changed

    @property
    def layers(self) -> int:
        return self.config.depth + 1

    def layer_of(self, name: str) -> int:
        """0 for patches, class token and positions, i + 1 for block i, depth + 1 for what follows (MAE util/lr_decay.py)."""
        if name.startswith((*TOKENS, "patch_embed")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.layers

    def undecayed(self) -> frozenset[str]:
        return frozenset(TOKENS) | {name for name, _ in self.named_parameters() if name.endswith("offset_embed")}

    def matrices(self) -> dict[str, int]:
        """Those of the blocks; q, k and v are matrices of their own."""
        return {
            name: 3 if name.endswith("attn.qkv.weight") else 1
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and name.startswith("blocks.")
        }


@torch.no_grad()
def init_weights(model: ViT, seed: int, head_bias: float = 0.0) -> None:
    """Every parameter as in google-research/vision_transformer models_vit.py (Flax initialisers).

    | parameter              | distribution                                                            |
    |------------------------|-------------------------------------------------------------------------|
    | patch_embed.proj       | LeCun normal: std 1/√(3·P²), cut at ±2 standard deviations; bias 0      |
    | cls_token              | 0                                                                       |
    | dist_token, reg_token  | N(0, 0.02) (facebookresearch/deit), N(0, 1e-6) (facebookresearch/dinov2) |
    | pos_embed and the like | N(0, 0.02)                                                              |
    | attn.qkv               | Xavier uniform for each of q, k, v as a D x D matrix; bias 0            |
    | attn.proj              | Xavier uniform; bias 0                                                  |
    | mlp.fc1, mlp.fc2       | Xavier uniform; bias N(0, 1e-6)                                         |
    | ls1, ls2               | `layer_scale`                                                           |
    | norm1, norm2, norm     | weight 1, bias 0                                                        |
    | pre_logits.fc          | LeCun normal; bias 0                                                    |
    | head                   | 0; bias `head_bias` (big_vision sets it for sigmoid losses)             |
    """
    generator = torch.Generator().manual_seed(seed)

    def lecun(weight: Tensor) -> None:
        std = 1 / math.sqrt(weight[0].numel())
        nn.init.trunc_normal_(
            weight, std=std / 0.87962566, a=-2 * std / 0.87962566, b=2 * std / 0.87962566, generator=generator
        )

    lecun(model.patch_embed.proj.weight)
    nn.init.zeros_(_bias(model.patch_embed.proj))
    if model.cls_token is not None:
        nn.init.zeros_(model.cls_token)
    for token, std in ((model.dist_token, 0.02), (model.reg_token, 1e-6)):
        if token is not None:
            nn.init.normal_(token, std=std, generator=generator)
    for name in model.config.position_shapes():
        nn.init.normal_(getattr(model, name), std=0.02, generator=generator)
    for block in model.blocks:
        assert isinstance(block, Block)
        for part in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part, generator=generator)
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.xavier_uniform_(block.attn.proj.weight, generator=generator)
        nn.init.zeros_(block.attn.proj.bias)
        for layer in (block.mlp.fc1, block.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, std=1e-6, generator=generator)
        if block.attn.offset_embed is not None:
            nn.init.normal_(block.attn.offset_embed, std=0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, model.config.layer_scale)
    if isinstance(model.pre_logits, PreLogits):
        lecun(model.pre_logits.fc.weight)
        nn.init.zeros_(model.pre_logits.fc.bias)
    model.new_head(head_bias)


@torch.no_grad()
def init_mimetic(model: ViT, seed: int) -> None:
    """Attention that starts out as it looks in trained networks, over the values of `init_weights`.

    | parameter      | distribution                                                                            |
    |----------------|-----------------------------------------------------------------------------------------|
    | pos_embed      | 0.5 times sines and cosines of a patch's column and row (MAE, util/pos_embed.py)        |
    | attn.qkv, q, k | both √1.5 Q, Q a random orthogonal matrix: a token attends to what is like it           |
    | attn.qkv, v    | √0.4 P, P a random orthogonal matrix                                                    |
    | attn.proj      | -√0.4 Pᵀ: together with v, -0.4 times the identity                                      |

    Trockman and Kolter (2023, "Mimetic Initialization of Self-Attention Layers") found such products in pretrained
    networks: near a multiple of the identity for q and k, near its negative for v and proj. Theirs have noise added,
    and the heads' share of them comes from an SVD; here the heads share out one orthogonal basis.
    """
    generator = torch.Generator().manual_seed(seed)
    config, width = model.config, model.config.width

    start_as_sines({name: getattr(model, name) for name in config.position_shapes()}, config, 0.5)
    for block in model.blocks:
        assert isinstance(block, Block)
        like, value = (torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(2))
        block.attn.qkv.weight.copy_(torch.cat([math.sqrt(1.5) * like, math.sqrt(1.5) * like, math.sqrt(0.4) * value]))
        block.attn.proj.weight.copy_(-math.sqrt(0.4) * value.T)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
