"""What a checkpoint says of itself, read without torch and, for safetensors, without its weights."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli import __version__, hub
from vitcli.classes import Class, from_json, read_labels
from vitcli.config import (
    Architecture,
    EvalConfig,
    ModelConfig,
    Overrides,
    check_statistics,
    format_size,
    from_dict,
)
from vitcli.config_values import written
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.families.table import FAMILIES
from vitcli.text import last_names
from vitcli.weights.architecture import architecture, check_shapes
from vitcli.weights.channels import KEYS, converted, fitted
from vitcli.weights.document import check_document, plain, preprocessing
from vitcli.weights.header import Header
from vitcli.weights.keys import Found, Place, Row, best_place, find, is_average, strip_prefixes
from vitcli.weights.layouts import preprocessing_by_name
from vitcli.weights.locate import left_by_training
from vitcli.weights.pickles import Inert
from vitcli.weights.sidecars import is_of_training, is_usual, read_sidecars
from vitcli.weights.stored import Pickled, Safetensors, Weights, open_weights
from vitcli.weights.timm_sidecar import from_training
from vitcli.weights.told import guesses, pixels_by_name, told_by_name
from vitcli.weights.vit_architecture import FACTS, Stored

if TYPE_CHECKING:
    from vitcli.data.identity import Record


@dataclass(frozen=True, eq=False, kw_only=True)
class Description:
    """What a checkpoint says of itself; readable without its weights."""

    path: Path
    model: Architecture
    classes: tuple[Class, ...]  # empty: the outputs have no names
    eval: EvalConfig  # size aside, the preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    notes: tuple[str, ...] = ()  # what had to be guessed
    layout: str = "vit"  # whose names the file has
    report: tuple[Row, ...] = ()  # what became of each of its keys, where they are not vit's own
    trained_images: dict[str, Any] = field(default_factory=dict)  # a Record (data/identity.py)
    asked: Overrides = field(default_factory=dict)  # values of `model.` with which the file was read
    opened: Opened | None = field(default=None, repr=False)  # the file that was described, from which weights are read

    def document(self) -> dict[str, Any]:
        """The JSON document `vit` of the header, without the digest."""
        return {
            "version": __version__,
            "model": plain(written(self.model)),
            "classes": [c.as_json() for c in self.classes],
            "preprocessing": preprocessing(self.model.img_size, self.eval),
            "provenance": self.provenance,
            "scores": self.scores,
            **({"trained_images": self.trained_images} if self.trained_images else {}),
        }

    @property
    def hub_id(self) -> str:
        """`user/name`, where the file is of the hub; else empty."""
        return hub.id_of(self.path)

    @property
    def title(self) -> str:
        """What people know the file by: its id at the hub, else its name with its folder's."""
        return self.hub_id or last_names(str(self.path))

    @property
    def vit(self) -> ModelConfig:
        """The architecture of a Vision Transformer. Raises CheckpointError for another model."""
        if not isinstance(self.model, ModelConfig):
            raise CheckpointError(
                f"{self.path} is a {self.model.kind}, {self.model.name}, no Vision Transformer: it has neither attention nor patches",
                "this command is for those and for hybrids",
            )
        return self.model

    def record(self) -> Record:
        """The images that trained it and the runs before it, as far as it says. Raises CheckpointError."""
        from vitcli.data.identity import Record

        if self.trained_images:
            return Record.of(self.trained_images, str(self.path))
        return Record(unknown=(self.path.name,))

    def labelled(self, labels: str) -> Description:
        """With the classes that --labels names. Raises CheckpointError."""
        return dataclasses.replace(self, classes=read_labels(labels, self.model.classes)) if labels else self


# --- reading -----------------------------------------------------------------------------------------------


DESCRIBED = frozenset().union(*(f.config.fixed() for f in FAMILIES.values())) - {"name", "family"} | {
    "posemb",
    "channels_from",
}
"""Keys of `model.` that say what weights are, which --set gives where a file does not."""
_REPLACES = (
    *("heads", "gelu", "norm_eps", "pool", "posemb", "groups", "group_eps", "weight_eps", "weight_eps_to"),
    *FACTS,
)
"""Those that may differ from what was read or guessed; of the others the arrays leave no doubt."""


def describe(path: Path, overrides: Overrides | None = None) -> Description:
    """What `path` says of itself, without its weights and without torch; `model.` values of `overrides` stand in for what
    somebody else's file does not say. Raises CheckpointError, or UsageError where such a value cannot be.
    """
    opened = open_checkpoint(path, overrides)
    origin = hub.origin(path)
    notes = (*((f"weights: {origin}",) if origin else ()), *opened.description.notes)
    return dataclasses.replace(opened.description, opened=opened, notes=notes)


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint whose weights can be read one by one; `found` and `stored` where its keys are not vit's own."""

    weights: Weights
    description: Description
    found: Found | None = None
    stored: Stored | None = None


def open_checkpoint(path: Path, overrides: Overrides | None = None) -> Opened:
    """A checkpoint, recognised and checked by its keys and shapes. Raises CheckpointError, UsageError as `describe`."""
    asked = {k.partition(".")[2]: v for k, v in (overrides or {}).items() if k.startswith("model.")}
    for key in asked.keys() - DESCRIBED:
        hint = "use --img-size" if key == "img_size" else f"--set takes model.{', model.'.join(_REPLACES)} here"
        raise UsageError(f"model.{key} does not concern a checkpoint that is only read", hint)
    wanted = {key: asked.pop(key) for key in KEYS if key in asked}
    weights = open_weights(path)
    document = weights.header.document() if isinstance(weights, Safetensors) else None
    if document is None:
        return _for_channels(_bare(weights, asked), wanted)
    assert isinstance(weights, Safetensors)
    return _for_channels(Opened(weights, _kept(described(weights.header, document), asked)), wanted)


def _for_channels(opened: Opened, wanted: Overrides) -> Opened:
    """For the channels that are asked for. Raises UsageError."""
    old = opened.description
    model, config, said = converted(old.path, old.model, old.eval, wanted)
    if model == old.model:
        return opened
    asked = old.asked | {f"model.{key}": value for key, value in wanted.items()}
    new = dataclasses.replace(old, model=model, eval=config, notes=(*old.notes, *said), asked=asked, scores={})
    return dataclasses.replace(opened, description=new)


def _kept(description: Description, asked: Overrides) -> Description:
    """A checkpoint of vit's own says what it is; only how its positions are resized is the user's. Raises UsageError."""
    for key, value in asked.items():
        own = getattr(description.model, key, None)
        if value != own and (own is None or key != "posemb"):
            raise UsageError(
                f"model.{key} cannot be changed to {value}: {description.path} says that it is {own or 'none'}",
                "a checkpoint of vit's own says what it is: leave it out",
            )
    model = dataclasses.replace(description.model, **asked)
    return dataclasses.replace(description, model=model, asked={f"model.{k}": v for k, v in asked.items()})


def described(header: Header, document: dict[str, Any]) -> Description:
    """A checkpoint of vit's own."""
    try:
        check_document(document)
        seen = document["preprocessing"]
        _check_keys("preprocessing", seen, preprocessing((1, 1), EvalConfig(temperature=2.0, scores="sigmoid")))
        model = from_dict("model", document["model"])
        model.check()
        if tuple(seen.get("size", model.img_size)) != model.img_size:
            raise ValueError(f"preprocessing.size is not model.img_size, {format_size(model.img_size)}")
        config = from_dict("eval", {k: v for k, v in seen.items() if k != "size"})
        check_statistics(model, config)
        description = Description(
            path=header.path,
            model=model,
            classes=from_json(document["classes"]),
            eval=config,
            provenance=document.get("provenance", {}),
            scores=document.get("scores", {}),
            sha256=document.get("sha256", ""),
            trained_images=document.get("trained_images", {}),
        )
    except (ValueError, UsageError) as error:
        text = error.message if isinstance(error, VitError) else f"{error}"
        version = document.get("version")
        raise CheckpointError(
            f"{header.path}: its description is not one that vit {__version__} reads: {text}",
            f"it was written by vit {version[:20] if isinstance(version, str) else '?'}",
        ) from None
    if description.classes and len(description.classes) != model.classes:
        raise CheckpointError(
            f"{header.path} names {len(description.classes)} classes for {model.classes} outputs",
            "the file is damaged, or was changed by hand",
        )
    names = strip_prefixes(header.shapes)
    for name, kind in header.dtypes.items():
        _check_type(header.path, name, kind)
    check_shapes({names[name]: shape for name, shape in header.shapes.items()}, model, str(header.path))
    return description


def _check_keys(name: str, values: dict[str, Any], known: dict[str, Any]) -> None:
    """Raises ValueError for a key that is not known."""
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        raise ValueError(f"{name}.{unknown[:80]} is unknown")


def _bare(weights: Weights, asked: Overrides) -> Opened:
    """Somebody else's weights: the layout by its keys; the rest from what was asked for, the files beside it, its name, its
    layout, in this order, and what none of them tells a guess that is said.
    """
    path = weights.path
    place, others = _place(weights)
    found = find(weights.shapes, str(path), place)
    _check_types(weights, found)
    script = _script(weights, path)
    name = path.parent.name if is_usual(path) or is_of_training(path) else path.name.partition(".pt")[0]
    usual, _ = preprocessing_by_name(name, found.layout)
    said = read_sidecars(path, usual, "pre_logits.fc.weight" in found.shapes)
    said = said.over(from_training(script, usual, path))
    names = (*said.names, name, *((path.stem, path.parent.name) if not is_usual(path) else ()))
    config, why = preprocessing_by_name(" ".join((*said.names, name)), found.layout)
    config, why = pixels_by_name(names, found) or (config, why)
    said = said.over(told_by_name(names, found, str(path)))
    given = {key: asked[key] for key in _SAID & asked.keys() if asked[key] not in ("cls+mean", "map")}
    if found.layout.strict and "heads" in asked:  # else it replaces a guess, below
        given["heads"] = asked["heads"]
    facts = said.facts | {key: asked[key] for key in FACTS if key in asked}
    stored = architecture(found, dataclasses.replace(said, facts=facts, **given), str(path))
    stored = _as_asked(stored, asked, path)
    if said.eval is not None:
        config, why = said.eval, ""
    config, guessed = fitted(config, stored.model.channels, path)
    report = (*found.report, *_beside_report(weights))
    description = Description(
        path=path,
        model=stored.model,
        classes=tuple(said.classes) if len(said.classes) == stored.model.classes else (),
        eval=config,
        notes=tuple(f"{path.name}: {note}" for note in (*_notes(weights, found, stored, why, others), *guessed)),
        layout=found.layout.name,
        report=report,
        asked={f"model.{k}": v for k, v in asked.items()},
    )
    return Opened(weights, description, found, stored)


_SAID = {"gelu", "norm_eps", "pool"}


def _place(weights: Weights) -> tuple[Place | None, list[str]]:
    """Where in a file's keys the weights are, and the names of the other places where there is a whole ViT."""
    if isinstance(weights, Pickled):
        return weights.place, [table.name or "the outermost table" for table in weights.others]
    place, others = best_place(weights.shapes)
    return place, [f"{other.prefix}*" for other in others]


def _script(weights: Weights, path: Path) -> dict[str, Any]:
    """The arguments of the script that wrote a file of torch.save, as far as it kept any."""
    root = weights.root if isinstance(weights, Pickled) else {}
    known: dict[str, Any] = {}
    for key in ("hyper_parameters", "hparams", "config", "cfg", "opt", "args"):
        node = root.get(key)
        table = node.state if isinstance(node, Inert) else node
        known |= table if isinstance(table, dict) else {}
    return known | {key: root[key] for key in ("arch", "model_name") if isinstance(root.get(key), str)}


def _as_asked(stored: Stored, asked: Overrides, path: Path) -> Stored:
    """With what was asked for in place of what was read or guessed. Raises UsageError."""
    for key, value in asked.items():
        if not hasattr(stored.model, key):
            raise UsageError(f"model.{key} does not concern {stored.model.name}, of {path}", "leave it out")
        own = getattr(stored.model, key)
        if key not in _REPLACES and value != own:
            raise UsageError(
                f"model.{key} cannot be changed to {value}: the weights of {path} say {own}", "leave it out"
            )
    model = dataclasses.replace(stored.model, **asked)
    model = dataclasses.replace(model, name=model.spelled())
    model.check()
    if model.features != stored.model.features and model.classes:
        raise UsageError(
            f"model.pool = {asked['pool']}: the head of {path} reads {stored.model.features} numbers, not {model.features}",
            f"leave it out for {dataclasses.asdict(stored.model)['pool']}",
        )
    guessed = tuple(key for key in stored.guessed if key not in asked)
    return dataclasses.replace(stored, model=model, guessed=guessed)


_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}


def _check_types(weights: Weights, found: Found) -> None:
    """Raises CheckpointError where weights are no plain floating-point numbers: quantised, they mean nothing without scales."""
    for parts in found.parts.values():
        for part in parts:
            _check_type(weights.path, part.key, weights.types.get(part.key, "F32"))


def _check_type(path: Path, key: str, kind: str) -> None:
    if kind not in _FLOATS:
        raise CheckpointError(
            f"{path}: {key} holds numbers of type {kind}, quantised or packed",
            "save the weights as float32, float16 or bfloat16",
        )


def _beside_report(weights: Weights) -> list[Row]:
    beside = weights.beside if isinstance(weights, Pickled) else []
    return [Row(name, "dropped", "beside the weights" if tensors else "no tensor") for name, tensors in beside]


def _notes(weights: Weights, found: Found, stored: Stored, why: str, others: list[str]) -> list[str]:
    """What was chosen or guessed of a file, and what was left out of it."""
    notes = [why] if why else []
    if not found.layout.name.startswith("timm"):
        notes.append(f"layout of {found.layout.name}")
    if others:
        taken = weights.table.name if isinstance(weights, Pickled) and weights.table else f"{found.prefix}*"
        average = ", the average over training" if is_average(taken) else ""
        notes.append(f"{taken or 'the outermost table'} is taken{average}; {', '.join(others[:3])} would do as well")
    path = weights.path
    if is_of_training(path) and len(left_by_training(path.parent)) > 1:
        notes.append(f"one of {len(left_by_training(path.parent))} checkpoints in its folder")
    left_out = [row.key for row in found.report if row.fate == "dropped"]
    if isinstance(weights, Pickled):
        left_out += [name for name, tensors in weights.beside if tensors and name not in others]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        notes.append(f"left out {', '.join(left_out[:3])}{more}")
    if stored.guessed:
        notes.append(guesses(stored.model, stored.guessed))
    if isinstance(stored.model, ModelConfig) and stored.model.pre_norm and stored.model.gelu == "erf":
        if re.search(r"openai|metaclip|quickgelu", str(path), re.IGNORECASE):
            notes.append(
                "its name is of weights that were trained with quick GELU: --set model.gelu=quick computes that"
            )
    if stored.zeros:
        notes.append(
            f"the head is a projection into {stored.model.classes} numbers that are compared with others', no classes"
        )
    return notes
