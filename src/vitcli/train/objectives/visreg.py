"""Views of an image agree, and embeddings are spread like a normal distribution: no second network, no stopped gradients.

VISReg (arXiv 2606.02572) and, as its variant, LeJEPA's SIGReg (Balestriero and LeCun, 2025, arXiv 2511.08544).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitcli import flops, host
from vitcli.config import Config, VisregConfig
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.families.base import Activations
from vitcli.model.classifier import Classifier
from vitcli.model.linear import Linear
from vitcli.randomness import Step, step_uniforms
from vitcli.recipes.facts import Facts, is_mild, is_tiny
from vitcli.train.objectives.base import Extra, Loss, Noise, Objective, of_generator
from vitcli.train.objectives.tokens import initialise

Projections = Float[Tensor, "views batch dim"]
Directions = Float[Tensor, "dim slices"]
Terms = dict[str, Tensor]

_EPS = 1e-6
_WEIGHT = {"visreg": 0.6, "sigreg": 0.02}
"""Of the regulariser in the sum: the papers' for small data sets (arXiv 2606.02572; rbalestr-lab/lejepa MINIMAL.md)."""
_NODES, _REACH = 17, 3.0
_CHUNK = 64
"""Slices whose characteristic functions are formed at once: they take 17 times the memory of their projections."""


@dataclass(frozen=True, eq=False)
class Drawn(Noise):
    directions: Directions | None = None  # of the global batch: all micro-batches have the same

    def rows(self, part: slice) -> Drawn:
        return Drawn(super().rows(part).keep, self.directions)


class Visreg(Objective):
    """λ · regulariser + (1 - λ) · the squared distance of each view's projection from the mean of all views.

    A projector of three layers reads what a classifier's head would read. Statistics are of one view over the batch, so the
    batch is part of the loss, and micro-batches are not the same as one batch.
    """

    needs_labels = False
    views = 2
    takes_more_views = True
    is_mean_over_images = False

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.settings: VisregConfig = config.settings_of("visreg")
        hidden, width = hidden_of(config), self.settings.width
        self.projector = nn.Sequential(
            Linear(config.model.features, hidden),
            Norm(hidden),
            nn.GELU(),
            Linear(hidden, hidden),
            Norm(hidden),
            nn.GELU(),
            Linear(hidden, width),
        )
        initialise(self, of_generator(config.run.seed))
        self.regulariser: Callable[[Projections, Directions], Terms] = {"visreg": visreg, "sigreg": sigreg}[
            self.settings.regulariser
        ]
        self.weight = weight_of(self.settings)

    def draw(self, model: Classifier, batch: Batch, seed: int, step: Step) -> Drawn:
        images, views, numbers = len(batch), len(batch.views), host.numbers_of(batch.images.device)
        keep = model.draw(seed, step, images * views, numbers)
        if keep is not None:
            keep = keep.view(*keep.shape[:-1], views, images).to(batch.images.device)
        u = step_uniforms(seed, "directions", step, self.settings.width, self.settings.slices, numbers)
        directions = torch.special.ndtri(u.clamp(min=2.0**-54)).float()
        return Drawn(keep, (directions / directions.norm(dim=0)).to(batch.images.device))

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        assert isinstance(noise, Drawn) and noise.directions is not None
        keep = None if noise.keep is None else noise.keep.flatten(-2)
        z = self.projector(model.features(torch.cat(batch.views), keep))
        with torch.autocast(z.device.type, enabled=False):
            return self.of(z.float().view(len(batch.views), len(batch), -1), noise.directions)

    def of(self, z: Projections, directions: Directions) -> Loss:
        """The loss of projections, in float32: quantiles lie closer together than bfloat16's numbers."""
        terms = self.regulariser(z, directions)
        invariance = (z - z.mean(dim=0)).square().mean()
        loss = self.weight * torch.stack([*terms.values()]).sum() + (1 - self.weight) * invariance
        return Loss(loss, {"invariance": invariance, **terms})

    # --- before it exists ---

    @classmethod
    def check(cls, config: Config) -> None:
        if config.train.batch_size // config.train.accumulate < 2:
            raise UsageError(
                "train.objective = visreg compares the images of a batch, and this one has a single image",
                "take a larger --batch-size",
            )

    @classmethod
    def suited(cls, config: Config, facts: Facts) -> Config:
        """The papers' crops and colours, which make two views of an image differ in all but what is on it. Small images are shown at
        half and three quarters of their size: in the same time twice as many steps (docs/objectives.md).
        """
        augment = replace(
            config.augment,
            crop="resized",
            scale=(0.2, 1.0) if is_tiny(facts) else (0.08, 1.0),
            ramp=0.0,
            mixup=0.0,
            cutmix=0.0,
            randaugment_layers=0,
            erase=0.0,
            jitter=(0.4, 0.4, 0.4, 0.1),
            jitter_p=0.8,
            gray=0.2,
            blur=0.0 if is_tiny(facts) else 0.5,
            solarize=0.2,
        )
        small = is_tiny(facts) and not is_mild(facts)
        return replace(config, augment=augment, train=replace(config.train, low_res=1.0 if small else 0.0))

    @classmethod
    def extra(cls, config: Config) -> Extra:
        read, hidden, width = config.model.features, hidden_of(config), config.settings_of("visreg").width
        layers = read * hidden + hidden**2 + hidden * width
        return Extra(parameters=layers + 2 * hidden + width + 4 * hidden)

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        read, hidden, settings = config.model.features, hidden_of(config), config.settings_of("visreg")
        projector = read * hidden + hidden**2 + hidden * settings.width + settings.width * settings.slices
        return 6 * images * config.augment.views * (flops.macs(config.model) + projector)

    @classmethod
    def activations(cls, config: Config) -> Activations:
        settings = config.settings_of("visreg")
        sliced = settings.slices * (8 if settings.regulariser == "visreg" else 4 * _NODES)
        projector = Activations(float32=8 * hidden_of(config) + 8 * settings.width + sliced)
        return (super().activations(config) + projector) * config.augment.views


class Norm(nn.Module):
    """Batch normalisation over all views, by the batch's own statistics alone: the projector is never asked about one image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


def hidden_of(config: Config) -> int:
    hidden: int = config.settings_of("visreg").hidden
    return hidden or min(2048, 4 * config.model.features)


def weight_of(settings: VisregConfig) -> float:
    """λ. The two regularisers' are not comparable: SIGReg's statistic is multiplied by the batch."""
    return _WEIGHT[settings.regulariser] if settings.weight is None else settings.weight


# --- regularisers ------------------------------------------------------------------------------------------


def visreg(z: Projections, directions: Directions) -> Terms:
    """Each view's mean at 0 (equation 6), each number's deviation at 1 (1), and every slice of what is standardised at the
    quantiles of a normal distribution (5): the squared sliced Wasserstein distance. The deviation that standardises carries
    no gradient, so that the shape's pull grows as embeddings shrink.
    """
    mean = z.mean(dim=1, keepdim=True)
    deviation = (z - mean).norm(dim=1, keepdim=True) / math.sqrt(z.shape[1]) + _EPS
    sliced = ((z - mean) / deviation.detach()) @ directions
    distance = sliced.sort(dim=1).values - quantiles(z.shape[1], host.numbers_of(z.device)).to(z.dtype).to(
        z.device
    ).view(1, -1, 1)
    return {
        "centre": mean.square().mean(),
        "scale": (deviation - 1).square().mean(),
        "shape": distance.square().mean(),
    }


def quantiles(count: int, device: torch.device | None = None) -> Float[Tensor, " count"]:
    """Φ⁻¹(i / (count + 1)) for i = 1 … count."""
    return torch.special.ndtri(torch.arange(1, count + 1, dtype=torch.float64, device=device) / (count + 1))


def sigreg(z: Projections, directions: Directions) -> Terms:
    """The Epps-Pulley statistic of every slice against a normal distribution: the batch's size times the squared distance of
    characteristic functions, weighed by exp(-t²/2), integrated over -3 … 3 by the trapezoid rule on 17 points of its right
    half (rbalestr-lab/lejepa epps_pulley.py). About 1 where the slices are normal.
    """
    t = torch.linspace(0, _REACH, _NODES, dtype=z.dtype, device=z.device)
    normal = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * _REACH / (_NODES - 1))
    weights[:1] = weights[-1:] = _REACH / (_NODES - 1)  # slices, which are filled: a single place would be copied to
    total = z.new_zeros(())
    for part in directions.split(_CHUNK, dim=1):
        angles = (z @ part)[..., None] * t
        distance = (angles.cos().mean(dim=1) - normal).square() + angles.sin().mean(dim=1).square()
        total = total + (distance @ (weights * normal)).sum()
    return {"sigreg": z.shape[1] * total / (z.shape[0] * directions.shape[1])}
