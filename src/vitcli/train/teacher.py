"""A trained checkpoint that a run learns from: found, known by what it holds, and its classes brought into the student's order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from vitcli import classes as class_names
from vitcli.classes import Class
from vitcli.config import Config, TrainConfig, apply
from vitcli.errors import CheckpointError, UsageError
from vitcli.weights.asked import check_names
from vitcli.weights.describe import Description, describe
from vitcli.weights.locate import locate

_CHUNK = 1 << 20


def with_teacher(config: Config, classes: Sequence[Class] | None, by_name: bool = True) -> Config:
    """`config` with the teacher's file as any working directory finds it, and the digest of what it holds. `classes` are those of the
    data, compared by their number alone where they are imagined; None: nothing is compared.

    Raises CheckpointError where it is none, or its classes are not the data's; UsageError where it is not the one that the
    configuration was written with.
    """
    if not config.train.teacher:
        return config
    found = teacher(config.train.teacher)
    if classes is not None and (by_name or len(classes) != len(found.classes)):
        outputs_of(found.classes, classes)
    digest = _digest(found)
    if config.train.teacher_digest not in ("", digest):
        raise UsageError(
            f"{found.path} is not the teacher that this configuration was written with",
            "put that file back, or leave train.teacher_digest out",
        )
    return apply(config, {"train.teacher": str(found.path.resolve()), "train.teacher_digest": digest})


def teacher(reference: str) -> Description:
    """Raises CheckpointError where it cannot be found, or does not name its classes."""
    found = describe(locate(reference))
    check_names(found)
    return found


def described(train: TrainConfig) -> Description:
    """The teacher of a configuration that `with_teacher` made: read once for what its file holds."""
    return _described(train.teacher, train.teacher_digest)


@lru_cache(maxsize=4)
def _described(path: str, digest: str) -> Description:
    return describe(locate(path))


def outputs_of(own: Sequence[Class], wanted: Sequence[Class]) -> Int[Tensor, " classes"]:
    """For each of the student's classes the teacher's output. Raises CheckpointError where they are not the same set."""
    order = class_names.same_set(tuple(wanted), tuple(own))
    if order is None:
        found = class_names.match(wanted, own)
        missing = [repr(c.name) for c, index in zip(wanted, found, strict=True) if index is None]
        lacks = f": it lacks {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}" if missing else ""
        raise CheckpointError(
            f"the teacher's {len(own)} classes are not the {len(wanted)} of these data{lacks}",
            "fine-tune it first: vit finetune TEACHER --data DATA",
        )
    return torch.tensor(order)


def _digest(found: Description) -> str:
    digest = hashlib.sha256()
    with found.path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
