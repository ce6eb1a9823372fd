"""One update of the weights, of which the host asks nothing back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitcli import host, world
from vitcli.data.batch import Batch
from vitcli.model.held import held
from vitcli.randomness import Step, generator
from vitcli.train.memory import micro_batches
from vitcli.train.trainer import Trainer

DIVERGED_HINT = "lower --set optim.lr=…, lengthen optim.warmup_steps, or clip gradients with optim.clip=1"


@dataclass(frozen=True)
class Update:
    """On the device, and to be read when there is time."""

    loss: Float[Tensor, ""]  # nats, mean over the batch
    grad_norm: Float[Tensor, ""]  # before clipping
    metrics: dict[str, Tensor]  # the objective's own, means over the batch


def train_step(trainer: Trainer, batch: Batch, step: int) -> Update:
    """Forward and backward in micro-batches, clip, update. Where the loss or the gradient is not a finite number nothing is updated,
    from then on, and `trainer.watch` says which step it was.

    Micro-batches change nothing but memory, except that what draws from torch's own generator, such as element dropout, draws
    from (seed, step, micro-batch).
    """
    return update(trainer, batch, step)


def update(trainer: Trainer, batch: Batch, step: Step) -> Update:
    """The same, where `step` may be a tensor: then torch's own generator is left alone, and nothing depends on what only the host knows,
    so that it can be recorded and replayed.
    """
    model, objective, optimizer, config = trainer.model, trainer.objective, trainer.optimizer, trainer.config
    # what is random is drawn for the whole batch, and each micro-batch takes its rows
    noise = objective.draw(model, batch.outline(), config.run.seed, step)
    parts = micro_batches(len(batch), batch.whole, config.train.accumulate)
    size, processes = len(batch) // parts, max(1, batch.whole // len(batch))
    summed = 1 if trainer.adds_up else processes
    losses: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    optimizer.zero_grad()
    model.train()
    objective.train()
    with held(model):
        for index in range(parts):
            rows = slice(index * size, (index + 1) * size)
            if isinstance(step, int):
                trainer.machine.seed(int(generator(config.run.seed, "dropout", step, index).integers(2**62)))
            with world.in_touch(), trainer.adding_up(index == parts - 1):
                with torch.autocast(trainer.machine.device.type, torch.bfloat16, enabled=trainer.machine.bf16):
                    drawn = noise.rows(slice(batch.start + rows.start, batch.start + rows.stop))
                    result = trainer.loss(batch.rows(rows), drawn)
                # gradients add up, so that the sum over micro-batches, and over processes, is the gradient of the batch's mean
                (result.loss / (parts * summed)).backward()
            losses.append(result.loss.detach())
            for name, value in result.metrics.items():
                mean = host.tensor(value, trainer.machine.device).detach().float() / parts
                metrics[name] = metrics[name] + mean if name in metrics else mean
    loss = losses[0] if parts == 1 else torch.stack(losses).mean()
    if processes > 1:
        means = torch.stack([loss.float(), *metrics.values()]) / processes
        signals = torch.tensor([float(trainer.signal)], device=means.device)
        world.add_up([*trainer.gradients(), means, signals])
        loss, metrics = means[0], dict(zip(metrics, means[1:].unbind(), strict=True))
        trainer.signals = signals
        trainer.after_backward()
    norm = optimizer.clip(config.optim.clip)
    optimizer.step(trainer.watch.admits(step, loss, norm))
    return Update(loss, norm, metrics)
