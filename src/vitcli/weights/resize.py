"""`vit resize-posemb`: the same weights for another image or patch size, in a file of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli import files
from vitcli.config import ModelConfig, Overrides, Size, format_size
from vitcli.errors import UsageError, did_you_mean
from vitcli.model.posemb import METHODS
from vitcli.model.positions import places_of
from vitcli.weights import checkpoint
from vitcli.weights.asked import check_fitting, opened_checkpoint
from vitcli.weights.describe import Description


def resize_position_embedding(
    reference: str,
    out: Path,
    *,
    img_size: Size | None = None,
    patch: Size | None = None,
    method: str = "",
    force: bool = False,
    overrides: Overrides | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a checkpoint for another image or patch size: the fields of `vit resize-posemb --json`, and what to say.

    `method` is by default the checkpoint's own. `overrides` are `model.` values for what somebody else's file does not say.
    Raises UsageError where `out` exists, there is nothing to resize or the sizes do not fit, CheckpointError, ResourceError.
    """
    check_fitting(overrides or {}, ("model.",))
    if method and method not in METHODS:
        raise UsageError(f"unknown method {method!r}", did_you_mean(method, METHODS))
    files.check_out(out, force)
    opened, notes = opened_checkpoint(reference, overrides or {})
    old, before = opened.description, opened.description.vit
    if not before.has_tables and patch in (None, before.patch):
        raise UsageError(
            f"{old.path} has no position embedding to resize: {places_of(before)}",
            f"it takes any --img-size that is a multiple of {format_size(before.patch)} as it is",
        )
    method = method or (METHODS[0] if before.posemb == "auto" else before.posemb)
    new, tensors = checkpoint.resized(old, checkpoint.Lazy(opened), img_size or before.img_size, method, patch)
    changed, after = new.model != before, new.vit
    checkpoint.save(_described(new, old, before, method, out, changed), tensors)
    tree = {
        "checkpoint": str(out),
        "from_grid": list(before.grid),
        "to_grid": list(after.grid),
        "method": method,
        "img_size": list(after.img_size),
        "patch_size": list(after.patch),
        "keys": key_counts(new),
    }
    return tree, (*notes, *old.notes)


def _described(
    new: Description, old: Description, before: ModelConfig, method: str, out: Path, changed: bool
) -> Description:
    kept = {"resized_from": {"path": str(old.path), "sha256": old.sha256, "grid": list(before.grid), "method": method}}
    return replace(
        new,
        path=out,
        provenance=old.provenance | (kept if changed else {}),
        scores={} if changed else old.scores,
    )


def key_counts(description: Description) -> dict[str, Any]:
    """How many keys of somebody else's file were used and renamed, and the names of those resampled or dropped."""
    report = description.report
    return {
        "layout": description.layout,
        "used": sum(row.fate == "used" for row in report),
        "renamed": sum(row.fate == "renamed" for row in report),
        "resampled": [row.key for row in report if row.fate == "resampled"],
        "dropped": [row.key for row in report if row.fate == "dropped"],
    }
