"""Data sets that go by a short name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitcli.classes import Class, imagenet_1k, imagenet_21k
from vitcli.config_values import Size


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What is published of data that are too large to be downloaded for a plan alone: images, the usual (height, width) and classes."""

    train: int
    held_out: int
    size: Size
    classes: Callable[[], tuple[Class, ...]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A data set of the hub. `numbers` are of large ones, which --dry-run plans by where they are not on this machine."""

    hub: str
    image: str
    label: str
    held_out: str = "test"
    config: str = ""
    mirror: bool = True
    note: str = ""
    numbers: Numbers | None = None


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
    "imagenet": Preset(
        hub="ILSVRC/imagenet-1k",
        image="image",
        label="label",
        held_out="validation",
        numbers=Numbers(train=1_281_167, held_out=50_000, size=(375, 500), classes=imagenet_1k),
    ),
    "imagenet-21k": Preset(
        hub="timm/imagenet-22k-wds",
        image="jpg",
        label="cls",
        held_out="validation",
        note="ImageNet-21k has no official split: held out are the 472,840 images that this hub copy keeps apart, 40 of each of "
        "11,821 of the 21,841 classes; scores compare with those of the same copy alone",
        numbers=Numbers(train=13_673_551, held_out=472_840, size=(375, 500), classes=imagenet_21k),
    ),
    "imagenette": Preset(
        hub="frgfm/imagenette", image="image", label="label", held_out="validation", config="full_size"
    ),
}
"""ImageNet's images are 500 x 375 px where nothing else is said of them. ImageNet-21k is its release of autumn 2011, webdataset archives
of `jpg`, `cls` (0 to 21,840, in the order of the synsets' ids) and `json` (rwightman/imagenet-12k wds/build_wds.py); its images below 56
px were left out, and its numbers are those of its card.
"""
