"""The sections of objectives: what each key means, its default and its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcli.config_values import key


@dataclass(frozen=True, kw_only=True)
class MaskedPatchConfig:
    """Masked patch prediction (train/objectives/masked_patch.py)."""

    part: float = key(0.5, "of an image's patches that is corrupted", above=0, below=1)
    masked: float = key(0.8, "of the corrupted embeddings that becomes a learned vector", least=0, most=1)
    replaced: float = key(0.1, "that becomes another patch's; the rest stays as it is", least=0, most=1)
    target: Literal["colour", "downsized", "pixels"] = key(
        "colour", "what is predicted of a patch: its mean colour in 3 bits a channel, that of 4x4 cells, or its pixels"
    )


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Masked autoencoders (train/objectives/mae.py)."""

    mask: float = key(0.75, "of an image's patches that the encoder does not see", above=0, below=1)
    width: int = key(0, "channels of the decoder; 0: half of the encoder's", least=0, most=10**5)
    depth: int = key(2, "blocks of the decoder", least=1, most=1000)
    normalise: bool = key(True, "each patch that is to be painted is brought to mean 0 and variance 1")


@dataclass(frozen=True, kw_only=True)
class VisregConfig:
    """Views that agree (train/objectives/visreg.py)."""

    regulariser: Literal["visreg", "sigreg"] = key(
        "visreg", "what spreads embeddings: VISReg's three terms, or LeJEPA's SIGReg"
    )
    weight: float | None = key(
        None, "of the regulariser, against agreement; empty: 0.6 for visreg, 0.02 for sigreg", above=0, below=1
    )
    slices: int = key(
        1024, "random directions that the regulariser looks along, new ones every step", least=1, most=10**5
    )
    width: int = key(128, "numbers of an embedding", least=1, most=10**5)
    hidden: int = key(0, "channels within the projector; 0: four times the model's, at most 2048", least=0, most=10**5)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from a teacher's opinion (train/objectives/distill.py)."""

    labels: Literal["soft", "hard"] = key("soft", "the teacher's probabilities, or its most likely class")
    weight: float = key(0.9, "of the teacher, against the labels", least=0, most=1)
    temperature: float = key(2.0, "by which logits are divided before soft labels are compared", least=0.01, most=100)


@dataclass(frozen=True, kw_only=True)
class PseudoConfig:
    """Labels from a teacher for data that have none (train/pseudo.py)."""

    labels: Literal["soft", "hard"] = key("soft", "the teacher's probabilities, or its most likely class")
    threshold: float = key(0.3, "the confidence of the teacher from which an image is learned from", least=0, most=1)
    balance: bool = key(True, "every class has as many images: the surest, or repeated ones")
    images: int = key(0, "of each class, where they are balanced; 0: the mean of what is kept", least=0, most=10**9)
