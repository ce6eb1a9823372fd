"""What is asked of any architecture before its weights exist."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from vitcli.config_values import MOST_CHANNELS, RGB, Size, check_bounds, key, keys
from vitcli.errors import UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Numbers that a model holds of an image: in float32, and in the precision of matrix products."""

    float32: int = 0
    rounded: int = 0

    def bytes(self, bf16: bool) -> int:
        return 4 * self.float32 + (2 if bf16 else 4) * self.rounded

    def __add__(self, other: Activations) -> Activations:
        return Activations(float32=self.float32 + other.float32, rounded=self.rounded + other.rounded)

    def __mul__(self, times: int) -> Activations:
        return Activations(float32=times * self.float32, rounded=times * self.rounded)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an architecture takes, by arithmetic. A multiply-accumulate (MAC) is two floating-point operations; counted are the
    matrix products, while norms, activations, biases and residuals are not.
    """

    parameters: int  # all that are trained, head included
    head_parameters: int
    macs: int  # of one image's forward pass
    head_macs: int
    training: Activations  # of an image for the backward pass
    training_head: Activations  # the same where only the head is trained
    evaluation: Activations  # of an image at the widest place of a forward pass
    held: int = 0  # numbers that are made of weights for a step, as many as their gradients
    checkpointed: Activations | None = (
        None  # for the backward pass where blocks are computed again; None: it has no blocks
    )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that is needed to build a model and to count its parameters. A family's own class adds its dimensions.

    Which of its keys say what weights are stands on their lines: those that are `fixed` by a checkpoint. A key that another
    family has as well is of the same kind there.
    """

    family: str = key("vit", "family of architectures (families/table.py)", fixed=True, settable=False)
    name: str = key("", "the model's name, from which its dimensions follow", fixed=True)
    img_size: Size = key((224, 224), "height and width of the images that the model takes, in pixels")
    classes: int = key(0, "outputs of the head; 0 has none. Taken from the data", least=0, settable=False)
    channels: int = key(
        RGB,
        "channels of the images that the model takes: 1 is gray, 2 gray with alpha, 3 colour, 4 colour with alpha; images of any other "
        "number are arrays (.npy)",
        least=1,
        most=MOST_CHANNELS,
        fixed=True,
        quiet=True,
    )
    channels_from: Literal["", "mean", "repeat"] = key(
        "",
        "how the patch embedding of a checkpoint that reads other channels is converted to these (model/channels.py); empty: not at all",
        quiet=True,
    )

    DIMENSIONS: ClassVar[frozenset[str]] = frozenset()
    """Keys that a name replaces where a configuration file below it gives them."""

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The architecture that `name` stands for; None where it is no name of this family. Raises UsageError where it is one, of
        something that cannot be.
        """
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """Vectors that are computed of an image at a time."""
        return 1

    @property
    def breadth(self) -> int:
        """Vectors at the widest place, by which batches for inference are sized."""
        return self.tokens

    @property
    def seen(self) -> str:
        """The tokens in words."""
        return f"{self.tokens} tokens"

    @property
    def multiple(self) -> Size:
        """Sides of an image are multiples of these."""
        return 1, 1

    @property
    def takes_any_size(self) -> bool:
        """Whether one model computes with images of other sizes, as training on smaller ones does (train.low_res)."""
        return False

    @property
    def features(self) -> int:
        """Numbers that the head reads."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return f"model of the family {self.family}"

    @property
    def has_attention(self) -> bool:
        return False

    @property
    def reads_pixels(self) -> bool:
        """Whether a patch is of the image."""
        return False

    @property
    def reader(self) -> str:
        """The name of the filters that read the image's pixels, [filters, channels, rows, columns]; empty where there are none."""
        return ""

    def spelled(self) -> str:
        """The name by these dimensions, which `parse` reads."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises UsageError where the dimensions do not fit together, or no machine holds them."""
        check_bounds("model", self)
        if self.channels != RGB and not self.reads_pixels:
            raise UsageError(
                f"model.channels = {self.channels}: {self.name} takes images of {RGB} channels alone",
                "a Vision Transformer whose patches are of the image takes any",
            )

    def cost(self) -> Cost:
        raise NotImplementedError

    def shapes(self) -> dict[str, Shape]:
        """Every tensor of the model by its name."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """Further fields of `vit info --json`."""
        return {}

    def resampled_from(self, old: Self) -> str:
        """What becomes of the weights of the same model at another image size, in words; empty where they stay as they are."""
        return ""

    def sized(self) -> str:
        """What an image is cut into, in words; empty where it is not."""
        return ""

    def published(self) -> Self:
        """As the code behind the published recipes builds a model of this name."""
        return self

    def without_dropout(self) -> Self:
        """Without what a recipe adds for training."""
        return self

    def with_head(self, classes: int, kept: bool) -> Self:
        """With so many outputs; a head that is not `kept` has no layers of its own before it."""
        return dataclasses.replace(self, classes=classes)

    def with_patch(self, patch: Size) -> Architecture:
        """The same for patches of another size. Raises UsageError for a model that has none."""
        raise UsageError(f"{self.name} has no patches", "leave --patch-size out")

    def suited_to(self, img_size: Size) -> Self:
        """As it suits images of such a size, where its name leaves that open."""
        return self

    def completed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The values of `model.` that were asked for, with what follows from them."""
        return asked

    @classmethod
    def fixed(cls) -> frozenset[str]:
        """Keys whose values a checkpoint fixes."""
        return frozenset(name for name, about in keys(cls) if about.fixed)
