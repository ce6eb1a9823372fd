"""A model over image files, in the order in which they are named; what cannot be read is a result too."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitcli.classes import Class, imagenet_1k
from vitcli.config import Overrides, Size
from vitcli.data.colour import BadImage
from vitcli.data.decode import View, decode, read_file
from vitcli.data.layout import list_folder
from vitcli.errors import VitError
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.metrics import ranked
from vitcli.evaluate.subject import Subject, asked_machine, size_for
from vitcli.weights.asked import asked_checkpoint, check_names

Row = dict[str, Any]
_LONGEST_LINE = 2**16


@dataclass(frozen=True)
class NoImage:
    """A name that stands for no image, and why."""

    path: str
    reason: str


def lines_of(stream: BufferedReader) -> Iterator[str | NoImage]:
    """The paths on a stream, one a line, in whatever bytes they are. What is no list of paths is one result, an error."""
    nothing = NoImage("-", "stdin holds no paths, one a line; an image is named by its path")
    try:
        if b"\0" in stream.peek():
            yield nothing
            return
        while line := stream.readline(_LONGEST_LINE):
            if b"\0" in line or len(line) == _LONGEST_LINE:
                yield nothing
                return
            name = os.fsdecode(line.rstrip(b"\r\n"))
            if name.strip():
                yield name
    except OSError as error:
        yield NoImage("-", f"stdin cannot be read: {error.strerror}")


def expand(names: Iterable[str | NoImage]) -> Iterator[str | NoImage]:
    """Files as they are, folders as the images below them, patterns as what they match; in the order named, sorted within.

    A name that is none of these is kept: that it cannot be read is then its result.
    """
    for name in names:
        yield from [name] if isinstance(name, NoImage) else _expanded(name)


def _expanded(name: str) -> Iterable[str | NoImage]:
    path = Path(name)
    try:
        if path.is_dir():
            listing = list_folder(path)
            faults = [NoImage(listing.at(folder), reason) for folder, reason in listing.unlisted]
            none = [] if listing.images or faults else [NoImage(name, "a folder without images")]
            return itertools.chain(map(listing.at, listing.images), faults, none)
        if not path.exists() and glob.has_magic(name):
            return sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207 (absolute patterns too)
    except OSError as error:
        return [NoImage(name, error.strerror or str(error))]
    except (VitError, ValueError, re.error) as error:
        return [NoImage(name, str(error))]
    return [name]


def predict(inference: Inference, paths: Iterable[str | NoImage], classes: Sequence[Class]) -> Iterator[Row]:
    """A row a path: `path`, `label`, `id` where the class has one, `score` (softmax), `topk`, or `path`, `error`.

    Images are decoded in threads and the next batch while this one is computed; a row depends on the others by the
    rounding of a product of another size at most.
    """
    view, most = inference.view, inference.data.max_megapixels
    with inference.running(), ThreadPoolExecutor(inference.data.workers or None) as pool:
        waiting: list[tuple[tuple[str | NoImage, ...], list[Any]]] = []
        for part in _batched(paths, inference.batch_size):
            waiting.append((part, [pool.submit(_read, path, view, most) for path in part]))
            if len(waiting) > 1:
                yield from _rows(inference, *waiting.pop(0), classes)
        for part, decoded in waiting:
            yield from _rows(inference, part, decoded, classes)


def _batched(items: Iterable[str | NoImage], size: int) -> Iterator[tuple[str | NoImage, ...]]:
    iterator = iter(items)
    while part := tuple(itertools.islice(iterator, size)):
        yield part


def _read(path: str | NoImage, view: View, max_megapixels: float) -> NDArray[np.uint8] | str:
    """Pixels, or why there are none."""
    if isinstance(path, NoImage):
        return path.reason
    try:
        return decode(read_file(path), view, max_megapixels)[0]
    except BadImage as error:
        return str(error)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _rows(
    inference: Inference, paths: Sequence[str | NoImage], decoded: Sequence[Any], classes: Sequence[Class]
) -> Iterator[Row]:
    read = [future.result() for future in decoded]
    pixels = [item for item in read if not isinstance(item, str)]
    best: Iterator[tuple[list[float], list[int]]] = iter(())
    if pixels:
        images = inference.normalised(torch.from_numpy(np.stack(pixels)))
        logits = inference.logits(images).cpu()
        top = ranked(logits, inference.preprocessing.top_k)
        chances = logits.double().softmax(1).gather(1, top)
        best = iter(list(zip(chances.tolist(), top.tolist(), strict=True)))
    for named, item in zip(paths, read, strict=True):
        path = named.path if isinstance(named, NoImage) else named
        if isinstance(item, str):
            yield {"path": path, "error": item}
            continue
        scores, indices = next(best)
        topk = [_named(classes[index]) | {"score": score} for index, score in zip(indices, scores, strict=True)]
        yield {"path": path, **topk[0], "topk": topk}


def _named(item: Class) -> dict[str, str]:
    return {"label": item.name, "id": item.id} if item.id else {"label": item.name}


def table(rows: Sequence[Row], nested: bool) -> dict[str, list[Any]]:
    """Rows as columns; `topk` only where the file's format holds lists."""
    names = ["path", "label", *(["id"] if any("id" in row for row in rows) else []), "score", "error"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return columns | ({"topk": [row.get("topk") for row in rows]} if nested else {})


# --- the command's plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictionPlan(Subject):
    """A prediction, resolved and checked."""

    named: tuple[Class, ...]

    @property
    def classes(self) -> tuple[Class, ...]:
        return self.named

    def predict(self, paths: Iterable[str | NoImage]) -> Iterator[Row]:
        """A row an image, in order: the lines of `vit predict --json`. Raises CheckpointError."""
        return predict(self.inference(), expand(paths), self.named)


def plan_prediction(
    reference: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> PredictionPlan:
    """What a checkpoint is to predict with; `auto` is float32 here. Raises CheckpointError or UsageError."""
    described, data, notes = asked_checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    if described.model.classes == 0:
        check_names(described)
    classes = described.classes
    if not classes and described.model.classes == 1000:
        classes = imagenet_1k()
        notes.append("labels: imagenet-1k, as the checkpoint has 1,000 outputs and no names; --labels names others")
    elif not classes:
        classes = tuple(Class(str(index)) for index in range(described.model.classes))
        notes.append("labels: the numbers of the outputs, as the checkpoint has no names; --labels gives them")
    return PredictionPlan(
        description=described,
        img_size=size_for(described, img_size),
        data=data,
        machine=asked_machine(device, "fp32" if precision == "auto" else precision),
        notes=(*notes, *described.notes),
        named=classes,
    )
