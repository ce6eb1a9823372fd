"""Hybrids (Dosovitskiy et al., 2021, §3.1 and §4.1) as numbers: a Vision Transformer whose patches are of a ResNet's feature map."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vitcli.config_values import Size, format_size, key, shown
from vitcli.errors import UsageError
from vitcli.families import resnet
from vitcli.families.base import Activations, Architecture, Cost, Shape
from vitcli.families.vit import ModelConfig

_NAME = re.compile(
    r"r(?P<layers>\d{1,3}|\d+-(?:\d+(?:-\d+)*)?)?(?:x1)?\+(?P<vit>(?:vit-)?[a-z0-9]+)/(?P<sides>\d{1,5}(?:x\d{1,5})?)",
    re.IGNORECASE,
)
_TIMM = re.compile(r"vit_(?P<size>tiny|small|base|large)_r(?P<layers>\d*)_s(?P<side>\d+)(?:_p8)?(?:_\d{3})?(?:\.\w+)?")
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L"}
_ROOT_STRIDE = 4
_FOURTH = 3


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ModelConfig):
    """The architecture of a hybrid. `patch` is what a token is of the image: the ResNet's stride times the patch of its map."""

    family: str = key("hybrid", "family of architectures (families/table.py)", fixed=True, settable=False)
    name: str = key("R50+ViT-B/16", "the model's name, from which its dimensions follow", fixed=True)
    units: tuple[int, ...] = key(
        (3, 4, 9), "residual units of each stage of a ResNet", least=1, most=1000, longest=8, fixed=True
    )
    group_eps: float = key(1e-6, "added to a group's variance", least=0, below=1, fixed=True)
    weight_eps: float = key(
        1e-5, "added to a filter's spread where its weights are divided by it", least=0, below=1, fixed=True
    )
    weight_eps_to: Literal["deviation", "variance"] = key(
        "deviation",
        "to which weight_eps is added: a filter's standard deviation (Google), or its variance (timm)",
        fixed=True,
    )

    DIMENSIONS: ClassVar[frozenset[str]] = ModelConfig.DIMENSIONS | {"units"}

    # --- names ---

    @classmethod
    def parse(cls, name: str) -> HybridConfig | None:
        """`R50+ViT-B/16`, `r26+s/32`, `R+ViT-Ti/16`, other units as in `R1-1+ViT-Ti/8`, and timm's `vit_base_r50_s16_224`.

        The number after the stroke is the stride of a token. Of a ResNet of four stages, one of 16 moves the fourth's units to
        the third (§4.1). Without stages it is the root and patches half of that number on its map, as R+ViT-Ti/16 is named
        (google-research/vision_transformer configs/models.py): 49 tokens of 224 pixels.
        """
        text = name.strip()
        timm = _TIMM.fullmatch(text)
        if timm is not None:
            text = f"R{timm['layers']}+ViT-{_SIZES[timm['size']]}/{timm['side']}"
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        vit = ModelConfig.parse(f"{match['vit']}/{match['sides']}")
        if vit is None:
            return None
        units, patch = _units(match["layers"] or "", vit.patch, name)
        dimensions = {key: getattr(vit, key) for key in ("width", "depth", "heads", "mlp")}
        model = cls(name="", units=units, patch=patch, **dimensions)
        return replace(model, name=model.spelled())

    def spelled(self) -> str:
        """`R50+ViT-B/16`, where that name stands for these units."""
        sides = self.patch if self.units else (self.patch[0] // 2, self.patch[1] // 2)
        same = (number for number in resnet.UNITS if _units(str(number), sides, "") == (self.units, self.patch))
        layers = next(map(str, same), resnet.dashed(self.units))
        return f"R{layers}+{super().spelled().partition('/')[0]}/{format_size(sides)}"

    # --- numbers ---

    @property
    def kind(self) -> str:
        return "hybrid of a ResNet and a Vision Transformer"

    @property
    def reader(self) -> str:
        return "patch_embed.backbone.stem.conv.weight"

    @property
    def reads_pixels(self) -> bool:
        return False

    @property
    def is_plain(self) -> bool:
        return False

    @property
    def stride(self) -> int:
        """Pixels of the image to one of the feature map."""
        return _ROOT_STRIDE * 2 ** max(0, len(self.units) - 1)

    @property
    def breadth(self) -> int:
        """Pixels of the map that the root leaves."""
        rows, columns = (resnet.halved(resnet.halved(side)) for side in self.img_size)
        return max(self.tokens, rows * columns)

    @property
    def map_channels(self) -> int:
        return self.stages()[-1][-1].outputs if self.units else resnet.root_channels()

    def stages(self) -> list[list[resnet.Unit]]:
        return resnet.stages(self.units)

    def patch_shape(self) -> Shape:
        rows, columns = (side // self.stride for side in self.patch)
        return (self.width, self.map_channels, rows, columns)

    def backbone_shapes(self) -> dict[str, Shape]:
        """Of what makes the feature map, under timm's names."""
        channels = resnet.root_channels()
        shapes: dict[str, Shape] = {
            "stem.conv.weight": (channels, 3, 7, 7),
            "stem.norm.weight": (channels,),
            "stem.norm.bias": (channels,),
        }
        return shapes | resnet.unit_shapes(self.stages(), before=False)

    def shapes(self) -> dict[str, Shape]:
        return super().shapes() | {
            f"patch_embed.backbone.{key}": shape for key, shape in self.backbone_shapes().items()
        }

    def cost(self) -> Cost:
        vit, stages = super().cost(), self.stages()
        rows, columns = (resnet.halved(side) for side in self.img_size)
        conv = rows * columns
        sizes = resnet.areas(resnet.halved(rows), resnet.halved(columns), stages)
        channels = resnet.root_channels()
        kept = Activations(rounded=3 * math.prod(self.img_size) + 3 * conv * channels) + resnet.unit_activations(
            stages, sizes
        )
        again = vit.checkpointed
        widest = max(conv * channels, resnet.widest(stages, sizes))
        return replace(
            vit,
            parameters=vit.parameters + resnet.parameters(self.backbone_shapes()),
            macs=vit.macs + conv * channels * 3 * 7 * 7 + resnet.unit_macs(stages, sizes),
            training=vit.training + kept,
            checkpointed=None if again is None else again + kept,
            training_head=vit.training_head + Activations(rounded=3 * widest),
            evaluation=vit.evaluation + Activations(rounded=3 * widest),
            held=resnet.standardised(self.backbone_shapes()),
        )

    # --- what others are told ---

    def described(self) -> dict[str, Any]:
        return super().described() | {"units": list(self.units)}

    def sized(self) -> str:
        return f"a ResNet's map, {format_size(self.patch)} pixels a token"

    def with_patch(self, patch: Size) -> Architecture:
        raise UsageError(f"the patches of {self.name} are of a feature map", "leave --patch-size out")

    # --- checks ---

    def check(self) -> None:
        super().check()
        if any(side % self.stride for side in self.patch):
            raise UsageError(
                f"model.patch = {format_size(self.patch)} is no multiple of {self.stride}, the stride of the ResNet of {self.name}",
                f"take model.patch={self.stride}",
            )


def _moved(units: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Units of four stages for a stride: those of the fourth belong to the third where it is 16."""
    return (*units[: _FOURTH - 1], sum(units[_FOURTH - 1 :])) if stride == 16 and len(units) > _FOURTH else units


def _units(layers: str, sides: Size, name: str) -> tuple[tuple[int, ...], Size]:
    """The units of each stage, and the pixels of a token. Raises UsageError."""
    if layers:
        known = resnet.units_of(layers, name)
        return (known if "-" in layers else _moved(known, min(sides))), sides
    if sides[0] % 2 or sides[1] % 2:
        raise UsageError(
            f"{shown(name)} has a root of stride four and no patch of half of {format_size(sides)}",
            "such as R+ViT-Ti/16",
        )
    return (), (2 * sides[0], 2 * sides[1])
