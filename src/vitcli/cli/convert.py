"""`vit resize-posemb` and `vit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitcli import runs
from vitcli.cli import completion, console, options
from vitcli.cli.command import announce, newest_checkpoint
from vitcli.cli.train import Checkpoint
from vitcli.errors import UsageError

Resized = Annotated[Path | None, typer.Argument(metavar="OUT", show_default=False, help="The new .safetensors file.")]
PatchSize = Annotated[
    str,
    typer.Option(
        "--patch-size",
        metavar="P|HxW",
        show_default=False,
        help="Patch size in pixels; the patch embedding is resized by FlexiViT's pseudo-inverse. \\[default: the same]",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="bicubic|paper|bicubic-antialias|bicubic-offset",
        autocompletion=completion.of("bicubic", "paper", "bicubic-antialias", "bicubic-offset"),
        show_default=False,
        help="How positions are interpolated: DeiT's bicubic, the paper's bilinear with corners aligned, timm's, DINOv2's. "
        "\\[default: the checkpoint's own, else bicubic]",
    ),
]
Exported = Annotated[
    Path | None, typer.Argument(metavar="OUT", show_default=False, help="The new folder; for ONNX the new file.")
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="onnx|timm|transformers",
        autocompletion=completion.of("onnx", "timm", "transformers"),
        show_default=False,
        help="What it is for.",
    ),
]
Push = Annotated[
    str,
    typer.Option("--push", metavar="USER/NAME", show_default=False, help="Upload it to the Hugging Face hub as well."),
]


def resize_posemb(
    checkpoint: Checkpoint = "",
    out: Resized = None,
    img_size: options.ImgSize = "",
    patch_size: PatchSize = "",
    method: Method = "",
    force: options.Force = False,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the same weights for images of another size, the position embedding interpolated.

    Prefix tokens keep their positions. Reads and writes tensor by tensor, so it needs no memory for the whole model.
    """
    checkpoint, out = _source_and_out(checkpoint, out, "larger.safetensors")
    size, patch = options.size(img_size), options.size(patch_size)
    if size is None and patch is None:
        raise UsageError("nothing to resize", "give --img-size, in pixels, or --patch-size")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: not a .safetensors file", "OUT is the new weights file, such as larger.safetensors")
    from vitcli import api

    overrides = options.overrides(None, set_)
    tree, notes = api.resize_position_embedding(
        checkpoint, out, img_size=size, patch=patch, method=method, force=force, overrides=overrides
    )
    announce(notes, quiet=quiet)
    console.print_json(tree) if json else console.print_path(out)


def export(
    checkpoint: Checkpoint = "",
    out: Exported = None,
    form: Format = "",
    labels: options.Labels = "",
    push: Push = "",
    force: options.Force = False,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint for other tools, and check it by running both on the same photographs.

    Where the logits differ, nothing is left behind. A run folder itself loads in timm, and in transformers by way of timm.
    """
    checkpoint, out = _source_and_out(checkpoint, out, "FOLDER")
    if not form:
        raise UsageError("--format is missing", "give --format onnx, timm or transformers")
    from vitcli import api

    overrides = options.overrides(None, set_)
    tree, notes = api.export(checkpoint, out, form, labels=labels, force=force, overrides=overrides)
    shown = f"largest difference of a logit on {tree['images']} photographs: {tree['max_abs_difference']:.2g}"
    differs = [f"{form} makes other pixels than vit: {what}" for what in tree["preprocessing"]["differs"]]
    announce([*notes, shown], differs, quiet=quiet)
    if push:
        tree["pushed"] = api.push(out, push, form, checkpoint, labels, overrides)
        if not quiet:
            console.show_note(f"pushed to {tree['pushed']}")
    console.print_json(tree) if json else console.print_path(out)


def _source_and_out(checkpoint: str, out: Path | None, example: str) -> tuple[str, Path]:
    """CKPT and OUT: of one name it is OUT, and the checkpoint is that of the newest finished run, which is said. Raises UsageError."""
    if out is not None:
        return checkpoint, out
    if not checkpoint or Path(checkpoint).is_file() or Path(checkpoint, runs.WEIGHTS).is_file():
        raise UsageError("OUT is missing", f"say where to: {checkpoint or 'CKPT'} {example}")
    return newest_checkpoint(), Path(checkpoint)
