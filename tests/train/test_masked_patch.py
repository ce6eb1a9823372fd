"""Masked patch prediction (Dosovitskiy et al., 2021, §4.6 and appendix B.1.2): targets, corruption and loss by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import small_vit
from vitcli.config import Config, EvalConfig, MaskedPatchConfig, ModelConfig
from vitcli.data.batch import Batch, normalise_
from vitcli.errors import UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.train.objectives.masked_patch import Corruption, MaskedPatch, colours
from vitcli.train.progressive import stages

IMAGENET = EvalConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NORMALISED = [EvalConfig(), IMAGENET, EvalConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))]


def small(**values: Any) -> ModelConfig:
    return small_vit(**{"patch": (4, 4), "img_size": (16, 16)} | values)


def config_of(model: ModelConfig, evaluation: EvalConfig = IMAGENET, **values: Any) -> Config:
    return Config(model=model, eval=evaluation, settings={"masked-patch": MaskedPatchConfig(**values)})


def made(config: Config) -> tuple[ViT, MaskedPatch]:
    assert isinstance(config.model, ModelConfig)
    model = ViT(config.model)
    init_weights(model, 1)
    return model, MaskedPatch(model, config)


def pixels_of(*patches: tuple[int, int, int], side: int = 4, across: int = 2) -> Tensor:
    """An image of bytes whose patches have one colour each."""
    image = torch.zeros(3, side * (len(patches) // across), side * across)
    for index, colour in enumerate(patches):
        top, left = side * (index // across), side * (index % across)
        image[:, top : top + side, left : left + side] = torch.tensor(colour).view(3, 1, 1)
    return image[None]


def as_model(pixels: Tensor, evaluation: EvalConfig) -> Tensor:
    """Of values 0..255, as a batch has them."""
    return normalise_(pixels.clone(), evaluation)


def targets(pixels: Tensor, evaluation: EvalConfig, target: str = "colour", side: int = 4) -> NDArray[np.int64]:
    settings = MaskedPatchConfig(target=target)  # type: ignore[arg-type]
    return colours(as_model(pixels, evaluation), (side, side), evaluation, settings).numpy()


# --- what is predicted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluation", NORMALISED, ids=lambda e: str(e.mean[0]))
def test_the_classes_of_four_patches_of_known_colours(evaluation: EvalConfig) -> None:
    """Bins of an eighth: 255 of red are bin 7, 31 is bin 0, 32 is bin 1 (32 / 255 > 1 / 8), 127 is bin 3, 128 bin 4."""
    image = pixels_of((255, 0, 0), (0, 255, 31), (127, 128, 32), (255, 255, 255))
    expected = [64 * 7, 8 * 7 + 0, 64 * 3 + 8 * 4 + 1, 64 * 7 + 8 * 7 + 7]
    assert targets(image, evaluation)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("evaluation", NORMALISED, ids=lambda e: str(e.mean[0]))
def test_a_patch_s_colour_is_the_mean_of_its_pixels(evaluation: EvalConfig) -> None:
    """Half white and half black is exactly 1/2, a bin's lower edge; three quarters and a quarter likewise."""
    image = torch.zeros(1, 3, 4, 16)
    image[:, 0, :, 0:2] = 255  # red of the first patch: 1/2
    image[:, 1, :, 4:7] = 255  # green of the second: 3/4
    image[:, 2, 0, 8:12] = 255  # blue of the third: 1/4
    image[:, :, 0, 12:14] = 255  # all of the fourth: 1/8
    expected = [64 * 4, 8 * 6, 2, 64 + 8 + 1]
    assert targets(image, evaluation)[0, :, 0].tolist() == expected


@given(
    edge=st.integers(1, 8),
    mean=st.tuples(*[st.floats(-1, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 2)] * 3),
)
def test_a_mean_on_a_bin_s_edge_lies_above_it_whatever_it_was_normalised_by(
    edge: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    """Of 8 white columns in an image as wide: edge / 8 is exact in binary, and normalising would take it below."""
    image = torch.zeros(1, 3, 8, 8)
    image[..., :edge] = 255
    expected = min(7, edge)
    assert targets(image, EvalConfig(mean=mean, std=std), side=8)[0, 0, 0] == 73 * expected


@given(bytes_=st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_every_colour_is_in_the_bin_of_its_mean(bytes_: list[int]) -> None:
    """⌊8 · mean⌋ in whole numbers, and 1 itself in the last bin."""
    image = torch.tensor(bytes_, dtype=torch.float32).view(1, 3, 2, 2)
    red, green, blue = (min(7, 8 * sum(bytes_[4 * c : 4 * c + 4]) // (4 * 255)) for c in range(3))
    assert targets(image, IMAGENET, side=2)[0, 0, 0] == 64 * red + 8 * green + blue


def test_downsized_predicts_sixteen_cells_row_by_row() -> None:
    """A cell of a patch of 8 x 8 has 2 x 2 pixels; the second patch is the first one mirrored."""
    image = torch.zeros(1, 3, 8, 16)
    levels = torch.arange(16).view(4, 4)
    for row, column in itertools.product(range(4), range(4)):
        level = int(levels[row, column])
        image[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 16 * level + 8
        image[0, 2, 2 * row : 2 * row + 2, 14 - 2 * column : 16 - 2 * column] = 16 * level + 8
    found = targets(image, IMAGENET, "downsized", side=8)
    assert found.shape == (1, 2, 16)
    assert found[0, 0].tolist() == [64 * (level // 2) for level in range(16)]
    assert found[0, 1].tolist() == levels.flip(1).flatten().floor_divide(2).tolist()


def test_a_patch_is_downsized_by_the_means_of_its_cells() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, 1, 0, 0:2] = 255  # green of half of the first cell
    found = targets(image, IMAGENET, "downsized", side=8)
    assert found[0, 0].tolist() == [8 * 4] + [0] * 15


def test_pixels_are_predicted_as_the_model_sees_them_by_their_squared_error() -> None:
    model, objective = made(config_of(small(), target="pixels"))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch((images,), None, torch.arange(2))
    noise = objective.draw(model, batch, 0, 0)
    assert noise.chosen is not None
    with torch.no_grad():
        objective.predict.weight.zero_()
        objective.predict.bias.normal_(generator=torch.Generator().manual_seed(1))
    answer, total, count = objective.predict.bias.detach().double().numpy(), 0.0, 0
    for image, places in zip(images.double().numpy(), noise.chosen.tolist(), strict=True):
        for place in places:
            top, left = 4 * (place // 4), 4 * (place % 4)
            total += float(((answer - image[:, top : top + 4, left : left + 4].flatten()) ** 2).sum())
            count += 48
    assert count == 2 * 8 * 48
    assert float(objective(model, batch, noise).loss.detach()) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("target", ["colour", "downsized"])
def test_the_loss_is_cross_entropy_of_the_corrupted_patches_alone(target: str) -> None:
    """By hand, with the answers of the model's own tokens; another colour elsewhere changes no target."""
    config = config_of(small(), target=target)
    model, objective = made(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        objective.predict.weight.normal_(std=0.3, generator=draw)
        objective.predict.bias.normal_(generator=draw)
    bytes_ = torch.randint(0, 256, (2, 3, 16, 16), generator=draw).float()
    batch = Batch((as_model(bytes_, IMAGENET),), None, torch.arange(2))
    noise = objective.draw(model, batch, 0, 0)
    assert noise.chosen is not None
    patches = objective.corrupted(model.patch_embed(batch.images), noise)
    tokens = model.blocks_of(
        model.with_prefix(patches + model.positions((4, 4))[:, 1:], model.positions((4, 4))[:, :1])
    )
    answers = objective.predict(tokens[:, 1:]).detach().double().numpy()
    found = targets(bytes_, IMAGENET, target)
    losses, right = [], []
    for image, places in enumerate(noise.chosen.tolist()):
        assert len(set(places)) == 8
        for place in places:
            for scores, label in zip(answers[image, place].reshape(-1, 512), found[image, place], strict=True):
                losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label])
                right.append(scores.argmax() == label)
    result = objective(model, batch, noise)
    assert float(result.loss.detach()) == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert float(result.metrics["right"]) == pytest.approx(float(np.mean(right)))


def test_nothing_is_asked_of_a_patch_that_is_not_corrupted() -> None:
    """Its answer does not come into the loss: with a head that ignores tokens, its colour is of no account."""
    config = config_of(small())
    model, objective = made(config)
    with torch.no_grad():
        objective.predict.weight.zero_()
        objective.predict.bias.normal_(generator=torch.Generator().manual_seed(1))
    bytes_ = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(2)).float()
    batch = Batch((as_model(bytes_, IMAGENET),), None, torch.arange(1))
    noise = objective.draw(model, batch, 0, 0)
    assert noise.chosen is not None
    before = float(objective(model, batch, noise).loss.detach())
    chosen = noise.chosen[0].tolist()
    for place in range(16):
        other = bytes_.clone()
        top, left = 4 * (place // 4), 4 * (place % 4)
        other[:, :, top : top + 4, left : left + 4] = 255 - other[:, :, top : top + 4, left : left + 4]
        changed = replace(batch, views=(as_model(other, IMAGENET),))
        assert (float(objective(model, changed, noise).loss.detach()) != before) == (place in chosen)


# --- how it is corrupted -----------------------------------------------------------------------------------


def drawn(images: int, steps: int, side: int = 16, **values: Any) -> list[Corruption]:
    model, objective = made(config_of(small(patch=(1, 1), img_size=(side, side)), **values))
    batch = Batch((torch.zeros(images, 3, side, side),), None, torch.arange(images))
    return [objective.draw(model, batch, 0, step) for step in range(steps)]


def test_of_a_million_patches_half_are_corrupted_and_of_these_80_10_and_10_in_a_hundred() -> None:
    """Appendix B.1.2: a learned vector, another patch's embedding, its own."""
    corrupted = masked = replaced = 0
    for noise in drawn(images=512, steps=8):
        assert noise.chosen is not None and noise.masked is not None and noise.replaced is not None
        assert noise.chosen.shape == noise.masked.shape == noise.replaced.shape == (512, 128)
        assert (noise.chosen.sort(1).values.diff(dim=1) > 0).all(), "every patch once"
        assert not (noise.masked & noise.replaced).any()
        corrupted += noise.chosen.numel()
        masked += int(noise.masked.sum())
        replaced += int(noise.replaced.sum())
    assert corrupted == 512 * 8 * 256 / 2 > 500_000
    assert masked / corrupted == pytest.approx(0.8, abs=0.005)
    assert replaced / corrupted == pytest.approx(0.1, abs=0.005)
    assert 1 - (masked + replaced) / corrupted == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("side", [2, 3, 16])
def test_a_replaced_patch_is_any_other_of_its_image_and_never_itself(side: int) -> None:
    patches = side * side
    seen = np.zeros((patches, patches), np.int64)
    for noise in drawn(images=512, steps=4, side=side, masked=0.0, replaced=1.0):
        assert noise.chosen is not None and noise.others is not None and noise.replaced is not None
        assert noise.replaced.all()
        np.add.at(seen, (noise.chosen.numpy().flatten(), noise.others.numpy().flatten()), 1)
    assert seen.diagonal().sum() == 0 and seen.sum() == 4 * 512 * (patches // 2)
    if side < 16:
        expected = seen.sum() / (patches * (patches - 1))
        assert np.abs(seen[~np.eye(patches, dtype=bool)] / expected - 1).max() < 0.35
    else:
        assert (seen.sum(0) > 0).all() and (seen[~np.eye(patches, dtype=bool)] > 0).mean() > 0.9


def test_what_is_corrupted_is_seen_in_the_embeddings() -> None:
    model, objective = made(config_of(small(), masked=0.4, replaced=0.4))
    images = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch((images,), None, torch.arange(50))
    noise = objective.draw(model, batch, 0, 3)
    assert noise.chosen is not None and noise.masked is not None and noise.replaced is not None
    assert noise.others is not None
    patches = model.patch_embed(images).detach()
    found = objective.corrupted(patches, noise).detach()
    kinds = [0, 0, 0]
    for image in range(50):
        expected = patches[image].clone()
        for index, place in enumerate(noise.chosen[image].tolist()):
            if noise.masked[image, index]:
                expected[place] = objective.mask_token[0, 0].detach()
                kinds[0] += 1
            elif noise.replaced[image, index]:
                # of the image as it was, not of one that another replacement has changed
                expected[place] = patches[image, int(noise.others[image, index])]
                kinds[1] += 1
            else:
                kinds[2] += 1
        assert torch.equal(found[image], expected)
    assert sum(kinds) == 400 and min(kinds) > 40


def test_corruption_follows_from_seed_and_step_and_differs_between_images() -> None:
    model, objective = made(config_of(small(drop_path=0.2)))
    batch = Batch((torch.zeros(12, 3, 16, 16),), None, torch.arange(12))

    def fields(seed: int, step: int, rows: slice = slice(None)) -> list[Tensor]:
        noise = objective.draw(model, batch, seed, step).rows(rows)
        found = [noise.keep, noise.chosen, noise.masked, noise.replaced, noise.others]
        assert all(tensor is not None for tensor in found)
        return [tensor for tensor in found if tensor is not None]

    one = fields(1, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, fields(1, 5), strict=True))
    assert len({row.numpy().tobytes() for row in one[1]}) == 12
    for seed, step in ((1, 6), (2, 5)):
        other = fields(seed, step)
        assert not torch.equal(one[1], other[1]) and not torch.equal(one[2], other[2])
    part = fields(1, 5, slice(4, 8))
    assert torch.equal(part[0], one[0][..., 4:8])
    assert all(torch.equal(a, b[4:8]) for a, b in zip(part[1:], one[1:], strict=True))


def test_smaller_images_are_corrupted_in_their_own_grid() -> None:
    model, objective = made(config_of(small()))
    batch = Batch((torch.randn(3, 3, 8, 12),), None, torch.arange(3))
    noise = objective.draw(model, batch, 0, 0)
    assert noise.chosen is not None and noise.chosen.shape == (3, 3) and noise.chosen.max() < 6
    with model.taking((8, 12)):
        assert torch.isfinite(objective(model, batch, noise).loss)


def test_smaller_images_of_a_growing_run_have_a_corrupted_patch_or_are_refused() -> None:
    """Of 8 px in patches of 4, half the size is one patch, and the mean over none of them is no number."""
    config = config_of(small(img_size=(8, 8)))
    growing = replace(config, train=replace(config.train, low_res=0.5))
    try:
        MaskedPatch.check(growing)
    except UsageError as error:
        assert "low_res" in f"{error.message} {error.hint}"
        return
    model, objective = made(growing)
    for _, size in stages(growing.model, 0.5):
        batch = Batch((torch.randn(3, 3, *size),), None, torch.arange(3))
        with model.taking(size):
            assert torch.isfinite(objective(model, batch, objective.draw(model, batch, 0, 0)).loss)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"part": 0.05}, r"masked-patch\.part"),
        ({"masked": 0.8, "replaced": 0.3}, "more than all"),
        ({"target": "downsized"}, "downsized"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MaskedPatch.check(config_of(small(patch=(2, 4) if "target" in values else (4, 4)), **values))
    MaskedPatch.check(config_of(small()))


# --- counts ------------------------------------------------------------------------------------------------


@given(
    heads=st.integers(1, 4),
    channels=st.integers(1, 8),
    patch=st.sampled_from([(4, 4), (4, 8), (8, 4)]),
    target=st.sampled_from(["colour", "downsized", "pixels"]),
)
def test_its_parameters_are_counted_without_making_it(
    heads: int, channels: int, patch: tuple[int, int], target: str
) -> None:
    model = small(width=2 * heads * channels, heads=heads, patch=patch)
    config = config_of(model, target=target)
    objective = MaskedPatch(ViT(model), config)
    assert MaskedPatch.extra(config).parameters == sum(p.numel() for p in objective.parameters())
    assert MaskedPatch.extra(config).kept == sum(b.numel() for b in objective.buffers()) == 0
    assert objective.undecayed() == {"mask_token"}


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (small(width=64, heads=4, mlp=256, depth=4), {}),
        (small(width=48, heads=3, depth=3, registers=2, pool="cls"), {"target": "downsized", "part": 0.3}),
        (small(width=48, heads=3, depth=3, patch=(8, 8)), {"target": "pixels"}),
    ],
)
def test_operations_are_three_forward_passes_as_torch_counts_them(model: ModelConfig, values: dict[str, Any]) -> None:
    config = config_of(model, **values)
    built, objective = made(config)
    batch = Batch((torch.randn(2, 3, 16, 16),), None, torch.arange(2))
    noise = objective.draw(built, batch, 0, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective(built, batch, noise)
    assert MaskedPatch.training_flops(config, 2) == pytest.approx(3 * counter.get_total_flops(), rel=0.02)
