"""Files that hold weights, opened without torch: names, types and shapes at once, an array only when it is asked for.

| file                     | names and shapes from         | arrays                                    |
|--------------------------|-------------------------------|-------------------------------------------|
| .safetensors             | its header                    | mapped into memory                        |
| .safetensors.index.json  | the headers of its shards     | mapped into memory                        |
| .npz                     | the headers of its arrays     | read one by one                           |
| .bin.index.json          | the pickles of its shards     | mapped into memory                        |
| .pth, .pt, .bin, .ckpt, .pth.tar | its pickle, which is not run | mapped into memory; only tensors, ever |
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.errors import CheckpointError
from vitcli.weights import tables
from vitcli.weights.archives import open_archive
from vitcli.weights.header import not_weights, read_header
from vitcli.weights.layouts import Place, is_wanted
from vitcli.weights.pickles import Inert
from vitcli.weights.torchfile import AGAIN, BROKEN, Outline, TorchFile, one_line

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".safetensors.index.json"
INDICES = (INDEX, ".bin.index.json")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
MAX_KEYS = 50_000
"""Arrays of one file; the largest ViT has a thousand, text towers and decoders a few thousand."""


class Weights(ABC):
    """An open file of weights. `shapes` and `types` (`F32`, `float32`) are by the file's own keys."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: Mapping[str, str] = {}

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """One array, in the file's own type. Raises CheckpointError."""


def open_weights(path: Path) -> Weights:
    """The weights in `path`, by its ending. Raises CheckpointError that says what the file is instead."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}", "give a weights file, a run folder or a hub id")
    weights = _opened(path)
    if len(weights.shapes) > MAX_KEYS:
        raise CheckpointError(f"{path} holds {len(weights.shapes):,} arrays, more than any ViT", "is it a checkpoint?")
    return weights


def _opened(path: Path) -> Weights:
    if path.name.endswith(INDICES):
        return Sharded(path)
    if path.suffix == ".safetensors":
        return Safetensors(path)
    with path.open("rb") as file:
        wrong = not_weights(file.read(64))
    if wrong:
        raise CheckpointError(
            f"{path} is {wrong}", "download the file itself: git lfs pull, or the hub's download link"
        )
    return Npz(path) if path.suffix == ".npz" else Pickled(path)


class Safetensors(Weights):
    def __init__(self, path: Path) -> None:
        self.path, self.header = path, read_header(path)
        self.shapes, self.types = self.header.shapes, self.header.dtypes

    @cached_property
    def _file(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, "pt")

    def read(self, key: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self._file.get_tensor(key)
            return tensor
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot read {self.path}: {error}", AGAIN) from None


class Sharded(Weights):
    """Several files, safetensors or of torch.save, and a table of which key lies in which."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            shards = {str(shard) for shard in names.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no index of shards: {error}", AGAIN) from None
        if any(Path(shard).name != shard for shard in shards):
            raise CheckpointError(f"{path} names files outside its folder", "its shards must lie beside it")
        files = [self._shard(path.parent / shard) for shard in sorted(shards)]
        self.where = {key: file for file in files for key in file.shapes}
        missing = sorted(set(names) - set(self.where))
        if missing:
            raise CheckpointError(f"{path} lists {missing[0]}, which none of its shards has", AGAIN)
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


class Npz(Weights):
    """numpy's archive of arrays. Two-byte arrays without a type are bfloat16 (big_vision, utils.recover_dtype)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_archive(path) as archive:
                entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
                said = {key: self._shape(archive, entry) for key, entry in entries.items()}
            self.shapes = {key: shape for key, (shape, _) in said.items()}
            self.types = {key: kind for key, (_, kind) in said.items()}
            self.entries = entries
        except BROKEN as error:
            raise CheckpointError(f"cannot read {path}: {one_line(error)}", AGAIN) from None

    @staticmethod
    def _shape(archive: zipfile.ZipFile, entry: str) -> tuple[tuple[int, ...], str]:
        import numpy as np

        with archive.open(entry) as file:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            if kind.hasobject or (kind.kind not in "fiub" and kind != np.dtype("V2")):
                raise ValueError(f"{entry} holds {kind}, not numbers")
            size = archive.getinfo(entry).file_size
            if min(shape, default=0) < 0 or file.tell() + int(np.prod(shape, dtype=object)) * kind.itemsize != size:
                raise ValueError(f"{entry} has {size:,} bytes, not those of an array of shape {shape}")
        return tuple(int(n) for n in shape), "bfloat16" if kind.kind == "V" else kind.newbyteorder("=").name

    def read(self, key: str) -> Tensor:
        import numpy as np
        import torch

        try:
            with open_archive(self.path) as archive, archive.open(self.entries[key]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype == np.dtype("V2"):
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
        except BROKEN as error:
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
