"""Random numbers with an address instead of a stream.

A number depends only on the seed and on what it is for: sample order on (seed, epoch), a sample's
augmentation on (seed, epoch, sample, slot), a step's draws on (seed, step, image, purpose). So the number of
workers, micro-batches or processes never changes a run, and resume needs a step number only.

`uniforms` and what is made of them are computed on the device of the addresses, the same numbers on each, from addresses that are
tensors: a step that is recorded once and replayed draws anew by its own number.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64


def _signed(word: int) -> int:
    """The int64 of the same 64 bits: torch multiplies and adds those modulo 2**64, as unsigned numbers are."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _shifted(x: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """To the right, zeros from the left, where torch copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), element by element."""
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


_crcs: dict[str, int] = {}


def _crc(purpose: str) -> int:
    """zlib.crc32 of it, step by step where torch.compile reads along, which cannot look into zlib."""
    if not torch.compiler.is_compiling():
        if purpose not in _crcs:
            _crcs[purpose] = zlib.crc32(purpose.encode())
        return _crcs[purpose]
    crc = 0xFFFFFFFF
    for letter in purpose:
        crc ^= ord(letter)
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _key(seed: int, purpose: str) -> int:
    """`_mix` of the seed and the purpose, which is ASCII."""
    x = (seed * _GOLDEN + _crc(purpose)) % _WORD
    for bits, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ (x >> bits)) * factor % _WORD
    return _signed(x ^ (x >> 31))


def uniforms(
    seed: int, purpose: str, epochs: Int[Tensor, "*batch"], samples: Int[Tensor, " batch"], count: int
) -> Float[Tensor, "batch count"]:
    """Numbers in [0, 1) of float64 on the device of `samples`, row i a function of (seed, purpose, epochs[i], samples[i]) alone.

    `epochs`, or whatever else comes before a sample in its address, may be one number for all.
    """
    row = _mix(_mix(samples * _signed(_GOLDEN) + _key(seed, purpose)) ^ (epochs + _signed(_GOLDEN)))
    slots = torch.arange(1, count + 1, device=samples.device) * _signed(_GOLDEN)
    return _shifted(_mix(row[:, None] + slots), 11).double() * 2.0**-53


Step = int | Int[Tensor, ""]
"""The number of an update, from 0: known to the host, or a tensor of an update that is recorded and replayed."""


def step_uniforms(
    seed: int, purpose: str, step: Step, images: int, count: int, device: torch.device | None = None
) -> Float[Tensor, "images count"]:
    """What a step draws for each image of its global batch, on `device`, or on that of `step` where it is a tensor."""
    if isinstance(step, int):
        step = torch.full((), step, device=device)
    return uniforms(seed, purpose, step, torch.arange(images, device=step.device), count)


def generator(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, address)."""
    words = [seed, zlib.crc32(purpose.encode()), *address]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of `n` samples in `epoch`."""
    return generator(seed, purpose, epoch).permutation(n)
