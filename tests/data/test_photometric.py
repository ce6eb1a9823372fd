"""Changes of colours against torchvision, Pillow's and colorsys' arithmetic, and their independence of the batch."""

from __future__ import annotations

import colorsys
import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchvision_shim  # noqa: F401
from vitcli import config
from vitcli.config import AugmentConfig, Config, EvalConfig, TrainConfig
from vitcli.data.augment import Augmenter
from vitcli.data.photometric import SIGMA, blur, grayscale, jitter_, photometric, solarize, turn_hue_
from vitcli.data.randaugment import MAX_LEVEL
from vitcli.errors import UsageError
from vitcli.flops import batch_memory
from vitcli.randomness import uniforms

reference = importlib.import_module("torchvision.transforms.v2.functional")
"""Imported where the shim has come first."""
NONE = (0.0, 0.0, 0.0, 0.0)


def pictures(n: int, height: int = 24, width: int = 20, seed: int = 0) -> Tensor:
    """Fractions, as a resized crop has them."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (n, 3, height, width)).astype(np.float32))


def draw_of(seed: int, ids: np.ndarray):
    epochs, samples = torch.zeros(len(ids), dtype=torch.long), torch.from_numpy(ids)
    return lambda purpose, count: uniforms(seed, purpose, epochs, samples, count)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs * 255, atol=0.05, rtol=0)


# --- operations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "function"),
    [(0, reference.adjust_brightness), (1, reference.adjust_contrast), (2, reference.adjust_saturation)],
)
@given(strength=st.floats(0.01, 1), u=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_factor_is_torchvisions(which: int, function, strength: float, u: float, seed: int) -> None:
    images = pictures(2, seed=seed)
    numbers = torch.full((2, 4), u, dtype=torch.float64)
    numbers[1] = 1 - u
    strengths = tuple(strength if i == which else 0.0 for i in range(4))
    ours = jitter_(images.clone(), strengths, numbers)
    for image, value, part in zip(images, ours, (u, 1 - u), strict=True):
        close(value, function(image / 255, max(0, 1 - strength) + part * (1 + strength - max(0, 1 - strength))))


@given(turn=st.floats(-0.5, 0.5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_hue_is_turned_as_colorsys_and_torchvision_turn_it(turn: float, seed: int) -> None:
    images = pictures(1, 5, 6, seed)
    images[:, :, 0, 0], images[:, :, 1, 1] = 77.0, 0.0  # without a hue
    images[0, :, 2, 2] = torch.tensor([200.0, 200.0, 10.0])  # two channels are the largest
    ours = images.clone()
    turn_hue_(ours, torch.full((1, 1, 1, 1), turn))
    for (y, x), _ in np.ndenumerate(images[0, 0].numpy()):
        h, s, v = colorsys.rgb_to_hsv(*(images[0, :, y, x].numpy() / 255))
        np.testing.assert_allclose(
            ours[0, :, y, x], 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)), atol=0.05
        )
    close(ours[0], reference.adjust_hue(images[0] / 255, turn))


def test_the_order_is_brightness_contrast_saturation_hue() -> None:
    images, u = pictures(3), torch.rand(3, 4, dtype=torch.float64)
    at_once = jitter_(images.clone(), (0.4, 0.3, 0.2, 0.1), u)
    one_by_one = images.clone()
    for i, strength in enumerate((0.4, 0.3, 0.2, 0.1)):
        one_by_one = jitter_(one_by_one, tuple(strength if i == j else 0.0 for j in range(4)), u)
    assert torch.equal(at_once, one_by_one)


def test_gray_is_the_luma_and_solarization_starts_at_128() -> None:
    images = pictures(2)
    expected = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(grayscale(images), expected)
    whole = images.floor()
    for ours, image in zip(solarize(whole), whole, strict=True):
        assert torch.equal(ours, reference.solarize(image.to(torch.uint8), 128).float())


@given(height=st.integers(12, 90), width=st.integers(12, 90), u=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_blur_is_torchvisions_with_a_deviation_that_follows_the_side(height: int, width: int, u: float) -> None:
    images = pictures(2, height, width)
    sigmas = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * torch.tensor([u, 1 - u], dtype=torch.float64)
    for image, ours, sigma in zip(images, blur(images, sigmas), sigmas.tolist(), strict=True):
        sizes = [2 * int(np.ceil(6 * side / 224)) + 1 for side in (width, height)]
        close(ours, reference.gaussian_blur(image / 255, sizes, [sigma * width / 224, sigma * height / 224]))


@pytest.mark.parametrize("size", [(1, 1), (4, 9), (11, 11), (1, 224)])
def test_small_sides_are_not_blurred(size: tuple[int, int]) -> None:
    images = pictures(2, *size)
    images[:] = images[:, :, :, :1]  # the same along the row
    torch.testing.assert_close(blur(images, torch.tensor([2.0, 2.0])), images)


# --- which images --------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    AugmentConfig,
    jitter=st.tuples(*[st.sampled_from([0.0, 0.4])] * 4),
    jitter_p=st.sampled_from([0.5, 1.0]),
    gray=st.sampled_from([0.0, 0.3, 1.0]),
    blur=st.sampled_from([0.0, 0.3, 1.0]),
    solarize=st.sampled_from([0.0, 0.3, 1.0]),
    three=st.booleans(),
)


@given(CONFIGS, st.integers(0, 99), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_an_image_is_changed_alike_in_any_batch(augment: AugmentConfig, seed: int, n: int) -> None:
    images, ids = pictures(n, 32, 32, seed), np.arange(n) + 1000 * seed
    whole = photometric(images.clone(), augment, draw_of(seed, ids))
    assert whole.min() >= -1e-3  # a blur rounds
    assert whole.max() <= 255.001
    one = seed % n
    assert torch.equal(
        photometric(images[one : one + 1].clone(), augment, draw_of(seed, ids[one : one + 1]))[0], whole[one]
    )
    order = np.random.default_rng(seed).permutation(n)
    assert torch.equal(photometric(images[order].clone(), augment, draw_of(seed, ids[order])), whole[order])


def test_probabilities_are_those_that_are_asked_for() -> None:
    n = 4000
    images, draw = pictures(n, 12, 12), draw_of(3, np.arange(n))

    def part(augment: AugmentConfig) -> float:
        changed = (photometric(images.clone(), augment, draw) != images).flatten(1).any(1)
        return float(changed.float().mean())

    for name in ("gray", "solarize"):
        assert part(AugmentConfig(**{name: 0.2})) == pytest.approx(0.2, abs=0.02)
    assert part(AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8)) == pytest.approx(0.8, abs=0.02)
    assert part(AugmentConfig()) == 0
    # independent of each other: two of a half leave a quarter
    assert part(AugmentConfig(gray=0.5, solarize=0.5)) == pytest.approx(0.75, abs=0.03)


def test_a_blur_takes_the_part_of_the_images_that_is_asked_for() -> None:
    n = 1000
    images, draw = pictures(n, 48, 48), draw_of(4, np.arange(n))
    changed = (photometric(images.clone(), AugmentConfig(blur=0.3), draw) != images).flatten(1).any(1).numpy()
    u = draw("blur", 2)
    wide = u[:, 1] > 0.5  # a narrow one changes no value of so small an image
    np.testing.assert_array_equal(changed[wide], u[wide, 0] < 0.3)
    assert changed[wide].mean() == pytest.approx(0.3, abs=0.05)
    assert not changed[u[:, 0] >= 0.3].any()


def test_three_does_exactly_one_of_three_to_each_image_and_jitters_after_it() -> None:
    n = 3000
    images, draw = pictures(n, 64, 64), draw_of(5, np.arange(n))
    changed = photometric(images.clone(), AugmentConfig(three=True), draw)
    grays = (changed == grayscale(images)).flatten(1).all(1)
    solarized = (changed == solarize(images)).flatten(1).all(1)
    blurred = ~grays & ~solarized
    for kind in (grays, solarized, blurred):
        assert float(kind.float().mean()) == pytest.approx(1 / 3, abs=0.03)
    sigmas = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draw("blur", 2)[:, 1]
    assert torch.equal(changed[blurred], blur(images[blurred], sigmas[blurred]))
    jittered = photometric(images.clone(), AugmentConfig(three=True, jitter=(0.3, 0.3, 0.3, 0.0)), draw)
    assert torch.equal(jittered, jitter_(changed, (0.3, 0.3, 0.3, 0.0), draw("jitter", 5)[:, 1:]))


# --- in a run ------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_views_differ_and_what_is_not_asked_for_changes_nothing(seed: int, layers: int) -> None:
    pixels = pictures(6, 16, 16).to(torch.uint8)
    sizes, epochs, ids = torch.full((6, 2), 16), torch.zeros(6, dtype=torch.long), torch.arange(6)
    plain = AugmentConfig(randaugment_layers=layers, erase=0.5)
    jittered = replace(plain, jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5, solarize=0.2)

    def views(augment: AugmentConfig) -> list[Tensor]:
        augmenter = Augmenter(augment, EvalConfig(), (16, 16), seed)
        return [augmenter(pixels, sizes, epochs, ids, view) for view in (0, 1)]

    off = replace(jittered, jitter=NONE, gray=0.0, blur=0.0, solarize=0.0)
    assert all(torch.equal(a, b) for a, b in zip(views(plain), views(off), strict=True))
    first, second = views(jittered)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(views(jittered), (first, second), strict=True))


def test_three_and_its_parts_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"augment\.three"):
        config.check(Config(augment=AugmentConfig(three=True, gray=0.1), train=TrainConfig(steps=1)))
    assert config.parse_set(["augment.jitter=0.4,0.4,0.2,0.1"]) == {"augment.jitter": (0.4, 0.4, 0.2, 0.1)}
    for wrong in ("0.4", "0.4,0.4,0.4", "0.4,0.4,0.4,-0.1", "0.4,0.4,0.4,1.1"):
        with pytest.raises(UsageError, match=r"augment\.jitter"):
            config.parse_set([f"augment.jitter={wrong}"])


def test_copies_are_counted() -> None:
    plain = Config(train=TrainConfig(steps=1))
    coloured = replace(plain, augment=replace(plain.augment, gray=0.1))
    layered = replace(plain, augment=replace(plain.augment, randaugment_layers=1, randaugment_magnitude=MAX_LEVEL))
    assert batch_memory(plain) < batch_memory(coloured) == batch_memory(layered)
