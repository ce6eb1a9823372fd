"""What is learned. An objective owns what it needs beyond the model and returns a loss and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitcli.config import TrainConfig
from vitcli.data.augment import Batch
from vitcli.model.vit import Block, ViT
from vitcli.randomness import generator


@dataclass(frozen=True, eq=False)
class Noise:
    """What a step draws, for the global batch, from (seed, step, layer); a micro-batch takes its rows."""

    keep: Bool[Tensor, "depth 2 batch"] | None  # DropPath: whether a branch is computed for an image

    def rows(self, part: slice) -> Noise:
        return Noise(None if self.keep is None else self.keep[:, :, part])


def draw_noise(model: ViT, seed: int, step: int, batch: int, device: torch.device) -> Noise:
    rates = [block.drop_path for block in model.blocks if isinstance(block, Block)]
    if not any(rates):
        return Noise(None)
    keep = np.stack(
        [generator(seed, "drop-path", step, layer).random((2, batch)) >= rate for layer, rate in enumerate(rates)]
    )
    return Noise(torch.from_numpy(keep).to(device))


@dataclass(frozen=True, eq=False)
class Loss:
    """A mean over the images given, in nats, and further means for the log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)


class Classify(nn.Module):
    """Softmax cross-entropy, or the sigmoid loss summed over classes (big_vision utils.sigmoid_xent).

    Both are linear in the targets, so a mixed image's loss is the weighted sum of two, and smoothing ε puts
    1 - ε + ε/K on the label and ε/K elsewhere.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.kind, self.smoothing = config.loss, config.label_smoothing

    def forward(self, model: ViT, batch: Batch, noise: Noise) -> Loss:
        assert batch.labels is not None
        logits = model(batch.images, noise.keep).float()
        loss = self.of(logits, batch.labels)
        if batch.partner_labels is not None:
            loss = batch.weight * loss + (1 - batch.weight) * self.of(logits, batch.partner_labels)
        return Loss(loss)

    def of(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        if self.kind == "softmax":
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        picked = logits.gather(1, labels[:, None]).squeeze(1)
        target = (1 - self.smoothing) * picked + self.smoothing * logits.mean(1)
        return (F.softplus(logits).sum(1) - target).mean()
