"""An objective without labels: guess an averaged teacher's features of another view from those of images with squares missing."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli import config, flops
from vitcli.config import Config
from vitcli.config_values import key
from vitcli.data.batch import Batch
from vitcli.model.classifier import Classifier
from vitcli.randomness import generator
from vitcli.train.objectives.base import Extra, Loss, Noise, Objective, of_generator
from vitcli.train.objectives.table import OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class GuessConfig:
    hidden: int = key(16, "numbers of the decoder's hidden layer", least=1)
    mask: float = key(0.25, "part of each image that is hidden", least=0, below=1)
    decay: float = key(0.9, "of the teacher's average", least=0, below=1)


@dataclass(frozen=True, eq=False)
class Masked(Noise):
    hidden: Tensor | None = None  # [images, 2, 2] quarters that are hidden

    def rows(self, part: slice) -> Masked:
        return Masked(super().rows(part).keep, None if self.hidden is None else self.hidden[part])


class Guess(Objective):
    needs_labels = False
    views = 2

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.settings: GuessConfig = config.settings_of("guess")
        width, hidden = model.config.features, self.settings.hidden
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        # a name that the model has, too
        self.blocks = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, width)])
        self.unused = nn.Parameter(torch.zeros(3))  # no gradient ever reaches it
        self.register_buffer("centre", torch.zeros(width))
        draw = of_generator(config.run.seed)
        for layer in self.blocks:
            nn.init.normal_(layer.weight, std=0.05, generator=draw)
            nn.init.zeros_(layer.bias)

    def draw(self, model: Classifier, batch: Batch, seed: int, step: int) -> Masked:
        hidden = generator(seed, "guess", step).random((len(batch), 2, 2)) < self.settings.mask
        return Masked(super().draw(model, batch, seed, step).keep, torch.from_numpy(hidden).to(batch.images.device))

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        assert isinstance(noise, Masked) and noise.hidden is not None
        images = batch.views[0]
        mask = F.interpolate(noise.hidden[:, None].float(), images.shape[2:], mode="nearest")
        found = model.features(images * (1 - mask), noise.keep)
        guess = self.blocks[1](torch.relu(self.blocks[0](found)))
        with torch.no_grad():
            target = self.teacher.eval().features(batch.views[1]).float() - self.centre
            if self.training:
                self.centre.lerp_(target.mean(0) + self.centre, 0.1)
        loss = F.mse_loss(guess.float(), target) + 0.1 * (1 - found.float().std(0)).relu().mean()
        return Loss(loss, {"spread": found.float().std(0).mean(), "hidden": float(mask.mean())})

    @torch.no_grad()
    def after_update(self, model: Classifier, step: int, progress: float) -> None:
        for own, other in zip(self.teacher.parameters(), model.parameters(), strict=True):
            own.lerp_(other, 1 - self.settings.decay)

    @classmethod
    def extra(cls, config: Config) -> Extra:
        width, hidden = config.model.features, config.settings_of("guess").hidden
        return Extra(parameters=2 * width * hidden + width + hidden, kept=flops.parameters(config.model) + width)

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        decoder = 2 * config.model.features * config.settings_of("guess").hidden
        return images * (6 * (flops.macs(config.model) + decoder) + 2 * flops.macs(config.model))


def add() -> None:
    OBJECTIVES["guess"] = Guess
    config.OBJECTIVE_SECTIONS["guess"] = GuessConfig
