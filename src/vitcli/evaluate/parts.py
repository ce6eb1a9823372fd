"""A table of rows that is written in parts, each whole or not at all, and gone on with after a kill."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitcli import files
from vitcli.errors import UsageError
from vitcli.evaluate.named import NoImage
from vitcli.text import as_json, cell, unicode

_ROWS, _SECONDS = 2_000, 60.0
"""Of a part at most: what a kill costs."""

Row = dict[str, Any]


class Table:
    """Rows on their way to the file `out`, a path a row, in `OUT.parts` beside it until all are there.

    `columns` are the rows' keys, `about` what rows depend on beside the image. Raises UsageError where the parts that are there are of
    something else, ResourceError where nothing can be written.
    """

    def __init__(self, out: Path, columns: list[str], about: dict[str, Any], force: bool) -> None:
        self.out, self.columns = out, columns
        self.folder = out.with_name(f"{out.name}.parts")
        self.waiting: list[Row] = []
        self.last = time.monotonic()
        about = json.loads(as_json({k: v for k, v in about.items() if k != "checkpoint"} | {"columns": columns}))
        place = self.folder / "about.json"
        if force and place.is_file():
            files.remove_folder(self.folder)
        with files.disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.lock = (self.folder / "lock").open("w")
        try:
            self._begin(place, about)
        except BaseException:
            self.lock.close()
            raise

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.close()

    def _begin(self, place: Path, about: dict[str, Any]) -> None:
        self._take_lock()
        if not place.is_file():
            if any(path.name != "lock" for path in self.folder.iterdir()):
                raise UsageError(f"{self.folder} is there and no table's", "give --out another name")
            files.write_json(place, about)
        self._check(place, about)
        files.remove_leftovers(self.folder)
        self.parts = sorted(self.folder.glob(f"part-*{self.out.suffix}"))
        self.done = self.errors = 0

    def _take_lock(self) -> None:
        """Two commands do not write one table. The lock ends with the process."""
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"another command is writing {self.out}", "wait for it, or give another name"
                ) from None

    def _check(self, place: Path, about: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads(place.read_text(encoding="utf-8"))
            differing = sorted(key for key in {*kept, *about} if kept.get(key) != about.get(key))
            if not differing:
                return
            raise UsageError(
                f"{self.folder} has parts of another prediction: {', '.join(differing)} differ",
                "--force begins anew, another name keeps both",
            )
        raise UsageError(f"{place} cannot be read", "--force begins anew")

    def left(self, paths: Iterable[str | NoImage]) -> Iterator[str | NoImage]:
        """The paths that have no row yet. Raises UsageError where the first ones are others than those that have."""
        wanted, number = iter(paths), 0
        for path, is_error in (row for part in self.parts for row in self._read(part)):
            named = next(wanted, None)
            number += 1
            self.errors += is_error
            name = named.path if isinstance(named, NoImage) else named
            if name is None or self._form(name) != path:
                raise UsageError(
                    f"row {number:,} of the parts in {self.folder} is {path!r}, and image {number:,} is {name!r}",
                    "the same images in the same order go on; --force begins anew",
                )
        self.done = number
        return wanted

    def add(self, row: Row) -> None:
        self.waiting.append(row)
        self.done += 1
        self.errors += "error" in row
        if len(self.waiting) >= _ROWS or time.monotonic() - self.last > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put the rows that wait into a part of their own. Raises ResourceError."""
        if self.waiting:
            part = self.folder / f"part-{len(self.parts):08}{self.out.suffix}"
            files.write_file(part, lambda temporary: self._write(temporary, self.waiting, is_first=not self.parts))
            self.parts.append(part)
            self.waiting = []
        self.last = time.monotonic()

    def finish(self) -> None:
        """Put the parts together, and remove them. Raises ResourceError."""
        self.flush()
        size = sum(part.stat().st_size for part in self.parts)
        files.write_file(self.out, self._join, size)
        files.remove_folder(self.folder)

    # --- by format ---

    def _form(self, path: str) -> str:
        """A path as it stands in the table."""
        return {".parquet": unicode, ".csv": cell}.get(self.out.suffix, str)(path)

    def _read(self, part: Path) -> Iterator[tuple[str, bool]]:
        """The path of each row, and whether it is an error."""
        if self.out.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(part, columns=["path", "error"])
            yield from zip(table["path"].to_pylist(), (e is not None for e in table["error"].to_pylist()), strict=True)
        elif self.out.suffix == ".csv":
            with part.open(encoding="utf-8", newline="") as file:
                names = csv.reader(file)
                for index, row in enumerate(names):
                    if index or part != self.parts[0]:
                        yield row[0], bool(row[self.columns.index("error")])
        else:
            with part.open(encoding="utf-8") as file:
                yield from ((row["path"], "error" in row) for row in map(json.loads, file))

    def _write(self, path: Path, rows: list[Row], is_first: bool) -> None:
        if self.out.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            schema = pa.schema({name: _kind(name) for name in self.columns})
            columns = {name: [_of_arrow(row.get(name)) for row in rows] for name in self.columns}
            pyarrow.parquet.write_table(pa.table(columns, schema=schema), path)
        elif self.out.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_first:
                    writer.writerow(self.columns)
                writer.writerows([_of_csv(row.get(name)) for name in self.columns] for row in rows)
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(as_json(row) + "\n" for row in rows)

    def _join(self, path: Path) -> None:
        if self.out.suffix != ".parquet":
            with path.open("wb") as file:
                for part in self.parts:
                    file.write(part.read_bytes())
                if not self.parts and self.out.suffix == ".csv":
                    file.write((",".join(self.columns) + "\n").encode())
            return
        import pyarrow as pa
        import pyarrow.parquet

        schema = pa.schema({name: _kind(name) for name in self.columns})
        if self.parts:
            schema = pyarrow.parquet.read_schema(self.parts[0])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for part in self.parts:
                writer.write_table(pyarrow.parquet.read_table(part).cast(schema))


def _kind(name: str) -> Any:
    """The type of a column of Parquet."""
    import pyarrow as pa

    if name == "score":
        return pa.float64()
    if name in ("topk", "labels"):
        return pa.list_(pa.struct({"label": pa.string(), "id": pa.string(), "score": pa.float64()}))
    return pa.list_(pa.float32()) if name == "embedding" else pa.string()


def _of_arrow(value: Any) -> Any:
    if isinstance(value, str):
        return unicode(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{key: unicode(v) if isinstance(v, str) else v for key, v in item.items()} for item in value]
    return value


def _of_csv(value: Any) -> Any:
    return cell(value) if isinstance(value, str) else value


def columns_of(about: dict[str, Any], nested: bool) -> list[str]:
    """Of a table of predictions; `topk`, `labels` and the embedding only where the file's format holds lists."""
    with_id = any("id" in item for item in about["classes"])
    names = ["path", "label", *(["id"] if with_id else []), "score", "error"]
    lists = [
        "topk",
        *(["labels"] if about["wanted"]["sets"] else []),
        *(["embedding"] if about["wanted"]["embedding"] else []),
    ]
    return [*names, *(lists if nested else [])]
