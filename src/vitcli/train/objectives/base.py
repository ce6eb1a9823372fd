"""What the loop, the plan and the checkpoint ask of any objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcli import flops, host
from vitcli.classes import Class
from vitcli.config import Config
from vitcli.config_values import usual
from vitcli.data.batch import Batch
from vitcli.data.split import Split
from vitcli.errors import UsageError
from vitcli.evaluate.inference import Inference
from vitcli.families.base import Activations
from vitcli.model.classifier import Classifier
from vitcli.randomness import Step
from vitcli.recipes.facts import Facts


@dataclass(frozen=True, eq=False)
class Noise:
    """What a step draws, for the global batch, from (seed, step); a micro-batch takes its rows. An objective that draws more
    makes a subclass with further fields, and its own `rows`.
    """

    keep: Tensor | None = None  # the model's own (Classifier.draw), with images as the last axis

    def rows(self, part: slice) -> Noise:
        return Noise(None if self.keep is None else self.keep[..., part])


@dataclass(frozen=True, eq=False)
class Loss:
    """A mean over the images given, and further means for the log: a line of metrics.jsonl has their mean over micro-batches."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Numbers that an objective owns beside the model's: `parameters` are trained, `kept` are saved and not trained, such as an
    averaged teacher, `held` are neither: a teacher that stays in its file.
    """

    parameters: int = 0
    kept: int = 0
    held: int = 0


class Objective(nn.Module):
    """A loss, with what it needs beyond the model: a decoder, a mask token, a teacher.

    It is a module: its parameters are trained at the rate of the head, its state is saved in a file of its own and resumed with
    the run; the average of weights (train.ema) and the checkpoint that a run leaves are of the model alone. `model` is handed over
    in every call and must not become a part of it. Initial values follow from `config.run.seed` (`of_generator`); what is derived
    from the model at the start is a buffer, since a run that is resumed begins with other weights and is restored then.

    `forward` runs under autocast where the run is in bfloat16, in training mode, its submodules too: a teacher is put into
    evaluation mode there. Images may be smaller than `config.model.img_size` (train.low_res). What is random comes from `draw`,
    for the whole batch, or from torch's own generator: both depend on nothing but seed, step and micro-batch.

    An objective is a file here and a line in table.py. Its settings are a section by its name in config.OBJECTIVE_SECTIONS, and
    `config.settings_of(name)` here.
    """

    needs_labels: ClassVar[bool] = True
    """Without, the model has no head, the data may have no labels, and the report's eval is what `scores` says."""
    unit: ClassVar[str] = ""
    """Of the loss, for the axis of curves.png."""
    has_teacher: ClassVar[bool] = False
    """Whether it learns from train.teacher."""
    takes_distributions: ClassVar[bool] = False
    """Whether it learns from `Batch.targets`, as data that a teacher labels have them."""
    takes_sets: ClassVar[bool] = False
    """Whether an image may have several labels, or none."""
    views: ClassVar[int] = 1
    """Augmented copies of an image that a batch holds."""
    takes_more_views: ClassVar[bool] = False
    """Whether augment.views may ask for more than these."""
    is_mean_over_images: ClassVar[bool] = True
    """Whether micro-batches change nothing. Where a loss compares the images of a batch they do, and vit takes none by itself."""

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__()

    def begin(self, classes: Sequence[Class]) -> None:
        """Before the first step of a session: the classes of the model's outputs."""

    def counted(self, classes: Sequence[Class], images: NDArray[np.int64]) -> None:
        """Before the first step of a session: how many training images each class has. Raises UsageError or DataError."""

    def told(self, classes: Sequence[Class]) -> dict[str, Any]:
        """What the report says of it beside the scores."""
        return {}

    def draw(self, model: Classifier, batch: Batch, seed: int, step: Step) -> Noise:
        """What a step draws for the global batch, by its address. Where this takes no more of `step` than randomness.step_uniforms does, an update
        can be recorded and replayed.
        """
        keep = model.draw(seed, step, len(batch), host.numbers_of(batch.images.device))
        return Noise(None if keep is None else keep.to(batch.images.device))

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        """The loss of a micro-batch, a mean over its images. `noise` are its rows of what `draw` drew."""
        raise NotImplementedError

    def after_update(self, model: Classifier, step: int, progress: float) -> None:
        """After update `step`, from 0, of a run that is a part `progress` done: a teacher follows the model here."""

    def undecayed(self) -> frozenset[str]:
        """Names of its parameters without weight decay, beside vectors: a mask token [1, 1, width] would have it."""
        return frozenset()

    def scores(self, inference: Inference, split: Split, outputs: NDArray[np.int64]) -> dict[str, Any] | None:
        """The report's `eval` on a labelled split; None: null. `unreadable` among its fields counts images left out, and `evaluation`, of
        which report.html shows classes and mistakes, stays with the run.
        """
        return None

    def pictures(
        self, model: Classifier, images: Float[Tensor, "batch channels height width"]
    ) -> dict[str, NDArray[np.uint8]]:
        """What a finished run leaves to look at, of a few images as evaluation sees them: pixels by the name of the file, without
        .png.
        """
        return {}

    # --- before it exists ---

    @classmethod
    def check(cls, config: Config) -> None:
        """Raises UsageError where it cannot learn with this model, or its settings do not fit."""

    @classmethod
    def check_classes(cls, config: Config, classes: Sequence[Class], images: NDArray[np.int64]) -> None:
        """Raises UsageError where its settings do not fit the classes, of which each has so many training images."""

    @classmethod
    def checked_views(cls, config: Config, asked: int | None) -> int:
        """`augment.views`: those asked for, else its own or the configuration's. Raises UsageError where it cannot learn from them."""
        views = max(cls.views, config.augment.views) if asked is None else asked
        if views == cls.views or (views > cls.views and cls.takes_more_views):
            return views
        named = "one view" if cls.views == 1 else f"{cls.views} views" + (" or more" if cls.takes_more_views else "")
        raise UsageError(
            f"augment.views = {views}: train.objective = {config.train.objective} learns from {named} of an image",
            usual(type(config.augment), "views") if cls.views == 1 else "leave it out",
        )

    @classmethod
    def suited(cls, config: Config, facts: Facts) -> Config:
        """A recipe of ours, which is a classifier's, as this objective wants it; what was asked for comes over it."""
        return config

    @classmethod
    def extra(cls, config: Config) -> Extra:
        """What it owns, for the estimates of memory and disk."""
        return Extra()

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        """Of training on so many images of `config.model.img_size`, decoder and teacher included."""
        return flops.training_flops(config.model, images, config.train.tuned)

    @classmethod
    def activations(cls, config: Config) -> Activations:
        """What is held of an image for the backward pass, all its views and the objective's own."""
        return flops.activations(config.model, config.train.tuned, config.run.checkpointing)


def of_generator(seed: int, index: int = 0) -> torch.Generator:
    """A generator for an objective's initial values, apart from the model's."""
    return torch.Generator().manual_seed((seed + 0x0B1EC7) * 1_000_003 % 2**62 + index)
