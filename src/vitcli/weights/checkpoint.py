"""Weights in and out: read and checked, written with their description, made into models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitcli import files
from vitcli.config import ModelConfig, Size, check_model
from vitcli.errors import CheckpointError
from vitcli.model.posemb import resize_position_embedding
from vitcli.model.vit import ViT, init_head, init_weights
from vitcli.weights.describe import Description, bare, describe, locate
from vitcli.weights.header import not_weights, read_header
from vitcli.weights.layouts import check_shapes, strip_prefixes

Tensors = dict[str, Tensor]


# --- reading -----------------------------------------------------------------------------------------------


def load(reference: str) -> tuple[Description, Tensors]:
    """A checkpoint's description and its weights in float32, checked. Raises CheckpointError."""
    path = locate(reference)
    if path.suffix == ".safetensors":
        description, tensors = describe(path), _read_safetensors(path)
        if description.sha256 and tensor_digest(path) != description.sha256:
            raise CheckpointError(
                f"{path} is damaged: its weights do not have the sha256 they were written with",
                "restore it from a copy, or from state/ of its run",
            )
    else:
        tensors = read_pickle(path)
        description = bare(path, {name: tuple(t.shape) for name, t in tensors.items()})
    names = strip_prefixes(tensors)
    tensors = {names[name]: tensor.float() for name, tensor in tensors.items()}
    check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, description.model, str(path))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite numbers", "use an earlier checkpoint of its run"
            )
    return description, tensors


def _read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", "copy or download it again") from None


def read_pickle(path: Path) -> Tensors:
    """The tensors of a .pth file. Never runs code: anything but tensors and plain containers is refused."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}")
    with path.open("rb") as file:
        start = file.read(64)
    wrong = not_weights(start)
    if wrong:
        raise CheckpointError(
            f"{path} is {wrong}", "download the file itself: git lfs pull, or the hub's download link"
        )
    if path.suffix == ".npz":
        raise CheckpointError(
            f"{path}: weights in .npz files are not read yet", "give .safetensors or .pth weights under timm's names"
        )
    if not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
        raise CheckpointError(f"{path} is not a PyTorch file, or is cut off", "copy or download it again")
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|function|class) ([\w.]+)", str(error))
        raise CheckpointError(
            f"{path} holds more than weights{f' ({found[1]})' if found else ''}; it could run code and is not opened",
            "convert it to safetensors where you trust it",
        ) from None
    except Exception as error:  # torch raises many types on broken files
        raise CheckpointError(
            f"cannot read {path}: {(str(error).splitlines() or [''])[0]}", "copy or download it again"
        ) from None
    for key in ("model", "state_dict", "model_state_dict", "model_ema"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(isinstance(t, Tensor) for t in tree.values()):
        raise CheckpointError(
            f"{path} holds no table of weights", "a PyTorch file must hold a state_dict, alone or under 'model'"
        )
    return {str(name): tensor for name, tensor in tree.items()}


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
    header = read_header(path)
    with path.open("rb") as file:
        file.seek(header.data_start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], document: dict[str, Any] | None = None) -> None:
    """Write tensors in the order of their names, `document` with their sha256 in the header. The file is plain
    safetensors; it is written here because the library writes neither a digest nor the usual file mode.
    """
    digest, offset, entries = hashlib.sha256(), 0, {}
    for name in sorted(tensors):
        view = _bytes(tensors[name])
        digest.update(view)
        entries[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(view)],
        }
        offset += len(view)
    metadata = {"format": "pt"}
    if document is not None:
        metadata["vit"] = json.dumps(document | {"sha256": digest.hexdigest()}, ensure_ascii=False, allow_nan=False)
    head = json.dumps({"__metadata__": metadata} | entries, ensure_ascii=False).encode()
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


def build(model: ModelConfig, tensors: Tensors) -> ViT:
    """A ViT with these weights."""
    vit = ViT(model)
    vit.load_state_dict(tensors, strict=True)
    return vit.eval()


def resized(
    description: Description, tensors: Tensors, size: Size, method: str = "bicubic"
) -> tuple[Description, Tensors]:
    """The same weights for images of `size`. Raises UsageError where it is not a multiple of the patch size."""
    old = description.model
    if size == old.img_size:
        return description, tensors
    new = dataclasses.replace(old, img_size=size)
    check_model(new)
    table = resize_position_embedding(tensors["pos_embed"], old.grid, new.grid, old.prefix_tokens, method)
    return dataclasses.replace(description, model=new), tensors | {"pos_embed": table}


def adapt(tensors: Tensors, model: ModelConfig, keep_head: bool, seed: int, head_bias: float = 0.0) -> ViT:
    """A ViT for fine-tuning: these weights, and where the head is not kept a new one without the tanh layer (paper §3.2)."""
    vit = ViT(model)
    init_weights(vit, seed, head_bias)
    weights = {name: t for name, t in tensors.items() if keep_head or not name.startswith(("head.", "pre_logits."))}
    missing = set(vit.load_state_dict(weights, strict=False).missing_keys)
    assert missing <= {"head.weight", "head.bias"}, missing
    if not keep_head:
        init_head(vit, head_bias)
    return vit
