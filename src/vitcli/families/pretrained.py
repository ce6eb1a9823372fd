"""Trained weights that go by a name of timm's or transformers': what stands in tables/models.tsv, which docs/models.py writes."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from vitcli.config_values import Size

_GENERIC = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d{1,3})_(\d{2,4})")
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}
_READ = re.compile(r"resnetv2_.*_bit")
"""Models that are read, whose names begin as those of another family do."""

OTHER_FAMILIES = [
    "cait",
    "coat",
    "coatnet",
    "convmixer",
    "convnext",
    "convnextv2",
    "convit",
    "crossvit",
    "cvt",
    "davit",
    "densenet",
    "detr",
    "dla",
    "dpn",
    "edgenext",
    "efficientformer",
    "efficientnet",
    "efficientvit",
    "fastvit",
    "focalnet",
    "gcvit",
    "ghostnet",
    "gmixer",
    "gmlp",
    "hiera",
    "hrnet",
    "inception",
    "levit",
    "maxvit",
    "mixer",
    "mlp",
    "mobilenet",
    "mobilenetv3",
    "mobilenetv4",
    "mobilevit",
    "mvitv2",
    "naflexvit",
    "nasnet",
    "nest",
    "nfnet",
    "owlvit",
    "pit",
    "poolformer",
    "pvt",
    "pvt_v2",
    "regnet",
    "repvgg",
    "res2net",
    "resmlp",
    "resnest",
    "resnet",
    "resnext",
    "rexnet",
    "sam2",
    "samvit",
    "segformer",
    "selecsls",
    "seresnet",
    "sequencer",
    "swin",
    "swinv2",
    "tinynet",
    "tnt",
    "tresnet",
    "twins",
    "vgg",
    "visformer",
    "vitamin",
    "volo",
    "wide_resnet",
    "xception",
    "xcit",
    "yolos",
]
"""First words of the names of models that vit does not read."""
_OTHER_PARTS = re.compile(r"(?:^|[_-])(?:avgpool|sam|dlittle|dwee|dpwee|pwee|relpos|srelpos|sapiens2|mci)(?=[_-]|$)")
"""Parts of the names of Vision Transformers with something that vit does not have, and that their arrays do not all show."""
_OWNERS = ("timm", "google", "facebook", "microsoft", "openai", "apple", "nvidia", "laion")
"""Those on the hub whose names say what a model is; anybody else's may be called anything."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights on the hub. `spelled` is the architecture's name here, `fields` what it has beyond that name."""

    id: str
    spelled: str
    fields: dict[str, Any] = field(hash=False)
    params: int
    img_size: Size
    classes: int
    top1: float | None
    licence: str

    @property
    def name(self) -> str:
        """As it is typed: timm's name alone, the hub's id of another's."""
        return self.id.removeprefix("timm/")


@functools.cache
def table() -> tuple[Pretrained, ...]:
    """All that are known, those of an architecture side by side, the one that its name alone means first."""
    text = resources.files("vitcli.tables").joinpath("models.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(
        Pretrained(
            id=id_,
            spelled=spelled,
            fields=json.loads(fields),
            params=int(params),
            img_size=(int(size), int(size)),
            classes=int(classes),
            top1=float(top1) if top1 else None,
            licence=licence,
        )
        for id_, spelled, fields, params, size, classes, top1, licence in rows
    )


@functools.cache
def _by_name() -> dict[str, Pretrained]:
    found: dict[str, Pretrained] = {}
    for row in table():
        for name in (row.id, row.name, row.id.partition(".")[0], row.name.partition(".")[0]):
            found.setdefault(name.lower(), row)
    return found


def find(name: str) -> Pretrained | None:
    """The weights that `name` means: a hub id, timm's name with its tag, or without for timm's first choice."""
    return _by_name().get(name.strip().lower())


def names() -> list[str]:
    """Every name that `find` knows, in no case but lower."""
    return list(_by_name())


def generic(name: str) -> tuple[str, Size] | None:
    """Of a name by timm's rule, `vit_small_patch8_64`: the model and the image size, whether there are weights or not."""
    match = _GENERIC.fullmatch(name.strip().lower())
    return (f"ViT-{_SIZES[match[1]]}/{match[2]}", (int(match[3]), int(match[3]))) if match else None


def other_family(name: str) -> str:
    """The word in the name of somebody's well-known model by which it is none that vit reads; empty where there is none.

    `name` is timm's, with its owner or without, or a hub id of an owner whose names say what they name.
    """
    owner, _, last = name.strip().lower().partition("@")[0].rpartition("/")
    if find(name) is not None or owner not in ("", *_OWNERS) or _READ.match(last):
        return ""
    first = next((f for f in sorted(OTHER_FAMILIES, key=len, reverse=True) if re.match(rf"{f}(?![a-z])", last)), "")
    part = _OTHER_PARTS.search(last.partition(".")[0])
    return first or (part[0].strip("_-") if part else "")
