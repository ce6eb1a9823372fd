"""The Vision Transformer (Dosovitskiy et al., 2021, §3.1 and appendix A), under timm's parameter names.

images → patches · E + b → [class token; patches] + positions → depth × (x + MSA(LN x); x + MLP(LN x)) → LN
       → the class token, or the mean of the patches → [tanh layer] → head

What its successors added is part of the configuration: a distillation token with a head of its own (DeiT), a learned
factor for each channel of a branch (DeiT-III), registers (DINOv2), the last LayerNorm after the mean (MAE), a norm before the blocks
(CLIP), pooling by attention (SigLIP), gated MLPs, norms within branches and rotary positions (EVA02, DINOv3), relative position bias
(BEiT).
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
from vitcli.model.layers import make_norm
from vitcli.model.patches import PatchEmbed
from vitcli.model.pool import AttentionPool
from vitcli.model.posemb import resize_patch_embedding
from vitcli.model.positions import position_table, resized_positions, start_as_sines
from vitcli.model.rope import MixedFrequencies, of_block, rotations
from vitcli.randomness import Step, step_uniforms

TOKENS = ("pos_embed", "column_embed", "row_embed", "cls_token", "dist_token", "reg_token")
"""Parameters beside the layers: learned vectors that are added to tokens, or are tokens."""


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
        self.rope = MixedFrequencies(config) if config.rope == "mixed" else None
        self.norm_pre = self._norm(config.pre_norm)
        self.norm, self.fc_norm = self._norm(config.norm == "before"), self._norm(config.norm == "after")
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.pre_logits = PreLogits(config.width) if config.pre_logits else nn.Identity()
        self.head = nn.Linear(config.features, config.classes) if config.classes else nn.Identity()
        self.head_dist = nn.Linear(config.width, config.classes) if config.classes and config.distilled else None

    def _norm(self, there: bool) -> nn.Module:
        config = self.config
        return make_norm(config.norm_kind, config.width, config.norm_eps) if there else nn.Identity()

    def make_patch_embed(self) -> PatchEmbed:
        config = self.config
        norm = self._norm(True) if config.patch_norm else None
        return PatchEmbed(config.patch, config.width, config.channels, bias=config.patch_bias, norm=norm)

    @property
    def heads(self) -> list[nn.Linear]:
        """The layers that give logits: one, two of a distilled model, none without classes."""
        return [layer for layer in (self.head, self.head_dist) if isinstance(layer, nn.Linear)]

    def positions(self, grid: Size) -> Float[Tensor, "1 rows dim"]:
        """What is added to the prefix tokens that have positions and to the patches of `grid`."""
        tables = {name: getattr(self, name) for name in self.config.position_shapes()}
        return position_table(tables, self.config, grid, self.patch_embed.proj.weight.device)

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Patches, prefix tokens and positions: the input of the first block."""
        prefix, patches = self.placed(self.grid_of(images))
        return self.with_prefix(self.patch_embed(images) + patches, prefix)

    def grid_of(self, images: Float[Tensor, "batch channels height width"]) -> Size:
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
        prefix: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        if positions.shape[1]:
            placed = torch.cat(prefix, dim=1)
            prefix = [placed[:, : positions.shape[1]] + positions, placed[:, positions.shape[1] :]]
        tokens = [token.to(patches.dtype).expand(patches.shape[0], -1, -1) for token in prefix]
        whole: Tensor = self.norm_pre(self.pos_drop(torch.cat([*tokens, patches], dim=1) if tokens else patches))
        return whole

    def rotations(self, grid: Size) -> Float[Tensor, "blocks 2 1 these tokens channels"] | None:
        """How queries and keys of such a grid are turned; None where they are not (model/rope.py)."""
        device = self.patch_embed.proj.weight.device
        return rotations(self.config, grid, None if self.rope is None else self.rope.freqs, device)

    def encode(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, "depth 2 batch"] | None = None,
        outputs: int | None = None,
    ) -> Float[Tensor, "batch outputs dim"]:
        """The first `outputs` tokens, or all, after the last LayerNorm if that stands before the pooling.

        `keep` are DropPath's rows, known before any branch runs.
        """
        return self.blocks_of(self.embed(images), keep, outputs, self.rotations(self.grid_of(images)))

    def blocks_of(
        self,
        x: Float[Tensor, "batch tokens dim"],
        keep: Bool[Tensor, "depth 2 batch"] | None = None,
        outputs: int | None = None,
        rope: Float[Tensor, "blocks 2 some these tokens channels"] | None = None,
    ) -> Float[Tensor, "batch outputs dim"]:
        """What the blocks make of such tokens, however many, as `encode` gives it; `rope` is `rotations` of these tokens."""
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            drawn = None if keep is None else keep[index]
            x = self._through(block, x, drawn, outputs if index == last else None, of_block(rope, index))
        return self.norm(x)

    def _through(
        self, block: nn.Module, x: Tensor, keep: Tensor | None, outputs: int | None, rope: Tensor | None
    ) -> Tensor:
        """What a block makes of its input; with checkpointing, only this is kept for the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            result: Tensor = block(x, keep, outputs, rope)
            return result
        draws = self.config.dropout > 0  # from torch's generators, whose state is then kept too
        return checkpoint(block, x, keep, outputs, rope, use_reentrant=False, preserve_rng_state=draws)

    def read(
        self, images: Float[Tensor, "batch channels height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> list[Float[Tensor, "batch inputs"]]:
        """What each head reads. Of the last block, only the tokens that are read are computed."""
        config = self.config
        if config.pool == "cls":
            tokens = self.encode(images, keep, outputs=1 + config.distilled)
            return [self.pre_logits(token) for token in tokens.unbind(1)]
        tokens = self.encode(images, keep)
        pooled = tokens if config.pool_prefix else tokens[:, config.prefix_tokens :]
        if self.attn_pool is not None:
            return [self.pre_logits(self.attn_pool(pooled))]
        mean = self.fc_norm(pooled.mean(dim=1))
        return [self.pre_logits(mean if config.pool == "mean" else torch.cat([tokens[:, 0], mean], dim=1))]

    def features(
        self, images: Float[Tensor, "batch channels height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
    ) -> Float[Tensor, "batch inputs"]:
        """What the head reads; of a distilled model the mean of what its two heads read."""
        read = self.read(images, keep)
        return read[0] if len(read) == 1 else torch.stack(read).mean(dim=0)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
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
        self, images: Float[Tensor, "batch channels height width"], keep: Bool[Tensor, "depth 2 batch"] | None = None
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
        if name.startswith((*TOKENS, "patch_embed", "norm_pre", "rope.")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.layers

    def undecayed(self) -> frozenset[str]:
        tables = ("offset_embed", "relative_position_bias_table", "rope.freqs", "attn_pool.latent")
        return frozenset(TOKENS) | {name for name, _ in self.named_parameters() if name.endswith(tables)}

    def matrices(self) -> dict[str, int]:
        """Those of the blocks; q, k and v are matrices of their own."""
        return {
            name: self._matrices_of(name)
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight")
        }

    def _matrices_of(self, name: str) -> int:
        if name.endswith("attn.qkv.weight"):
            return 3
        return 2 if self.config.gated and name.endswith("mlp.fc1.weight") else 1


@torch.no_grad()
def init_weights(model: ViT, seed: int, head_bias: float = 0.0) -> None:
    """Every parameter as in google-research/vision_transformer models_vit.py (Flax initialisers).

    | parameter              | distribution                                                            |
    |------------------------|-------------------------------------------------------------------------|
    | patch_embed.proj       | LeCun normal: std 1/√(C·P²), cut at ±2 standard deviations; bias 0      |
    | cls_token              | 0                                                                       |
    | dist_token, reg_token  | N(0, 0.02) (facebookresearch/deit), N(0, 1e-6) (facebookresearch/dinov2) |
    | pos_embed and the like | N(0, 0.02)                                                              |
    | attn.qkv               | Xavier uniform for each of q, k, v as a D x D matrix; bias 0            |
    | attn.proj              | Xavier uniform; bias 0                                                  |
    | mlp.fc1, mlp.fc2       | Xavier uniform, for gate and value each; bias N(0, 1e-6)                |
    | attn_pool              | as in a block; its latent query Xavier uniform (big_vision models/vit.py) |
    | relative bias, rope    | 0 (BEiT); `MixedFrequencies.initialise`                                 |
    | ls1, ls2               | `layer_scale`                                                           |
    | every norm             | weight 1, bias 0                                                        |
    | pre_logits.fc          | LeCun normal; bias 0                                                    |
    | head                   | 0; bias `head_bias` (big_vision sets it for sigmoid losses)             |
    """
    generator = torch.Generator().manual_seed(seed)

    def lecun(weight: Tensor) -> None:
        std = 1 / math.sqrt(weight[0].numel())
        nn.init.trunc_normal_(
            weight, std=std / 0.87962566, a=-2 * std / 0.87962566, b=2 * std / 0.87962566, generator=generator
        )

    def xavier(layer: nn.Linear, parts: int = 1, bias_std: float = 0.0) -> None:
        for part in layer.weight.chunk(parts):
            nn.init.xavier_uniform_(part, generator=generator)
        if layer.bias is not None and bias_std:
            nn.init.normal_(layer.bias, std=bias_std, generator=generator)
        elif layer.bias is not None:
            nn.init.zeros_(layer.bias)

    lecun(model.patch_embed.proj.weight)
    if model.patch_embed.proj.bias is not None:
        nn.init.zeros_(model.patch_embed.proj.bias)
    if model.cls_token is not None:
        nn.init.zeros_(model.cls_token)
    for token, std in ((model.dist_token, 0.02), (model.reg_token, 1e-6)):
        if token is not None:
            nn.init.normal_(token, std=std, generator=generator)
    for name in model.config.position_shapes():
        nn.init.normal_(getattr(model, name), std=0.02, generator=generator)
    for block in model.blocks:
        assert isinstance(block, Block)
        xavier(block.attn.qkv, 3)
        xavier(block.attn.proj)
        xavier(block.mlp.fc1, 1 + model.config.gated, 1e-6)
        xavier(block.mlp.fc2, 1, 1e-6)
        if block.attn.offset_embed is not None:
            nn.init.normal_(block.attn.offset_embed, std=0.02, generator=generator)
        if block.attn.relative_position_bias_table is not None:
            nn.init.zeros_(block.attn.relative_position_bias_table)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, model.config.layer_scale)
    if model.rope is not None:
        model.rope.initialise(model.config.rope_theta, generator)
    if model.attn_pool is not None:
        pool = model.attn_pool
        nn.init.xavier_uniform_(pool.latent[0], generator=generator)
        for layer, parts in ((pool.q, 1), (pool.kv, 2), (pool.proj, 1)):
            xavier(layer, parts)
        for layer in (pool.mlp.fc1, pool.mlp.fc2):
            xavier(layer, 1, 1e-6)
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
