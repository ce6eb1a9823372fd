"""Batches by step number: order, addresses, reading ahead."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import draw_image
from vitcli.config import AugmentConfig, Config, DataConfig, EvalConfig, RunConfig, TrainConfig, model_config
from vitcli.data import loader as loader_module
from vitcli.data.batch import Batch
from vitcli.data.cache import open_images, working_view
from vitcli.data.loader import Order, TrainLoader
from vitcli.data.prefetch import ahead
from vitcli.data.sources import open_source
from vitcli.errors import DataError

# --- order ---------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 60), epochs=st.integers(1, 4), seed=st.integers(0, 1000), size=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_every_sample_comes_once_an_epoch(n: int, epochs: int, seed: int, size: int) -> None:
    order = Order(n, seed)
    starts = range(0, n * epochs, size)
    parts = [order.take(start, min(size, n * epochs - start)) for start in starts]
    samples, where = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    np.testing.assert_array_equal(where, np.repeat(np.arange(epochs), n))
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(samples[where == epoch]), np.arange(n))


def test_batches_run_across_the_end_of_an_epoch() -> None:
    samples, epochs = Order(10, 0).take(7, 16)
    assert epochs.tolist() == [0] * 3 + [1] * 10 + [2] * 3
    np.testing.assert_array_equal(samples[:3], Order(10, 0).take(0, 10)[0][7:])
    np.testing.assert_array_equal(np.sort(samples[3:13]), np.arange(10))


def test_order_differs_by_epoch_and_seed_and_repeats() -> None:
    samples, _ = Order(100, 0).take(0, 200)
    assert (samples[:100] == samples[100:]).mean() < 0.1
    assert (samples[:100] == Order(100, 1).take(0, 100)[0]).mean() < 0.1
    np.testing.assert_array_equal(Order(100, 0).take(0, 200)[0], samples)
    assert (samples[:100] == np.arange(100)).mean() < 0.1


LABELS = np.array([0] * 50 + [1] * 3 + [4] * 11)


def test_balanced_order_draws_classes_equally_often() -> None:
    samples, epochs = Order(len(LABELS), 0, LABELS).take(0, 300)
    for start in range(0, 300, 3):
        assert sorted(LABELS[samples[start : start + 3]]) == [0, 1, 4]
    assert len({tuple(LABELS[samples[s : s + 3]]) for s in range(0, 300, 3)}) > 3  # rounds are shuffled
    assert len(set(zip(samples, epochs, strict=True))) == 300  # no sample twice in one epoch of its class
    assert set(samples[:150][LABELS[samples[:150]] == 0]) == set(range(50))
    assert np.bincount(samples[LABELS[samples] == 1], minlength=53)[50:].tolist() in (
        [34, 33, 33],
        [33, 34, 33],
        [33, 33, 34],
    )


@given(start=st.integers(0, 500), count=st.integers(1, 60), balanced=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_part_of_the_order_can_be_taken_alone(start: int, count: int, balanced: bool) -> None:
    labels = LABELS if balanced else None
    whole = Order(len(LABELS), 5, labels).take(0, 560)
    part = Order(len(LABELS), 5, labels).take(start, count)
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b[start : start + count])


@given(n=st.integers(1, 60), repeats=st.integers(1, 5), seed=st.integers(0, 1000), balanced=st.booleans())
@settings(max_examples=50, deadline=None)
def test_repeats_come_in_a_row_and_an_epoch_keeps_its_length(n: int, repeats: int, seed: int, balanced: bool) -> None:
    labels = np.arange(n) % 3 if balanced else None
    order, once = Order(n, seed, labels, repeats), Order(n, seed, labels)
    (samples, epochs), copies = order.take(0, 3 * n), order.copies(0, 3 * n)
    for epoch in range(3):
        places = slice(epoch * n, (epoch + 1) * n)
        if balanced:  # an endless sequence, whose epochs are of classes
            continue
        np.testing.assert_array_equal(epochs[places], epoch)
        np.testing.assert_array_equal(samples[places], np.repeat(once.take(epoch * n, n)[0], repeats)[:n])
        np.testing.assert_array_equal(copies[places], np.arange(n) % repeats)
    if balanced:
        np.testing.assert_array_equal(samples, np.repeat(once.take(0, 3 * n)[0], repeats)[: 3 * n])
    assert len(set(zip(samples, epochs, copies, strict=True))) == 3 * n  # no augmentation comes twice
    for start in (0, 1, n, 2 * n - 1):
        for a, b in zip(order.take(start, n), (samples, epochs), strict=True):
            np.testing.assert_array_equal(a, b[start : start + n])
        np.testing.assert_array_equal(order.copies(start, n), copies[start : start + n])


# --- batches -------------------------------------------------------------------------------------------------

Make = Callable[..., TrainLoader]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12, 5 and 4 images, of which two cannot be read."""
    root = tmp_path_factory.mktemp("loader") / "data"
    for colour, (name, count) in enumerate((("blue", 12), ("green", 5), ("red", 4))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            draw_image(colour, index).save(root / name / f"{index:02}.png")
    (root / "blue" / "03.png").write_bytes(b"broken")
    (root / "red" / "00.png").write_bytes(b"broken")
    return root


AUGMENT = AugmentConfig(randaugment_layers=1, erase=0.25, mixup=0.2)


@pytest.fixture
def make(folder: Path) -> Make:
    def loader(seed: int = 0, workers: int = 0, augment: AugmentConfig = AUGMENT, size: int = 8, where: Any = "auto",
               **data: Any) -> TrainLoader:  # fmt: skip
        config = Config(
            run=RunConfig(seed=seed),
            model=model_config("mu/4", (12, 12), 3),
            data=DataConfig(source=str(folder), workers=workers, on_bad_image="skip", **data),
            augment=augment,
            train=TrainConfig(batch_size=size),
            eval=EvalConfig(),
        )
        part = open_source(config.data).split("all")
        images = open_images(part, working_view((12, 12), True, (12, 12), augment), config.data, where=where)
        return TrainLoader(images, part.labels, config, torch.device("cpu"))

    return loader


def assert_equal(a: Batch, b: Batch) -> None:
    assert len(a.views) == len(b.views)
    for x, y in zip(a.views, b.views, strict=True):
        assert torch.equal(x, y)
    for name in ("labels", "ids", "partner_labels"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or torch.equal(x, y)
    assert a.weight == b.weight


def some(loader: TrainLoader, start: int, count: int) -> list[Batch]:
    batches = loader.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_a_batch_does_not_depend_on_what_came_before(make: Make) -> None:
    first = make()
    for step in range(12):
        first.batch(step)
    late = first.batch(5)
    assert_equal(late, make().batch(5))
    assert_equal(late, first.batch(5))


def test_an_epoch_has_every_readable_image_with_its_own_label_and_pixels(make: Make) -> None:
    loader = make(augment=AugmentConfig(crop="none", flip=0), size=19)
    taken = loader.batch(0)
    assert sorted(taken.ids.tolist()) == [i for i in range(21) if i not in (3, 17)]
    labels = [0] * 12 + [1] * 5 + [2] * 4
    assert taken.labels is not None
    assert taken.labels.tolist() == [labels[i] for i in taken.ids.tolist()]
    index = {0: 0, 1: 12, 2: 17}
    for row, image in enumerate(taken.images):
        label, id_ = int(taken.labels[row]), int(taken.ids[row])
        expected = np.asarray(draw_image(label, id_ - index[label]))
        shown = (image.permute(1, 2, 0) * 0.5 + 0.5) * 255
        np.testing.assert_allclose(shown.numpy(), expected, atol=0.01)


def test_a_subset_keeps_the_rows_of_the_data_as_ids(make: Make, folder: Path) -> None:
    loader = make(augment=AugmentConfig())
    part = open_source(DataConfig(source=str(folder))).split("all").subset(np.array([20, 4, 13]))
    images = open_images(part, loader.images.view, loader.config.data)
    taken = TrainLoader(images, part.labels, loader.config, torch.device("cpu")).batch(0)
    assert set(taken.ids.tolist()) == {20, 4, 13}
    assert taken.labels is not None
    assert {(int(i), int(label)) for i, label in zip(taken.ids, taken.labels, strict=True)} == {
        (20, 2),
        (4, 0),
        (13, 1),
    }


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("where", ["cached", "decode"])
def test_workers_and_the_cache_do_not_change_a_batch(make: Make, workers: int, where: Any) -> None:
    reference = make()
    for step, taken in enumerate(some(make(workers=workers, where=where), 2, 4), 2):
        assert_equal(taken, reference.batch(step))


@pytest.mark.parametrize("crop", ["pad", "resized", "random", "none"])
@pytest.mark.parametrize("together", [1, 64, 1024])
def test_batches_augmented_together_are_those_of_each_step(
    make: Make, monkeypatch: pytest.MonkeyPatch, together: int, crop: Any
) -> None:
    """Wherever a run starts, and so wherever the groups of batches begin."""
    monkeypatch.setattr(loader_module, "_IMAGES_TOGETHER", together)
    augment = AugmentConfig(
        crop=crop, randaugment_layers=2, randaugment_magnitude=10, erase=0.5, mixup=0.2, cutmix=1.0, views=2
    )
    loader = make(augment=augment, size=6)
    assert loader._together() == {1: 1, 64: 10, 1024: 170}[together]
    steps = 14
    reference = [loader.batch(step) for step in range(steps)]
    assert all(len(batch.views) == 2 for batch in reference)
    assert len({batch.weight for batch in reference}) > 5
    for start in range(steps):
        taken = some(loader, start, steps - start)
        assert len(taken) == steps - start
        for batch, alone in zip(taken, reference[start:], strict=True):
            assert_equal(batch, alone)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_groups_of_batches_run_across_the_end_of_an_epoch(
    make: Make, monkeypatch: pytest.MonkeyPatch, workers: int, balanced: bool
) -> None:
    """19 images, batches of 5, and 3 batches together, so that nothing divides anything."""
    monkeypatch.setattr(loader_module, "_IMAGES_TOGETHER", 17)
    loader = make(size=5, workers=workers, balanced=balanced)
    assert loader._together() == 3
    for start in (0, 1, 2, 10):
        for step, batch in enumerate(some(loader, start, 11), start):
            assert_equal(batch, loader.batch(step))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_images_that_lie_on_the_device_make_the_same_batches(make: Make, repeats: int, balanced: bool) -> None:
    augment = replace(AUGMENT, repeats=repeats)
    plain = make(augment=augment, size=5, balanced=balanced)
    part = open_source(plain.config.data).split("all")
    count = len(plain.drawn.positions) * 3 * 12 * 12
    resident, too_large, uncached = (
        TrainLoader(images, part.labels, plain.config, torch.device("cpu"), room=room)
        for images, room in (
            (plain.images, count),
            (plain.images, count - 1),
            (make(augment=augment, size=5, balanced=balanced, where="decode").images, count),
        )
    )
    assert resident.is_resident and not too_large.is_resident and not uncached.is_resident and not plain.is_resident
    for step, batch in enumerate(some(resident, 2, 12), 2):
        reference = plain.batch(step)
        assert_equal(batch, reference)
        assert_equal(too_large.batch(step), reference)
        assert np.array_equal(plain.ids(step), reference.ids.numpy())


def test_unlabelled_batches_can_be_augmented_together(make: Make) -> None:
    loader = make(size=4)
    unlabelled = TrainLoader(loader.images, None, loader.config, torch.device("cpu"))
    for step, batch in enumerate(some(unlabelled, 1, 5), 1):
        assert batch.labels is None
        assert_equal(batch, unlabelled.batch(step))


def test_a_batch_that_is_written_to_does_not_change_the_next(make: Make) -> None:
    for augment in (AugmentConfig(), AUGMENT):
        loader = make(augment=augment, size=4)
        for step, batch in enumerate(some_one_by_one(loader, 5)):
            assert_equal(batch, loader.batch(step))
            for view in batch.views:
                view.zero_()
            assert batch.labels is not None
            batch.labels.zero_()


def some_one_by_one(loader: TrainLoader, count: int) -> Iterator[Batch]:
    """Each only once the one before has been used."""
    with contextlib.closing(loader.batches(0)) as batches:
        yield from itertools.islice(batches, count)


@pytest.mark.parametrize("size", [1, 8, 100, 300, 1000, 3000])
@pytest.mark.parametrize("together", [1024, 10**9])
def test_what_waits_is_bounded_in_memory(make: Make, monkeypatch: pytest.MonkeyPatch, size: int, together: int) -> None:
    """A batch at least is read ahead, whatever its size."""
    seen: list[tuple[list[int], int]] = []

    def record(read: Any, numbers: Any, depth: int) -> Iterator[Any]:
        seen.append((list(itertools.islice(numbers, 3)), depth))
        yield from ()

    monkeypatch.setattr(loader_module, "_IMAGES_TOGETHER", together)
    monkeypatch.setattr(loader_module, "_BYTES_TOGETHER", 10**12)
    monkeypatch.setattr(loader_module, "ahead", record)
    loader = make(workers=2, memory_mb=1, size=size)
    assert list(loader.batches(7)) == []
    ((numbers, depth),) = seen
    count = numbers[1] - numbers[0]
    assert numbers == [7, 7 + count, 7 + 2 * count]
    assert count == loader._together()
    assert depth in (1, 2)
    waiting = depth * count * size * loader.images.view.size[0] * loader.images.view.size[1] * 3
    assert waiting <= 1e6 or (depth, count) == (1, 1)
    assert count * size <= together or count == 1


def test_a_small_bound_on_memory_does_not_change_a_batch(make: Make) -> None:
    for taken, other in zip(some(make(workers=2, memory_mb=1), 0, 3), some(make(), 0, 3), strict=True):
        assert_equal(taken, other)


def test_seeds_and_epochs_differ(make: Make) -> None:
    loader = make(size=19)
    first, second = loader.batch(0), loader.batch(1)
    assert sorted(first.ids.tolist()) == sorted(second.ids.tolist())
    assert first.ids.tolist() != second.ids.tolist()
    assert make(seed=1, size=19).batch(0).ids.tolist() != first.ids.tolist()
    plain = make(size=19, augment=replace(AUGMENT, mixup=0))
    a, b = plain.batch(0), plain.batch(1)
    row = int((b.ids == a.ids[0]).nonzero())
    assert not torch.equal(a.images[0], b.images[row])


def test_views_are_of_the_same_samples(make: Make) -> None:
    taken = make(augment=replace(AUGMENT, views=3, mixup=0)).batch(0)
    assert len(taken.views) == 3
    assert not torch.equal(taken.views[0], taken.views[1])
    assert not torch.equal(taken.views[1], taken.views[2])
    assert torch.equal(taken.images, make(augment=replace(AUGMENT, mixup=0)).batch(0).images)


@pytest.mark.parametrize("where", ["cached", "decode"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("size", "repeats"), [(6, 3), (5, 3), (2, 3), (8, 2)])
def test_repeats_are_neighbours_augmented_anew_and_follow_from_the_step(
    make: Make, size: int, repeats: int, workers: int, where: Any
) -> None:
    augment = replace(AUGMENT, repeats=repeats, mixup=0)
    loader = make(augment=augment, size=size, workers=workers, where=where)
    reference = [make(augment=augment, size=size).batch(step) for step in range(6)]
    for start in (0, 3):  # as a run that is resumed starts
        for batch, alone in zip(some(loader, start, 6 - start), reference[start:], strict=True):
            assert_equal(batch, alone)
    ids = torch.cat([batch.ids for batch in reference])[:19]
    images = torch.cat([batch.images for batch in reference])[:19]
    labels = torch.cat([batch.labels for batch in reference])[:19]  # type: ignore[misc]
    once = make(augment=replace(augment, repeats=1), size=19).batch(0)
    assert once.labels is not None
    assert ids.tolist() == once.ids.repeat_interleave(repeats)[: len(ids)].tolist()
    assert labels.tolist() == once.labels.repeat_interleave(repeats)[: len(ids)].tolist()
    assert torch.equal(images[::repeats], once.images[: len(images[::repeats])])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2))


def test_repeats_are_mixed_with_another_image(make: Make) -> None:
    batch = make(augment=replace(AUGMENT, repeats=3, cutmix=1.0), size=18).batch(0)
    assert batch.labels is not None and batch.partner_labels is not None
    assert batch.partner_labels.tolist() == batch.labels.roll(3).tolist()


def test_balanced_batches(make: Make) -> None:
    loader = make(size=9, balanced=True)
    for step in range(5):
        labels = loader.batch(step).labels
        assert labels is not None
        assert torch.bincount(labels).tolist() == [3, 3, 3]


def test_unlabelled_data_has_batches_too(make: Make) -> None:
    loader = make()
    unlabelled = TrainLoader(loader.images, None, loader.config, torch.device("cpu")).batch(1)
    assert unlabelled.labels is None
    assert unlabelled.partner_labels is None
    assert unlabelled.ids.tolist() == loader.batch(1).ids.tolist()


def test_the_position_is_the_step(make: Make) -> None:
    loader = make()
    assert loader.restore(loader.state(7)) == 7
    assert loader.epoch(19) == 8.0
    assert_equal(some(loader, loader.restore(loader.state(7)), 1)[0], loader.batch(7))


def test_a_batch_larger_than_the_data_straddles_epochs(make: Make) -> None:
    ids = make(size=50).batch(0).ids.tolist()
    assert len(ids) == 50
    assert sorted(ids[:19]) == sorted(ids[19:38])


# --- reading ahead -------------------------------------------------------------------------------------------


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "vit-ahead" and t.is_alive()]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(readers())
    yield
    assert set(readers()) <= before


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_items_come_in_order(depth: int) -> None:
    assert list(ahead(lambda n: n * n, range(20), depth)) == [n * n for n in range(20)]
    assert list(ahead(lambda n: n, [], depth)) == []


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_error_while_reading_reaches_the_caller_in_its_place(depth: int) -> None:
    def make(number: int) -> int:
        if number == 3:
            raise DataError("cannot read image cat.jpg")
        return number

    items = ahead(make, itertools.count(), depth)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"cat\.jpg"):
        next(items)
    assert not readers()
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("depth", [1, 2])
def test_no_more_is_made_ahead_than_stated(depth: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    items = ahead(make, itertools.count(), depth)
    next(items)
    time.sleep(0.2)
    assert 1 + depth <= len(made) <= 2 + depth  # taken, waiting, and one in the hand
    items.close()


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_closing_ends_the_thread(taken: int) -> None:
    items = ahead(lambda n: n, itertools.count(), 2)
    for _ in range(taken):
        next(items)
    started = time.perf_counter()
    items.close()
    assert time.perf_counter() - started < 2
    assert not readers()


def test_a_loader_that_is_closed_or_dropped_leaves_no_thread(make: Make) -> None:
    batches = make(workers=2).batches(0)
    next(batches)
    assert len(readers()) == 1
    batches.close()
    assert not readers()
    dropped = make(workers=2).batches(0)
    next(dropped)
    del dropped
    assert not readers()


def test_an_unreadable_image_stops_training_with_its_name(make: Make, folder: Path, tmp_path: Path) -> None:
    loader = make(workers=2)
    strict = replace(loader.config.data, on_bad_image="error")
    images = open_images(loader.images.split, loader.images.view, strict, where="decode")
    batches = TrainLoader(images, loader.images.split.labels, loader.config, torch.device("cpu")).batches(0)
    with pytest.raises(DataError, match=r"(blue.03|red.00)\.png"):
        for _ in range(5):
            next(batches)
