"""Batches by step number: which samples, in which order, augmented how is arithmetic on (seed, step)."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vitcli.config import Config
from vitcli.data.augment import Augmenter, Batch, mix
from vitcli.data.cache import Images
from vitcli.randomness import permutation


class Order:
    """Sample numbers 0..n-1, shuffled anew each epoch, as one endless sequence.

    With `labels`, every class comes equally often: the sequence runs through the classes in shuffled rounds, and
    each class through its own shuffled samples.
    """

    def __init__(self, n: int, seed: int, labels: NDArray[np.int64] | None = None) -> None:
        self.n, self.seed = n, seed
        self.members = None if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self._shuffled = lru_cache(maxsize=8 if labels is None else 4096)(self._shuffle)

    def _shuffle(self, purpose: str, epoch: int, n: int) -> NDArray[np.int64]:
        return permutation(self.seed, purpose, epoch, n)

    def take(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(samples, epochs) at places start .. start + count - 1; a sample never comes twice in one epoch."""
        places = np.arange(start, start + count)
        if self.members is None:
            epochs, within = places // self.n, places % self.n
            samples = np.empty(count, np.int64)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                samples[here] = self._shuffled("order", int(epoch), self.n)[within[here]]
            return samples, epochs
        pairs = [self._balanced(int(place)) for place in places]
        return np.array([s for s, _ in pairs], np.int64), np.array([e for _, e in pairs], np.int64)

    def _balanced(self, place: int) -> tuple[int, int]:
        assert self.members is not None
        turn, within = divmod(place, len(self.members))
        index = int(self._shuffled("classes", turn, len(self.members))[within])
        members = self.members[index]
        epoch, position = divmod(turn, len(members))
        return int(members[self._shuffled(f"class-{index}", epoch, len(members))[position]]), epoch


class TrainLoader:
    """The batches of a run. Its only state is the step number."""

    def __init__(self, images: Images, labels: NDArray[np.int64] | None, config: Config, device: torch.device) -> None:
        self.images, self.config, self.device = images, config, device
        self.labels = None if labels is None else labels[images.valid]
        self.order = Order(len(images), config.run.seed, self.labels if config.data.balanced else None)
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
        size = self.config.train.batch_size
        samples, epochs = self.order.take(step * size, size)
        positions = self.images.valid[samples]
        pixels, sizes = self.images.read(positions)
        on_device = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        views = tuple(self.augment(on_device, sizes, epochs, positions, view) for view in range(self.config.augment.views))
        labels = None if self.labels is None else torch.from_numpy(self.labels[samples]).to(self.device)
        ids = torch.from_numpy(self.images.split.rows[positions])
        return mix(Batch(views, labels, ids), self.config.augment, self.config.run.seed, step)

    def batches(self, start: int) -> Iterator[Batch]:
        """Batches from `start` on, without end. With workers, the next ones are made while this one trains."""
        height, width = self.config.model.img_size
        size = self.config.train.batch_size * 3 * height * width * 4 * self.config.augment.views
        fitting = int(self.config.data.memory_mb * 1e6 // size)
        return ahead(self.batch, itertools.count(start), min(2, max(1, fitting)) if self.config.data.workers else 0)


T = TypeVar("T")


def ahead(make: Callable[[int], T], numbers: Iterable[int], depth: int) -> Iterator[T]:
    """make(n) for each number in order, up to `depth` of them made by a thread before they are asked for."""
    if depth == 0:
        yield from map(make, numbers)
        return
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                return waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for number in numbers:
                if stop.is_set():
                    return
                put(make(number), None)
            put(None, StopIteration())
        except BaseException as error:  # raised again where the item is asked for
            put(None, error)

    thread = threading.Thread(target=work, name="vit-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast(T, item)
    finally:
        stop.set()
        thread.join()
