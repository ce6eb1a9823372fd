"""Masked autoencoders against numpy in float64 (He et al., 2022, §3 and appendix A.1; facebookresearch/mae models_mae.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
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
from vitcli.config import Config, EvalConfig, MAEConfig, ModelConfig, RunConfig
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.train.objectives import mae
from vitcli.train.objectives.mae import MAE, Shuffled, decoder_of, seen_of
from vitcli.train.progressive import stages

Array = NDArray[np.float64]


def encoder(**values: Any) -> ModelConfig:
    return small_vit(**{"patch": (4, 2), "img_size": (16, 12)} | values)


def config_of(model: ModelConfig, **values: Any) -> Config:
    evaluation = EvalConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return Config(model=model, eval=evaluation, run=RunConfig(seed=3), settings={"mae": MAEConfig(**values)})


def made(config: Config) -> tuple[ViT, MAE]:
    """Both in float64, with positions and biases that are not small."""
    assert isinstance(config.model, ModelConfig)
    model = ViT(config.model)
    init_weights(model, 1)
    objective = MAE(model, config)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=draw))
    return model.double(), objective.double()


def batch_of(size: tuple[int, int], images: int = 3, seed: int = 2) -> Batch:
    pixels = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch((pixels,), None, torch.arange(images))


def drawn(objective: MAE, model: ViT, batch: Batch, seed: int = 0, step: int = 0) -> Shuffled:
    noise = objective.draw(model, batch, seed, step)
    assert isinstance(noise, Shuffled) and noise.order is not None
    return noise


def order_of(noise: Shuffled) -> NDArray[np.int64]:
    assert noise.order is not None
    return noise.order.numpy()


def own(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


# --- the same by hand --------------------------------------------------------------------------------------


def patches_by_hand(images: Array, patch: tuple[int, int]) -> Array:
    """[images, patches, values]; within a patch channel, row, column, as a convolution's weights lie."""
    rows, columns = images.shape[2] // patch[0], images.shape[3] // patch[1]
    found = np.empty((len(images), rows * columns, 3 * patch[0] * patch[1]))
    for index, image in enumerate(images):
        for row in range(rows):
            for column in range(columns):
                top, left = row * patch[0], column * patch[1]
                part = image[:, top : top + patch[0], left : left + patch[1]]
                found[index, row * columns + column] = part.flatten()
    return found


def sines_by_hand(grid: tuple[int, int], width: int) -> Array:
    """util/pos_embed.py: sine and cosine of the column, then of the row, at 10000^(-k / (width / 4))."""
    rates = [10_000 ** (-k / (width / 4)) for k in range(width // 4)]
    table = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            line: list[float] = []
            for place in (column, row):
                line += [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
            table.append(line)
    return np.array(table)


def norm_by_hand(x: Array, layer: torch.nn.LayerNorm) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled: Array = (x - mean) / np.sqrt(variance + layer.eps) * own(layer.weight) + own(layer.bias)
    return scaled


def through(blocks: torch.nn.ModuleList, x: Array) -> Array:
    tokens = torch.from_numpy(x)
    for block in blocks:
        tokens = block(tokens)
    return own(tokens)


def kept_by_hand(order: NDArray[np.int64], seen: int) -> NDArray[np.bool_]:
    """[images, patches] in the order of the image: whether the encoder sees the patch."""
    kept = np.zeros(order.shape, bool)
    for image, places in enumerate(order):
        for place in places[:seen]:
            kept[image, place] = True
    return kept


def painted_by_hand(model: ViT, objective: MAE, images: Array, kept: NDArray[np.bool_]) -> Array:
    """The decoder's answer at every patch, in the order of the image."""
    config = model.config
    grid = (images.shape[2] // config.patch[0], images.shape[3] // config.patch[1])
    patches = patches_by_hand(images, config.patch)
    table = own(model.positions(grid))[0]
    prefix_rows = config.prefix_rows
    assert model.patch_embed.proj.bias is not None
    weight, bias = own(model.patch_embed.proj.weight), own(model.patch_embed.proj.bias)
    embedded: Array = patches @ weight.reshape(config.width, -1).T + bias
    embedded = embedded + table[prefix_rows:]  # before anything is left out
    answers = []
    for image in range(len(images)):
        tokens = embedded[image][kept[image]]
        prefix = [own(token)[0] for token in (model.cls_token, model.dist_token) if token is not None]
        first = np.concatenate(prefix) if prefix else np.zeros((0, config.width))
        if prefix_rows:
            first = first + table[:prefix_rows]
        if model.reg_token is not None:
            first = np.concatenate([first, own(model.reg_token)[0]])
        x = through(model.blocks, np.concatenate([first, tokens])[None])[0]
        last = model.norm if isinstance(model.norm, torch.nn.LayerNorm) else model.fc_norm
        assert isinstance(last, torch.nn.LayerNorm)
        x = norm_by_hand(x, last) @ own(objective.embed.weight).T + own(objective.embed.bias)
        # back to the order of the image, a mask token wherever nothing was seen
        whole = np.repeat(own(objective.mask_token)[0], kept.shape[1], axis=0)
        whole[kept[image]] = x[len(first) :]
        whole = whole + sines_by_hand(grid, whole.shape[1])
        decoded = through(objective.blocks, np.concatenate([x[: len(first)], whole])[None])[0]
        painted = norm_by_hand(decoded[len(first) :], objective.norm)
        answers.append(painted @ own(objective.paint.weight).T + own(objective.paint.bias))
    return np.stack(answers)


def target_by_hand(images: Array, patch: tuple[int, int], normalise: bool) -> Array:
    patches = patches_by_hand(images, patch)
    if not normalise:
        return patches
    count = patches.shape[2]
    mean = patches.sum(2, keepdims=True) / count
    variance = ((patches - mean) ** 2).sum(2, keepdims=True) / (count - 1)
    whitened: Array = (patches - mean) / np.sqrt(variance + 1e-6)
    return whitened


def loss_by_hand(model: ViT, objective: MAE, images: Array, order: NDArray[np.int64]) -> float:
    settings = objective.settings
    kept = kept_by_hand(order, seen_of(order.shape[1], settings.mask))
    guess = painted_by_hand(model, objective, images, kept)
    target = target_by_hand(images, model.config.patch, settings.normalise)
    error = ((guess - target) ** 2).mean(2)
    return float((error * ~kept).sum() / (~kept).sum())


KINDS: list[dict[str, Any]] = [
    {},
    {"pool": "cls"},
    {"class_token": False},
    {"registers": 2},
    {"prefix_positions": False},
    {"norm": "after"},
    {"positions": "2d"},
    {"positions": "sincos"},
    {"positions": "none"},
    {"layer_scale": 0.1},
    {"distilled": True, "pool": "cls"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_numpy_with_tokens_in_the_order_of_the_image(kind: dict[str, Any], normalise: bool) -> None:
    model, objective = made(config_of(encoder(**kind), normalise=normalise, mask=0.6, width=24))
    batch = batch_of((16, 12))
    noise = drawn(objective, model, batch)
    found = float(objective(model, batch, noise).loss.detach())
    assert found == pytest.approx(loss_by_hand(model, objective, own(batch.images), order_of(noise)), rel=1e-5)


@pytest.mark.parametrize("positions", ["learned", "2d", "sincos"])
def test_smaller_images_have_positions_of_their_own_grid(positions: str) -> None:
    """As train.low_res hands them over."""
    model, objective = made(config_of(encoder(positions=positions)))
    batch = batch_of((8, 8))
    noise = drawn(objective, model, batch)
    assert order_of(noise).shape == (3, 8)
    with model.taking((8, 8)):
        found = float(objective(model, batch, noise).loss.detach())
    assert found == pytest.approx(loss_by_hand(model, objective, own(batch.images), order_of(noise)), rel=1e-5)


def test_a_patch_is_normalised_by_its_unbiased_variance() -> None:
    """Of 24 values the two variances differ by 4 %: one answer is the target's own, and the loss is zero for that alone."""
    model, objective = made(config_of(encoder()))
    batch = batch_of((16, 12))
    noise = drawn(objective, model, batch)
    order, target = order_of(noise), target_by_hand(own(batch.images), (4, 2), True)
    removed = np.stack([target[i, order[i, seen_of(24, 0.75) :]] for i in range(3)])
    objective.painted = lambda *_: torch.from_numpy(removed)  # type: ignore[method-assign]
    assert float(objective(model, batch, noise).loss) < 1e-12
    flat = Batch((torch.full((2, 3, 16, 12), 0.25, dtype=torch.float64),), None, torch.arange(2))
    objective.painted = lambda *_: torch.zeros(2, 18, 24, dtype=torch.float64)  # type: ignore[method-assign]
    assert float(objective(model, flat, drawn(objective, model, flat)).loss) == 0, "a patch of one colour is all zeros"


# --- which patches -----------------------------------------------------------------------------------------


def test_each_image_and_step_has_a_mask_of_its_own_that_the_seed_decides() -> None:
    model, objective = made(config_of(encoder()))
    batch = batch_of((16, 12), images=20)
    order = order_of(drawn(objective, model, batch, seed=4, step=7))
    assert all(sorted(row) == list(range(24)) for row in order.tolist())
    kept = kept_by_hand(order, 6)
    assert len({row.tobytes() for row in kept}) == 20, "134,596 masks are possible"
    assert np.array_equal(order, order_of(drawn(objective, model, batch, seed=4, step=7)))
    for seed, step in ((4, 8), (5, 7)):
        other = kept_by_hand(order_of(drawn(objective, model, batch, seed=seed, step=step)), 6)
        assert (kept != other).any(1).all()


def test_every_patch_is_removed_as_often_as_every_other() -> None:
    model, objective = made(config_of(encoder()))
    batch = Batch((torch.zeros(64, 3, 16, 12, dtype=torch.float64),), None, torch.arange(64))
    counts = np.zeros(24)
    for step in range(100):
        counts += kept_by_hand(order_of(drawn(objective, model, batch, step=step)), 6).sum(0)
    deviation = math.sqrt(6400 * 0.25 * 0.75)
    assert np.abs(counts - 1600).max() < 4.5 * deviation


def test_micro_batches_take_the_masks_of_their_images() -> None:
    model, objective = made(config_of(encoder(drop_path=0.3)))
    batch = batch_of((16, 12), images=6)
    noise = drawn(objective, model, batch)
    whole = objective(model, batch, noise).loss
    parts = [objective(model, batch.rows(part), noise.rows(part)).loss for part in (slice(0, 3), slice(3, 6))]
    assert float(whole.detach()) == pytest.approx(float(torch.stack(parts).mean().detach()), rel=1e-6)


@given(patches=st.integers(1, 10_000), decimals=st.integers(1, 9_999))
def test_patches_that_are_seen_are_counted_as_decimals(patches: int, decimals: int) -> None:
    """models_mae.py counts int(100 * (1 - 0.9)) = 9, as 0.1 is not 1 - 0.9 in binary."""
    exact = Fraction(patches) * (1 - Fraction(decimals, 10_000))
    assert seen_of(patches, decimals / 10_000) == math.floor(exact)


@pytest.mark.parametrize(
    ("patches", "mask", "seen"), [(64, 0.75, 16), (64, 0.6, 25), (81, 0.75, 20), (100, 0.9, 10), (196, 0.75, 49)]
)
def test_patches_that_are_seen_of_usual_grids(patches: int, mask: float, seen: int) -> None:
    assert seen_of(patches, mask) == seen


@pytest.mark.parametrize("mask", [0.96, 0.99])
def test_a_mask_that_leaves_the_encoder_no_patch_is_refused(mask: float) -> None:
    assert seen_of(24, mask) == 0
    with pytest.raises(UsageError, match=r"mae\.mask"):
        MAE.check(config_of(encoder(), mask=mask))


@pytest.mark.parametrize("mask", [0.01, 0.75, 0.95])
def test_a_mask_that_leaves_something_to_see_and_something_to_paint_is_taken(mask: float) -> None:
    assert 0 < seen_of(24, mask) < 24
    MAE.check(config_of(encoder(), mask=mask))


def test_smaller_images_of_a_growing_run_leave_something_to_see_or_are_refused() -> None:
    """Of 8 px in patches of 4, half the size is one patch, of which three quarters are hidden."""
    config = config_of(encoder(patch=(4, 4), img_size=(8, 8)))
    growing = replace(config, train=replace(config.train, low_res=0.5))
    sizes = [size for _, size in stages(growing.model, 0.5)]
    assert (4, 4) in sizes
    try:
        MAE.check(growing)
    except UsageError as error:
        assert "low_res" in f"{error.message} {error.hint}"
        return
    assert all(0 < seen_of(height * width // 16, 0.75) < height * width // 16 for height, width in sizes)


def test_relative_positions_are_refused_as_they_count_patches_that_are_left_out() -> None:
    with pytest.raises(UsageError, match="relative"):
        MAE.check(config_of(encoder(positions="relative")))


# --- what reaches what -------------------------------------------------------------------------------------


def test_the_encoder_does_not_see_what_is_removed() -> None:
    """Other pixels there change the target, and the loss, but nothing that the decoder says."""
    model, objective = made(config_of(encoder()))
    batch = batch_of((16, 12))
    noise = drawn(objective, model, batch)
    kept = kept_by_hand(order_of(noise), seen_of(24, 0.75))
    images = batch.images.clone()
    for image in range(3):
        for place in np.flatnonzero(~kept[image]):
            top, left = 4 * (place // 6), 2 * (place % 6)
            images[image, :, top : top + 4, left : left + 2] = torch.rand(3, 4, 2, dtype=torch.float64)
    other = replace(batch, views=(images,))
    assert noise.order is not None
    assert torch.equal(
        objective.painted(model, batch.images, noise.order), objective.painted(model, images, noise.order)
    )
    assert float(objective(model, batch, noise).loss.detach()) != float(objective(model, other, noise).loss.detach())


def test_the_gradient_reaches_every_weight_and_the_pixels_through_the_target_or_the_encoder() -> None:
    model, objective = made(config_of(encoder(pool="cls"), normalise=False))
    batch = batch_of((16, 12))
    noise = drawn(objective, model, batch)
    images = batch.images.clone().requires_grad_()
    objective(model, replace(batch, views=(images,)), noise).loss.backward()
    for name, parameter in (*model.named_parameters(), *objective.named_parameters()):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    # with the answer held fixed, a removed pixel's gradient is its target's alone: 2 (target - answer) / values
    assert noise.order is not None and images.grad is not None
    kept = kept_by_hand(order_of(noise), seen_of(24, 0.75))
    guess = painted_by_hand(model, objective, own(batch.images), kept)
    expected = 2 * (patches_by_hand(own(batch.images), (4, 2)) - guess) / (3 * 18 * 24)
    found = patches_by_hand(own(images.grad), (4, 2))
    assert np.allclose(found[~kept], expected[~kept], rtol=1e-5, atol=1e-9)
    assert (np.abs(found[kept]).sum(1) > 0).all(), "what is seen reaches the loss through the encoder"


def test_the_mask_token_has_no_weight_decay() -> None:
    _, objective = made(config_of(encoder()))
    assert objective.undecayed() == {"mask_token"} <= dict(objective.named_parameters()).keys()


# --- counts ------------------------------------------------------------------------------------------------


@given(
    heads=st.integers(1, 4),
    channels=st.integers(1, 6),
    depth=st.integers(1, 3),
    width=st.sampled_from([0, 4, 6, 7, 12, 32]),
    patch=st.sampled_from([(4, 2), (2, 4), (1, 1), (4, 4)]),
    kind=st.sampled_from(KINDS),
)
def test_its_parameters_are_counted_without_making_it(
    heads: int, channels: int, depth: int, width: int, patch: tuple[int, int], kind: dict[str, Any]
) -> None:
    values = kind | {"positions": "learned"}
    model = encoder(width=2 * heads * channels, heads=heads, patch=patch, **values)
    config = config_of(model, width=width, depth=depth)
    objective = MAE(ViT(model), config)
    assert MAE.extra(config).parameters == sum(p.numel() for p in objective.parameters())
    assert MAE.extra(config).kept == sum(b.numel() for b in objective.buffers()) == 0


def test_the_decoder_has_heads_as_wide_as_the_encoder_s() -> None:
    """§3: 512 channels in 16 heads; here half of the encoder's width, unless another is asked for."""
    model = encoder(width=192, heads=3)
    found = [decoder_of(model, MAEConfig(width=width)) for width in (128, 512, 0)]
    assert [(decoder.width, decoder.heads) for decoder in found] == [(128, 2), (512, 8), (96, 1)]
    assert all(decoder.mlp == 4 * decoder.width and decoder.drop_path == 0 for decoder in found)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (encoder(width=64, heads=4, mlp=256, depth=4), {}),
        (encoder(width=64, heads=4, mlp=128, depth=2, patch=(2, 2), registers=3), {"width": 96, "depth": 3}),
        (encoder(width=48, heads=3, depth=3, class_token=False, patch=(2, 2)), {"mask": 0.5, "depth": 1}),
        (encoder(width=48, heads=3, depth=3, pool="cls", patch=(4, 4)), {"mask": 0.4}),
    ],
)
def test_operations_are_three_forward_passes_as_torch_counts_them(model: ModelConfig, values: dict[str, Any]) -> None:
    config = config_of(model, **values)
    built, objective = ViT(model), MAE(ViT(model), config)
    init_weights(built, 0)
    batch = Batch((torch.randn(2, 3, 16, 12),), None, torch.arange(2))
    noise = objective.draw(built, batch, 0, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective(built, batch, noise)
    assert MAE.training_flops(config, 2) == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
def test_the_picture_shows_each_image_what_was_seen_of_it_and_what_was_painted(
    normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[tuple[NDArray[np.float32], tuple[str, ...]]] = []

    def sheet(table: NDArray[np.float32], heads: tuple[str, ...]) -> NDArray[np.uint8]:
        sheets.append((table, heads))
        return real(table, heads)

    real = mae.contact_sheet
    monkeypatch.setattr(mae, "contact_sheet", sheet)
    config = config_of(encoder(), normalise=normalise)
    model, objective = made(config)
    model, objective = model.float(), objective.float()
    shown = torch.rand(3, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.eval.mean, config.eval.std))
    found = objective.pictures(model, (shown - mean) / std)
    assert list(found) == ["reconstructions"] and found["reconstructions"].dtype == np.uint8
    ((table, heads),) = sheets
    assert heads == ("image", "seen", "painted") and table.shape == (3, 3, 3, 16, 12)
    original, seen, painted = (patches_by_hand(table[:, column].astype(np.float64), (4, 2)) for column in range(3))
    assert np.allclose(table[:, 0], shown.numpy(), atol=1e-6)
    gray = patches_by_hand(mean.expand(3, 3, 16, 12).double().numpy(), (4, 2))
    visible: NDArray[np.bool_] = np.asarray(np.isclose(seen, original, atol=1e-6).all(2))
    assert (visible.sum(1) == 6).all()
    assert np.allclose(seen[~visible], gray[~visible], atol=1e-6), "the rest is the mean colour"
    assert np.array_equal(painted[visible], original[visible]), "of what was seen nothing is painted"
    assert (np.abs(painted[~visible] - original[~visible]).max(1) > 1e-3).all()
    # what is painted, by hand: with the mean and deviation of the patch that was there, where the loss leaves them out
    images = own(((shown - mean) / std).double())
    guess = painted_by_hand(model.double(), objective.double(), images, visible)
    if normalise:
        patches = patches_by_hand(images, (4, 2))
        guess = guess * np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6) + patches.mean(2, keepdims=True)
    channel = np.repeat(np.arange(3), 8)
    expected = guess * np.array(config.eval.std)[channel] + np.array(config.eval.mean)[channel]
    assert np.allclose(painted[~visible], expected[~visible], atol=1e-4)
