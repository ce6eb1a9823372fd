"""A model over image files, in the order in which they are named; what cannot be read is a result too."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitcli import files, world
from vitcli.classes import Class, imagenet_1k
from vitcli.config import Overrides, Size
from vitcli.errors import UsageError
from vitcli.evaluate.inference import Inference
from vitcli.evaluate.metrics import ranked
from vitcli.evaluate.named import NoImage, expand, read_named
from vitcli.evaluate.outputs import Outputs, asked_outputs
from vitcli.evaluate.subject import Subject, asked_machine, size_for
from vitcli.weights.asked import asked_checkpoint, check_names
from vitcli.weights.describe import plain

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a row tells: below `min_score` its `label` is None, none of these; `embedding` adds what the head reads, `sets` all classes that
    reach `min_score`.
    """

    min_score: float = 0.0
    embedding: bool = False
    sets: bool = False


def predict(
    inference: Inference, paths: Iterable[str | NoImage], classes: Sequence[Class], wanted: Wanted
) -> Iterator[Row]:
    """A row a path: `path`, `label`, `id` where the class has one, `score` (softmax), `topk`, or `path`, `error`.

    Images are decoded in threads and the next batch while this one is computed; a row depends on the others by the
    rounding of a product of another size at most.
    """
    view, most, rank = inference.view, inference.data.max_megapixels, world.world().rank
    with inference.running(), ThreadPoolExecutor(inference.data.workers or None) as pool:

        def rows(own: Sequence[str | NoImage], decoded: Sequence[Any]) -> Iterator[Row]:
            found = world.each_does(lambda: list(_rows(inference, own, decoded, classes, wanted)))
            return itertools.chain.from_iterable(found)

        waiting: list[tuple[Sequence[str | NoImage], list[Any]]] = []
        for turn in _turns(_batched(paths, inference.batch_size)):
            own: Sequence[str | NoImage] = turn[rank] if rank < len(turn) else ()
            waiting.append((own, [pool.submit(read_named, path, view, most) for path in own]))
            if len(waiting) > 1:
                yield from rows(*waiting.pop(0))
        for own, decoded in waiting:
            yield from rows(own, decoded)


def _batched(items: Iterable[str | NoImage], size: int) -> Iterator[tuple[str | NoImage, ...]]:
    iterator = iter(items)
    while part := tuple(itertools.islice(iterator, size)):
        yield part


def _turns(parts: Iterator[tuple[str | NoImage, ...]]) -> Iterator[list[tuple[str | NoImage, ...]]]:
    """A batch for each process, as the first one says, since the others cannot read the pipe that it may read."""
    here = world.world()
    while turn := world.told(list(itertools.islice(parts, here.size)) if here.is_first else []):
        yield turn


def _rows(
    inference: Inference,
    paths: Sequence[str | NoImage],
    decoded: Sequence[Any],
    classes: Sequence[Class],
    wanted: Wanted,
) -> Iterator[Row]:
    read = [future.result() for future in decoded]
    pixels = [item for item in read if not isinstance(item, str)]
    answers: Iterator[Row] = iter(())
    if pixels:
        images = inference.normalised(torch.from_numpy(np.stack(pixels)))
        answers = iter(list(answers_to(inference, images, classes, wanted)))
    for named, item in zip(paths, read, strict=True):
        path = named.path if isinstance(named, NoImage) else named
        yield {"path": path} | ({"error": item} if isinstance(item, str) else next(answers))


def answers_to(inference: Inference, images: torch.Tensor, classes: Sequence[Class], wanted: Wanted) -> Iterator[Row]:
    """What is said of each image that is ready for the model, apart from its path, within `inference.running()`."""
    features = inference.features(images) if wanted.embedding else None
    logits = (inference.logits(images) if features is None else inference.logits_of_features(images, features)).cpu()
    order = ranked(logits, len(classes))
    top = order[:, : inference.preprocessing.top_k]
    all_chances = inference.chances(logits)
    chances = all_chances.gather(1, top)
    embeddings = [] if features is None else features.cpu().tolist()
    for index, (scores, indices) in enumerate(zip(chances.tolist(), top.tolist(), strict=True)):
        topk = [_named(classes[i]) | {"score": score} for i, score in zip(indices, scores, strict=True)]
        first = topk[0] if scores[0] >= wanted.min_score else {"label": None, "score": scores[0]}
        row = {**first, "topk": topk}
        if wanted.sets:
            reached = [(i, float(all_chances[index, i])) for i in order[index].tolist()]
            row["labels"] = [_named(classes[i]) | {"score": s} for i, s in reached if s >= wanted.min_score]
        yield row | ({"embedding": embeddings[index]} if features is not None else {})


def _named(item: Class) -> Row:
    return {"label": item.name, "id": item.id} if item.id else {"label": item.name}


# --- the command's plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictionPlan(Subject):
    """A prediction, resolved and checked."""

    named: tuple[Class, ...]
    counted: Outputs | None = None
    wanted: Wanted = Wanted()

    @property
    def classes(self) -> tuple[Class, ...]:
        return self.named

    def as_json(self) -> dict[str, Any]:
        """The checkpoint and all that a row depends on beside the image: what a table that is gone on with must agree in."""
        described = self.description
        return super().as_json() | {
            "sha256": described.sha256 or files.sha256_file(described.path),
            "classes": [c.as_json() for c in self.named],
            "preprocessing": plain(vars(described.eval) | {"batch_size": 0}),
            "outputs": None if self.counted is None else self.counted.places.tolist(),
            "wanted": vars(self.wanted),
        }

    def predict(self, paths: Iterable[str | NoImage]) -> Iterator[Row]:
        """A row an image, in order: the lines of `vit predict --json`. Raises CheckpointError."""
        return self.answers(expand(paths))

    def answers(self, paths: Iterable[str | NoImage]) -> Iterator[Row]:
        """As `predict`, of names that stand for one image each."""
        world.told(True)
        return predict(replace(self.inference(), outputs=self.counted), paths, self.named, self.wanted)

    def follow(self) -> None:
        """Compute with the first of several processes what that one is asked for, until it leaves."""
        while world.told(False):
            list(predict(replace(self.inference(), outputs=self.counted), (), self.named, self.wanted))


def plan_prediction(
    reference: str = "",
    *,
    img_size: Size | None = None,
    labels: str = "",
    classes: str = "",
    min_score: float | None = None,
    embedding: bool = False,
    device: str = "auto",
    precision: str = "auto",
    overrides: Overrides | None = None,
) -> PredictionPlan:
    """What a checkpoint is to predict with; `auto` is float32 here. Raises CheckpointError or UsageError."""
    if min_score is not None and not 0 <= min_score <= 1:
        raise UsageError(f"--min-score {min_score:g} must lie between 0 and 1", "a score is a probability")
    described, data, notes = asked_checkpoint(reference, overrides or {}, ("eval.", "data.", "model."))
    described = described.labelled(labels)
    if described.model.classes == 0:
        check_names(described)
    named = described.classes
    if not named and described.model.classes == 1000:
        named = imagenet_1k()
        notes.append("labels: imagenet-1k, as the checkpoint has 1,000 outputs and no names; --labels names others")
    elif not named:
        named = tuple(Class(str(index)) for index in range(described.model.classes))
        notes.append("labels: the numbers of the outputs, as the checkpoint has no names; --labels gives them")
    if classes == "data":
        raise UsageError("--classes data: predictions are of images without a data set", "name a file of classes")
    sets = described.eval.scores == "sigmoid"
    if sets and classes:
        raise UsageError("--classes: each score of this checkpoint is of a class by itself", "leave it out")
    counted = asked_outputs(classes, named, ()) if classes else None
    return PredictionPlan(
        description=described,
        img_size=size_for(described, img_size),
        data=data,
        machine=asked_machine(device, "fp32" if precision == "auto" else precision),
        notes=(*notes, *described.notes),
        named=named if counted is None else counted.classes,
        counted=counted,
        wanted=Wanted(
            min_score=(0.5 if sets else 0.0) if min_score is None else min_score, embedding=embedding, sets=sets
        ),
    )
