"""A batch on its way from pixels to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitcli import host
from vitcli.config import EvalConfig, Size

Images = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images ready for the model with the ids of their samples.

    `labels` is None for unlabelled data. After mixup or cutmix an image counts `weight` for `labels` and
    1 - weight for `partner_labels`. Where some labels are a teacher's, or labels are sets, `targets` are what all images
    learn, mixed already. Several views of the same samples lie in `views`; `images` is the first.
    """

    views: tuple[Images, ...]
    labels: Int[Tensor, " batch"] | None
    ids: Int[Tensor, " batch"]
    partner_labels: Int[Tensor, " batch"] | None = None
    weight: Float[Tensor, ""] | float = 1.0
    targets: Float[Tensor, "batch classes"] | None = None
    start: int = field(default=0, kw_only=True)
    whole: int = field(default=0, kw_only=True)
    """Of a process's share: its first row in the global batch, and that one's length; 0: it is the global batch."""

    @property
    def images(self) -> Images:
        return self.views[0]

    def __len__(self) -> int:
        return len(self.ids)

    def outline(self) -> Batch:
        """As long as the global batch, with the shapes and the device of its images: enough to draw from, with no images of others."""
        if self.whole in (0, len(self)):
            return self
        views = tuple(view[:1].expand(self.whole, *view.shape[1:]) for view in self.views)
        return Batch(views, None, self.ids[:1].expand(self.whole))

    def resized(self, size: Size) -> Batch:
        """The same batch at another size, by an antialiased bilinear resize."""
        views = tuple(F.interpolate(v, size, mode="bilinear", align_corners=False, antialias=True) for v in self.views)
        return replace(self, views=views)

    def tensors(self) -> dict[str, Tensor]:
        """Those that a step reads, by name: all but the ids."""
        found = {f"views.{i}": view for i, view in enumerate(self.views)}
        found |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("views", "ids")}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With what `change` makes of every tensor that a step reads."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        views = tuple(changed.pop(f"views.{i}") for i in range(len(self.views)))
        return replace(self, views=views, **changed)

    def to(self, device: torch.device) -> Batch:
        """All but the ids, which no step asks for."""
        return self.each(lambda tensor: tensor.to(device))

    def rows(self, part: slice) -> Batch:
        """A micro-batch, or a process's share."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[part]

        return replace(
            self,
            views=tuple(v[part] for v in self.views),
            labels=cut(self.labels),
            ids=self.ids[part],
            partner_labels=cut(self.partner_labels),
            targets=cut(self.targets),
        )


def to_float(pixels: Int[Tensor, "batch channels height width"]) -> Images:
    """As float32, values unchanged."""
    return pixels.to(torch.float32)


def one_hot(labels: Int[Tensor, " batch"], classes: int) -> Float[Tensor, "batch classes"]:
    """1 at each label. torch's own reads the largest label first."""
    targets = torch.zeros(len(labels), classes, device=labels.device)
    return targets.scatter_(1, labels.unsqueeze(1), 1.0)


def normalise_(images: Images, config: EvalConfig) -> Images:
    """(x / 255 - mean) / std for each channel, in place."""
    mean, std = (host.constants(values, images.device).view(1, -1, 1, 1) for values in (config.mean, config.std))
    return images.sub_(255 * mean).div_(255 * std)


Uniforms = Float[Tensor, "batch count"]
