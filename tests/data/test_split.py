"""Parts of a split: every class has its share, and nothing is in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitcli.config import DataConfig
from vitcli.data.identity import Contents
from vitcli.data.sources import open_source
from vitcli.data.split import Split, by_class, dev_split, fraction_of, stratified


def images_of(blobs: Sequence[bytes], labels: NDArray[np.int64] | None, names: Sequence[str] | None = None) -> Split:
    table = Dataset.from_dict({"image": [{"bytes": blob, "path": None} for blob in blobs]})
    return Split("train", table, "image", np.arange(len(blobs)), labels, Contents(rows=len(blobs), names=names))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.data())
def test_every_class_has_its_share_to_within_one_image(labels: list[int], data: st.DataObject) -> None:
    array = np.array(labels, np.int64)
    count = data.draw(st.integers(0, len(array)))
    chosen = stratified(array, count, "dev")
    assert len(np.unique(chosen)) == len(chosen) == count
    for value in np.unique(array):
        share = count * (array == value).mean()
        assert abs((array[chosen] == value).sum() - share) <= 1


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=120),
    st.floats(1e-6, 1),
    st.floats(1e-6, 1),
    st.integers(0, 2**63 - 1),
)
@settings(deadline=None)
def test_a_fraction_has_the_same_share_of_every_class_and_lies_within_a_larger(
    labels: list[int], one: float, other: float, seed: int
) -> None:
    array = np.array(labels, np.int64)
    part = images_of([bytes([i]) for i in range(len(array))], array)
    less, more = (fraction_of(part, fraction, seed) for fraction in sorted((one, other)))
    assert set(less.rows) <= set(more.rows)
    for fraction, taken in ((min(one, other), less), (max(one, other), more)):
        assert taken.labels is not None
        assert (np.diff(taken.rows) > 0).all() if len(taken) > 1 else True
        np.testing.assert_array_equal(taken.labels, array[taken.rows])
        for value in np.unique(array):
            count = (taken.labels == value).sum()
            assert count >= 1
            assert abs(count - fraction * (array == value).sum()) < 1 + 1e-9
    assert np.array_equal(fraction_of(part, one, seed).rows, fraction_of(part, one, seed).rows)


@given(classes=st.integers(1, 40), each=st.integers(1, 9), fraction=st.floats(0.01, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_many_small_classes_lose_no_more_than_their_share(classes: int, each: int, fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    part = fraction_of(images_of([b""] * len(labels), labels), fraction, seed)
    wanted = fraction * len(labels)
    assert abs(len(part) - wanted) <= 1 or (len(part) >= classes and fraction * each < 1)


@given(st.integers(1, 100), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_a_fraction_of_images_without_labels_is_drawn_from_all(n: int, one: float, other: float, seed: int) -> None:
    part = images_of([b""] * n, None)
    less, more = (fraction_of(part, fraction, seed) for fraction in sorted((one, other)))
    assert set(less.rows) <= set(more.rows)
    assert len(less) == max(1, round(min(one, other) * n))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200))
def test_the_order_by_class_is_a_permutation_of_its_own_purpose(labels: list[int]) -> None:
    array = np.array(labels, np.int64)
    order = by_class(array, "folds")
    assert sorted(order) == list(range(len(array)))
    assert (np.diff(array[order]) >= 0).all()


def test_the_dev_part_is_always_the_same_and_apart_from_the_rest(class_folders: Path) -> None:
    train = open_source(DataConfig(source=str(class_folders))).train()
    rest, dev = dev_split(train, 0.25)
    assert (len(rest), len(dev), dev.name) == (54, 18, "dev")
    assert set(rest.rows) | set(dev.rows) == set(train.rows) and not set(rest.rows) & set(dev.rows)
    assert np.bincount(dev.labels).tolist() == [6, 6, 6]
    assert np.array_equal(dev_split(train, 0.25)[1].rows, dev.rows)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_a_class_keeps_an_image_to_be_trained_on(labels: list[int], fraction: float) -> None:
    array = np.array(labels, np.int64)
    rest, dev = dev_split(images_of([bytes([i]) for i in range(len(array))], array), fraction)
    assert rest.labels is not None and set(rest.labels) == set(labels)
    assert sorted([*rest.rows, *dev.rows]) == list(range(len(array)))
