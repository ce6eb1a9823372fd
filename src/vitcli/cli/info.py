"""`vit info`: what a model name or a checkpoint is, without torch."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vitcli import config, flops, runs
from vitcli.cli import completion, console, options
from vitcli.cli.command import newest_checkpoint
from vitcli.errors import UsageError
from vitcli.families.pretrained import find, other_family
from vitcli.families.table import size_said

Reference = Annotated[
    str,
    typer.Argument(
        metavar="[CKPT|MODEL]",
        autocompletion=completion.checkpoints,
        show_default=False,
        help="A checkpoint, or a model such as ViT-B/16. Left out: the newest finished run under ./runs.",
    ),
]
Classes = Annotated[int, typer.Option("--classes", metavar="N", help="Outputs of the head, for a model name.")]

Keys = Annotated[
    bool, typer.Option("--keys", help="What became of every key of somebody else's file: used, renamed or dropped.")
]


def info(
    reference: Reference = "",
    img_size: options.ImgSize = "",
    classes: Classes = 1000,
    keys: Keys = False,
    set_: options.Set = None,
    json: options.Json = False,
) -> None:
    """Parameters, tokens and FLOPs of a model; classes and provenance of a checkpoint, from its header alone."""
    size, overrides = options.size(img_size), config.parse_set(set_ or [])
    reference = reference or newest_checkpoint()
    named = _named(reference)
    if named is not None:
        if overrides:
            raise UsageError(
                f"{next(iter(overrides))} says what a file does not; {reference} is a name", "leave it out"
            )
        size = size or size_said(reference) or (224, 224)
        model = replace(named, img_size=size, classes=classes).suited_to(size)
        said: dict[str, Any] = {}
    else:
        from vitcli.weights.describe import describe
        from vitcli.weights.locate import locate

        for key in overrides:
            if not key.startswith("model."):
                raise UsageError(f"{key} does not concern what a checkpoint is", "info takes --set model.… only")
        killed = runs.killed(Path(reference))
        if killed:
            console.show_note(killed)
        description = describe(locate(reference), overrides)
        for note in description.notes:
            console.show_note(note)
        model = replace(description.model, img_size=size or description.model.img_size)
        said = {
            "classes": [c.as_json() for c in description.classes] or model.classes,
            "provenance": description.provenance or None,
            "scores": description.scores or None,
            "layout": description.layout,
            "notes": list(description.notes),
            "keys": [{"key": row.key, "fate": row.fate, "to": row.to} for row in description.report],
        }
    model.check()
    tree = _of_model(model) | said
    if not keys and "keys" in tree:
        counts: dict[str, int] = {}
        for row in tree["keys"]:
            counts[row["fate"]] = counts.get(row["fate"], 0) + 1
        tree["keys"] = counts
    if json:
        console.print_json(tree)
    else:
        console.print_lines(_text(tree, model))


def _named(reference: str) -> config.Architecture | None:
    """The architecture, where `reference` is a model's name and no file. Raises UsageError for a size that there is not."""
    with contextlib.suppress(OSError, ValueError):
        if Path(reference).exists():
            return None
    if "/" in reference and (find(reference) is not None or other_family(reference)):
        return None  # weights on the hub
    try:
        return config.named(reference)
    except UsageError:
        if re.fullmatch(r"[a-z]{3,}/\d+", reference, re.IGNORECASE):
            return None  # a hub id whose second part is a number
        raise


def _of_model(model: config.Architecture) -> dict[str, Any]:
    cost = model.cost()
    return {
        "model": model.name,
        "params": cost.parameters,
        "params_backbone": flops.backbone_parameters(model),
        "tokens": model.tokens,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "img_size": list(model.img_size),
        **model.described(),
        "classes": model.classes,
        "provenance": None,
    }


_PARTS = {
    "rope": "rotary ({})",
    "gated": "gated",
    "gelu": "GELU {}",
    "norm_kind": "norms {}",
    "qk_norm": "norms of queries and keys ({})",
    "mlp_norm": "a norm in the MLP",
    "attention_norm": "a norm in attention",
    "pre_norm": "a norm before the blocks",
    "patch_norm": "a norm of patches",
    "qkv_bias": "biases of q, k, v: {}",
    "branch_bias": "branches without biases",
}
"""Of what not every ViT has."""


def _text(tree: dict[str, Any], model: config.Architecture) -> list[str]:
    named = isinstance(tree["classes"], list)
    count = len(tree["classes"]) if named else tree["classes"]
    patches = f"patches of {tree['patch_size'][0]} x {tree['patch_size'][1]}, " if "patch_size" in tree else ""
    channels = f"{tree['channels']} channel{'s' if tree['channels'] > 1 else ''}, " if "channels" in tree else ""
    rows = {"model": tree["model"]}
    if "width" in tree:
        rows["shape"] = (
            f"width {tree['width']}, depth {tree['depth']}, {tree['heads']} heads, MLP {tree['mlp']}, pooling {tree['pool']}"
            + (f", positions {tree['positions']}" if tree.get("positions", "learned") != "learned" else "")
            + (", LayerNorms after the sums" if tree.get("norm_place") == "post" else "")
            + "".join(f", {text}" for key, text in _PARTS.items() if key in tree for text in [text.format(tree[key])])
        )
    rows |= {
        "parameters": f"{tree['params']:,} ({tree['params_backbone']:,} without the head)",
        "input": f"{tree['img_size'][0]} x {tree['img_size'][1]} px, {channels}{patches}{model.seen}",
        "compute": f"{tree['macs'] / 1e9:.3g} GMACs = {tree['flops'] / 1e9:.3g} GFLOPs an image",
        "classes": f"{count:,}",
    }
    if named:
        names = [c["name"] for c in tree["classes"]]
        rows["classes"] += ": " + ", ".join(names[:12]) + (" …" if count > 12 else "")
    source = tree["provenance"]
    if source:
        learned = f" by {source['objective']}" if "objective" in source else ""
        rows["trained"] = (
            f"{source.get('command', '?')}{learned} on {(source.get('data') or {}).get('id', '?')}, recipe {source.get('recipe', '?')}, "
            f"seed {source.get('seed', '?')}, {source.get('steps', 0):,} steps, {source.get('images_seen', 0):,} images"
        )
        if source.get("parent"):
            rows["from"] = str(source["parent"].get("path", "?"))
        if source.get("teacher"):
            rows["teacher"] = str(source["teacher"].get("path", "?"))
    scores = tree.get("scores")
    if scores and scores.get("top1") is not None:
        rows["score"] = (
            f"top-1 {100 * scores['top1']:.2f} % on {scores.get('n', 0):,} images of {scores.get('split', '?')}"
        )
    keys = tree.get("keys")
    if keys:
        counts = ", ".join(f"{n} {fate}" for fate, n in keys.items()) if isinstance(keys, dict) else f"{len(keys)} keys"
        rows["layout"] = f"{tree['layout']}: {counts}"
    lines = [f"{name:<11} {value}" for name, value in rows.items()]
    if isinstance(keys, list):
        width = max((len(row["key"]) for row in keys), default=0)
        lines += [f"  {row['key']:<{width}}  {row['fate']:<8}  {row['to']}" for row in keys]
    return lines
