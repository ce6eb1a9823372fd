"""Masked autoencoders (He et al., 2022): the encoder sees a part of the patches, a small decoder paints the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcli.config import Config, MAEConfig, ModelConfig
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.families.base import Activations
from vitcli.model.block import Block
from vitcli.model.classifier import Classifier
from vitcli.model.linear import Linear
from vitcli.model.patches import cut, pasted
from vitcli.model.positions import sines_and_cosines
from vitcli.model.rope import of_kept
from vitcli.plots import contact_sheet
from vitcli.randomness import Step
from vitcli.recipes.facts import Facts
from vitcli.train.objectives.base import Extra, Loss, Noise, Objective, of_generator
from vitcli.train.objectives.tokens import check_part, initialise, part_of, patched, pixels, shuffled, taken, vit

_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Shuffled(Noise):
    order: Int[Tensor, "images patches"] | None = None  # those that the encoder sees come first

    def rows(self, part: slice) -> Shuffled:
        return Shuffled(super().rows(part).keep, None if self.order is None else self.order[part])


class MAE(Objective):
    """Mean squared error of the pixels of removed patches, each patch brought to mean 0 and variance 1 (§3, appendix A.1;
    facebookresearch/mae models_mae.py).

    The decoder gets the encoded patches in their shuffled order, a mask token for each of the others behind them, and the
    fixed positions of both: attention does not ask in which order tokens lie, so nothing is put back.
    """

    needs_labels = False

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.settings: MAEConfig = config.settings_of("mae")
        self.evaluation = config.eval
        encoder = patched(config.model, "mae")
        decoder = decoder_of(encoder, self.settings)
        self.embed = Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.blocks = nn.ModuleList(Block(decoder, 0.0) for _ in range(decoder.depth))
        self.norm = nn.LayerNorm(decoder.width, decoder.norm_eps)
        self.paint = Linear(decoder.width, decoder.patch_inputs)
        draw = of_generator(config.run.seed)
        initialise(self, draw)
        nn.init.normal_(self.mask_token, std=0.02, generator=draw)

    def draw(self, model: Classifier, batch: Batch, seed: int, step: Step) -> Shuffled:
        return Shuffled(
            super().draw(model, batch, seed, step).keep, shuffled(vit(model), batch.images, seed, "mae", step)
        )

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        assert isinstance(noise, Shuffled) and noise.order is not None
        seen = seen_of(noise.order.shape[1], self.settings.mask)
        guess = self.painted(model, batch.images, noise.order, noise.keep)
        target = taken(cut(batch.images, vit(model).config.patch), noise.order[:, seen:]).float()
        if self.settings.normalise:
            target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + _EPS).sqrt()
        return Loss((guess.float() - target).square().mean())

    def painted(
        self, model: Classifier, images: Tensor, order: Int[Tensor, "batch patches"], keep: Tensor | None = None
    ) -> Float[Tensor, "batch removed pixels"]:
        """What the decoder makes of the removed patches, the last of `order`."""
        encoder, seen = vit(model), seen_of(order.shape[1], self.settings.mask)
        grid, kept = encoder.grid_of(images), order[:, :seen]
        patches = encoder.patch_embed.of(taken(cut(images, encoder.config.patch), kept))
        prefix_places, places = encoder.placed(grid)
        x = encoder.with_prefix(patches + nn.functional.embedding(kept, places[0]), prefix_places)
        turns = of_kept(encoder.rotations(grid), kept, encoder.config.prefix_tokens)
        tokens = encoder.fc_norm(encoder.blocks_of(x, keep, rope=turns))
        tokens = self.embed(tokens)
        prefix = encoder.config.prefix_tokens
        masks = self.mask_token.to(tokens.dtype).expand(len(images), order.shape[1] - seen, -1)
        places = sines_and_cosines(grid, self.norm.weight.shape[0], order.device)[order]
        x = torch.cat([tokens[:, :prefix], torch.cat([tokens[:, prefix:], masks], dim=1) + places], dim=1)
        for block in self.blocks:
            x = block(x)
        painted: Tensor = self.paint(self.norm(x[:, prefix + seen :]))
        return painted

    def undecayed(self) -> frozenset[str]:
        return frozenset({"mask_token"})

    @torch.no_grad()
    def pictures(
        self, model: Classifier, images: Float[Tensor, "batch channels height width"]
    ) -> dict[str, NDArray[np.uint8]]:
        """Each image, what of it the encoder saw, and that with what the decoder made of the rest. A painted patch has the mean
        and the deviation of the patch that was there, which the loss leaves out.
        """
        encoder, grid = vit(model), vit(model).grid_of(images)
        order = shuffled(encoder, images, 0, "pictures", 0)
        seen = seen_of(order.shape[1], self.settings.mask)
        patches = cut(images, encoder.config.patch)
        painted = self.painted(model, images, order).float()
        if self.settings.normalise:
            target = taken(patches, order[:, seen:])
            painted = painted * (target.var(2, keepdim=True) + _EPS).sqrt() + target.mean(2, keepdim=True)
        places = order[:, seen:, None].expand(-1, -1, patches.shape[2])
        hidden, whole = (patches.scatter(1, places, part) for part in (torch.zeros_like(painted), painted))
        shown = [pixels(pasted(p, encoder.config.patch, grid), self.evaluation) for p in (patches, hidden, whole)]
        table = torch.stack(shown, dim=1).float().cpu().numpy()
        return {"reconstructions": contact_sheet(table, ("image", "seen", "painted"))}

    # --- before it exists ---

    @classmethod
    def check(cls, config: Config) -> None:
        check_part(config, "mae", "mask", seen_of)
        encoder = patched(config.model, "mae")
        decoder_of(encoder, config.settings_of("mae")).check()
        if encoder.is_pairwise:
            raise UsageError(
                f"train.objective = mae leaves patches out, and model.positions = {encoder.positions} is of all patches of a grid",
                "take other positions, or another --objective",
            )

    @classmethod
    def suited(cls, config: Config, facts: Facts) -> Config:
        """Crops and mirroring alone, as the paper found best, and Adam's second moment over fewer steps."""
        augment = replace(config.augment, mixup=0.0, cutmix=0.0, randaugment_layers=0, erase=0.0)
        train = replace(config.train, low_res=0.0)
        return replace(config, augment=augment, train=train, optim=replace(config.optim, betas=(0.9, 0.95)))

    @classmethod
    def extra(cls, config: Config) -> Extra:
        encoder = patched(config.model, "mae")
        decoder = decoder_of(encoder, config.settings_of("mae"))
        w, values = decoder.width, decoder.patch_inputs
        ends = (encoder.width * w + w) + w + 2 * w + (w * values + values)
        return Extra(parameters=ends + decoder.depth * decoder.block_parameters)

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        encoder = patched(config.model, "mae")
        decoder = decoder_of(encoder, config.settings_of("mae"))
        patches = encoder.grid[0] * encoder.grid[1]
        seen, values = seen_of(patches, config.settings_of("mae").mask), encoder.patch_inputs
        inside = seen + encoder.prefix_tokens
        macs = seen * values * encoder.width + encoder.depth * encoder.block_macs(inside)
        macs += inside * encoder.width * decoder.width + decoder.depth * decoder.block_macs(encoder.tokens)
        return 6 * images * (macs + (patches - seen) * decoder.width * values)

    @classmethod
    def activations(cls, config: Config) -> Activations:
        encoder = patched(config.model, "mae")
        decoder = decoder_of(encoder, config.settings_of("mae"))
        seen = seen_of(encoder.grid[0] * encoder.grid[1], config.settings_of("mae").mask)
        inside, again = seen + encoder.prefix_tokens, config.run.checkpointing
        return encoder.activations(inside, again) + decoder.activations(encoder.tokens)


def seen_of(patches: int, mask: float) -> int:
    """Patches that the encoder sees: ⌊patches · (1 - mask)⌋."""
    return part_of(patches, 1 - mask)


def decoder_of(encoder: ModelConfig, settings: MAEConfig) -> ModelConfig:
    """The decoder's blocks: heads as wide as the encoder's, where that divides its width."""
    width = settings.width or max(1, encoder.width // 2)
    channels = encoder.width // encoder.heads
    return replace(
        encoder,
        name="decoder",
        width=width,
        depth=settings.depth,
        heads=width // channels if width % channels == 0 else 1,
        mlp=4 * width,
        classes=0,
        dropout=0.0,
        drop_path=0.0,
        layer_scale=0.0,
        gelu="erf" if encoder.gated else encoder.gelu,
        gated=False,
        rope="none",
        rope_registers=0.0,
    )
