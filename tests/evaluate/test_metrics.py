"""The tally against scikit-learn and against sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor

from vitcli.evaluate.metrics import Tally


def sample(n: int, classes: int, seed: int = 0, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = sharpness * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += sharpness
    return logits, labels


def tally(logits: Tensor, labels: Tensor, *sizes: int) -> Tally:
    result, start = Tally(logits.shape[1]), 0
    for size in sizes or (len(labels),):
        result.add(logits[start : start + size], labels[start : start + size])
        start += size
    assert start == len(labels)
    return result


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Guo et al., 2017, equations 2 to 4: bin m holds the confidences in ((m-1)/M, m/M]."""
    probabilities = logits.double().softmax(1).tolist()
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels.tolist(), strict=True):
        confidence = max(row)
        place = next(m for m in range(bins) if confidence <= (m + 1) / bins or m == bins - 1)
        held[place].append((confidence, row.index(confidence) == label))
    total = 0.0
    for members in filter(None, held):
        accuracy = sum(right for _, right in members) / len(members)
        confidence = sum(c for c, _ in members) / len(members)
        total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize(("n", "classes", "seed"), [(1, 7, 0), (64, 5, 1), (500, 10, 2), (400, 101, 3)])
def test_scikit_learn_finds_the_same_numbers(n, classes, seed):
    logits, labels = sample(n, classes, seed)
    result = tally(logits, labels).result()
    probabilities, every = logits.double().softmax(1).numpy(), range(classes)
    assert result["n"] == n
    assert result["top1"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)), abs=1e-12)
    if classes > 5:
        assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5, labels=every))
    assert result["loss"] == pytest.approx(log_loss(labels, probabilities, labels=every), rel=1e-9)
    assert result["ece"] == pytest.approx(expected_calibration_error(logits, labels), abs=1e-12)


def test_accuracy_by_class_and_its_mean():
    logits, labels = sample(300, 6)
    labels = torch.where(labels == 4, 0, labels)  # an absent class
    done = tally(logits, labels)
    predicted = logits.argmax(1)
    for index, top1 in enumerate(done.per_class()):
        mine = labels == index
        expected = float((predicted[mine] == index).double().mean()) if mine.any() else None
        assert top1 == (None if expected is None else pytest.approx(expected))
    seen = predicted != 4  # scikit-learn counts classes that occur in the labels only, as we do
    assert done.per_class()[4] is None
    assert done.balanced() == pytest.approx(np.mean([v for v in done.per_class() if v is not None]))
    half = tally(logits[seen], labels[seen])
    assert half.balanced() == pytest.approx(balanced_accuracy_score(labels[seen], predicted[seen]))
    assert int(done.class_n.sum()) == 300


def test_balanced_accuracy_weighs_classes_alike():
    """Nine right of class 0, one wrong of class 1."""
    logits = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 9 + [1])
    done = tally(logits, labels)
    assert done.result()["top1"] == pytest.approx(0.9)
    assert done.balanced() == pytest.approx(0.5)
    assert done.per_class() == [1.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(1, 60), classes=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_size_of_batches_moves_nothing(data, n, classes, seed):
    logits, labels = sample(n, classes, seed)
    sizes, left = [], n
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    whole, parts = tally(logits, labels), tally(logits, labels, *sizes)
    for key, value in whole.result().items():
        exact = key in ("n", "top1", "top5")
        assert parts.result()[key] == (value if exact or value is None else pytest.approx(value, abs=1e-12))
    assert parts.per_class() == whole.per_class()


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6])
def test_top5_needs_five_classes(classes):
    result = tally(*sample(20, classes)).result()
    assert (result["top5"] is None) == (classes < 5)
    if classes == 5:
        assert result["top5"] == 1.0


def test_nothing_was_measured():
    empty = Tally(7)
    assert empty.result() == {"top1": None, "top5": None, "loss": None, "ece": None, "n": 0}
    assert empty.per_class() == [None] * 7
    assert empty.balanced() is None
    empty.add(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert empty.result()["n"] == 0
    assert empty.result()["top1"] is None


@pytest.mark.parametrize("right", [True, False])
def test_calibration_of_certainty(right):
    """Fully certain and always right is perfectly calibrated, always wrong is not at all."""
    logits = torch.zeros(8, 3)
    logits[:, 0] = 1000.0
    result = tally(logits, torch.full((8,), 0 if right else 1)).result()
    assert result["ece"] == pytest.approx(0.0 if right else 1.0)
    assert result["top1"] == float(right)
    assert result["loss"] == pytest.approx(0.0 if right else 1000.0)


def test_equal_logits_lose_log_of_the_number_of_classes():
    result = tally(torch.zeros(6, 10), torch.arange(6)).result()
    assert result["loss"] == pytest.approx(math.log(10))


def test_half_precision_logits_are_summed_in_double():
    logits, labels = sample(200, 10)
    half = logits.bfloat16()
    assert tally(half, labels).result()["loss"] == pytest.approx(
        tally(half.float(), labels).result()["loss"], abs=1e-12
    )


def test_logits_may_carry_a_gradient_and_are_left_alone():
    logits, labels = sample(10, 5)
    logits.requires_grad_()
    before = logits.detach().clone()
    tally(logits, labels)
    assert torch.equal(logits.detach(), before)
    assert logits.grad is None


def test_results_are_plain_numbers():
    for key, value in tally(*sample(30, 6)).result().items():
        assert type(value) is (int if key == "n" else float), key
