"""An evaluation as JSON fields, as a table of predictions, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcli import files, sheets
from vitcli.classes import Class
from vitcli.data.colour import BadImage
from vitcli.data.decode import open_rgb
from vitcli.data.split import Source, Split
from vitcli.errors import UsageError
from vitcli.evaluate.calibration import reliability
from vitcli.evaluate.evaluator import Evaluation
from vitcli.evaluate.metrics import Tally, confusion
from vitcli.evaluate.named import named_bytes
from vitcli.evaluate.real import RealLabels
from vitcli.evaluate.sets import SetEvaluation
from vitcli.text import as_json, cell, last_names, unicode

TABLE_FORMATS = (".parquet", ".csv", ".jsonl")


_WORST, _MOST_ROWS, _MOST_TILES = 40, 120, 4


def summary(evaluation: Evaluation, classes: Sequence[Class], real: RealLabels | None = None) -> dict[str, Any]:
    """The fields of `vit eval --json`."""
    tally = evaluation.tally
    per_class = [
        c.as_json() | {"n": int(n), "top1": top1}
        for c, n, top1 in zip(classes, tally.class_n, tally.per_class(), strict=True)
    ]
    extra: dict[str, Any] = {"unreadable": evaluation.unreadable} if evaluation.unreadable else {}
    extra |= real.score(evaluation.positions, evaluation.top[:, 0]) if real is not None else {}
    return evaluation.metrics | {"classes": per_class, "balanced_top1": tally.balanced()} | extra


def summary_of_sets(evaluation: SetEvaluation, classes: Sequence[Class]) -> dict[str, Any]:
    """The fields of `vit eval --json` where labels are sets: `map`, and `ap` of each class; what is of one label an image is None."""
    _, shown = evaluation.tally.whole()
    rows = [
        c.as_json() | {"n": int(n), "top1": None, "ap": precision}
        for c, n, precision in zip(classes, shown.sum(0), evaluation.tally.per_class(), strict=True)
    ]
    return (
        evaluation.metrics
        | {"classes": rows, "balanced_top1": None}
        | ({"unreadable": evaluation.unreadable} if evaluation.unreadable else {})
    )


def check_table(path: Path, option: str = "--predictions") -> None:
    """Raises UsageError for an ending that no table has."""
    if path.suffix not in TABLE_FORMATS:
        raise UsageError(f"{option} {path}: unknown ending {path.suffix!r}", f"known: {', '.join(TABLE_FORMATS)}")


def predictions(evaluation: Evaluation, split: Split, classes: Sequence[Class]) -> dict[str, list[Any]]:
    """Columns, a row an image: `row` and `path` in the data, `target` and `prediction` as names, as `_index` of the
    classes that are told apart and, where the classes have ids, as `_id`; `score` of the prediction, `correct`.
    """
    best = evaluation.top[:, 0]
    positions = evaluation.positions
    table: dict[str, list[Any]] = {"row": split.rows[positions].tolist(), "path": split.paths(positions)}
    for name, indices in (("target", evaluation.targets), ("prediction", best)):
        table[name] = [classes[i].name for i in indices]
        table[f"{name}_index"] = indices.tolist()
        if any(c.id for c in classes):
            table[f"{name}_id"] = [classes[i].id for i in indices]
    table["score"] = evaluation.scores[:, 0].tolist()
    table["correct"] = np.equal(best, evaluation.targets).tolist()
    return table


def write_table(path: Path, table: dict[str, list[Any]]) -> None:
    """Columns as Parquet, CSV or JSON lines, by the file's ending. JSON lines hold names exactly, Parquet all but bytes that are
    not UTF-8, CSV without what a spreadsheet would run (text.py). Raises ResourceError.
    """

    def write(temporary: Path) -> None:
        import pyarrow as pa

        if path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pa.table(_written(table, unicode)), temporary)
        elif path.suffix == ".csv":
            import pyarrow.csv

            pyarrow.csv.write_csv(pa.table(_written(table, cell)), temporary)
        else:
            rows = (dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True))
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(as_json(row) + "\n" for row in rows)

    files.write_file(path, write)


def _written(tree: Any, form: Callable[[str], str]) -> Any:
    """Every text below `tree` in the form that a file takes."""
    if isinstance(tree, dict):
        return {key: _written(value, form) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_written(value, form) for value in tree]
    return form(tree) if isinstance(tree, str) else tree


def draw_confusion(evaluation: Evaluation, classes: Sequence[Class], title: str, path: Path) -> None:
    """True against predicted classes, of those that occur as either. Raises ResourceError."""
    from vitcli import plots

    present, counts = confusion(evaluation.targets, evaluation.top[:, 0])
    plots.confusion(counts, [classes[int(c)].name for c in present], title, path)


def draw_reliability(
    evaluation: Evaluation, fitted: tuple[dict[str, Any], Tally, Tally] | None, title: str, path: Path
) -> None:
    """Confidence against top-1; with a fitted temperature of the half that it was measured on, before and after. Raises ResourceError."""
    from vitcli import plots

    if fitted is None:
        panels = [
            (_calibration_text(evaluation.metrics["n"], evaluation.metrics["ece"]), reliability(evaluation.tally))
        ]
    else:
        fields, before, after = fitted
        panels = [
            (_calibration_text(fields["n"], fields["ece_before"]), reliability(before)),
            (
                f"temperature {fields['temperature']:.2f}: {_calibration_text(fields['n'], fields['ece'])}",
                reliability(after),
            ),
        ]
    plots.reliability(panels, title, path)


def _calibration_text(n: int, ece: float | None) -> str:
    return f"{n:,} images" + ("" if ece is None else f", expected error {100 * ece:.2f} %")


def draw_worst(
    evaluation: Evaluation, split: Split, classes: Sequence[Class], max_megapixels: float, title: str, path: Path
) -> None:
    """The images with the greatest loss, each with its class, what was predicted and how sure. Raises ResourceError."""
    order = np.argsort(-evaluation.losses, kind="stable")[:_WORST]
    pairs = [(int(evaluation.targets[i]), int(evaluation.top[i, 0]), float(evaluation.scores[i, 0])) for i in order]
    places = [(split, int(position)) for position in evaluation.positions[order]]
    draw_labelled(places, pairs, classes, max_megapixels, title, path)


def draw_labelled(
    places: Sequence[tuple[Split, int]],
    pairs: Sequence[tuple[int, int, float]],
    classes: Sequence[Class],
    max_megapixels: float,
    title: str,
    path: Path,
) -> None:
    """Images by split and position, each with its class, the one that a model takes it for and how sure. Raises ResourceError."""
    tiles = []
    for (split, position), (own, other, score) in zip(places[:_MOST_ROWS], pairs, strict=False):
        colour = sheets.INK if other == own else sheets.WRONG
        lines = ((classes[own].name, sheets.INK), (f"{100 * score:.0f} % {classes[other].name}", colour))
        tiles.append(sheets.Tile(_picture(split, position, max_megapixels), lines))
    sheets.page(tiles, title, path)


_GUESSES = 2
"""Of an image on a sheet of predictions, beside the best."""


def draw_predictions(rows: Sequence[dict[str, Any]], total: int, model: str, max_megapixels: float, path: Path) -> None:
    """Rows of `vit predict` as pictures, each with its label and score, the next guesses and its name; of one that cannot be read, why.
    `total` is how many there were. Raises ResourceError.
    """
    tiles = []
    for row in rows:
        name = (last_names(row["path"]), sheets.FAINT)
        if "error" in row:
            lines: tuple[tuple[str, str], ...] = (("cannot be read", sheets.WRONG), (row["error"], sheets.WRONG), name)
            tiles.append(sheets.Tile(sheets.UNREADABLE, lines))
            continue
        best = row.get("labels") or [row]
        said = [
            ("none of these" if g["label"] is None else f"{100 * g['score']:.0f} % {g['label']}", sheets.INK)
            for g in best
        ]
        named = {item["label"] for item in best}
        others = [g for g in row["topk"] if g["label"] not in named][:_GUESSES]
        guesses = [(f"{100 * g['score']:.0f} % {g['label']}", sheets.FAINT) for g in others]
        lines = (*said[: 1 + _GUESSES], *guesses[: max(0, 1 + _GUESSES - len(said))], name)
        tiles.append(sheets.Tile(small_picture(named_bytes(row["path"]), max_megapixels), lines))
    more = f", the first {len(rows):,}" if total > len(rows) else ""
    unreadable = sum("error" in row for row in rows)
    faults = f", {unreadable:,} cannot be read" if unreadable else ""
    sheets.page(tiles, f"{model}: predictions of {total:,} image{'s' * (total != 1)}{more}{faults}", path)


def draw_classes(source: Source, max_megapixels: float, path: Path) -> None:
    """Some images of each class, a row a class, spread over all that it has. Raises ResourceError."""
    parts = [part for part in source.splits.values() if part.is_labelled]
    columns = 8 if len(source.classes) <= 14 else 5 if len(source.classes) <= 40 else 4
    rows = []
    for index, item in enumerate(source.classes[:_MOST_ROWS]):
        members = [(part, _showing(part, index)) for part in parts]
        places = [(part, position) for part, positions in members for position in positions.tolist()]
        shown = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, columns).astype(int))] if places else []
        tiles = tuple(sheets.Tile(_picture(part, position, max_megapixels)) for part, position in shown)
        rows.append(sheets.Row(item.name, f"{len(places):,} images", tiles))
    more = "" if len(source.classes) <= _MOST_ROWS else f", the first {_MOST_ROWS}"
    total = sum(map(len, parts))
    sheets.table(rows, f"{source.name}: {total:,} images of {len(source.classes):,} classes{more}", path)


def _showing(part: Split, index: int) -> NDArray[np.int64]:
    """The positions of the images that show a class."""
    return np.flatnonzero(part.sets[:, index] if part.sets is not None else part.labels == index)


def draw_groups(
    groups: Sequence[tuple[str, str, Sequence[tuple[Split, int, str]]]], title: str, max_megapixels: float, path: Path
) -> None:
    """Images that belong together, a row a group: its name and a smaller line, and of each image its split, position and what
    stands below it. Raises ResourceError.
    """
    rows = [
        sheets.Row(
            name,
            below,
            tuple(
                sheets.Tile(_picture(split, position, max_megapixels), ((text, sheets.INK),))
                for split, position, text in members[:_MOST_TILES]
            ),
        )
        for name, below, members in groups[:_MOST_ROWS]
    ]
    sheets.table(rows, title, path)


def _picture(split: Split, position: int, max_megapixels: float) -> NDArray[np.uint8]:
    ((blob, _),) = split.blobs(np.array([position]))
    return small_picture(blob, max_megapixels)


def small_picture(blob: bytes | None, max_megapixels: float) -> NDArray[np.uint8]:
    """An image at the size of a contact sheet's; gray where it cannot be read."""
    try:
        picture, _ = open_rgb(blob or b"", max_megapixels, draft=(2 * sheets.SIDE, 2 * sheets.SIDE))
        return sheets.thumbnail(picture)
    except BadImage:
        return np.full((sheets.SIDE, sheets.SIDE, 3), 200, np.uint8)
