"""Random numbers with an address instead of a stream.

A number depends only on the seed and on what it is for: sample order on (seed, epoch), a sample's
augmentation on (seed, epoch, sample, slot), a step's draws on (seed, step, purpose). So the number of
workers, micro-batches or processes never changes a run, and resume needs a step number only.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), element by element."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniforms(
    seed: int, purpose: str, epochs: NDArray[np.int64], samples: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """`[batch, count]` numbers in [0, 1), row i a function of (seed, purpose, epochs[i], samples[i]) alone."""
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed], np.uint64) * _GOLDEN + np.uint64(zlib.crc32(purpose.encode())))
        row = _mix(_mix(key + samples.astype(np.uint64) * _GOLDEN) ^ (epochs.astype(np.uint64) + _GOLDEN))
        slots = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(row[:, None] + slots[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, address)."""
    words = [seed, zlib.crc32(purpose.encode()), *address]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of `n` samples in `epoch`."""
    return generator(seed, purpose, epoch).permutation(n)
