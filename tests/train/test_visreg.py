"""VISReg and SIGReg by their formulas in numpy, float64: values, gradients by finite differences, known floors.

VISReg: arXiv 2606.02572, equations 1 to 6 and 8. SIGReg: Balestriero and LeCun, 2025, arXiv 2511.08544; rbalestr-lab/lejepa
epps_pulley.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitcli.config import AugmentConfig, Config, ModelConfig, RunConfig, TrainConfig, VisregConfig
from vitcli.data.batch import Batch
from vitcli.errors import UsageError
from vitcli.model.vit import ViT, init_weights
from vitcli.train.objectives.visreg import Drawn, Visreg, hidden_of, quantiles, sigreg, visreg, weight_of

Array = NDArray[np.float64]


def numbers(views: int, images: int, dim: int, slices: int, seed: int, scale: float = 1.0) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    z = scale * draw.normal(size=(views, images, dim)) + draw.normal(size=dim)
    directions = draw.normal(size=(dim, slices))
    return z, directions / np.sqrt((directions**2).sum(0))


# --- the same by hand --------------------------------------------------------------------------------------


def deviations_by_hand(z: Array) -> Array:
    """[views, dim]: biased, with the small number outside the root."""
    return np.array(
        [
            [
                math.sqrt(sum((x - sum(column) / len(column)) ** 2 for x in column) / len(column)) + 1e-6
                for column in v.T
            ]
            for v in z
        ]
    )


def visreg_by_hand(z: Array, directions: Array, deviations: Array | None = None) -> dict[str, float]:
    """`deviations` are those that the shape is divided by, where they are held fixed."""
    views, images, _ = z.shape
    means, own = z.sum(1) / images, deviations_by_hand(z)
    divisor = own if deviations is None else deviations
    expected = [NormalDist().inv_cdf(i / (images + 1)) for i in range(1, images + 1)]
    shape = 0.0
    for v in range(views):
        standard = (z[v] - means[v]) / divisor[v]
        for k in range(directions.shape[1]):
            projected = sorted(float(row @ directions[:, k]) for row in standard)
            shape += sum((p - q) ** 2 for p, q in zip(projected, expected, strict=True))
    return {
        "centre": float((means**2).mean()),
        "scale": float(((own - 1) ** 2).mean()),
        "shape": shape / (views * images * directions.shape[1]),
    }


def sigreg_by_hand(z: Array, directions: Array) -> float:
    """Complex exponentials on all 33 points of -3 … 3, one slice and view after the other."""
    t = np.linspace(-3, 3, 33)
    steps = np.full(33, 6 / 32)
    steps[0] = steps[-1] = 3 / 32
    total = 0.0
    for view in z:
        for k in range(directions.shape[1]):
            found = np.exp(1j * np.outer(t, view @ directions[:, k])).mean(1)
            distance = np.abs(found - np.exp(-(t**2) / 2)) ** 2
            total += len(view) * float((distance * np.exp(-(t**2) / 2) * steps).sum())
    return total / (len(z) * directions.shape[1])


def slope(f: Any, z: Array, step: float = 1e-5) -> Array:
    """Central differences."""
    found = np.empty_like(z)
    for place in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[place] += step
        down[place] -= step
        found[place] = (f(up) - f(down)) / (2 * step)
    return found


def gradient_of(regulariser: Any, name: str, z: Array, directions: Array) -> Array:
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    regulariser(leaf, torch.from_numpy(directions))[name].backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


# --- values ------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 4), st.integers(2, 20), st.integers(1, 9), st.integers(1, 140))


@given(size=sizes, seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 0.3, 1.0, 5.0]))
@settings(max_examples=30)
def test_the_terms_are_those_of_the_formulas(size: tuple[int, int, int, int], seed: int, scale: float) -> None:
    z, directions = numbers(*size, seed, scale)
    arguments = torch.from_numpy(z), torch.from_numpy(directions)
    found = {name: float(term) for name, term in visreg(*arguments).items()}
    assert found == pytest.approx(visreg_by_hand(z, directions), rel=1e-9, abs=1e-12)
    (name, value), *rest = sigreg(*arguments).items()
    assert (name, rest) == ("sigreg", [])
    assert float(value) == pytest.approx(sigreg_by_hand(z, directions), rel=1e-6)


@given(
    size=st.tuples(st.integers(1, 3), st.integers(3, 7), st.integers(1, 4), st.integers(1, 5)),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.05, 1.0, 3.0]),
)
@settings(max_examples=15)
def test_the_gradients_are_finite_differences(size: tuple[int, int, int, int], seed: int, scale: float) -> None:
    """Of the shape with its deviations held fixed, but not its means (equation 2)."""
    z, directions = numbers(*size, seed, scale)
    fixed = deviations_by_hand(z)
    tolerance: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-6 / scale}
    step = 1e-6 * scale
    for name in ("centre", "scale"):
        expected = slope(lambda x, n=name: visreg_by_hand(x, directions)[n], z, step)
        assert np.allclose(gradient_of(visreg, name, z, directions), expected, **tolerance), name
    expected = slope(lambda x: visreg_by_hand(x, directions, fixed)["shape"], z, step)
    assert np.allclose(gradient_of(visreg, "shape", z, directions), expected, **tolerance)
    expected = slope(lambda x: sigreg_by_hand(x, directions), z)
    assert np.allclose(gradient_of(sigreg, "sigreg", z, directions), expected, rtol=2e-4, atol=1e-6)


def test_the_deviation_that_standardises_carries_no_gradient() -> None:
    """So that the shape's pull grows as 1 / σ while embeddings shrink, where SIGReg's vanishes."""
    z, directions = numbers(2, 32, 6, 40, seed=0)
    z = z - z.mean(1, keepdims=True)
    free = slope(lambda x: visreg_by_hand(x, directions)["shape"], z[:, :4], 1e-6)
    assert not np.allclose(gradient_of(visreg, "shape", z[:, :4], directions), free, rtol=1e-2)
    one, small = (np.linalg.norm(gradient_of(visreg, "shape", r * z, directions)) for r in (1.0, 1e-3))
    assert small / one == pytest.approx(1000, rel=0.01)
    one, small = (np.linalg.norm(gradient_of(visreg, "scale", r * z, directions)) for r in (1e-2, 1e-3))
    assert small / one == pytest.approx(1, rel=0.02)
    one, small = (np.linalg.norm(gradient_of(sigreg, "sigreg", r * z, directions)) for r in (1e-2, 1e-3))
    assert small / one == pytest.approx(0.1, rel=0.02)


def test_slices_are_the_mean_however_many_are_formed_at_once() -> None:
    z, directions = (torch.from_numpy(a) for a in numbers(2, 12, 5, 131, seed=1))
    parts = [float(sigreg(z, directions[:, k : k + 1])["sigreg"]) for k in range(131)]
    assert float(sigreg(z, directions)["sigreg"]) == pytest.approx(sum(parts) / 131, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 4096])
def test_quantiles_are_those_of_a_normal_distribution(count: int) -> None:
    expected = [NormalDist().inv_cdf(i / (count + 1)) for i in range(1, count + 1)]
    found = quantiles(count)
    assert found.tolist() == pytest.approx(expected, abs=1e-9) and torch.isfinite(found.float()).all()


# --- known values ------------------------------------------------------------------------------------------


def normal(images: int, dim: int = 128, slices: int = 256, views: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(dim, slices, generator=draw)
    return torch.randn(views, images, dim, generator=draw), directions / directions.norm(dim=0)


@pytest.mark.parametrize(
    ("images", "centre", "scale", "shape"), [(64, 0.016, 0.008, 0.029), (256, 0.004, 0.002, 0.008)]
)
def test_normal_embeddings_are_at_the_floor(images: int, centre: float, scale: float, shape: float) -> None:
    """1 / B, 1 / 2B, and what is left of the sliced distance by chance."""
    found = {name: float(term) for name, term in visreg(*normal(images)).items()}
    assert found == pytest.approx({"centre": centre, "scale": scale, "shape": shape}, rel=0.25)


def test_embeddings_that_are_all_the_same_are_at_the_top() -> None:
    z, directions = normal(256)
    found = visreg(torch.full_like(z, 0.7), directions)
    assert float(found["centre"]) == pytest.approx(0.49, rel=1e-4)
    assert float(found["scale"]) == pytest.approx(1, rel=1e-4)
    assert float(found["shape"]) == pytest.approx(float(quantiles(256).square().mean()), rel=0.05)
    assert 0.95 < float(quantiles(256).square().mean()) < 1


def test_a_collapse_has_finite_gradients() -> None:
    z, directions = normal(16)
    leaf = torch.full_like(z, 0.7).requires_grad_()
    torch.stack([*visreg(leaf, directions).values()]).sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_embeddings_of_few_dimensions_have_a_shape_far_above_the_floor(rank: int) -> None:
    """With deviations of one: so it is the shape that tells."""
    z, directions = normal(256, dim=128)
    mixing = torch.randn(rank, 128, generator=torch.Generator().manual_seed(1))
    low = z[..., :rank] @ mixing
    low = (low - low.mean(1, keepdim=True)) / low.std(1, correction=0, keepdim=True)
    found = visreg(low, directions)
    assert float(found["scale"]) < 1e-6 and float(found["centre"]) < 1e-6
    assert float(found["shape"]) == pytest.approx({1: 0.415, 4: 0.143, 16: 0.036}[rank], rel=0.3)


@pytest.mark.parametrize("images", [64, 256])
def test_the_statistic_of_normal_embeddings_does_not_depend_on_the_batch(images: int) -> None:
    """∫ (1 - φ²) φ over -3 … 3 is 1.05; all at zero, the batch times ∫ (1 - φ)² φ = 0.4022."""
    z, directions = normal(images)
    assert float(sigreg(z, directions)["sigreg"]) == pytest.approx(1.05, abs=0.08)
    assert float(sigreg(torch.zeros_like(z), directions)["sigreg"]) == pytest.approx(0.4022 * images, rel=1e-3)


# --- the objective -----------------------------------------------------------------------------------------


def config_of(views: int = 2, batch: int = 8, **values: Any) -> Config:
    model = ModelConfig(
        name="small", width=16, depth=2, heads=2, mlp=32, patch=(4, 4), img_size=(8, 8), pool="mean", drop_path=0.2
    )
    return Config(
        model=model,
        augment=AugmentConfig(views=views),
        train=TrainConfig(batch_size=batch, objective="visreg"),
        run=RunConfig(seed=3),
        settings={"visreg": VisregConfig(**{"width": 12, "slices": 20, "hidden": 24} | values)},
    )


def made(config: Config) -> tuple[ViT, Visreg]:
    assert isinstance(config.model, ModelConfig)
    model = ViT(config.model)
    init_weights(model, 1)
    return model, Visreg(model, config)


def batch_of(views: int = 2, images: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(2)
    return Batch(tuple(torch.randn(images, 3, 8, 8, generator=draw) for _ in range(views)), None, torch.arange(images))


def drawn(objective: Visreg, model: ViT, batch: Batch, seed: int = 0, step: int = 0) -> Drawn:
    noise = objective.draw(model, batch, seed, step)
    assert isinstance(noise, Drawn) and noise.directions is not None
    return noise


@pytest.mark.parametrize("kind", ["visreg", "sigreg"])
@pytest.mark.parametrize("weight", [None, 0.25])
@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_weighs_the_regulariser_against_agreement(kind: str, weight: float | None, views: int) -> None:
    """λ · Σ + (1 - λ) · the squared distance of a view from the mean of all of them (equation 8)."""
    config = config_of(views, regulariser=kind, weight=weight)
    _, objective = made(config)
    z, directions = numbers(views, 10, 12, 20, seed=4)
    terms = visreg_by_hand(z, directions) if kind == "visreg" else {"sigreg": sigreg_by_hand(z, directions)}
    distances = [(z[v] - z.sum(0) / views) ** 2 for v in range(views)]
    invariance = float(np.mean(distances))
    found = objective.of(torch.from_numpy(z).float(), torch.from_numpy(directions).float())
    used = weight if weight is not None else {"visreg": 0.6, "sigreg": 0.02}[kind]
    assert weight_of(objective.settings) == used
    assert float(found.loss) == pytest.approx(used * sum(terms.values()) + (1 - used) * invariance, rel=1e-4)
    assert {k: float(v) for k, v in found.metrics.items()} == pytest.approx(
        terms | {"invariance": invariance}, rel=1e-4
    )


def test_the_projections_are_the_projector_s_of_every_view() -> None:
    """Linear, batch norm over all views' rows, GELU, twice; then a Linear alone."""
    model, objective = made(config_of())
    batch = batch_of()
    noise = replace(drawn(objective, model, batch), keep=None)
    model.eval()
    x = np.concatenate([model.features(view).detach().double().numpy() for view in batch.views])
    own = {name: p.detach().double().numpy() for name, p in objective.projector.named_parameters()}
    for index in (0, 3):
        x = x @ own[f"{index}.weight"].T + own[f"{index}.bias"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * own[f"{index + 1}.weight"] + own[f"{index + 1}.bias"]
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = x @ own["6.weight"].T + own["6.bias"]
    assert noise.directions is not None
    expected = visreg_by_hand(x.reshape(2, 8, 12), noise.directions.double().numpy())
    found = objective(model, batch, noise).metrics
    assert {k: float(torch.as_tensor(found[k]).detach()) for k in expected} == pytest.approx(expected, rel=1e-3)


def test_directions_are_unit_columns_that_follow_from_seed_and_step() -> None:
    model, objective = made(config_of())
    batch = batch_of()
    directions = drawn(objective, model, batch, seed=1, step=5).directions
    assert directions is not None and directions.shape == (12, 20)
    assert torch.allclose(directions.norm(dim=0), torch.ones(20), atol=1e-6)
    same = drawn(objective, model, batch, seed=1, step=5).directions
    assert same is not None and torch.equal(directions, same)
    for seed, step in ((1, 6), (2, 5)):
        other = drawn(objective, model, batch, seed=seed, step=step).directions
        assert other is not None and (directions * other).sum(0).abs().max() < 0.99


def test_directions_point_everywhere_alike() -> None:
    config = config_of(width=3, slices=20_000)
    model, objective = made(config)
    directions = drawn(objective, model, batch_of()).directions
    assert directions is not None
    assert torch.allclose(directions @ directions.T / 20_000, torch.eye(3) / 3, atol=0.01)
    assert directions.mean(dim=1).abs().max() < 0.02


def test_micro_batches_take_rows_of_every_view_and_all_directions() -> None:
    model, objective = made(config_of())
    batch = batch_of()
    noise = drawn(objective, model, batch)
    assert noise.keep is not None and noise.keep.shape == (2, 2, 2, 8), "blocks, branches, views, images"
    part = noise.rows(slice(2, 5))
    assert part.keep is not None and torch.equal(part.keep, noise.keep[..., 2:5])
    assert part.directions is noise.directions
    assert torch.isfinite(objective(model, batch.rows(slice(2, 5)), part).loss)


def test_views_are_masked_by_drop_path_of_their_own() -> None:
    config = config_of(batch=64)
    model, objective = made(config)
    keep = drawn(objective, model, batch_of(images=64)).keep
    assert keep is not None and not torch.equal(keep[1, :, 0], keep[1, :, 1])


def test_a_batch_of_one_image_is_refused_and_so_is_a_micro_batch() -> None:
    for batch, parts in ((1, 1), (8, 8)):
        config = config_of(batch=batch)
        with pytest.raises(UsageError, match="single image"):
            Visreg.check(replace(config, train=replace(config.train, accumulate=parts)))
    Visreg.check(config_of(batch=2))
    assert not Visreg.is_mean_over_images, "vit takes no micro-batches by itself"


# --- counts ------------------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 40),
    hidden=st.sampled_from([0, 1, 7, 64]),
    pool=st.sampled_from(["mean", "cls", "cls+mean"]),
    slices=st.integers(1, 9),
)
@settings(max_examples=25)
def test_its_parameters_are_counted_without_making_it(width: int, hidden: int, pool: Any, slices: int) -> None:
    config = config_of(width=width, hidden=hidden, slices=slices)
    assert isinstance(config.model, ModelConfig)
    config = replace(config, model=replace(config.model, pool=pool))
    assert isinstance(config.model, ModelConfig)
    objective = Visreg(ViT(config.model), config)
    assert Visreg.extra(config).parameters == sum(p.numel() for p in objective.parameters())
    assert Visreg.extra(config).kept == sum(b.numel() for b in objective.buffers()) == 0
    assert hidden_of(config) == (hidden or 4 * config.model.features)


@pytest.mark.parametrize("kind", ["visreg", "sigreg"])
@pytest.mark.parametrize("views", [2, 4])
def test_operations_are_three_forward_passes_as_torch_counts_them(views: int, kind: str) -> None:
    """But for the sum of SIGReg's weighted points, which is no product of matrices of the model."""
    config = config_of(views, regulariser=kind, width=32, hidden=64, slices=100)
    model, objective = made(config)
    batch = batch_of(views)
    noise = replace(drawn(objective, model, batch), keep=None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective(model, batch, noise)
    points = 2 * views * 100 * 17 if kind == "sigreg" else 0
    assert Visreg.training_flops(config, 8) == pytest.approx(3 * (counter.get_total_flops() - points), rel=0.02)
