"""BiT's residual networks (Kolesnikov et al., 2020, §3.1) as numbers: pre-activation, group norms, standardised weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vitcli.config_values import Size, check_bounds, key
from vitcli.errors import UsageError
from vitcli.families import resnet
from vitcli.families.base import Activations, Architecture, Cost, Shape

_NAME = re.compile(
    r"(?:bit-)?r(?P<layers>\d{1,3}|\d+-(?:\d+(?:-\d+)*)?)(?:x(?P<factor>\d{1,2}(?:\.\d{1,6})?))?", re.IGNORECASE
)
_TIMM = re.compile(r"resnetv2_(?P<layers>\d{1,3})x(?P<factor>\d{1,2})_bit(?:\.\w+)?")
_MOST_PARAMETERS = 10**12
_MOST_PIXELS = 10**8
GROUPS = 32
_SMALL = 64
"""Sides of images, in pixels, up to which the root halves nothing."""


@dataclass(frozen=True, kw_only=True)
class BiTConfig(Architecture):
    """The architecture of a BiT network."""

    family: str = key("bit", "family of architectures (families/table.py)", fixed=True, settable=False)
    name: str = key("R50x1", "the model's name, from which its dimensions follow", fixed=True)
    units: tuple[int, ...] = key(
        (3, 4, 6, 3), "residual units of each stage of a ResNet", least=1, most=1000, longest=8, fixed=True
    )
    factor: float = key(1.0, "times a ResNet's usual channels", above=0, most=100, fixed=True)
    root: Literal["large", "small"] = key(
        "large",
        "what reads the image: a 7x7 convolution and a pooling, of stride two each; or for images of few pixels a 3x3 convolution",
        fixed=True,
    )
    groups: int = key(GROUPS, "groups of channels that a ResNet normalises together", least=1, most=10**5, fixed=True)
    norm_eps: float = key(1e-5, "added to a group's variance", least=0, below=1, fixed=True)
    weight_eps: float = key(1e-10, "added to the variance of a filter's weights", least=0, below=1, fixed=True)

    DIMENSIONS: ClassVar[frozenset[str]] = frozenset({"units", "factor", "groups", "root"})

    # --- names ---

    @classmethod
    def parse(cls, name: str) -> BiTConfig | None:
        """`R50x1`, `r152x4`, other units as `spelled` writes them, `R1-1-1x0.5`, and timm's `resnetv2_50x1_bit`.

        Networks narrower than BiT's have as many groups as leave two channels to each, as R50x1 has in its narrowest map.
        """
        match = _NAME.fullmatch(name.strip()) or _TIMM.fullmatch(name.strip())
        if match is None:
            return None
        units, factor = resnet.units_of(match["layers"], name), float(match["factor"] or 1)
        model = cls(name="", units=units, factor=factor)
        check_bounds("model", model)
        model = replace(model, groups=groups_of(factor))
        return replace(model, name=model.spelled())

    def spelled(self) -> str:
        known = next((str(n) for n, found in resnet.UNITS.items() if found == self.units), resnet.dashed(self.units))
        return f"R{known}x{self.factor:.10g}"

    # --- numbers ---

    @property
    def stem_channels(self) -> int:
        return resnet.root_channels(self.factor)

    @property
    def kind(self) -> str:
        return "BiT residual network"

    @property
    def reader(self) -> str:
        return "stem.conv.weight"

    @property
    def features(self) -> int:
        return self.stages()[-1][-1].outputs

    @property
    def takes_any_size(self) -> bool:
        return True

    def stages(self) -> list[list[resnet.Unit]]:
        return resnet.stages(self.units, self.factor)

    def _maps(self) -> tuple[int, int, list[tuple[int, int]]]:
        """Pixels after the root's convolution and after the root, and of each stage."""
        rows, columns = self.img_size
        if self.root == "small":
            return rows * columns, rows * columns, resnet.areas(rows, columns, self.stages())
        rows, columns = resnet.halved(rows), resnet.halved(columns)
        conv = rows * columns
        rows, columns = resnet.halved(rows), resnet.halved(columns)
        return conv, rows * columns, resnet.areas(rows, columns, self.stages())

    @property
    def tokens(self) -> int:
        """Pixels of the first stage's map, the largest with many channels."""
        return self._maps()[1]

    @property
    def seen(self) -> str:
        sides = (
            self.img_size if self.root == "small" else (resnet.halved(resnet.halved(side)) for side in self.img_size)
        )
        return f"a map of {' x '.join(map(str, sides))} after the root"

    def root_shape(self) -> Shape:
        side = 7 if self.root == "large" else 3
        return (self.stem_channels, 3, side, side)

    def shapes(self) -> dict[str, Shape]:
        """Under timm's names, but for the head's."""
        shapes: dict[str, Shape] = {"stem.conv.weight": self.root_shape()}
        shapes |= resnet.unit_shapes(self.stages(), before=True)
        shapes |= {"norm.weight": (self.features,), "norm.bias": (self.features,)}
        if self.classes:
            shapes |= {"head.weight": (self.classes, self.features), "head.bias": (self.classes,)}
        return shapes

    def cost(self) -> Cost:
        stages = self.stages()
        conv, pooled, sizes = self._maps()
        root = self.root_shape()
        head = (self.features + 1) * self.classes
        outputs = Activations(float32=4 * self.classes)
        last = self.features * sizes[-1][1]
        stem = Activations(rounded=3 * self.img_size[0] * self.img_size[1] + (conv + pooled) * self.stem_channels)
        widest = resnet.widest(stages, sizes)
        return Cost(
            parameters=resnet.parameters(self.shapes()),
            head_parameters=head,
            macs=conv * math.prod(root) + resnet.unit_macs(stages, sizes) + self.features * self.classes,
            head_macs=self.features * self.classes,
            training=stem + resnet.unit_activations(stages, sizes) + Activations(rounded=3 * last) + outputs,
            training_head=Activations(rounded=2 * widest) + outputs,
            evaluation=Activations(rounded=3 * max(widest, conv * self.stem_channels)),
            held=resnet.standardised(self.shapes()),
        )

    # --- what others are told ---

    def described(self) -> dict[str, Any]:
        return {"units": list(self.units), "factor": self.factor, "root": self.root, "groups": self.groups}

    def completed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Another factor takes its groups along."""
        return {"groups": groups_of(asked["factor"]), **asked} if "factor" in asked else asked

    def suited_to(self, img_size: Size) -> BiTConfig:
        return replace(self, root="small" if max(img_size) <= _SMALL else "large")

    # --- checks ---

    def check(self) -> None:
        super().check()
        if not self.units:
            raise UsageError("model.units is empty", "give units for one stage at least, such as 3,4,6,3")
        if self.img_size[0] * self.img_size[1] > _MOST_PIXELS:
            raise UsageError(
                f"images of {self.img_size[0]} x {self.img_size[1]} px are too large", "take a smaller --img-size"
            )
        self._check_channels()
        first = 9 * self.stem_channels**2
        largest = first * 4 ** (len(self.units) - 1) * max(self.units) * len(self.units) + self.features * self.classes
        if largest > _MOST_PARAMETERS:
            raise UsageError(
                f"{self.name} with {self.classes:,} classes has up to {largest:.2g} parameters, over {_MOST_PARAMETERS:.0e}",
                "take a smaller --model",
            )

    def _check_channels(self) -> None:
        """Raises UsageError where channels are no whole numbers, or cannot be put into groups."""
        channels = 64 * self.factor
        if channels != round(channels):
            raise UsageError(f"model.factor = {self.factor:g} makes {channels:g} channels", "take a multiple of 1/64")
        if self.stem_channels % self.groups:
            fitting = max(g for g in range(1, self.groups + 1) if self.stem_channels % g == 0)
            raise UsageError(
                f"model.groups = {self.groups} does not divide the {self.stem_channels} channels of the narrowest map",
                f"take --set model.groups={fitting}",
            )


def groups_of(factor: float) -> int:
    """32, of networks narrower than BiT's as many as leave two channels to each group of the narrowest map."""
    channels = round(64 * factor)
    most = max(1, min(GROUPS, channels // 2))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
