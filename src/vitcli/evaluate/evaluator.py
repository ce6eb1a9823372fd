"""A model over a split, once: decode, predict, count."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitcli.config import DataConfig, EvalConfig
from vitcli.data.augment import normalise_, to_float
from vitcli.data.cache import Images, open_images
from vitcli.data.decode import eval_view
from vitcli.data.loader import ahead
from vitcli.data.split import Split
from vitcli.evaluate.metrics import Tally
from vitcli.model.linear import packed
from vitcli.model.vit import ViT
from vitcli.progress import Progress, silent

_TOKENS_AT_ONCE = {"cpu": 16_384, "mps": 32_768, "cuda": 131_072}
"""On two AVX512-BF16 cores ViT-S/16 is as fast with 16 images as with 256, ViT-Ti/4 at 32 px from 64 on."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """`metrics` has the fields of the command line; the arrays are aligned with `positions` in the split."""

    metrics: dict[str, Any]
    tally: Tally
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    top: NDArray[np.int64]  # [n, k], best first
    scores: NDArray[np.float64]  # [n, k], softmax
    unreadable: int


def batch_size(device: str, tokens: int) -> int:
    """Images at a time: a power of two, 16 to 1024, from which on the device gets no faster."""
    return int(2 ** min(10, max(4, round(math.log2(_TOKENS_AT_ONCE[device] / tokens)))))


def logits_of(
    model: ViT, images: Float[Tensor, "batch 3 height width"], bf16: bool, views: int
) -> Float[Tensor, "batch classes"]:
    """Logits in float32; with two views the mean over the image and its mirror image.

    A compiled model is run as it stands: compiling it once more for measuring would cost more than it gives.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        result: Tensor = model.forward(images).float()
        if views == 2:
            result = (result + model.forward(images.flip(3)).float()) / 2
    return result


def evaluate(
    model: ViT,
    split: Split,
    outputs: NDArray[np.int64],
    config: EvalConfig,
    data: DataConfig,
    *,
    device: torch.device,
    bf16: bool,
    progress: Progress = silent,
) -> Evaluation:
    """Measure `model` on `split`. `outputs` maps the data's classes to the model's.

    Raises DataError at an image that cannot be read, or counts it in `unreadable` with data.on_bad_image=skip.
    """
    assert split.labels is not None
    images = open_images(split, eval_view(model.config.img_size, config), data, progress, where="decode")
    positions = images.valid
    tally, top, scores = Tally(model.config.classes), [], []
    k = min(config.top_k, model.config.classes)
    started = time.monotonic()
    with torch.inference_mode(), packed(model.eval(), bf16):
        for here, pixels in batches(model, images, positions, config, device, progress):
            logits = logits_of(model, pixels, bf16, config.views)
            tally.add(logits, torch.from_numpy(outputs[split.labels[here]]))
            best = logits.cpu().double().softmax(1).topk(k, 1)
            top.append(best.indices.numpy())
            scores.append(best.values.numpy())
    seconds = time.monotonic() - started
    metrics = {
        "split": split.name,
        **tally.result(),
        "seconds": seconds,
        "images_per_second": len(positions) / seconds if seconds else 0.0,
    }
    return Evaluation(
        metrics,
        tally,
        positions,
        outputs[split.labels[positions]],
        np.concatenate(top) if top else np.zeros((0, k), np.int64),
        np.concatenate(scores) if scores else np.zeros((0, k)),
        len(images.bad),
    )


def batches(
    model: ViT,
    images: Images,
    positions: NDArray[np.int64],
    config: EvalConfig,
    device: torch.device,
    progress: Progress = silent,
    what: str = "evaluating",
) -> Iterator[tuple[NDArray[np.int64], Float[Tensor, "batch 3 height width"]]]:
    """(positions, images ready for the model), the next ones decoded while these are worked on."""
    size = config.batch_size or batch_size(device.type, model.config.tokens)
    parts = [positions[start : start + size] for start in range(0, len(positions), size)]

    def read(index: int) -> Tensor:
        return torch.from_numpy(images.read(parts[index])[0])

    done = 0
    with contextlib.closing(ahead(read, range(len(parts)), 2 if images.config.workers != 0 else 0)) as decoded:
        for here, pixels in zip(parts, decoded, strict=True):
            yield here, normalise_(to_float(pixels.to(device)), config)
            done += len(here)
            progress(what, done, len(positions))
