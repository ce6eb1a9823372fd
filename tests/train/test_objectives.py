from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitcli.config import Config, TrainConfig, check, model_config
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.train.objectives.base import Noise
from vitcli.train.objectives.classify import Classify


def classify(**values: Any) -> Classify:
    return Classify(ViT(model_config("mu/4", (8, 8), 5)), Config(train=TrainConfig(**values)))


def drawn(model: ViT, step: int, images: int) -> Noise:
    batch = Batch((torch.zeros(images, 3, 8, 8),), None, torch.arange(images))
    return Classify(model, Config()).draw(model, batch, 0, step)


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


def smoothed(labels: torch.Tensor, classes: int, epsilon: float) -> torch.Tensor:
    return F.one_hot(labels, classes) * (1 - epsilon) + epsilon / classes


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_softmax_loss_is_cross_entropy_with_smoothed_targets(epsilon: float) -> None:
    logits, labels = logits_and_labels()
    loss = classify(label_smoothing=epsilon).of(logits, labels)
    expected = -(smoothed(labels, 5, epsilon) * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_sigmoid_loss_sums_binary_cross_entropy_over_classes(epsilon: float) -> None:
    logits, labels = logits_and_labels()
    loss = classify(loss="sigmoid", label_smoothing=epsilon).of(logits, labels)
    expected = F.binary_cross_entropy_with_logits(logits, smoothed(labels, 5, epsilon), reduction="none").sum(1).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_mixed_image_has_the_loss_of_its_mixed_target(kind: str) -> None:
    model = ViT(model_config("mu/4", (8, 8), 5))
    init_weights(model, 0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels, partners = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 0, 1, 2])
    objective = classify(loss=kind)
    loss = objective(model, Batch((images,), labels, torch.arange(4), partners, 0.7), Noise(None)).loss
    target = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot(partners, 5)
    logits = model(images)
    if kind == "softmax":
        expected = -(target * logits.log_softmax(1)).sum(1).mean()
    else:
        expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_bce_counts_both_labels_of_a_mixed_image_in_full(weight: float) -> None:
    """By hand: the mean over images and classes of -log p where a label has a part, else -log(1 - p)."""
    model = ViT(model_config("mu/4", (8, 8), 5))
    init_weights(model, 0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels, partners = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 1, 2])  # the second is mixed with its own class
    batch = Batch((images,), labels, torch.arange(4), partners, weight)
    total = 0.0
    for row, logits in enumerate(model(images).tolist()):
        present = {int(labels[row])} if weight > 0 else set()
        present |= {int(partners[row])} if weight < 1 else set()
        total += sum(math.log1p(math.exp(-z if k in present else z)) for k, z in enumerate(logits)) / (4 * 5)
    assert float(classify(loss="bce")(model, batch, Noise(None)).loss.detach()) == pytest.approx(total, rel=1e-5)
    plain = classify(loss="bce")(model, Batch((images,), labels, torch.arange(4)), Noise(None)).loss
    if weight == 1:
        assert float(plain.detach()) == pytest.approx(total, rel=1e-5)
    else:
        assert float(plain.detach()) != pytest.approx(total, rel=1e-3)


def test_bce_and_label_smoothing_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"label_smoothing must be 0"):
        check(Config(train=TrainConfig(steps=1, loss="bce", label_smoothing=0.1)))


def test_noise_is_drawn_by_step_for_the_global_batch() -> None:
    model = ViT(replace(model_config("mu/4", (8, 8), 5), depth=4, drop_path=0.5))
    noise = drawn(model, 7, 64)
    assert noise.keep is not None and noise.keep.shape == (4, 2, 64)
    assert torch.equal(noise.keep, drawn(model, 7, 64).keep)
    assert not torch.equal(noise.keep, drawn(model, 8, 64).keep)
    assert noise.keep[0].all(), "the linear rule drops nothing in the first block"
    assert 0.3 < noise.keep[3].float().mean() < 0.7
    assert torch.equal(noise.rows(slice(16, 32)).keep, noise.keep[:, :, 16:32])


def test_no_drop_path_draws_nothing() -> None:
    model = ViT(model_config("mu/4", (8, 8), 5))
    assert drawn(model, 0, 8).keep is None
