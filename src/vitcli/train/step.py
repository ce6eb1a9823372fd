"""One update of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcli.data.batch import Batch
from vitcli.errors import DivergedError
from vitcli.model.held import held
from vitcli.randomness import generator
from vitcli.train.trainer import Trainer

DIVERGED_HINT = "lower --set optim.lr=…, lengthen optim.warmup_steps, or clip gradients with optim.clip=1"


@dataclass(frozen=True)
class Update:
    loss: float  # nats, mean over the batch
    grad_norm: float  # before clipping
    metrics: dict[str, Tensor]  # the objective's own, means over the batch, on its device


def train_step(trainer: Trainer, batch: Batch, step: int) -> Update:
    """Forward and backward in micro-batches, clip, update. Raises DivergedError, without updating, where the loss
    or the gradient is not a finite number.

    Micro-batches change nothing but memory, except that what draws from torch's own generator, such as element dropout, draws
    from (seed, step, micro-batch).
    """
    model, objective, optimizer, config = trainer.model, trainer.objective, trainer.optimizer, trainer.config
    # what is random is drawn for the whole batch, and each micro-batch takes its rows
    noise = objective.draw(model, batch, config.run.seed, step)
    size, parts = len(batch) // config.train.accumulate, config.train.accumulate
    total = 0.0
    metrics: dict[str, Tensor] = {}
    optimizer.zero_grad()
    model.train()
    objective.train()
    with held(model):
        for index in range(parts):
            rows = slice(index * size, (index + 1) * size)
            trainer.machine.seed(int(generator(config.run.seed, "dropout", step, index).integers(2**62)))
            with torch.autocast(trainer.machine.device.type, torch.bfloat16, enabled=trainer.machine.bf16):
                result = objective(model, batch.rows(rows), noise.rows(rows))
            # gradients add up, so that the sum over micro-batches is the gradient of the batch's mean
            (result.loss / parts).backward()
            total += float(result.loss.detach()) / parts
            for name, value in result.metrics.items():
                mean = torch.as_tensor(value).detach().float() / parts
                metrics[name] = metrics[name] + mean if name in metrics else mean
    norm = float(optimizer.clip(config.optim.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        ids = ", ".join(str(i) for i in batch.ids[:8].tolist())
        raise DivergedError(
            f"the loss is {total} and the gradient's norm {norm} at step {step + 1} (samples {ids} …)", DIVERGED_HINT
        )
    optimizer.step()
    return Update(total, norm, metrics)
