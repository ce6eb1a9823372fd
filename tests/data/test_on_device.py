"""Augmentation in the form that an accelerator has, all images at once and nothing asked, against the form of a CPU, image by image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcli.config import AugmentConfig, EvalConfig
from vitcli.data.augment import Augmenter, erased, mixed, noise_of, symmetric_beta
from vitcli.data.batch import Batch
from vitcli.data.randaugment import OPERATIONS, randaugment_layer
from waits import as_on_an_accelerator

SEEDS = st.integers(0, 2**31)
STRENGTHS = (0.4, 0.3, 0.2, 0.1)


def pictures(seed: int, n: int, height: int, width: int) -> Tensor:
    """Noise, flat colours, and images of few values, in turn."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 3, height, width))
    images[::3] = images[::3, :, :1, :1]
    images[1::3] = images[1::3] // 64 * 40 + 7
    return torch.from_numpy(images.astype(np.uint8))


def both(augmenter: Augmenter, *inputs: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
    one = augmenter(*inputs, view)
    with as_on_an_accelerator():
        return one, augmenter(*inputs, view)


@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.sampled_from(["none", "pad", "random", "resized"]),
    layers=st.integers(0, 3),
    magnitude=st.floats(0, 20),
    ramp=st.sampled_from([0.0, 3.0]),
    erase=st.sampled_from([0.0, 0.5, 1.0]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_crop_flip_randaugment_and_erasing(
    seed: int, size: tuple[int, int], crop: Any, layers: int, magnitude: float, ramp: float, erase: float, flip: float
) -> None:
    n = 19
    random = np.random.default_rng(seed)
    config = AugmentConfig(
        crop=crop, randaugment_layers=layers, randaugment_magnitude=magnitude, ramp=ramp, erase=erase, flip=flip
    )
    height, width = (int(side) for side in random.integers(1, 50, 2))
    inputs = (
        pictures(seed, n, height, width),
        torch.from_numpy(random.integers(1, 900, (n, 2))),
        torch.from_numpy(random.integers(0, 9, n)),
        torch.from_numpy(random.integers(0, 2**50, n)),
    )
    alone, at_once = both(Augmenter(config, EvalConfig(), size, seed), *inputs, view=seed % 2)
    assert torch.equal(alone, at_once)


@given(
    seed=SEEDS,
    size=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    three=st.booleans(),
    jitter=st.tuples(*[st.sampled_from([0.0, s]) for s in STRENGTHS]),
    p=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_colours_and_blur(seed: int, size: tuple[int, int], three: bool, jitter: Any, p: float) -> None:
    config = AugmentConfig(crop="none", jitter=jitter, jitter_p=p, gray=p, blur=p, solarize=p, three=three)
    n = 13
    inputs = (pictures(seed, n, *size), torch.full((n, 2), 32), torch.arange(n), torch.arange(n))
    alone, at_once = both(Augmenter(config, EvalConfig(), size, seed), *inputs)
    assert torch.equal(alone, at_once)


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 10.0, 25.0])
def test_every_operation_of_randaugment(operation: int, magnitude: float) -> None:
    """By itself and among the others, at images of a line, of a pixel and of many."""
    for height, width in ((1, 1), (2, 9), (3, 3), (31, 24)):
        n = 24
        u = torch.rand(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(operation))
        u[: n // 2, 0] = (operation + 0.5) / len(OPERATIONS)
        images = pictures(operation, n, height, width).float()
        alone = randaugment_layer(images.clone(), magnitude, u)
        with as_on_an_accelerator():
            at_once = randaugment_layer(images.clone(), magnitude, u)
        assert torch.equal(alone, at_once)


@given(seed=SEEDS, height=st.integers(1, 30), width=st.integers(1, 30), length=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_boxes_take_the_same_stretch_of_the_noise(seed: int, height: int, width: int, length: int) -> None:
    n = 17
    u = torch.rand(n, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    chosen, noise = u[:, 3] < 0.7, noise_of(0)[:length]
    images = torch.full((n, 3, height, width), 9.0)
    alone = erased(images.clone(), chosen, u, noise)
    with as_on_an_accelerator():
        at_once = erased(images.clone(), chosen, u, noise)
    assert torch.equal(alone, at_once)


@pytest.mark.parametrize("kinds", [(0.4, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_are_mixed_together_as_one_by_one(kinds: tuple[float, float], repeats: int) -> None:
    config = AugmentConfig(mixup=kinds[0], cutmix=kinds[1], repeats=repeats, views=2)
    steps, size = torch.arange(5, 12), 6
    images = pictures(0, len(steps) * size, 8, 10).float()
    labels = torch.arange(len(images)) % 4
    targets = torch.rand(len(images), 4)
    whole = Batch((images, images.flip(3)), labels, torch.arange(len(images)), targets=targets)
    together = mixed(whole, config, 3, steps)
    assert len(together) == len(steps) and len({float(batch.weight) for batch in together}) > 3
    for index, batch in enumerate(together):
        (alone,) = mixed(whole.rows(slice(index * size, (index + 1) * size)), config, 3, steps[index : index + 1])
        assert batch.partner_labels is not None and alone.partner_labels is not None
        assert torch.equal(batch.partner_labels, alone.partner_labels) and torch.equal(batch.ids, alone.ids)
        assert float(batch.weight) == float(alone.weight)
        assert batch.targets is not None and alone.targets is not None and torch.equal(batch.targets, alone.targets)
        for one, other in zip(batch.views, alone.views, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.5, 0.8, 1.0, 2.0, 8.0])
def test_ratios_are_of_the_beta_distribution(alpha: float) -> None:
    from scipy import stats

    u, v = torch.rand(2, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = symmetric_beta(alpha, u, v).numpy()
    assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_ratios_are_numbers_at_the_ends_of_the_range() -> None:
    ends = torch.tensor([0.0, 2.0**-53, 0.25, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    for alpha in (0.001, 0.2, 1.0, 1000.0):
        found = symmetric_beta(alpha, ends.repeat_interleave(5), ends.repeat(5))
        assert ((found >= 0) & (found <= 1)).all()


def test_all_of_it_compiles_into_one_graph() -> None:
    config = AugmentConfig(
        crop="resized", ramp=2.0, jitter=STRENGTHS, jitter_p=0.8, gray=0.3, blur=0.5, solarize=0.3,
        randaugment_layers=2, erase=0.5, mixup=0.4, cutmix=1.0,
    )  # fmt: skip
    n = 8
    for crop in ("resized", "pad", "random", "none"):
        for three in (False, True):
            chosen = replace(config, crop=crop, three=three)  # type: ignore[arg-type]
            augmenter = Augmenter(chosen, EvalConfig(), (16, 16), 0)

            def augmented(pixels: Tensor, sizes: Tensor, epochs: Tensor, ids: Tensor, of: Any = augmenter) -> Tensor:
                whole = Batch((of(pixels, sizes, epochs, ids),), ids % 3, ids)
                return mixed(whole, of.config, 0, epochs[:1])[0].images

            inputs = (pictures(0, n, 16, 16), torch.full((n, 2), 32), torch.arange(n), torch.arange(n))
            augmented(*inputs)  # the noise is made once
            with as_on_an_accelerator():
                expected = augmented(*inputs)
            torch.compiler.reset()
            compiled = torch.compile(augmented, fullgraph=True, backend="aot_eager")(*inputs)
            torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
