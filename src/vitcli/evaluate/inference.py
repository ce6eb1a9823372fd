"""A trained model with all that it takes to ask it about images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitcli import world
from vitcli.config import DataConfig, EvalConfig
from vitcli.data.batch import normalise_, to_float
from vitcli.data.cache import Images, open_images
from vitcli.data.decode import View, eval_view
from vitcli.data.prefetch import ahead
from vitcli.data.split import Split
from vitcli.errors import CheckpointError
from vitcli.evaluate.outputs import Outputs
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier
from vitcli.model.held import frozen
from vitcli.model.vit import ViT
from vitcli.progress import Progress, silent

Pixels = Float[Tensor, "batch channels height width"]

_TOKENS_AT_ONCE = {"cpu": 16_384, "mps": 32_768, "cuda": 131_072}
"""On two AVX512-BF16 cores ViT-S/16 is as fast with 16 images as with 256, ViT-Ti/4 at 32 px from 64 on."""


def batch_size(device: str, tokens: int) -> int:
    """Images at a time: a power of two, 16 to 1024, from which on the device gets no faster."""
    return int(2 ** min(10, max(4, round(math.log2(_TOKENS_AT_ONCE[device] / tokens)))))


def alike(inference: Inference, images: Images, positions: NDArray[np.int64], ask: Ask) -> None:
    """The team of processes that all do the same, so that none needs to be told."""


def _nothing() -> None:
    """What a process computes that has no batch of its own."""


def logits_of(model: Classifier, images: Pixels, bf16: bool, views: int) -> Float[Tensor, "batch classes"]:
    """Logits in float32; with two views the mean over the image and its mirror image.

    A compiled model is run as it stands: compiling it once more for measuring would cost more than it gives.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        result: Tensor = model.forward(images).float()
        if views == 2:
            result = (result + model.forward(images.flip(3)).float()) / 2
    return result


Ask = Literal["logits", "features"]
"""A method of Inference that says something of each image."""
Team = Callable[["Inference", Images, NDArray[np.int64], Ask], None]
"""Tells the other processes what they are to compute with this one."""


@dataclass(frozen=True, eq=False)
class Inference:
    """`preprocessing` is how the model wants its images, `data` how they are read, `outputs` which classes count; None: all. Where there is
    a `team`, `each` is computed by all processes.
    """

    model: Classifier
    preprocessing: EvalConfig
    data: DataConfig
    machine: Machine
    progress: Progress = silent
    outputs: Outputs | None = None
    team: Team | None = field(default=None, kw_only=True)

    @property
    def classes(self) -> int:
        """That are told apart."""
        return self.model.config.classes if self.outputs is None else len(self.outputs.classes)

    @property
    def view(self) -> View:
        return eval_view(self.model.config.img_size, self.preprocessing)

    @property
    def batch_size(self) -> int:
        return self.preprocessing.batch_size or batch_size(self.machine.device.type, self.model.config.breadth)

    def open(self, split: Split) -> Images:
        """The images of a split as the model sees them. Raises DataError."""
        return open_images(split, self.view, self.data, self.progress, where="decode")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within it the weights do not change, and no gradient is kept."""
        with torch.inference_mode(), frozen(self.model.eval(), self.machine.bf16):
            yield

    def normalised(self, pixels: Int[Tensor, "batch channels height width"]) -> Pixels:
        """Decoded pixels as the model takes them, on its device."""
        return normalise_(to_float(pixels.to(self.machine.device)), self.preprocessing)

    def batches(
        self, images: Images, positions: NDArray[np.int64], what: str = "evaluating"
    ) -> Generator[tuple[NDArray[np.int64], Pixels], None, None]:
        """(positions, images ready for the model), the next ones decoded while these are worked on."""
        parts = self._parted(positions)

        def read(index: int) -> Tensor:
            return torch.from_numpy(images.read(parts[index])[0])

        done = 0
        depth = 2 if images.config.workers != 0 else 0
        with contextlib.closing(ahead(read, range(len(parts)), depth)) as decoded:
            for here, pixels in zip(parts, decoded, strict=True):
                yield here, self.normalised(pixels)
                done += len(here)
                self.progress(what, done, len(positions))

    def _parted(self, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        size = self.batch_size
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def each(
        self, images: Images, positions: NDArray[np.int64], ask: Ask, what: str = "evaluating"
    ) -> Generator[tuple[NDArray[np.int64], Tensor], None, None]:
        """(positions, what is asked of the images there), on the CPU, a batch at a time and in order.

        Of several processes each computes whole batches, every one the same as a process alone would, so that the results are the same
        to the bit for any number of them; all of them see all results. Raises what any of them raises.
        """
        if self.team is not None:
            self.team(self, images, positions, ask)
            yield from self._dealt(images, positions, ask, what)
            return
        for here, pixels in self.batches(images, positions, what):
            yield here, getattr(self, ask)(pixels).cpu()

    def _dealt(
        self, images: Images, positions: NDArray[np.int64], ask: Ask, what: str
    ) -> Generator[tuple[NDArray[np.int64], Tensor], None, None]:
        size, rank, parts = world.world().size, world.world().rank, self._parted(positions)
        own = parts[rank::size]
        others_wait = False
        with contextlib.closing(self.batches(images, np.concatenate(own) if own else positions[:0], what)) as batches:
            try:
                for start in range(0, len(parts), size):
                    others_wait = False
                    if not world.told(True):
                        return
                    here = parts[start : start + size]
                    work = partial(self._of_next, batches, ask) if rank < len(here) else _nothing
                    results = world.each_does(work)[: len(here)]
                    others_wait = start + size < len(parts)
                    yield from zip(here, results, strict=True)
            finally:
                if others_wait and rank == 0:
                    world.told(False)

    def _of_next(self, batches: Iterator[tuple[NDArray[np.int64], Pixels]], ask: Ask) -> Tensor:
        found: Tensor = getattr(self, ask)(next(batches)[1]).cpu()
        return found

    def logits(self, images: Pixels) -> Float[Tensor, "batch classes"]:
        """In float32, of the classes that count, divided by `eval.temperature`; with `eval.views = 2` the mean over the image and its
        mirror image.
        """
        return self._counted(logits_of(self.model, images, self.machine.bf16, self.preprocessing.views))

    def logits_of_features(
        self, images: Pixels, features: Float[Tensor, "batch inputs"]
    ) -> Float[Tensor, "batch classes"]:
        """As `logits`, of images whose features are known: a single head reads nothing else."""
        if len(self.model.heads) != 1:
            return self.logits(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.machine.bf16):
            return self._counted(self.model.heads[0](features).float())

    def _counted(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
        found = logits if self.outputs is None else self.outputs.logits(logits)
        return found if self.preprocessing.temperature == 1 else found / self.preprocessing.temperature

    def features(self, images: Pixels) -> Float[Tensor, "batch inputs"]:
        """What the head reads, in float32; of two views the mean, of which a linear head makes the mean of their logits."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.machine.bf16):
            found = self.model.features(images).float()
            if self.preprocessing.views == 2:
                found = (found + self.model.features(images.flip(3)).float()) / 2
        return found

    def chances(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """The score of each class, in float64: of one among all, or of each by itself where the model's labels were sets."""
        return logits.double().sigmoid() if self.preprocessing.scores == "sigmoid" else logits.double().softmax(1)

    def patch_features(self, images: Pixels) -> Float[Tensor, "batch rows columns dim"]:
        """What the last block leaves of each patch, after the last LayerNorm where that stands before the pooling, in float32.

        Raises CheckpointError for a model without patches.
        """
        model = self.model
        if not isinstance(model, ViT):
            raise CheckpointError(
                f"{model.config.name} has no patches", "their features are those of Vision Transformers"
            )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.machine.bf16):
            found = model.encode(images)[:, model.config.prefix_tokens :].float()
        return found.unflatten(1, model.grid_of(images))
