"""Arrays on their way from the host to the device on which they are worked on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, eq=False)
class Sent:
    """Tensors on the device, and the event after which they are whole, where the copy is still under way."""

    tensors: tuple[Tensor, ...]
    arrived: torch.cuda.Event | None = None


class Upload:
    """Copies to CUDA run from pinned memory on a stream of their own, beside the steps that are at work. Elsewhere an array becomes a
    tensor where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, arrays: Arrays) -> Sent:
        """May be called by any thread."""
        tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        if self.stream is None:
            return Sent(tuple(t.to(self.device) for t in tensors))
        with torch.cuda.stream(self.stream):
            moved = tuple(t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
            return Sent(moved, self.stream.record_event())

    def receive(self, sent: Sent) -> tuple[Tensor, ...]:
        """Tensors that the current stream may use: it waits for them, the host does not."""
        if sent.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent.arrived)
            for tensor in sent.tensors:
                tensor.record_stream(current)  # its memory is not given away before this stream is done with it
        return sent.tensors
