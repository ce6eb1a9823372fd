"""Checkpoints for other tools, written only if both sides give the same logits.

What is written is loaded by the tool it is for and run on the same pixels as vit; where the difference is over the
tolerance, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitcli import files, hub
from vitcli.config import ModelConfig, Overrides
from vitcli.data.batch import normalise_, to_float
from vitcli.data.decode import eval_view
from vitcli.data.samples import sample_photographs
from vitcli.errors import CheckpointError, ResourceError, UsageError, did_you_mean
from vitcli.model.attention import Attention
from vitcli.model.classifier import Classifier
from vitcli.model.positions import as_learned
from vitcli.runs import WEIGHTS
from vitcli.text import as_json, unicode
from vitcli.weights import card, formats
from vitcli.weights.asked import asked_checkpoint
from vitcli.weights.checkpoint import Tensors, load, model_with, write_safetensors
from vitcli.weights.describe import Description
from vitcli.weights.document import preprocessing
from vitcli.weights.theirs import format_of

FORMATS = ("onnx", "timm", "transformers")
TOLERANCE = 1e-4
"""Largest difference of a logit, over the largest logit or 1; float32 alone makes about a hundredth of it."""
_ONE_FILE = 1_900_000_000  # bytes of weights; a protocol buffer holds two gigabytes
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "timm": ("timm",), "transformers": ("transformers",)}

Images = Float[Tensor, "images channels height width"]
Logits = Float[Tensor, "images classes"]


def check_format(form: str, description: Description) -> None:
    """Raises UsageError for an unknown format or a tool that is not installed, CheckpointError for what it does not hold."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", did_you_mean(form, FORMATS))
    if not description.model.classes:
        raise CheckpointError(
            f"{description.path} has no classification head", "fine-tune it first: vit finetune CKPT --data DATA"
        )
    if form != "onnx":
        format_of(description, form).check(description)
    missing = [name for name in _NEEDS[form] if importlib.util.find_spec(name) is None]
    if missing:
        extra = "'vitcli[onnx]'" if form == "onnx" else form
        raise UsageError(
            f"--format {form} is checked by running {missing[0]}, which is not installed", f"pip install {extra}"
        )


def check_place(out: Path, form: str, force: bool, source: Path) -> None:
    """Raises UsageError where `out` cannot be written without taking something of the user's: with --force only the files
    that vit writes are replaced, and never those of a run, or the checkpoint that is exported.
    """
    full = str(out.absolute())
    if unicode(full) != full:
        raise UsageError(f"the path {full} is not UTF-8, and {form} reads no such files", "give another OUT")
    files.check_out(out, force, folder=form != "onnx")
    if form != "onnx" and ((out / "state").is_dir() or (out / "run.toml").exists()):
        raise UsageError(
            f"{out} is a run folder, whose model.safetensors and config.json would be replaced",
            f"give another OUT, such as {out.name}-{form}",
        )
    taken = out if form == "onnx" else out / WEIGHTS
    if taken.exists() and source.exists() and taken.samefile(source):
        raise UsageError(f"{taken} is the checkpoint that is exported", "give another OUT")


def export_asked(
    reference: str, out: Path, form: str, *, labels: str = "", force: bool = False, overrides: Overrides | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a checkpoint for another tool: the fields of `vit export --json`, and what to say.

    `overrides` are `model.` values for what somebody else's file does not say, and `eval.` values of its preprocessing.
    Raises UsageError, CheckpointError, also where that tool gives other logits, or ResourceError.
    """
    described, _, _ = asked_checkpoint(reference, overrides or {}, ("model.", "eval."))
    described = described.labelled(labels)
    check_format(form, described)
    check_place(out, form, force, described.path)
    _, tensors = load(described)
    return export(described, tensors, out, form, force), described.notes


def export(description: Description, tensors: Tensors, out: Path, form: str, force: bool = False) -> dict[str, Any]:
    """Write `out` for another tool: a folder, or a file for ONNX. Returns the fields of `vit export --json`.

    With `force` the files of an existing folder that have the names of those written are replaced, and nothing else.
    Raises UsageError where something is in the way, CheckpointError where the two sides differ, ResourceError.
    """
    check_format(form, description)
    check_place(out, form, force, description.path)
    model = model_with(description.model, tensors)
    pixels = torch.from_numpy(sample_photographs(eval_view(description.model.img_size, description.eval)))
    images = normalise_(to_float(pixels), description.eval)
    with torch.inference_mode():
        ours = model(images)
    write = {"onnx": _onnx, "timm": _timm, "transformers": _transformers}[form]
    difference = 0.0
    plain, weights = description, tensors
    if form != "onnx" and isinstance(description.model, ModelConfig):
        config, weights = as_learned(description.model, tensors)
        plain = dataclasses.replace(description, model=config)

    def fill(place: Path) -> None:
        nonlocal difference
        theirs = write(plain, weights, model, place)
        difference = _difference(ours, theirs, images, form)

    def fill_file(place: Path) -> None:
        with files.temporary_folder(place) as holder:
            fill(holder)
            found = sorted(holder.iterdir())
            for extra in found[1:]:
                files.check_out(out.with_name(extra.name), force)
                extra.replace(out.with_name(extra.name))
            found[0].replace(place)

    size = sum(t.numel() * 4 for t in tensors.values())
    differs = formats.preprocessing_differences(description, form)
    if form == "onnx":
        files.write_file(out, fill_file, size)
    else:
        files.write_into_folder(out, fill, size)
    return {
        "path": str(out),
        "format": form,
        "max_abs_difference": difference,
        "images": len(images),
        "preprocessing": {"equal": not differs, "differs": differs},
    }


def _difference(ours: Logits, run: Callable[[Images], Logits], images: Images, form: str) -> float:
    """The largest difference of a logit, all images at once and the first alone. Raises CheckpointError over the tolerance."""
    with torch.inference_mode():
        theirs, first = run(images), run(images[:1])
    if theirs.shape != ours.shape or first.shape != ours[:1].shape:
        raise CheckpointError(f"{form} gives logits of shape {tuple(theirs.shape)}, vit {tuple(ours.shape)}")
    difference = max(float((theirs - ours).abs().max()), float((first - ours[:1]).abs().max()))
    allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
    if not difference <= allowed:
        raise CheckpointError(
            f"{form} gives other logits than vit: they differ by up to {difference:.3g}, over {allowed:.3g}",
            "nothing was written; please report it with the model",
        )
    return difference


def _save(place: Path, tensors: Tensors, config: dict[str, Any], document: dict[str, Any] | None = None) -> None:
    write_safetensors(place / WEIGHTS, tensors, document)
    files.write_json(place / "config.json", config)


def _timm(description: Description, tensors: Tensors, model: Classifier, place: Path) -> Callable[[Images], Logits]:
    theirs = format_of(description, "timm")
    weights = theirs.weights(description, tensors)
    # what has vit's names is a checkpoint of vit's as well
    document = description.document() if weights.keys() == tensors.keys() else None
    _save(place, {name: t.contiguous() for name, t in weights.items()}, theirs.config(description), document)
    loaded = _import("timm").create_model(f"local-dir:{place.resolve()}", pretrained=True).eval()
    result: Callable[[Images], Logits] = loaded
    return result


def _transformers(
    description: Description, tensors: Tensors, model: Classifier, place: Path
) -> Callable[[Images], Logits]:
    theirs = format_of(description, "transformers")
    weights = theirs.weights(description, tensors)
    _save(place, {name: t.contiguous() for name, t in weights.items()}, theirs.config(description))
    files.write_json(place / "preprocessor_config.json", formats.preprocessor_config(description))
    auto = _import("transformers").AutoModelForImageClassification
    _import("transformers.utils.logging").disable_progress_bar()
    with _quietly():
        loaded, said = auto.from_pretrained(place, output_loading_info=True, local_files_only=True)
    left = [*said["missing_keys"], *said["unexpected_keys"], *said["mismatched_keys"]]
    if left:
        raise CheckpointError(f"transformers does not take {len(left)} of the weights, such as {sorted(left)[0]}")
    return lambda images: loaded.eval()(images).logits


def _onnx(description: Description, tensors: Tensors, model: Classifier, place: Path) -> Callable[[Images], Logits]:
    """An ONNX graph with a free batch size. Its metadata names the classes and says how pixels are made."""
    for module in model.modules():
        if isinstance(module, Attention):
            biased = module.offset_embed is not None or module.relative_position_bias_table is not None
            module.path = "plain" if biased else "fused"  # the kernel with a bias has no graph
    example = torch.zeros(2, description.model.channels, *description.model.img_size)
    with _quietly():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(onnx_metadata(description))
    path = place / "model.onnx"
    size = sum(t.numel() * 4 for t in tensors.values())
    program.save(str(path), external_data=size > _ONE_FILE)
    session = _import("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def onnx_metadata(description: Description) -> dict[str, str]:
    """`labels` (a list), `preprocessing` (size, crop, resize, interpolation, mean, std of pixels in 0..1), `model`, each but the last as JSON."""
    names = [c.as_json() for c in description.classes]
    return {
        "model": description.model.name,
        "labels": as_json([c["name"] for c in names]),
        "classes": as_json(names),
        "preprocessing": as_json(preprocessing(description.model.img_size, description.eval)),
    }


def _import(name: str) -> Any:
    """A tool that is only run for checking. Raises UsageError where it is installed but does not import."""
    try:
        _let_torchvision_import()
        return importlib.import_module(name)
    except Exception as error:  # a broken installation raises many types
        raise UsageError(
            f"--format needs {name}, which does not import: {(str(error).splitlines() or [''])[0][:200]}",
            f"repair it, for example with pip install -U {name}",
        ) from None


_DECLARED: list[torch.library.Library] = []


def _let_torchvision_import() -> None:
    """timm and transformers import torchvision, which does not import beside a torch that its operators were not built for:
    it describes operators that are not there. They are declared here, and stay without code; nothing calls them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    for _ in range(20):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            if not _DECLARED:
                _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            _DECLARED[0].define(f"{missing[1]}(Tensor x) -> Tensor")
            for loaded in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
                del sys.modules[loaded]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The other tool's warnings and log lines are not the user's concern: its logits are compared."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def push(
    out: Path, repository: str, form: str, reference: str = "", labels: str = "", overrides: Overrides | None = None
) -> str:
    """Upload what was exported of a checkpoint to the hub, with a model card. Returns its address.

    Nothing else in the folder is sent, and no path of this machine. Raises ResourceError with what was in the way.
    """
    from huggingface_hub import HfApi

    described, _, _ = asked_checkpoint(reference or str(out), overrides or {}, ("model.", "eval."))
    text = card.card(described.labelled(labels), form, repository)
    api = HfApi()
    with tempfile.TemporaryDirectory() as place:
        card.stage(out, Path(place), text)
        try:
            api.create_repo(repository, repo_type="model", exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=place, commit_message="Export by vit")
        except Exception as error:  # the hub's errors are many
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ResourceError(f"cannot push to {repository}: {first[:200]}", hub.hint(error)) from None
    return f"{api.endpoint}/{repository}"
