"""`vit attn-distance`, `vit attn-rollout`, `vit posemb-similarity` and `vit filters`: the inside of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli import files
from vitcli.cli import console, options
from vitcli.cli.command import announce, announced, print_result, reporting
from vitcli.cli.train import Checkpoint
from vitcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitcli.api import AttentionPlan
    from vitcli.config import Size

_OUTPUT = "Output"

Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMAGE…]",
        show_default=False,
        help="Image files, folders or patterns, in place of --data; all are taken.",
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE…", show_default=False, help="Image files, folders or patterns."),
]
DistanceData = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        show_default=False,
        help="Images, labelled or not, as vit eval takes them. \\[default: the checkpoint's own]",
    ),
]
Count = Annotated[
    int | None,
    typer.Option("--images", metavar="N", show_default=False, help="How many images of the data. \\[default: 128]"),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE.png|svg", show_default=False, help="Draw it into this file.", rich_help_panel=_OUTPUT
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv",
        metavar="FILE",
        show_default=False,
        help="A row a head, as .csv, .parquet or .jsonl.",
        rich_help_panel=_OUTPUT,
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option("--out", metavar="FOLDER", show_default=False, help="Where the overlays go.", rich_help_panel=_OUTPUT),
]
Discard = Annotated[
    float | None,
    typer.Option(
        "--discard",
        metavar="PART",
        show_default=False,
        help="Part of each layer's attention weights, the smallest, to leave out: 0 to below 1. \\[default: 0]",
    ),
]
PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="Draw the rollout up to each layer as well.", rich_help_panel=_OUTPUT)
]


def attn_distance(
    checkpoint: Checkpoint = "",
    image: Files = None,
    data: DistanceData = "",
    images: Count = None,
    img_size: options.ImgSize = "",
    batch_size: options.EvalBatchSize = None,
    plot: Plot = None,
    csv: Csv = None,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """How far each attention head looks: the mean attention distance in pixels, averaged over queries and images.

    The class token, the distillation token and registers are left out and rows sum to one again, unless
    analysis.include_prefix=true or analysis.renormalise=false is set.
    """
    overrides = options.overrides(None, set_, eval__batch_size=batch_size, analysis__images=images)
    _check_outputs(plot, csv, force=force)
    reference, names = _arguments(checkpoint, image or [])
    from vitcli import api

    planned = api.plan_attention(
        reference, data, names, img_size=options.size(img_size), device=device, precision=precision,
        overrides=overrides,
    )  # fmt: skip
    if announced(planned, json=json, quiet=quiet, dry_run=dry_run):
        return
    with reporting(quiet) as reporter:
        tree = planned.distance(reporter.progress)
    _warn_unreadable(planned, tree["images"])
    from vitcli.analysis.attention import uniform_distance
    from vitcli.analysis.report import distance_table

    uniform = uniform_distance(planned.model.grid, planned.model.patch)
    if csv is not None:
        from vitcli.evaluate.report import write_table

        write_table(csv, distance_table(tree))
    if plot is not None:
        from vitcli.analysis import pictures

        title = (
            f"{_name(planned.model.name, planned.img_size)}, {tree['images']:,} images of {_short(planned.data_name)}"
        )
        pictures.attention_distance(
            [layer["heads"] for layer in tree["layers"]], planned.img_size[1], uniform, title, plot
        )
    print_result(tree, _distance_text(tree, planned, uniform), json=json)


def attn_rollout(
    out: OutFolder,
    checkpoint: Checkpoint = "",
    image: Images = None,
    img_size: options.ImgSize = "",
    batch_size: options.EvalBatchSize = None,
    discard: Discard = None,
    per_layer: PerLayer = False,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> None:
    """Where in an image the output comes from: attention rollout, laid over each image, and a contact sheet of many.

    The mean over heads, half of it and half the identity, multiplied over the layers. Prints the paths of the overlays,
    which have the size of their images; a frame marks what the model saw where that is not all.
    """
    overrides = options.overrides(
        None, set_, eval__batch_size=batch_size, analysis__discard=discard, analysis__per_layer=per_layer or None
    )
    reference, names = _arguments(checkpoint, image or [])
    if not names:
        raise UsageError("no image given", "vit attn-rollout CKPT IMAGE… --out FOLDER")
    from vitcli import api

    planned = api.plan_attention(
        reference, "", names, img_size=options.size(img_size), device=device, precision=precision, overrides=overrides
    )
    if announced(planned, json=json, quiet=quiet, dry_run=dry_run):
        return
    with reporting(quiet) as reporter:
        tree = planned.overlays(names, out, force, reporter.progress)
    _warn_unreadable(planned, len(tree["images"]))
    print_result(tree, [*(row["overlay"] for row in tree["images"]), *tree["contact_sheets"]], json=json)


def posemb_similarity(
    checkpoint: Checkpoint = "",
    img_size: options.ImgSize = "",
    plot: Plot = None,
    force: options.Force = False,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """How alike the position embeddings of any two patches are: cosine similarity, a tile a patch."""
    _check_outputs(plot, force=force)
    from vitcli import api

    described, similarity, notes = api.position_similarity(
        checkpoint, options.size(img_size), options.overrides(None, set_)
    )
    announce(notes, quiet=quiet)
    model = described.vit
    if plot is not None:
        from vitcli.analysis import pictures

        title = f"position embeddings of {_name(model.name, model.img_size)}"
        pictures.position_similarity(similarity, model.grid, model.patch, title, plot)
    if json:
        console.print_json({"grid": list(model.grid), "similarity": similarity.round(7).tolist()})
    else:
        console.print_lines(_similarity_text(similarity, model.grid, _name(model.name, model.img_size)))


def filters(
    checkpoint: Checkpoint = "",
    plot: Plot = None,
    force: options.Force = False,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """What a model's first filters look for, those of its patches or its first convolution: their first 28 principal
    components, as pictures of a patch: in colour for three channels or four, of which alpha is not shown, else in gray, of more the
    mean of the channels.

    analysis.components=N takes another number of them.
    """
    overrides = options.overrides(None, set_)
    _check_outputs(plot, force=force)
    from vitcli import api

    described, found, notes = api.filters(checkpoint, overrides)
    announce(notes, quiet=quiet)
    rows, columns = found.components.shape[1:3]
    patch = (rows, columns)
    if plot is not None:
        from vitcli.analysis import pictures

        title = f"first filters of {described.model.name}: their principal components"
        pictures.filters(found.components, found.explained_variance, patch, title, plot)
    if json:
        console.print_json({"explained_variance": found.explained_variance.tolist(), "patch_size": list(patch)})
    else:
        console.print_lines(_filters_text(found.explained_variance, described.model.name, patch))


# --- what the commands share -------------------------------------------------------------------------------


def _arguments(checkpoint: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """The checkpoint and the image files. What ends like an image is no checkpoint: that was left out then.

    Raises DataError where folders or patterns hold no image.
    """
    checkpoint, names = options.checkpoint_and_images(checkpoint, names)
    if not names:
        return checkpoint, []
    from vitcli.evaluate.named import NoImage, expand

    found = []
    for name in expand(names):
        if isinstance(name, NoImage):
            raise DataError(f"no image in {name.path}: {name.reason}", "name image files, or folders that hold some")
        found.append(name)
    return checkpoint, found


def _check_outputs(plot: Path | None, csv: Path | None = None, *, force: bool) -> None:
    """Raises UsageError for a file that exists, unless `force`, or an ending that is not known."""
    from vitcli import plots

    for path in filter(None, (plot, csv)):
        files.check_out(path, force)
        console.asked_for.append(path)
    if plot is not None:
        plots.check_picture(plot)
    if csv is not None:
        from vitcli.evaluate.report import check_table

        check_table(csv, "--csv")


def _warn_unreadable(planned: AttentionPlan, read: int) -> None:
    unreadable = len(planned.split) - read
    if unreadable:
        console.show_warning(f"{unreadable} unreadable images are left out")


def _name(model: str, size: Size) -> str:
    return f"{model} at {size[0]} x {size[1]} px"


def _short(data: str) -> str:
    """A folder or file by its name alone."""
    return Path(data).name if Path(data).exists() else data


def _distance_text(tree: dict[str, Any], planned: AttentionPlan, uniform: float) -> list[str]:
    prefix = planned.model.prefix_tokens
    tokens = f"{prefix} prefix token{'s' if prefix > 1 else ''}"
    if not prefix:
        how = "the model has patches alone"
    elif tree["includes_cls"]:
        how = f"{tokens} included, at distance 0"
    else:
        how = f"{tokens} left out, rows {'' if tree['renormalised'] else 'not '}renormalised"
    heads = len(tree["layers"][0]["heads"])
    lines = [
        f"model       {_name(planned.model.name, planned.img_size)}, patches of {tree['patch_size'][0]} x {tree['patch_size'][1]} px",
        f"images      {tree['images']:,} of {planned.data_name}",
        f"attention   {how}",
        f"uniform     {uniform:.1f} px, for a head that attends to all patches alike",
        "",
        f"mean attention distance in px of each layer and of its {heads} heads, nearest first"
        if heads > 1
        else "mean attention distance in px of each layer",
        "layer    mean",
    ]
    for row in tree["layers"]:
        shown = "  ".join(f"{distance:5.1f}" for distance in sorted(row["heads"]))
        lines.append(f"{row['layer']:>5}  {row['mean']:6.1f}" + (f"   {shown}" if heads > 1 else ""))
    return lines


def _similarity_text(similarity: NDArray[np.float64], grid: Size, name: str) -> list[str]:
    import numpy as np

    row, column = (places.flatten() for places in np.indices(grid))
    down, across = abs(row[:, None] - row), abs(column[:, None] - column)
    groups = {
        "next patch in the row": (down == 0) & (across == 1),
        "next patch in the column": (down == 1) & (across == 0),
        "same row": (down == 0) & (across > 0),
        "same column": (down > 0) & (across == 0),
        "neither": (down > 0) & (across > 0),
    }
    lines = [f"position embeddings of {name}, {grid[0]} x {grid[1]} patches", "mean cosine similarity of two patches:"]
    lines += [f"  {what:<25} {similarity[where].mean():6.3f}" for what, where in groups.items() if where.any()]
    return lines


def _filters_text(explained: NDArray[np.float64], name: str, patch: Size) -> list[str]:
    lines = [
        f"first filters of {name}, {patch[0]} x {patch[1]} px",
        "their principal components, % of their variance:",
    ]
    lines += [f"  {index:>3}  {100 * part:5.1f}" for index, part in enumerate(explained, start=1)]
    return [*lines, f"  sum  {100 * explained.sum():5.1f}"]
