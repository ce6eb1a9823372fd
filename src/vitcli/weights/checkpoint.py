"""Weights in and out: read and checked, written with their description, made into models."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcli import files
from vitcli.config import Architecture, ModelConfig, Overrides, Size
from vitcli.errors import CheckpointError
from vitcli.model.channels import convert_patch_embedding
from vitcli.model.classifier import Classifier, build, class_of
from vitcli.text import as_json
from vitcli.weights.architecture import Stored, check_shapes
from vitcli.weights.describe import Description, Opened, open_checkpoint
from vitcli.weights.keys import THIRDS, Part, scanned_key, strip_prefixes
from vitcli.weights.locate import locate
from vitcli.weights.stored import Safetensors

Tensors = dict[str, Tensor]

# --- reading -----------------------------------------------------------------------------------------------


class Lazy(Mapping[str, Tensor]):
    """A checkpoint's weights under vit's names, each read when it is asked for, in the file's own type.

    Raises CheckpointError for one that cannot be read or holds numbers that are not finite.
    """

    def __init__(self, opened: Opened) -> None:
        self.path, self._weights, self._stored = opened.description.path, opened.weights, opened.stored
        if opened.found is None:
            names = strip_prefixes(opened.weights.shapes)
            self._parts: Mapping[str, tuple[Part, ...]] = {name: (Part(key),) for key, name in names.items()}
        else:
            self._parts = opened.found.parts
        self._model = opened.description.model
        self._names = self._model.shapes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        stored = self._stored
        if stored is not None and name in stored.zeros:
            return torch.zeros(self._names[name])
        tensor = self._joined(name) if name in self._parts else torch.empty(0)
        if stored is not None and name in ("pos_embed", "cls_token", "reg_token"):
            tensor = self._folded(name, tensor, stored)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self.path}: {name} holds NaN or infinite numbers", "use an earlier checkpoint of its run"
            )
        if name == self._model.reader:
            return convert_patch_embedding(tensor, self._model.channels, self._model.channels_from)
        return tensor

    def _joined(self, name: str) -> Tensor:
        arrays = [self._array(part) for part in self._parts[name]]
        return arrays[0] if len(arrays) == 1 else torch.cat(arrays)

    def _array(self, part: Part) -> Tensor:
        key, index = scanned_key(part.key, self._weights.shapes)
        tensor = self._weights.read(key)
        tensor = tensor if index is None else tensor[index]
        if part.op == "transpose":
            tensor = tensor.t()
        elif part.op == "hwio":
            tensor = tensor.permute(3, 2, 0, 1)
        elif part.op == "hwio_matrix":
            tensor = tensor.flatten(0, 2).t()
        elif part.op == "pixels":
            _, channels, rows, columns = part.shape
            tensor = tensor.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        elif part.op in THIRDS:
            thirds = tensor.chunk(3)
            tensor = torch.cat([thirds[i] for i in THIRDS[part.op]])
        elif part.op == "heads_in":
            tensor = tensor.flatten(1).t()
        elif part.op == "heads_out":
            tensor = tensor.flatten(0, 1).t()
        return tensor.reshape(part.shape) if part.shape else tensor

    def _folded(self, name: str, tensor: Tensor, stored: Stored) -> Tensor:
        """Prefix rows of the position embedding that the model has not are added to their tokens, which is the same."""
        if name == "reg_token" and stored.registers_from:
            first = self._joined(stored.registers_from)
            tensor = torch.cat([first, tensor], dim=1) if "reg_token" in self._parts else first
        model = stored.model
        assert isinstance(model, ModelConfig)  # which alone has tensors of these names
        surplus = stored.rows - model.prefix_rows
        if not surplus:
            return tensor
        if name == "pos_embed":
            return tensor[:, surplus:]
        rows = self._joined("pos_embed")[:, :surplus]
        own = int(model.class_token)
        rows = rows[:, :own] if name == "cls_token" else rows[:, own:]
        return tensor + rows if rows.shape[1] else tensor


def load(reference: str | Description, overrides: Overrides | None = None) -> tuple[Description, Tensors]:
    """A checkpoint's description and its weights in float32, checked; one that is described already is read as it was, from
    the file that was opened then.

    Raises CheckpointError, or UsageError for a `model.` value of `overrides` that cannot be.
    """
    if isinstance(reference, Description):
        opened = reference.opened
        if opened is None or opened.description.path != reference.path:
            opened = open_checkpoint(reference.path, reference.asked)
    else:
        opened = open_checkpoint(locate(reference), overrides)
    check_digest(opened)
    tensors = {name: tensor.float() for name, tensor in Lazy(opened).items()}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    check_shapes(shapes, opened.description.model, str(opened.description.path))
    return opened.description, tensors


def check_digest(opened: Opened) -> None:
    """Raises CheckpointError where vit's own file does not have the digest that it was written with."""
    description = opened.description
    fault = files.file_fault(description.path)  # of a step in state/, whose digest stands in a manifest
    own = opened.weights if isinstance(opened.weights, Safetensors) else None
    if own and description.sha256 and own.sha256() != description.sha256:
        fault = "its weights do not have the sha256 they were written with"
    if fault:
        raise CheckpointError(
            f"{description.path} is damaged: {fault}", "restore it from a copy, or take a step in state/ of its run"
        )


# --- writing -----------------------------------------------------------------------------------------------

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def tensor_digest(path: Path) -> str:
    """sha256 of a file's tensor bytes: all that follows the header."""
    return Safetensors(path).sha256()


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], document: dict[str, Any] | None = None) -> None:
    """Write tensors in the order of their names, `document` with their sha256 in the header. The file is plain
    safetensors; it is written here because the library writes neither a digest nor the usual file mode.

    Each tensor is asked for twice, and no two are held at once.
    """
    digest, offset, entries = hashlib.sha256(), 0, {}
    for name in sorted(tensors):
        tensor = tensors[name]
        view = _bytes(tensor)
        if document is not None:
            digest.update(view)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(view)],
        }
        offset += len(view)
    metadata = {"format": "pt"}
    if document is not None:
        metadata["vit"] = as_json(document | {"sha256": digest.hexdigest()})
    head = as_json({"__metadata__": metadata} | entries).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in sorted(tensors):
            file.write(_bytes(tensors[name]))
        file.flush()
        os.fsync(file.fileno())


def save(description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint at `description.path`, whole or not at all. Raises ResourceError."""
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    files.write_file(
        description.path, lambda temporary: write_safetensors(temporary, tensors, description.document()), size
    )


# --- models ------------------------------------------------------------------------------------------------


def model_with(config: Architecture, tensors: Mapping[str, Tensor]) -> Classifier:
    """A model with these weights."""
    model = build(config)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def resized(
    description: Description,
    tensors: Mapping[str, Tensor],
    size: Size,
    method: str = "",
    patch: Size | None = None,
) -> tuple[Description, Mapping[str, Tensor]]:
    """The same weights for images of `size`, with patches of another size where `patch` is given. Positions are resized by
    `method`, else as the description says.

    Raises UsageError where the one is not a multiple of the other.
    """
    old = description.model
    new = dataclasses.replace(old, img_size=size)
    if patch is not None:
        new = new.with_patch(patch)
    if new == old:
        return description, tensors
    new.check()
    changed = class_of(old).resize(tensors, old, new, method)
    report = tuple(
        dataclasses.replace(row, fate="resampled") if row.to in changed else row for row in description.report
    )
    return dataclasses.replace(description, model=new, report=report), ChainMap(changed, tensors)  # type: ignore[arg-type]


def adapt(
    tensors: Mapping[str, Tensor], config: Architecture, keep_head: bool, seed: int, head_bias: float = 0.0
) -> Classifier:
    """A model for fine-tuning: these weights, and where the head is not kept a new one (paper §3.2)."""
    model = build(config)
    model.initialise(seed, head_bias=head_bias)
    replaced = model.replaced_names()
    weights = {name: t for name, t in tensors.items() if keep_head or not name.startswith(replaced)}
    missing = set(model.load_state_dict(weights, strict=False).missing_keys)
    assert all(name.startswith(model.head_names()) for name in missing), missing
    if not keep_head:
        model.new_head(head_bias)
    return model
