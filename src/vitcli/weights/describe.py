"""What a checkpoint says of itself, read without torch and, for safetensors, without its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcli import __version__, hub
from vitcli.classes import Class, from_json, read_labels
from vitcli.config import EvalConfig, ModelConfig, Size, check_model, from_dict
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.weights.header import Header, read_header
from vitcli.weights.layouts import check_shapes, preprocessing_by_name, strip_prefixes, timm_model

WEIGHTS = "model.safetensors"


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
    return {
        "size": list(size),
        "crop": config.crop,
        "resize": config.resize,
        "interpolation": config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
    }


# --- finding -----------------------------------------------------------------------------------------------


def locate(reference: str) -> Path:
    """The weights file that CKPT names: a file, a run or export folder, or a hub id. Raises CheckpointError."""
    try:
        path = Path(reference).expanduser()
        folder = path.is_dir()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"no checkpoint {reference[:200]!r}: {str(error)[:100]}") from None
    if folder:
        for name in (WEIGHTS, "pytorch_model.bin"):
            if (path / name).is_file():
                return path / name
        unfinished = " yet: the run is unfinished" if (path / "state").is_dir() else ""
        raise CheckpointError(
            f"{path} holds no {WEIGHTS}{unfinished}",
            "run the same command again to finish it" if unfinished else "give a weights file or a run folder",
        )
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference) and path.suffix not in (
        ".safetensors",
        ".npz",
        ".pth",
        ".bin",
    ):
        return _from_hub(reference)
    raise CheckpointError(
        f"no checkpoint {reference!r}: not a file, a folder or a hub id",
        "give a .safetensors file, a run folder, or a hub id such as user/name",
    )


def _from_hub(reference: str) -> Path:
    """The weights of a hub id, from the hub or from its local cache where the hub cannot be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = reference.partition("@")
    disable_progress_bars()
    offline = hub.is_offline()
    error = None if offline else hub.obstacle(name, "model", revision)
    cached = offline or error is not None
    for file in (WEIGHTS, "pytorch_model.bin"):
        try:
            found = hf_hub_download(name, file, revision=revision or None, local_files_only=cached)
        except Exception as problem:  # the hub's errors are many; the next file may be there
            error = error or problem
            continue
        with contextlib.suppress(Exception):  # a bare file: its layout is recognised by its keys
            hf_hub_download(name, "config.json", revision=revision or None, local_files_only=cached)
        return Path(found)
    assert error is not None
    first = (str(error).splitlines() or [type(error).__name__])[0]
    hint = "HF_HUB_OFFLINE is set: unset it to download, or give a file" if offline else hub.hint(error)
    raise CheckpointError(f"cannot get {reference} from the hub or its local cache: {first}", hint) from None


# --- reading -----------------------------------------------------------------------------------------------


def describe(path: Path) -> Description:
    """What `path` says of itself, from the header alone for safetensors. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        header = read_header(path)
        document = header.document()
        return described(header, document) if document is not None else bare(path, header.shapes)
    from vitcli.weights.checkpoint import read_pickle

    return bare(path, {name: tuple(t.shape) for name, t in read_pickle(path).items()})


def described(header: Header, document: dict[str, Any]) -> Description:
    """A checkpoint of vit's own."""
    try:
        model = from_dict(ModelConfig, document["model"])
        seen = {k: v for k, v in document["preprocessing"].items() if k != "size"}
        description = Description(
            header.path,
            model,
            from_json(document["classes"]),
            from_dict(EvalConfig, seen),
            dict(document.get("provenance", {})),
            dict(document.get("scores", {})),
            str(document.get("sha256", "")),
        )
        check_model(model)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        text = error.message if isinstance(error, VitError) else f"{error}"
        raise CheckpointError(
            f"{header.path}: its description is not one that vit {__version__} reads: {text}",
            f"it was written by vit {document.get('version', '?')!s:.20}",
        ) from None
    if description.classes and len(description.classes) != model.classes:
        raise CheckpointError(f"{header.path} names {len(description.classes)} classes for {model.classes} outputs")
    check_shapes(header.shapes, model, str(header.path))
    return description


def bare(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    """Somebody else's weights: the layout by its keys, the preprocessing by config.json or the file's name."""
    names = strip_prefixes(shapes)
    model = timm_model({names[name]: shape for name, shape in shapes.items()}, str(path))
    classes: tuple[Class, ...] = ()
    config, why = preprocessing_by_name(path.stem if path.stem not in ("model", "pytorch_model") else path.parent.name)
    try:
        beside = (
            json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
            if path.stem in ("model", "pytorch_model")
            else {}
        )
        timm = beside.get("pretrained_cfg", {})
        if timm:
            config = from_dict(
                EvalConfig,
                {
                    "crop": timm.get("crop_pct", config.crop),
                    "mean": timm.get("mean", config.mean),
                    "std": timm.get("std", config.std),
                    "interpolation": timm.get("interpolation", "bicubic"),
                },
            )
            if min(config.std) <= 0:
                raise ValueError
            why = ""
        if "label_names" in beside and len(beside["label_names"]) == model.classes:
            classes = from_json(beside["label_names"])
    except (OSError, ValueError, TypeError, AttributeError, UsageError):
        config, why = preprocessing_by_name(path.parent.name)  # no readable configuration beside the weights
    return Description(path, model, classes, config, notes=(f"{path.name}: {why}",) if why else ())
