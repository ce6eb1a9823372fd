"""Data sets that go by a short name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    hub: str
    image: str
    label: str
    held_out: str = "test"
    config: str = ""
    mirror: bool = True
    note: str = ""


PRESETS: dict[str, Preset] = {
    "cifar10": Preset(hub="uoft-cs/cifar10", image="img", label="label"),
    "cifar100": Preset(hub="uoft-cs/cifar100", image="img", label="fine_label"),
    "pets": Preset(hub="timm/oxford-iiit-pet", image="image", label="label"),
    "flowers": Preset(
        hub="nelorth/oxford-flowers",
        image="image",
        label="label",
        note="this hub copy of Flowers-102 has 7,169 training and 1,020 test images, not the official "
        "1,020 + 1,020 and 6,149: results do not compare with the paper's",
    ),
    "fashion-mnist": Preset(hub="zalando-datasets/fashion_mnist", image="image", label="label"),
    "mnist": Preset(hub="ylecun/mnist", image="image", label="label", mirror=False),
    "imagenet": Preset(hub="ILSVRC/imagenet-1k", image="image", label="label", held_out="validation"),
    "imagenette": Preset(
        hub="frgfm/imagenette", image="image", label="label", held_out="validation", config="full_size"
    ),
}
