"""Masked patch prediction, as the Vision Transformer's paper did it (§4.6, appendix B.1.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitcli import host
from vitcli.config import Config, EvalConfig, MaskedPatchConfig, ModelConfig, Size
from vitcli.config_values import RGB
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.families.base import Activations
from vitcli.model.classifier import Classifier
from vitcli.model.linear import Linear
from vitcli.model.patches import cut
from vitcli.randomness import Step, step_uniforms
from vitcli.recipes.facts import Facts
from vitcli.train.objectives.base import Extra, Loss, Noise, Objective, of_generator
from vitcli.train.objectives.tokens import check_part, initialise, part_of, patched, pixels, shuffled, taken, vit

LEVELS = 8
"""Of each of red, green and blue: three bits."""
_SIDE = 4
_ROUNDING = 1e-4
"""Of an eighth: a mean that lies on a bin's edge stays above it, though normalising took it there and back."""


@dataclass(frozen=True, eq=False)
class Corruption(Noise):
    """For each image: its corrupted patches, what is done to each, and the patch that takes its place where another does."""

    chosen: Int[Tensor, "images corrupted"] | None = None
    masked: Bool[Tensor, "images corrupted"] | None = None
    replaced: Bool[Tensor, "images corrupted"] | None = None
    others: Int[Tensor, "images corrupted"] | None = None

    def rows(self, part: slice) -> Corruption:
        def cut_(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[part]

        return Corruption(
            super().rows(part).keep, cut_(self.chosen), cut_(self.masked), cut_(self.replaced), cut_(self.others)
        )


class MaskedPatch(Objective):
    """A part of the patches' embeddings is corrupted, and each of these predicts what its patch looks like.

    Of the corrupted embeddings most become a learned vector, some that of another patch of the image, the rest stay. Targets:
    `colour`, the mean colour in three bits a channel, one of 512 classes; `downsized`, the same for each of 4 x 4 cells;
    `pixels`, the normalised pixels themselves by squared error. The paper gives neither bin edges nor their order: here a mean
    of 0..1 is in bin ⌊8 · mean⌋, and the class is 64 red + 8 green + blue.
    """

    needs_labels = False
    unit = "nats"

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.settings: MaskedPatchConfig = config.settings_of("masked-patch")
        self.evaluation = config.eval
        width = patched(config.model, "masked-patch").width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.predict = Linear(width, outputs_of(patched(config.model, "masked-patch"), self.settings))
        draw = of_generator(config.run.seed)
        initialise(self, draw)
        nn.init.normal_(self.mask_token, std=0.02, generator=draw)

    def draw(self, model: Classifier, batch: Batch, seed: int, step: Step) -> Corruption:
        order = shuffled(vit(model), batch.images, seed, "masked-patch", step)
        chosen = order[:, : part_of(order.shape[1], self.settings.part)]
        numbers = (
            step_uniforms(
                seed, "corruption", step, len(batch), 2 * chosen.shape[1], host.numbers_of(batch.images.device)
            )
            .float()
            .to(order.device)
        )
        kind, place = numbers.chunk(2, dim=1)
        # another patch of the image: one of the others, counted on from the patch itself
        others = (chosen + 1 + (place * (order.shape[1] - 1)).long().clamp(max=order.shape[1] - 2)) % order.shape[1]
        masked = kind < self.settings.masked
        replaced = ~masked & (kind < self.settings.masked + self.settings.replaced)
        return Corruption(super().draw(model, batch, seed, step).keep, chosen, masked, replaced, others)

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        assert isinstance(noise, Corruption) and noise.chosen is not None
        encoder, chosen = vit(model), noise.chosen
        patches = self.corrupted(encoder.patch_embed(batch.images), noise)
        prefix, places = encoder.placed(encoder.grid_of(batch.images))
        x = encoder.with_prefix(patches + places, prefix)
        turns = encoder.rotations(encoder.grid_of(batch.images))
        x = encoder.fc_norm(encoder.blocks_of(x, noise.keep, rope=turns))
        guess = self.predict(taken(x[:, encoder.config.prefix_tokens :], chosen)).float()
        if self.settings.target == "pixels":
            target = taken(cut(batch.images, encoder.config.patch), chosen)
            return Loss(F.mse_loss(guess, target.float()))
        classes = taken(colours(batch.images, encoder.config.patch, self.evaluation, self.settings), chosen)
        loss = F.cross_entropy(guess.reshape(-1, LEVELS**3), classes.flatten())
        right = (guess.detach().reshape(-1, LEVELS**3).argmax(1) == classes.flatten()).float().mean()
        return Loss(loss, {"right": right})

    def corrupted(
        self, patches: Float[Tensor, "batch patches dim"], noise: Corruption
    ) -> Float[Tensor, "batch patches dim"]:
        """The embeddings with the chosen ones masked, replaced or as they were."""
        chosen, masked, replaced, others = noise.chosen, noise.masked, noise.replaced, noise.others
        assert chosen is not None and masked is not None and replaced is not None and others is not None
        source = torch.where(replaced, others, chosen)
        new = torch.where(masked[..., None], self.mask_token.to(patches.dtype), taken(patches, source))
        return patches.scatter(1, chosen[..., None].expand_as(new), new)

    def undecayed(self) -> frozenset[str]:
        return frozenset({"mask_token"})

    # --- before it exists ---

    @classmethod
    def check(cls, config: Config) -> None:
        settings: MaskedPatchConfig = config.settings_of("masked-patch")
        check_part(config, "masked-patch", "part", part_of)
        if settings.masked + settings.replaced > 1:
            raise UsageError(
                f"masked-patch.masked = {settings.masked:g} and masked-patch.replaced = {settings.replaced:g} are more than all",
                "their defaults are 0.8 and 0.1",
            )
        model = patched(config.model, "masked-patch")
        if settings.target != "pixels" and model.channels != RGB:
            raise UsageError(
                f"masked-patch.target = {settings.target} is of red, green and blue, and model.channels = {model.channels}",
                "predict the pixels themselves with --set masked-patch.target=pixels",
            )
        if settings.target == "downsized" and any(side % _SIDE for side in model.patch):
            raise UsageError(
                f"masked-patch.target = downsized needs patches of {_SIDE} x {_SIDE} cells, not of {model.sized()}",
                "take the target colour or pixels, or a model with larger patches",
            )

    @classmethod
    def suited(cls, config: Config, facts: Facts) -> Config:
        """Without what would change the colours that are to be predicted."""
        augment = replace(config.augment, mixup=0.0, cutmix=0.0, randaugment_layers=0, erase=0.0)
        return replace(config, augment=augment, train=replace(config.train, low_res=0.0))

    @classmethod
    def extra(cls, config: Config) -> Extra:
        model = patched(config.model, "masked-patch")
        outputs = outputs_of(model, config.settings_of("masked-patch"))
        return Extra(parameters=model.width + model.width * outputs + outputs)

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        model, settings = patched(config.model, "masked-patch"), config.settings_of("masked-patch")
        corrupted = part_of(model.grid[0] * model.grid[1], settings.part)
        return 6 * images * (model.cost().macs + corrupted * model.width * outputs_of(model, settings))

    @classmethod
    def activations(cls, config: Config) -> Activations:
        model, settings = patched(config.model, "masked-patch"), config.settings_of("masked-patch")
        outputs = part_of(model.grid[0] * model.grid[1], settings.part) * outputs_of(model, settings)
        return super().activations(config) + Activations(float32=3 * outputs)


def outputs_of(model: ModelConfig, settings: MaskedPatchConfig) -> int:
    """Numbers that are predicted of a patch."""
    values = {"colour": LEVELS**3, "downsized": _SIDE**2 * LEVELS**3, "pixels": model.patch_inputs}
    return values[settings.target]


def colours(
    images: Float[Tensor, "batch channels height width"],
    patch: Size,
    evaluation: EvalConfig,
    settings: MaskedPatchConfig,
) -> Int[Tensor, "batch patches cells"]:
    """The class of the mean colour of each cell of each patch: one cell for `colour`, row by row 4 x 4 for `downsized`."""
    cells = _SIDE if settings.target == "downsized" else 1
    cell = (patch[0] // cells, patch[1] // cells)
    means = F.avg_pool2d(pixels(images.float(), evaluation), cell)
    bins = (LEVELS * means + _ROUNDING).floor().long().clamp(0, LEVELS - 1)
    classes = LEVELS**2 * bins[:, 0] + LEVELS * bins[:, 1] + bins[:, 2]
    rows, columns = (side // cells for side in classes.shape[1:])
    grouped = classes.view(-1, rows, cells, columns, cells).transpose(2, 3)
    return grouped.reshape(len(images), rows * columns, cells * cells)
