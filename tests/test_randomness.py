"""Addressed random numbers: the same address gives the same number, whatever else is drawn."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from vitcli import randomness
from vitcli.randomness import generator, permutation, step_uniforms

Rows = NDArray[np.int64]


def uniforms(seed: int, purpose: str, epochs: Rows, samples: Rows, count: int) -> NDArray[np.float64]:
    tensors = (torch.from_numpy(numbers) for numbers in (epochs, samples))
    return randomness.uniforms(seed, purpose, *tensors, count).numpy()


SEEDS = st.integers(0, 2**63 - 1)


def addresses(n: int, epoch: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.full(n, epoch, np.int64), np.arange(n, dtype=np.int64)


@given(seed=SEEDS, order=st.permutations(range(12)), count=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_row_depends_on_its_own_address_only(seed: int, order: list[int], count: int) -> None:
    epochs = np.arange(12, dtype=np.int64) // 5
    samples = np.arange(12, dtype=np.int64) * 7919
    whole = uniforms(seed, "crop", epochs, samples, count)
    picked = np.array(order[:5])
    np.testing.assert_array_equal(uniforms(seed, "crop", epochs[picked], samples[picked], count), whole[picked])


@given(count=st.integers(1, 20), more=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_asking_for_more_numbers_does_not_change_the_first_ones(count: int, more: int) -> None:
    epochs, samples = addresses(4, 3)
    few = uniforms(1, "crop", epochs, samples, count)
    np.testing.assert_array_equal(uniforms(1, "crop", epochs, samples, count + more)[:, :count], few)


def test_seed_purpose_epoch_and_sample_each_matter() -> None:
    one = np.ones(1, np.int64)
    base = uniforms(1, "crop", one, one, 8)
    for other in (
        uniforms(2, "crop", one, one, 8),
        uniforms(1, "flip", one, one, 8),
        uniforms(1, "crop", 2 * one, one, 8),
        uniforms(1, "crop", one, 2 * one, 8),
        uniforms(1, "crop", 0 * one, 2 * one, 8),  # not a function of the sum
    ):
        assert not np.isclose(base, other).any()


def test_epoch_and_sample_are_not_interchangeable() -> None:
    epochs, samples = np.array([3, 5]), np.array([5, 3])
    a, b = uniforms(0, "crop", epochs, samples, 4)
    assert not np.isclose(a, b).any()


@pytest.mark.parametrize("seed", [0, 1, 12345678901])
def test_numbers_are_uniform_and_uncorrelated(seed: int) -> None:
    numbers = uniforms(seed, "crop", *addresses(4000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.06  # neighbouring samples
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.06  # slots of one sample
    later = uniforms(seed, "crop", *addresses(4000, 1), 4)
    assert abs(np.corrcoef(numbers[:, 0], later[:, 0])[0, 1]) < 0.06
    assert len(np.unique(numbers)) == numbers.size


def test_generators_of_one_address_agree_and_of_two_differ() -> None:
    first = generator(3, "mix", 10).random(5)
    np.testing.assert_array_equal(generator(3, "mix", 10).random(5), first)
    for other in (generator(4, "mix", 10), generator(3, "noise", 10), generator(3, "mix", 11), generator(3, "mix")):
        assert not np.isclose(other.random(5), first).any()


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), n=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_a_permutation_has_every_sample_once_and_repeats(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, "order", epoch, n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(permutation(seed, "order", epoch, n), order)


def test_permutations_differ_by_epoch_seed_and_purpose() -> None:
    orders = [
        permutation(0, "order", 0, 100),
        permutation(0, "order", 1, 100),
        permutation(1, "order", 0, 100),
        permutation(0, "fraction", 0, 100),
    ]
    for i, a in enumerate(orders):
        for b in orders[i + 1 :]:
            assert np.mean(a == b) < 0.1


def test_numbers_are_pinned() -> None:
    """A run that is resumed under a newer version must see the same numbers."""
    np.testing.assert_allclose(
        uniforms(7, "geometry-0", np.array([0, 2]), np.array([5, 5]), 2),
        PINNED,
        rtol=0,
        atol=0,
    )
    assert permutation(0, "order", 0, 8).tolist() == PINNED_ORDER


PINNED = [[0.23370810887847404, 0.5548371173695313], [0.2167329084517423, 0.8414987508822135]]
PINNED_ORDER = [3, 0, 5, 7, 1, 4, 2, 6]


# --- on the device -------------------------------------------------------------------------------------------


def splitmix(seed: int, purpose: str, epochs: Rows, samples: Rows, count: int) -> NDArray[np.float64]:
    """The numbers by numpy's unsigned integers."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    with np.errstate(over="ignore"):
        key = mix(np.array([seed], np.uint64) * golden + np.uint64(zlib.crc32(purpose.encode())))
        row = mix(mix(key + samples.astype(np.uint64) * golden) ^ (epochs.astype(np.uint64) + golden))
        bits = mix(row[:, None] + np.arange(1, count + 1, dtype=np.uint64) * golden)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**62 + 12345, 2**63 - 1])
def test_a_million_addresses_have_the_numbers_of_numpy_on_every_device(seed: int) -> None:
    random = np.random.default_rng(seed % 2**32)
    epochs, samples = random.integers(0, 2**40, 250_000), random.integers(0, 2**62, 250_000)
    expected = splitmix(seed, "geometry-1", epochs, samples, 4)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        tensors = (torch.from_numpy(numbers).to(device) for numbers in (epochs, samples))
        found = randomness.uniforms(seed, "geometry-1", *tensors, 4)
        assert found.device.type == device and np.array_equal(found.cpu().numpy(), expected)


def test_a_step_draws_by_its_number_whether_it_is_known_to_the_host_or_a_tensor() -> None:
    for step in (0, 7, 10**9):
        known = step_uniforms(3, "drop-path", step, 5, 4)
        assert torch.equal(known, step_uniforms(3, "drop-path", torch.tensor(step), 5, 4))
        assert np.array_equal(known.numpy(), splitmix(3, "drop-path", np.full(5, step), np.arange(5), 4))
        assert torch.equal(step_uniforms(3, "drop-path", step, 3, 4), known[:3]), "images of the batch do not matter"
    assert not torch.isclose(step_uniforms(3, "drop-path", 7, 5, 4), step_uniforms(3, "drop-path", 8, 5, 4)).any()


def test_numbers_are_the_same_within_a_compiled_graph() -> None:
    epochs, samples = torch.arange(40), torch.arange(40) * 7919
    compiled = torch.compile(
        lambda e, s: randomness.uniforms(2**63 - 1, "crop", e, s, 9), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(epochs, samples), randomness.uniforms(2**63 - 1, "crop", epochs, samples, 9))
