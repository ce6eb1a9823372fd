"""An evaluation as JSON fields, as a table of predictions, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitcli import files
from vitcli.classes import Class
from vitcli.data.split import Split
from vitcli.errors import UsageError
from vitcli.evaluate.evaluator import Evaluation
from vitcli.text import as_json, cell, unicode

TABLE_FORMATS = (".parquet", ".csv", ".jsonl")


def summary(evaluation: Evaluation, classes: Sequence[Class]) -> dict[str, Any]:
    """The fields of `vit eval --json`."""
    tally = evaluation.tally
    per_class = [
        c.as_json() | {"n": int(n), "top1": top1}
        for c, n, top1 in zip(classes, tally.class_n, tally.per_class(), strict=True)
    ]
    extra = {"unreadable": evaluation.unreadable} if evaluation.unreadable else {}
    return evaluation.metrics | {"classes": per_class, "balanced_top1": tally.balanced()} | extra


def check_table(path: Path, option: str = "--predictions") -> None:
    """Raises UsageError for an ending that no table has."""
    if path.suffix not in TABLE_FORMATS:
        raise UsageError(f"{option} {path}: unknown ending {path.suffix!r}", f"known: {', '.join(TABLE_FORMATS)}")


def predictions(evaluation: Evaluation, split: Split, classes: Sequence[Class]) -> dict[str, list[Any]]:
    """Columns, a row an image: `row` and `path` in the data, `target` and `prediction` as names, as `_index` of the
    checkpoint's outputs and, where the classes have ids, as `_id`; `score` of the prediction, `correct`.
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

    present = np.union1d(evaluation.targets, evaluation.top[:, 0])
    place = {int(c): i for i, c in enumerate(present)}
    counts = np.zeros((len(present), len(present)), np.int64)
    for target, prediction in zip(evaluation.targets, evaluation.top[:, 0], strict=True):
        counts[place[int(target)], place[int(prediction)]] += 1
    plots.confusion(counts, [classes[int(c)].name for c in present], title, path)
