"""A metric, a probe, a layout of another tool's files, a command."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcli.cli import console, options
from vitcli.cli.table import COMMANDS
from vitcli.config import ProbeConfig
from vitcli.evaluate.features import Features
from vitcli.evaluate.metrics import METRICS
from vitcli.evaluate.probe import METHODS
from vitcli.weights.layout import Layout
from vitcli.weights.layouts import LAYOUTS


class Brier:
    """The mean squared distance of the probabilities from the labels (Brier, 1950)."""

    def __init__(self, classes: int) -> None:
        self.n, self.sum = 0, 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        chances = logits.cpu().double().softmax(1)
        wanted = torch.nn.functional.one_hot(labels.cpu(), chances.shape[1])
        self.n, self.sum = self.n + len(labels), self.sum + float((chances - wanted).square().sum())

    def merge(self, other: Brier) -> None:
        self.n, self.sum = self.n + other.n, self.sum + other.sum

    def result(self) -> dict[str, Any]:
        return {"brier": self.sum / self.n if self.n else None}


def nearest_mean(train: Features, held_out: Features, classes: int, settings: ProbeConfig) -> dict[str, Any]:
    """The class whose mean is nearest."""
    means = np.stack([train.values[train.targets == c].mean(0) for c in range(classes)])
    found = np.square(held_out.values[:, None] - means[None]).sum(2).argmin(1)
    return {"results": [{"top1": float((found == held_out.targets).mean()), "n": len(held_out)}]}


UPPER = Layout(
    anchor="PATCH.weight",
    name="UPPER",
    markers=("PATCH.weight",),
    table={
        "PATCH.{p}": "patch_embed.proj.{p}",
        "POSITIONS": "pos_embed",
        "CLASS": "cls_token",
        "LAYER{i}.NORM1.{p}": "blocks.{i}.norm1.{p}",
        "LAYER{i}.QKV.{p}": "blocks.{i}.attn.qkv.{p}",
        "LAYER{i}.OUT.{p}": "blocks.{i}.attn.proj.{p}",
        "LAYER{i}.NORM2.{p}": "blocks.{i}.norm2.{p}",
        "LAYER{i}.UP.{p}": "blocks.{i}.mlp.fc1.{p}",
        "LAYER{i}.DOWN.{p}": "blocks.{i}.mlp.fc2.{p}",
        "NORM.{p}": "norm.{p}",
        "HEAD.{p}": "head.{p}",
    },
)


def count(text: str, json: options.Json = False) -> None:
    """Count the letters of a text."""
    console.print_json({"letters": len(text)}) if json else console.print_lines([str(len(text))])


def add() -> None:
    METRICS["brier"] = Brier
    METHODS["nearest-mean"] = nearest_mean
    LAYOUTS.append(UPPER)
    COMMANDS["count"] = count
