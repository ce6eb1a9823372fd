"""A file beside weights that says what they are: what it holds, read and checked value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitcli.classes import Class
from vitcli.config import EvalConfig, Size, parse_value
from vitcli.config_values import check_bounds
from vitcli.errors import CheckpointError, UsageError
from vitcli.plain import read_plain
from vitcli.weights.header import check_nodes

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

GELU = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_tanh": "tanh",
    "gelu_erf": "erf",
    "quick_gelu": "quick",
    "silu": "silu",
    "swish": "silu",
}

POOLS = {"token": "cls", "avg": "mean", "map": "map"}

MULTI_LABEL = "multi_label_classification"
"""transformers' problem_type of a model whose labels are sets."""

RUN_BY_OTHERS = "timm and transformers run it; vit has none of it"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """None, or nothing, where the files are silent or say what vit does not have."""

    heads: int | None = None
    img_size: Size | None = None
    norm_eps: float | None = None
    gelu: str | None = None
    pool: str | None = None
    groups: int | None = None
    channels: tuple[str, int] | None = None  # the file's own name of it, and how many
    facts: dict[str, Any] = field(default_factory=dict)  # further values of `model.`
    shown: dict[str, tuple[str, Any]] = field(
        default_factory=dict
    )  # what arrays tell: by its name there, a key of `model.`, a value
    own: dict[str, Any] = field(default_factory=dict)  # of the fields above what is said whatever the name stands for
    eval: EvalConfig | None = None
    classes: Sequence[Class] = ()
    names: tuple[str, ...] = ()  # of the architecture, the surest first

    def over(self, below: Sidecar) -> Sidecar:
        """This, and where it is silent what `below` says."""
        values = {
            key: getattr(self, key) if getattr(self, key) not in (None, ()) else getattr(below, key)
            for key in self.__dataclass_fields__
        }
        return Sidecar(
            **values
            | {
                "names": (*self.names, *below.names),
                "facts": below.facts | self.facts,
                "shown": below.shown | self.shown,
                "own": below.own | self.own,
            }
        )


_LARGEST = 8 << 20  # bytes of a file of configuration; one with the names of ImageNet-21k has two megabytes


def _content(path: Path, most: int = _LARGEST) -> bytes:
    """What stands in a file; nothing where there is none. Raises CheckpointError where it cannot be read."""
    try:
        return read_plain(path, most)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            "it stands beside the weights: remove it",
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file, or no object in it. Raises CheckpointError as `_content`, and
    for what is no JSON.
    """
    text = _content(path)
    try:
        check_nodes(text)
        tree = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON that can be read: {error!s:.80}", "copy or download it again, or remove it"
        ) from None
    return tree if isinstance(tree, dict) else {}


def read_flat_yaml(path: Path) -> dict[str, Any]:
    """The top level of what yaml.safe_dump writes of a script's arguments: numbers, texts, lists of these and one more level.

    Whatever else is in the file is left out; nothing is built from tags. Raises CheckpointError as `_content`.
    """
    lines = _content(path, 1 << 20).decode("utf-8", "replace").splitlines()
    tree: dict[str, Any] = {}
    key = ""
    for line in lines:
        top, item, inner = (
            re.fullmatch(pattern, line) for pattern in (r"(\w+):(?: (.*))?", r" *- (.*)", r" +(\w+): (.*)")
        )
        if top is not None:
            key = top[1]
            tree[key] = _scalar(top[2] or "")
        elif item is not None and key:
            tree[key] = tree[key] if isinstance(tree[key], list) else []
            tree[key].append(_scalar(item[1]))
        elif inner is not None and key:
            tree[key] = tree[key] if isinstance(tree[key], dict) else {}
            tree[key][inner[1]] = _scalar(inner[2])
    return tree


def _scalar(text: str) -> Any:
    plain: dict[str, Any] = {"null": None, "~": None, "": None, "true": True, "false": False, "{}": {}, "[]": []}
    if text.strip().lower() in plain:
        return plain[text.strip().lower()]
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text.strip().strip("'\"")


def _as_key(path: Path, name: str, key: str, value: Any) -> Any:
    """`value`, that a file has under `name`, as that of a key of the configuration. Raises CheckpointError where it cannot be."""
    try:
        read = parse_value(key, value)
        if key.startswith("eval."):
            check_bounds("eval", replace(EvalConfig(), **{key.partition(".")[2]: read}))
        return read
    except (UsageError, ValueError) as error:
        text = error.message if isinstance(error, UsageError) else f"{key}: {error!s:.80}"
        raise CheckpointError(f"{path}: {text.replace(key, name, 1)}", "is the file damaged?") from None


def checked(path: Path, usual: EvalConfig, said: dict[str, tuple[str, Any]]) -> EvalConfig | None:
    """`usual` with what a file says: for each field the file's own name of it and its value. None where the interpolation is
    one that vit does not have. Raises CheckpointError for a value that cannot be.
    """
    method = said["interpolation"][1]
    other = isinstance(method, str) and method not in RESAMPLE.values()
    values = {
        field: _as_key(path, name, f"eval.{field}", value)
        for field, (name, value) in said.items()
        if value is not None and not (field == "interpolation" and other)
    }
    return None if other else replace(usual, **values)


_MOST_PIXELS = 100_000


def size_of(path: Path, name: str, value: Any) -> Size | None:
    """A side, or height and width. Raises CheckpointError for anything else but None."""
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        value = [value["height"], value["width"]]
    size: Size | None = None if value is None else _as_key(path, name, "model.img_size", value)
    if size and max(size) > _MOST_PIXELS:
        raise CheckpointError(f"{path}: {name} = {shown(max(size))} is the side of no image", "is the file damaged?")
    return size


def count_of(path: Path, name: str, value: Any) -> int | None:
    """A number of heads or pixels. Raises CheckpointError for anything else but None."""
    if value is None or (type(value) is int and 0 < value <= _MOST_PIXELS):
        return value
    raise CheckpointError(f"{path}: {name} = {shown(value)} is no such number", "is the file damaged?")


def channels_of(path: Path, name: str, value: Any) -> tuple[str, int] | None:
    """Channels of images as a file says them. Raises CheckpointError for anything else but a number or None."""
    count = count_of(path, name, value)
    return None if count is None else (name, count)


def shown(value: Any) -> str:
    """A value for an error. What is nested may be a stranger's, and endless."""
    return json.dumps(value)[:60] if isinstance(value, (str, int, float, bool, type(None))) else "an object"
