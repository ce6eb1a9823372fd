"""Batched augmentation against Pillow and torchvision, and random numbers that belong to a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

import torchvision_shim  # noqa: F401
from vitcli import randomness
from vitcli.config import AugmentConfig, EvalConfig
from vitcli.data import augment, randaugment
from vitcli.data.augment import mixed, noise_of
from vitcli.data.batch import Batch, to_float
from vitcli.data.randaugment import OPERATIONS

NAMES = [
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add",
]  # fmt: skip


def of_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose arrays become tensors."""

    def called(*arguments: Any) -> Any:
        return function(*(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments))

    return called


geometry, randaugment_layer = of_arrays(augment.geometry), of_arrays(randaugment.randaugment_layer)
erased = of_arrays(augment.erased)


def uniforms(*arguments: Any) -> np.ndarray:
    found: Tensor = of_arrays(randomness.uniforms)(*arguments)
    return found.numpy()


def resized_crop_parts(*arguments: Any) -> np.ndarray:
    found: Tensor = of_arrays(augment.resized_crop_parts)(*arguments)
    return found.numpy()


def Augmenter(*arguments: Any) -> Callable[..., Any]:  # noqa: N802
    return of_arrays(augment.Augmenter(*arguments))


def mix(batch: Batch, config: AugmentConfig, seed: int, step: int) -> Batch:
    (found,) = mixed(batch, config, seed, torch.tensor([step]))
    return found


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth colours with noise, of less than the full range."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (4 + i) + seed) * np.cos(y / (5 + i)) for i in range(3)]
    smooth = 128 + 70 * np.stack(waves, -1) + random.normal(0, 12, (height, width, 3))
    return np.clip(smooth, 20, 230).astype(np.uint8)


def planes(*images: np.ndarray) -> np.ndarray:
    """`[batch, 3, height, width]`, as the cache has them."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def tensor(*images: np.ndarray) -> Tensor:
    return to_float(torch.from_numpy(planes(*images)))


def array(image: Tensor) -> np.ndarray:
    """`[height, width, 3]` of the first image, which must hold whole numbers."""
    values = image[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(values, values.round())
    return values


def apply(
    name: str, image: np.ndarray, magnitude: float, u: tuple[float, float, float] = (0.9, 0.5, 0.5)
) -> np.ndarray:
    """One layer in which `name` is drawn; `u` are the sign and the position."""
    numbers = np.array([[(NAMES.index(name) + 0.5) / len(NAMES), *u]])
    return array(randaugment_layer(tensor(image), magnitude, numbers))


# --- RandAugment ---------------------------------------------------------------------------------------------


def test_the_operations_are_the_sixteen_of_the_paper() -> None:
    assert [operation.__name__ for operation in OPERATIONS] == NAMES


def enhanced(kind: Any) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, magnitude: kind(image).enhance(0.1 + 1.8 * magnitude / 10)


ORACLES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
    "posterize": lambda image, m: image.point(
        lambda v: v >> 8 - min(8, int(4 * m / 10)) << 8 - min(8, int(4 * m / 10))
    ),
    "solarize": lambda image, m: ImageOps.solarize(image, int(256 * m / 10)),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
}


@pytest.mark.parametrize("magnitude", [0, 3, 10, 15, 20])
@pytest.mark.parametrize("name", ORACLES)
def test_colour_operations_are_pillows(name: str, magnitude: float) -> None:
    for seed in range(3):
        image = picture(seed)
        expected = np.asarray(ORACLES[name](Image.fromarray(image), magnitude)).astype(int)
        difference = np.abs(apply(name, image, magnitude) - expected)
        if name in ("equalize", "invert", "posterize", "solarize"):
            assert difference.max() == 0
        else:  # a product in single precision may fall on the other side of a whole number
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "sharpness"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_images_stay_flat(name: str, value: int) -> None:
    flat = np.full((8, 8, 3), value, np.uint8)
    expected = ORACLES[name](Image.fromarray(flat), 10)
    np.testing.assert_array_equal(apply(name, flat, 10), np.asarray(expected))


@pytest.mark.parametrize("magnitude", [0, 5, 10, 20])
def test_solarize_add_brightens_the_dark_half(magnitude: float) -> None:
    image = picture(0)
    added = np.minimum(image.astype(int) + int(110 * magnitude / 10), 255)
    np.testing.assert_array_equal(apply("solarize_add", image, magnitude), np.where(image < 128, added, image))


@pytest.mark.parametrize(("sign", "turn"), [(0.1, 1), (0.9, -1)])
@pytest.mark.parametrize("magnitude", [3, 10, 15])
def test_rotation_is_by_three_degrees_a_level(magnitude: float, sign: float, turn: int) -> None:
    image = picture(1)
    result = apply("rotate", image, magnitude, (sign, 0, 0))
    agreement = []
    for direction in (1, -1):  # which sign turns which way is free
        angle = direction * turn * 3 * magnitude
        expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST, fillcolor=(128, 128, 128)))
        agreement.append((result == expected).all(-1).mean())
    assert max(agreement) > 0.97
    other = apply("rotate", image, magnitude, (1 - sign, 0, 0))
    assert (result == other).all(-1).mean() < 0.7


@pytest.mark.parametrize("sign", [0.1, 0.9])
@pytest.mark.parametrize(("name", "axis"), [("shear_x", 1), ("shear_y", 0)])
def test_shear_moves_lines_by_three_tenths_of_the_distance(name: str, axis: int, sign: float) -> None:
    """A line along the other axis becomes one with a slope of 0.3 at magnitude 10."""
    line = np.zeros((60, 80, 3), np.uint8)
    if axis == 1:
        line[:, 39:42] = 255
    else:
        line[29:32] = 255
    result = apply(name, line, 10, (sign, 0, 0))[..., 0]
    bright = result == 255
    places = np.arange(bright.shape[axis])
    across = bright if axis == 1 else bright.T
    complete = across.sum(1) == 3
    assert complete.sum() > 40
    centres = (across * places).sum(1)[complete] / 3
    slope = np.polyfit(np.flatnonzero(complete), centres, 1)[0]
    assert abs(slope) == pytest.approx(0.3, abs=0.01)
    other = apply(name, line, 10, (1 - sign, 0, 0))[..., 0] == 255
    np.testing.assert_array_equal(other, bright[::-1] if axis == 1 else bright[:, ::-1])
    assert (result == 128).any()


@pytest.mark.parametrize("sign", [0.1, 0.9])
@pytest.mark.parametrize(("name", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_translation_is_ten_pixels_of_224_a_level(name: str, axis: int, sign: float) -> None:
    image = picture(2, 224, 224)
    result = apply(name, image, 7, (sign, 0, 0))
    matches = []
    for shift in (70, -70):
        expected = np.roll(image, shift, axis).astype(float)
        gone = slice(0, shift) if shift > 0 else slice(shift, None)
        expected[(slice(None),) * axis + (gone,)] = 128
        matches.append(np.array_equal(result, expected))
    assert sum(matches) == 1
    assert not np.array_equal(result, apply(name, image, 7, (1 - sign, 0, 0)))


def test_translation_scales_with_the_side() -> None:
    image = picture(2, 32, 56)
    across, down = apply("translate_x", image, 10), apply("translate_y", image, 10)
    assert (across == 128).all((0, 2)).sum() == 25  # 56 * 100 / 224
    assert (down == 128).all((1, 2)).sum() in (14, 15)  # 32 * 100 / 224 = 14.3


@pytest.mark.parametrize(("y", "x"), [(0.5, 0.5), (0.0, 0.0), (0.999, 0.3)])
def test_a_cut_out_is_gray_and_clipped_at_the_border(y: float, x: float) -> None:
    image = picture(3, 224, 224)
    image[image == 128] = 129
    result = apply("cutout", image, 10, (0.5, y, x))
    top, left = int(224 * y) - 40, int(224 * x) - 40
    expected = image.astype(float)
    expected[max(0, top) : top + 80, max(0, left) : left + 80] = 128
    np.testing.assert_array_equal(result, expected)


def test_every_operation_is_drawn_equally_often_and_always_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tuple((lambda images, m, u, i=i: images + i + 1) for i in range(16))
    monkeypatch.setattr(randaugment, "OPERATIONS", marks)
    u = uniforms(0, "randaugment", np.zeros(3200, np.int64), np.arange(3200), 4)
    counts = np.bincount(randaugment_layer(torch.zeros(3200, 3, 1, 1), 5, u)[:, 0, 0, 0].int().numpy(), minlength=17)
    assert counts[0] == 0
    assert counts[1:].min() > 140
    assert counts[1:].max() < 260


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_changes_the_image(name: str) -> None:
    image = picture(4)
    assert not np.array_equal(apply(name, image, 3), image)


def test_the_first_and_last_number_draw_an_operation() -> None:
    images = tensor(picture(0), picture(0))
    u = np.array([[0.0, 0.5, 0.5, 0.5], [1 - 2**-53, 0.5, 0.5, 0.5]])
    result = randaugment_layer(images, 5, u)
    np.testing.assert_array_equal(array(result[:1]), apply("autocontrast", picture(0), 5))
    np.testing.assert_array_equal(array(result[1:]), apply("solarize_add", picture(0), 5))


def test_images_keep_their_places_and_their_own_numbers() -> None:
    """Images are worked on in the order of their operations."""
    random = np.random.default_rng(0)
    n = 48
    u = random.random((n, 4))
    u[:, 0] = (random.permutation(np.arange(n) % 16) + 0.5) / 16
    images = tensor(*(picture(seed) for seed in range(n)))
    result = randaugment_layer(images, 7, u)
    for row in range(n):
        alone = apply(NAMES[int(u[row, 0] * 16)], picture(row), 7, tuple(u[row, 1:]))
        np.testing.assert_array_equal(array(result[row : row + 1]), alone)
        assert [i for i in range(n) if torch.equal(result[i], result[row])] == [row]


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    matrix=st.lists(st.floats(-1.5, 1.5), min_size=12, max_size=12),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_affine_maps_are_torchs(height: int, width: int, matrix: list[float], seed: int) -> None:
    """Nearest-neighbour sampling may take another pixel only where the place lies half way between two."""
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (2, 3, height, width)).astype(np.float32))
    wanted = torch.tensor(matrix).view(2, 2, 3)
    result = randaugment._affine(images, wanted)
    grid = F.affine_grid(wanted, [2, 3, height, width], align_corners=False)
    expected = F.grid_sample(images - 128, grid, mode="nearest", padding_mode="zeros", align_corners=False) + 128
    places = ((grid.double() + 1) * torch.tensor([width, height]) - 1) / 2
    between = ((places - places.floor() - 0.5).abs() < 1e-4).any(-1)
    clear = ~between[:, None].expand_as(expected)
    assert torch.equal(result[clear], expected[clear])


def test_affine_maps_are_torchs_nearly_everywhere() -> None:
    images = tensor(picture(0), picture(1))
    wanted = torch.tensor([[[0.93, 0.31, 0.077], [-0.29, 0.88, -0.13]], [[1.0, 0.0, 0.333], [0.211, 1.0, 0.0]]])
    grid = F.affine_grid(wanted, list(images.shape), align_corners=False)
    expected = F.grid_sample(images - 128, grid, mode="nearest", padding_mode="zeros", align_corners=False) + 128
    assert (randaugment._affine(images, wanted) == expected).float().mean() > 0.995
    assert (expected == 128).float().mean() > 0.02  # some comes from outside


@given(magnitude=st.floats(0, 40), seed=st.integers(0, 1000), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
@settings(max_examples=60, deadline=None)
def test_values_stay_whole_and_within_range(magnitude: float, seed: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (16, 3, *size)).astype(np.float32))
    u = random.random((16, 4))
    u[:, 0] = (np.arange(16) + 0.5) / 16
    before = images.clone()
    result = randaugment_layer(images, magnitude, u)
    assert torch.equal(images, before)
    assert torch.equal(result, result.round())
    assert result.min() >= 0
    assert result.max() <= 255


# --- addresses -----------------------------------------------------------------------------------------------

EVERYTHING = AugmentConfig(crop="resized", randaugment_layers=2, randaugment_magnitude=10, erase=0.5)
SIZE = (24, 32)
PIXELS = torch.from_numpy(planes(*(picture(i, 30, 36) for i in range(8))))
SIZES = np.array([[300, 400], [400, 300], [100, 100], [50, 900], [900, 50], [333, 500], [10, 10], [30, 36]], np.int32)
EPOCHS, IDS = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([5, 900, 5, 17, 5, 2**40, 0, 1])


def augmented(rows: Any, config: AugmentConfig = EVERYTHING, seed: int = 0, view: int = 0) -> Tensor:
    return Augmenter(config, EvalConfig(), SIZE, seed)(PIXELS[rows], SIZES[rows], EPOCHS[rows], IDS[rows], view)


@pytest.mark.parametrize("crop", ["resized", "random", "pad", "none"])
def test_a_sample_is_augmented_alike_in_any_batch(crop: Any) -> None:
    config = AugmentConfig(crop=crop, randaugment_layers=2, randaugment_magnitude=10, erase=0.5)
    for seed in range(3):
        whole = augmented(np.arange(8), config, seed)
        assert whole.shape == (8, 3, *SIZE)
        for row in range(8):
            assert torch.equal(augmented(np.array([row]), config, seed)[0], whole[row])
        order = np.array([3, 7, 0, 5, 1, 6, 2, 4])
        assert torch.equal(augmented(order, config, seed), whole[torch.from_numpy(order)])


def test_images_of_the_size_without_a_crop_are_augmented_too() -> None:
    """No resampling then lays the batch out anew before the operations see it."""
    config = AugmentConfig(crop="none", randaugment_layers=2, randaugment_magnitude=10)
    size = (PIXELS.shape[2], PIXELS.shape[3])
    for seed in range(6):
        result = Augmenter(config, EvalConfig(), size, seed)(PIXELS, SIZES, EPOCHS, IDS)
        assert result.shape == (8, 3, *size)


def test_views_epochs_samples_and_seeds_differ() -> None:
    same = np.zeros(4, np.int64)
    images, sizes = PIXELS[same], SIZES[same]

    def draw(epochs: list[int], ids: list[int], seed: int = 0, view: int = 0) -> Tensor:
        return Augmenter(EVERYTHING, EvalConfig(), SIZE, seed)(images, sizes, np.array(epochs), np.array(ids), view)

    first = draw([0, 1, 0, 1], [0, 0, 1, 1])
    assert torch.equal(draw([0, 1, 0, 1], [0, 0, 1, 1]), first)
    together = torch.cat([first, draw([0, 1, 0, 1], [0, 0, 1, 1], seed=1), draw([0, 1, 0, 1], [0, 0, 1, 1], view=1)])
    for i in range(len(together)):
        for j in range(i):
            assert not torch.equal(together[i], together[j])


def test_pixels_are_not_changed_in_place() -> None:
    before = PIXELS.clone()
    augmented(np.arange(8))
    assert torch.equal(PIXELS, before)


def test_normalisation_is_that_of_evaluation() -> None:
    config = EvalConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    quiet = AugmentConfig(crop="none", flip=0)
    result = Augmenter(quiet, config, (30, 36), 0)(PIXELS, SIZES, EPOCHS, IDS)
    expected = (PIXELS.permute(0, 2, 3, 1).numpy() / 255 - np.array(config.mean)) / np.array(config.std)
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=2e-6)


# --- crop and flip -------------------------------------------------------------------------------------------


def numbers(n: int, purpose: str, count: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, purpose, np.zeros(n, np.int64), np.arange(n), count)


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_crops_have_areas_and_shapes_within_their_ranges(
    height: int, width: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    sizes = np.tile(np.array([[height, width]], np.int32), (50, 1))
    areas, shapes = numbers(50, "area", 10, seed), numbers(50, "shape", 10, seed)
    part = resized_crop_parts(sizes, tuple(scale), tuple(ratio), areas, shapes)  # type: ignore[arg-type]
    assert (part > 0).all()
    assert (part <= 1 + 1e-12).all()
    shape = part[:, 1] * width / (part[:, 0] * height)
    assert (shape > ratio[0] * (1 - 1e-9)).all()
    assert (shape < ratio[1] * (1 + 1e-9)).all()
    area = part.prod(1)
    fitting = (area > scale[0] * (1 - 1e-9)) & (area < scale[1] * (1 + 1e-9))
    touching = np.isclose(part.max(1), 1)  # where no try fits, the largest box within the shapes
    assert (fitting | touching).all()


def test_crops_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    n, height, width = 3000, 300, 500
    sizes = np.tile(np.array([[height, width]], np.int32), (n, 1))
    part = resized_crop_parts(sizes, (0.08, 1.0), (3 / 4, 4 / 3), numbers(n, "area", 10), numbers(n, "shape", 10))
    image = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(n)]
    theirs = np.array(drawn) / [height, width]
    for axis in (0, 1):
        for q in (0.1, 0.5, 0.9):
            assert np.quantile(part[:, axis], q) == pytest.approx(np.quantile(theirs[:, axis], q), abs=0.03)
    assert part.prod(1).mean() == pytest.approx(theirs.prod(1).mean(), abs=0.015)


def test_a_long_image_falls_back_to_the_largest_box_in_the_middle() -> None:
    sizes = np.array([[10, 1000], [1000, 10]], np.int32)
    part = resized_crop_parts(sizes, (0.9, 1.0), (3 / 4, 4 / 3), np.full((2, 10), 0.5), np.full((2, 10), 0.5))
    np.testing.assert_allclose(part, [[1, 10 / 1000 * 4 / 3], [10 / 1000 / (3 / 4), 1]])


def ramps(height: int, width: int, n: int) -> Tensor:
    """Red is the column and green the row of a pixel's centre, as parts of the sides."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(n, 3, height, width).clone()


def test_a_resized_crop_shows_a_box_of_the_stated_area() -> None:
    n, size = 200, (40, 40)
    config = AugmentConfig(crop="resized", scale=(0.2, 0.6), flip=0.5)
    sizes = np.full((n, 2), 100, np.int32)
    result = geometry(ramps(80, 80, n), sizes, config, size, numbers(n, "geometry", 23)).numpy()
    across = (result[:, 0, 20, 38] - result[:, 0, 20, 1]) * 40 / 37  # inner pixels: no border effects
    down = (result[:, 1, 38, 20] - result[:, 1, 1, 20]) * 40 / 37
    assert (down > 0).all()
    assert 0.35 < (across < 0).mean() < 0.65  # flipped
    area = np.abs(across) * down
    assert area.min() > 0.2 * 0.98
    assert area.max() < 0.6 * 1.02
    left, right = result[:, 0, 20].min(1), result[:, 0, 20].max(1)
    assert left.min() > 0
    assert left.min() < 0.05
    assert right.max() > 0.95


@pytest.mark.parametrize("crop", ["resized", "random", "none"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_large_images_are_cut_out_one_by_one_to_the_nearest_pixel(
    crop: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same boxes as the batch's sampling, rounded to whole pixels; flips are exact."""
    n, size = 24, (128, 160)
    pixels = (250 * ramps(200, 240, n)).to(dtype)
    config = AugmentConfig(crop=crop, scale=(0.2, 1.0), flip=0.5)
    sizes, u = np.full((n, 2), 100, np.int32), numbers(n, "geometry", 23)
    one_by_one = geometry(pixels, sizes, config, size, u)
    monkeypatch.setattr(augment, "_ONE_BY_ONE", 10**9)
    together = geometry(pixels, sizes, config, size, u)
    assert one_by_one.shape == together.shape == (n, 3, *size)
    assert float((one_by_one - together).abs().max()) <= 250 * 1.1 / 200 + 1.0 * (dtype == torch.uint8)
    monkeypatch.undo()
    plain = geometry(pixels, sizes, replace(config, flip=0.0), size, u)
    mirrored = geometry(pixels, sizes, replace(config, flip=1.0), size, u)
    torch.testing.assert_close(mirrored, plain.flip(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flips_come_with_their_probability_and_are_exact(flip: float) -> None:
    n = 2000
    images = torch.arange(12.0).view(1, 3, 2, 2).expand(n, 3, 2, 2)
    config = AugmentConfig(crop="none", flip=flip)
    result = geometry(images, np.full((n, 2), 2, np.int32), config, (2, 2), numbers(n, "geometry", 23))
    flipped = (result == images.flip(3)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert flipped.float().mean().item() == pytest.approx(flip, abs=0.035)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("chosen", [[], [0], [7], [1, 2, 5], list(range(8))])
def test_the_chosen_images_are_mirrored_in_a_copy(kind: torch.dtype, chosen: list[int]) -> None:
    images = PIXELS.to(kind)
    before = images.clone()
    flips = torch.from_numpy(np.isin(np.arange(8), chosen))
    result = augment._mirrored(images, flips)
    assert result.dtype == kind
    assert result.is_contiguous()
    for row in range(8):
        assert torch.equal(result[row], images[row].flip(2) if row in chosen else images[row])
    result.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("crop", ["none", "pad", "random", "resized"])
def test_integers_and_floats_are_cropped_alike_and_left_as_they_are(crop: Any) -> None:
    config = AugmentConfig(crop=crop)
    for size in ((30, 36), (24, 32)):
        floats, before = PIXELS.float(), PIXELS.clone()
        u = numbers(8, "geometry", 23)
        result = geometry(PIXELS, SIZES, config, size, u)
        assert result.dtype == torch.float32
        assert torch.equal(geometry(floats, SIZES, config, size, u), result)
        result.zero_()
        assert torch.equal(PIXELS, before)
        assert torch.equal(floats, before.float())


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    outside=st.sampled_from(["border", "reflection"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_boxes_are_sampled_as_torch_does(
    height: int, width: int, size: tuple[int, int], outside: str, seed: int
) -> None:
    """Boxes of all sizes, also ones that reach over the border."""
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.random((5, 3, height, width), np.float32))
    scale, centre = random.uniform(0.05, 1.5, (5, 2)), random.uniform(-0.8, 0.8, (5, 2))
    matrix = np.zeros((5, 2, 3), np.float32)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale[:, 1], scale[:, 0]
    matrix[:, 0, 2], matrix[:, 1, 2] = centre[:, 1], centre[:, 0]
    grid = F.affine_grid(torch.from_numpy(matrix), [5, 3, *size], align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
    result = of_arrays(augment._stretched)(images, scale, centre, size, outside)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("crop", ["pad", "random", "resized", "none"])
def test_a_flipped_crop_is_the_crop_from_right_to_left(crop: Any) -> None:
    """The box lies where it would lie without the flip."""
    u, sizes = numbers(8, "geometry", 23), np.full((8, 2), 40, np.int32)
    results = [geometry(PIXELS, sizes, AugmentConfig(crop=crop, flip=flip), (24, 32), u) for flip in (0.0, 1.0)]
    torch.testing.assert_close(results[1], results[0].flip(3), atol=0.01, rtol=0)


def test_a_padded_crop_is_a_shift_with_mirrored_borders() -> None:
    n, side, most = 60, 16, 2
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (n, 3, side, side)).astype(np.float32))
    config = AugmentConfig(crop="pad", pad=0.125, flip=0)
    result = geometry(images, np.full((n, 2), side, np.int32), config, (side, side), numbers(n, "geometry", 23)).numpy()
    shifts = set()
    for image, shifted in zip(images.numpy(), result, strict=True):
        padded = np.pad(image, ((0, 0), (most, most), (most, most)), "symmetric")
        found = [
            (y, x)
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
            if np.allclose(padded[:, y : y + side, x : x + side], shifted, atol=0.01)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


def test_a_random_crop_shows_seven_eighths_at_their_own_scale() -> None:
    n, size = 100, (56, 28)
    config = AugmentConfig(crop="random", flip=0)
    result = geometry(ramps(64, 32, n), np.full((n, 2), 50, np.int32), config, size, numbers(n, "geometry", 23)).numpy()
    across, down = result[:, 0, 20, 20] - result[:, 0, 20, 10], result[:, 1, 40, 5] - result[:, 1, 20, 5]
    np.testing.assert_allclose(across, 10 / 32, rtol=1e-4)
    np.testing.assert_allclose(down, 20 / 64, rtol=1e-4)
    assert result[:, :2].min() > 0
    assert result[:, 0, 0, 0].std() > 0.02  # the place varies


def test_a_random_crop_of_another_margin() -> None:
    config = AugmentConfig(crop="random", margin=1.6, flip=0)
    result = geometry(
        ramps(64, 32, 3), np.full((3, 2), 50, np.int32), config, (40, 20), numbers(3, "geometry", 23)
    ).numpy()
    np.testing.assert_allclose(result[:, 0, 20, 15] - result[:, 0, 20, 5], 10 / 32, rtol=1e-4)


def test_no_crop_resizes_the_whole_image() -> None:
    config = AugmentConfig(crop="none", flip=0)
    result = geometry(ramps(20, 30, 2), np.full((2, 2), 9, np.int32), config, (40, 60), numbers(2, "geometry", 23))
    expected = F.interpolate(ramps(20, 30, 2), (40, 60), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


# --- erasing -------------------------------------------------------------------------------------------------


def test_erased_boxes_have_the_stated_areas_and_shapes() -> None:
    height, width, n = 96, 64, 300
    images = torch.full((n, 3, height, width), 9.0)
    erased(images, np.ones(n, bool), numbers(n, "erase", 41), noise_of(0))
    parts, shapes, noise = [], [], []
    for image in images:
        changed = (image != 9).all(0)
        assert torch.equal(changed, (image != 9).any(0))
        ys, xs = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        rows, columns = len(ys), len(xs)
        assert rows * columns == changed.sum()
        assert rows == ys[-1] - ys[0] + 1
        assert columns == xs[-1] - xs[0] + 1
        parts.append(rows * columns / (height * width))
        shapes.append(rows / columns)
        noise.append(image[:, changed].flatten())
    assert 0.02 * 0.85 < min(parts) < 0.05
    assert 0.27 < max(parts) < 0.33 * 1.05
    assert 0.3 * 0.85 < min(shapes) < 0.5
    assert 2 < max(shapes) < 3.3 * 1.15
    values = torch.cat(noise)
    assert abs(values.mean().item()) < 0.02
    assert abs(values.std().item() - 1) < 0.02


def box_of(u: np.ndarray, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Top, left, rows and columns of the first try that fits, one try after the other."""
    for area, shape, top, left in u[1:].reshape(10, 4):
        pixels = height * width * (0.02 + 0.31 * area)
        aspect = math.exp(math.log(0.3) + math.log(11) * shape)
        rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < rows < height and 0 < columns < width:
            return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns
    return None


@pytest.mark.parametrize(("height", "width"), [(96, 64), (8, 64), (64, 6), (3, 3), (2, 2), (1, 40), (40, 1), (1, 1)])
def test_the_first_box_of_ten_that_fits_is_filled_with_a_stretch_of_the_noise(height: int, width: int) -> None:
    n, noise = 80, torch.arange(1.0, 1_000_001)  # a value is its place
    u = numbers(n, "erase", 41)
    chosen = np.arange(n) % 3 > 0
    images = torch.zeros(n, 3, height, width)
    erased(images, chosen, u, noise)
    filled = 0
    for row, image in enumerate(images):
        box = box_of(u[row], height, width) if chosen[row] else None
        expected = torch.zeros(3, height, width)
        if box is not None:
            top, left, rows, columns = box
            places = int(u[row, 0] * 1_000_000) + torch.arange(3 * rows * columns)
            expected[:, top : top + rows, left : left + columns] = noise[places % len(noise)].view(3, rows, columns)
            filled += 1
        assert torch.equal(image, expected)
    if min(height, width) == 1:
        assert filled == 0
    elif height > 90:
        assert filled == chosen.sum()
    else:
        assert filled > 0


def test_erased_boxes_reach_all_borders() -> None:
    n = 400
    images = torch.zeros(n, 3, 30, 20)
    erased(images, np.ones(n, bool), numbers(n, "erase", 41), noise_of(0))
    seen = (images != 0).any(0).all(0)
    assert seen.all()


@pytest.mark.parametrize("begin", [0.0, 0.4, 1 - 2**-53])
@pytest.mark.parametrize("length", [1, 7, 700, 2000])
def test_a_box_larger_than_the_noise_takes_it_again(begin: float, length: int) -> None:
    u = np.full((1, 41), 0.5)
    u[0, 0], u[0, 1] = begin, 1  # a third of the area
    images = torch.zeros(1, 3, 60, 60)
    erased(images, np.ones(1, bool), u, torch.arange(1.0, length + 1))
    changed = (images[0, 0] != 0).flatten().nonzero()[:, 0]
    values = images[0].flatten(1)[:, changed].flatten()
    assert len(values) > 3 * 1100
    assert torch.equal(values, (torch.arange(len(values)) + int(begin * length)).remainder(length) + 1.0)


def test_a_box_of_more_than_a_million_numbers() -> None:
    u = np.full((1, 41), 0.5)
    u[0, 1] = 1
    images = torch.full((1, 3, 1200, 1200), 9.0)
    erased(images, np.ones(1, bool), u, noise_of(0))
    values = images[images != 9]
    assert len(values) > 2**20
    assert abs(values.mean().item()) < 0.01
    assert abs(values.std().item() - 1) < 0.01


def test_the_noise_is_normal_and_belongs_to_the_seed() -> None:
    noise = noise_of(0).double()
    assert abs(noise.mean().item()) < 0.005
    assert abs(noise.std().item() - 1) < 0.005
    for q, z in ((0.025, -1.95996), (0.1587, -1), (0.5, 0), (0.8413, 1), (0.975, 1.95996)):
        assert np.quantile(noise.numpy(), q) == pytest.approx(z, abs=0.01)
    lags = [float((noise[:-lag] * noise[lag:]).mean()) for lag in (1, 2, 7, 224)]
    assert max(abs(lag) for lag in lags) < 0.005
    first = noise_of(0).clone()
    assert not torch.equal(noise_of(1), first)
    assert torch.equal(noise_of(0), first)


def test_erased_images_have_noise_of_their_own() -> None:
    """Equal boxes of different samples, epochs, views and seeds differ; those of one address are equal."""
    config = AugmentConfig(crop="none", flip=0, erase=1.0)
    n = 40
    pixels = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)

    def draw(epoch: int, seed: int = 0, view: int = 0) -> Tensor:
        augmenter = Augmenter(config, EvalConfig(), (16, 16), seed)
        return augmenter(pixels, np.full((n, 2), 16, np.int32), np.full(n, epoch), np.arange(n), view)

    first = draw(0)
    assert torch.equal(draw(0), first)
    starts = [image[:, (image != -1).any(0)][0, :3] for x in (first, draw(1), draw(0, 1), draw(0, 0, 1)) for image in x]
    starts = [tuple(values.tolist()) for values in starts]
    assert len(set(starts)) == len(starts) == 4 * n
    assert torch.equal(draw(0), first)  # the noise itself is not written to


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_images_are_erased_with_the_probability(probability: float) -> None:
    n = 600
    pixels = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    config = AugmentConfig(crop="none", flip=0, erase=probability)
    result = Augmenter(config, EvalConfig(), (16, 16), 0)(
        pixels, np.full((n, 2), 16, np.int32), np.zeros(n, np.int64), np.arange(n)
    )
    part = (result != -1).flatten(1).any(1).float().mean().item()
    assert part == pytest.approx(probability, abs=0.06)


# --- mixing --------------------------------------------------------------------------------------------------


def batch(n: int = 6, height: int = 20, width: int = 30, views: int = 1) -> Batch:
    """Image i holds i everywhere, in view v i + 100 v."""
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 3, height, width)
    labels = torch.arange(n) * 10
    return Batch(tuple(images + 100 * v for v in range(views)), labels, torch.arange(n) + 50)


def test_mixup_is_a_weighted_sum_with_the_larger_part_kept() -> None:
    weights = []
    for step in range(200):
        found = mix(batch(), AugmentConfig(mixup=0.8), 0, step)
        assert 0.5 <= found.weight <= 1
        own, partner = torch.arange(6.0), torch.arange(6.0).roll(1)
        expected = found.weight * own + (1 - found.weight) * partner
        torch.testing.assert_close(found.images, expected.view(6, 1, 1, 1).expand(6, 3, 20, 30))
        assert found.labels is not None
        assert found.partner_labels is not None
        assert torch.equal(found.labels, batch().labels)
        assert torch.equal(found.partner_labels, batch().labels.roll(1))  # type: ignore[union-attr]
        weights.append(float(found.weight))
    folded = np.maximum(draws := np.random.default_rng(0).beta(0.8, 0.8, 20_000), 1 - draws)
    assert np.mean(weights) == pytest.approx(folded.mean(), abs=0.035)


def test_cutmix_counts_the_area_that_is_left() -> None:
    weights = []
    for step in range(300):
        found = mix(batch(), AugmentConfig(cutmix=1.0), 0, step)
        assert 0 <= found.weight <= 1
        from_partner = found.images[1, 0] == 0
        assert torch.equal(found.images[1, 0], torch.where(from_partner, 0.0, 1.0))
        assert 1 - from_partner.float().mean().item() == pytest.approx(float(found.weight), abs=1e-6)
        ys, xs = from_partner.any(1).nonzero(), from_partner.any(0).nonzero()
        assert len(ys) * len(xs) == from_partner.sum()  # a box
        weights.append(float(found.weight))
    assert np.std(weights) > 0.15
    assert min(weights) < 0.3  # not folded to the larger part
    assert np.mean(weights) > 0.5  # boxes are cut at the border


def test_cutmix_and_mixup_share_the_batches() -> None:
    config = AugmentConfig(mixup=0.8, cutmix=1.0)
    kinds = []
    for step in range(200):
        values = mix(batch(), config, 0, step).images[3].unique()
        kinds.append(bool(((values == 2) | (values == 3)).all()))
    assert 0.35 < np.mean(kinds) < 0.65


def test_views_are_mixed_alike() -> None:
    for config in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)):
        found = mix(batch(views=2), config, 0, 3)
        torch.testing.assert_close(found.views[1], found.views[0] + 100)


def test_mixing_is_a_function_of_seed_and_step() -> None:
    for config in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0), AugmentConfig(mixup=0.5, cutmix=0.5)):
        first = mix(batch(), config, 1, 7)
        again = mix(batch(), config, 1, 7)
        assert again.weight == first.weight
        assert torch.equal(again.images, first.images)
        assert len({float(mix(batch(), config, seed, step).weight) for seed in (1, 2) for step in range(5)}) > 5


def test_what_cannot_be_mixed_is_left_alone() -> None:
    both = AugmentConfig(mixup=0.8, cutmix=1.0)
    one = batch(1)
    assert mix(one, both, 0, 0) is one
    unlabelled = Batch(batch().views, None, batch().ids)
    assert mix(unlabelled, both, 0, 0) is unlabelled
    plain = batch()
    assert mix(plain, AugmentConfig(), 0, 0) is plain
    assert plain.weight == 1


def test_micro_batches_are_rows_of_the_batch() -> None:
    whole = mix(batch(views=2), AugmentConfig(mixup=0.8), 0, 0)
    parts = [whole.rows(slice(0, 4)), whole.rows(slice(4, 6))]
    assert [len(p) for p in parts] == [4, 2]
    assert all(p.weight == whole.weight for p in parts)
    for v in range(2):
        assert torch.equal(torch.cat([p.views[v] for p in parts]), whole.views[v])
    for name in ("labels", "ids", "partner_labels"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    unlabelled = Batch(batch().views, None, batch().ids).rows(slice(1, 3))
    assert unlabelled.labels is None
    assert unlabelled.partner_labels is None
    assert unlabelled.ids.tolist() == [51, 52]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_result(threads: int) -> None:
    before = torch.get_num_threads()
    reference = augmented(np.arange(8))
    try:
        torch.set_num_threads(threads)
        assert torch.equal(augmented(np.arange(8)), reference)
    finally:
        torch.set_num_threads(before)
    assert math.isfinite(reference.abs().max().item())


@pytest.mark.parametrize("crop", ["resized", "random", "pad"])
def test_crops_and_shifts_grow_over_the_first_epochs(crop: str) -> None:
    """Nothing in the first epoch, all from `ramp` on, and in between a part."""
    size = (PIXELS.shape[2], PIXELS.shape[3])
    full = AugmentConfig(crop=crop, flip=0.0, scale=(0.3, 0.5))
    ramped = AugmentConfig(crop=crop, flip=0.0, scale=(0.3, 0.5), ramp=4.0)

    def at(config: AugmentConfig, epoch: int) -> Tensor:
        epochs = np.full(len(PIXELS), epoch, np.int64)
        return Augmenter(config, EvalConfig(), size, 0)(PIXELS, SIZES, epochs, IDS)

    whole = Augmenter(AugmentConfig(crop="none", flip=0.0), EvalConfig(), size, 0)(PIXELS, SIZES, EPOCHS, IDS)
    torch.testing.assert_close(at(ramped, 0), whole, atol=1e-5, rtol=0)
    assert torch.equal(at(ramped, 4), at(full, 4)) and torch.equal(at(ramped, 9), at(full, 9))
    between = float((at(ramped, 2) - whole).abs().mean())
    assert 0 < between < float((at(full, 2) - whole).abs().mean())
