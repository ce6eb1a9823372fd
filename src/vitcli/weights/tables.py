"""Which table of a training script's file holds the weights, whatever is wrapped around it.

A file of torch.save is a tree: a state_dict alone, or under `model`, `state_dict_ema`, `teacher`, beside an optimizer, arguments
and scores. Every table of tensors in it is looked at, and in each every prefix (`model.`, `module.`, `teacher.backbone.`) before
the keys of a layout that vit knows. Where several hold a whole ViT the moving average is taken, as timm does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitcli.weights.keys import Place, is_average, places
from vitcli.weights.pickles import Inert
from vitcli.weights.torchfile import Outline

Path = tuple[str, ...]
"""Keys from the root of the tree."""

_MAX_DEPTH = 12
_MOST_TABLES = 1_000  # an optimizer has one for each weight, further from the root than the weights


@dataclass(frozen=True, eq=False)
class Table:
    """A table of tensors in a file, and where in it the weights of a ViT are."""

    path: Path
    tensors: Mapping[str, Outline]
    others: Mapping[str, Any]  # what is in the table and no tensor
    place: Place | None = None

    @property
    def name(self) -> str:
        """`state_dict_ema`, or `state_dict, teacher.backbone.*` where the table has prefixes."""
        prefix = f"{self.place.prefix}*" if self.place and self.place.prefix else ""
        return ", ".join(part for part in (".".join(self.path), prefix) if part)


def choose(tree: Any) -> tuple[Table | None, list[Table]]:
    """The table that holds the weights, and the others that hold a whole ViT as well. None where there is no tensor.

    Of several the first is taken whose name says that it is an average over training, else the first.
    """
    tables = list(itertools.islice(_tables(tree), _MOST_TABLES))
    found = [
        Table(table.path, table.tensors, table.others, place)
        for table in tables
        for place in places({key: outline.shape for key, outline in table.tensors.items()})
    ]
    whole = [table for table in found if table.place and table.place.whole]
    if whole:
        first = next((table for table in whole if is_average(table.name)), whole[0])
        return first, [table for table in whole if table is not first]
    if found:
        return found[0], []
    return max(tables, key=lambda table: len(table.tensors), default=None), []


def _tables(tree: Any) -> Iterator[Table]:
    """Every table with tensors, nearest to the root first. No object is looked at twice, and none is compared."""
    seen: set[int] = set()
    level: list[tuple[Path, Any]] = [((), tree)]
    while level:
        below: list[tuple[Path, Any]] = []
        for path, node in level:
            if id(node) in seen or not isinstance(node, (dict, list, tuple, Inert)):
                continue
            seen.add(id(node))
            entries = _entries(node)
            tensors = {key: value for key, value in entries if isinstance(value, Outline)}
            if tensors and not isinstance(node, (list, tuple)):
                yield Table(path, tensors, {key: value for key, value in entries if key not in tensors})
            if len(path) < _MAX_DEPTH:
                below += [((*path, key), value) for key, value in entries]
        level = below


def _entries(node: Any) -> list[tuple[str, Any]]:
    """What a node holds, by name. A module's parts are not looked into: a model is refused whole."""
    if isinstance(node, dict):
        return _named(node.items())
    if isinstance(node, Inert):
        state = node.state if isinstance(node.state, dict) and not is_module(node) else {}
        return _named([*node.entries.items(), *state.items()])
    nodes = (dict, list, tuple, Inert, Outline)
    return [(str(index), value) for index, value in enumerate(node) if isinstance(value, nodes)]


def _named(items: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in items if isinstance(key, (str, int))]


def is_module(node: Any) -> bool:
    """Whether an inert object is a torch.nn.Module, or a module that was scripted."""
    if not isinstance(node, Inert):
        return False
    state = node.state if isinstance(node.state, dict) else {}
    return "_modules" in state or node.name.startswith("__torch__")


def pickled_module(tree: Any) -> str:
    """The class of a whole model that a file holds at its root or one key below; empty where there is none."""
    nodes = [tree, *(value for _, value in _entries(tree))] if isinstance(tree, (dict, Inert)) else [tree]
    return next((node.name for node in nodes if is_module(node)), "")


def inert_names(tree: Any) -> str:
    """The first global that a tree without tensors names, for an error."""
    nodes = [tree, *(value for _, value in _entries(tree))] if isinstance(tree, (dict, list, tuple, Inert)) else [tree]
    return next((node.name for node in nodes if isinstance(node, Inert)), "")


def beside(tree: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """What lies beside the way to a table, by name: `optimizer`, `epoch`, `args`."""
    node = tree
    for depth, step in enumerate(path):
        entries = _entries(node)
        yield from ((".".join((*path[:depth], key)), value) for key, value in entries if key != step)
        node = next((value for key, value in entries if key == step), None)


def holds_tensors(node: Any) -> bool:
    """Whether there is a tensor anywhere in it."""
    seen: set[int] = set()
    nodes = [node]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Outline):
            return True
        if isinstance(node, (dict, list, tuple, Inert)) and id(node) not in seen:
            seen.add(id(node))
            nodes += [value for _, value in _entries(node)]
    return False
