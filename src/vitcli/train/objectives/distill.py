"""Learning from labels and from a teacher's opinion of the same images (Hinton et al., 2015; Touvron et al., 2021, DeiT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitcli import flops, host
from vitcli.classes import Class
from vitcli.config import Config, DistillConfig
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.model.classifier import Classifier
from vitcli.train.objectives.base import Extra, Loss, Noise
from vitcli.train.objectives.classify import Classify
from vitcli.train.objectives.tokens import pixels
from vitcli.train.teacher import described, outputs_of
from vitcli.weights.asked import loaded


class Distill(Classify):
    """(1 - α) · the loss of the labels + α · that of the teacher's: `hard`, cross-entropy with its most likely class; `soft`,
    τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), a mean over images (facebookresearch/deit losses.py divides by the
    classes too).

    A student with a distillation token (model.distilled) learns the labels with the class token's head and the teacher's opinion
    with the other, any other student both with its head. The teacher sees the very images that the student sees, crops and
    mixtures, at its own size and with its own means. It is not part of the state: the run knows its file by what it holds.
    """

    has_teacher = True
    takes_sets = False

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.settings: DistillConfig = config.settings_of("distill")
        self.evaluation = config.eval
        own, teacher = loaded(config.train.teacher)
        self.preprocessing, self.own_classes = own.eval, own.classes
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple, it is no submodule
        self.outputs: Tensor | None = None

    def begin(self, classes: Sequence[Class]) -> None:
        device = next(self._teacher[0].parameters()).device
        self.outputs = outputs_of(self.own_classes, classes).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distill:
        """The teacher moves to another device with what is a submodule."""
        self._teacher[0]._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def forward(self, model: Classifier, batch: Batch, noise: Noise) -> Loss:
        both = [logits.float() for logits in model.logits(batch.images, noise.keep)]
        opinion = self.opinion(batch.images)
        labels, teacher = self.loss_of(both[0], batch), self.of_teacher(both[-1], opinion)
        weight = self.settings.weight
        agree = (both[-1].detach().argmax(1) == opinion.argmax(1)).float().mean()
        return Loss((1 - weight) * labels + weight * teacher, {"labels": labels, "teacher": teacher, "agree": agree})

    def of_teacher(
        self, logits: Float[Tensor, "batch classes"], opinion: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        if self.settings.labels == "hard":
            return F.cross_entropy(logits, opinion.argmax(1))
        t = self.settings.temperature
        student, teacher = (logits / t).log_softmax(1), (opinion / t).log_softmax(1)
        return t * t * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    @torch.no_grad()
    def opinion(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The teacher's logits, in the order of the student's classes."""
        teacher = self._teacher[0]
        seen, size = pixels(images, self.evaluation), tuple(teacher.config.img_size)
        if tuple(seen.shape[2:]) != size:
            how = self.preprocessing.interpolation
            seen = F.interpolate(seen, size, mode=how, align_corners=False, antialias=True).clamp(0, 1)
        mean, std = (
            host.constants(v, images.device).view(1, -1, 1, 1)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        logits: Tensor = teacher((seen - mean) / std).float()
        return logits if self.outputs is None else logits.index_select(1, self.outputs)

    # --- before it exists ---

    @classmethod
    def check(cls, config: Config) -> None:
        if not config.train.teacher:
            raise UsageError(
                "train.objective = distill has no teacher",
                "name a trained checkpoint with --teacher CKPT, or --set train.teacher=CKPT",
            )
        channels = described(config.train).model.channels
        if channels != config.model.channels:
            raise UsageError(
                f"train.teacher sees the student's images, and takes model.channels = {channels}, not {config.model.channels}",
                "name a teacher that takes the same, or leave model.channels out",
            )
        if config.settings_of("distill").weight == 1 and getattr(config.model, "distilled", False):
            raise UsageError(
                "distill.weight = 1 leaves the class token's head untrained, of which model.distilled takes the mean with the other",
                "take a smaller weight, or leave model.distilled out",
            )

    @classmethod
    def extra(cls, config: Config) -> Extra:
        return Extra(held=flops.parameters(described(config.train).model))

    @classmethod
    def training_flops(cls, config: Config, images: int) -> int:
        return super().training_flops(config, images) + 2 * images * flops.macs(described(config.train).model)
