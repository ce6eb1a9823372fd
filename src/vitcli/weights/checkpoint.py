"""A checkpoint: weights under timm's names and, in the file's own header, all that is needed to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitcli import __version__, files
from vitcli.classes import Class, from_json, read_labels
from vitcli.config import EvalConfig, ModelConfig, Size, check_model, from_dict
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.model.posemb import resize_position_embedding
from vitcli.model.vit import ViT, init_head, init_weights
from vitcli.weights.header import Header, not_weights, read_header
from vitcli.weights.layouts import check_shapes, preprocessing_by_name, strip_prefixes, timm_model

WEIGHTS = "model.safetensors"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Description:
    """What a checkpoint says of itself; readable without its weights."""

    path: Path
    model: ModelConfig
    classes: tuple[Class, ...]  # empty: the outputs have no names
    eval: EvalConfig  # size aside, the preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    notes: tuple[str, ...] = ()  # what had to be guessed

    def document(self) -> dict[str, Any]:
        """The JSON document `vit` of the header, without the digest."""
        return {
            "version": __version__,
            "model": plain(dataclasses.asdict(self.model)),
            "classes": [c.as_json() for c in self.classes],
            "preprocessing": preprocessing(self.model.img_size, self.eval),
            "provenance": self.provenance,
            "scores": self.scores,
        }

    def labelled(self, labels: str) -> Description:
        """With the classes that --labels names. Raises CheckpointError."""
        return dataclasses.replace(self, classes=read_labels(labels, self.model.classes)) if labels else self


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in tree.items()}


def preprocessing(size: Size, config: EvalConfig) -> dict[str, Any]:
    return {"size": list(size), "crop": config.crop, "resize": config.resize, "interpolation": config.interpolation,
            "mean": list(config.mean), "std": list(config.std)}


# --- finding -----------------------------------------------------------------------------------------------


def locate(reference: str) -> Path:
    """The weights file that CKPT names: a file, a run or export folder, or a hub id. Raises CheckpointError."""
    path = Path(reference).expanduser()
    if path.is_dir():
        for name in (WEIGHTS, "pytorch_model.bin"):
            if (path / name).is_file():
                return path / name
        unfinished = " yet: the run is unfinished" if (path / "state").is_dir() else ""
        raise CheckpointError(f"{path} holds no {WEIGHTS}{unfinished}",
                              "run the same command again to finish it" if unfinished else "give a weights file or a run folder")
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference) and path.suffix not in (".safetensors", ".npz", ".pth", ".bin"):
        return _from_hub(reference)
    raise CheckpointError(f"no checkpoint {reference!r}: not a file, a folder or a hub id",
                          "give a .safetensors file, a run folder, or a hub id such as user/name")


def _from_hub(reference: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import utils as hub

    name, _, revision = reference.partition("@")
    hub.disable_progress_bars()
    error: Exception | None = None
    for file in (WEIGHTS, "pytorch_model.bin"):
        for local in (False, True):
            try:
                found = hf_hub_download(name, file, revision=revision or None, local_files_only=local or constants.HF_HUB_OFFLINE)
            except Exception as problem:  # the hub's errors are many; the last resort is the cache
                error = error or problem
                continue
            try:
                hf_hub_download(name, "config.json", revision=revision or None, local_files_only=local or constants.HF_HUB_OFFLINE)
            except Exception:
                pass  # a bare file: its layout is recognised by its keys
            return Path(found)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    hint = ("HF_HUB_OFFLINE is set: unset it to download, or give a file" if constants.HF_HUB_OFFLINE
            else "is there a network, and is the id right? a local file or folder works without either")
    raise CheckpointError(f"cannot get {reference} from the hub or its local cache: {first}", hint) from None


# --- reading -----------------------------------------------------------------------------------------------


def describe(path: Path) -> Description:
    """What `path` says of itself, from the header alone for safetensors. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        header = read_header(path)
        document = header.document()
        return _described(header, document) if document is not None else _bare(path, header.shapes)
    return _bare(path, {name: tuple(t.shape) for name, t in _read_pickle(path).items()})


def load(reference: str) -> tuple[Description, Tensors]:
    """A checkpoint's description and its weights in float32, checked. Raises CheckpointError."""
    path = locate(reference)
    if path.suffix == ".safetensors":
        description, tensors = describe(path), _read_safetensors(path)
        if description.sha256 and tensor_digest(path) != description.sha256:
            raise CheckpointError(f"{path} is damaged: its weights do not have the sha256 they were written with",
                                  "restore it from a copy, or from state/ of its run")
    else:
        tensors = _read_pickle(path)
        description = _bare(path, {name: tuple(t.shape) for name, t in tensors.items()})
    names = strip_prefixes(tensors)
    tensors = {names[name]: tensor.float() for name, tensor in tensors.items()}
    check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, description.model, str(path))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers", "use an earlier checkpoint of its run")
    return description, tensors


def _described(header: Header, document: dict[str, Any]) -> Description:
    """A checkpoint of vit's own."""
    try:
        model = from_dict(ModelConfig, document["model"])
        seen = {k: v for k, v in document["preprocessing"].items() if k != "size"}
        description = Description(
            header.path, model, from_json(document["classes"]), from_dict(EvalConfig, seen),
            dict(document.get("provenance", {})), dict(document.get("scores", {})), str(document.get("sha256", "")))
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        text = error.message if isinstance(error, VitError) else f"{error}"
        raise CheckpointError(f"{header.path}: its description is not one that vit {__version__} reads: {text}",
                              f"it was written by vit {str(document.get('version', '?')):.20}") from None
    if description.classes and len(description.classes) != model.classes:
        raise CheckpointError(f"{header.path} names {len(description.classes)} classes for {model.classes} outputs")
    check_shapes(header.shapes, model, str(header.path))
    return description


def _bare(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    """Somebody else's weights: the layout by its keys, the preprocessing by config.json or the file's name."""
    names = strip_prefixes(shapes)
    model = timm_model({names[name]: shape for name, shape in shapes.items()}, str(path))
    classes: tuple[Class, ...] = ()
    config, why = preprocessing_by_name(path.stem if path.stem not in ("model", "pytorch_model") else path.parent.name)
    try:
        beside = json.loads((path.parent / "config.json").read_text(encoding="utf-8")) if path.stem in ("model", "pytorch_model") else {}
        timm = beside.get("pretrained_cfg", {})
        if timm:
            config = EvalConfig(crop=float(timm.get("crop_pct", config.crop)), mean=tuple(timm.get("mean", config.mean)),
                                std=tuple(timm.get("std", config.std)),
                                interpolation=timm.get("interpolation", "bicubic"))
            why = ""
        if len(beside.get("label_names", ())) == model.classes:
            classes = from_json(beside["label_names"])
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # no readable configuration beside the weights
    return Description(path, model, classes, config, notes=(f"{path.name}: {why}",) if why else ())


def _read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", "copy or download it again") from None


def _read_pickle(path: Path) -> Tensors:
    """The tensors of a .pth file. Never runs code: anything but tensors and plain containers is refused."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}")
    with path.open("rb") as file:
        start = file.read(64)
    wrong = not_weights(start)
    if wrong:
        raise CheckpointError(f"{path} is {wrong}", "download the file itself: git lfs pull, or the hub's download link")
    if path.suffix == ".npz":
        raise CheckpointError(f"{path}: weights in .npz files are not read yet", "give .safetensors or .pth weights under timm's names")
    if not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
        raise CheckpointError(f"{path} is not a PyTorch file, or is cut off", "copy or download it again")
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|function|class) ([\w.]+)", str(error))
        raise CheckpointError(f"{path} holds more than weights{f' ({found[1]})' if found else ''}; it could run code and is not opened",
                              "convert it to safetensors where you trust it") from None
    except Exception as error:  # torch raises many types on broken files
        raise CheckpointError(f"cannot read {path}: {(str(error).splitlines() or [''])[0]}", "copy or download it again") from None
    for key in ("model", "state_dict", "model_state_dict", "model_ema"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(isinstance(t, Tensor) for t in tree.values()):
        raise CheckpointError(f"{path} holds no table of weights", "a PyTorch file must hold a state_dict, alone or under 'model'")
    return {str(name): tensor for name, tensor in tree.items()}


# --- writing -----------------------------------------------------------------------------------------------

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
          torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


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
        entries[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
                         "data_offsets": [offset, offset + len(view)]}
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
    files.write_file(description.path, lambda temporary: write_safetensors(temporary, tensors, description.document()), size)


# --- models ------------------------------------------------------------------------------------------------


def build(model: ModelConfig, tensors: Tensors) -> ViT:
    """A ViT with these weights."""
    vit = ViT(model)
    vit.load_state_dict(tensors, strict=True)
    return vit.eval()


def resized(description: Description, tensors: Tensors, size: Size, method: str = "bicubic") -> tuple[Description, Tensors]:
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
