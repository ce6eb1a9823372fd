"""Classes have a name and may have an id; data and checkpoint are matched by these, never by position."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError, DataError
from vitcli.plain import read_plain


@dataclass(frozen=True)
class Class:
    """`id` is a WordNet synset such as n02012849, or empty. Two classes may share a name, not an id."""

    name: str
    id: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "id": self.id} if self.id else {"name": self.name}


def from_json(items: Any) -> tuple[Class, ...]:
    """The classes of a list of names, or of objects with `name` and perhaps `id`. Raises ValueError that says which is none."""
    if not isinstance(items, list):
        raise ValueError("classes are no list")
    return tuple(_class(item, index) for index, item in enumerate(items))


def _class(item: Any, index: int) -> Class:
    name, id_ = (item.get("name"), item.get("id", "")) if isinstance(item, dict) else (item, "")
    if not isinstance(name, str) or not isinstance(id_, str):
        raise ValueError(f"number {index} of the classes has no name")
    return Class(name, id_)


def fold(text: str) -> str:
    """`text` without case, spaces, `_` and `-`, in one Unicode form: é is one letter however it was typed (NFC)."""
    bare = re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", bare.casefold())


def match(wanted: Sequence[Class], known: Sequence[Class]) -> list[int | None]:
    """For each of `wanted` the index in `known` that it names, or None.

    An id is tried before a name, an exact match before one that ignores case, spaces, `_` and `-`; a key
    that stands for two classes matches neither. A name may name an id: a folder called n02012849 does.
    """
    exact: dict[str, set[int]] = defaultdict(set)
    folded: dict[str, set[int]] = defaultdict(set)
    for index, item in enumerate(known):
        for key in filter(None, (item.id, item.name)):
            exact[key].add(index)
            folded[fold(key)].add(index)

    def find(item: Class) -> int | None:
        for table, form in ((exact, str), (folded, fold)):
            for key in filter(None, (item.id, item.name)):
                found = {i for i in table.get(form(key), set()) if not _differ(item, known[i])}
                if len(found) == 1:
                    return next(iter(found))
        return None

    return [find(item) for item in wanted]


def _differ(a: Class, b: Class) -> bool:
    """Whether ids tell two classes apart that share a name."""
    return bool(a.id and b.id) and fold(a.id) != fold(b.id)


def spelled_as(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Each of `names` as one of `known` spells the same class (see `match`), or as it is."""
    wanted = list(names)
    found = match([Class(name) for name in wanted], [Class(name) for name in known])
    return {name: name if index is None else known[index] for name, index in zip(wanted, found, strict=True)}


def same_set(a: Sequence[Class], b: Sequence[Class]) -> list[int] | None:
    """The index in `b` of each of `a` if both name the same classes, in whatever order; else None."""
    if len(a) != len(b):
        return None
    found = [index for index in match(a, b) if index is not None]
    return found if len(set(found)) == len(a) else None


def map_labels(data: Sequence[Class], counts: Sequence[int], model: Sequence[Class], where: str) -> list[int]:
    """For each class of the data its output of the model, -1 for one that has neither match nor images.

    Raises DataError naming the classes that have images and no match.
    """
    found = match(data, model)
    missing = [c.name for c, n, i in zip(data, counts, found, strict=True) if i is None and n]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise DataError(
            f"{where} has {'a class' if len(missing) == 1 else f'{len(missing)} classes'} that the checkpoint "
            f"does not know: {shown}",
            "classes are matched by id or name; name the checkpoint's classes with --labels, or fine-tune on this data",
        )
    taken: dict[int, str] = {}
    for item, index in zip(data, found, strict=True):
        if index is not None and index in taken:
            raise DataError(
                f"{where}: classes {taken[index]!r} and {item.name!r} are the same class of the checkpoint",
                "rename one of them",
            )
        if index is not None:
            taken[index] = item.name
    return [-1 if index is None else index for index in found]


def imagenet_1k() -> tuple[Class, ...]:
    """The 1,000 classes of ILSVRC 2012 in the order of their synset ids, which is the order of every 1,000-way head."""
    return _synsets("imagenet_1k.tsv")


def imagenet_21k() -> tuple[Class, ...]:
    """The 21,841 classes of ImageNet's release of autumn 2011 in the order of their synset ids (timm's data/_info/imagenet22k_synsets.txt).

    Names are WordNet's first, or those of `imagenet_1k`; some classes share one. Google's heads have 21,843 outputs.
    """
    return _synsets("imagenet_21k.tsv")


def _synsets(table: str) -> tuple[Class, ...]:
    text = resources.files("vitcli.tables").joinpath(table).read_text(encoding="utf-8")
    return tuple(Class(name, synset) for synset, name in (line.split("\t") for line in text.splitlines()))


_LARGEST = 4 << 20
"""Bytes of a file of labels; the names of ImageNet-21k are one megabyte."""


def read_labels(source: str, outputs: int) -> tuple[Class, ...]:
    """`imagenet-1k`, a text file with a name a line, or JSON: a list, or an object from index to name or [id, name].

    Raises CheckpointError where it cannot be read or does not name `outputs` classes.
    """
    if source == "imagenet-1k":
        classes = imagenet_1k()
    else:
        try:
            text = read_plain(Path(source), _LARGEST).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read the labels in {source}: {error}",
                "--labels takes imagenet-1k, a text file with a name a line, or JSON",
            ) from None
        try:
            classes = (
                _labels_from_json(json.loads(text))
                if text.lstrip()[:1] in ("[", "{")
                else tuple(Class(line.strip()) for line in text.splitlines() if line.strip())
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{source} is not a list of labels: {error!s:.200}",
                'write a name a line, or JSON such as ["cat", "dog"] or {"0": "cat"}',
            ) from None
    if len(classes) != outputs:
        raise CheckpointError(
            f"{source} names {len(classes)} classes, the checkpoint has {outputs} outputs",
            "the labels must name every output, in order",
        )
    return classes


def _labels_from_json(tree: Any) -> tuple[Class, ...]:
    if isinstance(tree, dict) and "id2label" in tree:
        tree = tree["id2label"]
    if isinstance(tree, dict):
        if sorted(int(k) for k in tree) != list(range(len(tree))):
            raise ValueError("the indices are not 0, 1, 2 …")
        tree = [tree[key] for key in sorted(tree, key=int)]
    items = [{"id": i[0], "name": i[1]} if isinstance(i, list) else i for i in tree]
    return from_json(items)
