"""Files that hold weights, opened without torch: names, types and shapes at once, an array only when it is asked for.

| file                     | names and shapes from         | arrays                                    |
|--------------------------|-------------------------------|-------------------------------------------|
| .safetensors             | its header                    | as they are                               |
| .safetensors.index.json  | the headers of its shards     | as they are                               |
| .npz                     | the headers of its arrays     | as they are, or unpacked                  |
| .bin.index.json          | the pickles of its shards     | as they are                               |
| .pth, .pt, .bin, .ckpt, .pth.tar | its pickle, which is not run | as they are, or unpacked; only tensors, ever |

A file is opened once and stays open: names, shapes and arrays are of the same one.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.errors import CheckpointError
from vitcli.plain import read_plain
from vitcli.weights import tables
from vitcli.weights.archives import open_archive
from vitcli.weights.header import check_nodes, not_weights, read_header
from vitcli.weights.held import AGAIN, HeldFile
from vitcli.weights.keys import Place, is_wanted
from vitcli.weights.pickles import Inert
from vitcli.weights.torchfile import BROKEN, Outline, TorchFile, one_line

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".safetensors.index.json"
INDICES = (INDEX, ".bin.index.json")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
MAX_KEYS = 10_000
"""Arrays of one file; the largest ViT has a thousand, text towers and decoders a few thousand."""
MAX_SHARDS = 64
"""Files that stay open at once; the largest ViT comes in a dozen."""
_MAX_INDEX = 4 << 20  # bytes
_MAX_EFFORT = 4 << 20  # bytes of the headers or pickles of all shards together
_MAX_NPY = 1 << 14  # bytes of an array's header, which numpy reads up to 10,000
_PLAIN = "save the weights as float32, float16 or bfloat16"
_SMALL, _RATIO = 1 << 27, 16
"""Bytes that any file may unpack to, and times its size that a larger one may; trained weights hardly shrink."""
_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types that are read; the others of safetensors are packed or quantised."""


class Weights(ABC):
    """An open file of weights. `shapes` and `types` (`F32`, `float32`) are by the file's own keys."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: Mapping[str, str] = {}
    effort: int = 0  # bytes that had to be understood for the names and shapes

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """One array, in the file's own type. Raises CheckpointError."""


def open_weights(path: Path) -> Weights:
    """The weights in `path`, by its ending. Raises CheckpointError that says what the file is instead."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}", "give a weights file, a run folder or a hub id")
    weights = _opened(path)
    _check_keys(path, len(weights.shapes))
    return weights


def _opened(path: Path) -> Weights:
    if path.name.endswith(INDICES):
        return Sharded(path)
    if path.suffix == ".safetensors":
        return Safetensors(path)
    wrong = not_weights(HeldFile(path).read(0, 64))
    if wrong:
        raise CheckpointError(
            f"{path} is {wrong}", "download the file itself: git lfs pull, or the hub's download link"
        )
    return Npz(path) if path.suffix == ".npz" else Pickled(path)


def _check_keys(path: Path, count: int) -> None:
    if count > MAX_KEYS:
        raise CheckpointError(f"{path} holds {count:,} arrays, more than any ViT", "is it a checkpoint?")


def _check_unpacked(path: Path, size: int, unpacked: int) -> None:
    """Raises CheckpointError for a small file that says that it is a large one."""
    if unpacked > max(_SMALL, _RATIO * size):
        raise CheckpointError(
            f"{path} of {size:,} bytes unpacks to {unpacked:,}, and weights do not shrink so far", AGAIN
        )


class Safetensors(Weights):
    def __init__(self, path: Path) -> None:
        self.path, self.header = path, read_header(path)
        self.shapes, self.types = self.header.shapes, self.header.dtypes
        self.effort = self.header.data_start

    def sha256(self) -> str:
        """The digest of all that follows the header."""
        return self.header.file.sha256(self.header.data_start)

    def read(self, key: str) -> Tensor:
        kind, shape = _TORCH.get(self.types[key]), self.shapes[key]
        if kind is None:
            raise CheckpointError(
                f"{self.path}: {key} holds numbers of type {self.types[key]}, which vit does not read", _PLAIN
            )
        return self.header.file.numbers(self.header.places[key], math.prod(shape), kind).reshape(shape)


class Sharded(Weights):
    """Several files, safetensors or of torch.save, and a table of which key lies in which."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names, shards = read_index(path)
        except BROKEN as error:
            raise CheckpointError(f"{path} is no index of shards: {one_line(error)}", AGAIN) from None
        if any(Path(shard).name != shard for shard in shards):
            raise CheckpointError(f"{path} names files outside its folder", "its shards must lie beside it")
        self.where: dict[str, Weights] = {}
        for shard in shards:
            file = self._shard(path.parent / shard)
            self.where |= dict.fromkeys(file.shapes, file)
            self.effort += file.effort
            _check_keys(path, len(self.where))
            if self.effort > _MAX_EFFORT:
                raise CheckpointError(f"{path} and its shards describe more than any ViT", "is it a checkpoint?")
        missing = sorted(names - self.where.keys())
        if missing:
            raise CheckpointError(f"{path} lists {missing[0][:200]}, which none of its shards has", AGAIN)
        self.shapes = {key: file.shapes[key] for key, file in self.where.items()}
        self.types = {key: file.types[key] for key, file in self.where.items()}

    @staticmethod
    def _shard(path: Path) -> Weights:
        if path.suffix == ".safetensors":
            return Safetensors(path)
        if not path.is_file():
            raise CheckpointError(f"no shard {path}", "its index names it: download it as well")
        return Pickled(path, is_shard=True)

    def read(self, key: str) -> Tensor:
        return self.where[key].read(key)


def read_index(path: Path) -> tuple[set[str], list[str]]:
    """The keys that an index lists, and the names of its shards. Raises what BROKEN lists."""
    text = read_plain(path, _MAX_INDEX)
    check_nodes(text)
    where = json.loads(text)["weight_map"]
    shards = sorted({shard[:255] for shard in where.values()})
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"it names {len(shards):,} files, over {MAX_SHARDS}")
    if not all(shard.isprintable() for shard in shards):
        raise ValueError("a name of a file that is none")
    return set(where), shards


class Npz(Weights):
    """numpy's archive of arrays. Two-byte arrays without a type are bfloat16 (big_vision, utils.recover_dtype)."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, HeldFile(path)
        try:
            self._archive = open_archive(self._file)
            entries = {entry.removesuffix(".npy"): entry for entry in self._archive.namelist()}
            said = {key: self._shape(entry) for key, entry in entries.items()}
            self.shapes = {key: shape for key, (shape, _) in said.items()}
            self.types = {key: kind for key, (_, kind) in said.items()}
            self.entries = entries
        except BROKEN as error:
            self._file.check_unchanged()
            raise CheckpointError(f"cannot read {path}: {one_line(error)}", AGAIN) from None
        unpacked = sum(self._archive.getinfo(entry).file_size for entry in entries.values())
        _check_unpacked(path, self._file.size, unpacked)

    def _shape(self, entry: str) -> tuple[tuple[int, ...], str]:
        import numpy as np

        with self._archive.open(entry) as archived:
            file = io.BytesIO(archived.read(_MAX_NPY))
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            if kind.hasobject or (kind.kind not in "fiub" and kind != np.dtype("V2")):
                raise ValueError(f"{entry} holds {kind}, not numbers")
            size = self._archive.getinfo(entry).file_size
            if min(shape, default=0) < 0 or file.tell() + int(np.prod(shape, dtype=object)) * kind.itemsize != size:
                raise ValueError(f"{entry} has {size:,} bytes, not those of an array of shape {shape}")
        return tuple(int(n) for n in shape), "bfloat16" if kind.kind == "V" else kind.newbyteorder("=").name

    def read(self, key: str) -> Tensor:
        import numpy as np
        import torch

        try:
            with self._archive.open(self.entries[key]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            self._file.check_unchanged()
            if array.dtype == np.dtype("V2"):
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
        except BROKEN as error:
            self._file.check_unchanged()
            raise CheckpointError(f"cannot read {key} of {self.path}: {one_line(error)}", AGAIN) from None


class Pickled(Weights):
    """A file of torch.save, of which nothing is run.

    Its weights are the table that tables.choose finds; `others` are the whole ViTs that it was chosen from, `beside` what
    else the file holds, by name and with what it is, `root` the outermost table, with the script's arguments.

    Raises CheckpointError where there are no weights, or what makes them is more than tensors.
    """

    def __init__(self, path: Path, is_shard: bool = False) -> None:
        self.path = path
        self._file = TorchFile(path)
        self.effort = self._file.effort
        self.root: dict[str, Any] = self._file.tree if isinstance(self._file.tree, dict) else {}
        self.table, self.others = tables.choose(self._file.tree)
        if self.table is None or (self.table.place is None and not is_shard and self._makes_more()):
            raise self._without_weights()
        wanted = "" if is_shard or self.table.place is None else self._inert(self.table.place)
        if wanted:
            raise CheckpointError(
                f"{path} holds more than weights ({wanted}) among its weights; it could run code and is not opened",
                "where you trust it, load it yourself and save its state_dict()",
            )
        self.shapes = {key: outline.shape for key, outline in self.table.tensors.items()}
        self.types = {key: outline.dtype for key, outline in self.table.tensors.items()}
        _check_keys(path, len(self.shapes))
        unpacked = sum(self._file.cost(outline) for outline in self.table.tensors.values())
        _check_unpacked(path, self._file.file.size, unpacked)

    @property
    def place(self) -> Place | None:
        return None if self.table is None else self.table.place

    @property
    def beside(self) -> list[tuple[str, bool]]:
        """What is in the file and no part of the table of weights: by name, and whether it holds tensors."""
        assert self.table is not None
        around = [
            (name, tables.holds_tensors(value)) for name, value in tables.beside(self._file.tree, self.table.path)
        ]
        return [*((key, False) for key in self.table.others), *around]

    def _inert(self, place: Place) -> str:
        """The global that a key of the layout would have to be made with."""
        assert self.table is not None
        others = self.table.others.items()
        return next((value.name for key, value in others if isinstance(value, Inert) and is_wanted(key, place)), "")

    def _makes_more(self) -> bool:
        """Whether the file's only tables are of something else, and its model is an object."""
        return bool(tables.pickled_module(self._file.tree))

    def _without_weights(self) -> CheckpointError:
        module, inert = tables.pickled_module(self._file.tree), tables.inert_names(self._file.tree)
        if module:
            return CheckpointError(
                f"{self.path} holds a whole pickled model ({module}), whose code would have to be run",
                "where you trust it, load it yourself and save its state_dict()",
            )
        if inert:
            return CheckpointError(
                f"{self.path} holds more than weights ({inert}) and no table of them; it could run code and is not opened",
                "where you trust it, load it yourself and save its state_dict()",
            )
        return CheckpointError(
            f"{self.path} holds no table of weights",
            "a PyTorch file must hold a state_dict, whatever is wrapped around it",
        )

    def read(self, key: str) -> Tensor:
        assert self.table is not None
        outline = self.table.tensors.get(key)
        if not isinstance(outline, Outline):
            raise CheckpointError(f"cannot read {key} of {self.path}", AGAIN)
        return self._file.read(outline)
