"""What a host that runs ahead of its device may ask of it, and how it hands numbers over without a wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def can_read(tensor: Tensor) -> bool:
    """Whether its numbers can be read without a wait: on a CPU, outside of torch.compile.

    Work on a batch has two forms by it. A CPU computes what is wanted, for the images that want it. An accelerator, for
    which reading a number means to stop until all before it is done, computes for all images at once and throws away
    what is not wanted. Both give the same numbers.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def constants(values: Sequence[float], device: torch.device) -> Float[Tensor, " values"]:
    """Numbers made on the device, where torch.tensor would copy them to it and wait."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def tensor(value: Tensor | float, device: torch.device) -> Tensor:
    """`value` on the device, where a number is made and not copied."""
    return value.to(device) if isinstance(value, Tensor) else torch.full((), value, device=device)


def numbers_of(device: torch.device) -> torch.device:
    """Where random numbers for work on `device` are made: of float64 and int64, which not every one has."""
    return device if device.type == "cuda" else torch.device("cpu")


def read(flag: Tensor) -> bool:
    """What it holds; waits for the device where it has one."""
    return bool(flag.cpu().numpy())
