"""`vit data`: what is in a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli import config
from vitcli.cli import completion, options
from vitcli.cli.command import announce, print_result, reporting
from vitcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from vitcli.data.inspection import Inspection
    from vitcli.data.split import Source
    from vitcli.evaluate.suspects import Suspect

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        autocompletion=completion.data,
        show_default=False,
        help="A preset, a hub id, a folder of images, a table, Parquet files.",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="CKPT",
        autocompletion=completion.checkpoints,
        show_default=False,
        help="Look for labels that are likely wrong, by the features of this model.",
    ),
]
Near = Annotated[
    bool, typer.Option("--near/--no-near", help="Look for near duplicates, too: encoded anew, resized, mirrored.")
]
_PICTURES = "Pictures"
Sheet = Annotated[
    Path | None,
    typer.Option(
        "--sheet", metavar="FILE.png", show_default=False, help="Some images of each class.", rich_help_panel=_PICTURES
    ),
]
Duplicates = Annotated[
    Path | None,
    typer.Option(
        "--duplicates", metavar="FILE.png", show_default=False, help="The images that are there more than once.",
        rich_help_panel=_PICTURES,
    ),
]  # fmt: skip
LabelErrors = Annotated[
    Path | None,
    typer.Option(
        "--label-errors", metavar="FILE.png", show_default=False, help="The images whose labels are likely wrong.",
        rich_help_panel=_PICTURES,
    ),
]  # fmt: skip
_SHOWN = 10


def data(
    data: Data,
    checkpoint: Checkpoint = "",
    near: Near = True,
    sheet: Sheet = None,
    duplicates: Duplicates = None,
    label_errors: LabelErrors = None,
    force: options.Force = False,
    set_: options.Set = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Look at every image of a data set: classes, sizes, what cannot be read or is left out, and what is there more than once.

    Duplicates across what is trained on and what is held out are a leak: a score on them is too high.
    """
    overrides = options.overrides(None, set_)
    written = {"--sheet": sheet, "--duplicates": duplicates, "--label-errors": label_errors}
    options.check_written(written, force, dict.fromkeys(written, options.PNG))
    if label_errors is not None and not checkpoint:
        raise UsageError("--label-errors: labels are compared with a model's features", "name one with --checkpoint")
    idle = {"data.fraction", "data.balanced", "data.unlabelled", "data.images", "data.classes", "data.source"}
    wrong = next((k for k in overrides if not k.startswith(("data.", "eval.", "model.")) or k in idle), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} does not concern data", "it takes --set data.…, and with --checkpoint eval.… and model.…"
        )
    settings = config.apply(
        config.Config(), {k: v for k, v in overrides.items() if k.startswith("data.")} | {"data.source": data}
    )
    from vitcli.data.inspection import inspect
    from vitcli.data.sources import open_source

    source = open_source(settings.data)
    announce(source.notes, quiet=quiet)
    if checkpoint and not any(split.labels is not None for split in source.splits.values()):
        raise DataError(
            f"{source.id} has no images with one label each", "--checkpoint looks for labels that are wrong"
        )
    with reporting(quiet) as reporter:
        found = inspect(source, settings.data, near, reporter.progress)
    tree = found.as_json()
    suspects: list[Suspect] = []
    if checkpoint:
        from vitcli.evaluate.suspects import as_json, suspects_of

        with reporting(quiet) as reporter:
            suspects, notes = suspects_of(
                source, found.readable, checkpoint, device, precision, overrides, reporter.progress
            )
        announce(notes, quiet=quiet)
        places = {(int(s), int(p)): i for i, (s, p) in enumerate(zip(found.split, found.position, strict=True))}
        tree["label_errors"] = [as_json(s, source, found.row(places[s.split, s.position])) for s in suspects]
    _draw(found, source, suspects, (sheet, duplicates, label_errors), settings.data.max_megapixels)
    print_result(tree, _text(tree), json=json)


def _draw(
    found: Inspection,
    source: Source,
    suspects: list[Any],
    paths: tuple[Path | None, Path | None, Path | None],
    most: float,
) -> None:
    sheet, duplicates, label_errors = paths
    if not any(paths):
        return
    from vitcli.evaluate import report

    if sheet is not None:
        report.draw_classes(source, most, sheet)
    if duplicates is not None:
        groups = [("exact", g) for g in found.exact if g not in found.near] + [("near", g) for g in found.near]
        groups.sort(key=lambda item: len(set(found.part[item[1]])) == 1)
        rows = [
            (
                kind,
                "across parts" if len(set(found.part[g])) > 1 else "within a part",
                [(found.splits[found.split[i]], int(found.position[i]), str(found.part[i])) for i in g],
            )
            for kind, g in groups
        ]
        title = f"{source.name}: {len(groups):,} groups of images that are there more than once"
        report.draw_groups(rows, title, most, duplicates)
    if label_errors is not None:
        places = [(found.splits[s.split], s.position) for s in suspects]
        pairs = [(s.label, s.suggested, s.chance_of_suggested) for s in suspects]
        title = f"{source.name}: {len(suspects):,} labels that are likely wrong"
        report.draw_labelled(places, pairs, source.classes, most, title, label_errors)


def _text(tree: dict[str, Any]) -> list[str]:
    lines = []
    for split in tree["splits"]:
        lines.append(f"split       {split['name']}, {split['rows']:,} images" + _balance(split["classes"]))
    if tree["sizes"]:
        sizes = tree["sizes"]
        named = ", ".join(f"{name} {sizes[name][1]} x {sizes[name][0]}" for name in ("smallest", "median", "largest"))
        lines.append(
            f"sizes       {named}; {sizes['of_commonest']:,} are {sizes['commonest'][1]} x {sizes['commonest'][0]}"
        )
    for title, rows, form in (
        ("unreadable", tree["unreadable"], lambda r: f"{_place(r)}: {r['reason']}"),
        ("left out", tree["left_out"], lambda r: f"{r['n']:,} {r['ending']}"),
    ):
        if rows:
            lines.append(
                f"{title:<11} {len(rows):,}" if title == "unreadable" else f"{title:<11} files that are no images"
            )
            lines += [f"  {form(row)}" for row in rows[:_SHOWN]] + _more(rows)
    groups = tree["duplicates"]
    kinds = {kind: [g for g in groups if g["kind"] == kind] for kind in ("exact", "near")}
    counts = ", ".join(f"{len(found):,} groups {kind}" for kind, found in kinds.items())
    lines.append(f"duplicates  {counts}; {tree['leaked']:,} held-out images are among the training images")
    first = sorted(groups, key=lambda g: not g["across"])
    lines += [f"  {g['kind']:<5}  " + "  =  ".join(map(_place, g["rows"][:4])) for g in first[:_SHOWN]] + _more(groups)
    if "label_errors" in tree:
        rows = tree["label_errors"]
        lines.append(f"labels      {len(rows):,} are likely wrong")
        lines += [
            f"  {_place(r)}: {r['label']}, looks like {r['suggested']} ({100 * r['score']:.0f} %)"
            for r in rows[:_SHOWN]
        ]
        lines += _more(rows)
    return lines


def _balance(classes: list[dict[str, Any]]) -> str:
    """How many classes, and the smallest and the largest."""
    if not classes:
        return ", no labels"
    least, most = min(classes, key=lambda c: c["n"]), max(classes, key=lambda c: c["n"])
    if least["n"] == most["n"]:
        return f" of {len(classes):,} classes, {least['n']:,} each"
    return f" of {len(classes):,} classes, from {least['n']:,} ({least['name']}) to {most['n']:,} ({most['name']})"


def _place(row: dict[str, Any]) -> str:
    return row.get("path") or f"{row['split']} {row['row']}"


def _more(rows: list[Any]) -> list[str]:
    return [f"  and {len(rows) - _SHOWN:,} more (--json has all)"] if len(rows) > _SHOWN else []
