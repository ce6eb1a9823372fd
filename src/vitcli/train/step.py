"""One update of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitcli.config import Config
from vitcli.data.augment import Batch
from vitcli.errors import DivergedError
from vitcli.machine import Machine
from vitcli.model.vit import ViT
from vitcli.randomness import generator
from vitcli.train.objectives import draw_noise
from vitcli.train.optim import Optimizer

DIVERGED_HINT = "lower --set optim.lr=…, lengthen optim.warmup_steps, or clip gradients with optim.clip=1"


@dataclass(frozen=True)
class Update:
    loss: float  # nats, mean over the batch
    grad_norm: float  # before clipping
    metrics: dict[str, Any]


def train_step(
    model: ViT, objective: nn.Module, optimizer: Optimizer, batch: Batch, config: Config, step: int, machine: Machine
) -> Update:
    """Forward and backward in micro-batches, clip, update. Raises DivergedError, without updating, where the loss
    or the gradient is not a finite number.

    Micro-batches change nothing but memory, except that element dropout draws from (seed, step, micro-batch).
    """
    noise = draw_noise(model, config.run.seed, step, len(batch), machine.device)
    size = len(batch) // config.train.accumulate
    total, metrics = 0.0, {}
    optimizer.zero_grad()
    model.train()
    for index in range(config.train.accumulate):
        part = slice(index * size, (index + 1) * size)
        if config.model.dropout:
            torch.manual_seed(int(generator(config.run.seed, "dropout", step, index).integers(2**62)))
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.bf16):
            result = objective(model, batch.rows(part), noise.rows(part))
        (result.loss / config.train.accumulate).backward()
        total += float(result.loss.detach()) / config.train.accumulate
        metrics = result.metrics
    norm = float(optimizer.clip(config.optim.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        ids = ", ".join(str(i) for i in batch.ids[:8].tolist())
        raise DivergedError(
            f"the loss is {total} and the gradient's norm {norm} at step {step + 1} (samples {ids} …)", DIVERGED_HINT
        )
    optimizer.step()
    return Update(total, norm, metrics)
