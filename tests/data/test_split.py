"""Parts of a split: every class has its share, and nothing is in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitcli.config import DataConfig
from vitcli.data.identity import Contents
from vitcli.data.sources import open_source
from vitcli.data.split import Split, by_class, dev_split, stratified


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
