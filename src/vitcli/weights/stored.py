"""Files that hold weights, opened without torch: names, types and shapes at once, an array only when it is asked for.

| file                     | names and shapes from         | arrays                                    |
|--------------------------|-------------------------------|-------------------------------------------|
| .safetensors             | its header                    | mapped into memory                        |
| .safetensors.index.json  | the headers of its shards     | mapped into memory                        |
| .npz                     | the headers of its arrays     | read one by one                           |
| .pth, .pt, .bin          | its pickle, which is not run  | mapped into memory; only tensors, ever    |
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.errors import CheckpointError
from vitcli.weights.header import not_weights, read_header

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".safetensors.index.json"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_AGAIN = "copy or download it again"
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema")


class Weights(ABC):
    """An open file of weights. `shapes` are by the file's own keys."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """One array, in the file's own type. Raises CheckpointError."""


def open_weights(path: Path) -> Weights:
    """The weights in `path`, by its ending. Raises CheckpointError that says what the file is instead."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}", "give a weights file, a run folder or a hub id")
    if path.name.endswith(INDEX):
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
        self.shapes = self.header.shapes

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
            raise CheckpointError(f"cannot read {self.path}: {error}", _AGAIN) from None


class Sharded(Weights):
    """Several safetensors files and a table of which key lies in which."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            shards = {str(shard) for shard in names.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no index of shards: {error}", _AGAIN) from None
        if any(Path(shard).name != shard for shard in shards):
            raise CheckpointError(f"{path} names files outside its folder", "its shards must lie beside it")
        self.files = {shard: Safetensors(path.parent / shard) for shard in sorted(shards)}
        self.where = {key: file for file in self.files.values() for key in file.shapes}
        missing = sorted(set(names) - set(self.where))
        if missing:
            raise CheckpointError(f"{path} lists {missing[0]}, which none of its shards has", _AGAIN)
        self.shapes = {key: file.shapes[key] for key, file in self.where.items()}

    def read(self, key: str) -> Tensor:
        return self.where[key].read(key)


_BROKEN_ARCHIVE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,  # NotImplementedError among them
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and numpy raise on an archive whose bytes are not what they should be."""


class Npz(Weights):
    """numpy's archive of arrays. Two-byte arrays without a type are bfloat16 (big_vision, utils.recover_dtype)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
                self.shapes = {key: self._shape(archive, entry) for key, entry in entries.items()}
            self.entries = entries
        except _BROKEN_ARCHIVE as error:
            raise CheckpointError(f"cannot read {path}: {str(error)[:200]}", _AGAIN) from None

    @staticmethod
    def _shape(archive: zipfile.ZipFile, entry: str) -> tuple[int, ...]:
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
        return tuple(int(n) for n in shape)

    def read(self, key: str) -> Tensor:
        import numpy as np
        import torch

        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.entries[key]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype == np.dtype("V2"):
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
        except _BROKEN_ARCHIVE as error:
            raise CheckpointError(f"cannot read {key} of {self.path}: {str(error)[:200]}", _AGAIN) from None


class Pickled(Weights):
    """A PyTorch file. Its pickle is read for names and shapes without running any of it; what it calls for beside
    tensors and plain containers is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(2)
        if _is_archive(path):
            self._tree = _outline(path)
        elif start[:1] == b"\x80":
            self._tree = self._tensors  # the format before torch 1.6 has no outline
        else:
            raise CheckpointError(f"{path} is not a PyTorch file, or is cut off", _AGAIN)
        table = _table(self._tree, path)
        self.shapes = {str(key): tuple(int(n) for n in value.shape) for key, value in table.items()}

    @cached_property
    def _tensors(self) -> Any:
        import torch

        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=_is_archive(self.path))
        except pickle.UnpicklingError as error:
            found = re.search(r"(?:GLOBAL|global|function|class) ([\w.]+)", str(error))
            raise _refusal(self.path, found[1] if found else "") from None
        except Exception as error:  # torch raises many types on broken files
            raise CheckpointError(
                f"cannot read {self.path}: {(str(error).splitlines() or [''])[0][:200]}", _AGAIN
            ) from None

    @cached_property
    def _by_key(self) -> dict[str, Tensor]:
        return {str(key): tensor for key, tensor in _table(self._tensors, self.path).items()}

    def read(self, key: str) -> Tensor:
        try:
            return self._by_key[key].detach()
        except KeyError:
            raise CheckpointError(f"cannot read {key} of {self.path}", _AGAIN) from None


def _is_archive(path: Path) -> bool:
    """Whether a file is, or says that it is, a zip archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it says that it spans several disks
        return True


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds more than weights{f' ({what})' if what else ''}; it could run code and is not opened",
        "convert it to safetensors where you trust it",
    )


def _table(tree: Any, path: Path) -> dict[Any, Any]:
    """The state_dict in a file's tree: the tree itself, or what lies under `model` and the like."""
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(_is_tensor(value) for value in tree.values()):
        raise CheckpointError(
            f"{path} holds no table of weights", "a PyTorch file must hold a state_dict, alone or under 'model'"
        )
    return tree


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _Outline) or (hasattr(value, "shape") and hasattr(value, "detach"))


class _Outline:
    """A tensor's shape, in place of the tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def _rebuilt(storage: Any, offset: Any, size: Any, *rest: Any) -> _Outline:
    return _Outline(tuple(int(n) for n in size))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Callable[..., Any] | type] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
}


class _Reader(pickle.Unpickler):
    """Builds the tree of a PyTorch file with outlines for tensors. No name but those of `_KNOWN` is ever looked up."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and re.fullmatch(r"\w+Storage|float\d+|bfloat16|u?int\d+|bool", name):
            return name
        raise pickle.UnpicklingError(f"global {module}.{name}")

    def persistent_load(self, address: Any) -> Any:
        return address


def _outline(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if entry is None:
                raise CheckpointError(f"{path} is not a PyTorch file, or is cut off", _AGAIN)
            return _Reader(io.BytesIO(archive.read(entry))).load()
    except pickle.UnpicklingError as error:
        found = re.search(r"global ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"cannot read {path}: {str(error)[:200]}", _AGAIN) from None
        raise _refusal(path, found[1]) from None
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle raises many types
        raise CheckpointError(f"cannot read {path}: {str(error)[:200]}", _AGAIN) from None
