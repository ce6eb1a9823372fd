"""Batches by step number: which samples, in which order, augmented how is arithmetic on (seed, step)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcli import host
from vitcli.config import Config
from vitcli.data.augment import Augmenter, mixed, partners
from vitcli.data.batch import Batch, one_hot
from vitcli.data.cache import Images
from vitcli.data.joined import Drawn, Joined
from vitcli.data.prefetch import ahead
from vitcli.data.stream import StreamOrder
from vitcli.data.stream_images import StreamImages
from vitcli.data.upload import Sent, Upload
from vitcli.randomness import permutation
from vitcli.world import World

_COPY = 2**40
"""Between the addresses of an image's repeats: more than there are images."""
_IMAGES_TOGETHER, _BYTES_TOGETHER = 1024, 16_000_000
_IMAGES_ON_GPU, _BYTES_ON_GPU = 8192, 256_000_000
"""What is augmented at once: on a CPU what its caches hold, on a GPU what makes its launches few."""
_SOON = 8
"""Batches for which the groups of rows of a stream are read ahead."""
_AT_ONCE = 4096
"""Images that are read at once where all of them go to the device."""


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
    """The batches of a run. Its only state is the step number.

    What is known of the samples lies on the device from the first batch on: labels, addresses, and, where `room` bytes are
    enough for them, the decoded images themselves. Then a batch costs the host no more than the numbers of its samples.
    """

    def __init__(
        self,
        images: Images | Joined,
        labels: NDArray[np.int64] | NDArray[np.bool_] | None,
        config: Config,
        device: torch.device,
        drawn: Drawn | None = None,
        room: int = 0,
        *,
        world: World = World(),
    ) -> None:
        """`labels` are of every position of `images`, a number or a row of a matrix of sets; `drawn` says what an epoch draws: else each
        that can be read, once.
        """
        self._begin(images, config, device, room, labels is not None, world)
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
        self.order: Order | StreamOrder = Order(len(drawn.positions), config.run.seed, balanced, config.augment.repeats)

    def _begin(
        self,
        images: Images | Joined | StreamImages,
        config: Config,
        device: torch.device,
        room: int,
        labelled: bool,
        world: World,
    ) -> None:
        """What loaders of any images have."""
        self.images, self.config, self.device, self.room = images, config, device, room
        self.size, self.share = config.train.batch_size, world.share(config.train.batch_size)
        self.augment = Augmenter(config.augment, config.eval, config.model.img_size, config.run.seed)
        self.is_shared = world.is_shared
        self.before = partners(config.augment, labelled) if world.is_shared else 0
        self.rows = np.arange(self.share.start - self.before, self.share.stop) % self.size
        """Of the global batch that this process reads: its share, and the images that those of its share are mixed with."""
        # float64 and int64 are what addresses are mixed with; where a device has none, images are augmented by the CPU
        self.upload = Upload(host.numbers_of(device))
        self._known: _Known | None = None

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

    def ids(self, step: int) -> NDArray[np.int64]:
        """The rows in the table of the images of `step`."""
        size = self.config.train.batch_size
        samples, _ = self.order.take(step * size, size)
        return self.images.ids(self.drawn.positions[samples])

    def told(self) -> dict[str, Any]:
        """What a logged step says of reading."""
        return {}

    # --- what lies on the device ---

    @property
    def is_resident(self) -> bool:
        """Whether the images lie there: where they have room, and each is decoded once anyway."""
        pixels = math.prod(self.images.view.shape)
        return self.images.is_cached and len(self.drawn.positions) * pixels <= self.room

    def _on_device(self) -> _Known:
        """Brought there once. Raises DataError."""
        if self._known is not None:
            return self._known

        def moved(array: NDArray[Any] | None) -> Tensor | None:
            return None if array is None else self.upload.receive(self.upload.send((array,)))[0]

        pixels = sizes = None
        if self.is_resident:
            count = len(self.drawn.positions)
            shape = (count, *self.images.view.shape)
            pixels = torch.empty(shape, dtype=torch.uint8, device=self.upload.device)
            sizes = torch.empty((count, 2), dtype=torch.int32, device=self.upload.device)
            for start in range(0, count, _AT_ONCE):
                here = slice(start, start + _AT_ONCE)
                assert not isinstance(self.images, StreamImages)
                for whole, part in zip((pixels, sizes), self.images.read(self.drawn.positions[here]), strict=True):
                    whole[here] = torch.from_numpy(part).to(whole.device)
        soft = self.drawn.soft
        self._known = _Known(
            pixels,
            sizes,
            labels=moved(self.labels),
            sets=moved(self.sets),
            soft=None if soft is None else moved(soft.astype(np.float32, copy=False)),
        )
        return self._known

    # --- batches ---

    def _read(self, step: int, count: int) -> _Read:
        """On its way to the device. May be called by any thread."""
        size = self.size
        samples, epochs = (self._own(found) for found in self.order.take(step * size, count * size))
        copies = self._own(self.order.copies(step * size, count * size))
        if self.drawn.copies is not None:
            copies = copies + self.order.repeats * self.drawn.copies[samples]
        positions = self.drawn.positions[samples]
        numbers = np.stack([samples, epochs, positions, positions + _COPY * copies, self.images.ids(positions)])
        if self.is_resident:
            return _Read(step, numbers, self.upload.send((numbers,)))
        different, places = np.unique(samples, return_inverse=True) if self.order.repeats > 1 else (samples, ...)
        assert not isinstance(self.images, StreamImages)
        pixels, sizes = self.images.read(self.drawn.positions[different])
        return _Read(step, numbers, self.upload.send((numbers, pixels[places], sizes[places])))

    def _augmented(self, read: _Read) -> list[Batch]:
        """The batches of consecutive steps, augmented together and mixed one by one."""
        known = self._on_device()
        numbers, *decoded = self.upload.receive(read.sent)
        samples, epochs, positions, addresses, _ = numbers.unbind()
        if known.pixels is not None and known.sizes is not None:
            decoded = [known.pixels.index_select(0, samples), known.sizes.index_select(0, samples)]
        pixels, sizes, *with_them = decoded
        views = [self.augment(pixels, sizes, epochs, addresses, view) for view in range(self.config.augment.views)]
        labels = None if known.labels is None else known.labels.index_select(0, samples)
        labels = with_them[0] if with_them else labels
        targets = None if labels is None else self._targets(labels, positions, known.soft)
        if known.sets is not None:
            targets = known.sets.index_select(0, samples).float()
        whole = Batch(tuple(views), labels, torch.from_numpy(read.numbers[4]), targets=targets)
        count = len(samples) // len(self.rows)
        steps = torch.arange(read.step, read.step + count, device=samples.device)
        batches = mixed(whole, self.config.augment, self.config.run.seed, steps, self.before)
        if self.is_shared:
            batches = [replace(batch, start=self.share.start, whole=self.size) for batch in batches]
        return batches if self.upload.device == self.device else [batch.to(self.device) for batch in batches]

    def _own(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of numbers of consecutive global batches those of this process's rows."""
        return found.reshape(-1, self.size)[:, self.rows].flatten() if self.is_shared else found

    def _targets(self, labels: Tensor, positions: Tensor, soft: Tensor | None) -> Tensor | None:
        """The distributions that images learn, where some of them are a teacher's."""
        if soft is None:
            return None
        classes, smoothing, own = soft.shape[1], self.config.train.label_smoothing, positions - self.drawn.start
        targets = one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return torch.where(own[:, None] >= 0, soft.index_select(0, own.clamp(min=0)), targets)

    def _together(self) -> int:
        """How many batches are augmented at once: small ones cost as many calls as large ones."""
        size, on_gpu = len(self.rows), self.upload.device.type == "cuda"
        images, most = (_IMAGES_ON_GPU, _BYTES_ON_GPU) if on_gpu else (_IMAGES_TOGETHER, _BYTES_TOGETHER)
        views = (
            self.config.augment.views * 4 * self.config.model.channels * math.prod(self.config.model.img_size)
        )  # bytes of an image
        fitting = min(images // size, most // (size * views))
        return max(1, fitting if self.is_resident else min(fitting, self._memory() // 2))

    def _memory(self) -> int:
        """How many batches of decoded images data.memory_mb has room for."""
        pixels = math.prod(self.images.view.shape)
        return int(self.config.data.memory_mb * 1e6 // (len(self.rows) * pixels))

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
class _Known:
    """Of every sample, on the device."""

    pixels: Tensor | None
    sizes: Tensor | None
    labels: Tensor | None
    sets: Tensor | None
    soft: Tensor | None


@dataclass(frozen=True, eq=False)
class _Read:
    """The images of one or more consecutive steps: rows of `numbers` are samples, epochs, positions, addresses and ids. With them
    pixels as they lie in the cache and original sizes are sent, unless all of them are on the device.
    """

    step: int
    numbers: NDArray[np.int64]
    sent: Sent


class StreamLoader(TrainLoader):
    """The same of a stream, whose rows are numbered through its files, and whose labels come with the images."""

    images: StreamImages
    order: StreamOrder

    def __init__(
        self, images: StreamImages, config: Config, device: torch.device, labelled: bool, *, world: World
    ) -> None:
        self._begin(images, config, device, 0, labelled, world)
        self.order = StreamOrder(images.stream.groups, self.size, config.run.seed, config.augment.repeats)
        self._known = _Known(None, None, labels=None, sets=None, soft=None)
        self.labelled = labelled

    @property
    def is_resident(self) -> bool:
        return False

    def ids(self, step: int) -> NDArray[np.int64]:
        return self.order.take(step * self.size, self.size)[0]

    def told(self) -> dict[str, Any]:
        traffic = self.images.stream.shards.traffic
        return {"read_bytes": traffic.bytes, "read_retries": traffic.retries}

    def batches(self, start: int) -> Generator[Batch, None, None]:
        try:
            yield from super().batches(start)
        finally:
            self.images.reader.close()

    def _read(self, step: int, count: int) -> _Read:
        rows, epochs = (self._own(found) for found in self.order.take(step * self.size, count * self.size))
        self.images.reader.need(self._groups(step, count), self._groups(step + count, max(count, _SOON)))
        copies = self._own(self.order.copies(step * self.size, count * self.size))
        numbers = np.stack([rows, epochs, rows, rows + _COPY * copies, rows])
        different, places = np.unique(rows, return_inverse=True) if self.order.repeats > 1 else (rows, ...)
        pixels, sizes, labels = self.images.read(different)
        arrays = (numbers, pixels[places], sizes[places])
        return _Read(
            step,
            numbers,
            self.upload.send((*arrays, labels[places]) if labels is not None and self.labelled else arrays),
        )

    def _groups(self, step: int, count: int) -> set[int]:
        """The groups of rows that this process needs for these batches."""
        chosen = np.zeros(self.size, bool)
        chosen[self.rows] = True
        return self.order.windows(step * self.size, count * self.size, np.tile(chosen, count))
