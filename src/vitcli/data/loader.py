"""Batches by step number: which samples, in which order, augmented how is arithmetic on (seed, step)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import Config
from vitcli.data.augment import Augmenter, mix
from vitcli.data.batch import Batch
from vitcli.data.cache import Images
from vitcli.data.joined import Drawn, Joined
from vitcli.data.prefetch import ahead
from vitcli.randomness import permutation

_COPY = 2**40
"""Between the addresses of an image's repeats: more than there are images."""
_IMAGES_TOGETHER, _BYTES_TOGETHER = 1024, 16_000_000


class Order:
    """Sample numbers 0..n-1, shuffled anew each epoch, as one endless sequence.

    With `labels`, every class comes equally often: the sequence runs through the classes in shuffled rounds, and
    each class through its own shuffled samples. With `repeats`, each sample comes so often in a row, and an epoch of n places
    ends before all samples had their turn (Hoffer et al., 2020; facebookresearch/deit samplers.py).
    """

    def __init__(self, n: int, seed: int, labels: NDArray[np.int64] | None = None, repeats: int = 1) -> None:
        self.n, self.seed, self.repeats = n, seed, repeats
        self.members = None if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self._shuffled = lru_cache(maxsize=8 if labels is None else 4096)(self._shuffle)

    def _shuffle(self, purpose: str, epoch: int, n: int) -> NDArray[np.int64]:
        return permutation(self.seed, purpose, epoch, n)

    def take(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(samples, epochs) at places start .. start + count - 1; a sample never comes again in one epoch, repeats aside."""
        places = np.arange(start, start + count)
        if self.members is None:
            epochs, within = places // self.n, places % self.n
            samples = np.empty(count, np.int64)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                samples[here] = self._shuffled("order", int(epoch), self.n)[within[here] // self.repeats]
            return samples, epochs
        pairs = [self._balanced(int(place) // self.repeats) for place in places]
        return np.array([s for s, _ in pairs], np.int64), np.array([e for _, e in pairs], np.int64)

    def copies(self, start: int, count: int) -> NDArray[np.int64]:
        """Which of its repeats, from 0, a sample is at each of these places."""
        places = np.arange(start, start + count)
        return (places if self.members is not None else places % self.n) % self.repeats

    def _balanced(self, place: int) -> tuple[int, int]:
        assert self.members is not None
        turn, within = divmod(place, len(self.members))
        index = int(self._shuffled("classes", turn, len(self.members))[within])
        members = self.members[index]
        epoch, position = divmod(turn, len(members))
        return int(members[self._shuffled(f"class-{index}", epoch, len(members))[position]]), epoch


class TrainLoader:
    """The batches of a run. Its only state is the step number."""

    def __init__(
        self,
        images: Images | Joined,
        labels: NDArray[np.int64] | NDArray[np.bool_] | None,
        config: Config,
        device: torch.device,
        drawn: Drawn | None = None,
    ) -> None:
        """`labels` are of every position of `images`, a number or a row of a matrix of sets; `drawn` says what an epoch draws: else each
        that can be read, once.
        """
        self.images, self.config, self.device = images, config, device
        if drawn is None:
            assert isinstance(images, Images)
            drawn = Drawn(images.valid)
        self.drawn = drawn
        of_drawn = None if labels is None else labels[drawn.positions]
        self.sets = of_drawn if of_drawn is not None and of_drawn.ndim == 2 else None
        self.labels: NDArray[np.int64] | None = None
        if of_drawn is not None and self.sets is None:
            self.labels = of_drawn.astype(np.int64, copy=False)
        balanced = self.labels if config.data.balanced else None
        self.order = Order(len(drawn.positions), config.run.seed, balanced, config.augment.repeats)
        self.augment = Augmenter(config.augment, config.eval, config.model.img_size, config.run.seed)

    def epoch(self, step: int) -> float:
        """Passes over the data before `step`."""
        return step * self.config.train.batch_size / len(self.images)

    def state(self, step: int) -> dict[str, Any]:
        """The position in the data, to be stored and given back."""
        return {"step": step}

    def restore(self, state: dict[str, Any]) -> int:
        return int(state["step"])

    def batch(self, step: int) -> Batch:
        """The global batch of `step`, augmented and mixed, on the device. Raises DataError."""
        return self._augmented(self._read(step, 1))[0]

    def _read(self, step: int, count: int) -> _Read:
        size = self.config.train.batch_size
        samples, epochs = self.order.take(step * size, count * size)
        different, places = np.unique(samples, return_inverse=True) if self.order.repeats > 1 else (samples, ...)
        pixels, sizes = self.images.read(self.drawn.positions[different])
        copies = self.order.copies(step * size, count * size)
        if self.drawn.copies is not None:
            copies = copies + self.order.repeats * self.drawn.copies[samples]
        addresses = self.drawn.positions[samples] + _COPY * copies
        return _Read(step, samples, epochs, addresses, np.ascontiguousarray(pixels[places]), sizes[places])

    def _augmented(self, read: _Read) -> list[Batch]:
        """The batches of consecutive steps, augmented together and mixed one by one."""
        positions = self.drawn.positions[read.samples]
        pixels = torch.from_numpy(read.pixels)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        pixels = pixels.to(self.device)
        views = [
            self.augment(pixels, read.sizes, read.epochs, read.addresses, view)
            for view in range(self.config.augment.views)
        ]
        labels = None if self.labels is None else torch.from_numpy(self.labels[read.samples]).to(self.device)
        ids = torch.from_numpy(self.images.ids(positions))
        targets = None if labels is None else self._targets(labels, positions)
        if self.sets is not None:
            targets = torch.from_numpy(self.sets[read.samples].astype(np.float32)).to(self.device)
        whole, size = Batch(tuple(views), labels, ids, targets=targets), self.config.train.batch_size
        return [
            mix(whole.rows(slice(i * size, (i + 1) * size)), self.config.augment, self.config.run.seed, read.step + i)
            for i in range(len(positions) // size)
        ]

    def _targets(self, labels: Tensor, positions: NDArray[np.int64]) -> Tensor | None:
        """The distributions that images learn, where some of them are a teacher's."""
        soft, start = self.drawn.soft, self.drawn.start
        if soft is None:
            return None
        classes, smoothing = soft.shape[1], self.config.train.label_smoothing
        targets = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
        own = positions >= start
        targets[torch.from_numpy(own).to(labels.device)] = torch.from_numpy(soft[positions[own] - start]).to(
            labels.device
        )
        return targets

    def _together(self) -> int:
        """How many batches are augmented at once: small ones cost as many calls as large ones."""
        size = self.config.train.batch_size
        views = self.config.augment.views * 12 * math.prod(self.config.model.img_size)  # bytes of an image
        fitting = min(_IMAGES_TOGETHER // size, _BYTES_TOGETHER // (size * views))
        return max(1, min(fitting, self._memory() // 2))

    def _memory(self) -> int:
        """How many batches of decoded images data.memory_mb has room for."""
        pixels = 3 * math.prod(self.images.view.size)
        return int(self.config.data.memory_mb * 1e6 // (self.config.train.batch_size * pixels))

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Batches from `start` on, without end. With workers, the images of the next ones are read meanwhile.

        Only reading and decoding are done ahead: augmentation is torch's work, and on a CPU a second thread of
        it would halve the speed of both, since each brings its own team of threads.
        """
        count = self._together()
        depth = min(2, max(1, self._memory() // count)) if self.config.data.workers != 0 else 0
        read = partial(self._read, count=count)
        with contextlib.closing(ahead(read, itertools.count(start, count), depth)) as reads:
            for group in reads:
                yield from self._augmented(group)


@dataclass(frozen=True, eq=False)
class _Read:
    """The images of one or more consecutive steps as they lie in the cache, with their addresses."""

    step: int
    samples: NDArray[np.int64]
    epochs: NDArray[np.int64]
    addresses: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int32]
