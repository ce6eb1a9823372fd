"""What a checkpoint says of itself, read without torch and, for safetensors, without its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcli import __version__, hub
from vitcli.classes import Class, from_json, read_labels
from vitcli.config import EvalConfig, ModelConfig, Size, check_model, from_dict
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.weights.beside import read_beside
from vitcli.weights.header import Header
from vitcli.weights.layouts import (
    TIMM,
    Found,
    Row,
    Stored,
    architecture,
    check_shapes,
    find,
    preprocessing_by_name,
    strip_prefixes,
)
from vitcli.weights.stored import INDEX, PICKLES, Safetensors, Weights, open_weights

WEIGHTS = "model.safetensors"
_USUAL = (WEIGHTS, f"model{INDEX}", "pytorch_model.bin")


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
    layout: str = "vit"  # whose names the file has
    report: tuple[Row, ...] = ()  # what became of each of its keys, where they are not vit's own

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
        "views": config.views,
    }


# --- finding -----------------------------------------------------------------------------------------------


def locate(reference: str) -> Path:
    """The weights file that CKPT names: a file, a run or export folder, or a hub id. Raises CheckpointError."""
    try:
        path = Path(reference).expanduser()
        folder = path.is_dir()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"no checkpoint {reference[:200]!r}: {str(error)[:100]}", "give a weights file, a run folder or a hub id"
        ) from None
    if folder:
        for name in _USUAL:
            if (path / name).is_file():
                return path / name
        alone = [f for f in sorted(path.iterdir()) if f.is_file() and f.suffix in (".safetensors", ".npz", *PICKLES)]
        if len(alone) == 1:
            return alone[0]
        unfinished = " yet: the run is unfinished" if (path / "state").is_dir() else ""
        raise CheckpointError(
            f"{path} holds no {WEIGHTS}{unfinished}" if len(alone) < 2 else f"{path} holds {len(alone)} weights files",
            "run the same command again to finish it" if unfinished else "give a weights file or a run folder",
        )
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference) and path.suffix not in (
        ".safetensors",
        ".npz",
        *PICKLES,
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

    def get(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=cached))

    for file in _USUAL:
        try:
            found = get(file)
            for shard in _shards(found):
                get(shard)
        except Exception as problem:  # the hub's errors are many; the next file may be there
            error = error or problem
            continue
        for beside in ("config.json", "preprocessor_config.json"):
            with contextlib.suppress(Exception):  # a bare file: its layout is recognised by its keys
                get(beside)
        return found
    assert error is not None
    first = (str(error).splitlines() or [type(error).__name__])[0]
    hint = "HF_HUB_OFFLINE is set: unset it to download, or give a file" if offline else hub.hint(error)
    raise CheckpointError(f"cannot get {reference} from the hub or its local cache: {first}", hint) from None


def _shards(path: Path) -> list[str]:
    """The files that an index of shards names."""
    if not path.name.endswith(INDEX):
        return []
    names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return sorted({str(shard) for shard in names if Path(str(shard)).name == str(shard)})


# --- reading -----------------------------------------------------------------------------------------------


def describe(path: Path) -> Description:
    """What `path` says of itself, without its weights and without torch. Raises CheckpointError."""
    return open_checkpoint(path).description


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint whose weights can be read one by one; `found` and `stored` where its keys are not vit's own."""

    weights: Weights
    description: Description
    found: Found | None = None
    stored: Stored | None = None


def open_checkpoint(path: Path) -> Opened:
    """A checkpoint, recognised and checked by its keys and shapes. Raises CheckpointError."""
    weights = open_weights(path)
    if isinstance(weights, Safetensors):
        document = weights.header.document()
        if document is not None:
            return Opened(weights, described(weights.header, document))
    return _bare(weights)


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
        raise CheckpointError(
            f"{header.path} names {len(description.classes)} classes for {model.classes} outputs",
            "the file is damaged, or was changed by hand",
        )
    names = strip_prefixes(header.shapes)
    check_shapes({names[name]: shape for name, shape in header.shapes.items()}, model, str(header.path))
    return description


def _bare(weights: Weights) -> Opened:
    """Somebody else's weights: the layout by its keys, the rest by the files beside it, by the layout, by its name."""
    path = weights.path
    found = find(weights.shapes, str(path))
    name = path.parent.name if path.name in _USUAL else path.stem
    config, why = preprocessing_by_name(name, found.layout)
    said = read_beside(path, config)
    stored = architecture(found, said, str(path))
    if said.eval is not None:
        config, why = said.eval, ""
    classes = said.classes if len(said.classes) == stored.model.classes else ()
    notes = [f"{path.name}: {why}"] if why else []
    if found.layout is not TIMM:
        notes.append(f"{path.name}: layout of {found.layout.name}")
    left_out = [row.key for row in found.report if row.fate == "dropped"]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        notes.append(f"{path.name}: left out {', '.join(left_out[:3])}{more}")
    description = Description(
        path, stored.model, tuple(classes), config, notes=tuple(notes), layout=found.layout.name, report=found.report
    )
    return Opened(weights, description, found, stored)
