"""Residual networks of bottleneck units as numbers: what BiT (He et al., 2016b; Kolesnikov et al., 2020) and the stem of a hybrid share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitcli.config_values import shown
from vitcli.errors import UsageError
from vitcli.families.base import Activations, Shape

UNITS: dict[int, tuple[int, ...]] = {
    # layers: units of each stage (google-research/big_transfer bit_pytorch/models.py; big_vision models/bit.py)
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_ROOT = 64
_BEYOND = 2
"""Units' worth of gradients and intermediate values beside what every unit keeps."""


@dataclass(frozen=True)
class Unit:
    """1x1 to a quarter of the channels, 3x3 with the stride, 1x1 to all of them; the first of a stage projects its shortcut."""

    inputs: int
    inner: int
    outputs: int
    stride: int
    projects: bool

    def convolutions(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "conv1": (self.inner, self.inputs, 1, 1),
            "conv2": (self.inner, self.inner, 3, 3),
            "conv3": (self.outputs, self.inner, 1, 1),
        }
        return shapes | ({"downsample.conv": (self.outputs, self.inputs, 1, 1)} if self.projects else {})

    def norms(self, before: bool) -> dict[str, int]:
        """Channels of each norm: those `before` convolutions read what these read, those after it what they give."""
        if before:
            return {"norm1": self.inputs, "norm2": self.inner, "norm3": self.inner}
        norms = {"norm1": self.inner, "norm2": self.inner, "norm3": self.outputs}
        return norms | ({"downsample.norm": self.outputs} if self.projects else {})


def units_of(layers: str, name: str) -> tuple[int, ...]:
    """The units of `50`, or those that stand in `1-2-1` and, of a single stage, in `2-`. Raises UsageError for a number of layers
    that nobody built.
    """
    if "-" in layers:
        return tuple(int(n) for n in layers.split("-") if n)
    if int(layers) not in UNITS:
        known = ", ".join(f"R{n}" for n in UNITS)
        raise UsageError(
            f"no ResNet of {layers} layers is known, in {shown(name)}", f"known are {known}; or give units, as R2-2-2-2"
        )
    return UNITS[int(layers)]


def dashed(units: Sequence[int]) -> str:
    """As `units_of` reads them: 1-2-1, and of a single stage 2-."""
    return "-".join(map(str, units)) + ("-" if len(units) == 1 else "")


def root_channels(factor: float = 1) -> int:
    return round(_ROOT * factor)


def stages(units: Sequence[int], factor: float = 1) -> list[list[Unit]]:
    """Every unit, stage by stage. Channels are 256 · factor after the first stage and double with each, the stride is 2 in all
    but the first.
    """
    found, inputs = [], root_channels(factor)
    for index, count in enumerate(units):
        outputs = round(4 * _ROOT * factor) * 2**index
        stage = []
        for number in range(count):
            stage.append(Unit(inputs, outputs // 4, outputs, 2 if index and not number else 1, number == 0))
            inputs = outputs
        found.append(stage)
    return found


def unit_shapes(all_stages: Sequence[Sequence[Unit]], before: bool) -> dict[str, Shape]:
    """Every tensor of the stages under timm's names; `before`: norms before the convolutions, as in BiT."""
    shapes: dict[str, Shape] = {}
    for i, stage in enumerate(all_stages):
        for j, unit in enumerate(stage):
            at = f"stages.{i}.blocks.{j}"
            shapes |= {f"{at}.{name}.weight": shape for name, shape in unit.convolutions().items()}
            for name, channels in unit.norms(before).items():
                shapes |= {f"{at}.{name}.weight": (channels,), f"{at}.{name}.bias": (channels,)}
    return shapes


def parameters(shapes: Mapping[str, Shape]) -> int:
    return sum(map(math.prod, shapes.values()))


def standardised(shapes: Mapping[str, Shape]) -> int:
    """Weights of convolutions without the head, which are standardised."""
    return sum(math.prod(shape) for shape in shapes.values() if len(shape) == 4)


def halved(side: int) -> int:
    """A side after a stride of two."""
    return -(-side // 2)


def areas(rows: int, columns: int, all_stages: Sequence[Sequence[Unit]]) -> list[tuple[int, int]]:
    """Pixels that the first unit of each stage reads, and those that the stage gives, of a map that the stem gave."""
    found = []
    for index in range(len(all_stages)):
        read = rows * columns
        rows, columns = (halved(rows), halved(columns)) if index else (rows, columns)
        found.append((read, rows * columns))
    return found


def unit_macs(all_stages: Sequence[Sequence[Unit]], sizes: Sequence[tuple[int, int]]) -> int:
    """Multiply-accumulates of the stages' convolutions."""
    total = 0
    for stage, (read, given) in zip(all_stages, sizes, strict=True):
        for unit in stage:
            for name, shape in unit.convolutions().items():
                total += math.prod(shape) * (read if name == "conv1" and unit.stride > 1 else given)
    return total


def widest(all_stages: Sequence[Sequence[Unit]], sizes: Sequence[tuple[int, int]]) -> int:
    """Numbers of the largest map between units; none without stages."""
    pairs = zip(all_stages, sizes, strict=True)
    return max((read * unit.outputs for stage, (read, _) in pairs for unit in stage), default=0)


def unit_activations(all_stages: Sequence[Sequence[Unit]], sizes: Sequence[tuple[int, int]]) -> Activations:
    """What the stages keep for the backward pass: of each convolution and of each norm its input, of each rectifier its result."""
    kept, largest = 0, 0
    for stage, (read, given) in zip(all_stages, sizes, strict=True):
        for number, unit in enumerate(stage):
            first = read if number == 0 else given
            own = 2 * first * unit.inputs + 2 * unit.inner * (first + given) + (given * unit.outputs)
            kept += own
            largest = max(largest, own)
    return Activations(rounded=kept + _BEYOND * largest)
